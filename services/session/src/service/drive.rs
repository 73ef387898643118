//! Drives one execution from accepted to ended, whatever happens on the way.
//!
//! A driver waits for its session, has the executor start the execution (which it does once, however often
//! it is asked), collects the output, and writes the end into the row, guarded by the old state. When the
//! stream breaks it attaches again where it was; only when the sandbox is known to be gone does it say so.

mod end;
mod input;
mod retry;
mod stream;

use std::{sync::Arc, time::Duration};

use sandmesh_proto::{agent, scheduler};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};
use tonic::{Code, Status};

use self::{
    end::{End, STORE_PAUSES},
    input::Inputs,
    stream::Stopping,
};
use super::{Service, end::of_session};
use crate::{
    drivers::{Registration, Stop},
    error::Error,
    lifecycle::{Cause, ExecutionState, SessionState},
    live::Live,
    peers::{Backoff, call},
    store::{execution, session},
    turns::Turn,
};

/// How many large programs are read and sent at once: each is up to 7 MiB and more.
pub(crate) const PROGRAMS_AT_ONCE: usize = 16;

/// The first and the longest pause of an execution that waits for a place in a full queue: each attempt
/// sends its program.
const QUEUE_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long the scheduler may take to say what became of a sandbox: a dead one is noticed within two
/// seconds.
const ASK_LIMIT: Duration = Duration::from_secs(1);

/// How often an executor that takes no attach may fail before the execution counts as lost.
const ATTACH_ATTEMPTS: u32 = 5;

/// How often an executor may be silent past the time limit before the execution counts as lost.
const SILENCES: u32 = 3;

/// The driver of one execution.
#[derive(Debug)]
struct Driver {
    service: Arc<Service>,
    row: execution::Model,
    session: Arc<session::Model>,
    registration: Registration,
    /// Its place among those that are to start. It has none any more once its executor has it.
    turn: Option<Turn>,
    /// No executor can know it: it was accepted by this process and not sent yet.
    unsent: bool,
    /// How much of each stream earlier runs of it wrote.
    before: (u64, u64),
    /// Its process exists, or existed.
    started: bool,
    /// When to write that it started, unless it ends before.
    write_start_at: Option<Instant>,
    /// It is being brought to an end before its time.
    stopping: Stopping,
    /// When its executor should have told of its end.
    overdue: Option<Instant>,
    silences: u32,
    refused_attaches: u32,
    inputs: Inputs,
}

impl Service {
    /// Drives an execution, unless it is driven.
    pub(super) fn spawn_driver(self: &Arc<Self>, execution_id: &str, session_id: &str) {
        if let Some(registration) = self.register_driver(execution_id, session_id) {
            self.spawn_registered(registration, None);
        }
    }

    /// Registers the driver of an execution; `None` when it has one.
    pub(super) fn register_driver(&self, execution_id: &str, session_id: &str) -> Option<Registration> {
        let live = Live::new(&self.spool_dir, self.config.inline_limit.0, self.config.max_output.0);
        self.drivers.register(execution_id, session_id, live)
    }

    /// An execution as its driver knows it. That it has started is written a little later, unless somebody
    /// looks before: what was seen to run is not pending again after a crash.
    pub(super) async fn as_driven(&self, mut row: execution::Model) -> Result<execution::Model, Error> {
        let driver = self.drivers.get(&row.id).filter(|_| row.state == ExecutionState::Pending);
        let Some(started_at) = driver.and_then(|driver| driver.live().started_at()) else { return Ok(row) };
        if self.store.execution_started(&row.id, started_at).await? {
            row.state = ExecutionState::Running;
            row.started_at = Some(started_at.into());
            return Ok(row);
        }
        // Somebody wrote that it has started, or ended, meanwhile.
        Ok(self.store.execution_or_deleted(&row.id).await?.unwrap_or(row))
    }

