//! Collects one stream of an execution's output: its first bytes in memory for good, its last bytes in memory
//! for those who follow closely, and all of it in a file that has no name, so that nothing of it is left
//! after a crash (the executor still has it all).
//!
//! One writes, any number read, each at its own pace: who reads slowly holds up neither the writer nor
//! another reader.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use crate::{error::Error, recent::Recent};

/// How much is written to the file at once: each write is a way to another thread and back.
const WRITE_BYTES: u64 = 128 << 10;

/// How much stays in memory of what is in the file already, for readers that are a little behind.
const RECENT_BYTES: usize = 256 << 10;

/// What is known of one stream of output.
#[derive(Debug)]
pub(crate) struct Spool {
    directory: PathBuf,
    inline_limit: usize,
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The first kept bytes.
    inline: Vec<u8>,
    /// The last kept bytes, at least those that are neither in `inline` nor in the file.
    recent: Recent,
    /// The kept bytes, each at its offset.
    file: Option<Arc<File>>,
    /// How many bytes are in the file.
    filed: u64,
    /// How many bytes are kept; all of them can be read.
    kept: u64,
    /// How many bytes were taken.
    next: u64,
}

/// A chunk that begins after the byte that is wanted next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gap;

impl Spool {
    /// An empty one that keeps `inline_limit` bytes in memory and `limit` in all.
    pub(crate) fn new(directory: &Path, inline_limit: u64, limit: u64) -> Self {
        let inline_limit = usize::try_from(inline_limit).unwrap_or(usize::MAX);
        Self { directory: directory.to_owned(), inline_limit, limit, state: Mutex::default() }
    }

    /// The offset of the byte that is wanted next.
    pub(crate) fn next(&self) -> u64 {
        self.state().next
    }

    /// How many bytes are kept.
    pub(crate) fn kept(&self) -> u64 {
        self.state().kept
    }

    /// There was more than is kept.
    pub(crate) fn truncated(&self) -> bool {
        let state = self.state();
        state.next > state.kept
    }

    /// Takes a chunk that begins at `offset`. What was taken before is skipped. Only one may take.
    pub(crate) async fn take(&self, offset: u64, data: &Bytes) -> Result<Result<(), Gap>, Error> {
        let is_due = {
            let state = self.state();
            state.kept - state.filed >= WRITE_BYTES + state.inline.len() as u64
        };
        if is_due {
            // Before it is taken: what cannot be written must not pile up.
            self.write().await?;
        }
        let mut state = self.state();
        let Some(known) = state.next.checked_sub(offset) else { return Ok(Err(Gap)) };
        let fresh = data.slice(usize::try_from(known).unwrap_or(usize::MAX).min(data.len())..);
        let room = usize::try_from(self.limit - state.kept).unwrap_or(usize::MAX);
        let mut wanted = fresh.slice(..fresh.len().min(room));
        state.next += fresh.len() as u64;
        state.kept += wanted.len() as u64;
        let inline = wanted.split_to(wanted.len().min(self.inline_limit - state.inline.len()));
        state.inline.extend_from_slice(&inline);
        if !wanted.is_empty() {
            if state.recent.end() == 0 {
                state.recent = Recent::at(state.inline.len() as u64);
            }
            state.recent.push(wanted);
        }
        Ok(Ok(()))
    }

    /// Brings the file up to what is kept, off the runtime's workers: a disk may take its time.
    async fn write(&self) -> io::Result<Arc<File>> {
        let (file, mut position, pieces, kept) = {
            let state = self.state();
            let inline = usize::try_from(state.filed).ok().and_then(|filed| state.inline.get(filed..));
            let inline = inline.filter(|inline| !inline.is_empty()).map(Bytes::copy_from_slice);
            let recent = state.recent.pieces_from(state.filed.max(state.inline.len() as u64));
            let pieces: Vec<_> = inline.into_iter().chain(recent.into_iter().flatten()).collect();
            (state.file.clone(), state.filed, pieces, state.kept)
        };
        let directory = self.directory.clone();
        let write = tokio::task::spawn_blocking(move || {
            let file = file.map_or_else(|| tempfile::tempfile_in(directory).map(Arc::new), Ok)?;
            for piece in pieces {
                file.write_all_at(&piece, position)?;
                position += piece.len() as u64;
            }
            io::Result::Ok(file)
        });
        let file = write.await.map_err(io::Error::other)??;
        let mut state = self.state();
        state.file = Some(Arc::clone(&file));
        state.filed = kept;
        state.recent.forget(RECENT_BYTES, kept);
        Ok(file)
    }

