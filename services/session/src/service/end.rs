//! The end of sessions: the row first, then what runs in it, then its sandbox.
//!
//! [`Service::wind_down`] can be repeated at any time and takes up where an earlier one stopped, so a crash
//! in between leaves nothing behind: the sweep repeats it until nothing of the session is left.

use std::{sync::Arc, time::Duration};

use sandmesh_proto::{scheduler, session as pb};
use tokio::{sync::oneshot, time::Instant};
use tonic::Code;

use super::{Service, recover::Loss};
use crate::{
    drivers::Stop,
    error::Error,
    lifecycle::{Cause, ExecutionEvent, SessionEvent, SessionState},
    notify::Lock,
    peers::{Backoff, call},
    spool::Spool,
    store::{
        execution::{Ending, Recorded},
        session::Model,
    },
    values::UserError,
    workspace::Same,
};

/// How long the drivers of an ended session may take to record what ran.
const DRIVERS_LIMIT: Duration = Duration::from_secs(3);

/// How long a driver may take to store the output of what ended, once it has all of it.
const FINISH_LIMIT: Duration = Duration::from_secs(60);

/// How long one attempt to remove a sandbox may take.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// How many attempts are made before the sweep takes over.
const REMOVE_ATTEMPTS: usize = 5;

impl Service {
    /// Ends a session and waits until its sandbox is gone, for a bounded time. Idempotent.
    pub(crate) async fn terminate_session(self: &Arc<Self>, id: String) -> Result<Model, Error> {
        let service = Arc::clone(self);
        let work = async move {
            loop {
                let session = service.session(&id).await?;
                // False when it moved on: to its end, or to another sandbox, and then it is to end with that.
                if session.state.is_final()
                    || service.end(&session, SessionEvent::Ended, "terminated on request").await?
                {
                    break;
                }
            }
            service.wound_down(&id).await;
            service.session(&id).await
        };
        self.finish("terminate session", work).await
    }

    /// Ends a session and forgets it.
    pub(crate) async fn delete_session(self: &Arc<Self>, id: String) -> Result<(), Error> {
        let service = Arc::clone(self);
        let work = async move {
            // Until it is not there, or is hidden with the sandbox that it has by then.
            loop {
                let session = service.session(&id).await?;
                let now = service.clock.now();
                if service.store.delete_session(&session, "deleted on request", now).await? {
                    break;
                }
            }
            service.running.forget(&id);
            service.session_changes.publish(&id);
            service.wound_down(&id).await;
            // When somebody else has it, the sweep forgets the session.
            let limit = service.config.terminate_wait.0;
            if let Ok(held) = tokio::time::timeout(limit, service.sandboxes.lock(&id)).await {
                match service.purge(&id, held).await {
                    // It is hidden, and forgotten once its files can be deleted.
                    Err(Error::ObjectStore(_)) => {}
                    purged => purged?,
                }
            }
            Ok(())
        };
        self.finish("delete session", work).await
    }

    /// Takes the news that a sandbox is gone.
    pub(crate) async fn report_sandbox_lost(
        self: &Arc<Self>,
        report: pb::ReportSandboxLostRequest,
    ) -> Result<Loss, Error> {
        let session = self.store.session_or_deleted(&report.session_id).await?;
        let session = session.ok_or_else(|| Error::SessionNotFound(report.session_id.clone()))?;
        let elsewhere =
            |node_id: &str| !node_id.is_empty() && !session.node_id.is_empty() && node_id != session.node_id;
        if session.sandbox_id != report.sandbox_id || elsewhere(&report.node_id) {
            return Ok(Loss::Moot);
        }
        let reason = if report.reason.is_empty() { "its sandbox died".to_owned() } else { report.reason };
        let cause = if report.node_lost { Cause::NodeLost } else { Cause::ExecutorLost };
        self.sandbox_lost(&session, cause, &reason).await
    }

    /// Ends a session, and begins to wind it down. False when it had moved on.
    pub(super) async fn end(
        self: &Arc<Self>,
        session: &Model,
        event: SessionEvent,
        reason: &str,
    ) -> Result<bool, Error> {
        let ended = self.store.end_session(session, event, reason, self.clock.now()).await?;
        self.note_end(ended, session, event, reason);
        Ok(ended)
    }

