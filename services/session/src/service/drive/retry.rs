//! The loss of a sandbox under an execution: it waits for the next one where nobody can have started it,
//! is started again where its caller allowed that, and is crashed otherwise.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::{Driver, End, input::Inputs, ready, stream::Stopping};
use crate::{
    drivers::Stop,
    error::Error,
    lifecycle::{Cause, ExecutionState, retry_after},
};

impl Driver {
    /// How an execution ended that another process may have sent to a sandbox that its session lost since:
    /// where that is not known it must not run in the next one.
    pub(super) fn lost_before(&self) -> Option<End> {
        let since = self.session.creating_since?;
        if self.unsent || self.row.waits_since() >= since {
            return None;
        }
        let cause = self.session.loss.unwrap_or(Cause::ExecutorLost);
        Some(End::by_loss(cause, "its sandbox was lost".to_owned()))
    }

    /// Whether the session told that the sandbox is lost that this execution is for.
    pub(super) fn has_lost_sandbox(&self) -> bool {
        *self.registration.lost.borrow() == self.session.sandbox_id
    }

    /// What it means that the sandbox is lost; `None`: it goes on in another one.
    pub(super) async fn after_loss(&mut self, reason: &str) -> Result<Option<End>, Error> {
        let lost = self.session.sandbox_id.clone();
        let Some(session) = self.service.store.session_or_deleted(&self.row.session_id).await? else {
            return Ok(Some(End::purged(reason.to_owned())));
        };
        if session.state.is_final() {
            return Ok(Some(self.ended_with_session().await?));
        }
        if session.sandbox_id == lost {
            return Ok(Some(End::purged(reason.to_owned())));
        }
        let cause = session.loss.unwrap_or(Cause::ExecutorLost);
        if !self.unsent {
            let told = session.status_reason.strip_prefix("recovering: ").unwrap_or(reason);
            return Ok(Some(End::by_loss(cause, told.to_owned())));
        }
        match ready(&self.service, Arc::new(session), &mut self.registration.stop).await? {
            Some(session) => self.session = session,
            None => return Ok(Some(End::purged(reason.to_owned()))),
        }
        Ok(None)
    }

    /// Whether an execution that ended so is started again. Then everything is ready for that, and the next
    /// sandbox, if it needs one, is there.
    pub(super) async fn is_retried(&mut self, end: &End) -> Result<bool, Error> {
        let count = |count: i32| u32::try_from(count).unwrap_or(0);
        let (retries, most) = (count(self.row.retry_count), count(self.row.max_retries));
        let Some(pause) = retry_after(end.ending.cause, retries, most) else { return Ok(false) };
        if *self.registration.stop.borrow() != Stop::No {
            return Ok(false);
        }
        let session = self.service.store.session_or_deleted(&self.row.session_id).await?;
        let Some(session) = session.filter(|session| !session.state.is_final()) else { return Ok(false) };
        if session.sandbox_id == self.session.sandbox_id {
            // Its executor lost it, and may not have: two runs of it must not meet.
            let _ = self.cancel_in_executor().await?;
        }
        let now = self.service.clock.now();
        if !self.service.store.retry_execution(&self.row, now).await? {
            return Ok(false);
        }
        tracing::info!(execution.id = self.row.id, session.id, retries, ?pause, "execution is started again");
        self.start_over(now);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = self.registration.stop.wait_for(|stop| *stop != Stop::No) => {}
        }
        match ready(&self.service, Arc::new(session), &mut self.registration.stop).await? {
            Some(session) => self.session = session,
            // Its row is gone, and so is what would be recorded: the next look says so.
            None => tracing::debug!(execution.id = self.row.id, "its session is gone"),
        }
        Ok(true)
    }

    /// Forgets the run that was lost, but not what it wrote.
    fn start_over(&mut self, now: DateTime<Utc>) {
        let live = &self.registration.live;
        live.restart();
        self.before = (live.stdout.next(), live.stderr.next());
        self.row.retry_count = self.row.retry_count.saturating_add(1);
        (self.row.state, self.row.started_at) = (ExecutionState::Pending, None);
        self.row.retried_at = Some(now.into());
        (self.unsent, self.started) = (true, false);
        (self.write_start_at, self.overdue) = (None::<Instant>, None);
        (self.silences, self.refused_attaches) = (0, 0);
        (self.stopping, self.inputs) = (Stopping::default(), Inputs::default());
        self.turn = Some(self.service.turns.take(&self.registration.session_id));
    }
}