    /// Drives an execution that was accepted just now in `session`: no executor can know it.
    pub(super) fn drive_accepted(
        self: &Arc<Self>,
        registration: Registration,
        row: execution::Model,
        session: Arc<session::Model>,
    ) {
        self.spawn_registered(registration, Some((row, session)));
    }

    fn spawn_registered(self: &Arc<Self>, registration: Registration, accepted: Option<Rows>) {
        let service = Arc::clone(self);
        // Here, and not in the task: the order of acceptance is that of these calls.
        let turn = self.turns.take(&registration.session_id);
        self.spawn("drive execution", async move {
            let id = registration.execution_id.clone();
            if let Err(error) = drive(service, registration, turn, accepted).await {
                // The sweep drives it again.
                tracing::error!(execution.id = id, error = format!("{error:#?}"), "driver failed");
            }
        });
    }
}

type Rows = (execution::Model, Arc<session::Model>);

async fn drive(
    service: Arc<Service>,
    mut registration: Registration,
    turn: Turn,
    accepted: Option<Rows>,
) -> Result<(), Error> {
    let unsent = accepted.is_some();
    let known = match accepted {
        Some(rows) => Some(rows),
        None => rows(&service, &registration.execution_id).await?,
    };
    let Some((row, session)) = known else { return Ok(()) };
    let Some(session) = ready(&service, session, &mut registration.stop).await? else { return Ok(()) };
    let mut driver = Driver {
        session,
        registration,
        turn: Some(turn).filter(|_| row.started_at.is_none()),
        unsent,
        before: (0, 0),
        started: row.started_at.is_some(),
        write_start_at: None,
        stopping: Stopping::default(),
        overdue: None,
        silences: 0,
        refused_attaches: 0,
        inputs: Inputs::default(),
        row,
        service,
    };
    driver.drive_on().await
}

/// The rows of an execution that has not ended, and of its session.
async fn rows(service: &Service, id: &str) -> Result<Option<Rows>, Error> {
    let row = service.store.execution_or_deleted(id).await?;
    let Some(row) = row.filter(|row| !row.state.is_final()) else { return Ok(None) };
    let session = service.store.session_or_deleted(&row.session_id).await?;
    // That of another process is driven there.
    let session = session.filter(|session| session.owner == service.store.owner());
    Ok(session.map(|session| (row, Arc::new(session))))
}

/// Waits until a session runs or has ended, or its execution is to be stopped; `None` when it is not there
/// any more.
async fn ready(
    service: &Service,
    mut session: Arc<session::Model>,
    stop: &mut watch::Receiver<Stop>,
) -> Result<Option<Arc<session::Model>>, Error> {
    if session.state != SessionState::Creating {
        return Ok(Some(session));
    }
    let mut changes = service.session_changes.subscribe(&session.id);
    // Read again after subscribing, so that no change is missed in between.
    while session.state == SessionState::Creating && *stop.borrow_and_update() == Stop::No {
        match service.store.session_or_deleted(&session.id).await? {
            Some(now) => session = Arc::new(now),
            None => return Ok(None),
        }
        if session.state == SessionState::Creating {
            tokio::select! {
                () = changes.changed() => {}
                _ = stop.changed() => {}
            }
        }
    }
    Ok(Some(session))
}

