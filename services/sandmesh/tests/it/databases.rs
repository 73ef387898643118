//! The whole mesh on each kind of database server, in both wirings: what users do most, and a restart in the
//! middle. On SQLite every other test runs.

use sandmesh_mesh::database::testing::Kind;

use crate::harness::{ON, Wiring};

macro_rules! on {
    ($name:ident: $kind:ident, $wiring:ident, $($module:ident::$body:ident),+ $(,)?) => {
        mod $name {
            use super::{Kind, ON, Wiring};

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn $body() {
                ON.scope(Kind::$kind, crate::$module::$body(Wiring::$wiring)).await;
            })+
        }
    };
}

/// Makes a test of each body on each kind of database server, in each wiring.
macro_rules! on_every_server {
    ($($module:ident::$body:ident),+ $(,)?) => {
        on!(mariadb_embedded: MariaDb, Embedded, $($module::$body),+);
        on!(mariadb_split: MariaDb, Split, $($module::$body),+);
        on!(postgres_embedded: Postgres, Embedded, $($module::$body),+);
        on!(postgres_split: Postgres, Split, $($module::$body),+);
    };
}

on_every_server!(
    behaviours_templates::fresh_server_is_healthy_and_has_the_basic_templates,
    behaviours_templates::template_update_changes_only_what_it_names,
    behaviours_sessions::session_id_and_request_id_are_taken_once,
    behaviours_sessions::sessions_are_listed_newest_first_by_page_and_filter,
    behaviours_sessions::deleted_session_is_forgotten_with_its_executions,
    behaviours_results::return_value_keeps_its_type_and_its_falsy_values,
    behaviours_results::unicode_passes_unchanged,
    grpc_executions::repeated_execute_attaches_to_the_first_run,
    crash::killed_server_loses_no_execution_and_runs_none_twice,
);
