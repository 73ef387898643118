//! The table of sessions: its rows, and every statement on it.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
};

use chrono::{DateTime, Utc};
use sandmesh_mesh::database::{Transaction, retried};
use sea_orm::{
    ActiveValue::Set,
    DbBackend, Iterable, Order, QueryOrder, QuerySelect, QueryTrait, SqlErr, UpdateMany,
    entity::prelude::*,
    sea_query::{Condition, ExprTrait, InsertStatement, Query, SelectStatement},
};

use super::{Instant, Lock, Page, Position, Store, execution, is_no_text, only};
use crate::{
    dependencies::{InstallState, Installed, Packages},
    error::Error,
    lifecycle::{Cause, ExecutionState, SessionEvent, SessionState, session_sources},
    values::{Isolation, Pairs, Resources},
};

/// A session, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "sessions")]
pub(crate) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) id: String,
    pub(crate) template_id: String,
    pub(crate) state: SessionState,
    pub(crate) status_reason: String,
    pub(crate) request_id: Option<String>,
    pub(crate) resources: Resources,
    /// Set once it runs.
    pub(crate) isolation: Option<Isolation>,
    pub(crate) image: String,
    pub(crate) workspace_path: String,
    pub(crate) runtime_type: String,
    /// The template's while it is being created, then what its executor found.
    pub(crate) language_runtime: String,
    pub(crate) node_id: String,
    pub(crate) sandbox_id: String,
    /// Empty until it runs.
    pub(crate) endpoint: String,
    /// It ended, its executions too, and its sandbox is gone: nothing is left to do.
    pub(crate) sandbox_removed: bool,
    pub(crate) env: Pairs,
    pub(crate) labels: Pairs,
    pub(crate) python_package_index_url: String,
    pub(crate) timeout_seconds: i32,
    /// 0 means never.
    pub(crate) idle_timeout_seconds: i32,
    pub(crate) created_at: Instant,
    pub(crate) updated_at: Instant,
    pub(crate) last_activity_at: Instant,
    pub(crate) expires_at: Instant,
    pub(crate) completed_at: Option<Instant>,
    /// How often its sandbox was lost and made anew.
    pub(crate) recoveries: i32,
    /// How its last sandbox was lost, if it lost one.
    pub(crate) loss: Option<Cause>,
    /// Since when its sandbox is being made anew; unset: it never was.
    pub(crate) creating_since: Option<Instant>,
    /// When its image was being pulled last, as far as that is known of this creation.
    pub(crate) image_awaited_at: Option<Instant>,
    /// Set when somebody deleted it: it is not found any more, and its rows go when its sandbox is gone.
    pub(crate) deleted_at: Option<Instant>,
    /// The process that works on it; empty where there is only one.
    pub(crate) owner: String,
    /// The checksum of what says how the workspace is saved; empty while nothing is.
    pub(crate) workspace: String,
    /// What packages it is to have.
    pub(crate) packages: Option<Packages>,
    pub(crate) install_state: Option<InstallState>,
    pub(crate) install_error: Option<String>,
    /// What is installed, as far as anything ever was.
    pub(crate) installed: Option<Installed>,
    pub(crate) install_started_at: Option<Instant>,
    pub(crate) install_completed_at: Option<Instant>,
    /// Whether its sandbox was warm before; unset until it runs.
    pub(crate) warm_start: Option<bool>,
}

impl Model {
    /// Since when its sandbox is being made, where it is.
    pub(crate) fn creating_since(&self) -> DateTime<Utc> {
        self.creating_since.unwrap_or(self.created_at).utc()
    }

    /// Since when the time counts that its creation may take: not while its image is being pulled.
    pub(crate) fn creation_counts_from(&self) -> DateTime<Utc> {
        let since = self.creating_since();
        self.image_awaited_at.map_or(since, |awaited| std::cmp::max(awaited.utc(), since))
    }

    /// How often its sandbox was made anew.
    pub(crate) fn recovered(&self) -> u32 {
        u32::try_from(self.recoveries).unwrap_or(0)
    }
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(crate) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// How an insert of a session went.
#[derive(Debug)]
pub(crate) enum Inserted {
    /// It is there.
    New,
    /// A request with the same request id was there before; this is its session.
    Repeat(Box<Model>),
    /// The id is taken.
    IdTaken,
    /// There are as many as there may be.
    QuotaExceeded,
}

/// Which sessions are listed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) state: Option<SessionState>,
    pub(crate) template_id: Option<String>,
    /// Labels that it must have, with their values.
    pub(crate) labels: Vec<(String, String)>,
}

const LIVE: [SessionState; 2] = [SessionState::Creating, SessionState::Running];

