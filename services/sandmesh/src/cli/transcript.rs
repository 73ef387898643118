//! What arrived of the two output streams of an execution: how far, and the bytes that are still needed.

use bytes::Bytes;
use sandmesh_proto::{executor::OutputChunk, session::AttachExecutionRequest};

use super::console::Stream;

/// How many of the last bytes are kept of output that was shown.
const END_BYTES: usize = 8 << 10;
/// How many of the first bytes are kept of output that was not shown.
const ALL_BYTES: usize = 64 << 20;

/// Both streams.
#[derive(Debug)]
pub(super) struct Transcript {
    stdout: Track,
    stderr: Track,
}

/// One stream.
#[derive(Debug)]
struct Track {
    keep: Keep,
    next: u64,
    missing: u64,
    bytes: Vec<u8>,
}

/// Which bytes are kept.
#[derive(Debug, Clone, Copy)]
enum Keep {
    First(usize),
    Last(usize),
}

impl Transcript {
    /// Keeps everything, up to a bound: for output that is shown at the end.
    pub(super) fn of_all() -> Self {
        Self::new(Keep::First(ALL_BYTES))
    }

    /// Keeps the end: for output that is shown as it comes.
    pub(super) fn of_the_end() -> Self {
        Self::new(Keep::Last(END_BYTES))
    }

    fn new(keep: Keep) -> Self {
        let track = || Track { keep, next: 0, missing: 0, bytes: Vec::new() };
        Self { stdout: track(), stderr: track() }
    }

    /// Takes a chunk and gives back what is new in it.
    pub(super) fn accept(&mut self, stream: Stream, chunk: OutputChunk) -> Bytes {
        match stream {
            Stream::Stdout => self.stdout.accept(chunk),
            Stream::Stderr => self.stderr.accept(chunk),
        }
    }

    /// What to ask for to go on.
    pub(super) fn cursor(&self, execution_id: String) -> AttachExecutionRequest {
        AttachExecutionRequest {
            execution_id,
            stdout_offset: self.stdout.next,
            stderr_offset: self.stderr.next,
        }
    }

    /// The standard output, as far as it is kept.
    pub(super) fn stdout(&self) -> &[u8] {
        &self.stdout.bytes
    }

    /// The standard error, as far as it is kept.
    pub(super) fn stderr(&self) -> &[u8] {
        &self.stderr.bytes
    }

    /// Whether bytes of the standard output are lacking.
    pub(super) fn stdout_lacks(&self) -> bool {
        self.stdout.lacks()
    }

    /// Whether bytes of the standard error are lacking.
    pub(super) fn stderr_lacks(&self) -> bool {
        self.stderr.lacks()
    }
}

impl Track {
    fn accept(&mut self, chunk: OutputChunk) -> Bytes {
        let mut data = chunk.data;
        if chunk.offset > self.next {
            self.missing += chunk.offset - self.next;
            self.next = chunk.offset;
        }
        let known = usize::try_from(self.next - chunk.offset).unwrap_or(usize::MAX).min(data.len());
        let fresh = data.split_off(known);
        self.next += fresh.len() as u64;
        self.remember(&fresh);
        fresh
    }

    fn remember(&mut self, fresh: &[u8]) {
        match self.keep {
            Keep::First(limit) => {
                let room = limit.saturating_sub(self.bytes.len()).min(fresh.len());
                self.bytes.extend(fresh.iter().take(room));
            }
            Keep::Last(limit) => {
                self.bytes.extend(fresh);
                // Only now and then: a drain for each chunk would move the same bytes again and again.
                if self.bytes.len() > 2 * limit {
                    self.bytes.drain(..self.bytes.len() - limit);
                }
            }
        }
    }

    fn lacks(&self) -> bool {
        let cut =
            matches!(self.keep, Keep::First(limit) if self.bytes.len() == limit && self.next > limit as u64);
        self.missing > 0 || cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(offset: u64, data: &'static str) -> OutputChunk {
        OutputChunk { offset, data: data.into() }
    }

    #[test]
    fn a_replay_shows_no_byte_twice() {
        let mut transcript = Transcript::of_all();
        for (offset, data, fresh) in
            [(0, "hello ", "hello "), (0, "hello ", ""), (3, "lo wor", "wor"), (9, "ld", "ld")]
        {
            assert_eq!(transcript.accept(Stream::Stdout, chunk(offset, data)), fresh);
        }
        assert_eq!(transcript.stdout(), b"hello world");
        assert!(!transcript.stdout_lacks());
        assert_eq!(transcript.cursor("e".to_owned()).stdout_offset, 11);
        assert_eq!(transcript.cursor("e".to_owned()).stderr_offset, 0);
    }

    #[test]
    fn a_gap_is_noticed_and_the_rest_shown() {
        let mut transcript = Transcript::of_the_end();
        transcript.accept(Stream::Stderr, chunk(0, "ab"));
        assert_eq!(transcript.accept(Stream::Stderr, chunk(5, "f")), "f");
        assert!(transcript.stderr_lacks());
        assert!(!transcript.stdout_lacks());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut first = Transcript::new(Keep::First(4));
        let mut last = Transcript::new(Keep::Last(4));
        for offset in 0..100 {
            let digit = &"0123456789"[usize::try_from(offset % 10).unwrap()..][..1];
            assert_eq!(first.accept(Stream::Stdout, chunk(offset, digit)), digit);
            last.accept(Stream::Stdout, chunk(offset, digit));
            assert!(last.stdout().len() <= 8);
        }
        assert_eq!(first.stdout(), b"0123");
        assert!(first.stdout_lacks());
        assert!(last.stdout().ends_with(b"6789"));
        assert!(!last.stdout_lacks());
    }
}
