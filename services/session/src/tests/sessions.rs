use std::collections::HashMap;

use bytes::Bytes;
use sandmesh_mesh::Clock;
use sandmesh_proto::{
    executor::{Cause, ExecutionStarted, Resources},
    session::{execution, session::State},
};
use tonic_types::StatusExt;

use super::*;
use crate::live::Live;

on_every_database!(
    a_new_session_runs_with_what_its_template_says,
    a_repeated_request_id_returns_the_first_session,
    concurrent_requests_with_one_id_make_one_session,
    an_id_is_taken_once,
    a_template_that_is_unknown_or_retired_is_refused,
    everything_that_is_wrong_is_said_at_once,
    there_are_no_more_sessions_than_the_quota,
    a_scheduler_that_is_away_for_a_moment_is_asked_again,
    without_room_there_is_an_error_and_no_session,
    without_room_a_session_that_is_used_already_fails,
    a_sweep_does_not_create_what_is_being_created,
    the_same_request_twice_at_once_is_one_session_and_waits_for_nothing,
    a_slow_creation_is_answered_and_may_fail_later,
    a_sandbox_that_can_never_run_fails_the_session,
    a_session_ended_during_its_creation_leaves_no_sandbox,
    terminating_ends_what_runs_and_keeps_its_output,
    a_sandbox_that_cannot_be_removed_now_is_removed_later,
    a_deleted_session_is_not_found_nor_what_ran_in_it,
    what_is_unknown_is_not_found,
    a_deleted_session_that_was_left_alive_is_ended_by_the_sweep,
    a_report_of_a_lost_sandbox_of_a_deleted_session_is_no_error,
    an_end_waits_for_the_driver_that_is_storing_how_an_execution_ended,
    what_was_seen_of_a_run_is_kept_when_its_session_ends_and_its_executor_hangs,
    what_was_seen_of_a_run_is_kept_when_its_session_ends_and_nobody_knows_of_its_sandbox,
    of_a_run_whose_driver_is_stuck_the_first_output_is_kept_when_its_session_ends,
);

async fn a_new_session_runs_with_what_its_template_says() {
    let mut bench = Bench::new().await;
    let request = pb::CreateSessionRequest {
        env: [("BOTH".to_owned(), "mine".to_owned())].into(),
        resources: Some(Resources { memory_bytes: 1 << 30, ..Resources::default() }),
        ..new_session()
    };
    let session = bench.create(request).await.unwrap();
    assert_eq!(session.state(), State::Running);
    assert!(session.session_id.starts_with("sess_20270115_"), "{}", session.session_id);
    assert_eq!(session.timeout_seconds, 300);
    let resources = session.resources.unwrap();
    assert_eq!((resources.cpu_millis, resources.memory_bytes, resources.max_processes), (500, 1 << 30, 128));
    assert_eq!(session.effective_isolation.unwrap().jail, "bubblewrap");
    assert_eq!((session.runtime_type.as_str(), session.workspace_path.as_str()), ("process", "/workspace"));
    let redacted = |name: &str| (name.to_owned(), "***".to_owned());
    assert_eq!(session.env, HashMap::from([redacted("BOTH"), redacted("FROM_TEMPLATE")]));
    let spec = bench.world.lock().last_spec.clone().unwrap();
    assert_eq!((spec.session_id, spec.language), (session.session_id, Language::Python.into()));
    let outlives = spec.expires_at.unwrap().seconds - session.expires_at.unwrap().seconds;
    assert!(outlives > 0, "a session ends before its sandbox ends by itself");
}

async fn a_repeated_request_id_returns_the_first_session() {
    let mut bench = Bench::new().await;
    let request = pb::CreateSessionRequest { request_id: "r1".into(), ..new_session() };
    let first = bench.create(request.clone()).await.unwrap();
    let second = bench.create(request).await.unwrap();
    assert_eq!(first.session_id, second.session_id);
    assert_eq!(bench.world.lock().creates, 1);
}

