//! The connection that the pen writes with. SQLite is called in the very task that writes: to hand a write to another
//! thread, as the driver of the other connections does, and to hear from there how it went takes almost as long again.
//!
//! A task that waits for a disk holds up others. So what may take longer is written where the runtime knows about it
//! and has another thread for the rest of its tasks, which is not for nothing: after a write that took long, after
//! SQLite's log of writes was moved into the database, and when somebody else holds the database.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use rusqlite::{
    Connection, ErrorCode, ToSql, TransactionBehavior, params_from_iter,
    types::{ToSqlOutput, ValueRef},
};
use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, Statement, Value, sqlx::sqlite::SqliteConnectOptions};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::block_in_place,
};

use super::sqlite::{BUSY_TIMEOUT, LOG_PAGES};

/// What a write takes at most where the disk is quick, with the time for which the processor does something else.
const QUICK: Duration = Duration::from_millis(10);

/// How long a slow write makes others be taken for slow.
const SLOW_FOR: Duration = Duration::from_secs(1);

/// The most statements that are written as one would be.
const FEW: usize = 8;

/// How many texts of statements are kept prepared: more than there are.
const PREPARED: usize = 64;

thread_local! {
    /// How many pages SQLite's log of writes had after the last commit of this thread.
    static PAGES: Cell<i32> = const { Cell::new(0) };
}

/// How a statement went: how many rows it changed. [`DbErr::RecordNotInserted`]: a key of it is taken.
pub(super) type Outcome = Result<u64, DbErr>;

/// The connection.
#[derive(Debug)]
pub(super) struct Direct {
    connection: Connection,
    pace: Pace,
    /// How long it waits for somebody else who holds the database.
    pub(super) patience: Duration,
}

/// Whether the next write may be expected to be quick.
#[derive(Debug, Default)]
struct Pace {
    slow_until: Option<Instant>,
    /// Pages in the log of writes.
    pages: i32,
    /// All of the log is in the database: the next write begins it anew, and waits for the disk.
    is_moved: bool,
}

impl Direct {
    /// Connects to a database that is there.
    pub(super) fn open(url: &str) -> anyhow::Result<Self> {
        let options: SqliteConnectOptions = url.parse()?;
        let connection = Connection::open(options.get_filename())?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        // Instead of moving the log into the database in the middle of a commit.
        connection.wal_hook(Some(|_, pages| {
            PAGES.set(pages);
            Ok(())
        }));
        connection.set_prepared_statement_cache_capacity(PREPARED);
        Ok(Self { connection, pace: Pace::default(), patience: BUSY_TIMEOUT })
    }

    /// Somebody else moves the log of writes into the database.
    pub(super) fn log_is_moved(&mut self) {
        self.pace.is_moved = true;
    }

    /// Writes statements in one transaction, or none of them. One whose key is taken leaves the others as they are.
    /// It takes a few microseconds, or holds up this task alone.
    pub(super) fn write(&mut self, statements: &[Statement]) -> Result<Vec<Outcome>, DbErr> {
        // A runtime of one thread, as that of a test, has no other for its tasks.
        let may_wait = Handle::current().runtime_flavor() != RuntimeFlavor::MultiThread;
        if !may_wait && !self.pace.is_slow(statements.len(), Instant::now()) {
            match self.attempt(statements, Duration::ZERO) {
                Err(error) if is_busy(&error) => {}
                done => return done.map_err(|error| failed(&error)),
            }
        }
        let mut patiently = || self.patiently(statements).map_err(|error| failed(&error));
        if may_wait { patiently() } else { block_in_place(patiently) }
    }

    fn patiently(&mut self, statements: &[Statement]) -> Result<Vec<Outcome>, rusqlite::Error> {
        if self.pace.pages >= LOG_PAGES {
            // Nobody writes meanwhile, so all of it is moved, unless somebody reads what was before: then later.
            let _ = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()));
        }
        self.attempt(statements, self.patience)
    }

    /// Writes them, and waits so long at most for others that hold the database.
    fn attempt(
        &mut self,
        statements: &[Statement],
        patience: Duration,
    ) -> Result<Vec<Outcome>, rusqlite::Error> {
        self.connection.busy_timeout(patience)?;
        // As it is where nothing is changed.
        PAGES.set(self.pace.pages);
        let began = Instant::now();
        let outcomes = match statements {
            [statement] => execute(&self.connection, statement).map(|outcome| vec![outcome]),
            _ => together(&mut self.connection, statements),
        };
        self.pace.wrote(PAGES.get(), began.elapsed(), Instant::now());
        outcomes
    }
}

