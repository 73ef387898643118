//! What the loss of a sandbox changes in the row of its session, and how many sessions are in which state.

use chrono::{DateTime, Utc};
use sea_orm::{ActiveValue::Set, QuerySelect, entity::prelude::*};

use super::{Store, session};
use crate::{
    error::Error,
    lifecycle::{Cause, SessionEvent, SessionState},
};

impl Store {
    /// RUNNING -> CREATING: its sandbox was lost as `loss` says, and it gets `sandbox_id`. False when the
    /// session had moved on.
    pub(crate) async fn session_recovering(
        &self,
        session: &session::Model,
        sandbox_id: &str,
        (loss, reason): (Cause, &str),
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let change = session::ActiveModel {
            sandbox_id: Set(sandbox_id.to_owned()),
            node_id: Set(String::new()),
            endpoint: Set(String::new()),
            recoveries: Set(session.recoveries.saturating_add(1)),
            loss: Set(Some(loss)),
            creating_since: Set(Some(now.into())),
            status_reason: Set(format!("recovering: {reason}")),
            ..Default::default()
        };
        let event = SessionEvent::SandboxReplaced;
        self.move_alone(session, event, change, now).await
    }

    /// Notes how the sandbox of a session was lost, before the session ends by it.
    pub(crate) async fn session_lost(
        &self,
        session: &session::Model,
        (loss, reason): (Cause, &str),
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let change = session::ActiveModel { loss: Set(Some(loss)), ..session::end(reason, now) };
        self.move_alone(session, SessionEvent::SandboxLost, change, now).await
    }

    /// How many sessions there are in each state, without those that were deleted.
    pub(crate) async fn count_by_state(&self) -> Result<Vec<(SessionState, i64)>, Error> {
        let counts = session::Entity::find()
            .select_only()
            .column(session::Column::State)
            .column_as(session::Column::Id.count(), "count");
        let counts = counts.filter(session::Column::DeletedAt.is_null()).group_by(session::Column::State);
        Ok(counts.into_tuple().all(&self.readers).await?)
    }
}