async fn concurrent_requests_with_one_id_make_one_session() {
    let bench = Bench::new().await;
    let request = pb::CreateSessionRequest { request_id: "r1".into(), ..new_session() };
    let attempts = (0..8).map(|_| {
        let (mut client, request) = (bench.client.clone(), request.clone());
        async move { client.create_session(request).await.unwrap().into_inner().session.unwrap().session_id }
    });
    let ids: std::collections::HashSet<String> =
        futures::future::join_all(attempts).await.into_iter().collect();
    assert_eq!(ids.len(), 1);
}

async fn an_id_is_taken_once() {
    let mut bench = Bench::new().await;
    let request = pb::CreateSessionRequest { session_id: "mine".into(), ..new_session() };
    assert_eq!(bench.create(request.clone()).await.unwrap().session_id, "mine");
    refused(bench.create(request).await, Code::AlreadyExists, "SESSION_EXISTS");
}

async fn a_template_that_is_unknown_or_retired_is_refused() {
    let mut bench = Bench::new().await;
    for template in ["unknown", "retired"] {
        let request = pb::CreateSessionRequest { template_id: template.into(), ..Default::default() };
        refused(bench.create(request).await, Code::FailedPrecondition, "TEMPLATE_NOT_FOUND");
    }
}

async fn everything_that_is_wrong_is_said_at_once() {
    let mut bench = Bench::new().await;
    let request = pb::CreateSessionRequest {
        session_id: "../x".into(),
        timeout_seconds: Some(3601),
        dependencies: vec![pb::Dependency { name: "pandas2.3.3".into(), version: String::new() }],
        ..Default::default()
    };
    let status = refused(bench.create(request).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let fields: Vec<String> =
        status.get_details_bad_request().unwrap().field_violations.into_iter().map(|v| v.field).collect();
    assert_eq!(fields, ["template_id", "session_id", "timeout_seconds", "dependencies[0].name"]);
}

async fn there_are_no_more_sessions_than_the_quota() {
    let mut bench = Bench::with(Config { max_sessions: 1, ..config() }).await;
    let first = bench.session().await;
    refused(bench.create(new_session()).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    let end = pb::TerminateSessionRequest { session_id: first.session_id };
    bench.client.terminate_session(end).await.unwrap();
    bench.session().await;
}

async fn a_scheduler_that_is_away_for_a_moment_is_asked_again() {
    let mut bench = Bench::new().await;
    bench.world.lock().create_errors = [Status::unavailable("1"), Status::unavailable("2")].into();
    assert_eq!(bench.session().await.state(), State::Running);
    assert_eq!(bench.world.lock().creates, 3);
}

async fn without_room_there_is_an_error_and_no_session() {
    let mut bench = Bench::new().await;
    bench.world.lock().create_errors = [Status::resource_exhausted("full")].into();
    let request = pb::CreateSessionRequest { request_id: "r1".into(), ..new_session() };
    let status = refused(bench.create(request.clone()).await, Code::ResourceExhausted, "NO_CAPACITY");
    assert!(status.get_details_retry_info().is_some());
    let list = bench.client.list_sessions(pb::ListSessionsRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().total, 0);
    assert_eq!(
        bench.create(request).await.unwrap().state(),
        State::Running,
        "the same request may try again"
    );
}

async fn without_room_a_session_that_is_used_already_fails() {
    let create_wait = HumanDuration(Duration::from_secs(60));
    let mut bench = Bench::with(Config { create_wait, ..config() }).await;
    bench.world.lock().create_errors = [Status::resource_exhausted("full")].into();
    bench.world.lock().create_delay = Duration::from_millis(300);
    let (mut creator, mut user) = (bench.client.clone(), bench.client.clone());
    let request = pb::CreateSessionRequest { session_id: "used".into(), ..new_session() };
    let create = creator.create_session(request);
    let use_it = async {
        while user.start_execution(start("used", "1")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (created, ()) = tokio::join!(create, use_it);
    let session = created.unwrap().into_inner().session.unwrap();
    assert_eq!(session.state(), State::Failed);
    assert!(session.status_reason.contains("full"), "{session:?}");
    assert_eq!(bench.get("used").await.unwrap().state(), State::Failed);
}

/// A sweep finds the row of a session whose creation has just begun.
async fn a_sweep_does_not_create_what_is_being_created() {
    const TIMES: u32 = 300;
    let (often, long) = (Duration::from_millis(10), Duration::from_secs(60));
    let (sweep_interval, create_wait) = (HumanDuration(often), HumanDuration(long));
    let bench = Bench::with(Config { sweep_interval, create_wait, ..config() }).await;
    bench.world.lock().create_errors = (0..TIMES).map(|_| Status::resource_exhausted("full")).collect();
    let at_once = (0..TIMES).map(|_| {
        let mut client = bench.client.clone();
        async move { client.create_session(new_session()).await.map(drop) }
    });
    for answer in futures::future::join_all(at_once).await {
        refused(answer, Code::ResourceExhausted, "NO_CAPACITY");
    }
    assert_eq!(bench.world.lock().creates, TIMES);
}

async fn the_same_request_twice_at_once_is_one_session_and_waits_for_nothing() {
    const TIMES: u32 = 30;
    let create_wait = HumanDuration(Duration::from_secs(600));
    let bench = Bench::with(Config { create_wait, ..config() }).await;
    let twice = (0..TIMES).flat_map(|n| [n, n]).map(|n| {
        let (session_id, request_id) = (format!("s{n}"), format!("r{n}"));
        let request = pb::CreateSessionRequest { session_id, request_id, ..new_session() };
        let mut client = bench.client.clone();
        async move { client.create_session(request).await.map(tonic::Response::into_inner) }
    });
    for answer in futures::future::join_all(twice).await {
        assert_eq!(answer.unwrap().session.unwrap().state(), State::Running);
    }
    assert_eq!(bench.world.lock().creates, TIMES);
}

async fn a_slow_creation_is_answered_and_may_fail_later() {
    let mut bench = Bench::with(Config { create_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    bench.world.lock().create_errors = [Status::resource_exhausted("full")].into();
    bench.world.lock().create_delay = Duration::from_millis(500);
    let session = bench.session().await;
    assert_eq!(session.state(), State::Creating);
    let waiting = bench.start_in(&session, "out:x").await;
    let failed = bench.becomes(&session.session_id, State::Failed).await;
    assert!(failed.status_reason.contains("full"), "{}", failed.status_reason);
    let execution = bench.ended(&waiting).await;
    assert_eq!(execution.state(), execution::State::Failed);
    assert_eq!(execution.error.unwrap().r#type, "ExecutionStartError");
}

async fn a_sandbox_that_can_never_run_fails_the_session() {
    let mut bench = Bench::new().await;
    bench.world.lock().create_errors = [Status::failed_precondition("no bubblewrap")].into();
    let session = bench.session().await;
    assert_eq!(session.state(), State::Failed);
    assert!(session.status_reason.contains("no bubblewrap"));
    assert!(session.completed_at.is_some());
}

async fn a_session_ended_during_its_creation_leaves_no_sandbox() {
    let mut bench = Bench::with(Config { create_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    bench.world.lock().create_delay = Duration::from_millis(400);
    let session = bench.session().await;
    eventually("the creation began", || bench.world.lock().creates == 1).await;
    let end = pb::TerminateSessionRequest { session_id: session.session_id.clone() };
    let ended = bench.client.terminate_session(end).await.unwrap().into_inner().session.unwrap();
    assert_eq!(ended.state(), State::Terminated);
    assert!(bench.world.lock().sandboxes.is_empty());
    assert_eq!(bench.world.lock().deleted, [session.sandbox_id]);
}

async fn terminating_ends_what_runs_and_keeps_its_output() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let running = bench.start_in(&session, "out:partial forever").await;
    bench.running(&running).await;
    let end = pb::TerminateSessionRequest { session_id: session.session_id.clone() };
    for _ in 0..2 {
        let ended = bench.client.terminate_session(end.clone()).await.unwrap().into_inner().session.unwrap();
        assert_eq!(ended.state(), State::Terminated);
        assert!(ended.completed_at.is_some());
    }
    assert!(bench.world.lock().sandboxes.is_empty(), "the sandbox is gone when the call returns");
    let execution = bench.execution(&running.execution_id).await.unwrap();
    assert_eq!((execution.state(), execution.cause()), (execution::State::Cancelled, Cause::SessionEnded));
    assert_eq!(execution.stdout, "partial");
    let late = bench.try_start(start(&session.session_id, "out:x")).await;
    refused(late, Code::FailedPrecondition, "SESSION_NOT_ACTIVE");
}

async fn a_sandbox_that_cannot_be_removed_now_is_removed_later() {
    let mut bench = Bench::with(Config { terminate_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    let session = bench.session().await;
    bench.world.lock().scheduler_down = true;
    let end = pb::TerminateSessionRequest { session_id: session.session_id };
    let ended = bench.client.terminate_session(end).await.unwrap().into_inner().session.unwrap();
    assert_eq!(ended.state(), State::Terminated);
    bench.world.lock().scheduler_down = false;
    eventually("the sandbox is removed", || bench.world.lock().sandboxes.is_empty()).await;
}

async fn a_deleted_session_is_not_found_nor_what_ran_in_it() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let execution = bench.run(&session, "fill:200000 value:1").await;
    let id = session.session_id.clone();
    bench.client.delete_session(pb::DeleteSessionRequest { session_id: id.clone() }).await.unwrap();
    refused(bench.get(&id).await, Code::NotFound, "SESSION_NOT_FOUND");
    refused(bench.execution(&execution.execution_id).await, Code::NotFound, "EXECUTION_NOT_FOUND");
    let list = pb::ListExecutionsRequest { session_id: id.clone(), ..Default::default() };
    refused(bench.client.list_executions(list).await, Code::NotFound, "SESSION_NOT_FOUND");
    let again = bench.client.delete_session(pb::DeleteSessionRequest { session_id: id.clone() }).await;
    refused(again, Code::NotFound, "SESSION_NOT_FOUND");
    refused(bench.try_start(start(&id, "out:x")).await, Code::NotFound, "SESSION_NOT_FOUND");
    let objects = std::fs::read_dir(bench.directory.path().join("objects")).unwrap().count();
    assert_eq!(objects, 0, "the output is gone too");
}

async fn what_is_unknown_is_not_found() {
    let mut bench = Bench::new().await;
    refused(bench.get("x").await, Code::NotFound, "SESSION_NOT_FOUND");
    let end = bench.client.terminate_session(pb::TerminateSessionRequest { session_id: "x".into() }).await;
    refused(end, Code::NotFound, "SESSION_NOT_FOUND");
    refused(bench.try_start(start("x", "out:x")).await, Code::NotFound, "SESSION_NOT_FOUND");
    refused(bench.execution("x").await, Code::NotFound, "EXECUTION_NOT_FOUND");
}

async fn a_deleted_session_that_was_left_alive_is_ended_by_the_sweep() {
    use sea_orm::ConnectionTrait;
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let database = sea_orm::Database::connect(bench.database.url().expose()).await.unwrap();
    database.execute_unprepared("UPDATE sessions SET deleted_at = 1").await.unwrap();
    eventually("its sandbox is removed", || bench.world.lock().sandboxes.is_empty()).await;
    let again = pb::CreateSessionRequest { session_id: session.session_id.clone(), ..new_session() };
    for _ in 0..200 {
        if bench.create(again.clone()).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("its id is not free again");
}

async fn a_report_of_a_lost_sandbox_of_a_deleted_session_is_no_error() {
    let mut bench = Bench::with(Config { terminate_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    let session = bench.session().await;
    bench.world.lock().scheduler_down = true;
    let delete = pb::DeleteSessionRequest { session_id: session.session_id.clone() };
    bench.client.delete_session(delete).await.unwrap();
    let (session_id, sandbox_id) = (session.session_id, session.sandbox_id);
    let report = pb::ReportSandboxLostRequest { session_id, sandbox_id, ..Default::default() };
    assert!(!bench.events.report_sandbox_lost(report).await.unwrap().into_inner().applied);
}

async fn an_end_waits_for_the_driver_that_is_storing_how_an_execution_ended() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let service = Arc::clone(&bench.service);
    // Storing large output waits for these.
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(service.objects.room(usize::MAX).await.unwrap());
    }
    let execution = bench.start_in(&session, "fill:2000000 exit:0").await;
    let driver = service.drivers.get(&execution.execution_id).unwrap();
    eventually("it is finishing", || driver.is_finishing()).await;
    let end = pb::TerminateSessionRequest { session_id: session.session_id };
    let mut client = bench.client.clone();
    let ending = async { client.terminate_session(end).await.unwrap() };
    let release = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let tasks = Arc::strong_count(&service);
        tokio::time::sleep(Duration::from_millis(3000)).await;
        assert!(Arc::strong_count(&service) < tasks + 5, "no sweep winds down what is being wound down");
        held.clear();
    };
    tokio::join!(ending, release);
    let ended = bench.execution(&execution.execution_id).await.unwrap();
    assert_eq!((ended.state(), ended.stdout.len()), (execution::State::Completed, 1 << 20));
}

/// Ends a session whose executor does not answer, and returns what was running in it.
async fn ended_with_session(
    bench: &mut Bench,
    session: &pb::Session,
    running: &pb::Execution,
) -> pb::Execution {
    let request = pb::TerminateSessionRequest { session_id: session.session_id.clone() };
    bench.client.terminate_session(request).await.unwrap();
    let ended = bench.ended(running).await;
    assert_eq!((ended.state(), ended.cause()), (execution::State::Cancelled, Cause::SessionEnded));
    ended
}

async fn what_was_seen_of_a_run_is_kept_when_its_session_ends_and_its_executor_hangs() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let running = bench.start_in(&session, "fill:50000 forever").await;
    bench.running(&running).await;
    let live = Arc::clone(bench.service.drivers.get(&running.execution_id).unwrap().live());
    eventually("its output is collected", || live.stdout.kept() == 50_000).await;
    let executor = bench.executor(&session);
    executor.lock().hangs = true;
    executor.cut(&running.execution_id);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let ended = ended_with_session(&mut bench, &session, &running).await;
    assert_eq!((ended.stdout.len(), ended.stdout_truncated), (50_000, true));
}

async fn what_was_seen_of_a_run_is_kept_when_its_session_ends_and_nobody_knows_of_its_sandbox() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let running = bench.start_in(&session, "fill:50000 forever").await;
    bench.running(&running).await;
    let live = Arc::clone(bench.service.drivers.get(&running.execution_id).unwrap().live());
    eventually("its output is collected", || live.stdout.kept() == 50_000).await;
    bench.world.lock().scheduler_down = true;
    bench.world.kill(&session.sandbox_id);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let ended = ended_with_session(&mut bench, &session, &running).await;
    assert_eq!((ended.stdout.len(), ended.stdout_truncated), (50_000, true));
}

async fn of_a_run_whose_driver_is_stuck_the_first_output_is_kept_when_its_session_ends() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let live = Live::new(bench.directory.path(), 4, 100);
    let stuck = bench.service.drivers.register("e", &session.session_id, live).unwrap();
    let request =
        pb::StartExecutionRequest { execution_id: "e".into(), ..start(&session.session_id, "forever") };
    let running = bench.try_start(request).await.unwrap();
    stuck.live.start(ExecutionStarted::default(), bench.clock.now());
    stuck.live.stdout.take(0, &Bytes::from_static(b"partial")).await.unwrap().unwrap();
    let ended = ended_with_session(&mut bench, &session, &running).await;
    assert_eq!((ended.stdout.as_ref(), ended.stdout_truncated), (&b"part"[..], true));
    assert!(ended.started_at.is_some());
}
