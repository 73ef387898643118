//! `m0005`: what packages a session is to have, and how far that is.

#![expect(elided_lifetimes_in_paths, reason = "the trait's own form, which an implementation must match")]

use sandmesh_mesh::database::{
    Steps,
    columns::{json_null, text_null},
};
use sea_orm_migration::{prelude::*, schema::big_integer_null, sea_orm::DbBackend};

use super::{IN_TRANSACTION, index, string_len_null};

/// See the module.
pub(super) struct Dependencies;

impl MigrationName for Dependencies {
    fn name(&self) -> &'static str {
        "m0005_dependencies"
    }
}

const STATE: &str = "install_state";

fn columns(backend: DbBackend) -> [ColumnDef; 6] {
    [
        json_null(backend, "packages"),
        string_len_null(STATE, 16),
        text_null(backend, "install_error"),
        json_null(backend, "installed"),
        big_integer_null("install_started_at"),
        big_integer_null("install_completed_at"),
    ]
}

#[async_trait::async_trait]
impl MigrationTrait for Dependencies {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let steps = Steps::new(manager);
        for column in columns(manager.get_database_backend()) {
            steps.column("sessions", column).await?;
        }
        steps.index("sessions", index("sessions", &[STATE])).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let steps = Steps::new(manager);
        steps.drop_index("sessions", "idx_sessions_install_state").await?;
        for column in columns(manager.get_database_backend()) {
            let name = column.get_column_name();
            manager.alter_table(Table::alter().table("sessions").drop_column(name).take()).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}
