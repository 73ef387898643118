//! What an error of a database means for who asked.

use sea_orm::{DbErr, RuntimeErr, sqlx};
use sqlx::mysql::MySqlDatabaseError;

/// Errors of MariaDB and MySQL that say that this connection is of no use, or that there are too many.
const MYSQL_UNAVAILABLE: [u16; 8] = [1040, 1053, 1077, 1158, 1160, 1203, 1290, 1927];

/// A deadlock, a wait for a lock that took too long, and a row that changed since it was read.
const MYSQL_CONFLICTS: [u16; 3] = [1213, 1205, 1020];

/// SQLite's word for a database that somebody else holds; in higher bits it says why.
const SQLITE_BUSY: u32 = 5;

/// The database may well do later what it does not do now: it is not there, or busy.
#[must_use]
pub fn is_unavailable(error: &DbErr) -> bool {
    match error {
        // No connection is free, or it was lost on the way; not that there is something wrong with it.
        DbErr::ConnectionAcquire(_) | DbErr::Conn(RuntimeErr::Internal(_)) => true,
        _ if is_conflict(error) => true,
        error => match sqlx_error(error) {
            Some(sqlx::Error::Database(error)) => says_unavailable(error.as_ref()),
            Some(
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::BeginFailed
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed,
            ) => true,
            _ => false,
        },
    }
}

/// Another transaction was in the way, and this one was undone: it can be made again.
#[must_use]
pub fn is_conflict(error: &DbErr) -> bool {
    let Some(sqlx::Error::Database(error)) = sqlx_error(error) else { return false };
    match error.try_downcast_ref::<MySqlDatabaseError>() {
        Some(error) => MYSQL_CONFLICTS.contains(&error.number()),
        // Of Postgres: it could not be serialised, a deadlock, a lock that is not available.
        None => error.code().is_some_and(|code| ["40001", "40P01", "55P03"].contains(&&*code)),
    }
}

fn says_unavailable(error: &dyn sqlx::error::DatabaseError) -> bool {
    if let Some(error) = error.try_downcast_ref::<MySqlDatabaseError>() {
        return MYSQL_UNAVAILABLE.contains(&error.number());
    }
    let Some(code) = error.code() else { return false };
    // Of Postgres: the connection broke, the server stops or starts, there are too many connections.
    let postgres = code.len() == 5 && (code.starts_with("08") || code.starts_with("57P") || code == "53300");
    postgres || code.parse::<u32>().is_ok_and(|code| code & 0xff == SQLITE_BUSY)
}

fn sqlx_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}
