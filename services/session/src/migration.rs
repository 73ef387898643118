//! The tables of the session role, in the words of every database that sea-orm speaks.
//!
//! Written once and never edited after a release: a change is another migration.

#![expect(elided_lifetimes_in_paths, reason = "the trait's own form, which an implementation must match")]

mod dependencies;
mod files;
mod m0007_recovery;

use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, big_integer_null, boolean, integer, integer_null, json, json_null, string_len, text,
        text_null,
    },
    sea_orm::sea_query::{ConditionalStatement, DynIden},
};

/// Brings a database to the newest shape.
pub(crate) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(Sessions),
            Box::new(Executions),
            Box::new(FewerIndexes),
            Box::new(files::Files),
            Box::new(dependencies::Dependencies),
            Box::new(m0007_recovery::Recovery),
        ]
    }

    /// Roles may share a database, so each has a table of its own for what was applied.
    fn migration_table_name() -> DynIden {
        "session_migrations".into_iden()
    }
}

/// All of a migration or nothing of it: one that was stopped halfway could not be made again. By default only
/// Postgres has it so.
const IN_TRANSACTION: Option<bool> = Some(true);

struct Sessions;

impl MigrationName for Sessions {
    fn name(&self) -> &'static str {
        "m0001_sessions"
    }
}

fn string_len_null(name: &'static str, len: u32) -> ColumnDef {
    ColumnDef::new(name).string_len(len).null().take()
}

fn index(table: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    let mut index = Index::create();
    index.name(format!("idx_{table}_{}", columns.join("_"))).table(table);
    for column in columns {
        index.col(*column);
    }
    index.take()
}

fn sessions() -> TableCreateStatement {
    Table::create()
        .table("sessions")
        .col(string_len("id", 64).primary_key())
        .col(string_len("template_id", 64))
        .col(string_len("state", 16))
        .col(text("status_reason"))
        .col(string_len_null("request_id", 128))
        .col(json("resources"))
        .col(json_null("isolation"))
        .col(string_len("image", 512))
        .col(text("workspace_path"))
        .col(string_len("runtime_type", 32))
        .col(string_len("language_runtime", 64))
        .col(string_len("node_id", 255))
        .col(string_len("sandbox_id", 64))
        .col(text("endpoint"))
        .col(boolean("sandbox_removed"))
        .col(json("env"))
        .col(json("labels"))
        .col(text("python_package_index_url"))
        .col(integer("timeout_seconds"))
        .col(integer("idle_timeout_seconds"))
        .col(big_integer("created_at"))
        .col(big_integer("updated_at"))
        .col(big_integer("last_activity_at"))
        .col(big_integer("expires_at"))
        .col(big_integer_null("completed_at"))
        .col(big_integer_null("deleted_at"))
        .take()
}

#[async_trait::async_trait]
impl MigrationTrait for Sessions {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(sessions()).await?;
        // Any number of rows without a request id: NULL is equal to nothing.
        manager.create_index(index("sessions", &["request_id"]).unique().take()).await?;
        manager.create_index(index("sessions", &["created_at", "id"])).await?;
        manager.create_index(index("sessions", &["state", "sandbox_removed"])).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("sessions").take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}

struct Executions;

impl MigrationName for Executions {
    fn name(&self) -> &'static str {
        "m0002_executions"
    }
}

fn executions() -> TableCreateStatement {
    let session = ForeignKey::create()
        .name("fk_executions_session_id")
        .from("executions", "session_id")
        .to("sessions", "id")
        .on_delete(ForeignKeyAction::Cascade)
        .take();
    Table::create()
        .table("executions")
        .col(string_len("id", 64).primary_key())
        .col(string_len("session_id", 64))
        .col(string_len_null("request_id", 128))
        .col(string_len("state", 16))
        .col(string_len_null("cause", 16))
        .col(text("cause_detail"))
        .col(string_len_null("language", 16))
        .col(string_len_null("mode", 16))
        .col(text_null("code"))
        .col(text_null("event"))
        .col(blob_null("stdin"))
        .col(boolean("keep_stdin_open"))
        .col(string_len("entrypoint", 128))
        .col(json("command"))
        .col(json("env"))
        .col(integer("timeout_seconds"))
        .col(integer_null("exit_code"))
        .col(integer_null("signal"))
        .col(blob("stdout"))
        .col(big_integer("stdout_kept"))
        .col(boolean("stdout_truncated"))
        .col(blob("stderr"))
        .col(big_integer("stderr_kept"))
        .col(boolean("stderr_truncated"))
        .col(text_null("return_value"))
        .col(big_integer_null("return_value_bytes"))
        .col(json_null("error"))
        .col(json_null("metrics"))
        .col(string_len("object_prefix", 192))
        .col(integer("retry_count"))
        .col(big_integer("created_at"))
        .col(big_integer_null("started_at"))
        .col(big_integer_null("completed_at"))
        .foreign_key(&mut session.clone())
        .take()
}

