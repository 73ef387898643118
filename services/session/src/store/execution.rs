//! The table of executions: its rows, and every statement on it.

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue::{self, NotSet, Set},
    Iterable, Order, QueryOrder, QuerySelect, QueryTrait, StatementBuilder, UpdateMany,
    entity::prelude::*,
    sea_query::{Condition, ExprTrait, InsertStatement, Query, UpdateStatement},
};

use super::{
    Instant, Lock, Page, Position, Store, is_no_text, only, session,
    text::{Kind, OfKind},
};
use crate::{
    error::Error,
    lifecycle::{Cause, ExecutionEvent, ExecutionState, execution_sources},
    values::{Artifacts, Language, Metrics, Mode, Pairs, UserError, Words},
};

/// An execution, as it is stored. `code`, `event` and `stdin` that are NULL, a return value that is NULL
/// with a size, and output longer than its column are in the object store below `object_prefix`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "executions")]
pub(crate) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) id: String,
    pub(crate) session_id: String,
    pub(crate) request_id: Option<String>,
    pub(crate) state: ExecutionState,
    pub(crate) cause: Option<Cause>,
    pub(crate) cause_detail: String,
    /// Unset for a command.
    pub(crate) language: Option<Language>,
    /// Unset for a command.
    pub(crate) mode: Option<Mode>,
    pub(crate) code: Option<String>,
    pub(crate) event: Option<String>,
    pub(crate) stdin: Option<Vec<u8>>,
    pub(crate) keep_stdin_open: bool,
    pub(crate) entrypoint: String,
    pub(crate) command: Words,
    pub(crate) env: Pairs,
    pub(crate) timeout_seconds: i32,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// The first bytes, up to the inline limit.
    pub(crate) stdout: Vec<u8>,
    pub(crate) stdout_kept: i64,
    pub(crate) stdout_truncated: bool,
    /// The first bytes, up to the inline limit.
    pub(crate) stderr: Vec<u8>,
    pub(crate) stderr_kept: i64,
    pub(crate) stderr_truncated: bool,
    pub(crate) return_value: Option<String>,
    pub(crate) return_value_bytes: Option<i64>,
    pub(crate) error: Option<UserError>,
    pub(crate) metrics: Option<Metrics>,
    pub(crate) object_prefix: String,
    pub(crate) retry_count: i32,
    /// How often it may be started again after the loss of its sandbox.
    pub(crate) max_retries: i32,
    /// When it was decided last that it is started again.
    pub(crate) retried_at: Option<Instant>,
    pub(crate) created_at: Instant,
    pub(crate) started_at: Option<Instant>,
    pub(crate) completed_at: Option<Instant>,
    /// Unset where it made none.
    pub(crate) artifacts: Option<Artifacts>,
}

impl Model {
    /// Since when it is to be started, for the first time or again.
    pub(crate) fn waits_since(&self) -> Instant {
        self.retried_at.unwrap_or(self.created_at)
    }
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(crate) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// What is written when an execution ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    pub(crate) cause: Option<Cause>,
    pub(crate) cause_detail: String,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: Recorded,
    pub(crate) stderr: Recorded,
    pub(crate) return_value: Option<String>,
    pub(crate) return_value_bytes: Option<i64>,
    pub(crate) error: Option<UserError>,
    pub(crate) metrics: Option<Metrics>,
    pub(crate) artifacts: Option<Artifacts>,
    /// When its process started; unset: it did not, or only a former process knows.
    pub(crate) started_at: Option<DateTime<Utc>>,
    /// When its process ended; unset: now.
    pub(crate) ended_at: Option<DateTime<Utc>>,
}

impl Ending {
    /// The row that [`Store::end_execution`] makes of `row`.
    pub(crate) fn onto(self, row: Model, event: ExecutionEvent, now: DateTime<Utc>) -> Model {
        Model {
            state: execution_sources(event).1.unwrap_or(row.state),
            cause: self.cause,
            cause_detail: self.cause_detail,
            exit_code: self.exit_code,
            signal: self.signal,
            stdout: self.stdout.inline,
            stdout_kept: self.stdout.kept,
            stdout_truncated: self.stdout.truncated,
            stderr: self.stderr.inline,
            stderr_kept: self.stderr.kept,
            stderr_truncated: self.stderr.truncated,
            return_value: self.return_value,
            return_value_bytes: self.return_value_bytes,
            error: self.error,
            metrics: self.metrics,
            artifacts: self.artifacts,
            started_at: self.started_at.map(Into::into).or(row.started_at),
            completed_at: Some(self.ended_at.unwrap_or(now).into()),
            ..row
        }
    }
}

