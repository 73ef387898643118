//! A file that is written from outside: nameless until it is whole, and then there at once.

use std::{
    ffi::OsStr,
    fs::File,
    io::Write as _,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Arc,
};

use bytes::Bytes;
use rustix::{
    fs::{
        AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, fchmod, futimens, linkat, openat, renameat, statat,
        unlinkat,
    },
    io::Errno,
};
use sandmesh_proto::executor as pb;

use super::{
    beneath::{RelPath, Root},
    error::{Error, Reason},
    quota::{Quota, Taken},
};

/// A file on its way into the workspace.
#[derive(Debug)]
pub(super) struct Incoming {
    root: Arc<Root>,
    path: RelPath,
    mode: Option<u32>,
    modified_at: Option<prost_types::Timestamp>,
    parent: OwnedFd,
    file: Arc<File>,
    taken: Taken,
}

impl Incoming {
    pub(super) fn begin(root: Arc<Root>, quota: Arc<Quota>, start: pb::WriteStart) -> Result<Self, Error> {
        let path = RelPath::parse_entry("path", start.path)?;
        let (parent, name) = root.made_parent(&path)?;
        let known = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let known = known.map(|stat| stat.st_mode).filter(|mode| mode & libc::S_IFMT == libc::S_IFREG);
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        // The descriptor of a directory that is only a path to it takes no files.
        let file = openat(&parent, c".", flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| Error::of(&path, errno.into()))?;
        let mode = start.mode.or(known);
        let taken = Taken::none(quota);
        Ok(Self {
            path,
            mode,
            modified_at: start.modified_at,
            parent,
            file: Arc::new(file.into()),
            taken,
            root,
        })
    }

    pub(super) async fn append(&mut self, data: Bytes) -> Result<(), Error> {
        self.taken.more(data.len() as u64).await?;
        let file = Arc::clone(&self.file);
        let written = tokio::task::spawn_blocking(move || (&*file).write_all(&data)).await;
        let written = written.unwrap_or_else(|err| Err(std::io::Error::other(err)));
        written.map_err(|source| Error::Io { path: self.path.shown(), source })
    }

    /// Gives it its name. Dropped without, nothing of it is left.
    pub(super) fn finish(self) -> Result<pb::Entry, Error> {
        self.name()?;
        self.root.stat(&self.path)
    }

    fn name(&self) -> Result<(), Error> {
        let fail = |errno: Errno| match errno {
            Errno::ISDIR => Error::refused(Reason::NotAFile, &self.path),
            errno => Error::of(&self.path, errno.into()),
        };
        let mode = Mode::from_raw_mode(self.mode.unwrap_or(0o644) & 0o777);
        fchmod(&*self.file, mode).map_err(fail)?;
        if let Some(at) = self.modified_at {
            let at = Timespec { tv_sec: at.seconds, tv_nsec: at.nanos.into() };
            futimens(&*self.file, &Timestamps { last_access: at, last_modification: at }).map_err(fail)?;
        }
        let (_, name) = self.root.parent(&self.path)?;
        match self.link(name) {
            Err(Errno::EXIST) => self.replace(name).map_err(fail),
            linked => linked.map_err(fail),
        }
    }

    fn link(&self, name: &OsStr) -> Result<(), Errno> {
        // Without privileges, a descriptor can be linked only by this name of it.
        let nameless = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(CWD, nameless, &self.parent, name, AtFlags::SYMLINK_FOLLOW)
    }

    /// Takes the place of what is there: by another name first, as only a move replaces something.
    fn replace(&self, name: &OsStr) -> Result<(), Errno> {
        for number in 0..u32::MAX {
            let other = format!(".upload-{}-{number}", self.file.as_raw_fd());
            match self.link(OsStr::new(&other)) {
                Err(Errno::EXIST) => continue,
                linked => linked?,
            }
            return renameat(&self.parent, &*other, &self.parent, name).inspect_err(|_| {
                let _ = unlinkat(&self.parent, &*other, AtFlags::empty());
            });
        }
        Err(Errno::EXIST)
    }
}
