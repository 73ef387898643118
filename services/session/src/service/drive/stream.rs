//! One stream between a driver and the executor: what to do with each frame, input and wish to stop.

use std::{future::Future, pin::pin, time::Duration};

use sandmesh_mesh::{duration_pb, was_not_sent};
use sandmesh_proto::executor::{
    self, ExecuteRequest, ExecuteResponse, ExecutionAttach, ExecutionStart, ExecutionStarted,
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
    drivers::{MOST_INPUTS, Stop},
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

/// How long an execution may run before it is written that it does.
const WRITE_START: Duration = Duration::from_millis(20);

/// How many frames may wait for the executor: the first, and all input that is on its way.
const FRAMES: usize = 1 + MOST_INPUTS;

/// How far bringing an execution to an end before its time is.
#[derive(Debug, Default)]
pub(super) struct Stopping {
    /// When to ask the executor to cancel it.
    cancel_at: Option<Instant>,
    /// When not to wait any longer.
    give_up_at: Option<Instant>,
}

impl Stopping {
    /// Its executor had the time to tell how it ended.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.give_up_at.is_some_and(|at| now >= at)
    }
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
        self.inputs.start_over();
        let first = self.first_frame().await?;
        let unsent = std::mem::replace(&mut self.unsent, false);
        if frames.try_send(ExecuteRequest { frame: Some(first) }).is_err() {
            return Ok(Err(Status::internal("a new channel is full")));
        }
        let opening = call(OPEN_LIMIT, executor.execute(ReceiverStream::new(requests)));
        let mut stream = match self.unless_given_up(opening).await? {
            Ok(Ok(stream)) => stream,
            Ok(Err(status)) => {
                self.unsent = unsent && was_not_sent(&status);
                return Ok(Err(status));
            }
            Err(end) => return Ok(Ok(end)),
        };
        // Its executor has it.
        self.turn = None;
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

    /// Waits for something. When its session ended and its executor has no more time to tell, or its sandbox
    /// is lost, it ends instead: in that way.
    async fn unless_given_up<T>(&mut self, event: impl Future<Output = T>) -> Result<Result<T, End>, Error> {
        let mut event = pin!(event);
        loop {
            self.note_stop();
            let give_up_at = self.stopping.give_up_at;
            tokio::select! {
                event = &mut event => return Ok(Ok(event)),
                _ = self.registration.stop.changed() => if self.is_sandbox_lost() {
                    return Ok(Err(self.ended_with_session().await?));
                },
                () = sleep_until(give_up_at), if give_up_at.is_some() => return Ok(Err(self.given_up().await?)),
            }
        }
    }

    fn is_sandbox_lost(&self) -> bool {
        *self.registration.stop.borrow() == Stop::SandboxLost
    }

    async fn step(
        &mut self,
        stream: &mut Streaming<ExecuteResponse>,
        frames: &mpsc::Sender<ExecuteRequest>,
    ) -> Result<Next, Error> {
        let wake = self.wake_at();
        tokio::select! {
            message = stream.message() => match message {
                Ok(Some(ExecuteResponse { frame: Some(Frame::InputTaken(taken)) })) => {
                    self.inputs.taken(taken, frames);
                    self.registration.note_reach(self.inputs.reach());
                    self.registration.live.take_input(taken);
                    Ok(Next::More)
                }
                Ok(Some(ExecuteResponse { frame: Some(frame) })) => self.take(frame).await,
                // A frame of a newer executor.
                Ok(Some(_)) => Ok(Next::More),
                Ok(None) => Ok(Next::Broken(Status::unavailable("the stream ended early"))),
                Err(status) => Ok(Next::Broken(status)),
            },
            changed = self.registration.stop.changed() => match changed {
                Ok(()) if self.is_sandbox_lost() => Ok(Next::End(Box::new(self.ended_with_session().await?))),
                _ => { self.note_stop(); Ok(Next::More) }
            },
            Ok(()) = self.registration.lost.changed() => Ok(match self.has_lost_sandbox() {
                true => Next::Broken(Status::unavailable("its sandbox is lost")),
                false => Next::More,
            }),
            Some(input) = self.registration.input.recv(), if self.inputs.may_pass() => {
                self.inputs.pass(input, frames);
                self.registration.note_reach(self.inputs.reach());
                Ok(Next::More)
            }
            () = sleep_until(wake), if wake.is_some() => self.wake().await,
        }
    }

    /// The first frame of a stream: start it, or attach where we were.
    async fn first_frame(&mut self) -> Result<Request, Error> {
        if self.started {
            return Ok(Request::Attach(ExecutionAttach {
                execution_id: self.row.id.clone(),
                stdout_offset: self.registration.live.stdout.next().saturating_sub(self.before.0),
                stderr_offset: self.registration.live.stderr.next().saturating_sub(self.before.1),
            }));
        }
        let program = self.service.program(&self.row).await?;
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
        self.inputs.told_something_else();
        match frame {
            Frame::InputTaken(_) => Ok(Next::More),
            Frame::Started(started) => Ok(self.process_started(started)),
            Frame::Stdout(chunk) => {
                let taken =
                    self.registration.live.stdout.take(self.before.0 + chunk.offset, &chunk.data).await?;
                self.registration.live.ring();
                Ok(gap("stdout", taken.is_err()))
            }
            Frame::Stderr(chunk) => {
                let taken =
                    self.registration.live.stderr.take(self.before.1 + chunk.offset, &chunk.data).await?;
                self.registration.live.ring();
                Ok(gap("stderr", taken.is_err()))
            }
            Frame::Exited(exited) => {
                if !self.started {
                    self.process_started(ExecutionStarted::default());
                }
                Ok(Next::End(Box::new(End::exited(exited, *self.registration.stop.borrow()))))
            }
            Frame::Failed(failed) => {
                Ok(Next::End(Box::new(End::failed(failed, *self.registration.stop.borrow()))))
            }
        }
    }

    /// Its process exists. That is written a little later: most end before that, and one write is enough.
    fn process_started(&mut self, started: ExecutionStarted) -> Next {
        if self.overdue.is_none() {
            let limit = Duration::from_secs(u64::try_from(self.row.timeout_seconds).unwrap_or(0));
            self.overdue = Some(Instant::now() + limit + OVERDUE);
        }
        self.refused_attaches = 0;
        let live = &self.registration.live;
        if live.started_at().is_some() {
            return Next::More;
        }
        let told = encode::time_from(started.started_at.as_ref(), self.service.clock.now());
        live.start(started, self.row.started_at.map_or(told, |at| at.utc()));
        if !std::mem::replace(&mut self.started, true) {
            self.write_start_at = Some(Instant::now() + WRITE_START);
        }
        Next::More
    }

    /// PENDING -> RUNNING, once.
    async fn write_start(&mut self) -> Result<Next, Error> {
        self.write_start_at = None;
        let Some(at) = self.registration.live.started_at() else { return Ok(Next::More) };
        if self.service.store.execution_started(&self.row.id, at).await? {
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
    pub(super) fn note_stop(&mut self) {
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
        [self.stopping.cancel_at, self.stopping.give_up_at, self.overdue, self.write_start_at]
            .into_iter()
            .flatten()
            .min()
    }

    async fn wake(&mut self) -> Result<Next, Error> {
        let now = Instant::now();
        if self.stopping.is_over(now) {
            return Ok(Next::End(Box::new(self.given_up().await?)));
        }
        if self.write_start_at.is_some_and(|at| now >= at) {
            return self.write_start().await;
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
