//! Which sessions there is something to do with, apart from what callers ask for.

use chrono::{DateTime, Utc};
use sea_orm::{
    QuerySelect,
    entity::prelude::*,
    sea_query::{Condition, ExprTrait},
};

use super::{
    Instant, Store,
    session::{Column, Entity, Model, ended, live},
};
use crate::{error::Error, lifecycle::SessionState};

impl Store {
    /// The ids of the sessions that run; there are no more of them than the quota allows.
    pub(crate) async fn running_sessions(&self) -> Result<Vec<String>, Error> {
        self.session_ids(Condition::all().add(Column::State.eq(SessionState::Running)), u64::from(u32::MAX))
            .await
    }

    /// The live sessions that time may have ended: in creation, past their lifetime, or not used for longer
    /// than they may be idle; and any that was deleted.
    pub(crate) async fn sessions_to_check(&self, now: DateTime<Utc>) -> Result<Vec<Model>, Error> {
        let now = Instant::from(now);
        let idle_timeout = ExprTrait::mul(Expr::col(Column::IdleTimeoutSeconds), 1_000_000_i64);
        let idle_until = ExprTrait::add(Expr::col(Column::LastActivityAt), idle_timeout);
        let idle = Condition::all()
            .add(Column::IdleTimeoutSeconds.gt(0))
            .add(ExprTrait::lte(idle_until, now.micros()));
        let matter = Condition::any()
            .add(Column::State.eq(SessionState::Creating))
            .add(Column::ExpiresAt.lte(now))
            .add(Column::DeletedAt.is_not_null())
            .add(idle);
        Ok(Entity::find().filter(self.own()).filter(live()).filter(matter).all(&self.readers).await?)
    }

    /// Ended sessions that still have a sandbox or executions to end.
    pub(crate) async fn sessions_to_wind_down(&self, limit: u64) -> Result<Vec<String>, Error> {
        let matter = Condition::all().add(Column::State.is_in(ended())).add(Column::SandboxRemoved.eq(false));
        self.session_ids(matter, limit).await
    }

    /// Ended sessions with nothing left to end that were deleted, or ended before `before`.
    pub(crate) async fn sessions_to_purge(
        &self,
        before: DateTime<Utc>,
        limit: u64,
    ) -> Result<Vec<String>, Error> {
        let done = || Condition::all().add(Column::SandboxRemoved.eq(true));
        // Two statements: each has an index, and the two together would have none.
        let mut ids = self.session_ids(done().add(Column::DeletedAt.is_not_null()), limit).await?;
        let left = limit.saturating_sub(u64::try_from(ids.len()).unwrap_or(limit));
        let old = done().add(Column::CompletedAt.lt(Instant::from(before)));
        ids.extend(self.session_ids(old.add(Column::DeletedAt.is_null()), left).await?);
        Ok(ids)
    }

    async fn session_ids(&self, matter: Condition, limit: u64) -> Result<Vec<String>, Error> {
        let ids =
            Entity::find().select_only().column(Column::Id).filter(self.own()).filter(matter).limit(limit);
        Ok(ids.into_tuple().all(&self.readers).await?)
    }
}
