//! What becomes of a session whose sandbox is lost: it gets another one, or it ends.
//!
//! The row moves first, RUNNING -> CREATING with the id of the next sandbox, and says that the session
//! recovers; then the creation goes its usual way, and is taken up by the sweep after a crash, as any is.
//! The old sandbox is removed in passing: what is missed is removed by state-sync, as it has no session.

use std::sync::Arc;

use super::Service;
use crate::{
    error::Error,
    id,
    lifecycle::{Cause, SessionEvent, after_loss},
    store::session::Model,
};

/// What the loss of a sandbox came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The session had moved on.
    Moot,
    /// The session gets another sandbox.
    Recovering,
    /// The session has ended.
    Ended,
}

impl Service {
    /// The sandbox of a session is gone, for `cause`: it gets another one, unless its time is over or that
    /// happened too often.
    pub(super) async fn sandbox_lost(
        self: &Arc<Self>,
        session: &Model,
        cause: Cause,
        reason: &str,
    ) -> Result<Loss, Error> {
        let (now, most) = (self.clock.now(), self.config.max_recoveries);
        let event = after_loss(session.expires_at.utc(), session.recovered(), most, now);
        let ended = match event {
            SessionEvent::SandboxReplaced => return self.recover(session, cause, reason).await,
            SessionEvent::SandboxLost => {
                let reason = told(session, reason);
                let ended = self.store.session_lost(session, (cause, &reason), now).await?;
                self.note_end(ended, session, event, &reason);
                ended
            }
            _ => self.end(session, event, "reached the end of its lifetime").await?,
        };
        Ok(if ended { Loss::Ended } else { Loss::Moot })
    }

    async fn recover(self: &Arc<Self>, session: &Model, cause: Cause, reason: &str) -> Result<Loss, Error> {
        if session.deleted_at.is_some() {
            return Ok(Loss::Moot);
        }
        let (sandbox_id, now) = (id::sandbox(), self.clock.now());
        if !self.store.session_recovering(session, &sandbox_id, (cause, reason), now).await? {
            return Ok(Loss::Moot);
        }
        self.running.forget(&session.id);
        self.store.tally().recovered();
        tracing::warn!(session.id, ?cause, reason, sandbox.id = sandbox_id, "session recovers");
        // Those that run in the lost one hear of it, also where its executor hangs.
        for driver in self.drivers.of_session(&session.id) {
            driver.lose(&session.sandbox_id);
        }
        self.session_changes.publish(&session.id);
        self.remove_lost(session.clone());
        self.resume_creation(session.id.clone());
        Ok(Loss::Recovering)
    }

    /// Removes what is left of a lost sandbox, in the background.
    fn remove_lost(self: &Arc<Self>, session: Model) {
        let service = Arc::clone(self);
        self.spawn("remove lost sandbox", async move {
            service.peers.forget(&session.endpoint);
            if let Err(why) = service.remove_sandbox(&session).await {
                tracing::warn!(
                    session.id,
                    sandbox.id = session.sandbox_id,
                    why,
                    "lost sandbox not removed yet"
                );
            }
        });
    }
}

/// Why a session ends whose sandbox was lost: that it was not the first is told, too.
fn told(session: &Model, reason: &str) -> String {
    match session.recoveries {
        0 => reason.to_owned(),
        times => format!("{reason} (after {times} recoveries)"),
    }
}
