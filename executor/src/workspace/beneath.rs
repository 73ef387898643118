//! Paths below the root of the workspace.
//!
//! Every path is opened by the kernel beneath a descriptor of the root, with no link followed on the way
//! (`openat2`, Linux 5.6), so that it makes no difference what user code swaps for what, and when.

use std::{
    ffi::OsStr,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
};

use bytes::Bytes;
use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, mkdirat, openat2, readlinkat,
        renameat_with, statat, symlinkat, unlinkat,
    },
    io::Errno,
};
use sandmesh_proto::executor::{self as pb, entry::Kind};

use super::error::{Error, Reason};

/// The longest path, and the longest of its components.
const MAX_PATH: usize = 4095;
const MAX_COMPONENT: usize = 255;

/// A path below the root; empty: the root itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RelPath(Bytes);

impl RelPath {
    /// Parses a path from the wire.
    pub(super) fn parse(field: &'static str, bytes: Bytes) -> Result<Self, Error> {
        let problem = if bytes.len() > MAX_PATH {
            "must have at most 4095 bytes"
        } else if bytes.contains(&0) {
            "must not contain NUL"
        } else if bytes.is_empty() {
            return Ok(Self(bytes));
        } else if bytes.split(|byte| *byte == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
            "must be relative, without `.`, `..` and empty components"
        } else if bytes.split(|byte| *byte == b'/').any(|part| part.len() > MAX_COMPONENT) {
            "must have no component of more than 255 bytes"
        } else {
            return Ok(Self(bytes));
        };
        Err(Error::invalid(field, problem))
    }

    /// Parses the path of something other than the root.
    pub(super) fn parse_entry(field: &'static str, bytes: Bytes) -> Result<Self, Error> {
        if bytes.is_empty() { Err(Error::invalid(field, "must be given")) } else { Self::parse(field, bytes) }
    }

    pub(super) fn root() -> Self {
        Self(Bytes::new())
    }

    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn join(&self, name: &[u8]) -> Self {
        let mut path = self.0.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Self(path.into())
    }

    pub(super) fn bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// For a message.
    pub(super) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    /// Whether the other one is below it.
    pub(super) fn contains(&self, other: &Self) -> bool {
        other.0.strip_prefix(&self.0[..]).is_some_and(|rest| rest.first() == Some(&b'/'))
    }

    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }

    /// The directory it is in, and its name there.
    fn split(&self) -> (Self, &OsStr) {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (Self(self.0.slice(..at)), OsStr::from_bytes(&self.0[at + 1..])),
            None => (Self::root(), OsStr::from_bytes(&self.0)),
        }
    }
}

/// The root of a workspace.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

