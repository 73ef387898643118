//! The database of the session role: its only writer.
//!
//! SQLite takes one writer at a time, so writes queue for one connection instead of failing as busy, and
//! reads have connections of their own. Every change of a state is guarded by the state it leaves.

mod column;
pub(crate) mod execution;
mod install;
mod pen;
mod recovery;
pub(crate) mod session;
mod tally;
mod writer;

use std::{
    collections::HashMap,
    fs::{DirBuilder, OpenOptions, Permissions},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use chrono::{DateTime, Utc};
use sandmesh_mesh::Tasks;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, EntityTrait, Select,
    sqlx::sqlite::SqliteConnectOptions,
};
use sea_orm_migration::MigratorTrait;

pub(crate) use self::column::Instant;
pub(crate) use self::tally::Tally;
use self::{pen::Pen, writer::Writer};
use crate::{error::Error, migration::Migrator};

/// Connections for reading.
const READERS: u32 = 4;

/// How long a statement waits for another process that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The database of the session role. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    writer: Writer,
    /// For the writes of executions.
    pen: Arc<Pen>,
    readers: DatabaseConnection,
    /// What ended since this process started.
    tally: Arc<Tally>,
    /// When sessions were used last, as far as it is not written yet.
    uses: Arc<Mutex<HashMap<String, DateTime<Utc>>>>,
}

/// Where a page begins: after this row.
#[derive(Debug, Clone)]
pub(crate) struct Position {
    pub(crate) created_at: Instant,
    pub(crate) id: String,
}

/// Which rows of a list are wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    pub(crate) after: Option<Position>,
    pub(crate) offset: u64,
    pub(crate) limit: u64,
}

impl Store {
    /// Opens a database and brings it to the newest shape. What is being written is among `tasks`.
    pub(crate) async fn open(url: &str, tasks: Tasks) -> anyhow::Result<Self> {
        let open = || format!("setting `session.database_url`: cannot open `{url}`");
        make_file(url).with_context(open)?;
        let writer = connect(url, 1).await.with_context(open)?;
        Migrator::up(&writer, None).await.with_context(|| format!("cannot migrate `{url}`"))?;
        let readers = connect(url, READERS).await.with_context(open)?;
        let writer = Writer::new(writer);
        let pen = Arc::new(Pen::new(tasks, writer.clone()));
        Ok(Self { writer, pen, readers, tally: Arc::default(), uses: Arc::default() })
    }

    /// Moves what was written from the log of writes into the database, without holding up who reads or
    /// writes. Left to itself, SQLite does that in the middle of somebody's write.
    pub(crate) async fn checkpoint(&self) -> Result<(), Error> {
        self.readers.execute_unprepared("PRAGMA wal_checkpoint(PASSIVE)").await?;
        Ok(())
    }

    /// What ended since this process started.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Asks the database whether it answers, for reading and for writing.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        self.readers.execute_unprepared("SELECT 1").await?;
        self.writer.lock().await.execute_unprepared("SELECT 1").await?;
        Ok(())
    }
}

/// The one row that a unique index lets through. There is no LIMIT: SQLite prepares a statement anew for each
/// value that its LIMIT is given, which costs more than all the rest.
async fn only<E: EntityTrait>(
    select: Select<E>,
    connection: &impl ConnectionTrait,
) -> Result<Option<E::Model>, Error> {
    Ok(select.all(connection).await?.pop())
}

/// How a transaction of the writer went. After one that failed the writer has a new connection.
async fn settled<T>(writer: &DatabaseConnection, done: Result<T, Error>) -> Result<T, Error> {
    if done.is_err() {
        renew(writer).await;
    }
    done
}

/// Closes the connection, so that the next is a new one. The driver counts transactions by itself, and where
/// SQLite ended one it counts one too many: what it takes for a part of a transaction from then on is one
/// that it never commits.
async fn renew(connection: &DatabaseConnection) {
    if let Ok(connection) = connection.get_sqlite_connection_pool().acquire().await {
        // Where closing fails, it is not used again either.
        let _ = connection.close().await;
    }
}

/// Makes the file of a database, for nobody but us: it holds programs, their input and their output. The
/// files that SQLite puts beside it take over its permissions.
fn make_file(url: &str) -> anyhow::Result<()> {
    let options: SqliteConnectOptions = url.parse()?;
    let path = options.get_filename();
    if path.to_string_lossy().starts_with("file:") {
        // In memory.
        return Ok(());
    }
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        close_to_others(Path::new(&file), 0o600)?;
    }
    Ok(())
}

/// Takes a file or directory that is there away from everybody but its owner.
pub(crate) fn close_to_others(path: &Path, mode: u32) -> std::io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if found.permissions().mode() & 0o077 != 0 => {
            std::fs::set_permissions(path, Permissions::from_mode(mode))
        }
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn connect(url: &str, connections: u32) -> Result<DatabaseConnection, sea_orm::DbErr> {
    let mut options = ConnectOptions::new(url);
    options
        .min_connections(1)
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .sqlx_logging(false)
        .record_stmt_in_spans(false)
        .map_sqlx_sqlite_opts(|options| {
            options
                .create_if_missing(true)
                .foreign_keys(true)
                .busy_timeout(BUSY_TIMEOUT)
                .pragma("journal_mode", "WAL")
                // In WAL mode a crash of the program loses nothing, a loss of power at most the last commits.
                .pragma("synchronous", "NORMAL")
                // Pages of its log after which a writer does the work of `Store::checkpoint`, should that not
                // keep up: 32 MiB.
                .pragma("wal_autocheckpoint", "8192")
        });
    Database::connect(options).await
}

#[cfg(test)]
mod tests;
