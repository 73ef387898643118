//! One execution as its callers see it: its output, its input, its outcome, and how to stop it.
//!
//! It outlives every stream and the run itself, until it is acknowledged. What happens inside the
//! run is in `run.rs`.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use async_stream::try_stream;
use futures::Stream;
use sandmesh_proto::executor::{self as pb, execute_response::Frame};
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::OwnedWriteHalf,
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    replay::{Bell, Keep, Read, ReplayLog},
    status::Error,
    stdin::{Opening, Stdin, Tally},
};

/// The largest piece of output in one frame.
const FRAME_BYTES: usize = 64 << 10;

/// How long after the start of an execution what is told of it first may wait for its end.
const HOLD: Duration = Duration::from_millis(2);

/// Why a run was stopped from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Timeout,
    Cancelled,
    SessionEnded,
    DiskLimit,
}

/// Where a reader of an execution is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cursor {
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
}

/// One execution.
#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) id: String,
    /// Its place in the order of arrival.
    pub(crate) number: u64,
    pub(crate) stdout: ReplayLog,
    pub(crate) stderr: ReplayLog,
    pub(crate) stdin: Stdin,
    /// How far its input was taken.
    input: Arc<Tally>,
    /// One signal at a time, so that none is taken twice.
    signals: tokio::sync::Mutex<()>,
    bell: Bell,
    stop: watch::Sender<Option<Stop>>,
    started: OnceLock<(Instant, pb::ExecutionStarted)>,
    outcome: OnceLock<Frame>,
    /// Where bytes to the jail's init go while it runs.
    control: Mutex<Option<Control>>,
}

/// Where bytes to a jail's init go. When it is gone, the init kills all and ends.
pub(crate) type Control = Arc<tokio::sync::Mutex<OwnedWriteHalf>>;

impl Execution {
    /// A new one that waits to be run, and the right to open its input.
    pub(crate) async fn new(id: String, number: u64, keep: Keep, spool: &std::path::Path) -> (Self, Opening) {
        let bell = Bell::default();
        let input = Arc::new(Tally::new(bell.clone()));
        let (stdin, opening) = Stdin::new(Arc::clone(&input)).await;
        let execution = Self {
            id,
            number,
            stdout: ReplayLog::new(keep, spool, bell.clone()),
            stderr: ReplayLog::new(keep, spool, bell.clone()),
            stdin,
            input,
            signals: tokio::sync::Mutex::default(),
            bell,
            stop: watch::Sender::default(),
            started: OnceLock::new(),
            outcome: OnceLock::new(),
            control: Mutex::default(),
        };
        (execution, opening)
    }

    /// Counts the first bytes of its input, and its end unless more may follow, as taken: this has them.
    pub(crate) fn take_first_input(&self, length: u64, keep_open: bool) {
        self.input.tell(|told| (told.stdin_offset, told.stdin_closed) = (length, !keep_open));
    }

