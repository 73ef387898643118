//! The templates in the database: this file is the only one that reads or writes their tables.
//!
//! Every write is one statement guarded by what it expects to find, so that replicas of this role need
//! no lock between them.

use std::{path::PathBuf, time::Duration};

use chrono::{DateTime, SubsecRound, Utc};
use sandmesh_mesh::{Database, DatabaseUrl, PoolSettings, database::retried};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait, ConnectOptions, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, EntityTrait,
    PaginatorTrait, QueryFilter, QueryOrder, QuerySelect, SqlErr,
    sea_query::Expr,
    sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous},
};

use crate::{
    migration::Migrator,
    validate::{Fields, Spec},
};

mod entity;

/// The name of the set of templates that a new database starts with.
const BUILTIN: &str = "builtin";

use entity::{seeding, template};

/// Where the templates are.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    db: Database,
}

/// How the database is reached.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Empty for `default_path`.
    pub(crate) url: DatabaseUrl,
    /// The file to use when there is no url. A path, so that no character in it has a meaning.
    pub(crate) default_path: PathBuf,
    /// How connections are pooled; of a SQLite database only how many there are.
    pub(crate) pool: PoolSettings,
    /// How long a write waits for another one to finish.
    pub(crate) busy_timeout: Duration,
}

/// A write or read that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another template has the id.
    #[error("the id is taken")]
    IdTaken,
    /// Another template has the name.
    #[error("the name is taken")]
    NameTaken,
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbErr),
}

/// A template as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Its values.
    pub(crate) fields: Fields,
    /// Counts its changes; an update says which one it started from.
    pub(crate) revision: i64,
    /// When it was created.
    pub(crate) created_at: DateTime<Utc>,
    /// When it was changed last.
    pub(crate) updated_at: DateTime<Utc>,
}

/// Which part of the list is wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    /// Those whose name comes after this one.
    pub(crate) after_name: Option<String>,
    /// Of those, skip this many.
    pub(crate) offset: u64,
    /// And take this many at most.
    pub(crate) size: u64,
}

impl Store {
    /// Connects and brings the tables up to date.
    ///
    /// # Errors
    /// When the database cannot be opened or migrated.
    pub(crate) async fn open(target: &Target) -> anyhow::Result<Self> {
        let server = !target.url.is_empty() && target.url.backend() != Some(DbBackend::Sqlite);
        let db = match server {
            true => Database::connect(&target.url, &target.pool).await?,
            false => Database::unlimited(connect_file(target).await?),
        };
        db.migrate::<Migrator>().await?;
        Ok(Self { db })
    }

    /// Plants `specs` in a database that has no template and never was planted. Returns how many.
    ///
    /// # Errors
    /// When the database fails; then none is planted.
    pub(crate) async fn seed(&self, specs: &[Spec], now: DateTime<Utc>) -> Result<usize, DbErr> {
        if seeding::Entity::find_by_id(BUILTIN).one(&self.db).await?.is_some() {
            return Ok(0);
        }
        retried(|| self.seed_once(specs, now)).await
    }

    async fn seed_once(&self, specs: &[Spec], now: DateTime<Utc>) -> Result<usize, DbErr> {
        let transaction = self.db.begin().await?;
        let marker = seeding::ActiveModel { name: Set(BUILTIN.to_owned()), seeded_at: Set(now) };
        match seeding::Entity::insert(marker).exec_without_returning(&transaction).await {
            // Another process has begun a moment before, and is done.
            Err(error) if is_unique_violation(&error) => return transaction.rollback().await.map(|()| 0),
            inserted => inserted?,
        };
        let fresh = template::Entity::find().count(&transaction).await? == 0;
        if fresh {
            let rows = specs.iter().map(|spec| entity::row(spec, 1, now.trunc_subsecs(6)));
            template::Entity::insert_many(rows).exec_without_returning(&transaction).await?;
        }
        transaction.commit().await?;
        Ok(if fresh { specs.len() } else { 0 })
    }

