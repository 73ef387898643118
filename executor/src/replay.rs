//! The replay log of one output stream: what a process wrote, for readers that come, go and resume.
//!
//! The first bytes are kept in memory, the next in an unnamed file outside the jail, up to a limit;
//! beyond it bytes are only counted. The last bytes of the file are in memory too, for a reader that
//! follows closely. One writer appends; any number of readers read from any offset
//! that is kept. Whoever waits for more waits on the execution's [`Bell`].

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::watch;

use crate::recent::Recent;

/// How much of the file is in memory too.
const RECENT_BYTES: usize = 256 << 10;

/// Rings at every change of an execution. A receiver that subscribed before it looked misses nothing.
pub(crate) type Bell = watch::Sender<()>;

/// How much a log keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    /// Bytes kept in memory; what follows goes to a file.
    pub(crate) memory_bytes: u64,
    /// Bytes kept in all.
    pub(crate) total_bytes: u64,
}

/// The log. Cheap to share by reference; all methods take `&self`.
#[derive(Debug)]
pub(crate) struct ReplayLog {
    keep: Keep,
    spool: PathBuf,
    bell: Bell,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The first kept bytes.
    head: Vec<u8>,
    /// The kept bytes after those of `head`.
    tail: Option<Arc<File>>,
    /// The last bytes of `tail`.
    recent: Recent,
    /// How many bytes are kept; all of them can be read.
    kept: u64,
    /// How many bytes were written.
    total: u64,
}

/// What a read came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Read {
    /// The bytes at the offset, at least one.
    Data(Bytes),
    /// The offset is where the kept bytes end (for now, unless the execution has ended).
    AtEnd,
    /// The offset lies beyond what was written or will be kept.
    Beyond,
}

impl ReplayLog {
    /// An empty log whose file, if it comes to that, is made in `spool`.
    pub(crate) fn new(keep: Keep, spool: &Path, bell: Bell) -> Self {
        Self { keep, spool: spool.to_owned(), bell, state: Mutex::default() }
    }

    /// Appends, keeping as much as the limits allow. If the file fails, what it should have held is
    /// counted as not kept. Only one task may append.
    pub(crate) async fn append(&self, data: &[u8]) {
        let (kept, room_in_memory) = {
            let mut state = self.state();
            state.total += data.len() as u64;
            // Once something was dropped, what follows would leave a hole.
            let complete = state.kept + data.len() as u64 == state.total;
            let room = if complete { self.keep.total_bytes - state.kept } else { 0 };
            let kept = &data[..clamp(room, data.len())];
            let room_in_memory = self.keep.memory_bytes.saturating_sub(state.kept);
            let (head, _) = kept.split_at(clamp(room_in_memory, kept.len()));
            state.head.extend_from_slice(head);
            state.kept += head.len() as u64;
            (kept, head.len())
        };
        let tail = &kept[room_in_memory..];
        if !tail.is_empty()
            && let Err(err) = self.spill(tail).await
        {
            tracing::error!(error = %err, spool = %self.spool.display(), "output is dropped: the spool failed");
        }
        self.bell.send_replace(());
    }

    /// Reads up to `most` bytes at `offset`.
    pub(crate) async fn read(&self, offset: u64, most: usize) -> io::Result<Read> {
        let (file, position, length) = {
            let state = self.state();
            if let Some(data) = state.recent.read(offset, most) {
                return Ok(Read::Data(data));
            }
            if offset >= state.kept {
                return Ok(if offset == state.kept { Read::AtEnd } else { Read::Beyond });
            }
            let in_memory = state.head.len() as u64;
            let length = clamp(state.kept - offset, most);
            match (&state.tail, offset.checked_sub(in_memory)) {
                (Some(file), Some(position)) => (Arc::clone(file), position, length),
                _ => {
                    let rest = &state.head[clamp(offset, state.head.len())..];
                    return Ok(Read::Data(Bytes::copy_from_slice(&rest[..length.min(rest.len())])));
                }
            }
        };
        let mut buffer = vec![0; length];
        let read = tokio::task::spawn_blocking(move || {
            file.read_exact_at(&mut buffer, position).map(|()| Read::Data(buffer.into()))
        });
        read.await.map_err(io::Error::other)?
    }

    /// Nothing more comes, and who reads it from now on is in no hurry: memory is for those that run.
    pub(crate) fn settle(&self) {
        self.state().recent = Recent::default();
    }

    /// How many bytes were written in all.
    pub(crate) fn total(&self) -> u64 {
        self.state().total
    }

    /// Whether more was written than is kept.
    pub(crate) fn is_truncated(&self) -> bool {
        let state = self.state();
        state.total > state.kept
    }

    /// Appends to the file. Off the runtime's workers: a disk may take its time, deadlines may not.
    async fn spill(&self, data: &[u8]) -> io::Result<()> {
        let (file, position) = {
            let state = self.state();
            (state.tail.clone(), state.kept - state.head.len() as u64)
        };
        let (spool, data) = (self.spool.clone(), Bytes::copy_from_slice(data));
        let added = data.clone();
        let write = tokio::task::spawn_blocking(move || {
            let file = file.map_or_else(|| unnamed_file(&spool).map(Arc::new), Ok)?;
            file.write_all_at(&data, position)?;
            io::Result::Ok(file)
        });
        let file = write.await.map_err(io::Error::other)??;
        let mut state = self.state();
        state.tail = Some(file);
        if state.recent.end() == 0 {
            state.recent = Recent::at(state.kept);
        }
        state.kept += added.len() as u64;
        state.recent.push(added);
        let kept = state.kept;
        state.recent.forget(RECENT_BYTES, kept);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that is gone with its last descriptor, so that nothing is ever left over.
fn unnamed_file(dir: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(dir) {
        // A file system without such files: one that loses its name at once.
        Err(err) if err.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            static NUMBER: AtomicU64 = AtomicU64::new(0);
            let path = dir.join(format!("tail-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
            let file = options.create_new(true).open(&path)?;
            std::fs::remove_file(path)?;
            Ok(file)
        }
        opened => opened,
    }
}

/// `bytes`, at most `most`.
fn clamp(bytes: u64, most: usize) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX).min(most)
}

#[cfg(test)]
mod tests;
