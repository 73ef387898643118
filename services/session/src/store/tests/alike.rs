//! What databases differ in, and the store must not.

use sea_orm::{IdenStatic, Iterable};

use super::*;
use crate::values::UserError;

on_every_database!(
    ids_are_compared_letter_by_letter,
    text_of_users_is_kept_whatever_is_in_it,
    what_no_id_can_be_is_not_found,
    update_that_changes_nothing_counts_as_one,
    lists_and_sweeps_have_an_index,
);

async fn ids_are_compared_letter_by_letter(kind: Kind) {
    let (store, _database) = store_on(kind).await;
    for id in ["a", "A", "\u{e4}", "a\u{308}"] {
        let row = session::Model { request_id: Some(format!("{id} ")), ..session(id) };
        assert!(matches!(store.insert_session(row, 9).await.unwrap(), session::Inserted::New), "{id}");
        let run = execution::Model { request_id: Some(id.into()), ..execution(&format!("e{id}"), "a") };
        let inserted = store.insert_execution(&run, &session("a"), 9).await.unwrap();
        assert!(matches!(inserted, execution::Inserted::New), "{inserted:?}");
    }
    assert_eq!(store.session("A").await.unwrap().unwrap().id, "A");
    assert!(store.session("a ").await.unwrap().is_none());
    assert!(store.session_of_request("a").await.unwrap().is_none());
    assert_eq!(store.session_of_request("A ").await.unwrap().unwrap().id, "A");
}

async fn text_of_users_is_kept_whatever_is_in_it(kind: Kind) {
    let (store, _database) = store_on(kind).await;
    let labels = Pairs([("\0".to_owned(), "\0\u{1f980}\u{ffff}'\"\\".to_owned())].into());
    let row = session::Model { labels, ..session("s") };
    store.insert_session(row.clone(), 9).await.unwrap();
    assert_eq!(store.session("s").await.unwrap().unwrap(), row);
    let code = "\u{1f980}\u{1}\\'\"%_".repeat(10_000);
    let run = execution::Model {
        code: Some(code.clone()),
        stdin: Some((0..=255).collect()),
        ..execution("e", "s")
    };
    store.insert_execution(&run, &row, 9).await.unwrap();
    let error = UserError { class: "\0".into(), message: "m\0".repeat(20_000), traceback: code };
    let stdout = execution::Recorded { inline: vec![0; 64 << 10], kept: 1 << 40, truncated: true };
    let ending = Ending {
        error: Some(error),
        cause_detail: "a\0b".into(),
        stdout,
        return_value: Some("\"\\u0000\"".into()),
        ..Ending::default()
    };
    let event = ExecutionEvent::Exited { cause: None, success: false };
    assert!(store.end_execution(&run, event, &ending, now()).await.unwrap());
    let expected = ending.onto(run, event, now());
    let expected = execution::Model { cause_detail: "ab".into(), ..expected };
    assert_eq!(store.execution("e").await.unwrap().unwrap(), expected);
}

async fn what_no_id_can_be_is_not_found(kind: Kind) {
    let (store, _database) = store_on(kind).await;
    for id in ["\0", "a\0", "", "%", "'", "\u{1f980}"] {
        assert!(store.session(id).await.unwrap().is_none());
        assert!(store.session_or_deleted(id).await.unwrap().is_none());
        assert!(store.execution(id).await.unwrap().is_none());
        assert!(store.execution_or_deleted(id).await.unwrap().is_none());
        let filter = session::Filter { template_id: Some(id.into()), ..Default::default() };
        assert_eq!(store.sessions(&filter, &Default::default()).await.unwrap().1, 0);
    }
}

async fn update_that_changes_nothing_counts_as_one(kind: Kind) {
    let (store, _database) = store_on(kind).await;
    store.insert_session(session("s"), 9).await.unwrap();
    store.insert_execution(&execution("e", "s"), &session("s"), 9).await.unwrap();
    let pending = "UPDATE executions SET state = 'pending' WHERE id = 'e' AND state = 'pending'";
    let done = store.readers.execute_unprepared(pending).await.unwrap();
    assert_eq!(done.rows_affected(), 1);
}

/// What a statement reads, as its database explains it.
async fn plan(store: &Store, sql: &str) -> String {
    let backend = store.readers.get_database_backend();
    let explain = match backend {
        sea_orm::DbBackend::Sqlite => "EXPLAIN QUERY PLAN",
        _ => "EXPLAIN",
    };
    let statement = Statement::from_string(backend, format!("{explain} {sql}"));
    let rows = store.readers.query_all_raw(statement).await.unwrap();
    let column = match backend {
        sea_orm::DbBackend::Sqlite => "detail",
        sea_orm::DbBackend::Postgres => "QUERY PLAN",
        _ => "key",
    };
    let told = rows.iter().map(|row| row.try_get::<Option<String>>("", column).unwrap().unwrap_or_default());
    told.collect::<Vec<_>>().join("; ")
}

