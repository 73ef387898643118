//! Migrations that several processes may begin at once, and that may be stopped in the middle.
//!
//! One process migrates, the others wait for it. Where a database has no transaction for a change of
//! tables, a migration that was stopped halfway goes on where it was: each of its steps looks whether it is
//! done.

use anyhow::Context;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement, TransactionTrait};
use sea_orm_migration::{
    MigratorTrait, SchemaManager,
    prelude::{ColumnDef, DbErr, Index, IndexCreateStatement, Table, TableCreateStatement},
};

use super::Database;

/// How many seconds another process may take to migrate.
const LOCK_SECONDS: u32 = 120;

/// The lock among those of the same database; in ASCII it is "sandmesh".
const LOCK: i64 = 0x7361_6e64_6d65_7368;

impl Database {
    /// Brings the tables of a role to their newest shape.
    ///
    /// # Errors
    /// When the database does not, or another process takes too long over it.
    pub async fn migrate<M: MigratorTrait>(&self) -> anyhow::Result<()> {
        let held = self.lock_migrations().await.context("cannot lock the migrations")?;
        let migrated = M::up(&self.connection, None).await;
        if let Some(held) = held {
            // Where this fails the connection is gone, and so is the lock.
            let _ = unlock(held).await;
        }
        Ok(migrated?)
    }

    /// The transaction keeps the connection that has the lock; it changes nothing.
    async fn lock_migrations(&self) -> Result<Option<DatabaseTransaction>, DbErr> {
        let backend = self.get_database_backend();
        let sql = match backend {
            DbBackend::MySql => {
                format!("SELECT GET_LOCK(CONCAT('sandmesh/', DATABASE()), {LOCK_SECONDS}) = 1 AS taken")
            }
            DbBackend::Postgres => format!(
                "SELECT set_config('lock_timeout', '{LOCK_SECONDS}s', true), \
                 pg_advisory_xact_lock({LOCK}) IS NOT NULL AS taken"
            ),
            _ => return Ok(None),
        };
        let held = self.connection.begin().await?;
        let taken = held.query_one_raw(Statement::from_string(backend, sql)).await?;
        match taken.map(|row| row.try_get::<bool>("", "taken")).transpose()? {
            Some(true) => Ok(Some(held)),
            _ => Err(DbErr::Custom(format!("another process migrates for more than {LOCK_SECONDS} s"))),
        }
    }
}

async fn unlock(held: DatabaseTransaction) -> Result<(), DbErr> {
    if held.get_database_backend() == DbBackend::MySql {
        held.execute_unprepared("DO RELEASE_LOCK(CONCAT('sandmesh/', DATABASE()))").await?;
    }
    held.rollback().await
}

/// The steps of one migration: each is made unless it was.
#[expect(missing_debug_implementations, reason = "what it holds has none")]
pub struct Steps<'a>(&'a SchemaManager<'a>);

impl<'a> Steps<'a> {
    /// On this database.
    #[must_use]
    pub fn new(manager: &'a SchemaManager<'a>) -> Self {
        Self(manager)
    }

    /// Makes a table.
    ///
    /// # Errors
    /// When the database does not.
    pub async fn table(&self, name: &str, mut table: TableCreateStatement) -> Result<(), DbErr> {
        if self.0.has_table(name).await? {
            return Ok(());
        }
        self.0.create_table(super::columns::exact(self.0, &mut table).await?).await
    }

    /// Adds a column.
    ///
    /// # Errors
    /// When the database does not.
    pub async fn column(&self, table: &'static str, mut column: ColumnDef) -> Result<(), DbErr> {
        if self.0.has_column(table, column.get_column_name()).await? {
            return Ok(());
        }
        self.0.alter_table(Table::alter().table(table).add_column(&mut column).take()).await
    }

    /// Makes an index, which has a name.
    ///
    /// # Errors
    /// When the database does not.
    pub async fn index(&self, table: &str, index: IndexCreateStatement) -> Result<(), DbErr> {
        let name = index.get_index_spec().get_name().unwrap_or_default().to_owned();
        if self.0.has_index(table, name).await? {
            return Ok(());
        }
        self.0.create_index(index).await
    }

    /// Removes an index.
    ///
    /// # Errors
    /// When the database does not.
    pub async fn drop_index(&self, table: &'static str, name: &str) -> Result<(), DbErr> {
        if !self.0.has_index(table, name).await? {
            return Ok(());
        }
        self.0.drop_index(Index::drop().name(name).table(table).to_owned()).await
    }
}
