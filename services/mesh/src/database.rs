//! The database of a role: SQLite, MariaDB or MySQL, or PostgreSQL, by its URL.
//!
//! What is here is what the three differ in: how a pool of connections is made, how long a statement may
//! take, which errors are a reason to try again, and how only one of several processes migrates. Tables and
//! statements belong to the roles. `ARCHITECTURE.md` says what the roles rely on.

pub mod columns;
mod fault;
mod migrate;
mod patience;
mod pool;
#[cfg(any(test, feature = "test-servers"))]
pub mod testing;
mod url;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::Rng;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult, QueryResult,
    RuntimeErr, Statement, TransactionTrait, sea_query::Expr,
};

pub use self::{
    fault::{is_conflict, is_unavailable},
    migrate::Steps,
    patience::patiently,
    pool::PoolSettings,
    url::DatabaseUrl,
};

/// How often a transaction is made that others stood in the way of.
const ATTEMPTS: u32 = 8;

/// A database, as a pool of connections. Cheap to clone.
pub type Database = Limited<DatabaseConnection>;

/// A transaction of a [`Database`], rolled back when it is dropped.
pub type Transaction = Limited<DatabaseTransaction>;

/// A connection whose statements fail when they take too long: a server that hangs must not hang those who
/// ask it.
#[derive(Debug, Clone)]
pub struct Limited<C> {
    connection: C,
    limit: Limit,
}

#[derive(Debug, Clone)]
struct Limit {
    /// How long a statement may take; unset: as long as it takes.
    most: Option<Duration>,
    /// A statement took too long, and none has been answered since.
    stalled: Arc<AtomicBool>,
}

impl Database {
    /// A database whose statements may take as long as they do, as SQLite's: these wait for locks, and have
    /// a time limit for that.
    #[must_use]
    pub fn unlimited(connection: DatabaseConnection) -> Self {
        Self { connection, limit: Limit { most: None, stalled: Arc::default() } }
    }

    /// Connects to a database server.
    ///
    /// # Errors
    /// When it cannot be reached, or does not let us in. The text has no password in it.
    pub async fn connect(url: &DatabaseUrl, settings: &PoolSettings) -> Result<Self, DbErr> {
        let stalled = Arc::default();
        let connection = pool::connect(url, settings, &stalled).await?;
        Ok(Self { connection, limit: Limit { most: Some(settings.statement_timeout), stalled } })
    }

    /// The pool itself, without a time limit.
    #[must_use]
    pub fn connection(&self) -> &DatabaseConnection {
        &self.connection
    }

    /// True for SQLite, which has one writer at a time.
    #[must_use]
    pub fn is_sqlite(&self) -> bool {
        self.get_database_backend() == DbBackend::Sqlite
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// When there is no connection for it.
    pub async fn begin(&self) -> Result<Transaction, DbErr> {
        let connection = self.limit.within(self.connection.begin()).await?;
        Ok(Transaction { connection, limit: self.limit.clone() })
    }
}

impl Transaction {
    /// Makes what was done durable.
    ///
    /// # Errors
    /// When the database does not say so: then it may be done, or not.
    pub async fn commit(self) -> Result<(), DbErr> {
        self.limit.within(self.connection.commit()).await
    }

    /// Undoes what was done.
    ///
    /// # Errors
    /// When the database does not answer; it undoes it all the same.
    pub async fn rollback(self) -> Result<(), DbErr> {
        self.limit.within(self.connection.rollback()).await
    }
}

impl Limit {
    async fn within<T>(&self, work: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
        let Some(most) = self.most else { return work.await };
        match tokio::time::timeout(most, work).await {
            Ok(done) => {
                // One that got no connection says nothing of those that others have.
                if done.is_ok() {
                    self.stalled.store(false, Ordering::Relaxed);
                }
                done
            }
            Err(_) => {
                self.stalled.store(true, Ordering::Relaxed);
                Err(DbErr::Conn(RuntimeErr::Internal(format!("no answer within {most:?}"))))
            }
        }
    }
}

#[async_trait::async_trait]
impl<C: ConnectionTrait + Send> ConnectionTrait for Limited<C> {
    fn get_database_backend(&self) -> DbBackend {
        self.connection.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.limit.within(self.connection.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.limit.within(self.connection.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.limit.within(self.connection.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.limit.within(self.connection.query_all_raw(statement)).await
    }
}

/// The time of a database, which is one for all who use it, in microseconds since 1970.
#[must_use]
pub fn now(backend: DbBackend) -> Expr {
    Expr::cust(match backend {
        DbBackend::MySql => "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)",
        DbBackend::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)",
        _ => "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)",
    })
}

/// Makes a transaction, and once more as long as those of others are in its way.
///
/// # Errors
/// What the last attempt failed with.
pub async fn retried<T, F>(mut transaction: impl FnMut() -> F) -> Result<T, DbErr>
where
    F: Future<Output = Result<T, DbErr>>,
{
    let mut attempt = 1;
    loop {
        match transaction().await {
            Err(error) if attempt < ATTEMPTS && is_conflict(&error) => {
                let pause = rand::rng().random_range(1..=5 << attempt);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                attempt += 1;
            }
            done => return done,
        }
    }
}