    /// Asks the run to stop; the first reason counts. False if it has ended already.
    pub(crate) fn stop(&self, reason: Stop) -> bool {
        if self.has_ended() {
            return false;
        }
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            stop.get_or_insert(reason);
            first
        });
        true
    }

    /// Waits until it is asked to stop.
    pub(crate) async fn stop_requested(&self) -> Stop {
        let mut stop = self.stop.subscribe();
        loop {
            if let Some(reason) = *stop.borrow_and_update() {
                return reason;
            }
            if stop.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until it is asked to stop because its session ends.
    pub(crate) async fn session_ended(&self) {
        if self.stop_requested().await != Stop::SessionEnded {
            std::future::pending::<()>().await;
        }
    }

    /// Whether its outcome is known.
    pub(crate) fn has_ended(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// Waits until its outcome is known.
    pub(crate) async fn ended(&self) {
        self.until(|execution| execution.has_ended().then_some(())).await;
    }

    /// The user's process exists.
    pub(crate) fn set_started(&self, started: pb::ExecutionStarted, control: OwnedWriteHalf) {
        *self.control() = Some(Arc::new(tokio::sync::Mutex::new(control)));
        let _ = self.started.set((Instant::now(), started));
        self.bell.send_replace(());
    }

    /// The outcome is known; the first one counts. Gives back what is left to end the jail with.
    pub(crate) fn set_outcome(&self, outcome: Frame) -> Option<Control> {
        let control = self.control().take();
        self.stdout.settle();
        self.stderr.settle();
        let _ = self.outcome.set(outcome);
        self.bell.send_replace(());
        control
    }

    /// Whether the user's process was started.
    pub(crate) fn was_started(&self) -> bool {
        self.started.get().is_some()
    }

    /// Sends a signal to the main process, as soon as there is one. One with a sequence that is not above the
    /// last is dropped.
    pub(crate) async fn signal(&self, number: u8, sequence: u64) {
        let _turn = self.signals.lock().await;
        if sequence != 0 && sequence <= self.input.taken().signal_sequence {
            return;
        }
        self.control_byte(number).await;
        self.input.tell(|told| {
            told.signal_sequence = told.signal_sequence.max(sequence);
            told.signals += 1;
        });
    }

    /// Sends a byte to the jail's init, as soon as there is one; nothing once the run has ended.
    pub(crate) async fn control_byte(&self, byte: u8) {
        let control = self.until(|execution| {
            let control = execution.control().clone();
            (control.is_some() || execution.has_ended()).then_some(control)
        });
        if let Some(control) = control.await {
            // An init that is gone needs no more orders.
            let _ = control.lock().await.write_all(&[byte]).await;
        }
    }

    /// Refuses a cursor that cannot be continued from.
    pub(crate) async fn check(&self, from: Cursor) -> Result<(), Error> {
        for (log, stream, offset) in
            [(&self.stdout, "stdout", from.stdout), (&self.stderr, "stderr", from.stderr)]
        {
            if log.read(offset, 1).await.is_ok_and(|read| read == Read::Beyond) {
                return Err(Error::CursorExpired { stream, offset });
            }
        }
        Ok(())
    }

    /// The frames from a cursor on: what is kept, then what comes, up to the outcome.
    pub(crate) fn frames(self: Arc<Self>, from: Cursor) -> impl Stream<Item = Result<Frame, Error>> + Send {
        try_stream! {
            let mut bell = self.bell.subscribe();
            let mut cursor = from;
            let (mut held, mut announced) = (false, false);
            let mut told = None;
            loop {
                bell.mark_unchanged();
                if let (false, Some((since, _))) = (held, self.started.get()) {
                    held = true;
                    // Most end at once. Then all is told together, which wakes everybody on the way only once. Where
                    // input may follow, it waits for what is told first.
                    if self.input.taken().stdin_closed {
                        drop(timeout_at(*since + HOLD, self.ended()).await);
                    }
                }
                // Before the logs: all that was written precedes the outcome.
                let outcome = self.outcome.get();
                let started = self.started.get();
                // With the start, and not before it: the two travel together.
                let has_begun = started.is_some() || outcome.is_some();
                if let Some(taken) = has_begun.then(|| self.input.news(&mut told)).flatten() {
                    yield Frame::InputTaken(taken);
                }
                if let (false, Some((_, started))) = (announced, started) {
                    announced = true;
                    yield Frame::Started(*started);
                }
                loop {
                    let stdout = next_chunk(&self.stdout, &mut cursor.stdout).await?;
                    let stderr = next_chunk(&self.stderr, &mut cursor.stderr).await?;
                    if stdout.is_none() && stderr.is_none() {
                        break;
                    }
                    // Before any output, and also where that never pauses.
                    if let Some(taken) = self.input.news(&mut told) {
                        yield Frame::InputTaken(taken);
                    }
                    if let Some(chunk) = stdout {
                        yield Frame::Stdout(chunk);
                    }
                    if let Some(chunk) = stderr {
                        yield Frame::Stderr(chunk);
                    }
                }
                if let Some(outcome) = outcome {
                    yield outcome.clone();
                    break;
                }
                // The bell hangs in `self`: it cannot be taken down meanwhile.
                let _ = bell.changed().await;
            }
        }
    }

    /// Waits until `look` finds what it wants.
    async fn until<T>(&self, look: impl Fn(&Self) -> Option<T>) -> T {
        let mut bell = self.bell.subscribe();
        loop {
            bell.mark_unchanged();
            if let Some(found) = look(self) {
                return found;
            }
            let _ = bell.changed().await;
        }
    }

    fn control(&self) -> std::sync::MutexGuard<'_, Option<Arc<tokio::sync::Mutex<OwnedWriteHalf>>>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn next_chunk(log: &ReplayLog, offset: &mut u64) -> Result<Option<pb::OutputChunk>, Error> {
    let read = log.read(*offset, FRAME_BYTES).await;
    match read.map_err(|err| Error::Internal(format!("cannot replay output: {err}")))? {
        Read::Data(data) => {
            let chunk = pb::OutputChunk { offset: *offset, data };
            *offset += chunk.data.len() as u64;
            Ok(Some(chunk))
        }
        Read::AtEnd | Read::Beyond => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::StreamExt as _;
    use tokio::{join, net::UnixStream, time::sleep};

    use super::*;

    /// How long after its start one is told of that is told at last to have ended after `lasts`.
    async fn told_after(keep_stdin_open: bool, lasts: Duration) -> Duration {
        let keep = Keep { memory_bytes: 0, total_bytes: 0 };
        let (execution, _opening) = Execution::new("exec_1".into(), 0, keep, std::path::Path::new("/")).await;
        execution.take_first_input(0, keep_stdin_open);
        let (execution, began) = (Arc::new(execution), Instant::now());
        let (control, _init) = UnixStream::pair().unwrap();
        execution.set_started(pb::ExecutionStarted::default(), control.into_split().1);
        let ends = async {
            sleep(lasts).await;
            execution.set_outcome(Frame::Failed(pb::ExecutionFailed::default()));
        };
        let frames = Arc::clone(&execution).frames(Cursor::default());
        let told = async {
            let mut frames = pin!(frames);
            frames.next().await.unwrap().unwrap();
            let after = began.elapsed();
            while frames.next().await.is_some() {}
            after
        };
        join!(told, ends).0
    }

    #[tokio::test(start_paused = true)]
    async fn start_waits_for_an_end_that_is_near_unless_input_may_follow() {
        let (short, long) = (HOLD / 2, HOLD * 1000);
        assert_eq!(told_after(false, short).await, short);
        assert_eq!(told_after(false, long).await, HOLD);
        assert_eq!(told_after(true, long).await, Duration::ZERO);
    }
}
