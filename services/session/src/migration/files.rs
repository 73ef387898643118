//! Files: how a workspace is saved, and what executions made.

#![expect(elided_lifetimes_in_paths, reason = "the trait's own form, which an implementation must match")]

use sandmesh_mesh::database::{Steps, columns::json_null};
use sea_orm_migration::{prelude::*, schema::string_len};

use super::IN_TRANSACTION;

pub(super) struct Files;

impl MigrationName for Files {
    fn name(&self) -> &'static str {
        "m0004_files"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Files {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let steps = Steps::new(manager);
        steps.column("sessions", string_len("workspace", 64).default("").take()).await?;
        steps.column("executions", json_null(manager.get_database_backend(), "artifacts")).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.alter_table(Table::alter().table("sessions").drop_column("workspace").take()).await?;
        manager.alter_table(Table::alter().table("executions").drop_column("artifacts").take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}
