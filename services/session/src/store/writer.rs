//! The one connection that writes, and whose turn it is.
//!
//! A pool looks at each connection that comes back to it, which is another way to the database and back. The
//! pen, which writes most, therefore keeps the connection; when others write, it goes back to the pool.

use std::{ops::Deref, sync::Arc};

use sandmesh_mesh::Database;
use sea_orm::{
    ConnAcquireErr, DbErr, RuntimeErr,
    sqlx::{self, Sqlite, pool::PoolConnection},
};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// The connection that writes. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    /// Of one connection.
    pool: Database,
    /// The connection, as long as nobody but the pen has written since.
    kept: Arc<Mutex<Option<PoolConnection<Sqlite>>>>,
}

/// The right to write, for anybody but the pen.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pool: &'a Database,
    _turn: Option<OwnedMutexGuard<Option<PoolConnection<Sqlite>>>>,
}

impl<'a> Turn<'a> {
    /// Where nobody needs to wait for the others.
    pub(super) fn of_many(pool: &'a Database) -> Self {
        Self { pool, _turn: None }
    }
}

/// The right to write, for the pen. The connection is kept only when it is put back.
pub(super) struct PenTurn(OwnedMutexGuard<Option<PoolConnection<Sqlite>>>);

impl Writer {
    /// With the one connection of this pool.
    pub(super) fn new(pool: Database) -> Self {
        Self { pool, kept: Arc::default() }
    }

    /// Waits for its turn to write.
    pub(crate) async fn lock(&self) -> Turn<'_> {
        let mut turn = Arc::clone(&self.kept).lock_owned().await;
        *turn = None;
        Turn { pool: &self.pool, _turn: Some(turn) }
    }

    /// Waits for the pen's turn to write, and for the connection.
    pub(super) async fn take(&self) -> Result<(PenTurn, PoolConnection<Sqlite>), DbErr> {
        let mut turn = Arc::clone(&self.kept).lock_owned().await;
        let connection = match turn.take() {
            Some(connection) => connection,
            None => {
                self.pool.connection().get_sqlite_connection_pool().acquire().await.map_err(no_connection)?
            }
        };
        Ok((PenTurn(turn), connection))
    }
}

impl PenTurn {
    /// Keeps the connection for the next time.
    pub(super) fn put_back(mut self, connection: PoolConnection<Sqlite>) {
        *self.0 = Some(connection);
    }
}

impl Deref for Turn<'_> {
    type Target = Database;

    fn deref(&self) -> &Self::Target {
        self.pool
    }
}

fn no_connection(error: sqlx::Error) -> DbErr {
    match error {
        sqlx::Error::PoolTimedOut => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
        sqlx::Error::PoolClosed => DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed),
        error => DbErr::Conn(RuntimeErr::SqlxError(error.into())),
    }
}
