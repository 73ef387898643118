use sandmesh_mesh::{
    Tasks,
    database::testing::{Kind, TestDatabase},
    on_every_database,
};
use sea_orm_migration::{
    prelude::*,
    sea_orm::{Database, DatabaseConnection, DbBackend},
};

use super::{
    Migrator,
    m0003_fewer_indexes::{ACTIVE, STATE},
};
use crate::{
    lifecycle::{ExecutionState, SessionState},
    store::Store,
    tests::patient,
    values::Words,
};

on_every_database!(
    migration_that_was_stopped_halfway_is_made_by_the_next_start,
    migration_that_was_made_and_not_noted_is_noted_by_the_next_start,
    rows_of_the_first_migrations_are_there_after_the_newest,
    processes_that_start_at_once_on_an_empty_database_all_come_up,
    migrations_lead_back_to_an_empty_database,
);

async fn database(kind: Kind) -> (DatabaseConnection, TestDatabase) {
    let database = TestDatabase::create(kind).await;
    let mode = if kind == Kind::Sqlite { "?mode=rwc" } else { "" };
    (Database::connect(format!("{}{mode}", database.url().expose())).await.unwrap(), database)
}

async fn open(database: &TestDatabase) -> Store {
    Store::open(&database.url(), &patient().pool(), Tasks::new()).await.unwrap()
}

async fn migration_that_was_stopped_halfway_is_made_by_the_next_start(kind: Kind) {
    let names: Vec<String> = Migrator::migrations().iter().map(|one| one.name().to_owned()).collect();
    for (name, last_step) in [
        ("m0001_sessions", "idx_sessions_state_sandbox_removed"),
        ("m0002_executions", STATE),
        ("m0003_fewer_indexes", ACTIVE),
        ("m0005_dependencies", "idx_sessions_install_state"),
        ("m0009_replicas", "idx_sessions_owner"),
        ("m0008_databases", "idx_sessions_sandbox_removed_completed_at"),
    ] {
        let before = (0_u32..).zip(&names).find(|(_, known)| *known == name).unwrap().0;
        let (connection, _database) = database(kind).await;
        Migrator::up(&connection, Some(before)).await.unwrap();
        if connection.get_database_backend() == DbBackend::MySql {
            // Names of indexes are those of their table: it is stopped by what was made of it, once more.
            Migrator::up(&connection, Some(1)).await.unwrap();
            let sql = format!("DELETE FROM session_migrations WHERE version = '{name}'");
            connection.execute_unprepared(&sql).await.unwrap();
            let sql = format!("DROP INDEX {last_step} ON sessions");
            let _ = connection.execute_unprepared(&sql).await;
        } else {
            // What takes the name of its last step stops it there.
            connection.execute_unprepared(&format!("CREATE TABLE {last_step} (x int)")).await.unwrap();
            Migrator::up(&connection, Some(1)).await.unwrap_err();
            connection.execute_unprepared(&format!("DROP TABLE {last_step}")).await.unwrap();
        }
        Migrator::up(&connection, None).await.unwrap();
    }
}

async fn migration_that_was_made_and_not_noted_is_noted_by_the_next_start(kind: Kind) {
    let (connection, _database) = database(kind).await;
    for _ in Migrator::migrations() {
        Migrator::up(&connection, Some(1)).await.unwrap();
        let last = "(SELECT last FROM (SELECT MAX(version) AS last FROM session_migrations) AS newest)";
        let forget = format!("DELETE FROM session_migrations WHERE version = {last}");
        connection.execute_unprepared(&forget).await.unwrap();
        Migrator::up(&connection, Some(1)).await.unwrap();
    }
    assert!(Migrator::get_pending_migrations(&connection).await.unwrap().is_empty());
}

