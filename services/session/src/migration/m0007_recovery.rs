//! What sessions and executions remember of the loss of a sandbox.

#![expect(elided_lifetimes_in_paths, reason = "the trait's own form, which an implementation must match")]

use sandmesh_mesh::database::Steps;
use sea_orm_migration::{prelude::*, schema::big_integer_null};

use super::{IN_TRANSACTION, string_len_null};

pub(super) struct Recovery;

impl MigrationName for Recovery {
    fn name(&self) -> &'static str {
        "m0007_recovery"
    }
}

/// The tables and the columns that they get.
fn columns() -> [(&'static str, ColumnDef); 5] {
    let count = |name: &'static str| ColumnDef::new(name).integer().not_null().default(0).take();
    [
        ("sessions", count("recoveries")),
        ("sessions", string_len_null("loss", 16)),
        ("sessions", big_integer_null("creating_since")),
        ("executions", count("max_retries")),
        ("executions", big_integer_null("retried_at")),
    ]
}

#[async_trait::async_trait]
impl MigrationTrait for Recovery {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let steps = Steps::new(manager);
        for (table, column) in columns() {
            steps.column(table, column).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, column) in columns() {
            let name = column.get_column_name();
            manager.alter_table(Table::alter().table(table).drop_column(name).take()).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}
