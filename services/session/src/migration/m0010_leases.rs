//! Who does what is to be done by one process.

#![expect(elided_lifetimes_in_paths, reason = "the trait's own form, which an implementation must match")]

use sandmesh_mesh::database::Steps;
use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, string_len},
};

use super::IN_TRANSACTION;

pub(super) struct Leases;

impl MigrationName for Leases {
    fn name(&self) -> &'static str {
        "m0010_leases"
    }
}

fn leases() -> TableCreateStatement {
    Table::create()
        .table("session_leases")
        .col(string_len("name", 64).primary_key())
        .col(string_len("holder", 64))
        .col(big_integer("token"))
        .col(big_integer("expires_at"))
        .take()
}

#[async_trait::async_trait]
impl MigrationTrait for Leases {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        Steps::new(manager).table("session_leases", leases()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("session_leases").take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}
