//! The standard input of one execution, fed by whoever is attached, and how far its input was taken.

use std::{
    io,
    sync::{Arc, Mutex as Lock, PoisonError},
};

use bytes::{Buf as _, Bytes};
use sandmesh_proto::executor::InputTaken;
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::pipe,
    sync::{Mutex, OwnedMutexGuard},
};

use crate::{replay::Bell, status::Error};

/// How far the input of an execution was taken: told to whoever is attached.
#[derive(Debug)]
pub(crate) struct Tally {
    taken: Lock<InputTaken>,
    bell: Bell,
}

impl Tally {
    pub(crate) fn new(bell: Bell) -> Self {
        Self { taken: Lock::default(), bell }
    }

    /// How far it was taken.
    pub(crate) fn taken(&self) -> InputTaken {
        *self.lock()
    }

    /// How far it was taken, if that is news to one who was told `told`.
    pub(crate) fn news(&self, told: &mut Option<InputTaken>) -> Option<InputTaken> {
        let taken = self.taken();
        (told.replace(taken) != Some(taken)).then_some(taken)
    }

    /// Notes what was taken, and tells it.
    pub(crate) fn tell(&self, note: impl FnOnce(&mut InputTaken)) {
        note(&mut self.lock());
        self.bell.send_replace(());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, InputTaken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The input. Writers take turns; one waits while the process does not read.
#[derive(Debug)]
pub(crate) struct Stdin(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// How many bytes were taken so far.
    taken: u64,
    end: End,
    tally: Arc<Tally>,
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
    pub(crate) async fn new(tally: Arc<Tally>) -> (Self, Opening) {
        let state = Arc::new(Mutex::new(State { taken: 0, end: End::ClosedByProcess, tally }));
        let opening = Opening(Arc::clone(&state).lock_owned().await);
        (Self(state), opening)
    }

    /// Writes a chunk: what was taken before is dropped, a gap is an error. Returns when the pipe to
    /// the process has all of it. Cancel safe: what was written counts as taken.
    pub(crate) async fn write(&self, offset: u64, data: Bytes) -> Result<(), Error> {
        let mut state = self.0.lock().await;
        let written = state.write(offset, data).await;
        // What an earlier call wrote before it was cancelled was not told yet.
        if state.taken > state.tally.taken().stdin_offset {
            state.tell();
        }
        written
    }

    /// Ends the input, which is `length` bytes long where that is given.
    pub(crate) async fn close(&self, length: Option<u64>) -> Result<(), Error> {
        let mut state = self.0.lock().await;
        if let Some(length) = length.filter(|length| *length != state.taken) {
            let problem = format!("is {length} and {} bytes were received", state.taken);
            return Err(Error::invalid("close_stdin.offset", problem));
        }
        state.end = End::ClosedByCaller;
        state.tell();
        Ok(())
    }
}

impl Opening {
    /// There is no input.
    pub(crate) fn close(mut self) {
        self.0.end = End::ClosedByCaller;
    }

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
    fn tell(&self) {
        let closed = matches!(self.end, End::ClosedByCaller);
        self.tally.tell(|told| {
            told.stdin_offset = told.stdin_offset.max(self.taken);
            told.stdin_closed |= closed;
        });
    }

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

    fn tally() -> Arc<Tally> {
        Arc::new(Tally::new(Bell::default()))
    }

    #[tokio::test]
    async fn duplicate_is_dropped_gap_is_refused_and_order_kept() {
        let (sender, mut receiver) = pipe::pipe().unwrap();
        let tally = tally();
        let (stdin, opening) = Stdin::new(Arc::clone(&tally)).await;
        opening.open(sender, "abc".into(), true).await;
        stdin.write(3, "de".into()).await.unwrap();
        stdin.write(3, "de".into()).await.unwrap();
        stdin.write(4, "ef".into()).await.unwrap();
        assert!(matches!(stdin.write(7, "x".into()).await, Err(Error::Invalid { .. })));
        assert_eq!(tally.taken(), InputTaken { stdin_offset: 6, ..InputTaken::default() });
        assert!(matches!(stdin.close(Some(7)).await, Err(Error::Invalid { .. })));
        assert!(matches!(stdin.close(Some(5)).await, Err(Error::Invalid { .. })));
        stdin.close(Some(6)).await.unwrap();
        assert!(tally.taken().stdin_closed);
        let mut text = String::new();
        receiver.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "abcdef");
        assert!(matches!(stdin.write(6, "x".into()).await, Err(Error::Invalid { .. })));
        stdin.write(0, "abc".into()).await.expect("a duplicate is dropped after the end too");
    }

    #[tokio::test]
    async fn input_for_a_process_that_closed_it_is_ignored() {
        let (sender, receiver) = pipe::pipe().unwrap();
        let (stdin, opening) = Stdin::new(tally()).await;
        drop(receiver);
        opening.open(sender, "abc".into(), true).await;
        stdin.write(3, "de".into()).await.unwrap();
        stdin.write(5, "f".into()).await.unwrap();
    }
}
