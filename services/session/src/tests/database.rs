//! What becomes of executions when the database tells of a write that it failed, and it did not.

use sandmesh_proto::session::execution::State;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection};

use super::*;

/// Has the database do a change and tell that it failed, as when the answer to a commit is lost.
async fn lie_about(bench: &Bench, change: &str) -> DatabaseConnection {
    let database = Database::connect(bench.database.url().expose()).await.unwrap();
    let lie = format!("CREATE TRIGGER lie AFTER {change} BEGIN SELECT RAISE(FAIL, 'told by a test'); END");
    database.execute_unprepared(&lie).await.unwrap();
    database
}

#[tokio::test]
async fn large_program_whose_acceptance_is_not_sure_is_kept_and_runs() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let database = lie_about(&bench, "INSERT ON executions").await;
    let code = format!("{}out:done", " ".repeat(100_000));
    let request = pb::StartExecutionRequest { execution_id: "e".into(), ..start(&session.session_id, &code) };
    bench.try_start(request).await.unwrap_err();
    database.execute_unprepared("DROP TRIGGER lie").await.unwrap();
    let accepted = bench.execution("e").await.unwrap();
    let ended = bench.ended(&accepted).await;
    assert_eq!((ended.state(), ended.stdout.as_ref()), (State::Completed, &b"done"[..]));
}

#[tokio::test]
async fn end_that_was_written_and_told_as_failed_is_acknowledged() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let execution = bench.start_in(&session, "gate out:x").await;
    bench.running(&execution).await;
    let _database = lie_about(&bench, "UPDATE ON executions WHEN NEW.state = 'completed'").await;
    let executor = bench.executor(&session);
    executor.open_gate();
    assert_eq!(bench.ended(&execution).await.state(), State::Completed);
    eventually("it is acknowledged", || executor.lock().acknowledged == [execution.execution_id.clone()])
        .await;
}
