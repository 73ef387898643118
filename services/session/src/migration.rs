//! The tables of the session role, in the words of every database that sea-orm speaks.
//!
//! A migration is written once and never edited after a release: a change is another migration, in a file of
//! its own. Its steps look whether they are done: MariaDB and MySQL make each for good at once, so one that
//! is stopped in the middle goes on there.

mod dependencies;
mod files;
mod m0001_sessions;
mod m0002_executions;
mod m0003_fewer_indexes;
mod m0007_recovery;
mod m0008_databases;
mod m0009_replicas;
mod m0010_leases;
mod m0011_warm_start;
mod m0012_image_wait;
#[cfg(test)]
mod tests;

use sea_orm_migration::{prelude::*, sea_orm::sea_query::DynIden};

/// Brings a database to the newest shape.
#[derive(Debug)]
pub(crate) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_sessions::Sessions),
            Box::new(m0002_executions::Executions),
            Box::new(m0003_fewer_indexes::FewerIndexes),
            Box::new(files::Files),
            Box::new(dependencies::Dependencies),
            Box::new(m0007_recovery::Recovery),
            Box::new(m0008_databases::Databases),
            Box::new(m0009_replicas::Replicas),
            Box::new(m0010_leases::Leases),
            Box::new(m0011_warm_start::WarmStart),
            Box::new(m0012_image_wait::ImageWait),
        ]
    }

    /// Roles may share a database, so each has a table of its own for what was applied.
    fn migration_table_name() -> DynIden {
        "session_migrations".into_iden()
    }
}

/// All of a migration or nothing of it, where the database can.
const IN_TRANSACTION: Option<bool> = Some(true);

fn string_len_null(name: &'static str, len: u32) -> ColumnDef {
    ColumnDef::new(name).string_len(len).null().take()
}

/// An index with a name made of its columns.
fn index(table: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    let mut index = Index::create();
    index.name(format!("idx_{table}_{}", columns.join("_"))).table(table);
    for column in columns {
        index.col(*column);
    }
    index.take()
}
