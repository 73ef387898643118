//! Whether the sandbox of a session was warm.

#![expect(elided_lifetimes_in_paths, reason = "the trait's own form, which an implementation must match")]

use sandmesh_mesh::database::Steps;
use sea_orm_migration::{prelude::*, schema::boolean_null};

use super::IN_TRANSACTION;

pub(super) struct WarmStart;

impl MigrationName for WarmStart {
    fn name(&self) -> &'static str {
        "m0011_warm_start"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for WarmStart {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        Steps::new(manager).column("sessions", boolean_null("warm_start").take()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.alter_table(Table::alter().table("sessions").drop_column("warm_start").take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}