impl Root {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Opens what is at a path, without following a link.
    pub(super) fn open_at(&self, path: &RelPath, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.is_root() { OsStr::new(".") } else { OsStr::from_bytes(&path.0) };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // Who opens a FIFO or a terminal must not wait for it, or have it.
        let wary =
            if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NOCTTY | OFlags::NONBLOCK };
        let flags = flags | wary | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            match openat2(&self.0, path, flags, Mode::empty(), resolve) {
                // Something was moved meanwhile.
                Err(Errno::AGAIN) => {}
                opened => return Ok(opened?),
            }
        }
    }

    /// Opens a file to be read, and tells what it is.
    pub(super) fn open_file(&self, path: &RelPath) -> Result<(OwnedFd, pb::Entry), Error> {
        let file = self.open_at(path, OFlags::RDONLY).map_err(|source| Error::of(path, source))?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| Error::of(path, errno.into()))?;
        match entry(path, &stat) {
            Some(entry) if entry.kind() == Kind::File => Ok((file, entry)),
            _ => Err(Error::refused(Reason::NotAFile, path)),
        }
    }

    /// Opens the directory that a path is in, and tells its name there.
    pub(super) fn parent<'a>(&self, path: &'a RelPath) -> Result<(OwnedFd, &'a OsStr), Error> {
        let (parent, name) = path.split();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Ok((self.open_at(&parent, flags).map_err(|source| Error::of(path, source))?, name))
    }

    /// The same, and makes what is missing of it.
    pub(super) fn made_parent<'a>(&self, path: &'a RelPath) -> Result<(OwnedFd, &'a OsStr), Error> {
        match self.parent(path) {
            Err(Error::Refused { reason: Reason::NotFound, .. }) => {
                self.make_directory(&path.split().0, None)?;
                self.parent(path)
            }
            parent => parent,
        }
    }

    /// Makes a directory and those above it. One that is there stays as it is.
    pub(super) fn make_directory(&self, path: &RelPath, mode: Option<u32>) -> Result<(), Error> {
        let mut made = RelPath::root();
        let parts: Vec<_> = path.parts().collect();
        for (number, part) in parts.iter().enumerate() {
            let (parent, name) = (made.clone(), OsStr::from_bytes(part));
            made = made.join(part);
            let own = mode.filter(|_| number + 1 == parts.len());
            let directory = self
                .open_at(&parent, OFlags::PATH | OFlags::DIRECTORY)
                .map_err(|source| Error::of(path, source))?;
            let mode = Mode::from_raw_mode(own.unwrap_or(0o755) & 0o777);
            match mkdirat(&directory, name, mode) {
                Err(errno) if errno != Errno::EXIST => return Err(Error::of(path, errno.into())),
                _ => {}
            }
        }
        // What was there may be something else.
        let is_directory = self.stat(path)?.kind() == Kind::Directory;
        if is_directory { Ok(()) } else { Err(Error::refused(Reason::NotADirectory, path)) }
    }

    /// What the system says of the root.
    pub(super) fn own_stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(&self.0)?)
    }

    /// What is at a path.
    pub(super) fn stat(&self, path: &RelPath) -> Result<pb::Entry, Error> {
        let found = if path.is_root() {
            rustix::fs::fstat(&self.0).map(|stat| (stat, None))
        } else {
            let (parent, name) = self.parent(path)?;
            statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
                .map(|stat| (stat, readlinkat(&parent, name, Vec::new()).ok()))
        };
        let (stat, target) = found.map_err(|errno| Error::of(path, errno.into()))?;
        let mut entry = entry(path, &stat).ok_or_else(|| Error::refused(Reason::NotAFile, path))?;
        entry.target = target.map(|target| target.into_bytes().into()).unwrap_or_default();
        Ok(entry)
    }

    /// Moves something, and makes the directories above its new path.
    pub(super) fn rename(&self, from: &RelPath, to: &RelPath, overwrite: bool) -> Result<(), Error> {
        if from == to || from.contains(to) {
            return Err(Error::refused(Reason::IntoItself, from));
        }
        let moved = self.stat(from)?;
        let (source, source_name) = self.parent(from)?;
        let (target, target_name) = self.made_parent(to)?;
        if overwrite && moved.kind() == Kind::Directory && self.stat(to).is_ok() {
            // Not even an empty one is replaced.
            return Err(Error::refused(Reason::Exists, to));
        }
        let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        renameat_with(&source, source_name, &target, target_name, flags)
            .map_err(|errno| Error::of(to, errno.into()))
    }

    /// Makes a link, and the directories above it.
    pub(super) fn link(&self, path: &RelPath, target: &[u8]) -> Result<(), Error> {
        let (parent, name) = self.made_parent(path)?;
        symlinkat(OsStr::from_bytes(target), &parent, name).map_err(|errno| Error::of(path, errno.into()))
    }

    /// Deletes a file, a link or an empty directory.
    pub(super) fn delete(&self, path: &RelPath) -> Result<(), Error> {
        let (parent, name) = self.parent(path)?;
        let deleted = match unlinkat(&parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => unlinkat(&parent, name, AtFlags::REMOVEDIR),
            deleted => deleted,
        };
        deleted.map_err(|errno| Error::of(path, errno.into()))
    }
}

/// What a file is; `None` for a FIFO, a socket or a device.
pub(super) fn entry(path: &RelPath, stat: &Stat) -> Option<pb::Entry> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Link,
        _ => return None,
    };
    let size = u64::try_from(stat.st_size).unwrap_or_default();
    let mut version = DefaultHasher::new();
    (stat.st_ino, size, stat.st_mode).hash(&mut version);
    (stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec).hash(&mut version);
    Some(pb::Entry {
        path: path.bytes(),
        kind: kind.into(),
        size_bytes: if kind == Kind::File { size } else { 0 },
        mode: stat.st_mode & 0o777,
        modified_at: Some(prost_types::Timestamp {
            seconds: stat.st_mtime,
            nanos: i32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        }),
        version: version.finish(),
        target: Bytes::new(),
    })
}
