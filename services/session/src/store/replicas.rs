//! The processes of this role that share a database server, and which session belongs to which.
//!
//! A session belongs to one process, its owner, and only that works on it. An owner says every few seconds
//! that it lives, by the clock of the database; the sessions of one that did not for too long are taken over
//! by another. Writes are guarded by the owner that their row had, so that those of a former owner, which
//! may not know yet, come to nothing.

use std::{sync::Arc, time::Duration};

use sandmesh_mesh::database::{Transaction, now};
use sea_orm::{
    ConnectionTrait, DbErr, QueryResult, QuerySelect,
    entity::prelude::*,
    sea_query::{ExprTrait, Query, SelectStatement},
};

use super::{Lock, Store, execution, is_no_text, session};
use crate::{error::Error, lifecycle::ExecutionState};

const TABLE: &str = "session_replicas";

/// Who a session belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) id: String,
    /// Where other processes reach it; empty where they cannot.
    pub(crate) endpoint: String,
    /// It said lately that it lives.
    pub(crate) lives: bool,
}

impl Store {
    /// Says that a process is there and lives, for `term`. The sessions of that name are its own again.
    pub(crate) async fn register_replica(
        &self,
        id: &str,
        endpoint: &str,
        term: Duration,
    ) -> Result<(), DbErr> {
        let register = async |transaction: Arc<Transaction>| {
            let mut before = Query::delete();
            before.from_table(TABLE).and_where(Expr::col("id").eq(id));
            transaction.execute(&before).await?;
            let mut row = Query::select();
            row.expr(Expr::val(id)).expr(Expr::val(endpoint)).expr(self.end(term));
            let mut insert = Query::insert();
            insert.into_table(TABLE).columns(["id", "endpoint", "expires_at"]);
            // It has as many values as columns.
            let _ = insert.select_from(row);
            transaction.execute(&insert).await.map(|_| ())
        };
        self.transaction(Lock::Nothing, register).await
    }

    /// Says that a process still lives. False when another took its sessions over.
    pub(crate) async fn renew_replica(&self, id: &str, term: Duration) -> Result<bool, Error> {
        let mut renew = Query::update();
        renew.table(TABLE).value("expires_at", self.end(term)).and_where(Expr::col("id").eq(id));
        Ok(self.write(&renew).await? == 1)
    }

    /// Whether a process said lately that it lives.
    pub(crate) async fn replica_lives(&self, id: &str) -> Result<bool, Error> {
        let mut living = Query::select();
        living.column("id").from(TABLE).and_where(Expr::col("id").eq(id));
        living.and_where(Expr::col("expires_at").gt(self.now()));
        Ok(self.readers.query_one(&living).await?.is_some())
    }

    /// Takes over the sessions whose owner does not live. Gives the ids of those owners.
    pub(crate) async fn take_over(&self, id: &str) -> Result<Vec<String>, Error> {
        let dead = session::Entity::find().select_only().column(session::Column::Owner).distinct();
        let dead = dead.filter(Expr::exists(self.living_owner()).not());
        let dead: Vec<String> = dead.into_tuple().all(&self.readers).await?;
        let mut taken = Vec::new();
        for owner in dead {
            if self.take_from(&owner, id).await? > 0 {
                taken.push(owner);
            }
        }
        Ok(taken)
    }

    async fn take_from(&self, owner: &str, id: &str) -> Result<u64, DbErr> {
        let mut remove = Query::delete();
        remove.from_table(TABLE).and_where(Expr::col("id").eq(owner));
        remove.and_where(Expr::col("expires_at").lte(self.now()));
        let mut take = Query::update();
        take.table(session::Entity).value(session::Column::Owner, id);
        take.and_where(session::Column::Owner.eq(owner)).and_where(Expr::exists(self.living_owner()).not());
        let take_over = async |transaction: Arc<Transaction>| {
            // From here on it cannot say any more that it lives.
            transaction.execute(&remove).await?;
            Ok(transaction.execute(&take).await?.rows_affected())
        };
        self.transaction(Lock::Nothing, take_over).await
    }

    /// The owner of a session; `None` when it is not there.
    pub(crate) async fn owner_of_session(&self, id: &str) -> Result<Option<Owner>, Error> {
        if is_no_text(id) {
            return Ok(None);
        }
        let mut select = self.owners();
        select.and_where(session::Column::Id.into_expr().eq(id));
        self.read_owner(&select).await
    }

    /// The owner of an execution that has not ended; `None` when there is no such.
    pub(crate) async fn owner_of_execution(&self, id: &str) -> Result<Option<Owner>, Error> {
        if is_no_text(id) {
            return Ok(None);
        }
        let its = Query::select()
            .column(execution::Column::SessionId)
            .from(execution::Entity)
            .and_where(execution::Column::Id.eq(id))
            .and_where(execution::is_in(&ExecutionState::ACTIVE))
            .take();
        let mut select = self.owners();
        select.and_where(Expr::col((session::Entity, session::Column::Id)).in_subquery(its));
        self.read_owner(&select).await
    }

    /// The owners of sessions with what is known of them.
    fn owners(&self) -> SelectStatement {
        let replica = |column: &'static str| Expr::col((TABLE, column));
        let mut select = Query::select();
        select
            .column((session::Entity, session::Column::Owner))
            .expr_as(replica("endpoint"), "endpoint")
            .expr_as(replica("expires_at").gt(self.now()), "lives")
            .from(session::Entity)
            .left_join(TABLE, replica("id").equals((session::Entity, session::Column::Owner)));
        select
    }

    async fn read_owner(&self, select: &SelectStatement) -> Result<Option<Owner>, Error> {
        let row = self.readers.query_one(select).await?;
        let read = |row: QueryResult| {
            Ok::<_, DbErr>(Owner {
                id: row.try_get("", "owner")?,
                endpoint: row.try_get::<Option<String>>("", "endpoint")?.unwrap_or_default(),
                lives: row.try_get::<Option<bool>>("", "lives")?.unwrap_or(false),
            })
        };
        Ok(row.map(read).transpose()?)
    }

    /// The living owner of the session of the statement around it.
    fn living_owner(&self) -> SelectStatement {
        Query::select()
            .expr(Expr::val(1))
            .from(TABLE)
            .and_where(Expr::col((TABLE, "id")).equals((session::Entity, session::Column::Owner)))
            .and_where(Expr::col((TABLE, "expires_at")).gt(self.now()))
            .take()
    }

    pub(super) fn now(&self) -> Expr {
        now(self.readers.get_database_backend())
    }

    pub(super) fn end(&self, term: Duration) -> Expr {
        self.now().add(i64::try_from(term.as_micros()).unwrap_or(i64::MAX))
    }
}
