//! Follows an execution for one watcher, from a byte cursor of each stream to the end.
//!
//! While it is driven, a watcher reads what its driver has collected, so that nothing is seen that is not
//! recorded; after its end, the record is replayed. A watcher is pulled by its reader: a slow one holds up
//! nobody, and one that goes away stops nothing.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, stream};
use sandmesh_proto::{
    executor::{
        ExecuteRequest, ExecutionAttach, ExecutionStarted, InputTaken, OutputChunk,
        execute_request::Frame as Request,
    },
    session as pb,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::Service;
use crate::{
    drivers::Handle,
    encode,
    error::Error,
    live::{self, Live},
    peers::{Backoff, call},
    store::execution::Model,
};

/// The most bytes of one chunk.
const CHUNK: usize = 64 << 10;

/// How much of the record is read at once.
const WINDOW: u64 = 1 << 20;

/// How long an executor may take to say whether it can serve a cursor.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// What a watcher sees.
#[derive(Debug)]
pub(crate) enum Followed {
    /// Its process runs, or ran.
    Started(ExecutionStarted),
    /// Bytes of the standard output.
    Stdout(OutputChunk),
    /// Bytes of the standard error.
    Stderr(OutputChunk),
    /// Its input was taken so far; only for who asked for it.
    Input(InputTaken),
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
    /// How far its input was taken, as was told last, for who wants to know.
    input: Option<Option<InputTaken>>,
    /// Whose turn it is, where there is more of both streams.
    stderr_next: bool,
    phase: Phase,
    backoff: Backoff,
}

#[derive(Debug)]
enum Phase {
    /// Find out where it is, after a pause where its driver left it.
    Look { pause: Option<Duration> },
    /// It is driven.
    Live(Arc<Live>, watch::Receiver<()>),
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
        self.followed(id, at, false).await
    }

    /// Follows an execution from `at` on, and how far its input is taken if `with_input`.
    pub(super) async fn followed(
        self: &Arc<Self>,
        id: &str,
        at: Offsets,
        with_input: bool,
    ) -> Result<impl Stream<Item = Result<Followed, Error>> + Send + use<>, Error> {
        let mut follower = Follower {
            service: Arc::clone(self),
            id: id.to_owned(),
            at,
            started: false,
            input: with_input.then_some(None),
            stderr_next: false,
            phase: Phase::Look { pause: None },
            backoff: Backoff::new(self.config.retry_max.0),
        };
        // A cursor that cannot be served is refused here, and not in the middle of the stream.
        follower.phase = follower.found().await?;
        match &follower.phase {
            Phase::Live(live, _) => follower.check_live_cursor(live).await?,
            Phase::Look { .. } | Phase::Replay { .. } | Phase::Done => {}
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
                Phase::Look { pause } => (self.look(pause).await?, None),
                Phase::Live(live, bell) => self.live(live, bell).await?,
                Phase::Replay { row, window } => self.replay(row, window).await?,
                Phase::Done => return Ok(None),
            };
            self.phase = phase;
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    async fn look(&mut self, pause: Option<Duration>) -> Result<Phase, Error> {
        if let Some(pause) = pause
            && !self.service.pause(pause).await
        {
            return Err(stopping());
        }
        self.found().await
    }

    /// Where it is: with its driver, or in the record.
    async fn found(&mut self) -> Result<Phase, Error> {
        if let Some(driver) = self.service.drivers.get(&self.id) {
            return self.watched(&driver);
        }
        let row = self.service.execution_row(&self.id).await?;
        if row.state.is_final() {
            return self.recorded(row);
        }
        // This process was started just now, and the sweep did not come by yet.
        self.service.spawn_driver(&row.id, &row.session_id);
        match self.service.drivers.get(&self.id) {
            Some(driver) => self.watched(&driver),
            None => Ok(Phase::Look { pause: Some(self.backoff.pause()) }),
        }
    }

    fn watched(&self, driver: &Handle) -> Result<Phase, Error> {
        let live = driver.live();
        match live.phase() {
            live::Phase::Ended(row) => self.recorded(Arc::unwrap_or_clone(row)),
            live::Phase::Driven | live::Phase::Left => Ok(Phase::Live(Arc::clone(live), live.watch())),
        }
    }

    /// Its record, unless that has less than was seen before, as when its executor was lost while another
    /// process collected its output anew: what is missing must not look as if it had not been.
    fn recorded(&self, row: Model) -> Result<Phase, Error> {
        self.check_cursor(&row)?;
        Ok(Phase::Replay { row: Box::new(row), window: Bytes::new() })
    }

    async fn live(&mut self, live: Arc<Live>, mut bell: watch::Receiver<()>) -> Result<Step, Error> {
        let token = self.service.tasks.token();
        loop {
            bell.mark_unchanged();
            // Before the output: all of it precedes the end.
            let phase = live.phase();
            if let Some(event) = self.news(&live).await? {
                return Ok((Phase::Live(live, bell), Some(event)));
            }
            match phase {
                live::Phase::Ended(row) => return Ok((self.recorded(Arc::unwrap_or_clone(row))?, None)),
                live::Phase::Left => return Ok((Phase::Look { pause: Some(self.backoff.pause()) }, None)),
                live::Phase::Driven => {}
            }
            tokio::select! {
                // The bell hangs in what is watched: it cannot be taken down meanwhile.
                _ = bell.changed() => {}
                () = token.cancelled() => return Err(stopping()),
            }
        }
    }

    /// What its driver knows and the watcher does not: of two streams in turn, as long as there is more of
    /// both.
    async fn news(&mut self, live: &Live) -> Result<Option<Followed>, Error> {
        if !self.started {
            // And nothing before it: its output may come between two looks.
            let started = live.started();
            self.started = started.is_some();
            return Ok(started.map(Followed::Started));
        }
        if let Some(told) = &mut self.input
            && let Some(taken) = live.input().filter(|taken| *told != Some(*taken))
        {
            *told = Some(taken);
            return Ok(Some(Followed::Input(taken)));
        }
        for _ in 0..2 {
            let stderr = self.stderr_next;
            self.stderr_next = !stderr;
            let (spool, at) = match stderr {
                true => (&live.stderr, &mut self.at.stderr),
                false => (&live.stdout, &mut self.at.stdout),
            };
            let data = spool.read(*at, CHUNK).await?;
            if !data.is_empty() {
                let chunk = OutputChunk { offset: *at, data };
                *at += chunk.data.len() as u64;
                return Ok(Some(if stderr { Followed::Stderr(chunk) } else { Followed::Stdout(chunk) }));
            }
        }
        Ok(None)
    }

    /// A cursor beyond what was collected: its executor knows whether it can be served, as this process may
    /// have been started just now and collect it again.
    async fn check_live_cursor(&self, live: &Live) -> Result<(), Error> {
        if self.at.stdout <= live.stdout.kept() && self.at.stderr <= live.stderr.kept() {
            return Ok(());
        }
        let row = self.service.execution_row(&self.id).await?;
        let session = self.service.session_to_use(&row.session_id).await?;
        if session.endpoint.is_empty() {
            return Ok(());
        }
        let mut executor = self.service.peers.driver(&session.endpoint)?;
        let (frames, requests) = mpsc::channel(1);
        let attach = ExecutionAttach {
            execution_id: self.id.clone(),
            stdout_offset: self.at.stdout,
            stderr_offset: self.at.stderr,
        };
        let _ = frames.try_send(ExecuteRequest { frame: Some(Request::Attach(attach)) });
        match call(ASK_LIMIT, executor.execute(ReceiverStream::new(requests))).await {
            Err(status) if status.code() == Code::OutOfRange => {
                Err(Error::CursorExpired { id: self.id.clone(), problem: status.message().to_owned() })
            }
            // When its executor does not know, the driver will find out, or has.
            _ => match live.phase() {
                live::Phase::Ended(row) => self.check_cursor(&row),
                live::Phase::Driven | live::Phase::Left => Ok(()),
            },
        }
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

fn stopping() -> Error {
    Error::Unavailable("the session service is stopping; attach again from where you are".to_owned())
}
