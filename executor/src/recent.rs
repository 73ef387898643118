//! The last bytes of a stream, in the pieces in which they came: who follows closely reads them from here,
//! without a copy, and not from a file.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Pieces that are smaller together are made one, so that there are few, and small ones do not hold on to
/// the message that each came in.
const SMALL: usize = 8 << 10;

/// Bytes without a gap, from some offset on.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    pieces: VecDeque<Bytes>,
    /// The offset of the first byte that is here.
    start: u64,
    length: usize,
}

impl Recent {
    /// None yet; the first will have this offset.
    pub(crate) fn at(start: u64) -> Self {
        Self { start, ..Self::default() }
    }

    /// The offset after the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.length as u64
    }

    /// Adds bytes at the end.
    pub(crate) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.length += data.len();
        match self.pieces.back_mut() {
            Some(last) if last.len() + data.len() <= SMALL => {
                let mut joined = std::mem::take(last).try_into_mut().unwrap_or_else(|shared| {
                    let mut copy = BytesMut::with_capacity(SMALL);
                    copy.extend_from_slice(&shared);
                    copy
                });
                joined.extend_from_slice(&data);
                *last = joined.freeze();
            }
            _ if data.len() < SMALL => self.pieces.push_back(Bytes::copy_from_slice(&data)),
            _ => self.pieces.push_back(data),
        }
    }

    /// Up to `most` bytes from `offset`, in one piece; `None` where they are not here.
    pub(crate) fn read(&self, offset: u64, most: usize) -> Option<Bytes> {
        let mut pieces = self.pieces_from(offset)?;
        let first = pieces.next()?;
        if first.len() >= most.min(SMALL) {
            return Some(first.slice(..first.len().min(most)));
        }
        let mut joined = BytesMut::from(first);
        for piece in pieces {
            joined.extend_from_slice(&piece[..piece.len().min(most - joined.len())]);
            if joined.len() == most {
                break;
            }
        }
        Some(joined.freeze())
    }

    /// All bytes from `offset` on, in pieces; `None` where they are not here.
    pub(crate) fn pieces_from(&self, offset: u64) -> Option<impl Iterator<Item = Bytes>> {
        let mut skip = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        let rest = self.pieces.iter().filter_map(move |piece| {
            let rest = piece.slice(skip.min(piece.len())..);
            skip -= piece.len() - rest.len();
            (!rest.is_empty()).then_some(rest)
        });
        Some(rest)
    }

    /// Forgets the oldest, as long as `keep` bytes stay here, and all from `offset` on.
    pub(crate) fn forget(&mut self, keep: usize, offset: u64) {
        while let Some(first) = self.pieces.front().map(Bytes::len)
            && self.length - first >= keep
            && self.start + first as u64 <= offset
        {
            self.pieces.pop_front();
            self.start += first as u64;
            self.length -= first;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_offset_that_is_here_reads_as_written(
            sizes in prop::collection::vec(prop_oneof![1usize..100, SMALL - 50..3 * SMALL], 1..12),
            keep in 0usize..(8 * SMALL),
            start in 0u64..100,
            most in 1usize..(4 * SMALL),
        ) {
            let mut recent = Recent::at(start);
            let mut all = Vec::new();
            for (number, size) in sizes.into_iter().enumerate() {
                let data: Vec<u8> = (0..size).map(|at| (at * 7 + number).to_le_bytes()[0]).collect();
                recent.push(Bytes::from(data.clone()));
                all.extend(data);
                let end = recent.end();
                recent.forget(keep, end);
            }
            prop_assert_eq!(recent.end(), start + all.len() as u64);
            prop_assert!(recent.length >= keep.min(all.len()));
            let mut at = recent.start;
            while let Some(piece) = recent.read(at, most) {
                let from = usize::try_from(at - start).unwrap();
                prop_assert!(!piece.is_empty() && piece.len() <= most);
                prop_assert_eq!(&piece[..], &all[from..from + piece.len()]);
                at += piece.len() as u64;
            }
            prop_assert_eq!(at, recent.end());
            prop_assert!(recent.start == 0 || recent.read(recent.start - 1, most).is_none());
        }
    }
}
