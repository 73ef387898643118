mod alike;
mod direct;
mod replicas;
mod text;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sandmesh_mesh::{
    DatabaseUrl, Tasks,
    database::testing::{Kind, TestDatabase},
    on_every_database,
};
use sea_orm::{ConnectionTrait, Statement, TransactionTrait};
use tempfile::TempDir;

use super::{
    Store,
    execution::{self, Ending},
    session,
};
use crate::{
    error::Error,
    lifecycle::{ExecutionEvent, ExecutionState, SessionEvent, SessionState},
    tests::patient,
    values::{Pairs, Resources, Words},
};

on_every_database!(
    what_was_stored_is_what_is_read_also_by_the_next_process,
    the_first_end_of_an_execution_is_the_end,
    of_two_ends_at_once_one_wins,
    writes_that_wait_together_are_each_told_how_they_went,
    an_ended_session_takes_no_execution_and_no_other_end,
    something_started_since_the_sweep_looked_keeps_a_session_from_being_idle,
    an_execution_of_the_same_id_or_request_is_found_also_by_one_who_comes_too_late,
    deleting_a_session_ends_it_at_once,
    what_was_meant_for_a_session_does_not_reach_one_made_later_with_its_id,
    forgetting_a_session_forgets_its_executions,
);

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 123_456_000).unwrap()
}

async fn store() -> (Store, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (open_file(&directory).await, directory)
}

fn file(directory: &TempDir) -> DatabaseUrl {
    DatabaseUrl::new(format!("sqlite://{}/deep/er/session.db", directory.path().display()))
}

async fn open_file(directory: &TempDir) -> Store {
    Store::open(&file(directory), &patient().pool(), Tasks::new()).await.unwrap()
}

async fn store_on(kind: Kind) -> (Store, TestDatabase) {
    let database = TestDatabase::create(kind).await;
    (open(&database).await, database)
}

async fn open(database: &TestDatabase) -> Store {
    Store::open(&database.url(), &patient().pool(), Tasks::new()).await.unwrap()
}

fn session(id: &str) -> session::Model {
    session::Model {
        id: id.into(),
        template_id: "t".into(),
        state: SessionState::Creating,
        status_reason: String::new(),
        request_id: None,
        resources: Resources { memory_bytes: 1 << 40, ..Resources::default() },
        isolation: None,
        image: String::new(),
        workspace_path: String::new(),
        runtime_type: String::new(),
        language_runtime: "python3.11".into(),
        node_id: String::new(),
        sandbox_id: "sbx".into(),
        endpoint: String::new(),
        sandbox_removed: false,
        env: Pairs([("A".to_owned(), "ü\n\"".to_owned())].into()),
        labels: Pairs::default(),
        python_package_index_url: String::new(),
        timeout_seconds: 300,
        idle_timeout_seconds: 0,
        created_at: now().into(),
        updated_at: now().into(),
        last_activity_at: now().into(),
        expires_at: now().into(),
        completed_at: None,
        recoveries: 0,
        loss: None,
        creating_since: None,
        deleted_at: None,
        owner: String::new(),
        workspace: String::new(),
        packages: None,
        install_state: None,
        install_error: None,
        installed: None,
        install_started_at: None,
        install_completed_at: None,
        warm_start: None,
        image_awaited_at: None,
    }
}

fn execution(id: &str, session_id: &str) -> execution::Model {
    execution::Model {
        id: id.into(),
        session_id: session_id.into(),
        request_id: None,
        state: ExecutionState::Pending,
        cause: None,
        cause_detail: String::new(),
        language: None,
        mode: None,
        code: Some("x".into()),
        event: None,
        stdin: Some(vec![0, 255]),
        keep_stdin_open: false,
        entrypoint: String::new(),
        command: Words(vec!["a".into()]),
        env: Pairs::default(),
        timeout_seconds: 30,
        exit_code: None,
        signal: None,
        stdout: Vec::new(),
        stdout_kept: 0,
        stdout_truncated: false,
        stderr: Vec::new(),
        stderr_kept: 0,
        stderr_truncated: false,
        return_value: None,
        return_value_bytes: None,
        error: None,
        metrics: None,
        object_prefix: String::new(),
        retry_count: 0,
        max_retries: 0,
        retried_at: None,
        created_at: now().into(),
        started_at: None,
        completed_at: None,
        artifacts: None,
    }
}