impl Driver {
    /// Drives on while the database is away: what was collected may be nowhere else any more.
    async fn drive_on(&mut self) -> Result<(), Error> {
        let mut backoff = Backoff::between(STORE_PAUSES.0, STORE_PAUSES.1);
        let mut end = None;
        loop {
            match self.attempt(&mut end).await {
                Ok(true) => return Ok(()),
                Ok(false) => backoff = Backoff::between(STORE_PAUSES.0, STORE_PAUSES.1),
                Err(error @ Error::Unavailable(_)) => {
                    tracing::debug!(execution.id = self.row.id, %error, "the driver holds on");
                    if !self.service.pause(backoff.pause()).await {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs it, and writes its `end`, or starts it again. True when it is at its end.
    async fn attempt(&mut self, end: &mut Option<End>) -> Result<bool, Error> {
        let reached = match end.take() {
            Some(reached) => reached,
            None => match self.lost_before() {
                Some(lost) => lost,
                None => self.run().await?,
            },
        };
        let reached = end.insert(reached);
        if self.is_retried(reached).await? {
            *end = None;
            return Ok(false);
        }
        self.finish(reached).await?;
        Ok(true)
    }

    async fn run(&mut self) -> Result<End, Error> {
        let most = self.service.config.retry_max.0;
        let mut backoff = Backoff::new(most);
        let mut in_queue = Backoff::between(QUEUE_PAUSES.0, QUEUE_PAUSES.1);
        loop {
            self.turn_to_start().await;
            let room = self.room_for_program().await;
            if let Some(end) = self.before_connecting().await? {
                return Ok(end);
            }
            let collected = self.collected();
            let status = match self.follow(room).await? {
                Ok(end) => return Ok(end),
                Err(status) => status,
            };
            if let Some(end) = self.settle(&status).await? {
                return Ok(end);
            }
            if collected != self.collected() {
                backoff = Backoff::new(most);
            }
            let full = status.code() == Code::ResourceExhausted && !self.started;
            let pause = if full { in_queue.pause() } else { backoff.pause() };
            tracing::debug!(execution.id = self.row.id, code = ?status.code(), ?pause, "stream broke, trying again");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.registration.stop.changed() => {}
            }
        }
    }

    /// How much of each stream was collected.
    fn collected(&self) -> (u64, u64) {
        (self.registration.live.stdout.next(), self.registration.live.stderr.next())
    }

    /// Waits until what was accepted before it is with the executor, or it is to be stopped.
    async fn turn_to_start(&mut self) {
        let Some(turn) = &mut self.turn else { return };
        tokio::select! {
            () = turn.come() => {}
            _ = self.registration.stop.wait_for(|stop| *stop != Stop::No) => {}
        }
    }

    /// Waits until a large program may be in memory, or it is to be stopped; nothing where there is none to
    /// be sent.
    async fn room_for_program(&mut self) -> Option<OwnedSemaphorePermit> {
        let row = &self.row;
        let large = row.code.is_none() || row.event.is_none() || row.stdin.is_none();
        if self.started || !large {
            return None;
        }
        tokio::select! {
            room = Arc::clone(&self.service.programs).acquire_owned() => room.ok(),
            _ = self.registration.stop.wait_for(|stop| *stop != Stop::No) => None,
        }
    }

    /// Whether it ends without its executor being asked to run it.
    async fn before_connecting(&mut self) -> Result<Option<End>, Error> {
        if self.has_lost_sandbox()
            && let Some(end) = self.after_loss("its sandbox died").await?
        {
            return Ok(Some(end));
        }
        self.note_end_of_session();
        self.note_stop();
        let stop = *self.registration.stop.borrow();
        if stop == Stop::SandboxLost {
            return Ok(Some(self.ended_with_session().await?));
        }
        if self.stopping.is_over(Instant::now()) {
            return Ok(Some(self.given_up().await?));
        }
        if stop == Stop::No || self.started {
            return Ok(None);
        }
        let unknown = self.unsent || self.session.endpoint.is_empty() || self.unknown_to_executor().await?;
        if !unknown {
            return Ok(None);
        }
        match stop {
            Stop::SessionEnded => Ok(Some(self.ended_with_session().await?)),
            _ => Ok(Some(End::cancelled())),
        }
    }

    /// A session that had ended when this driver began tells nobody to stop. As long as its sandbox may be
    /// there, its executor has what the execution wrote, and is asked for it.
    fn note_end_of_session(&self) {
        let stop = match self.session.state {
            SessionState::Failed => Stop::SandboxLost,
            state if state.is_final() && self.session.sandbox_removed => Stop::SandboxLost,
            state if state.is_final() => Stop::SessionEnded,
            _ => return,
        };
        if let Some(handle) = self.service.drivers.get(&self.row.id) {
            handle.stop(stop);
        }
    }

    /// Has the executor cancel it, and finds out whether it knows it at all.
    async fn unknown_to_executor(&self) -> Result<bool, Error> {
        let answer = self.cancel_in_executor().await?;
        Ok(matches!(answer, Err(status) if status.code() == Code::NotFound))
    }

    /// How it ends because its session did.
    async fn ended_with_session(&mut self) -> Result<End, Error> {
        if let Some(session) = self.service.store.session_or_deleted(&self.row.session_id).await? {
            self.session = Arc::new(session);
        }
        let (event, ending) = of_session(&self.session);
        Ok(End::without_exit(event, ending))
    }

    /// How it ends when its executor did not tell how within the time it had: there may have been more.
    async fn given_up(&mut self) -> Result<End, Error> {
        let end = self.ended_with_session().await?;
        Ok(End { truncated: (self.started, self.started), ..end })
    }

    /// What a broken stream means; `None`: try again.
    async fn settle(&mut self, status: &Status) -> Result<Option<End>, Error> {
        match status.code() {
            // The executor lives and does not know what it was running.
            Code::NotFound | Code::OutOfRange if self.started => {
                Ok(Some(self.lost_or_forgotten(status).await?))
            }
            // Its queue is full: wait for a place.
            Code::ResourceExhausted if !self.started => Ok(None),
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::NotFound
            | Code::OutOfRange
                if !self.started =>
            {
                Ok(Some(End::not_started(status.message())))
            }
            // Wrong input ends the stream too, and is no reason to give up; a bad attach would be.
            Code::InvalidArgument if self.refused_attaches < ATTACH_ATTEMPTS => {
                self.refused_attaches += 1;
                Ok(None)
            }
            Code::InvalidArgument => Ok(Some(End::lost(status.message().to_owned()))),
            _ if self.silences >= SILENCES => {
                Ok(Some(End::lost("its executor does not tell of its end".to_owned())))
            }
            _ => self.ask_for_sandbox().await,
        }
    }

    async fn lost_or_forgotten(&mut self, status: &Status) -> Result<End, Error> {
        match self.ask_for_sandbox().await? {
            Some(end) => Ok(end),
            None => Ok(End::lost(format!("its executor lost it: {}", status.message()))),
        }
    }

    /// Asks what became of the sandbox; `None` when it lives or nobody knows.
    async fn ask_for_sandbox(&mut self) -> Result<Option<End>, Error> {
        if self.has_lost_sandbox() {
            return self.after_loss("its sandbox died").await;
        }
        let request = scheduler::GetSandboxRequest {
            sandbox_id: self.session.sandbox_id.clone(),
            node_id: self.session.node_id.clone(),
        };
        let (cause, reason) = match call(ASK_LIMIT, self.service.peers.scheduler().get_sandbox(request)).await
        {
            Ok(scheduler::GetSandboxResponse { sandbox: Some(sandbox) }) => {
                let Some(reason) = dead(&sandbox) else { return Ok(None) };
                (if sandbox.node_lost { Cause::NodeLost } else { Cause::ExecutorLost }, reason)
            }
            Err(status) if status.code() == Code::NotFound => {
                (Cause::ExecutorLost, "its sandbox is gone".to_owned())
            }
            Ok(_) | Err(_) => return Ok(None),
        };
        self.service.sandbox_lost(&self.session, cause, &reason).await?;
        self.after_loss(&reason).await
    }
}

/// Why a sandbox does not run any more; `None` when it does.
fn dead(sandbox: &agent::Sandbox) -> Option<String> {
    use agent::sandbox::State;
    match State::try_from(sandbox.state) {
        Ok(State::Dead) if sandbox.reason.is_empty() => Some("its sandbox died".to_owned()),
        Ok(State::Dead) => Some(format!("its sandbox died: {}", sandbox.reason)),
        Ok(State::Deleted) => Some("its sandbox was removed".to_owned()),
        _ => None,
    }
}
