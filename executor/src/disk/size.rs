//! The size of a tree of files that belongs to somebody who may try to hide some of it.

use std::{
    collections::HashSet,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// What a file costs besides its blocks, so that empty files fill up too.
const FILE_BYTES: u64 = 1 << 10;

/// How many files with several names are remembered; the names of more count as files.
const MOST_LINKED: usize = 1 << 18;

/// The bytes of files, added up until they are enough.
#[derive(Debug)]
pub(super) struct Size {
    enough: u64,
    total: u64,
    /// Files with several names that were counted.
    linked: HashSet<u64>,
    /// Something could not be looked into.
    shut: bool,
}

impl Size {
    pub(super) fn new(enough: u64) -> Self {
        Self { enough, total: 0, linked: HashSet::new(), shut: false }
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Whether more would make no difference.
    pub(super) fn is_enough(&self) -> bool {
        self.total > self.enough
    }

    /// Whether a directory could not be read for want of rights.
    pub(super) fn is_shut(&self) -> bool {
        self.shut
    }

    /// Adds the files below a directory.
    pub(super) fn add_tree(&mut self, top: PathBuf) {
        let mut waiting = vec![top];
        while let Some(dir) = waiting.pop() {
            match self.add_directory(&dir, &mut waiting) {
                // Deeper than any path: nobody needs that but to hide.
                Err(err) if err.raw_os_error() == Some(libc::ENAMETOOLONG) => self.total = u64::MAX,
                Err(err) if err.kind() == io::ErrorKind::PermissionDenied => self.shut = true,
                // It changes while we look.
                Ok(()) | Err(_) => {}
            }
            if self.is_enough() {
                return;
            }
        }
    }

    /// The files in one directory; its subdirectories are put on the list.
    fn add_directory(&mut self, dir: &Path, waiting: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(meta) => {
                    if meta.is_dir() {
                        waiting.push(entry.path());
                    }
                    self.add(&meta);
                }
                Err(err) if err.kind() == io::ErrorKind::PermissionDenied => self.shut = true,
                Err(_) => {}
            }
            if self.is_enough() {
                break;
            }
        }
        Ok(())
    }

    /// A file counts once and whole, however many names it has.
    fn add(&mut self, meta: &Metadata) {
        let is_linked = meta.nlink() > 1 && !meta.is_dir() && self.linked.len() < MOST_LINKED;
        if !is_linked || self.linked.insert(meta.ino()) {
            self.total = self.total.saturating_add(cost(meta));
        }
    }
}

/// What one file takes.
pub(super) fn cost(meta: &Metadata) -> u64 {
    meta.blocks().saturating_mul(512).saturating_add(FILE_BYTES)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn measure(top: &Path, enough: u64) -> Size {
        let mut size = Size::new(enough);
        size.add_tree(top.into());
        size
    }

    #[test]
    fn nested_files_and_many_empty_ones_count() {
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("a/b/c");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), vec![1; 100 << 10]).unwrap();
        let one = measure(top.path(), u64::MAX).total();
        assert!((100 << 10..200 << 10).contains(&one), "{one}");
        for number in 0..300 {
            fs::write(top.path().join(number.to_string()), "").unwrap();
        }
        assert!(measure(top.path(), u64::MAX).total() >= one + 300 * FILE_BYTES);
    }

    #[test]
    fn a_file_counts_once_and_whole_however_many_names_it_has() {
        let top = tempfile::tempdir().unwrap();
        let file = top.path().join("file");
        fs::write(&file, vec![1; 1 << 20]).unwrap();
        let one = measure(top.path(), u64::MAX).total();
        for number in 0..50 {
            fs::hard_link(&file, top.path().join(number.to_string())).unwrap();
        }
        assert_eq!(measure(top.path(), u64::MAX).total(), one);
        // The others outside what is looked at.
        let elsewhere = tempfile::tempdir().unwrap();
        fs::rename(&file, elsewhere.path().join("file")).unwrap();
        assert_eq!(measure(top.path(), u64::MAX).total(), one);
    }

    #[test]
    fn it_stops_when_that_is_enough() {
        let top = tempfile::tempdir().unwrap();
        for number in 0..100 {
            fs::write(top.path().join(number.to_string()), "x").unwrap();
        }
        let size = measure(top.path(), 10 << 10);
        assert!(size.is_enough() && size.total() < 20 << 10, "{}", size.total());
    }

    #[test]
    fn a_closed_directory_is_noticed() {
        let top = tempfile::tempdir().unwrap();
        let closed = top.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o300)).unwrap();
        let is_root = nix::unistd::Uid::effective().is_root();
        assert_eq!(measure(top.path(), u64::MAX).is_shut(), !is_root);
    }
}