    /// Begins to wind down a session that has ended, if it has.
    pub(super) fn note_end(
        self: &Arc<Self>,
        ended: bool,
        session: &Model,
        event: SessionEvent,
        reason: &str,
    ) {
        if ended {
            self.running.forget(&session.id);
            tracing::info!(session.id, ?event, reason, "session ended");
            self.session_changes.publish(&session.id);
            self.spawn_wind_down(session.id.clone(), None);
        }
    }

    /// Waits until nothing of an ended session is left, for a bounded time.
    async fn wound_down(self: &Arc<Self>, id: &str) {
        let (done, finished) = oneshot::channel();
        self.spawn_wind_down(id.to_owned(), Some(done));
        // When it takes longer, it goes on by itself.
        let _ = tokio::time::timeout(self.config.terminate_wait.0, finished).await;
    }

    /// Winds a session down in the background.
    pub(super) fn spawn_wind_down(self: &Arc<Self>, id: String, done: Option<oneshot::Sender<()>>) {
        let service = Arc::clone(self);
        self.spawn("wind down session", async move {
            if let Err(error) = service.wind_down(&id).await {
                // The sweep tries again.
                tracing::error!(session.id = id, error = format!("{error:#?}"), "session not wound down");
            }
            if let Some(done) = done {
                let _ = done.send(());
            }
        });
    }

    /// Ends what runs in an ended session and removes its sandbox.
    async fn wind_down(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        // One at a time: the next finds what this one leaves.
        let _winding = self.wind_downs.lock(id).await;
        if let Some(session) = self.ended(id).await? {
            self.end_executions(&session).await?;
        }
        // Waits for a creation that is on its way: what it makes is removed here.
        let _lock = self.sandboxes.lock(id).await;
        let Some(session) = self.ended(id).await? else { return Ok(()) };
        self.end_executions(&session).await?;
        if let Err(error) = self.nothing_unsaved(&session).await {
            let again_in = self.removals.failed(id, Instant::now());
            tracing::warn!(session.id = id, %error, ?again_in, "not all of it is saved, its sandbox stays");
            return Ok(());
        }
        match self.remove_sandbox(&session).await {
            Ok(()) => {
                self.removals.done(id);
                self.peers.forget(&session.endpoint);
                self.store.sandbox_removed(&session).await?;
            }
            Err(why) => {
                let again_in = self.removals.failed(id, Instant::now());
                tracing::warn!(session.id = id, error = why, ?again_in, "sandbox not removed yet");
            }
        }
        Ok(())
    }

    /// Saves what is left to be saved of an ended session. An error: not all of it can be saved now.
    async fn nothing_unsaved(&self, session: &Model) -> Result<(), Error> {
        if !self.store.active_executions_of(&session.id).await?.is_empty() {
            return Err(Error::Unavailable("the end of an execution is not stored yet".to_owned()));
        }
        self.save_for_good(session).await
    }

    /// Saves the files of an ended session, as far as its sandbox is still there.
    async fn save_for_good(&self, session: &Model) -> Result<(), Error> {
        let is_there = session.state != SessionState::Failed && !session.endpoint.is_empty();
        if is_there
            && session.deleted_at.is_none()
            && let Err(status) = self.save_workspace(session, None, Same::Version).await?
        {
            tracing::warn!(session.id, %status, "the workspace could not be saved for the last time");
        }
        Ok(())
    }

    /// The session, when it has ended and something of it may be left.
    async fn ended(&self, id: &str) -> Result<Option<Model>, Error> {
        let session = self.store.session_or_deleted(id).await?;
        Ok(session.filter(|session| session.state.is_final() && !session.sandbox_removed))
    }

