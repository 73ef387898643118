//! Follows an execution for one watcher, from a byte cursor of each stream to the end.
//!
//! While it runs, a watcher has a stream of its own to the executor; after its end, the record is replayed.
//! A watcher is pulled by its reader: a slow one holds up nobody, and one that goes away stops nothing.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, stream};
use sandmesh_proto::{
    executor::{
        self, ExecuteRequest, ExecuteResponse, ExecutionAttach, ExecutionStarted, OutputChunk,
        execute_request::Frame as Request, execute_response::Frame,
    },
    session as pb,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::Service;
use crate::{
    encode,
    error::Error,
    lifecycle::ExecutionState,
    notify::Subscription,
    peers::{Backoff, call},
    store::execution::Model,
};

/// The most bytes of one chunk.
const CHUNK: usize = 64 << 10;

/// How much of the record is read at once.
const WINDOW: u64 = 1 << 20;

/// How long an executor may take to accept a watcher.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// What a watcher sees.
#[derive(Debug)]
pub(crate) enum Followed {
    /// Its process runs, or ran.
    Started(ExecutionStarted),
    /// Bytes of the standard output.
    Stdout(OutputChunk),
    /// Bytes of the standard error.
    Stderr(OutputChunk),
    /// It ended; the last.
    Result(Box<pb::Execution>),
}

/// The first byte that is wanted of each stream.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Offsets {
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
}

#[derive(Debug)]
struct Follower {
    service: Arc<Service>,
    id: String,
    at: Offsets,
    started: bool,
    phase: Phase,
    changes: Subscription,
    backoff: Backoff,
}

#[derive(Debug)]
enum Phase {
    /// Find out where it is; after a broken stream, only when something changed or a while has passed.
    Look { pause: Option<Duration> },
    /// The executor streams. The sender keeps our side of the stream open.
    Live(Box<Streaming<ExecuteResponse>>, mpsc::Sender<ExecuteRequest>),
    /// The record is replayed.
    Replay { row: Box<Model>, window: Bytes },
    /// The result was sent.
    Done,
}

type Step = (Phase, Option<Followed>);

impl Service {
    /// Follows an execution from `at` on.
    pub(crate) async fn follow(
        self: &Arc<Self>,
        id: &str,
        at: Offsets,
    ) -> Result<impl Stream<Item = Result<Followed, Error>> + Send + use<>, Error> {
        let changes = self.execution_changes.subscribe(id);
        let row = self.execution_row(id).await?;
        let mut follower = Follower {
            service: Arc::clone(self),
            id: id.to_owned(),
            at,
            started: false,
            phase: Phase::Look { pause: None },
            changes,
            backoff: Backoff::new(self.config.retry_max.0),
        };
        if row.state.is_final() {
            follower.check_cursor(&row)?;
            follower.phase = Phase::Replay { row: Box::new(row), window: Bytes::new() };
        } else if row.state == ExecutionState::Running && (at.stdout, at.stderr) != (0, 0) {
            // A cursor that cannot be served is refused here, and not in the middle of the stream.
            (follower.phase, _) = follower.attach(&row).await?;
        }
        Ok(stream::try_unfold(follower, |mut follower| async move {
            Ok(follower.next().await?.map(|event| (event, follower)))
        }))
    }
}