/// What is recorded of one stream of output.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorded {
    /// The first bytes, up to the inline limit.
    pub(crate) inline: Vec<u8>,
    /// How many bytes are kept, here or in the object store.
    pub(crate) kept: i64,
    /// There was more.
    pub(crate) truncated: bool,
}

/// How an insert of an execution went.
#[derive(Debug)]
pub(crate) enum Inserted {
    /// It is there.
    New,
    /// It, or one of the same request, was there before.
    Repeat(Box<Model>),
    /// The id is taken in another session.
    IdTaken,
    /// The session has ended, or is not there any more.
    NotActive,
    /// The session has as many active executions as it may have.
    TooMany,
}

/// In one of these states. They are in the text of the statement, as they are in that of the index over
/// active ones: for a value that could be another, SQLite would prepare the statement anew each time.
pub(super) fn is_in(states: &[ExecutionState]) -> Expr {
    let words: Vec<_> = states.iter().map(|state| format!("'{}'", state.as_str())).collect();
    Expr::cust(format!("state IN ({})", words.join(", ")))
}

fn active() -> Condition {
    Condition::all().add(is_in(&ExecutionState::ACTIVE))
}

impl Store {
    /// Reads an execution; `None` when there is none, or its session was deleted.
    pub(crate) async fn execution(&self, id: &str) -> Result<Option<Model>, Error> {
        if is_no_text(id) {
            return Ok(None);
        }
        let session = Query::select()
            .expr(Expr::val(1))
            .from(session::Entity)
            .and_where(Expr::col((session::Entity, session::Column::Id)).equals((Entity, Column::SessionId)))
            .and_where(session::Column::DeletedAt.is_null())
            .take();
        only(Entity::find_by_id(id).filter(Expr::exists(session)), &self.readers).await
    }

    /// Reads an execution, also of a deleted session.
    pub(crate) async fn execution_or_deleted(&self, id: &str) -> Result<Option<Model>, Error> {
        if is_no_text(id) {
            return Ok(None);
        }
        only(Entity::find_by_id(id), &self.readers).await
    }

    /// Reads the execution that a request made before, by its own id or by its request id in the session.
    pub(crate) async fn execution_of_request(
        &self,
        session_id: &str,
        id: Option<&str>,
        request_id: Option<&str>,
    ) -> Result<Option<Model>, Error> {
        if let Some(id) = id
            && let Some(found) = self.execution_or_deleted(id).await?
        {
            return if found.session_id == session_id {
                Ok(Some(found))
            } else {
                Err(Error::ExecutionExists(id.into()))
            };
        }
        let Some(request_id) = request_id else { return Ok(None) };
        let request =
            Entity::find().filter(Column::SessionId.eq(session_id)).filter(Column::RequestId.eq(request_id));
        only(request, &self.readers).await
    }

    /// Adds an execution to `session`, unless it was there before, the session takes none, or `limit` are
    /// active. It is one statement, as each is a way to the database and back.
    pub(crate) async fn insert_execution(
        &self,
        execution: &Model,
        session: &session::Model,
        limit: u32,
    ) -> Result<Inserted, Error> {
        let refused =
            match self.write_in(Lock::Session(&session.id), &insert(execution, session, limit)).await {
                Ok(1) => {
                    self.used(&session.id, execution.created_at.utc());
                    return Ok(Inserted::New);
                }
                Ok(_) => None,
                Err(error) if session::is_taken(&error) => Some(Inserted::IdTaken),
                Err(error) => return Err(error.into()),
            };
        match (self.execution_before(execution).await?, refused) {
            (Some(first), _) if first.session_id == execution.session_id => {
                Ok(Inserted::Repeat(Box::new(first)))
            }
            (Some(_), _) => Ok(Inserted::IdTaken),
            (None, Some(refused)) => Ok(refused),
            (None, None) if self.is_live(session).await? => Ok(Inserted::TooMany),
            (None, None) => Ok(Inserted::NotActive),
        }
    }