    async fn end_executions(self: &Arc<Self>, session: &Model) -> Result<(), Error> {
        // Right after a start some may have no driver yet; their executor has what they wrote.
        for id in self.store.active_executions_of(&session.id).await? {
            self.spawn_driver(&id, &session.id);
        }
        let drivers = self.drivers.of_session(&session.id);
        let stop = if session.state == SessionState::Failed { Stop::SandboxLost } else { Stop::SessionEnded };
        for driver in &drivers {
            driver.stop(stop);
        }
        let all = futures::future::join_all(drivers.iter().map(|driver| driver.done()));
        let _ = tokio::time::timeout(DRIVERS_LIMIT, all).await;
        // Those know how it ended, and are storing it.
        let finishing = drivers.iter().filter(|driver| driver.is_finishing()).map(|driver| driver.done());
        let _ = tokio::time::timeout(FINISH_LIMIT, futures::future::join_all(finishing)).await;
        // What no driver ended, as one that waits for the database.
        for id in self.store.active_executions_of(&session.id).await? {
            // One that waits for the object store knows more than can be written here.
            if self.drivers.get(&id).is_some_and(|driver| driver.is_finishing()) {
                continue;
            }
            let Some(row) = self.store.execution_or_deleted(&id).await? else { continue };
            let (event, mut ending) = of_session(session);
            if let Some(driver) = self.drivers.get(&id) {
                let live = driver.live();
                ending.started_at = live.started_at();
                let first = |spool: &Spool| first_bytes(spool, ending.started_at.is_some());
                (ending.stdout, ending.stderr) = (first(&live.stdout), first(&live.stderr));
            }
            self.store.end_execution(&row, event, &ending, self.clock.now()).await?;
            self.tell_of_end(&id).await?;
        }
        Ok(())
    }

    /// Tells those who wait for an execution of an end that its driver did not write.
    async fn tell_of_end(&self, id: &str) -> Result<(), Error> {
        let Some(driver) = self.drivers.get(id) else { return Ok(()) };
        if let Some(row) = self.store.execution_or_deleted(id).await?.filter(|row| row.state.is_final()) {
            driver.live().end(row);
        }
        Ok(())
    }

    /// Has the sandbox removed.
    ///
    /// # Errors
    /// Why nobody could say that it is gone.
    pub(super) async fn remove_sandbox(&self, session: &Model) -> Result<(), String> {
        let mut why = String::new();
        let mut backoff = Backoff::new(self.config.retry_max.0);
        for _ in 0..REMOVE_ATTEMPTS {
            let request = scheduler::DeleteSandboxRequest {
                sandbox_id: session.sandbox_id.clone(),
                node_id: session.node_id.clone(),
                only_there: false,
            };
            match call(REMOVE_LIMIT, self.peers.scheduler().delete_sandbox(request)).await {
                Ok(_) => return Ok(()),
                Err(status) if status.code() == Code::NotFound => return Ok(()),
                Err(status) => status.message().clone_into(&mut why),
            }
            if !self.pause(backoff.pause()).await {
                break;
            }
        }
        Err(why)
    }

    /// Forgets a session of which nothing is left, with its executions and their output. Whoever does holds
    /// its lock until its row is gone: from then on its id may be that of another session.
    pub(super) async fn purge(&self, id: &str, _held: Lock) -> Result<(), Error> {
        let session = self.store.session_or_deleted(id).await?;
        if let Some(session) = session.filter(|session| session.sandbox_removed) {
            self.must_hold()?;
            self.removals.done(id);
            self.peers.forget(&session.endpoint);
            self.objects.delete_session(id).await?;
            self.store.purge_session(&session).await?;
        }
        Ok(())
    }
}

/// What of a stream goes into a row as it is. The rest is an object, which its driver may be writing.
fn first_bytes(spool: &Spool, started: bool) -> Recorded {
    let inline = spool.inline();
    Recorded { kept: i64::try_from(inline.len()).unwrap_or(i64::MAX), inline, truncated: started }
}

/// How an execution ends whose session ended, in what way it did.
pub(super) fn of_session(session: &Model) -> (ExecutionEvent, Ending) {
    let detail = format!("session `{}` is {}: {}", session.id, session.state.as_str(), session.status_reason);
    let by = |cause| Ending { cause: Some(cause), cause_detail: detail.clone(), ..Ending::default() };
    match session.state {
        SessionState::Failed if session.endpoint.is_empty() => {
            let error =
                UserError { class: "ExecutionStartError".into(), message: detail, traceback: String::new() };
            (ExecutionEvent::StartFailed, Ending { error: Some(error), ..Ending::default() })
        }
        SessionState::Failed => {
            (ExecutionEvent::SandboxLost, by(session.loss.unwrap_or(Cause::ExecutorLost)))
        }
        _ => (ExecutionEvent::Cancelled, by(Cause::SessionEnded)),
    }
}
