//! When the image of a session was being pulled last.

#![expect(elided_lifetimes_in_paths, reason = "the trait's own form, which an implementation must match")]

use sandmesh_mesh::database::Steps;
use sea_orm_migration::{prelude::*, schema::big_integer_null};

use super::IN_TRANSACTION;

pub(super) struct ImageWait;

impl MigrationName for ImageWait {
    fn name(&self) -> &'static str {
        "m0012_image_wait"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for ImageWait {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        Steps::new(manager).column("sessions", big_integer_null("image_awaited_at")).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.alter_table(Table::alter().table("sessions").drop_column("image_awaited_at").take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}