/// The row of this session, and not of one that was made later with the same id: a sandbox belongs to one. Nor
/// as it is when another process has taken it over.
pub(super) fn this(session: &Model) -> Condition {
    let this =
        Condition::all().add(Column::Id.eq(&session.id)).add(Column::SandboxId.eq(&session.sandbox_id));
    this.add_option(is_of(&session.owner))
}

/// Belongs to a process still; nothing where there is only one.
fn is_of(owner: &str) -> Option<Expr> {
    Some(Expr::col((Entity, Column::Owner)).eq(owner)).filter(|_| !owner.is_empty())
}

pub(super) fn end(reason: &str, now: DateTime<Utc>) -> ActiveModel {
    ActiveModel {
        status_reason: Set(reason.to_owned()),
        completed_at: Set(Some(now.into())),
        ..Default::default()
    }
}

fn is_live(session: &Model) -> bool {
    LIVE.contains(&session.state)
}

pub(super) fn ended() -> impl Iterator<Item = SessionState> {
    SessionState::ALL.into_iter().filter(|state| !LIVE.contains(state))
}

pub(super) fn live() -> Condition {
    Condition::all().add(Column::State.is_in(LIVE))
}

impl Store {
    /// The sessions that this process works on.
    pub(super) fn own(&self) -> Condition {
        Condition::all().add_option(is_of(&self.owner))
    }

    /// Reads a session; `None` when there is none, or it was deleted.
    pub(crate) async fn session(&self, id: &str) -> Result<Option<Model>, Error> {
        if is_no_text(id) {
            return Ok(None);
        }
        let found = only(Entity::find_by_id(id).filter(Column::DeletedAt.is_null()), &self.readers).await?;
        Ok(found.map(|session| self.as_used(session)))
    }

    /// Reads a session, also a deleted one whose sandbox is still to be removed.
    pub(crate) async fn session_or_deleted(&self, id: &str) -> Result<Option<Model>, Error> {
        if is_no_text(id) {
            return Ok(None);
        }
        only(Entity::find_by_id(id), &self.readers).await
    }

    /// Reads the session that a request id made.
    pub(crate) async fn session_of_request(&self, request_id: &str) -> Result<Option<Model>, Error> {
        let found = only(Entity::find().filter(Column::RequestId.eq(request_id)), &self.readers).await?;
        Ok(found.filter(|session| session.deleted_at.is_none()))
    }

    /// Adds a session, unless its request or its id was there before or `quota` sessions are live.
    pub(crate) async fn insert_session(&self, session: Model, quota: u32) -> Result<Inserted, Error> {
        let refused = match self.write_in(Lock::Sessions, &insert(&session, quota)).await {
            Ok(1) => return Ok(Inserted::New),
            Ok(_) => Inserted::QuotaExceeded,
            Err(error) if is_taken(&error) => Inserted::IdTaken,
            Err(error) => return Err(error.into()),
        };
        Ok(self.session_before(&session).await?.unwrap_or(refused))
    }

    /// What stands in the way of a new session: that of the same request, or of the same id.
    async fn session_before(&self, new: &Model) -> Result<Option<Inserted>, Error> {
        if let Some(request_id) = &new.request_id {
            let first = only(Entity::find().filter(Column::RequestId.eq(request_id)), &self.readers).await?;
            if let Some(first) = first {
                return Ok(Some(Inserted::Repeat(Box::new(first))));
            }
        }
        Ok(self.session_or_deleted(&new.id).await?.map(|_| Inserted::IdTaken))
    }

    /// A page of the sessions that are not deleted, newest first, and how many match in all.
    pub(crate) async fn sessions(&self, filter: &Filter, page: &Page) -> Result<(Vec<Model>, u64), Error> {
        if filter.template_id.as_deref().is_some_and(is_no_text) {
            return Ok((Vec::new(), 0));
        }
        let mut matching = Condition::all().add(Column::DeletedAt.is_null());
        if let Some(state) = filter.state {
            matching = matching.add(Column::State.eq(state));
        }
        if let Some(template) = &filter.template_id {
            matching = matching.add(Column::TemplateId.eq(template));
        }
        for (key, value) in &filter.labels {
            matching = matching.add(has_label(self.readers.get_database_backend(), key, value));
        }
        let total = Entity::find().filter(matching.clone()).count(&self.readers).await?;
        let mut rows = Entity::find().filter(matching);
        if let Some(Position { created_at, id }) = &page.after {
            let older = Column::CreatedAt.lt(*created_at);
            let same = Condition::all().add(Column::CreatedAt.eq(*created_at)).add(Column::Id.lt(id));
            rows = rows.filter(Condition::any().add(older).add(same));
        }
        let rows = rows.order_by(Column::CreatedAt, Order::Desc).order_by(Column::Id, Order::Desc);
        let rows = rows.offset(page.offset).limit(page.limit).all(&self.readers).await?;
        Ok((rows.into_iter().map(|session| self.as_used(session)).collect(), total))
    }