async fn pragma(store: &Store, name: &str) -> String {
    let statement = Statement::from_string(store.readers.get_database_backend(), format!("PRAGMA {name}"));
    let row = store.turn().await.query_one_raw(statement).await.unwrap().unwrap();
    row.try_get_by_index::<String>(0)
        .or_else(|_| row.try_get_by_index::<i32>(0).map(|n| n.to_string()))
        .unwrap()
}

#[tokio::test]
async fn the_database_is_in_wal_mode_with_foreign_keys() {
    let (store, _directory) = store().await;
    assert_eq!(pragma(&store, "journal_mode").await, "wal");
    assert_eq!(pragma(&store, "synchronous").await, "1");
    assert_eq!(pragma(&store, "foreign_keys").await, "1");
}

async fn what_was_stored_is_what_is_read_also_by_the_next_process(kind: Kind) {
    let (store, database) = store_on(kind).await;
    store.insert_session(session("s"), 9).await.unwrap();
    store.insert_execution(&execution("e", "s"), &session("s"), 9).await.unwrap();
    drop(store);
    let store = open(&database).await;
    assert_eq!(store.session("s").await.unwrap().unwrap(), session("s"));
    assert_eq!(store.execution("e").await.unwrap().unwrap(), execution("e", "s"));
}

async fn the_first_end_of_an_execution_is_the_end(kind: Kind) {
    let (store, _database) = store_on(kind).await;
    store.insert_session(session("s"), 9).await.unwrap();
    store.insert_execution(&execution("e", "s"), &session("s"), 9).await.unwrap();
    let row = execution("e", "s");
    let (store, row, ending) = (&store, &row, Ending::default());
    let end = async |event| store.end_execution(row, event, &ending, now()).await;
    let exited = ExecutionEvent::Exited { cause: None, success: true };
    assert!(store.execution_started("e", now()).await.unwrap());
    assert!(!store.execution_started("e", now()).await.unwrap());
    assert!(end(exited).await.unwrap());
    assert!(!end(ExecutionEvent::Cancelled).await.unwrap());
    assert_eq!(store.execution("e").await.unwrap().unwrap().state, ExecutionState::Completed);
}

async fn of_two_ends_at_once_one_wins(kind: Kind) {
    let (store, _database) = store_on(kind).await;
    store.insert_session(session("s"), 9).await.unwrap();
    for number in 0..20 {
        let row = execution(&format!("e{number}"), "s");
        store.insert_execution(&row, &session("s"), 99).await.unwrap();
        let ending = Ending::default();
        let cancel = store.end_execution(&row, ExecutionEvent::Cancelled, &ending, now());
        let crash = store.end_execution(&row, ExecutionEvent::SandboxLost, &ending, now());
        let (cancel, crash) = tokio::join!(cancel, crash);
        assert!(cancel.unwrap() ^ crash.unwrap());
    }
}

