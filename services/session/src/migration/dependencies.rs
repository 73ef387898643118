//! `m0005`: what packages a session is to have, and how far that is.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer_null, json_null, text_null},
};

use super::{IN_TRANSACTION, string_len_null};

/// See the module.
pub(super) struct Dependencies;

impl MigrationName for Dependencies {
    fn name(&self) -> &'static str {
        "m0005_dependencies"
    }
}

const STATE: &str = "install_state";
const INDEX: &str = "idx_sessions_install_state";

fn columns() -> [ColumnDef; 6] {
    [
        json_null("packages"),
        string_len_null(STATE, 16),
        text_null("install_error"),
        json_null("installed"),
        big_integer_null("install_started_at"),
        big_integer_null("install_completed_at"),
    ]
}

fn sessions() -> TableAlterStatement {
    Table::alter().table("sessions").take()
}

#[async_trait::async_trait]
impl MigrationTrait for Dependencies {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // One at a time: SQLite takes no more. What is there is what a stop halfway left, where a change of a
        // table is no part of a transaction.
        for mut column in columns() {
            if !manager.has_column("sessions", column.get_column_name()).await? {
                manager.alter_table(sessions().add_column(&mut column).take()).await?;
            }
        }
        if manager.has_index("sessions", INDEX).await? {
            return Ok(());
        }
        manager.create_index(Index::create().name(INDEX).table("sessions").col(STATE).take()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_index(Index::drop().name(INDEX).table("sessions").to_owned()).await?;
        for column in columns() {
            manager.alter_table(sessions().drop_column(column.get_column_name()).take()).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}