    /// Ends a session. False when the session had moved on.
    pub(crate) async fn end_session(
        &self,
        session: &Model,
        event: SessionEvent,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        self.move_alone(session, event, end(reason, now), now).await
    }

    pub(super) async fn move_alone(
        &self,
        session: &Model,
        event: SessionEvent,
        change: ActiveModel,
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        // Only this one looks at more than the row that it changes.
        let lock = match event {
            SessionEvent::IdleReached => Lock::Session(&session.id),
            _ => Lock::Nothing,
        };
        let Some(update) = moved(session, event, change, now) else { return Ok(false) };
        Ok(self.write_in(lock, &update.into_query()).await? == 1)
    }

    /// Forgets a session that never had a sandbox, as if it had not been asked for. False when it moved on,
    /// or something is waiting to run in it.
    pub(crate) async fn discard_session(&self, id: &str) -> Result<bool, Error> {
        let waiting = of_session(Query::select().expr(Expr::val(1)));
        let delete = Entity::delete_many()
            .filter(Column::Id.eq(id))
            .filter(Column::State.eq(SessionState::Creating))
            .filter(Expr::exists(waiting).not());
        Ok(self.write_in(Lock::Session(id), &delete.into_query()).await? == 1)
    }

    /// Hides a session from now on, and ends it if it has not ended, both at once: nothing hidden is left
    /// alive. False when it is not there.
    pub(crate) async fn delete_session(
        &self,
        session: &Model,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let change = ActiveModel {
            deleted_at: Set(Some(now.into())),
            // The request may be made again.
            request_id: Set(None),
            ..Default::default()
        };
        let update =
            Entity::update_many().set(change).filter(this(session)).filter(Column::DeletedAt.is_null());
        let hide = async |transaction: Arc<Transaction>| {
            let deleted = update.clone().exec(&*transaction).await?.rows_affected == 1;
            let ended = moved(session, SessionEvent::Ended, end(reason, now), now);
            if let Some(update) = ended.filter(|_| deleted) {
                update.exec(&*transaction).await?;
            }
            Ok(deleted)
        };
        Ok(self.transaction(Lock::Nothing, hide).await?)
    }

    /// Replaces what says how a workspace is saved. False when somebody else replaced it meanwhile, or the
    /// session is not there any more.
    pub(crate) async fn set_workspace(&self, session: &Model, old: &str, new: &str) -> Result<bool, Error> {
        let change = ActiveModel { workspace: Set(new.to_owned()), ..Default::default() };
        let update =
            Entity::update_many().set(change).filter(this(session)).filter(Column::Workspace.eq(old));
        self.change(update).await
    }

    /// Notes that nothing of an ended session is left on any node.
    pub(crate) async fn sandbox_removed(&self, session: &Model) -> Result<(), Error> {
        let change = ActiveModel { sandbox_removed: Set(true), ..Default::default() };
        let update = Entity::update_many().set(change).filter(this(session));
        self.change(update).await?;
        Ok(())
    }

    /// Forgets a session of which nothing is left, with its executions. Its objects are the caller's to
    /// delete before. One that was made since with the same id stays.
    pub(crate) async fn purge_session(&self, session: &Model) -> Result<(), Error> {
        let gone = Condition::all().add(this(session)).add(Column::SandboxRemoved.eq(true));
        let delete = Entity::delete_many().filter(gone);
        let turn = self.turn().await;
        retried(|| delete.clone().exec(&*turn)).await?;
        Ok(())
    }

    /// Whether a session takes executions.
    pub(super) async fn is_live(&self, session: &Model) -> Result<bool, Error> {
        Ok(only(Entity::find().filter(this_live(session)), &self.readers).await?.is_some())
    }

    /// Notes that a session is used. It is written by [`Store::write_use`]: two writes for each execution
    /// would cost as much as its record.
    pub(crate) fn used(&self, id: &str, now: DateTime<Utc>) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        match uses.get_mut(id) {
            Some(last) => *last = Ord::max(*last, now),
            None => drop(uses.insert(id.to_owned(), now)),
        }
    }

    /// A session with the use that is not written yet.
    pub(crate) fn as_used(&self, mut session: Model) -> Model {
        let uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = uses.get(&session.id).copied().map(Instant::from).filter(|_| is_live(&session)) {
            session.last_activity_at = Ord::max(session.last_activity_at, last);
            session.updated_at = Ord::max(session.updated_at, last);
        }
        session
    }

    /// Writes when sessions were used last. What is noted meanwhile is for the next time.
    pub(crate) async fn write_use(&self) -> Result<(), Error> {
        let uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if uses.is_empty() {
            return Ok(());
        }
        // Of two processes that write the same, none waits for a row of the other's.
        let ordered: BTreeMap<_, _> = uses.iter().collect();
        let write = async |transaction: Arc<Transaction>| {
            for (id, at) in &ordered {
                let used = ActiveModel {
                    last_activity_at: Set((**at).into()),
                    updated_at: Set((**at).into()),
                    ..Default::default()
                };
                let update = Entity::update_many().set(used).filter(Column::Id.eq(*id)).filter(live());
                update.filter(Column::LastActivityAt.lt(Instant::from(**at))).exec(&*transaction).await?;
            }
            Ok(())
        };
        self.transaction(Lock::Nothing, write).await?;
        let mut noted = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        noted.retain(|id, at| uses.get(id) != Some(at));
        Ok(())
    }
}

