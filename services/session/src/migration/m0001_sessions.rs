//! The table of sessions.

#![expect(elided_lifetimes_in_paths, reason = "the trait's own form, which an implementation must match")]

use sandmesh_mesh::database::{
    Steps,
    columns::{json, json_null, text},
};
use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, big_integer_null, boolean, integer, string_len},
    sea_orm::DbBackend,
};

use super::{IN_TRANSACTION, index, string_len_null};

pub(super) struct Sessions;

impl MigrationName for Sessions {
    fn name(&self) -> &'static str {
        "m0001_sessions"
    }
}

fn sessions(backend: DbBackend) -> TableCreateStatement {
    Table::create()
        .table("sessions")
        .col(string_len("id", 64).primary_key())
        .col(string_len("template_id", 64))
        .col(string_len("state", 16))
        .col(text(backend, "status_reason"))
        .col(string_len_null("request_id", 128))
        .col(json(backend, "resources"))
        .col(json_null(backend, "isolation"))
        .col(string_len("image", 512))
        .col(text(backend, "workspace_path"))
        .col(string_len("runtime_type", 32))
        .col(string_len("language_runtime", 64))
        .col(string_len("node_id", 255))
        .col(string_len("sandbox_id", 64))
        .col(text(backend, "endpoint"))
        .col(boolean("sandbox_removed"))
        .col(json(backend, "env"))
        .col(json(backend, "labels"))
        .col(text(backend, "python_package_index_url"))
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
        let steps = Steps::new(manager);
        steps.table("sessions", sessions(manager.get_database_backend())).await?;
        // Any number of rows without a request id: NULL is equal to nothing.
        steps.index("sessions", index("sessions", &["request_id"]).unique().take()).await?;
        steps.index("sessions", index("sessions", &["created_at", "id"])).await?;
        steps.index("sessions", index("sessions", &["state", "sandbox_removed"])).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("sessions").take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}