/// A session as the first migration has it.
const SESSION: &str = "INSERT INTO sessions
    (id, template_id, state, status_reason, request_id, resources, isolation, image, workspace_path,
     runtime_type, language_runtime, node_id, sandbox_id, endpoint, sandbox_removed, env, labels,
     python_package_index_url, timeout_seconds, idle_timeout_seconds, created_at, updated_at,
     last_activity_at, expires_at, completed_at, deleted_at)
    VALUES ('s', 'python-basic', 'running', '', 'r',
     '{\"cpu_millis\":500,\"memory_bytes\":536870912,\"disk_bytes\":1073741824,\"max_processes\":128}',
     NULL, 'i', '/w', 'process', 'python3.11', 'n', 'sbx', 'unix:/e', FALSE, '{\"A\":\"\\u00fc\"}', '{}', '',
     300, 60, 1800000000123456, 1800000000123456, 1800000000123456, 1800000300123456, NULL, NULL)";

/// An execution as the second migration has it.
const EXECUTION: &str = "INSERT INTO executions
    (id, session_id, request_id, state, cause, cause_detail, language, mode, code, event, stdin,
     keep_stdin_open, entrypoint, command, env, timeout_seconds, exit_code, signal, stdout, stdout_kept,
     stdout_truncated, stderr, stderr_kept, stderr_truncated, return_value, return_value_bytes, error,
     metrics, object_prefix, retry_count, created_at, started_at, completed_at)
    VALUES ('e', 's', NULL, 'failed', NULL, '', 'python', 'handler', 'raise', '{}', NULL, FALSE, '', '[\"a\"]',
     '{}', 30, 1, NULL, 'out', 3, FALSE, 'err', 3, TRUE, 'null', 4,
     '{\"class\":\"ValueError\",\"message\":\"m\",\"traceback\":\"t\"}', NULL, 'sessions/s/e-1', 0,
     1800000000123456, 1800000000200000, 1800000000300000)";

async fn rows_of_the_first_migrations_are_there_after_the_newest(kind: Kind) {
    let (connection, database) = database(kind).await;
    Migrator::up(&connection, Some(1)).await.unwrap();
    let escaped = |sql: &str| match connection.get_database_backend() {
        DbBackend::MySql => sql.replace('\\', "\\\\").replace(" signal,", " `signal`,"),
        _ => sql.to_owned(),
    };
    connection.execute_unprepared(&escaped(SESSION)).await.unwrap();
    Migrator::up(&connection, Some(1)).await.unwrap();
    connection.execute_unprepared(&escaped(EXECUTION)).await.unwrap();
    let store = open(&database).await;
    let session = store.session("s").await.unwrap().unwrap();
    assert_eq!((session.state, session.resources.memory_bytes), (SessionState::Running, 536_870_912));
    assert_eq!((session.env.0["A"].as_str(), session.idle_timeout_seconds), ("\u{fc}", 60));
    assert_eq!((session.recoveries, session.loss, session.creating_since), (0, None, None));
    assert_eq!((session.workspace.as_str(), session.packages.as_ref()), ("", None));
    assert_eq!(session.expires_at.micros(), 1_800_000_300_123_456);
    assert_eq!(store.session_of_request("r").await.unwrap().unwrap(), session);
    let execution = store.execution("e").await.unwrap().unwrap();
    assert_eq!((execution.state, execution.exit_code), (ExecutionState::Failed, Some(1)));
    assert_eq!((execution.stdout.as_slice(), execution.stderr_truncated), (&b"out"[..], true));
    assert_eq!(
        (execution.command, execution.error.unwrap().class.as_str()),
        (Words(vec!["a".into()]), "ValueError")
    );
    assert_eq!((execution.max_retries, execution.retried_at, execution.artifacts), (0, None, None));
    assert_eq!((execution.return_value.as_deref(), execution.signal), (Some("null"), None));
}

async fn processes_that_start_at_once_on_an_empty_database_all_come_up(kind: Kind) {
    let database = TestDatabase::create(kind).await;
    // Only one process may have a SQLite database; the next takes it over as it is.
    let at_once = if kind == Kind::Sqlite { 1 } else { 4 };
    for _ in 0..2 {
        let starts = (0..at_once).map(|_| open(&database));
        for store in futures::future::join_all(starts).await {
            assert!(store.session("s").await.unwrap().is_none());
        }
    }
}

async fn migrations_lead_back_to_an_empty_database(kind: Kind) {
    let (connection, _database) = database(kind).await;
    Migrator::up(&connection, None).await.unwrap();
    Migrator::down(&connection, None).await.unwrap();
    Migrator::up(&connection, None).await.unwrap();
}
