//! The file of a SQLite database, and connections to it.

use std::{
    fs::{DirBuilder, OpenOptions, Permissions},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use sea_orm::{ConnectOptions, Database, DatabaseConnection, sqlx::sqlite::SqliteConnectOptions};

/// Connections for reading.
pub(super) const READERS: u32 = 4;

/// How long a statement waits for another process that holds the database.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pages of SQLite's log of writes after which a writer does the work of `Store::checkpoint`, should that not keep up:
/// 32 MiB.
pub(super) const LOG_PAGES: i32 = 8192;

/// Closes the connection, so that the next is a new one. The driver counts transactions by itself, and where
/// SQLite ended one it counts one too many: what it takes for a part of a transaction from then on is one
/// that it never commits.
pub(super) async fn renew(connection: &DatabaseConnection) {
    if let Ok(connection) = connection.get_sqlite_connection_pool().acquire().await {
        // Where closing fails, it is not used again either.
        let _ = connection.close().await;
    }
}

/// Makes the file of a database, for nobody but us: it holds programs, their input and their output. The
/// files that SQLite puts beside it take over its permissions.
pub(super) fn make_file(url: &str) -> anyhow::Result<()> {
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

pub(super) async fn connect(url: &str, connections: u32) -> Result<DatabaseConnection, sea_orm::DbErr> {
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
                .pragma("wal_autocheckpoint", LOG_PAGES.to_string())
        });
    Database::connect(options).await
}