async fn writes_that_wait_together_are_each_told_how_they_went(kind: Kind) {
    let (store, database) = store_on(kind).await;
    store.insert_session(session("s"), 9).await.unwrap();
    // Every third has an id that is taken by the one before it, and the last ones find no place.
    let rows: Vec<_> =
        (0..90).map(|n| execution(&format!("e{}", n - usize::from(n % 3 == 2)), "s")).collect();
    let owner = session("s");
    let inserts = rows.iter().map(|row| store.insert_execution(row, &owner, 50));
    let mut told = (0, 0, 0);
    for inserted in futures::future::join_all(inserts).await {
        match inserted.unwrap() {
            execution::Inserted::New => told.0 += 1,
            execution::Inserted::Repeat(_) => told.1 += 1,
            execution::Inserted::TooMany => told.2 += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((told.0, told.0 + told.1 + told.2), (50, 90), "{told:?}");
    drop(store);
    let store = open(&database).await;
    assert_eq!(store.active_executions().await.unwrap().len(), 50, "what was said to be there is");
}

#[tokio::test]
async fn what_is_active_is_found_without_reading_what_has_ended() {
    let (store, _directory) = store().await;
    let plan = async |sql: &str| {
        let explain = format!("EXPLAIN QUERY PLAN {sql}");
        let statement = Statement::from_string(store.readers.get_database_backend(), explain);
        let rows = store.readers.query_all_raw(statement).await.unwrap();
        rows.iter().map(|row| row.try_get::<String>("", "detail").unwrap()).collect::<Vec<_>>().join("; ")
    };
    let active = "state IN ('pending', 'running')";
    let all = plan(&format!("SELECT id, session_id FROM executions WHERE {active}")).await;
    assert!(all.contains("idx_executions_active"), "{all}");
    let some = format!("SELECT COUNT(id) FROM executions WHERE session_id = ? AND {active}");
    let some = plan(&some).await;
    assert!(some.contains("idx_executions_active"), "{some}");
    let request = "SELECT * FROM executions WHERE session_id = ? AND request_id = ?";
    let request = plan(request).await;
    assert!(request.contains("idx_executions_session_id_request_id"), "{request}");
}

async fn an_ended_session_takes_no_execution_and_no_other_end(kind: Kind) {
    let (store, _database) = store_on(kind).await;
    store.insert_session(session("s"), 9).await.unwrap();
    assert!(store.end_session(&session("s"), SessionEvent::Ended, "why", now()).await.unwrap());
    assert!(!store.end_session(&session("s"), SessionEvent::LifetimeReached, "", now()).await.unwrap());
    assert_eq!(store.session("s").await.unwrap().unwrap().status_reason, "why");
    let inserted = store.insert_execution(&execution("e", "s"), &session("s"), 9).await.unwrap();
    assert!(matches!(inserted, execution::Inserted::NotActive), "{inserted:?}");
}

async fn something_started_since_the_sweep_looked_keeps_a_session_from_being_idle(kind: Kind) {
    let (store, _database) = store_on(kind).await;
    store.insert_session(session::Model { state: SessionState::Running, ..session("s") }, 9).await.unwrap();
    store.insert_execution(&execution("e", "s"), &session("s"), 9).await.unwrap();
    assert!(!store.end_session(&session("s"), SessionEvent::IdleReached, "", now()).await.unwrap());
    let row = execution("e", "s");
    store.end_execution(&row, ExecutionEvent::Cancelled, &Ending::default(), now()).await.unwrap();
    assert!(store.end_session(&session("s"), SessionEvent::IdleReached, "", now()).await.unwrap());
}

async fn an_execution_of_the_same_id_or_request_is_found_also_by_one_who_comes_too_late(kind: Kind) {
    let (store, _database) = store_on(kind).await;
    store.insert_session(session("s"), 9).await.unwrap();
    store.insert_session(session("other"), 9).await.unwrap();
    let first = execution::Model { request_id: Some("r".into()), ..execution("e", "s") };
    store.insert_execution(&first, &session("s"), 1).await.unwrap();
    let mut attempts = vec![first.clone(), execution::Model { id: "f".into(), ..first.clone() }];
    // Neither a limit nor an end hides it.
    for round in 0..2 {
        for attempt in attempts.clone() {
            let inserted = store.insert_execution(&attempt, &session("s"), 1 + round).await.unwrap();
            assert!(matches!(&inserted, execution::Inserted::Repeat(row) if **row == first), "{inserted:?}");
        }
        store.end_session(&session("s"), SessionEvent::Ended, "", now()).await.unwrap();
    }
    let taken = attempts.remove(0);
    let taken = execution::Model { session_id: "other".into(), ..taken };
    let inserted = store.insert_execution(&taken, &session("other"), 9).await.unwrap();
    assert!(matches!(inserted, execution::Inserted::IdTaken), "{inserted:?}");
}

async fn deleting_a_session_ends_it_at_once(kind: Kind) {
    let (store, _database) = store_on(kind).await;
    store.insert_session(session("s"), 9).await.unwrap();
    assert!(store.delete_session(&session("s"), "why", now()).await.unwrap());
    assert!(!store.delete_session(&session("s"), "why", now()).await.unwrap());
    let deleted = store.session_or_deleted("s").await.unwrap().unwrap();
    assert_eq!((deleted.state, deleted.status_reason.as_str()), (SessionState::Terminated, "why"));
    assert_eq!(store.sessions_to_wind_down(9).await.unwrap(), ["s"]);
}

async fn what_was_meant_for_a_session_does_not_reach_one_made_later_with_its_id(kind: Kind) {
    let (store, _database) = store_on(kind).await;
    let former = session::Model { sandbox_id: "former".into(), ..session("s") };
    let removed = session::Model { sandbox_removed: true, ..session("s") };
    store.insert_session(removed.clone(), 9).await.unwrap();
    store.insert_execution(&execution("e", "s"), &removed, 9).await.unwrap();
    store.purge_session(&former).await.unwrap();
    assert!(!store.end_session(&former, SessionEvent::Ended, "", now()).await.unwrap());
    assert!(!store.delete_session(&former, "", now()).await.unwrap());
    let inserted = store.insert_execution(&execution("f", "s"), &former, 9).await.unwrap();
    assert!(matches!(inserted, execution::Inserted::NotActive), "{inserted:?}");
    assert_eq!(store.session("s").await.unwrap().unwrap(), removed);
    assert!(store.execution("e").await.unwrap().is_some());
}

#[tokio::test]
async fn nobody_else_reads_the_database() {
    use std::os::unix::fs::PermissionsExt;
    let (store, directory) = store().await;
    store.insert_session(session("s"), 9).await.unwrap();
    let directory = directory.path().join("deep/er");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    for file in ["session.db", "session.db-wal", "session.db-shm"] {
        assert_eq!(mode(&directory.join(file)), 0o600, "{file}");
    }
}

async fn forgetting_a_session_forgets_its_executions(kind: Kind) {
    let (store, _database) = store_on(kind).await;
    store.insert_session(session("s"), 9).await.unwrap();
    store.insert_execution(&execution("e", "s"), &session("s"), 9).await.unwrap();
    store.purge_session(&session("s")).await.unwrap();
    assert!(store.session("s").await.unwrap().is_some(), "something of it is left");
    store.sandbox_removed(&session("s")).await.unwrap();
    store.purge_session(&session("s")).await.unwrap();
    assert!(store.execution_or_deleted("e").await.unwrap().is_none());
}

#[tokio::test]
async fn a_writer_that_goes_away_takes_no_other_write_with_it() {
    let (store, _directory) = store().await;
    store.insert_session(session("s"), 9).await.unwrap();
    let row = execution("e", "s");
    store.insert_execution(&row, &session("s"), 9).await.unwrap();
    let writer = store.turn().await;
    let held = writer.connection().begin().await.unwrap();
    let (innocent, owner, ending) = (execution("f", "s"), session("s"), Ending::default());
    let mut first = Box::pin(store.execution_started("e", now()));
    let mut second = Box::pin(store.end_execution(&row, ExecutionEvent::Cancelled, &ending, now()));
    let mut third = Box::pin(store.insert_execution(&innocent, &owner, 9));
    assert!(futures::poll!(&mut first).is_pending());
    assert!(futures::poll!(&mut second).is_pending() && futures::poll!(&mut third).is_pending());
    drop(first);
    // Where it wrote for others, it has theirs by now.
    assert!(futures::poll!(&mut second).is_pending());
    drop((second, held, writer));
    assert!(matches!(third.await.unwrap(), execution::Inserted::New));
    assert_eq!(store.execution("e").await.unwrap().unwrap().state, ExecutionState::Cancelled);
}

/// Has SQLite end a transaction by itself in the middle, as it does when the disk is full.
async fn fail_inserts_of(store: &Store, id: &str) {
    let trigger = format!(
        "CREATE TRIGGER full BEFORE INSERT ON executions WHEN NEW.id = '{id}'
         BEGIN SELECT RAISE(ROLLBACK, 'database or disk is full'); END"
    );
    store.turn().await.execute_unprepared(&trigger).await.unwrap();
}

#[tokio::test]
async fn what_is_told_as_failed_with_others_is_not_there() {
    let (store, _directory) = store().await;
    store.insert_session(session("s"), 9).await.unwrap();
    fail_inserts_of(&store, "e3").await;
    let rows: Vec<_> = (0..8).map(|number| execution(&format!("e{number}"), "s")).collect();
    let owner = session("s");
    let inserts = rows.iter().map(|row| store.insert_execution(row, &owner, 50));
    let told = futures::future::join_all(inserts).await;
    assert!(told[3].is_err());
    for (row, told) in rows.iter().zip(told) {
        assert_eq!(store.execution(&row.id).await.unwrap().is_some(), told.is_ok(), "{}", row.id);
    }
}

#[tokio::test]
async fn what_is_written_after_a_transaction_that_failed_is_durable() {
    let (store, directory) = store().await;
    store.insert_session(session("s"), 1).await.unwrap();
    fail_inserts_of(&store, "e1").await;
    let (rows, owner) = ([execution("e0", "s"), execution("e1", "s"), execution("e2", "s")], session("s"));
    let inserts = rows.iter().map(|row| store.insert_execution(row, &owner, 50));
    futures::future::join_all(inserts).await;
    // One more that is rolled back, and then one that is not.
    let refused = store.insert_session(session("other"), 1).await.unwrap();
    assert!(matches!(refused, session::Inserted::QuotaExceeded), "{refused:?}");
    store.insert_execution(&execution("last", "s"), &owner, 50).await.unwrap();
    let other = open_file(&directory).await;
    assert!(other.execution("last").await.unwrap().is_some());
}

#[tokio::test]
async fn what_is_written_after_a_session_that_could_not_be_is_durable() {
    let (store, directory) = store().await;
    store.insert_session(session("s"), 1).await.unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON sessions WHEN NEW.id = 'full'
         BEGIN SELECT RAISE(ROLLBACK, 'database or disk is full'); END";
    store.turn().await.execute_unprepared(full).await.unwrap();
    store.insert_session(session("full"), 9).await.unwrap_err();
    store.insert_session(session("refused"), 1).await.unwrap();
    store.insert_execution(&execution("last", "s"), &session("s"), 50).await.unwrap();
    let other = open_file(&directory).await;
    assert!(other.execution("last").await.unwrap().is_some());
}

/// Writes alone and with others, while nothing can be written, and says how many were told to try again.
async fn told_to_try_again(store: &Store) -> usize {
    let rows: Vec<_> = (0..4).map(|number| execution(&format!("e{number}"), "s")).collect();
    let owner = session("s");
    let mut told = vec![store.insert_execution(&rows[0], &owner, 50).await];
    let inserts = rows[1..].iter().map(|row| store.insert_execution(row, &owner, 50));
    told.extend(futures::future::join_all(inserts).await);
    told.iter().filter(|told| matches!(told, Err(Error::Unavailable(_)))).count()
}

#[tokio::test]
async fn while_another_process_has_the_database_every_writer_is_told_to_try_again() {
    let (store, directory) = store().await;
    store.insert_session(session("s"), 9).await.unwrap();
    store.alone.as_ref().unwrap().writer.with_pen(|direct| direct.patience = Duration::ZERO).await;
    let other = sea_orm::Database::connect(file(&directory).expose()).await.unwrap();
    let held = other.begin().await.unwrap();
    held.execute_unprepared("DELETE FROM executions").await.unwrap();
    assert_eq!(told_to_try_again(&store).await, 4);
}
