//! Which process of this role a session belongs to.

#![expect(elided_lifetimes_in_paths, reason = "the trait's own form, which an implementation must match")]

use sandmesh_mesh::database::{Steps, columns::text};
use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, string_len},
    sea_orm::DbBackend,
};

use super::{IN_TRANSACTION, index};

pub(super) struct Replicas;

impl MigrationName for Replicas {
    fn name(&self) -> &'static str {
        "m0009_replicas"
    }
}

fn replicas(backend: DbBackend) -> TableCreateStatement {
    Table::create()
        .table("session_replicas")
        .col(string_len("id", 64).primary_key())
        .col(text(backend, "endpoint"))
        .col(big_integer("expires_at"))
        .take()
}

#[async_trait::async_trait]
impl MigrationTrait for Replicas {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let steps = Steps::new(manager);
        steps.table("session_replicas", replicas(manager.get_database_backend())).await?;
        steps.column("sessions", string_len("owner", 64).default("").take()).await?;
        steps.index("sessions", index("sessions", &["owner"])).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        Steps::new(manager).drop_index("sessions", "idx_sessions_owner").await?;
        manager.alter_table(Table::alter().table("sessions").drop_column("owner").take()).await?;
        manager.drop_table(Table::drop().table("session_replicas").take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}
