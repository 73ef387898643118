//! One pen for what is written most: statements that wait for it together go into one transaction.
//!
//! Alone, a statement is its own transaction. When several wait, whoever gets the pen writes for all, so a
//! commit and the pages that they share are paid for once.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, Statement, StatementBuilder, TransactionTrait};
use tokio::sync::oneshot;

/// The most statements in one transaction: a long one makes those wait that come after it.
const TOGETHER: usize = 64;

/// How a statement went: how many rows it changed.
type Outcome = Result<u64, DbErr>;

/// The pen.
#[derive(Default)]
pub(super) struct Pen {
    waiting: Mutex<Vec<Job>>,
    hand: tokio::sync::Mutex<()>,
}

/// A statement, and where to tell how it went.
type Job = (Statement, oneshot::Sender<Outcome>);

impl fmt::Debug for Pen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pen").finish_non_exhaustive()
    }
}

impl Pen {
    /// Writes a statement; it is durable when this returns. Returns how many rows it changed. When the
    /// caller goes away, it may be written or not.
    pub(super) async fn write(
        &self,
        connection: &DatabaseConnection,
        statement: &impl StatementBuilder,
    ) -> Outcome {
        let statement = connection.get_database_backend().build(statement);
        let (done, mut outcome) = oneshot::channel();
        self.waiting().push((statement, done));
        loop {
            tokio::select! {
                biased;
                outcome = &mut outcome => return outcome.unwrap_or_else(|_| Err(lost())),
                _hand = self.hand.lock() => {
                    let jobs = self.take();
                    if jobs.is_empty() {
                        // Whoever had the pen before wrote it, or was stopped at it.
                        return outcome.await.unwrap_or_else(|_| Err(lost()));
                    }
                    write_all(connection, jobs).await;
                }
            }
        }
    }

    /// Those who wait longest.
    fn take(&self) -> Vec<Job> {
        let mut waiting = self.waiting();
        let count = waiting.len().min(TOGETHER);
        waiting.drain(..count).collect()
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Job>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost() -> DbErr {
    DbErr::Custom("the write was stopped halfway".to_owned())
}

/// Writes jobs, and tells each how it went once that is durable.
async fn write_all(connection: &DatabaseConnection, jobs: Vec<Job>) {
    let (statements, told): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
    let outcomes = match statements.len() {
        1 => alone(connection, statements).await,
        _ => together(connection, statements).await,
    };
    let outcomes = outcomes.unwrap_or_else(|error| {
        let failed = |_: &_| Err(DbErr::Custom(error.to_string()));
        told.iter().map(failed).collect()
    });
    for (done, outcome) in told.into_iter().zip(outcomes) {
        // Nobody may be listening any more.
        let _ = done.send(outcome);
    }
}

/// Executes each statement by itself.
async fn alone(connection: &DatabaseConnection, statements: Vec<Statement>) -> Result<Vec<Outcome>, DbErr> {
    let mut outcomes = Vec::with_capacity(statements.len());
    for statement in statements {
        let outcome = connection.execute_raw(statement).await;
        outcomes.push(outcome.map(|done| done.rows_affected()));
    }
    Ok(outcomes)
}

/// Executes statements in one transaction. One that is refused, as for a key that is taken, leaves the
/// others as they are.
async fn together(
    connection: &DatabaseConnection,
    statements: Vec<Statement>,
) -> Result<Vec<Outcome>, DbErr> {
    let transaction = connection.begin().await?;
    let mut outcomes = Vec::with_capacity(statements.len());
    for statement in statements {
        let outcome = transaction.execute_raw(statement).await;
        outcomes.push(outcome.map(|done| done.rows_affected()));
    }
    transaction.commit().await?;
    Ok(outcomes)
}
