//! What of its sandbox gets into the row of a session.

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue::{NotSet, Set},
    entity::prelude::*,
};

use super::{Store, install, session};
use crate::{
    dependencies::Installed,
    error::Error,
    lifecycle::{SessionEvent, SessionState},
    values::Isolation,
};

/// What the scheduler made for a session.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    pub(crate) endpoint: String,
    pub(crate) node_id: String,
    pub(crate) runtime_type: String,
    pub(crate) language_runtime: String,
    pub(crate) workspace_path: String,
    pub(crate) isolation: Isolation,
    /// It was warm before.
    pub(crate) was_warm: bool,
    /// How the installation of its packages went, where there are any.
    pub(crate) packages: Option<Result<Installed, String>>,
}

impl Store {
    /// Notes that the image of a session that is being created is being pulled, with what is to be told of that. False
    /// when the session had moved on.
    pub(crate) async fn session_awaits_image(
        &self,
        session: &session::Model,
        told: Option<String>,
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let change = session::ActiveModel {
            image_awaited_at: Set(Some(now.into())),
            status_reason: told.map_or(NotSet, Set),
            ..Default::default()
        };
        let creating = session::Column::State.eq(SessionState::Creating);
        let update =
            session::Entity::update_many().set(change).filter(session::this(session)).filter(creating);
        self.change(update).await
    }

    /// CREATING -> RUNNING with what the scheduler made. False when the session had moved on.
    pub(crate) async fn session_ready(
        &self,
        session: &session::Model,
        made: Placement,
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let packages = match made.packages {
            Some(Ok(installed)) => install::done(session, installed, now),
            Some(Err(why)) => install::failed(session, &why, now),
            None => <session::ActiveModel as Default>::default(),
        };
        let mut change = session::ActiveModel {
            endpoint: Set(made.endpoint),
            node_id: Set(made.node_id),
            runtime_type: Set(made.runtime_type),
            workspace_path: Set(made.workspace_path),
            isolation: Set(Some(made.isolation)),
            status_reason: Set(String::new()),
            warm_start: Set(Some(made.was_warm)),
            ..packages
        };
        if !made.language_runtime.is_empty() {
            change.language_runtime = Set(made.language_runtime);
        }
        let moved = self.move_alone(session, SessionEvent::SandboxReady, change, now).await?;
        if moved {
            self.tally().started(made.was_warm);
        }
        Ok(moved)
    }
}
