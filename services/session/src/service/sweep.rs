//! What the passing of time does: lifetimes, idle times and retention, and whatever a crash left undone.
//!
//! There is no separate recovery. The first sweep after a start finds what is pending, running, being
//! created or half removed, as any later one finds what lost its task; so both are tested alike.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sandmesh_mesh::HumanDuration;
use tokio::time::Instant;

use super::{Service, create::after_recovery};
use crate::{
    dependencies::InstallState,
    error::Error,
    lifecycle::{SessionEvent, SessionState, SessionTimes, due},
    store::session::Model,
};

/// How many sessions are wound down or forgotten in one sweep.
const BATCH: u64 = 100;

/// How often what was written is moved into the database.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);

/// How long an object store that does not answer is left alone.
const OBJECTS_PAUSE: Duration = Duration::from_secs(5);

impl Service {
    /// Keeps the log of the database short, until the service stops.
    pub(crate) async fn checkpoint_forever(self: Arc<Self>) {
        while self.pause(CHECKPOINT_EVERY).await {
            logged("database not tidied", self.store.checkpoint().await);
        }
    }

    /// Sweeps until the service stops.
    pub(crate) async fn sweep_forever(self: Arc<Self>) {
        // Side by side: to forget takes the object store, and lifetimes do not wait for that.
        futures::join!(self.look_after_forever(), self.forget_forever());
    }

    async fn look_after_forever(self: &Arc<Self>) {
        loop {
            // One that fails is tried again in the next sweep, and holds up no other.
            logged("use of sessions not written", self.store.write_use().await);
            logged("executions not driven", self.drive_undriven().await);
            logged("sessions not checked", self.check_sessions().await);
            logged("packages not installed", self.resume_installs().await);
            logged("ended sessions not wound down", self.wind_down_ended().await);
            if !self.pause(self.config.sweep_interval.0).await {
                return logged("use of sessions not written", self.store.write_use().await);
            }
        }
    }

    async fn forget_forever(&self) {
        loop {
            logged("old sessions not forgotten", self.purge_old().await);
            if !self.pause(self.config.sweep_interval.0).await {
                return;
            }
        }
    }

    async fn drive_undriven(self: &Arc<Self>) -> Result<(), Error> {
        for (execution, session) in self.store.active_executions().await? {
            self.spawn_driver(&execution, &session);
        }
        Ok(())
    }

    async fn check_sessions(self: &Arc<Self>) -> Result<(), Error> {
        for session in self.store.sessions_to_check(self.clock.now()).await? {
            logged("session not checked", self.check(&session).await);
        }
        Ok(())
    }

    async fn wind_down_ended(self: &Arc<Self>) -> Result<(), Error> {
        // Those that are left alone for a while do not take the places of others.
        let failing = u64::try_from(self.removals.count()).unwrap_or(u64::MAX);
        for id in self.store.sessions_to_wind_down(BATCH.saturating_add(failing)).await? {
            if !self.removals.is_due(&id, Instant::now()) {
                continue;
            }
            // Held by whoever winds it down now.
            if self.wind_downs.try_lock(&id).is_some() && self.sandboxes.try_lock(&id).is_some() {
                self.spawn_wind_down(id, None);
            }
        }
        Ok(())
    }

    async fn purge_old(&self) -> Result<(), Error> {
        let retention =
            chrono::TimeDelta::from_std(self.config.retention.0).unwrap_or(chrono::TimeDelta::MAX);
        let before = self.clock.now().checked_sub_signed(retention).unwrap_or(DateTime::<Utc>::MIN_UTC);
        for id in self.store.sessions_to_purge(before, BATCH).await? {
            // Held by whoever forgets it now, or made another with its id.
            let Some(held) = self.sandboxes.try_lock(&id) else { continue };
            match self.purge(&id, held).await {
                // So it would be with the others.
                Err(Error::ObjectStore(_)) => {
                    self.pause(OBJECTS_PAUSE).await;
                    return Ok(());
                }
                purged => logged("session not forgotten", purged),
            }
        }
        Ok(())
    }

    async fn check(self: &Arc<Self>, session: &Model) -> Result<(), Error> {
        if session.deleted_at.is_some() {
            return self.end(session, SessionEvent::Ended, "deleted on request").await.map(|_| ());
        }
        // To install packages is to use it, too.
        let installs = u64::from(session.install_state.is_some_and(InstallState::is_active));
        let active_executions = self.store.count_active(&session.id).await? + installs;
        // After that: one that ended before was noted as a use before.
        let session = &self.store.as_used(session.clone());
        let now = self.clock.now();
        let times = SessionTimes {
            state: session.state,
            creating_since: session.creation_counts_from(),
            expires_at: session.expires_at.utc(),
            last_activity_at: session.last_activity_at.utc(),
            idle_timeout: u64::try_from(session.idle_timeout_seconds)
                .ok()
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs),
            active_executions,
        };
        let Some(event) = due(&times, self.creating_limit(session), now) else {
            if session.state == SessionState::Creating {
                self.resume_creation(session.id.clone());
            }
            return Ok(());
        };
        let reason = match event {
            SessionEvent::LifetimeReached => "reached the end of its lifetime".to_owned(),
            SessionEvent::IdleReached => format!("was idle for {} s", session.idle_timeout_seconds),
            _ => {
                let limit = HumanDuration(self.creating_limit(session));
                after_recovery(session, format!("its sandbox was not created within {limit}"))
            }
        };
        self.end(session, event, &reason).await?;
        Ok(())
    }
}

fn logged(what: &str, result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::error!(error = format!("{error:#?}"), "{what}");
    }
}
