//! Files: how a workspace is saved, and what executions made.

use sea_orm_migration::{
    prelude::*,
    schema::{json_null, string_len},
};

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
        let mut workspace = string_len("workspace", 64);
        let sessions = Table::alter().table("sessions").add_column(workspace.default("")).take();
        manager.alter_table(sessions).await?;
        let executions = Table::alter().table("executions").add_column(json_null("artifacts")).take();
        manager.alter_table(executions).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.alter_table(Table::alter().table("sessions").drop_column("workspace").take()).await?;
        manager.alter_table(Table::alter().table("executions").drop_column("artifacts").take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}
