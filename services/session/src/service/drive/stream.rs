//! One stream between a driver and the executor: what to do with each frame, input and wish to stop.

use std::time::Duration;

use sandmesh_mesh::duration_pb;
use sandmesh_proto::executor::{
    self, ExecuteRequest, ExecuteResponse, ExecutionAttach, ExecutionStart,
    execute_request::Frame as Request, execute_response::Frame,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{Driver, End};
use crate::{
    drivers::{Input, Stop},
    encode,
    error::Error,
    peers::call,
};

/// How long an executor may take to accept a stream.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// How long an executor may take to answer to a cancel.
const CANCEL_LIMIT: Duration = Duration::from_millis(500);

/// How long the executor of an ended session may take to tell how an execution ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How much later than the time limit an executor may tell of the end.
const OVERDUE: Duration = Duration::from_secs(10);

/// How many frames of input may wait for the executor.
const FRAMES: usize = 16;

/// How far bringing an execution to an end before its time is.
#[derive(Debug, Default)]
pub(super) struct Stopping {
    /// When to ask the executor to cancel it.
    cancel_at: Option<Instant>,
    /// When not to wait any longer.
    give_up_at: Option<Instant>,
}

/// What a frame leads to.
enum Next {
    More,
    End(Box<End>),
    Broken(Status),
}

impl Driver {
    /// Follows the execution on one stream, to its end or until the stream breaks.
    /// `room` is held while its program is on its way.
    pub(super) async fn follow(
        &mut self,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<Result<End, Status>, Error> {
        let mut executor = self.service.peers.driver(&self.session.endpoint)?;
        let (frames, requests) = mpsc::channel(FRAMES);
        let first = self.first_frame().await?;
        self.unsent = false;
        if frames.try_send(ExecuteRequest { frame: Some(first) }).is_err() {
            return Ok(Err(Status::internal("a new channel is full")));
        }
        self.note_stop();
        let mut stream = match call(OPEN_LIMIT, executor.execute(ReceiverStream::new(requests))).await {
            Ok(stream) => stream,
            Err(status) => return Ok(Err(status)),
        };
        drop(room);
        loop {
            let next = self.step(&mut stream, &frames).await?;
            match next {
                Next::More => {}
                Next::End(end) => return Ok(Ok(*end)),
                Next::Broken(status) => return Ok(Err(status)),
            }
        }
    }

    async fn step(
        &mut self,
        stream: &mut Streaming<ExecuteResponse>,
        frames: &mpsc::Sender<ExecuteRequest>,
    ) -> Result<Next, Error> {
        let wake = self.wake_at();
        tokio::select! {
            message = stream.message() => match message {
                Ok(Some(ExecuteResponse { frame: Some(frame) })) => self.take(frame).await,
                // A frame of a newer executor.
                Ok(Some(_)) => Ok(Next::More),
                Ok(None) => Ok(Next::Broken(Status::unavailable("the stream ended early"))),
                Err(status) => Ok(Next::Broken(status)),
            },
            changed = self.registration.stop.changed() => match changed {
                Ok(()) if *self.registration.stop.borrow() == Stop::SandboxLost => Ok(Next::End(Box::new(self.ended_with_session().await?))),
                _ => { self.note_stop(); Ok(Next::More) }
            },
            Some(input) = self.registration.input.recv() => { self.pass(input, frames); Ok(Next::More) }
            () = sleep_until(wake), if wake.is_some() => self.wake().await,
        }
    }

    /// The first frame of a stream: start it, or attach where we were.
    async fn first_frame(&mut self) -> Result<Request, Error> {
        if self.started {
            return Ok(Request::Attach(ExecutionAttach {
                execution_id: self.row.id.clone(),
                stdout_offset: self.stdout.next(),
                stderr_offset: self.stderr.next(),
            }));
        }
        let program = self.service.program(&self.row).await?;
        self.stdin = Stdin::At(program.stdin.len() as u64);
        let row = &self.row;
        let mut env = encode::pairs(&self.session.env.0);
        env.extend(encode::pairs(&row.env.0));
        let timeout = Duration::from_secs(u64::try_from(row.timeout_seconds).unwrap_or(0));
        Ok(Request::Start(ExecutionStart {
            execution_id: row.id.clone(),
            session_id: row.session_id.clone(),
            language: row.language.map_or(executor::Language::Unspecified, encode::language).into(),
            code: program.code,
            event_json: program.event,
            env,
            mode: row.mode.map_or(executor::Mode::Unspecified, encode::mode).into(),
            entrypoint: row.entrypoint.clone(),
            timeout: Some(duration_pb(timeout)),
            stdin: program.stdin,
            keep_stdin_open: row.keep_stdin_open,
            command: row.command.0.clone(),
        }))
    }

    async fn take(&mut self, frame: Frame) -> Result<Next, Error> {
        match frame {
            Frame::Started(started) => self.process_started(started.started_at).await,
            Frame::Stdout(chunk) => {
                let taken = self.stdout.take(chunk.offset, &chunk.data).await?;
                Ok(gap("stdout", taken.is_err()))
            }
            Frame::Stderr(chunk) => {
                let taken = self.stderr.take(chunk.offset, &chunk.data).await?;
                Ok(gap("stderr", taken.is_err()))
            }
            Frame::Exited(exited) => {
                if !self.started {
                    self.process_started(None).await?;
                }
                Ok(Next::End(Box::new(End::exited(exited, *self.registration.stop.borrow()))))
            }
            Frame::Failed(failed) => {
                Ok(Next::End(Box::new(End::failed(failed, *self.registration.stop.borrow()))))
            }
        }
    }

    /// PENDING -> RUNNING, once.
    async fn process_started(&mut self, at: Option<prost_types::Timestamp>) -> Result<Next, Error> {
        if self.overdue.is_none() {
            let limit = Duration::from_secs(u64::try_from(self.row.timeout_seconds).unwrap_or(0));
            self.overdue = Some(Instant::now() + limit + OVERDUE);
        }
        if self.started {
            self.refused_attaches = 0;
            return Ok(Next::More);
        }
        let at = encode::time_from(at.as_ref(), self.service.clock.now());
        self.started = true;
        if self.service.store.execution_started(&self.row.id, at).await? {
            self.service.execution_changes.publish(&self.row.id);
            return Ok(Next::More);
        }
        // Its end was written before its start, as when its session ended and this took too long: what
        // runs now must not.
        let now = self.service.store.execution_or_deleted(&self.row.id).await?;
        if now.is_none_or(|row| row.state.is_final()) {
            let _ = self.cancel_in_executor().await?;
            return Ok(Next::End(Box::new(End { acknowledge: true, ..End::cancelled() })));
        }
        Ok(Next::More)
    }

    /// Begins to stop, when somebody wants that.
    fn note_stop(&mut self) {
        let stop = *self.registration.stop.borrow_and_update();
        if stop == Stop::No {
            return;
        }
        self.stopping.cancel_at.get_or_insert_with(Instant::now);
        if stop >= Stop::SessionEnded {
            self.stopping.give_up_at.get_or_insert_with(|| Instant::now() + LAST_WORDS);
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        [self.stopping.cancel_at, self.stopping.give_up_at, self.overdue].into_iter().flatten().min()
    }

    async fn wake(&mut self) -> Result<Next, Error> {
        let now = Instant::now();
        if self.stopping.give_up_at.is_some_and(|at| now >= at) {
            return Ok(Next::End(Box::new(self.ended_with_session().await?)));
        }
        if self.overdue.is_some_and(|at| now >= at) {
            self.silences += 1;
            self.overdue = Some(now + OVERDUE / 2);
            return Ok(Next::Broken(Status::deadline_exceeded("the executor does not tell of the end")));
        }
        if self.stopping.cancel_at.is_some_and(|at| now >= at) {
            let answer = self.cancel_in_executor().await?;
            // NOT_FOUND: the executor has not read our start yet. Once it said yes, the end will come; when
            // it does not, we ask again.
            let pause = if answer.is_ok() { LAST_WORDS } else { Duration::from_millis(50) };
            self.stopping.cancel_at = Some(Instant::now() + pause);
        }
        Ok(Next::More)
    }

    pub(super) async fn cancel_in_executor(&self) -> Result<Result<(), Status>, Error> {
        let mut executor = self.service.peers.control(&self.session.endpoint)?;
        let request = executor::CancelExecutionRequest { execution_id: self.row.id.clone() };
        Ok(call(CANCEL_LIMIT, executor.cancel_execution(request)).await.map(|_| ()))
    }

    /// Passes input on to the executor, after checking that it follows what went before: the executor
    /// would end the stream otherwise, and could not tell whom it was from.
    fn pass(&mut self, input: Input, frames: &mpsc::Sender<ExecuteRequest>) {
        let Input { frame, reply } = input;
        let passed = match self.stdin.after(&frame) {
            Ok(None) => Ok(()),
            Ok(Some(after)) => match frames.try_send(ExecuteRequest { frame: Some(frame) }) {
                Ok(()) => {
                    self.stdin = after;
                    Ok(())
                }
                Err(_) => {
                    Err(Error::Unavailable(format!("execution `{}` does not take its input", self.row.id)))
                }
            },
            Err(problem) => Err(Error::field("input", "value_error", problem)),
        };
        // The caller may have gone away.
        let _ = reply.send(passed);
    }
}

/// Where the standard input of an execution is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stdin {
    /// The next byte goes here.
    At(u64),
    /// A former process knew.
    Unknown,
    /// It was closed.
    Closed,
}

impl Stdin {
    /// Where it is after a frame; `None` when the frame brings nothing new.
    fn after(self, frame: &Request) -> Result<Option<Self>, String> {
        match (frame, self) {
            (Request::Stdin(_), Self::Closed) => Err("the standard input was closed before".to_owned()),
            (Request::Stdin(chunk), Self::At(next)) if chunk.offset > next => {
                Err(format!("the standard input goes on at byte {next}, not at byte {}", chunk.offset))
            }
            (Request::Stdin(chunk), at) => {
                let end = chunk.offset.saturating_add(chunk.data.len() as u64);
                let known = matches!(at, Self::At(next) if end <= next);
                Ok((!known).then_some(Self::At(end)))
            }
            (Request::CloseStdin(_), Self::Closed) => Ok(None),
            (Request::CloseStdin(_), _) => Ok(Some(Self::Closed)),
            (_, at) => Ok(Some(at)),
        }
    }
}

fn gap(stream: &str, gap: bool) -> Next {
    // Attaching again brings what is missing.
    if gap { Next::Broken(Status::new(Code::DataLoss, format!("a gap in {stream}"))) } else { Next::More }
}

/// Sleeps until `at`; for ever when there is no such time.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use sandmesh_proto::executor::{StdinChunk, StdinClose};

    use super::*;

    fn chunk(offset: u64, data: &'static str) -> Request {
        Request::Stdin(StdinChunk { offset, data: data.into() })
    }

    #[test]
    fn input_that_was_sent_before_is_dropped_and_a_gap_is_refused() {
        let stdin = Stdin::At(0).after(&chunk(0, "abc")).unwrap().unwrap();
        assert_eq!(stdin, Stdin::At(3));
        assert_eq!(stdin.after(&chunk(0, "abc")), Ok(None));
        assert_eq!(stdin.after(&chunk(1, "bcd")), Ok(Some(Stdin::At(4))));
        assert!(stdin.after(&chunk(4, "e")).unwrap_err().contains("byte 3"));
    }

    #[test]
    fn input_after_the_close_is_refused_and_a_second_close_is_not() {
        let closed = Stdin::At(3).after(&Request::CloseStdin(StdinClose {})).unwrap().unwrap();
        assert_eq!(closed, Stdin::Closed);
        assert!(closed.after(&chunk(3, "d")).is_err());
        assert_eq!(closed.after(&Request::CloseStdin(StdinClose {})), Ok(None));
    }

    #[test]
    fn after_a_restart_the_first_chunk_says_where_the_input_is() {
        assert_eq!(Stdin::Unknown.after(&chunk(7, "x")), Ok(Some(Stdin::At(8))));
    }
}