    /// What stands in the way of a new execution: that of the same id, or of the same request.
    async fn execution_before(&self, new: &Model) -> Result<Option<Model>, Error> {
        if let Some(found) = self.execution_or_deleted(&new.id).await? {
            return Ok(Some(found));
        }
        let Some(request_id) = &new.request_id else { return Ok(None) };
        let siblings = Entity::find().filter(Column::SessionId.eq(&new.session_id));
        only(siblings.filter(Column::RequestId.eq(request_id)), &self.readers).await
    }

    /// A page of the executions of a session, newest first, and how many match in all.
    pub(crate) async fn executions(
        &self,
        session_id: &str,
        state: Option<ExecutionState>,
        page: &Page,
    ) -> Result<(Vec<Model>, u64), Error> {
        let mut matching = Condition::all().add(Column::SessionId.eq(session_id));
        if let Some(state) = state {
            matching = matching.add(Column::State.eq(state));
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
        Ok((rows, total))
    }

    /// The ids and sessions of every execution that has not ended, of the sessions of this process.
    pub(crate) async fn active_executions(&self) -> Result<Vec<(String, String)>, Error> {
        let rows = Entity::find().select_only().column(Column::Id).column(Column::SessionId).filter(active());
        let own = session::Entity::find().select_only().column(session::Column::Id).filter(self.own());
        let own = Some(own).filter(|_| !self.owner.is_empty());
        let rows = rows.filter(
            Condition::all().add_option(own.map(|own| Column::SessionId.in_subquery(own.into_query()))),
        );
        Ok(rows.order_by_asc(Column::CreatedAt).into_tuple().all(&self.readers).await?)
    }

    /// The ids of the executions of a session that have not ended.
    pub(crate) async fn active_executions_of(&self, session_id: &str) -> Result<Vec<String>, Error> {
        let rows = Entity::find().select_only().column(Column::Id).filter(active());
        Ok(rows.filter(Column::SessionId.eq(session_id)).into_tuple().all(&self.readers).await?)
    }

    /// PENDING -> RUNNING. False when it was not pending.
    pub(crate) async fn execution_started(&self, id: &str, started_at: DateTime<Utc>) -> Result<bool, Error> {
        let change = ActiveModel { started_at: Set(Some(started_at.into())), ..Default::default() };
        let Some(update) = moved(id, ExecutionEvent::Started, change) else { return Ok(false) };
        Ok(self.write(&update.into_query()).await? == 1)
    }

    /// It is to be started again: PENDING once more, as it was before. Guarded by how often that was; false
    /// when it has moved on.
    pub(crate) async fn retry_execution(&self, row: &Model, now: DateTime<Utc>) -> Result<bool, Error> {
        let change = ActiveModel {
            started_at: Set(None),
            retried_at: Set(Some(now.into())),
            retry_count: Set(row.retry_count.saturating_add(1)),
            ..Default::default()
        };
        let Some(update) = moved(&row.id, ExecutionEvent::Retried, change) else { return Ok(false) };
        let update = update.filter(Column::RetryCount.eq(row.retry_count));
        let retried = self.write(&update.into_query()).await? == 1;
        if retried {
            self.tally.retried();
        }
        Ok(retried)
    }

    /// How many executions have not ended, by state.
    pub(crate) async fn count_active_by_state(&self) -> Result<Vec<(ExecutionState, i64)>, Error> {
        let counts =
            Entity::find().select_only().column(Column::State).column_as(Column::Id.count(), "count");
        Ok(counts.filter(active()).group_by(Column::State).into_tuple().all(&self.readers).await?)
    }

    /// Ends an execution and notes that its session was used. False when it had ended before: the first
    /// end is the end.
    pub(crate) async fn end_execution(
        &self,
        row: &Model,
        event: ExecutionEvent,
        ending: &Ending,
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let ended_at = ending.ended_at.unwrap_or(now);
        let Some(update) = ended(&row.id, event, ending.clone(), ended_at) else { return Ok(false) };
        // Before it: whoever sees that nothing runs any more sees this use, too.
        self.used(&row.session_id, now);
        let ended = self.write(&update).await? == 1;
        if ended {
            self.tally.ended(execution_sources(event).1, row.language, ending.cause);
        }
        Ok(ended)
    }

    /// How many executions of a session have not ended.
    pub(crate) async fn count_active(&self, session_id: &str) -> Result<u64, Error> {
        Ok(Entity::find()
            .filter(active())
            .filter(Column::SessionId.eq(session_id))
            .count(&self.readers)
            .await?)
    }
}

/// The update that takes an execution along `event`, guarded by the states that it leads out of.
fn moved(id: &str, event: ExecutionEvent, mut change: ActiveModel) -> Option<sea_orm::UpdateMany<Entity>> {
    let (from, to) = execution_sources(event);
    change.state = Set(to?);
    Some(Entity::update_many().set(change).filter(Column::Id.eq(id)).filter(is_in(&from)))
}

/// What an end sets: always the same columns, but for the start.
pub(super) fn columns(ending: Ending, ended_at: DateTime<Utc>) -> ActiveModel {
    let started_at = ending.started_at.map_or(NotSet, |at| Set(Some(at.into())));
    ActiveModel {
        started_at,
        completed_at: Set(Some(ended_at.into())),
        cause: Set(ending.cause),
        // An executor says it, and is not trusted to say only what a database takes.
        cause_detail: Set(ending.cause_detail.replace('\0', "")),
        exit_code: Set(ending.exit_code),
        signal: Set(ending.signal),
        stdout: Set(ending.stdout.inline),
        stdout_kept: Set(ending.stdout.kept),
        stdout_truncated: Set(ending.stdout.truncated),
        stderr: Set(ending.stderr.inline),
        stderr_kept: Set(ending.stderr.kept),
        stderr_truncated: Set(ending.stderr.truncated),
        return_value: Set(ending.return_value),
        return_value_bytes: Set(ending.return_value_bytes),
        error: Set(ending.error),
        metrics: Set(ending.metrics),
        artifacts: Set(ending.artifacts),
        ..Default::default()
    }
}

/// As [`moved`], for an event that is an end.
pub(super) fn ended(
    id: &str,
    event: ExecutionEvent,
    ending: Ending,
    ended_at: DateTime<Utc>,
) -> Option<impl StatementBuilder> {
    let (from, to) = execution_sources(event);
    let change = ActiveModel { state: Set(to?), ..columns(ending, ended_at) };
    let kind = Kind::End { from, with_start: change.started_at.is_set() };
    let subject = (id.to_owned(), event, change);
    Some(OfKind { kind, subject, values: values_of_end, make: made_end })
}

fn values_of_end((id, _, change): &(String, ExecutionEvent, ActiveModel)) -> Vec<Value> {
    let set = Column::iter().filter_map(|column| match change.get(column) {
        ActiveValue::Set(value) => Some(value),
        ActiveValue::Unchanged(_) | ActiveValue::NotSet => None,
    });
    set.chain([id.as_str().into()]).collect()
}

pub(super) fn made_end((id, event, change): &(String, ExecutionEvent, ActiveModel)) -> UpdateStatement {
    moved(id, *event, change.clone()).map(UpdateMany::into_query).unwrap_or_default()
}

/// Adds an execution if its session is live and has fewer than `limit` active ones; the indexes say whether
/// its id or its request was there before.
pub(super) fn insert<'a>(
    execution: &'a Model,
    session: &'a session::Model,
    limit: u32,
) -> impl StatementBuilder + use<'a> {
    let kind = Kind::Insert { is_owned: !session.owner.is_empty() };
    let subject = (execution, session, limit);
    OfKind { kind, subject, values: values_of_insert, make: made_insert }
}

pub(super) type New<'a> = (&'a Model, &'a session::Model, u32);

fn values_of_insert((execution, session, limit): &New<'_>) -> Vec<Value> {
    let row = Column::iter().map(|column| execution.get(column));
    let active_ones = [session.id.as_str().into(), i64::from(*limit).into()];
    row.chain(session::values_of_this_live(session)).chain(active_ones).collect()
}

pub(super) fn made_insert((execution, session, limit): &New<'_>) -> InsertStatement {
    let active_ones = Query::select()
        .expr(Expr::col((Entity, Column::Id)).count())
        .from(Entity)
        .and_where(Expr::col((Entity, Column::SessionId)).eq(&session.id))
        .and_where(is_in(&ExecutionState::ACTIVE))
        .take();
    let mut row = Query::select();
    for column in Column::iter() {
        row.expr(Expr::val(execution.get(column)));
    }
    row.from(session::Entity).cond_where(session::this_live(session));
    row.and_where(ExprTrait::lt(Expr::SubQuery(None, Box::new(active_ones.into())), i64::from(*limit)));
    let mut insert = Query::insert();
    insert.into_table(Entity).columns(Column::iter());
    // It fails only where the columns are not as many as the values.
    let _ = insert.select_from(row);
    insert
}
