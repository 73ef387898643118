//! Content on its way into the object store: in memory while it is short, then in a file without a name, and
//! its checksum with it.

use std::{fs::File, io::Write as _, path::Path, sync::Arc};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::error::Error;

/// How much is kept in memory.
const SHORT: usize = 256 << 10;

/// What came so far.
#[derive(Debug, Default)]
pub(crate) struct Content {
    short: Vec<u8>,
    file: Option<File>,
    hash: Sha256,
    size: u64,
}

/// All of it.
#[derive(Debug)]
pub(crate) enum Whole {
    /// In memory.
    Short(Bytes),
    /// In a file without a name.
    Long(Arc<File>),
}

impl Content {
    /// Takes the next bytes. Where they are many, another thread hashes and writes them.
    pub(crate) async fn push(mut self, data: Bytes, directory: &Path) -> Result<Self, Error> {
        self.size += data.len() as u64;
        if self.file.is_none() && self.short.len() + data.len() <= SHORT {
            self.hash.update(&data);
            self.short.extend_from_slice(&data);
            return Ok(self);
        }
        let directory = directory.to_owned();
        let written = tokio::task::spawn_blocking(move || -> std::io::Result<Self> {
            let mut file = match self.file.take() {
                Some(file) => file,
                None => tempfile::tempfile_in(directory)?,
            };
            self.hash.update(&data);
            file.write_all(&std::mem::take(&mut self.short))?;
            file.write_all(&data)?;
            self.file = Some(file);
            Ok(self)
        });
        Ok(written.await.map_err(std::io::Error::other)??)
    }

    /// Its checksum as hex digits, its size, and all of it.
    pub(crate) fn whole(self) -> (String, u64, Whole) {
        let checksum = hex(&self.hash.finalize());
        let whole = match self.file {
            Some(file) => Whole::Long(Arc::new(file)),
            None => Whole::Short(self.short.into()),
        };
        (checksum, self.size, whole)
    }
}

/// The checksum of something short, as hex digits.
pub(crate) fn checksum(data: &[u8]) -> String {
    hex(&Sha256::digest(data))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[tokio::test]
    async fn content_is_the_same_short_and_long() {
        let directory = std::env::temp_dir();
        for size in [0, 1, SHORT, SHORT + 1, 3 * SHORT] {
            let data: Vec<u8> = (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let mut content = Content::default();
            for piece in data.chunks(100_000) {
                content = content.push(Bytes::copy_from_slice(piece), &directory).await.unwrap();
            }
            let (sum, found, whole) = content.whole();
            assert_eq!((sum, found), (checksum(&data), size as u64));
            let bytes = match whole {
                Whole::Short(bytes) => bytes.to_vec(),
                Whole::Long(file) => {
                    let mut bytes = vec![0; size];
                    file.read_exact_at(&mut bytes, 0).unwrap();
                    bytes
                }
            };
            assert!(bytes == data, "{size}");
        }
    }
}
