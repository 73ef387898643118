//! The nodes that are known, in a file: one that went while no scheduler watched is lost all the same, and is
//! not merely unknown to the next one.

use std::{collections::BTreeMap, fs, io::ErrorKind, path::PathBuf, sync::Mutex};

/// Where each node is reached, by its id.
pub(crate) type Places = BTreeMap<String, String>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Memory {
    path: PathBuf,
    /// What the file says.
    kept: Mutex<Places>,
}

impl Memory {
    /// What is in the file; nothing where there is none, or one that cannot be read: the nodes report anyway.
    pub(crate) fn load(path: PathBuf) -> (Self, Places) {
        let places = read(&path).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "the nodes that were known are forgotten");
            Places::new()
        });
        (Self { path, kept: Mutex::new(places.clone()) }, places)
    }

    /// Has `places` in the file. What cannot be written is tried again the next time.
    pub(crate) fn keep(&self, places: Places) {
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *kept == places {
            return;
        }
        match self.write(&places) {
            Ok(()) => *kept = places,
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "the nodes cannot be noted");
            }
        }
    }

    /// Whole or not at all.
    fn write(&self, places: &Places) -> std::io::Result<()> {
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(places)?)?;
        fs::rename(&new, &self.path)
    }
}

fn read(path: &std::path::Path) -> std::io::Result<Places> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Places::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_there_again_and_what_is_broken_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scheduler.nodes");
        let places =
            Places::from([("a".to_owned(), "http://a:1".to_owned()), ("b".to_owned(), String::new())]);
        let (memory, none) = Memory::load(path.clone());
        assert!(none.is_empty());
        memory.keep(places.clone());
        assert_eq!(Memory::load(path.clone()).1, places);
        fs::write(&path, "{\"a\": ").unwrap();
        let (memory, broken) = Memory::load(path.clone());
        assert!(broken.is_empty());
        memory.keep(places.clone());
        assert_eq!(Memory::load(path).1, places);
    }
}
