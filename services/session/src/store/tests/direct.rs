use std::time::Duration;

use sea_orm::{ConnectionTrait, TransactionTrait};
use tokio_util::task::TaskTracker;

use super::{execution, file, session, store};
use crate::store::execution::Inserted;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_waits_for_another_process_holds_up_no_other_task() {
    let (store, directory) = store().await;
    store.insert_session(session("s"), 9).await.unwrap();
    let other = sea_orm::Database::connect(file(&directory).expose()).await.unwrap();
    let held = other.begin().await.unwrap();
    held.execute_unprepared("DELETE FROM executions").await.unwrap();
    let tasks = TaskTracker::new();
    let written =
        tasks.spawn(async move { store.insert_execution(&execution("e", "s"), &session("s"), 9).await });
    let others = tasks.spawn(async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    others.await.unwrap();
    assert!(!written.is_finished());
    held.rollback().await.unwrap();
    assert!(matches!(written.await.unwrap().unwrap(), Inserted::New));
}

#[tokio::test]
async fn log_of_writes_does_not_grow_while_nobody_else_moves_it() {
    let (store, directory) = store().await;
    store.insert_session(session("s"), 9).await.unwrap();
    for number in 0..120 {
        let mut row = execution(&format!("e{number}"), "s");
        row.code = Some("#".repeat(1 << 20));
        assert!(matches!(store.insert_execution(&row, &session("s"), 999).await.unwrap(), Inserted::New));
    }
    let log = directory.path().join("deep/er/session.db-wal");
    let length = std::fs::metadata(log).unwrap().len();
    assert!((32 << 20..40 << 20).contains(&length), "{length}");
}