impl Pace {
    fn is_slow(&self, count: usize, now: Instant) -> bool {
        let was_slow = self.slow_until.is_some_and(|until| now < until);
        was_slow || count > FEW || self.is_moved || self.pages >= LOG_PAGES
    }

    fn wrote(&mut self, pages: i32, took: Duration, now: Instant) {
        self.is_moved = false;
        self.pages = pages;
        if took > QUICK {
            self.slow_until = Some(now + SLOW_FOR);
        }
    }
}

fn together(connection: &mut Connection, statements: &[Statement]) -> Result<Vec<Outcome>, rusqlite::Error> {
    // Undone when it is dropped.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let outcomes =
        statements.iter().map(|statement| execute(&transaction, statement)).collect::<Result<_, _>>()?;
    transaction.commit()?;
    Ok(outcomes)
}

fn execute(connection: &Connection, statement: &Statement) -> Result<Outcome, rusqlite::Error> {
    // Its text has no value in it: they are bound.
    let values = statement.values.iter().flat_map(|values| &values.0).map(Bound);
    match connection.prepare_cached(&statement.sql)?.execute(params_from_iter(values)) {
        Ok(changed) => Ok(Ok(changed as u64)),
        Err(error) if is_taken(&error) => Ok(Err(DbErr::RecordNotInserted)),
        Err(error) => Err(error),
    }
}

/// A value as SQLite gets it from the other connections.
struct Bound<'a>(&'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let integer = |number: Option<i64>| number.map_or(ValueRef::Null, ValueRef::Integer);
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Bool(value) => integer(value.map(i64::from)),
            Value::Int(value) => integer(value.map(i64::from)),
            Value::BigInt(value) => integer(*value),
            Value::String(value) => {
                value.as_ref().map_or(ValueRef::Null, |text| ValueRef::Text(text.as_bytes()))
            }
            Value::Bytes(value) => value.as_ref().map_or(ValueRef::Null, |bytes| ValueRef::Blob(bytes)),
            other => return Err(rusqlite::Error::ToSqlConversionFailure(format!("{other:?}").into())),
        }))
    }
}

fn is_taken(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(SQLITE_CONSTRAINT_PRIMARYKEY | SQLITE_CONSTRAINT_UNIQUE))
}

/// Somebody else holds the database.
fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

fn failed(error: &rusqlite::Error) -> DbErr {
    match is_busy(error) {
        true => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
        false => DbErr::Exec(RuntimeErr::Internal(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(50);

    #[test]
    fn few_statements_are_quick_until_one_was_slow_and_again_after_a_while() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert!(!pace.is_slow(FEW, now) && pace.is_slow(FEW + 1, now));
        pace.wrote(1, QUICK, now);
        assert!(!pace.is_slow(1, now));
        pace.wrote(1, QUICK + SHORT, now);
        assert!(pace.is_slow(1, now) && pace.is_slow(1, now + SLOW_FOR - SHORT));
        pace.wrote(1, SHORT, now + SHORT);
        assert!(pace.is_slow(1, now + SHORT) && !pace.is_slow(1, now + SLOW_FOR));
    }

    #[test]
    fn write_after_somebody_moved_the_log_is_slow() {
        let (mut pace, now) = (Pace { is_moved: true, ..Pace::default() }, Instant::now());
        assert!(pace.is_slow(1, now));
        pace.wrote(1, SHORT, now);
        assert!(!pace.is_slow(1, now));
    }

    #[test]
    fn write_that_moves_a_long_log_is_slow() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.wrote(LOG_PAGES - 1, SHORT, now);
        assert!(!pace.is_slow(1, now));
        pace.wrote(LOG_PAGES, SHORT, now);
        assert!(pace.is_slow(1, now));
        pace.wrote(4, SHORT, now);
        assert!(!pace.is_slow(1, now));
    }
}
