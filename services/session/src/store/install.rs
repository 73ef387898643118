//! The installation of packages in the rows of sessions. Every write is guarded by what it is to change.

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue::{NotSet, Set},
    QuerySelect,
    entity::prelude::*,
    sea_query::Condition,
};

use super::{
    Store,
    session::{ActiveModel, Column, Entity, Model, this},
};
use crate::{
    dependencies::{InstallState, Installed, Packages},
    error::Error,
    lifecycle::SessionState,
};

/// That very installation, which has not ended.
fn this_install(session: &Model) -> Condition {
    let started = match session.install_started_at {
        Some(at) => Column::InstallStartedAt.eq(at),
        None => Column::InstallStartedAt.is_null(),
    };
    Condition::all().add(this(session)).add(started).add(Column::InstallState.is_in(InstallState::ACTIVE))
}

/// What an installation that went well changes.
pub(super) fn done(session: &Model, installed: Installed, now: DateTime<Utc>) -> ActiveModel {
    let mut change = ended(session, InstallState::Completed, None, now);
    if let Some(packages) = &session.packages {
        change.packages = Set(Some(packages.clone().placed()));
        let index_url = packages.wanted.as_ref().map(|wanted| wanted.index_url.clone());
        if let Some(index_url) = index_url.filter(|url| !url.is_empty()) {
            change.python_package_index_url = Set(index_url);
        }
    }
    change.installed = Set(Some(installed));
    change
}

/// What an installation that failed changes.
pub(super) fn failed(session: &Model, why: &str, now: DateTime<Utc>) -> ActiveModel {
    let mut change = ended(session, InstallState::Failed, Some(why.to_owned()), now);
    if let Some(packages) = &session.packages {
        change.packages = Set(Some(packages.clone().refused(session.installed.is_some())));
    }
    change
}

fn ended(session: &Model, state: InstallState, error: Option<String>, now: DateTime<Utc>) -> ActiveModel {
    ActiveModel {
        install_state: Set(Some(state)),
        install_error: Set(error),
        install_started_at: Set(Some(session.install_started_at.unwrap_or_else(|| now.into()))),
        install_completed_at: Set(Some(now.into())),
        updated_at: Set(now.into()),
        ..Default::default()
    }
}

impl Store {
    /// Begins an installation in a session that runs. False when it does not run, or another has not ended.
    pub(crate) async fn begin_install(
        &self,
        session: &Model,
        packages: Packages,
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let change = ActiveModel {
            packages: Set(Some(packages)),
            install_state: Set(Some(InstallState::Installing)),
            install_error: Set(None),
            install_started_at: Set(Some(now.into())),
            install_completed_at: Set(None),
            updated_at: Set(now.into()),
            ..Default::default()
        };
        // Also where it was changed and ended since it was read, as what is to be there is more than that.
        let same = match session.install_started_at {
            Some(at) => Column::InstallStartedAt.eq(at),
            None => Column::InstallStartedAt.is_null(),
        };
        let none = Condition::any()
            .add(Column::InstallState.is_null())
            .add(Column::InstallState.is_not_in(InstallState::ACTIVE));
        let update = Entity::update_many()
            .set(change)
            .filter(this(session))
            .filter(Column::State.eq(SessionState::Running))
            .filter(Column::DeletedAt.is_null())
            .filter(same)
            .filter(none);
        self.change(update).await
    }

    /// Notes that the packages of a session that is being created are being installed. Answers with the
    /// session as it is then; `None` when it has moved on.
    pub(crate) async fn creation_installs(
        &self,
        session: &Model,
        now: DateTime<Utc>,
    ) -> Result<Option<Model>, Error> {
        let running = session.install_state == Some(InstallState::Installing);
        let started_at = session.install_started_at.filter(|_| running).unwrap_or_else(|| now.into());
        // How far its image was is not what is waited for any more.
        let status_reason = if session.recoveries == 0 { Set(String::new()) } else { NotSet };
        let change = ActiveModel {
            status_reason,
            install_state: Set(Some(InstallState::Installing)),
            install_error: Set(None),
            install_started_at: Set(Some(started_at)),
            install_completed_at: Set(None),
            updated_at: Set(now.into()),
            ..Default::default()
        };
        let update = Entity::update_many()
            .set(change)
            .filter(this(session))
            .filter(Column::State.eq(SessionState::Creating));
        if !self.change(update).await? {
            return Ok(None);
        }
        self.session(&session.id).await
    }

    /// Ends an installation well. False when it had ended.
    pub(crate) async fn install_done(
        &self,
        session: &Model,
        installed: Installed,
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        self.end_install(session, done(session, installed, now)).await
    }

    /// Ends an installation that failed; what was there still is. False when it had ended.
    pub(crate) async fn install_failed(
        &self,
        session: &Model,
        why: &str,
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        self.end_install(session, failed(session, why, now)).await
    }

    async fn end_install(&self, session: &Model, change: ActiveModel) -> Result<bool, Error> {
        let update = Entity::update_many().set(change).filter(this_install(session));
        self.change(update).await
    }

    /// The sessions with an installation that has not ended, but for those that are being created: these have
    /// somebody who sees to it.
    pub(crate) async fn sessions_installing(&self) -> Result<Vec<String>, Error> {
        let matter = Condition::all()
            .add(Column::InstallState.is_in(InstallState::ACTIVE))
            .add(Column::State.ne(SessionState::Creating));
        let ids =
            Entity::find().select_only().column(Column::Id).filter(self.own()).filter(matter).limit(1000);
        Ok(ids.into_tuple().all(&self.readers).await?)
    }
}