impl Follower {
    async fn next(&mut self) -> Result<Option<Followed>, Error> {
        loop {
            let (phase, event) = match std::mem::replace(&mut self.phase, Phase::Done) {
                Phase::Look { pause } => self.look(pause).await?,
                Phase::Live(stream, frames) => self.live(stream, frames).await?,
                Phase::Replay { row, window } => self.replay(row, window).await?,
                Phase::Done => return Ok(None),
            };
            self.phase = phase;
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    async fn look(&mut self, pause: Option<Duration>) -> Result<Step, Error> {
        if let Some(pause) = pause {
            // Either is a reason to look.
            let _ = timeout(pause, self.changes.changed()).await;
        }
        let row = self.service.execution_row(&self.id).await?;
        match row.state {
            ExecutionState::Pending => {
                let token = self.service.tasks.token();
                tokio::select! {
                    () = self.changes.changed() => Ok((Phase::Look { pause: None }, None)),
                    () = token.cancelled() => Err(stopping()),
                }
            }
            ExecutionState::Running => self.attach(&row).await,
            _ => Ok((Phase::Replay { row: Box::new(row), window: Bytes::new() }, None)),
        }
    }

    async fn attach(&mut self, row: &Model) -> Result<Step, Error> {
        if self.service.tasks.token().is_cancelled() {
            return Err(stopping());
        }
        let session = self.service.session(&row.session_id).await?;
        let mut executor = self.service.peers.watcher(&session.endpoint)?;
        let (frames, requests) = mpsc::channel(1);
        let attach = ExecutionAttach {
            execution_id: self.id.clone(),
            stdout_offset: self.at.stdout,
            stderr_offset: self.at.stderr,
        };
        let _ = frames.try_send(ExecuteRequest { frame: Some(Request::Attach(attach)) });
        match call(OPEN_LIMIT, executor.execute(ReceiverStream::new(requests))).await {
            Ok(stream) => Ok((Phase::Live(Box::new(stream), frames), None)),
            Err(status) => self.broken(&status),
        }
    }

    fn broken(&mut self, status: &tonic::Status) -> Result<Step, Error> {
        if status.code() == Code::OutOfRange {
            return Err(Error::CursorExpired { id: self.id.clone(), problem: status.message().to_owned() });
        }
        Ok((Phase::Look { pause: Some(self.backoff.pause()) }, None))
    }

    async fn live(
        &mut self,
        mut stream: Box<Streaming<ExecuteResponse>>,
        frames: mpsc::Sender<ExecuteRequest>,
    ) -> Result<Step, Error> {
        let token = self.service.tasks.token();
        let message = tokio::select! {
            message = stream.message() => message,
            () = self.changes.changed() => {
                let row = self.service.execution_row(&self.id).await?;
                // What the stream still has is in the record too.
                let phase = match row.state.is_final() {
                    true => Phase::Replay { row: Box::new(row), window: Bytes::new() },
                    false => Phase::Live(stream, frames),
                };
                return Ok((phase, None));
            }
            () = token.cancelled() => return Err(stopping()),
        };
        let event = match message {
            Ok(Some(ExecuteResponse { frame: Some(Frame::Started(started)) })) => self.start(started),
            Ok(Some(ExecuteResponse { frame: Some(Frame::Stdout(chunk)) })) => {
                fresh(&mut self.at.stdout, chunk).map(Followed::Stdout)
            }
            Ok(Some(ExecuteResponse { frame: Some(Frame::Stderr(chunk)) })) => {
                fresh(&mut self.at.stderr, chunk).map(Followed::Stderr)
            }
            // The result is sent when its end is durable: the row changes then.
            Ok(Some(ExecuteResponse { frame: Some(Frame::Exited(_) | Frame::Failed(_)) }) | None) => {
                return Ok((Phase::Look { pause: Some(self.backoff.pause()) }, None));
            }
            Ok(Some(ExecuteResponse { frame: None })) => None,
            Err(status) => return self.broken(&status),
        };
        Ok((Phase::Live(stream, frames), event))
    }

    fn start(&mut self, started: executor::ExecutionStarted) -> Option<Followed> {
        self.backoff = Backoff::new(self.service.config.retry_max.0);
        (!std::mem::replace(&mut self.started, true)).then_some(Followed::Started(started))
    }

    async fn replay(&mut self, row: Box<Model>, mut window: Bytes) -> Result<Step, Error> {
        if let Some(started) = encode::started(&row).filter(|_| !self.started) {
            self.started = true;
            return Ok((Phase::Replay { row, window }, Some(Followed::Started(started))));
        }
        for (name, kept) in [("stdout", row.stdout_kept), ("stderr", row.stderr_kept)] {
            let at = if name == "stdout" { &mut self.at.stdout } else { &mut self.at.stderr };
            if *at >= u64::try_from(kept).unwrap_or(0) {
                continue;
            }
            if window.is_empty() {
                window = self.service.output(&row, name, *at, WINDOW).await?;
            }
            let data = window.split_to(window.len().min(CHUNK));
            let chunk = OutputChunk { offset: *at, data };
            *at += chunk.data.len() as u64;
            let event = if name == "stdout" { Followed::Stdout(chunk) } else { Followed::Stderr(chunk) };
            return Ok((Phase::Replay { row, window }, Some(event)));
        }
        let result = encode::result(self.service.view(*row, 0).await?);
        Ok((Phase::Done, Some(Followed::Result(Box::new(result)))))
    }

    /// A cursor beyond what was kept cannot be served.
    fn check_cursor(&self, row: &Model) -> Result<(), Error> {
        let streams =
            [("stdout", self.at.stdout, row.stdout_kept), ("stderr", self.at.stderr, row.stderr_kept)];
        for (name, at, kept) in streams {
            if at > u64::try_from(kept).unwrap_or(0) {
                let problem = format!("{name} is kept up to byte {kept}, not from byte {at} on");
                return Err(Error::CursorExpired { id: self.id.clone(), problem });
            }
        }
        Ok(())
    }
}

/// What of a chunk was not seen before.
fn fresh(at: &mut u64, mut chunk: OutputChunk) -> Option<OutputChunk> {
    let known = usize::try_from(at.saturating_sub(chunk.offset)).unwrap_or(usize::MAX);
    if known >= chunk.data.len() {
        return None;
    }
    chunk.data = chunk.data.split_off(known);
    chunk.offset += known as u64;
    *at = chunk.offset + chunk.data.len() as u64;
    Some(chunk)
}

fn stopping() -> Error {
    Error::Unavailable("the session service is stopping; attach again from where you are".to_owned())
}