    /// Stores a new template.
    ///
    /// # Errors
    /// When its id or name is taken, or the database fails.
    pub(crate) async fn insert(&self, spec: &Spec, now: DateTime<Utc>) -> Result<Stored, StoreError> {
        let now = now.trunc_subsecs(6);
        let insert = || template::Entity::insert(entity::row(spec, 1, now));
        match retried(|| insert().exec_without_returning(&self.db)).await {
            Ok(_) => {
                Ok(Stored { fields: spec.fields().clone(), revision: 1, created_at: now, updated_at: now })
            }
            Err(error) if is_unique_violation(&error) => {
                let taken = self.get(&spec.fields().template_id).await?;
                Err(if taken.is_some() { StoreError::IdTaken } else { StoreError::NameTaken })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a template; `None` when there is none with this id.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn get(&self, id: &str) -> Result<Option<Stored>, DbErr> {
        if id.contains('\0') {
            // No id has one, and Postgres does not take it.
            return Ok(None);
        }
        let row = template::Entity::find_by_id(id).one(&self.db).await?;
        row.map(Stored::try_from).transpose()
    }

    /// Reads a page of the templates, ordered by name, and whether there are more after it.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn list(&self, page: &Page) -> Result<(Vec<Stored>, bool), DbErr> {
        let mut query = template::Entity::find().order_by_asc(template::Column::Name);
        if let Some(name) = &page.after_name {
            query = query.filter(template::Column::Name.gt(name.as_str()));
        }
        let mut rows = query.offset(page.offset).limit(page.size + 1).all(&self.db).await?;
        let wanted = usize::try_from(page.size).unwrap_or(usize::MAX);
        let more = rows.len() > wanted;
        rows.truncate(wanted);
        Ok((rows.into_iter().map(Stored::try_from).collect::<Result<_, _>>()?, more))
    }

    /// Counts the templates.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn count(&self) -> Result<u64, DbErr> {
        template::Entity::find().count(&self.db).await
    }

    /// Replaces a template as it was at `before`; `None` when it has been changed or deleted since.
    ///
    /// # Errors
    /// When its new name is taken, or the database fails.
    pub(crate) async fn replace(
        &self,
        before: &Stored,
        spec: &Spec,
        now: DateTime<Utc>,
    ) -> Result<Option<Stored>, StoreError> {
        let now = now.trunc_subsecs(6);
        let revision = before.revision + 1;
        let mut row = entity::row(spec, revision, now);
        row.created_at = Set(before.created_at);
        let update = template::Entity::update_many()
            .set(row)
            .filter(template::Column::TemplateId.eq(spec.fields().template_id.as_str()))
            .filter(template::Column::Revision.eq(before.revision));
        match retried(|| update.clone().exec(&self.db)).await {
            Ok(done) if done.rows_affected == 0 => Ok(None),
            Ok(_) => Ok(Some(Stored {
                fields: spec.fields().clone(),
                revision,
                created_at: before.created_at,
                updated_at: now,
            })),
            Err(error) if is_unique_violation(&error) => Err(StoreError::NameTaken),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a template; false when there is none with this id.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn delete(&self, id: &str) -> Result<bool, DbErr> {
        Ok(retried(|| template::Entity::delete_by_id(id).exec(&self.db)).await?.rows_affected > 0)
    }

    /// Reads from the tables, to see that they can be read.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn ping(&self) -> Result<(), DbErr> {
        let query = template::Entity::find().select_only().expr(Expr::val(1)).limit(1);
        self.db.query_all(&sea_orm::QueryTrait::into_query(query)).await.map(|_| ())
    }
}

async fn connect_file(target: &Target) -> Result<DatabaseConnection, DbErr> {
    let Target { url, default_path, busy_timeout, pool } = target.clone();
    let mut options = ConnectOptions::new(if url.is_empty() { "sqlite:template.db" } else { url.expose() });
    options.max_connections(pool.max_connections).sqlx_logging(false);
    options.map_sqlx_sqlite_opts(move |sqlite| {
        let sqlite = if url.is_empty() { sqlite.filename(&default_path) } else { sqlite };
        sqlite
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(busy_timeout)
    });
    sea_orm::Database::connect(options).await
}

fn is_unique_violation(error: &DbErr) -> bool {
    matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
}

#[cfg(test)]
impl Store {
    /// Makes the database one that cannot be read.
    pub(crate) async fn drop_tables(&self) {
        use sea_orm_migration::MigratorTrait;
        Migrator::down(self.db.connection(), None).await.unwrap();
    }
}