async fn lists_and_sweeps_have_an_index(kind: Kind) {
    let (store, _database) = store_on(kind).await;
    fill(&store).await;
    let of_session = "SELECT * FROM executions WHERE session_id = 's5'";
    let sessions = "SELECT * FROM sessions WHERE deleted_at IS NULL";
    let order = "ORDER BY created_at DESC, id DESC LIMIT 20";
    let active = "state IN ('pending', 'running')";
    let ended = "state IN ('terminated', 'failed', 'timeout', 'completed')";
    for (sql, index) in [
        (format!("{sessions} {order}"), "idx_sessions_listed"),
        (format!("{sessions} AND state = 'failed' {order}"), "state"),
        (format!("{sessions} AND template_id = 't7' {order}"), "idx_sessions_listed_template"),
        (format!("{of_session} {order}"), "idx_executions_session_id_created_at_id"),
        (
            format!("SELECT id FROM sessions WHERE {ended} AND sandbox_removed = FALSE LIMIT 9"),
            "idx_sessions_",
        ),
        (
            "SELECT id FROM sessions WHERE sandbox_removed = TRUE AND completed_at < 1800000000000100
             AND deleted_at IS NULL LIMIT 9"
                .to_owned(),
            "idx_sessions_",
        ),
        (format!("SELECT id FROM executions WHERE {active}"), "idx_executions_"),
        (format!("SELECT COUNT(id) FROM executions WHERE session_id = 's5' AND {active}"), "idx_executions_"),
    ] {
        let plan = plan(&store, &sql).await;
        assert!(plan.contains(index), "{sql}: {plan}");
    }
}

/// So many rows that reading all of them is not the best plan.
async fn fill(store: &Store) {
    for batch in 0..10 {
        fill_sessions(store, batch * 900).await;
    }
    fill_executions(store).await;
    if !store.readers.is_sqlite() {
        let analyse = match store.readers.get_database_backend() {
            sea_orm::DbBackend::MySql => "ANALYZE TABLE sessions, executions",
            _ => "ANALYZE",
        };
        store.readers.execute_unprepared(analyse).await.unwrap();
    }
}

/// Adds nine hundred rows of what `values` selects, with `n` from `first`.
async fn insert_many(store: &Store, first: u32, (table, columns): (&str, &str), values: &str) {
    let numbers = format!(
        "WITH RECURSIVE n(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM n WHERE n < {first} + 899)"
    );
    let sql = match store.readers.get_database_backend() {
        sea_orm::DbBackend::MySql => format!("INSERT INTO {table} ({columns}) {numbers} {values}"),
        _ => format!("{numbers} INSERT INTO {table} ({columns}) {values}"),
    };
    store.turn().await.execute_unprepared(&sql).await.unwrap();
}

/// A word with a number behind it.
fn numbered(store: &Store, word: &str, number: &str) -> String {
    match store.readers.get_database_backend() {
        sea_orm::DbBackend::MySql => format!("CONCAT('{word}', {number})"),
        _ => format!("'{word}' || ({number})"),
    }
}

async fn fill_sessions(store: &Store, first: u32) {
    let values = format!(
        "SELECT {}, {}, CASE WHEN n % 50 = 0 THEN 'failed' ELSE 'running' END, '', '{{}}', '', '', '', '', '',
         {}, '', n % 10 <> 0, '{{}}', '{{}}', '', 1, 0, n, n, n, n, 1800000000000000 + n FROM n",
        numbered(store, "s", "n"),
        numbered(store, "t", "n % 30"),
        numbered(store, "sbx", "n"),
    );
    let columns = "id, template_id, state, status_reason, resources, image, workspace_path, runtime_type,
         language_runtime, node_id, sandbox_id, endpoint, sandbox_removed, env, labels,
         python_package_index_url, timeout_seconds, idle_timeout_seconds, created_at, updated_at,
         last_activity_at, expires_at, completed_at";
    insert_many(store, first, ("sessions", columns), &values).await;
}

/// In each of ten sessions; few of them have not ended.
async fn fill_executions(store: &Store) {
    let owner = session::Model { sandbox_id: "sbx1".to_owned(), ..session("s1") };
    let first = store.insert_execution(&execution("e", "s1"), &owner, 9).await.unwrap();
    assert!(matches!(first, execution::Inserted::New), "{first:?}");
    let quote = match store.readers.get_database_backend() {
        sea_orm::DbBackend::MySql => '`',
        _ => '"',
    };
    let quoted = |column: execution::Column| format!("{quote}{}{quote}", column.as_str());
    let names: Vec<_> = execution::Column::iter().map(quoted).collect();
    let values = execution::Column::iter().map(|column| match column {
        execution::Column::Id => numbered(store, "e", "n"),
        execution::Column::SessionId => numbered(store, "s", "n % 10"),
        execution::Column::State => "CASE WHEN n % 100 = 0 THEN 'pending' ELSE 'completed' END".to_owned(),
        other => quoted(other),
    });
    let values = values.collect::<Vec<_>>().join(", ");
    let select = format!("SELECT {values} FROM executions, n WHERE id = 'e'");
    for batch in 0..4 {
        insert_many(store, batch * 900 + 1, ("executions", &names.join(", ")), &select).await;
    }
}