fn blob(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).blob().not_null().take()
}

fn blob_null(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).blob().null().take()
}

#[async_trait::async_trait]
impl MigrationTrait for Executions {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(executions()).await?;
        manager.create_index(index("executions", &["session_id", "request_id"]).unique().take()).await?;
        manager.create_index(index("executions", &["session_id", "created_at", "id"])).await?;
        manager.create_index(index("executions", &["state", "session_id"])).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("executions").take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}

/// Indexes with only the rows that are looked for: each row of each index is a page to be written.
struct FewerIndexes;

impl MigrationName for FewerIndexes {
    fn name(&self) -> &'static str {
        "m0003_fewer_indexes"
    }
}

const REQUEST: &str = "idx_executions_session_id_request_id";
const STATE: &str = "idx_executions_state_session_id";
const ACTIVE: &str = "idx_executions_active";

#[async_trait::async_trait]
impl MigrationTrait for FewerIndexes {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for old in [REQUEST, STATE] {
            manager.drop_index(Index::drop().name(old).table("executions").to_owned()).await?;
        }
        let mut request = index("executions", &["session_id", "request_id"]);
        request.unique().cond_where(Expr::col("request_id").is_not_null());
        manager.create_index(request).await?;
        let mut active = index("executions", &["session_id"]);
        active.name(ACTIVE).cond_where(Expr::cust("state IN ('pending', 'running')"));
        manager.create_index(active).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for new in [REQUEST, ACTIVE] {
            manager.drop_index(Index::drop().name(new).table("executions").to_owned()).await?;
        }
        manager.create_index(index("executions", &["session_id", "request_id"]).unique().take()).await?;
        manager.create_index(index("executions", &["state", "session_id"])).await
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}

#[cfg(test)]
mod tests {
    use sea_orm_migration::sea_orm::Database;

    use super::*;

    #[tokio::test]
    async fn migration_that_was_stopped_halfway_is_made_by_the_next_start() {
        let last_steps = [
            (0, "idx_sessions_state_sandbox_removed"),
            (1, STATE),
            (2, ACTIVE),
            (4, "idx_sessions_install_state"),
        ];
        for (before, last_step) in last_steps {
            let directory = tempfile::tempdir().unwrap();
            let url = format!("sqlite://{}/session.db?mode=rwc", directory.path().display());
            let database = Database::connect(url).await.unwrap();
            Migrator::up(&database, Some(before)).await.unwrap();
            // What takes the name of its last step stops it there.
            database.execute_unprepared(&format!("CREATE TABLE {last_step} (x)")).await.unwrap();
            Migrator::up(&database, Some(1)).await.unwrap_err();
            database.execute_unprepared(&format!("DROP TABLE {last_step}")).await.unwrap();
            Migrator::up(&database, None).await.unwrap();
        }
    }

    #[tokio::test]
    async fn rows_of_before_the_recovery_of_sessions_get_what_they_had_in_effect() {
        let database = Database::connect("sqlite::memory:").await.unwrap();
        let migrations = Migrator::migrations();
        let (recovery, _) = (0u32..).zip(&migrations).find(|(_, m)| m.name() == "m0007_recovery").unwrap();
        Migrator::up(&database, Some(recovery)).await.unwrap();
        let columns = "id, template_id, state, status_reason, resources, image, workspace_path, runtime_type, \
                       language_runtime, node_id, sandbox_id, endpoint, sandbox_removed, env, labels, \
                       python_package_index_url, timeout_seconds, idle_timeout_seconds, created_at, updated_at, \
                       last_activity_at, expires_at";
        let values = "'s', 't', 'running', '', '{}', '', '', '', '', '', 'sbx', '', 0, '{}', '{}', '', 1, 0, 1, 1, 1, 1";
        let insert = format!("INSERT INTO sessions ({columns}) VALUES ({values})");
        database.execute_unprepared(&insert).await.unwrap();
        Migrator::up(&database, None).await.unwrap();
        let read = "SELECT id FROM sessions WHERE recoveries = 0 AND loss IS NULL AND creating_since IS NULL";
        let rows = database
            .query_all_raw(sea_orm_migration::sea_orm::Statement::from_string(
                database.get_database_backend(),
                read,
            ))
            .await
            .unwrap();
        assert_eq!(rows.len(), 1);
    }
}
