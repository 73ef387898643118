//! What runs left in their workspaces, kept beyond the end of the sandboxes: files that were opened while
//! they were there can be read when they are gone.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Read, Seek},
    path::PathBuf,
};

use super::job::RUNS;

/// The notes of all sandboxes that there ever were.
#[derive(Debug)]
pub(super) struct Evidence {
    sandboxes: Vec<PathBuf>,
    notes: HashMap<PathBuf, File>,
}

impl Evidence {
    /// Of the server with these nodes.
    pub(super) fn new(nodes: &[(PathBuf, String)]) -> Self {
        let sandboxes = nodes.iter().map(|(data_dir, _)| data_dir.join("sandboxes")).collect();
        Self { sandboxes, notes: HashMap::new() }
    }

    /// Opens the notes that are new. Before a sandbox may vanish.
    pub(super) fn look(&mut self) {
        for entry in self.sandboxes.iter().flat_map(fs::read_dir).flatten().flatten() {
            let path = entry.path().join("workspace").join(RUNS);
            if !self.notes.contains_key(&path)
                && let Ok(file) = File::open(&path)
            {
                self.notes.insert(path, file);
            }
        }
    }

    /// How often each job noted that it ran.
    pub(super) fn runs(&mut self) -> HashMap<String, u32> {
        let mut counts = HashMap::new();
        for file in self.notes.values_mut() {
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            for tag in text.lines() {
                *counts.entry(tag.to_owned()).or_default() += 1;
            }
        }
        counts
    }
}