/// Has this label with this value. Each database has words of its own for it.
fn has_label(backend: DbBackend, key: &str, value: &str) -> Expr {
    let pair = || serde_json::json!({ key: value }).to_string();
    match backend {
        DbBackend::MySql => Expr::cust_with_values("JSON_CONTAINS(labels, ?)", [pair()]),
        DbBackend::Postgres => Expr::cust_with_values("CAST(labels AS jsonb) @> CAST($1 AS jsonb)", [pair()]),
        _ => Expr::cust_with_values(
            "EXISTS (SELECT 1 FROM json_each(labels) AS label WHERE label.key = ? AND label.value = ?)",
            [key, value],
        ),
    }
}

/// The one place where the state of a session changes: guarded by the state it is to leave. `None` where the event
/// leads nowhere.
pub(super) fn moved(
    session: &Model,
    event: SessionEvent,
    mut change: ActiveModel,
    now: DateTime<Utc>,
) -> Option<UpdateMany<Entity>> {
    let (from, to) = session_sources(event);
    change.state = Set(to?);
    change.updated_at = Set(now.into());
    let mut update =
        Entity::update_many().set(change).filter(this(session)).filter(Column::State.is_in(from));
    if event == SessionEvent::IdleReached {
        // Something may have been started since the sweep looked.
        let mut active = of_session(Query::select().expr(Expr::val(1)));
        active.and_where(execution::is_in(&ExecutionState::ACTIVE));
        update = update.filter(Expr::exists(active).not());
    }
    Some(update)
}

/// Adds a session if fewer than `quota` are live; the indexes say whether its id or its request was there before.
fn insert(session: &Model, quota: u32) -> InsertStatement {
    let live_ones = Entity::find().select_only().column_as(Column::Id.count(), "live").filter(live());
    let mut row = Query::select();
    for column in Column::iter() {
        row.expr(Expr::val(session.get(column)));
    }
    // A table of one row that is meant, as MySQL has no condition without one.
    row.from("session_turns").and_where(Expr::col(("session_turns", "name")).eq("create"));
    row.and_where(ExprTrait::lt(
        Expr::SubQuery(None, Box::new(live_ones.into_query().into())),
        i64::from(quota),
    ));
    let mut insert = Query::insert();
    insert.into_table(Entity).columns(Column::iter());
    // It fails only where the columns are not as many as the values.
    let _ = insert.select_from(row);
    insert
}

/// The executions of the session of the statement around it.
fn of_session(select: &mut SelectStatement) -> SelectStatement {
    let session = Expr::col((Entity, Column::Id));
    let its = Expr::col((execution::Entity, execution::Column::SessionId)).eq(session);
    select.from(execution::Entity).and_where(its).take()
}

/// A unique index has such a row already.
pub(super) fn is_taken(error: &DbErr) -> bool {
    // So says the driver of sea-orm, and so the pen.
    matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
        || matches!(error, DbErr::RecordNotInserted)
}

/// The row of this session, as long as it takes executions.
pub(super) fn this_live(session: &Model) -> Condition {
    let column = |column: Column| Expr::col((Entity, column));
    Condition::all()
        .add(ExprTrait::eq(column(Column::Id), &session.id))
        .add(ExprTrait::eq(column(Column::SandboxId), &session.sandbox_id))
        .add(ExprTrait::is_in(column(Column::State), LIVE))
        .add(ExprTrait::is_null(column(Column::DeletedAt)))
        .add_option(is_of(&session.owner))
}

/// The values of [`this_live`].
pub(super) fn values_of_this_live(session: &Model) -> Vec<Value> {
    let ids = [&session.id, &session.sandbox_id].map(|id| id.as_str().into());
    let owner = Some(session.owner.as_str()).filter(|owner| !owner.is_empty());
    ids.into_iter().chain(LIVE.map(Value::from)).chain(owner.map(Value::from)).collect()
}
