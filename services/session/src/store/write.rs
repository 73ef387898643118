//! How the store writes, where there is one writer and where there are several.

use std::{future::Future, sync::Arc};

use sandmesh_mesh::{
    Database,
    database::{Transaction, retried},
};
use sea_orm::{
    ConnectionTrait, DbErr, EntityTrait, QuerySelect, QueryTrait, StatementBuilder, UpdateMany,
    sea_query::{Expr, ExprTrait, Query},
};

use super::{Store, session, sqlite::renew, writer::Turn};
use crate::error::Error;

/// What a transaction holds against the others, so that what it reads is still so when it writes. In SQLite
/// there are no others.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lock<'a> {
    /// Nothing: each of its statements is right alone.
    Nothing,
    /// A session, with the set of its executions.
    Session(&'a str),
    /// The number of sessions.
    Sessions,
}

impl Lock<'_> {
    async fn take(self, transaction: &Transaction) -> Result<(), DbErr> {
        match self {
            Self::Nothing => {}
            Self::Session(id) => {
                let row = session::Entity::find_by_id(id).select_only().column(session::Column::Id);
                row.lock_exclusive().into_tuple::<String>().all(transaction).await?;
            }
            Self::Sessions => {
                // The rest of the transaction sees what whoever had it before has committed.
                let mut turn = Query::update();
                turn.table("session_turns").value("taken", Expr::col("taken").add(1_i64));
                turn.and_where(Expr::col("name").eq("create"));
                transaction.execute(&turn).await?;
            }
        }
        Ok(())
    }
}

impl Store {
    /// Waits for the turn to write, where there is one.
    pub(super) async fn turn(&self) -> Turn<'_> {
        match &self.alone {
            Some(alone) => alone.writer.lock().await,
            None => Turn::of_many(&self.readers),
        }
    }

    /// Writes a statement that changes few rows. Returns how many rows it changed.
    pub(super) async fn write(&self, statement: &impl StatementBuilder) -> Result<u64, DbErr> {
        match &self.alone {
            Some(alone) => alone.pen.write(statement).await,
            None => {
                let backend = self.readers.get_database_backend();
                let written = || self.readers.execute_raw(backend.build(statement));
                Ok(retried(written).await?.rows_affected())
            }
        }
    }

    /// Makes one change of the row of a session. False when none is as it is to be for that.
    pub(super) async fn change(&self, update: UpdateMany<session::Entity>) -> Result<bool, Error> {
        Ok(self.write(&update.into_query()).await? == 1)
    }

    /// As [`Store::write`], for a statement that depends on more than the row that it changes.
    pub(super) async fn write_in(
        &self,
        lock: Lock<'_>,
        statement: &impl StatementBuilder,
    ) -> Result<u64, DbErr> {
        match &self.alone {
            Some(alone) => alone.pen.write(statement).await,
            None => {
                let write = async |transaction: Arc<Transaction>| {
                    Ok(transaction.execute(statement).await?.rows_affected())
                };
                self.transaction(lock, write).await
            }
        }
    }

    /// Makes a transaction of `work`, or nothing of it. It is made again as long as others stand in its way.
    pub(super) async fn transaction<T, F>(
        &self,
        lock: Lock<'_>,
        work: impl Fn(Arc<Transaction>) -> F,
    ) -> Result<T, DbErr>
    where
        F: Future<Output = Result<T, DbErr>>,
    {
        let turn = self.turn().await;
        let database: &Database = &turn;
        let done = retried(|| async {
            let transaction = Arc::new(database.begin().await?);
            let done = async {
                if self.alone.is_none() {
                    lock.take(&transaction).await?;
                }
                work(Arc::clone(&transaction)).await
            };
            let done = done.await;
            match (done, Arc::into_inner(transaction)) {
                (Ok(done), Some(transaction)) => transaction.commit().await.map(|()| done),
                (Err(error), Some(transaction)) => {
                    // At once: what it holds is in the way of others.
                    let _ = transaction.rollback().await;
                    Err(error)
                }
                (done, None) => done.and(Err(DbErr::Custom("a transaction is still in use".to_owned()))),
            }
        });
        let done = done.await;
        if done.is_err() && self.alone.is_some() {
            renew(database.connection()).await;
        }
        done
    }
}
