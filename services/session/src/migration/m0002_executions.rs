//! The table of executions.

#![expect(elided_lifetimes_in_paths, reason = "the trait's own form, which an implementation must match")]

use sandmesh_mesh::database::{
    Steps,
    columns::{blob, blob_null, json, json_null, text, text_null},
};
use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, big_integer_null, boolean, integer, integer_null, string_len},
    sea_orm::DbBackend,
};

use super::{IN_TRANSACTION, index, string_len_null};

pub(super) struct Executions;

impl MigrationName for Executions {
    fn name(&self) -> &'static str {
        "m0002_executions"
    }
}

fn executions(backend: DbBackend) -> TableCreateStatement {
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
        .col(text(backend, "cause_detail"))
        .col(string_len_null("language", 16))
        .col(string_len_null("mode", 16))
        .col(text_null(backend, "code"))
        .col(text_null(backend, "event"))
        .col(blob_null(backend, "stdin"))
        .col(boolean("keep_stdin_open"))
        .col(string_len("entrypoint", 128))
        .col(json(backend, "command"))
        .col(json(backend, "env"))
        .col(integer("timeout_seconds"))
        .col(integer_null("exit_code"))
        .col(integer_null("signal"))
        .col(blob(backend, "stdout"))
        .col(big_integer("stdout_kept"))
        .col(boolean("stdout_truncated"))
        .col(blob(backend, "stderr"))
        .col(big_integer("stderr_kept"))
        .col(boolean("stderr_truncated"))
        .col(text_null(backend, "return_value"))
        .col(big_integer_null("return_value_bytes"))
        .col(json_null(backend, "error"))
        .col(json_null(backend, "metrics"))
        .col(string_len("object_prefix", 192))
        .col(integer("retry_count"))
        .col(big_integer("created_at"))
        .col(big_integer_null("started_at"))
        .col(big_integer_null("completed_at"))
        .foreign_key(&mut session.clone())
        .take()
}

#[async_trait::async_trait]
impl MigrationTrait for Executions {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let steps = Steps::new(manager);
        steps.table("executions", executions(manager.get_database_backend())).await?;
        steps.index("executions", index("executions", &["session_id", "request_id"]).unique().take()).await?;
        steps.index("executions", index("executions", &["session_id", "created_at", "id"])).await?;
        steps.index("executions", index("executions", &["state", "session_id"])).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("executions").take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}
