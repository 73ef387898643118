//! Collects one stream of an execution's output: its first bytes in memory, the others in a file that has
//! no name, so that nothing of it is left after a crash (the executor still has it all).

use std::{io::SeekFrom, path::PathBuf};

use bytes::Bytes;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
};

use crate::error::Error;

/// What is known of one stream of output.
#[derive(Debug)]
pub(crate) struct Spool {
    directory: PathBuf,
    inline_limit: usize,
    limit: u64,
    inline: Vec<u8>,
    rest: Option<File>,
    kept: u64,
    next: u64,
}

/// A chunk that begins after the byte that is wanted next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gap;

impl Spool {
    /// An empty one that keeps `inline_limit` bytes in memory and `limit` in all.
    pub(crate) fn new(directory: PathBuf, inline_limit: u64, limit: u64) -> Self {
        let inline_limit = usize::try_from(inline_limit).unwrap_or(usize::MAX);
        Self { directory, inline_limit, limit, inline: Vec::new(), rest: None, kept: 0, next: 0 }
    }

    /// The offset of the byte that is wanted next.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// How many bytes are kept.
    pub(crate) fn kept(&self) -> u64 {
        self.kept
    }

    /// There was more than is kept.
    pub(crate) fn truncated(&self) -> bool {
        self.next > self.kept
    }

    /// The first bytes, and whether they are all.
    pub(crate) fn inline(&self) -> (&[u8], bool) {
        (&self.inline, self.rest.is_none())
    }

    /// Takes a chunk that begins at `offset`. What was taken before is skipped.
    pub(crate) async fn take(&mut self, offset: u64, data: &[u8]) -> Result<Result<(), Gap>, Error> {
        let Some(known) = self.next.checked_sub(offset) else { return Ok(Err(Gap)) };
        let fresh = usize::try_from(known).ok().and_then(|known| data.get(known..)).unwrap_or_default();
        self.next += fresh.len() as u64;
        let room = usize::try_from(self.limit - self.kept).unwrap_or(usize::MAX);
        let wanted = &fresh[..fresh.len().min(room)];
        self.kept += wanted.len() as u64;
        let (inline, rest) = wanted.split_at(wanted.len().min(self.inline_limit - self.inline.len()));
        self.inline.extend_from_slice(inline);
        if !rest.is_empty() {
            self.write(rest).await?;
        }
        Ok(Ok(()))
    }

    async fn write(&mut self, data: &[u8]) -> Result<(), Error> {
        let file = match &mut self.rest {
            Some(file) => file,
            None => self.rest.insert(File::from_std(tempfile::tempfile_in(&self.directory)?)),
        };
        file.write_all(data).await?;
        Ok(())
    }

    /// Everything that is kept.
    pub(crate) async fn bytes(&mut self) -> Result<Bytes, Error> {
        let mut all = self.inline.clone();
        if let Some(file) = &mut self.rest {
            file.flush().await?;
            file.seek(SeekFrom::Start(0)).await?;
            file.read_to_end(&mut all).await?;
        }
        Ok(all.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn chunks_that_repeat_and_overlap_are_recorded_once(
            data in proptest::collection::vec(any::<u8>(), 1..200),
            pieces in proptest::collection::vec((0usize..40, 1usize..60), 1..40),
            limit in 1u64..200,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut spool = Spool::new(std::env::temp_dir(), 16, limit);
                for (back, length) in pieces {
                    let next = usize::try_from(spool.next()).unwrap();
                    let start = next.saturating_sub(back);
                    let end = (start + length).min(data.len());
                    spool.take(start as u64, &data[start..end]).await.unwrap().unwrap();
                }
                let seen = usize::try_from(spool.next()).unwrap();
                let kept = seen.min(usize::try_from(limit).unwrap());
                assert_eq!(spool.bytes().await.unwrap(), data[..kept]);
                assert_eq!(spool.kept(), kept as u64);
                assert_eq!(spool.truncated(), seen > kept);
            });
        }
    }

    #[tokio::test]
    async fn a_gap_is_not_filled_with_guesses() {
        let mut spool = Spool::new(std::env::temp_dir(), 16, 100);
        spool.take(0, b"ab").await.unwrap().unwrap();
        assert_eq!(spool.take(3, b"d").await.unwrap(), Err(Gap));
        assert_eq!(spool.bytes().await.unwrap(), "ab");
    }
}
