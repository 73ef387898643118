//! The tables of the template role. Its migrations are counted in a table of its own, so that several
//! roles can share one database.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, boolean, json, string_len, text, timestamp_with_time_zone},
};

/// The migrations, oldest first.
#[derive(Debug)]
pub(crate) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(CreateTemplates)]
    }

    fn migration_table_name() -> DynIden {
        "template_migrations".into_iden()
    }
}

#[derive(DeriveIden)]
enum Templates {
    Table,
    TemplateId,
    Name,
    Description,
    ImageUrl,
    RuntimeType,
    CpuMillis,
    MemoryBytes,
    DiskBytes,
    MaxProcesses,
    TimeoutSeconds,
    Env,
    Packages,
    PoolMin,
    PoolMax,
    PoolBuffer,
    IsActive,
    Revision,
    CreatedAt,
    UpdatedAt,
}

#[derive(DeriveIden)]
enum TemplateSeedings {
    Table,
    Name,
    SeededAt,
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
        manager.create_table(templates()).await?;
        manager.create_table(seedings()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(TemplateSeedings::Table).to_owned()).await?;
        manager.drop_table(Table::drop().table(Templates::Table).to_owned()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

fn templates() -> TableCreateStatement {
    Table::create()
        .table(Templates::Table)
        .col(string_len(Templates::TemplateId, 64).primary_key())
        .col(string_len(Templates::Name, 255).unique_key())
        .col(text(Templates::Description))
        .col(string_len(Templates::ImageUrl, 512))
        .col(string_len(Templates::RuntimeType, 32))
        .col(big_integer(Templates::CpuMillis))
        .col(big_integer(Templates::MemoryBytes))
        .col(big_integer(Templates::DiskBytes))
        .col(big_integer(Templates::MaxProcesses))
        .col(big_integer(Templates::TimeoutSeconds))
        .col(json(Templates::Env))
        .col(json(Templates::Packages))
        .col(big_integer(Templates::PoolMin))
        .col(big_integer(Templates::PoolMax))
        .col(big_integer(Templates::PoolBuffer))
        .col(boolean(Templates::IsActive))
        .col(big_integer(Templates::Revision))
        .col(timestamp_with_time_zone(Templates::CreatedAt))
        .col(timestamp_with_time_zone(Templates::UpdatedAt))
        .to_owned()
}

/// One row for each set of seeds that was planted: what a user deletes stays deleted.
fn seedings() -> TableCreateStatement {
    Table::create()
        .table(TemplateSeedings::Table)
        .col(string_len(TemplateSeedings::Name, 64).primary_key())
        .col(timestamp_with_time_zone(TemplateSeedings::SeededAt))
        .to_owned()
}
