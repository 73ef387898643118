//! Whether the node takes new sandboxes: what an operator decided lasts, whatever starts anew.
//!
//! A file in the data directory is the record: with it the node drains.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// The name of the file below the data directory.
const NAME: &str = "node.draining";

/// Whether the node drains.
#[derive(Debug)]
pub(crate) struct Drain {
    path: PathBuf,
    draining: AtomicBool,
}

impl Drain {
    /// As it was decided last in `data_dir`.
    pub(crate) fn load(data_dir: &Path) -> Self {
        let path = data_dir.join(NAME);
        let draining = AtomicBool::new(fs::symlink_metadata(&path).is_ok());
        Self { path, draining }
    }

    /// Whether the node takes no new sandboxes.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Decides it; it is written when this returns.
    ///
    /// # Errors
    /// When it cannot be written: then it stays as it was.
    pub(crate) fn set(&self, draining: bool) -> io::Result<()> {
        match draining {
            true => drop(
                OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?,
            ),
            false => match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
        }
        self.draining.store(draining, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_decided_lasts_until_it_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Drain::load(dir.path()).is_draining());
        for draining in [true, true, false, false] {
            let drain = Drain::load(dir.path());
            drain.set(draining).unwrap();
            assert_eq!(drain.is_draining(), draining);
            assert_eq!(Drain::load(dir.path()).is_draining(), draining, "after a new start");
        }
    }

    #[test]
    fn what_cannot_be_written_is_not_decided() {
        let drain = Drain::load(Path::new("/nonexistent"));
        drain.set(true).unwrap_err();
        assert!(!drain.is_draining());
    }
}
