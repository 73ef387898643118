//! The database of the session role, which nobody else writes.
//!
//! SQLite takes one writer at a time, so writes queue for their turn instead of failing as busy, and
//! reads have connections of their own. A database server is written by several processes at once: what
//! reads before it writes holds the row that it depends on. Every change of a state is guarded by the state
//! it leaves.

mod column;
mod direct;
pub(crate) mod execution;
mod install;
mod leases;
mod pen;
pub(crate) mod placement;
mod recovery;
mod replicas;
pub(crate) mod session;
mod sqlite;
mod sweep;
mod tally;
mod text;
mod write;
mod writer;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use anyhow::Context;
use chrono::{DateTime, Utc};
use sandmesh_mesh::{Database, DatabaseUrl, PoolSettings, Tasks};
use sea_orm::{ConnectionTrait, EntityTrait, Select};

pub(crate) use self::{
    column::Instant, leases::Lease, replicas::Owner, sqlite::close_to_others, tally::Tally,
};
use self::{direct::Direct, pen::Pen, write::Lock, writer::Writer};
use crate::{error::Error, migration::Migrator};

/// The database of the session role. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    /// For reading, and for writing where there may be several writers.
    readers: Database,
    /// Whose turn it is to write, where there is one writer.
    alone: Option<Alone>,
    /// The process whose sessions are swept; empty: all of them are.
    owner: Arc<str>,
    /// What ended since this process started.
    tally: Arc<Tally>,
    /// When sessions were used last, as far as it is not written yet.
    uses: Arc<Mutex<HashMap<String, DateTime<Utc>>>>,
}

/// The one writer of a SQLite database.
#[derive(Debug, Clone)]
struct Alone {
    writer: Writer,
    /// For what is one statement.
    pen: Arc<Pen>,
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
    pub(crate) async fn open(url: &DatabaseUrl, pool: &PoolSettings, tasks: Tasks) -> anyhow::Result<Self> {
        let open = || format!("setting `session.database_url`: cannot open `{url}`");
        let migrate = || format!("cannot migrate `{url}`");
        if url.backend() != Some(sea_orm::DbBackend::Sqlite) {
            let readers = Database::connect(url, pool).await.with_context(open)?;
            readers.migrate::<Migrator>().await.with_context(migrate)?;
            return Ok(Self::of(readers));
        }
        let url = url.expose();
        sqlite::make_file(url).with_context(open)?;
        let writer = Database::unlimited(sqlite::connect(url, 1).await.with_context(open)?);
        writer.migrate::<Migrator>().await.with_context(migrate)?;
        let readers = Database::unlimited(sqlite::connect(url, sqlite::READERS).await.with_context(open)?);
        let writer = Writer::new(writer, Direct::open(url).with_context(open)?);
        let pen = Arc::new(Pen::new(tasks, writer.clone()));
        Ok(Self { alone: Some(Alone { writer, pen }), ..Self::of(readers) })
    }

    fn of(readers: Database) -> Self {
        Self { readers, alone: None, owner: "".into(), tally: Arc::default(), uses: Arc::default() }
    }

    /// Others use the database, too: what is made and swept here belongs to the process with this name.
    pub(crate) fn owned_by(self, owner: &str) -> Self {
        Self { owner: owner.into(), ..self }
    }

    /// False where other processes use it, too.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone.is_some()
    }

    /// The name of the process that what is made here belongs to; empty where there is one process.
    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    /// Moves what was written from SQLite's log of writes into the database, without holding up who reads or
    /// writes. Left to itself, SQLite does that in the middle of somebody's write.
    pub(crate) async fn checkpoint(&self) -> Result<(), Error> {
        if let Some(Alone { writer, .. }) = &self.alone {
            self.readers.execute_unprepared("PRAGMA wal_checkpoint(PASSIVE)").await?;
            writer.with_pen(Direct::log_is_moved).await;
        }
        Ok(())
    }

    /// What ended since this process started.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Asks the database whether it answers, for reading and for writing.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        self.readers.execute_unprepared("SELECT 1").await?;
        if self.alone.is_some() {
            self.turn().await.execute_unprepared("SELECT 1").await?;
        }
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

/// What an id or a request cannot be: there is no need to look for it, and Postgres does not take it.
fn is_no_text(text: &str) -> bool {
    text.contains('\0')
}

#[cfg(test)]
mod tests;
