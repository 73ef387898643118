//! The tables of the template role. Its migrations are counted in a table of its own, so that several
//! roles can share one database.

use sandmesh_mesh::database::{
    Steps,
    columns::{json, json_null, text, time},
};
use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, boolean, string_len},
    sea_orm::DbBackend,
};

/// The migrations, oldest first.
#[derive(Debug)]
pub(crate) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(CreateTemplates), Box::new(AddPoolProfiles)]
    }

    fn migration_table_name() -> DynIden {
        "template_migrations".into_iden()
    }
}

struct CreateTemplates;

impl MigrationName for CreateTemplates {
    fn name(&self) -> &'static str {
        "m20261122_000001_create_templates"
    }
}

#[expect(elided_lifetimes_in_paths, reason = "the trait is written so, and the two must agree")]
#[async_trait::async_trait]
impl MigrationTrait for CreateTemplates {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let (steps, backend) = (Steps::new(manager), manager.get_database_backend());
        steps.table("templates", templates(backend)).await?;
        steps.table("template_seedings", seedings(backend)).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("template_seedings").to_owned()).await?;
        manager.drop_table(Table::drop().table("templates").to_owned()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

fn templates(backend: DbBackend) -> TableCreateStatement {
    Table::create()
        .table("templates")
        .col(string_len("template_id", 64).primary_key())
        .col(string_len("name", 255).unique_key())
        .col(text(backend, "description"))
        .col(string_len("image_url", 512))
        .col(string_len("runtime_type", 32))
        .col(big_integer("cpu_millis"))
        .col(big_integer("memory_bytes"))
        .col(big_integer("disk_bytes"))
        .col(big_integer("max_processes"))
        .col(big_integer("timeout_seconds"))
        .col(json(backend, "env"))
        .col(json(backend, "packages"))
        .col(big_integer("pool_min"))
        .col(big_integer("pool_max"))
        .col(big_integer("pool_buffer"))
        .col(boolean("is_active"))
        .col(big_integer("revision"))
        .col(time(backend, "created_at"))
        .col(time(backend, "updated_at"))
        .take()
}

struct AddPoolProfiles;

impl MigrationName for AddPoolProfiles {
    fn name(&self) -> &'static str {
        "m20261127_000002_add_pool_profiles"
    }
}

#[expect(elided_lifetimes_in_paths, reason = "the trait is written so, and the two must agree")]
#[async_trait::async_trait]
impl MigrationTrait for AddPoolProfiles {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let column = json_null(manager.get_database_backend(), "pool_profiles");
        Steps::new(manager).column("templates", column).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.alter_table(Table::alter().table("templates").drop_column("pool_profiles").take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// One row for each set of seeds that was planted: what a user deletes stays deleted.
fn seedings(backend: DbBackend) -> TableCreateStatement {
    Table::create()
        .table("template_seedings")
        .col(string_len("name", 64).primary_key())
        .col(time(backend, "seeded_at"))
        .take()
}
