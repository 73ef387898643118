//! Lists a tree of files, piece by piece, so that a large one holds up nobody and fits into memory.

use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, OFlags, Stat, readlinkat, statat};
use sandmesh_proto::executor::{self as pb, entry::Kind};

use super::beneath::{RelPath, Root, entry};

/// Something that was found, and what the system says of it.
pub(super) type Found = (pb::Entry, Stat);

/// A walk through what is below a directory.
#[derive(Debug)]
pub(super) struct Walk {
    root: Arc<Root>,
    /// The directory that is read.
    open: Option<(RelPath, Dir)>,
    /// Directories to be read.
    waiting: Vec<RelPath>,
    /// How many entries may still be found.
    left: usize,
    incomplete: bool,
}

impl Walk {
    /// Through all below `top`, up to so many entries.
    pub(super) fn below(root: Arc<Root>, top: RelPath, most: usize) -> Self {
        Self { root, open: None, waiting: vec![top], left: most, incomplete: false }
    }

    /// There is more than was found.
    pub(super) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// The next entries, about as many as are wanted; none at the end.
    pub(super) fn next(&mut self, most: usize) -> Vec<Found> {
        let mut found = Vec::new();
        while found.len() < most && self.left > 0 {
            let Some((directory, mut dir)) = self.open.take().or_else(|| self.open_next()) else { break };
            if self.read(&directory, &mut dir, most, &mut found) {
                self.open = Some((directory, dir));
            }
        }
        self.incomplete |= self.left == 0;
        found
    }

    fn open_next(&mut self) -> Option<(RelPath, Dir)> {
        while let Some(path) = self.waiting.pop() {
            let opened = self.root.open_at(&path, OFlags::RDONLY | OFlags::DIRECTORY);
            match opened.and_then(|fd| Ok(Dir::new(fd)?)) {
                Ok(dir) => return Some((path, dir)),
                // It changes while we look.
                Err(err)
                    if matches!(err.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {}
                Err(_) => self.incomplete = true,
            }
        }
        None
    }

    /// Reads from a directory; true when there may be more.
    fn read(&mut self, directory: &RelPath, dir: &mut Dir, most: usize, found: &mut Vec<Found>) -> bool {
        while found.len() < most && self.left > 0 {
            let item = match dir.read() {
                Some(Ok(item)) => item,
                Some(Err(_)) => {
                    self.incomplete = true;
                    return false;
                }
                None => return false,
            };
            if matches!(item.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let path = directory.join(item.file_name().to_bytes());
            if let Some(one) = self.look(&path, dir, item.file_name()) {
                self.left -= 1;
                if one.0.kind() == Kind::Directory {
                    self.waiting.push(path);
                }
                found.push(one);
            }
        }
        true
    }

    fn look(&mut self, path: &RelPath, dir: &Dir, name: &std::ffi::CStr) -> Option<Found> {
        let fd = dir.fd().ok()?;
        let stat = match statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) => {
                self.incomplete |= errno != rustix::io::Errno::NOENT;
                return None;
            }
        };
        let mut entry = entry(path, &stat)?;
        if entry.kind() == Kind::Link {
            entry.target = readlinkat(fd, name, Vec::new()).ok()?.into_bytes().into();
        }
        Some((entry, stat))
    }
}