    /// Up to `most` kept bytes from `offset`, in one piece; empty when there are none, or none yet.
    pub(crate) async fn read(&self, offset: u64, most: usize) -> Result<Bytes, Error> {
        let (file, length) = {
            let state = self.state();
            let length = usize::try_from(state.kept.saturating_sub(offset)).unwrap_or(usize::MAX).min(most);
            let inline = usize::try_from(offset).ok().and_then(|offset| state.inline.get(offset..));
            if let Some(inline) = inline.filter(|inline| !inline.is_empty()) {
                return Ok(Bytes::copy_from_slice(&inline[..inline.len().min(length)]));
            }
            if length == 0 {
                return Ok(Bytes::new());
            }
            if let Some(recent) = state.recent.read(offset, length) {
                return Ok(recent);
            }
            let filed = usize::try_from(state.filed.saturating_sub(offset)).unwrap_or(usize::MAX);
            (state.file.clone(), length.min(filed))
        };
        let Some(file) = file else { return Ok(Bytes::new()) };
        let mut buffer = vec![0; length];
        let read = tokio::task::spawn_blocking(move || {
            file.read_exact_at(&mut buffer, offset).map(|()| Bytes::from(buffer))
        });
        Ok(read.await.map_err(io::Error::other)??)
    }

    /// The first bytes.
    pub(crate) fn inline(&self) -> Vec<u8> {
        self.state().inline.clone()
    }

    /// The file with all kept bytes; `None` where the first bytes are all.
    pub(crate) async fn whole(&self) -> io::Result<Option<Arc<File>>> {
        let is_inline = {
            let state = self.state();
            state.kept == state.inline.len() as u64
        };
        if is_inline { Ok(None) } else { self.write().await.map(Some) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All of it, read in pieces of `most` bytes.
    async fn bytes(spool: &Spool, most: usize) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let piece = spool.read(all.len() as u64, most).await.unwrap();
            assert!(piece.len() <= most);
            if piece.is_empty() {
                return all;
            }
            all.extend_from_slice(&piece);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn chunks_that_repeat_and_overlap_are_recorded_once(
            data in proptest::collection::vec(any::<u8>(), 1..200),
            pieces in proptest::collection::vec((0usize..40, 1usize..60), 1..40),
            limit in 1u64..200,
            most in 1usize..50,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let spool = Spool::new(&std::env::temp_dir(), 16, limit);
                let data = Bytes::from(data);
                for (back, length) in pieces {
                    let next = usize::try_from(spool.next()).unwrap();
                    let start = next.saturating_sub(back);
                    let end = (start + length).min(data.len());
                    spool.take(start as u64, &data.slice(start..end)).await.unwrap().unwrap();
                }
                let seen = usize::try_from(spool.next()).unwrap();
                let kept = seen.min(usize::try_from(limit).unwrap());
                assert_eq!(bytes(&spool, most).await, data[..kept]);
                assert_eq!(spool.kept(), kept as u64);
                assert_eq!(spool.truncated(), seen > kept);
            });
        }
    }

    #[tokio::test]
    async fn a_gap_is_not_filled_with_guesses() {
        let spool = Spool::new(&std::env::temp_dir(), 16, 100);
        spool.take(0, &Bytes::from_static(b"ab")).await.unwrap().unwrap();
        assert_eq!(spool.take(3, &Bytes::from_static(b"d")).await.unwrap(), Err(Gap));
        assert_eq!(bytes(&spool, 9).await, b"ab");
    }
}
