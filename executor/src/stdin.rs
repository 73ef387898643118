//! The standard input of one execution, fed by whoever is attached.

use std::{io, sync::Arc};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::pipe,
    sync::{Mutex, OwnedMutexGuard},
};

use crate::status::Error;

/// The input. Writers take turns; one waits while the process does not read, and with it its caller.
#[derive(Debug)]
pub(crate) struct Stdin(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// How many bytes were taken so far.
    taken: u64,
    end: End,
}

#[derive(Debug)]
enum End {
    Open(pipe::Sender),
    /// The caller closed it: more input is a mistake.
    ClosedByCaller,
    /// The process closed it or ended: more input is of no use, and no mistake.
    ClosedByProcess,
}

/// The right to open an input; until it is used, or dropped, whoever wants to write waits.
#[derive(Debug)]
pub(crate) struct Opening(OwnedMutexGuard<State>);

impl Stdin {
    /// An input that is still to be opened.
    pub(crate) async fn new() -> (Self, Opening) {
        let state = Arc::new(Mutex::new(State { taken: 0, end: End::ClosedByProcess }));
        let opening = Opening(Arc::clone(&state).lock_owned().await);
        (Self(state), opening)
    }

    /// Writes a chunk: what was taken before is dropped, a gap is an error. Returns when the pipe to
    /// the process has all of it. Cancel safe: what was written counts as taken.
    pub(crate) async fn write(&self, offset: u64, data: Bytes) -> Result<(), Error> {
        self.0.lock().await.write(offset, data).await
    }

    /// Ends the input.
    pub(crate) async fn close(&self) {
        self.0.lock().await.end = End::ClosedByCaller;
    }
}

impl Opening {
    /// Connects the process and writes its first bytes; then closes, or lets others write.
    pub(crate) async fn open(mut self, pipe: pipe::Sender, first: Bytes, keep_open: bool) {
        self.0.end = End::Open(pipe);
        // The first bytes start at 0 and the pipe was never closed, so this is never refused.
        let _ = self.0.write(0, first).await;
        if !keep_open {
            self.0.end = End::ClosedByCaller;
        }
    }
}

impl State {
    async fn write(&mut self, offset: u64, mut data: Bytes) -> Result<(), Error> {
        let Some(known) = self.taken.checked_sub(offset) else {
            let problem = format!("starts at {offset} and {} bytes were received so far", self.taken);
            return Err(Error::invalid("stdin.offset", problem));
        };
        data.advance(usize::try_from(known).unwrap_or(usize::MAX).min(data.len()));
        if matches!(self.end, End::ClosedByCaller) && !data.is_empty() {
            return Err(Error::invalid("stdin", "the standard input is closed"));
        }
        while !data.is_empty() {
            let End::Open(pipe) = &mut self.end else {
                self.taken += data.len() as u64;
                return Ok(());
            };
            match pipe.write(&data).await {
                Ok(written) => {
                    self.taken += written as u64;
                    data.advance(written);
                }
                Err(err) => {
                    if err.kind() != io::ErrorKind::BrokenPipe {
                        tracing::warn!(error = %err, "cannot write to the standard input of an execution");
                    }
                    self.end = End::ClosedByProcess;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn duplicate_is_dropped_gap_is_refused_and_order_kept() {
        let (sender, mut receiver) = pipe::pipe().unwrap();
        let (stdin, opening) = Stdin::new().await;
        opening.open(sender, "abc".into(), true).await;
        stdin.write(3, "de".into()).await.unwrap();
        stdin.write(3, "de".into()).await.unwrap();
        stdin.write(4, "ef".into()).await.unwrap();
        assert!(matches!(stdin.write(7, "x".into()).await, Err(Error::Invalid { .. })));
        stdin.close().await;
        let mut text = String::new();
        receiver.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "abcdef");
        assert!(matches!(stdin.write(6, "x".into()).await, Err(Error::Invalid { .. })));
        stdin.write(0, "abc".into()).await.expect("a duplicate is dropped after the end too");
    }

    #[tokio::test]
    async fn input_for_a_process_that_closed_it_is_ignored() {
        let (sender, receiver) = pipe::pipe().unwrap();
        let (stdin, opening) = Stdin::new().await;
        drop(receiver);
        opening.open(sender, "abc".into(), true).await;
        stdin.write(3, "de".into()).await.unwrap();
        stdin.write(5, "f".into()).await.unwrap();
    }
}
