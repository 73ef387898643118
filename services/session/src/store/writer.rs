//! Whose turn it is to write.
//!
//! There are two connections that do: one for the pen, which writes most, and one for everybody else, who write through
//! the same driver as to other databases. SQLite has those who write wait for each other by sleeping and looking
//! again, so they take turns before they come to it.

use std::{
    ops::Deref,
    sync::{Arc, PoisonError},
};

use sandmesh_mesh::Database;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::direct::Direct;

/// The right to write, and with what. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    turns: Arc<Mutex<()>>,
    /// Of one connection, for all but the pen.
    pool: Database,
    /// The pen's. Whoever locks it has the turn, so that nobody waits for it who must not.
    direct: Arc<std::sync::Mutex<Direct>>,
}

/// The right to write, for anybody but the pen.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pool: &'a Database,
    _turn: Option<OwnedMutexGuard<()>>,
}

impl<'a> Turn<'a> {
    /// Where nobody needs to wait for the others.
    pub(super) fn of_many(pool: &'a Database) -> Self {
        Self { pool, _turn: None }
    }
}

impl Writer {
    /// With the one connection of this pool, and that of the pen.
    pub(super) fn new(pool: Database, direct: Direct) -> Self {
        Self { turns: Arc::default(), pool, direct: Arc::new(direct.into()) }
    }

    /// Waits for its turn to write.
    pub(crate) async fn lock(&self) -> Turn<'_> {
        Turn { pool: &self.pool, _turn: Some(self.turn().await) }
    }

    /// Waits for the pen's turn, and writes with its connection.
    pub(super) async fn with_pen<T>(&self, write: impl FnOnce(&mut Direct) -> T) -> T {
        let _turn = self.turn().await;
        write(&mut self.direct.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turns).lock_owned().await
    }
}

impl Deref for Turn<'_> {
    type Target = Database;

    fn deref(&self) -> &Self::Target {
        self.pool
    }
}
