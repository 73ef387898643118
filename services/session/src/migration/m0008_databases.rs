//! What several processes on one database server need, and indexes for lists of many sessions.

#![expect(elided_lifetimes_in_paths, reason = "the trait's own form, which an implementation must match")]

use sandmesh_mesh::database::Steps;
use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, string_len},
    sea_orm::{DbBackend, sea_query::ConditionalStatement},
};

use super::{IN_TRANSACTION, index};

pub(super) struct Databases;

impl MigrationName for Databases {
    fn name(&self) -> &'static str {
        "m0008_databases"
    }
}

/// One row for each thing that only one transaction may do at a time.
fn turns() -> TableCreateStatement {
    Table::create()
        .table("session_turns")
        .col(string_len("name", 32).primary_key())
        .col(big_integer("taken"))
        .take()
}

/// Lists are of sessions that are not deleted, newest first: of all, of a state, of a template. And those that
/// are deleted are looked for.
fn of_lists(backend: DbBackend) -> Vec<IndexCreateStatement> {
    let lists: [(&str, &[&str]); 3] = [
        ("idx_sessions_listed", &["created_at", "id"]),
        ("idx_sessions_listed_state", &["state", "created_at", "id"]),
        ("idx_sessions_listed_template", &["template_id", "created_at", "id"]),
    ];
    let named = |name: &str, columns: &[&'static str]| {
        let mut named = index("sessions", columns);
        named.name(name).take()
    };
    if backend == DbBackend::MySql {
        // It has no index of some rows, but takes the order from one that begins with what is NULL.
        return lists.map(|(name, columns)| named(name, &[&["deleted_at"], columns].concat())).into();
    }
    let mut all: Vec<_> = lists.map(|(name, columns)| named(name, columns)).into();
    for listed in &mut all {
        listed.cond_where(Expr::col("deleted_at").is_null());
    }
    let mut deleted = named("idx_sessions_deleted", &["deleted_at"]);
    all.push(deleted.cond_where(Expr::col("deleted_at").is_not_null()).take());
    all
}

const LIST: &str = "idx_sessions_created_at_id";

#[async_trait::async_trait]
impl MigrationTrait for Databases {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let steps = Steps::new(manager);
        steps.table("session_turns", turns()).await?;
        let creation = Query::select().column("name").from("session_turns").take();
        if manager.get_connection().query_one(&creation).await?.is_none() {
            let mut plant = Query::insert();
            plant.into_table("session_turns").columns(["name", "taken"]);
            plant.values_panic(["create".into(), 0_i64.into()]);
            manager.execute(plant).await?;
        }
        for index in of_lists(manager.get_database_backend()) {
            steps.index("sessions", index).await?;
        }
        steps.drop_index("sessions", LIST).await?;
        steps.index("sessions", index("sessions", &["sandbox_removed", "completed_at"])).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let steps = Steps::new(manager);
        steps.index("sessions", index("sessions", &["created_at", "id"])).await?;
        for index in of_lists(manager.get_database_backend())
            .into_iter()
            .chain([index("sessions", &["sandbox_removed", "completed_at"])])
        {
            steps.drop_index("sessions", index.get_index_spec().get_name().unwrap_or_default()).await?;
        }
        manager.drop_table(Table::drop().table("session_turns").take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}
