use sandmesh_proto::{
    executor::Cause,
    session::{execution, session::State},
};

use super::*;

on_every_database!(
    a_session_ends_with_its_lifetime_and_so_does_what_runs,
    an_idle_session_is_completed_but_not_while_something_runs,
    a_session_that_cannot_be_created_in_time_fails,
    an_ended_session_is_forgotten_after_its_retention,
    a_report_of_a_lost_sandbox_is_taken_once_and_only_for_the_right_sandbox,
);

async fn a_session_ends_with_its_lifetime_and_so_does_what_runs() {
    let mut bench = Bench::new().await;
    let session =
        bench.create(pb::CreateSessionRequest { timeout_seconds: Some(60), ..new_session() }).await.unwrap();
    let running = bench.start_in(&session, "out:x forever").await;
    bench.running(&running).await;
    bench.clock.advance(Duration::from_secs(59));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.get(&session.session_id).await.unwrap().state(), State::Running);
    bench.clock.advance(Duration::from_secs(1));
    bench.becomes(&session.session_id, State::Timeout).await;
    let execution = bench.ended(&running).await;
    assert_eq!((execution.state(), execution.cause()), (execution::State::Cancelled, Cause::SessionEnded));
    eventually("the sandbox is removed", || bench.world.lock().sandboxes.is_empty()).await;
}

async fn an_idle_session_is_completed_but_not_while_something_runs() {
    let mut bench = Bench::new().await;
    let request = pb::CreateSessionRequest { idle_timeout_seconds: Some(10), ..new_session() };
    let session = bench.create(request).await.unwrap();
    let running = bench.start_in(&session, "forever").await;
    bench.running(&running).await;
    bench.clock.advance(Duration::from_secs(30));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.get(&session.session_id).await.unwrap().state(), State::Running);
    let cancel = pb::CancelExecutionRequest { execution_id: running.execution_id };
    bench.client.cancel_execution(cancel).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let session = bench.get(&session.session_id).await.unwrap();
    assert_eq!(session.state(), State::Running, "its end was use");
    assert!(session.last_activity_at.unwrap().seconds > session.created_at.unwrap().seconds);
    bench.clock.advance(Duration::from_secs(10));
    bench.becomes(&session.session_id, State::Completed).await;
}

async fn a_session_that_cannot_be_created_in_time_fails() {
    let mut bench = Bench::with(Config { create_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    bench.world.lock().create_errors = std::iter::repeat_n(Status::unavailable("away"), 1000).collect();
    let session = bench.session().await;
    assert_eq!(session.state(), State::Creating);
    bench.clock.advance(Duration::from_secs(60));
    let failed = bench.becomes(&session.session_id, State::Failed).await;
    assert!(failed.status_reason.contains("1m"), "{}", failed.status_reason);
}

async fn an_ended_session_is_forgotten_after_its_retention() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let execution = bench.run(&session, "fill:100000").await;
    let end = pb::TerminateSessionRequest { session_id: session.session_id.clone() };
    bench.client.terminate_session(end).await.unwrap();
    bench.clock.advance(Duration::from_secs(24 * 3600 - 1));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.execution(&execution.execution_id).await.unwrap().stdout.len(), 100_000);
    bench.clock.advance(Duration::from_secs(2));
    let objects = bench.directory.path().join("objects");
    eventually("its output is gone", || std::fs::read_dir(&objects).unwrap().count() == 0).await;
    eventually("nothing is left to do", || bench.service.drivers.of_session(&session.session_id).is_empty())
        .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    refused(bench.get(&session.session_id).await, Code::NotFound, "SESSION_NOT_FOUND");
}

async fn a_report_of_a_lost_sandbox_is_taken_once_and_only_for_the_right_sandbox() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let running = bench.start_in(&session, "out:x forever").await;
    bench.running(&running).await;
    let mut report = pb::ReportSandboxLostRequest {
        session_id: session.session_id.clone(),
        sandbox_id: "sbx_other".into(),
        reason: "the node is gone".into(),
        ..Default::default()
    };
    assert!(!bench.events.report_sandbox_lost(report.clone()).await.unwrap().into_inner().applied);
    report.sandbox_id = session.sandbox_id.clone();
    report.node_id = "another".into();
    assert!(!bench.events.report_sandbox_lost(report.clone()).await.unwrap().into_inner().applied);
    report.node_id = session.node_id.clone();
    assert!(bench.events.report_sandbox_lost(report.clone()).await.unwrap().into_inner().applied);
    assert!(!bench.events.report_sandbox_lost(report).await.unwrap().into_inner().applied);
    let failed = bench.get(&session.session_id).await.unwrap();
    assert_eq!((failed.state(), failed.status_reason.as_str()), (State::Failed, "the node is gone"));
    let execution = bench.ended(&running).await;
    assert_eq!((execution.state(), execution.cause()), (execution::State::Crashed, Cause::ExecutorLost));
    assert!(execution.cause_detail.contains("the node is gone"));
}
