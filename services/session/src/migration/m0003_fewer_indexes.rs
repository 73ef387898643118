//! Indexes with only the rows that are looked for: each row of each index is a page to be written.
//!
//! MariaDB and MySQL have no such indexes, and keep those with all rows.

#![expect(elided_lifetimes_in_paths, reason = "the trait's own form, which an implementation must match")]

use sandmesh_mesh::database::Steps;
use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use super::{IN_TRANSACTION, index};

pub(super) struct FewerIndexes;

impl MigrationName for FewerIndexes {
    fn name(&self) -> &'static str {
        "m0003_fewer_indexes"
    }
}

const REQUEST: &str = "idx_executions_session_id_request_id";
pub(super) const STATE: &str = "idx_executions_state_session_id";
pub(super) const ACTIVE: &str = "idx_executions_active";

#[async_trait::async_trait]
impl MigrationTrait for FewerIndexes {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::MySql {
            return Ok(());
        }
        let steps = Steps::new(manager);
        for old in [REQUEST, STATE] {
            steps.drop_index("executions", old).await?;
        }
        let mut request = index("executions", &["session_id", "request_id"]);
        request.unique().cond_where(Expr::col("request_id").is_not_null());
        steps.index("executions", request).await?;
        let mut active = index("executions", &["session_id"]);
        active.name(ACTIVE).cond_where(Expr::cust("state IN ('pending', 'running')"));
        steps.index("executions", active).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::MySql {
            return Ok(());
        }
        let steps = Steps::new(manager);
        for new in [REQUEST, ACTIVE] {
            steps.drop_index("executions", new).await?;
        }
        steps.index("executions", index("executions", &["session_id", "request_id"]).unique().take()).await?;
        steps.index("executions", index("executions", &["state", "session_id"])).await
    }

    fn use_transaction(&self) -> Option<bool> {
        IN_TRANSACTION
    }
}
