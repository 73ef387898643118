//! The loss of sandboxes: sessions get other ones, and executions are lost, wait or run again.

use sandmesh_proto::{
    agent,
    executor::Cause,
    session::{
        attach_execution_response::Event as Attached, execution::State, session::State as SessionState,
    },
};

use super::*;

on_every_database!(
    a_session_whose_sandbox_is_lost_gets_another_one_like_it_and_goes_on,
    what_is_accepted_while_a_session_recovers_waits_and_runs_once,
    what_is_accepted_before_anybody_noticed_the_loss_runs_in_the_next_sandbox,
    a_session_recovers_as_often_as_is_allowed_and_then_fails,
    a_loss_at_the_end_of_the_lifetime_is_the_end_of_the_lifetime,
    a_report_is_taken_once_and_a_late_one_harms_no_new_sandbox,
    a_lost_node_is_told_as_the_cause,
    an_execution_with_retries_runs_again_and_its_output_goes_on_without_a_gap,
    an_execution_is_retried_as_often_as_it_asked_for_and_counts_it,
    what_ends_by_itself_or_with_its_session_is_never_retried,
    a_retry_that_waits_can_be_cancelled,
    retries_are_refused_where_they_cannot_be_kept,
    a_sandbox_with_another_isolation_is_refused,
    a_session_that_recovers_waits_for_room_and_can_be_ended_meanwhile,
    a_recovery_goes_on_after_a_restart_with_the_same_sandbox,
    statistics_count_sessions_ends_retries_and_recoveries,
    what_another_process_may_have_sent_to_a_lost_sandbox_does_not_run_in_the_next,
    a_session_that_begins_to_recover_is_ended_or_deleted_all_the_same,
);

fn recovering(max_recoveries: u32) -> Config {
    Config { max_recoveries, ..config() }
}

fn with_retries(session: &pb::Session, code: &str, max_retries: u32) -> pb::StartExecutionRequest {
    let spec = pb::ExecutionSpec { max_retries, ..spec(code) };
    pb::StartExecutionRequest {
        session_id: session.session_id.clone(),
        spec: Some(spec),
        ..Default::default()
    }
}

impl Bench {
    /// Kills the sandbox of a session, and tells the role as health-probe does.
    async fn lose(&mut self, session: &pb::Session, node_lost: bool) -> pb::ReportSandboxLostResponse {
        self.world.kill(&session.sandbox_id);
        let (session_id, sandbox_id) = (session.session_id.clone(), session.sandbox_id.clone());
        let reason = "killed".into();
        let report =
            pb::ReportSandboxLostRequest { session_id, sandbox_id, reason, node_lost, ..Default::default() };
        self.events.report_sandbox_lost(report).await.unwrap().into_inner()
    }

    /// Waits until a session runs in its sandbox number `recoveries + 1`.
    async fn recovered(&mut self, session: &pb::Session, recoveries: u32) -> pb::Session {
        for _ in 0..2000 {
            let now = self.get(&session.session_id).await.unwrap();
            if (now.state(), now.recoveries) == (SessionState::Running, recoveries) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("does not recover: {:?}", self.get(&session.session_id).await);
    }
}

async fn a_session_whose_sandbox_is_lost_gets_another_one_like_it_and_goes_on() {
    let mut bench = Bench::with(recovering(3)).await;
    let session = bench.session().await;
    let first_spec = bench.world.lock().last_spec.clone().unwrap();
    let running = bench.start_in(&session, "out:x forever").await;
    bench.running(&running).await;
    bench.world.kill(&session.sandbox_id);
    // Nobody reports: the driver of what ran notices.
    let lost = bench.ended(&running).await;
    assert_eq!((lost.state(), lost.cause()), (State::Crashed, Cause::ExecutorLost));
    assert_eq!((lost.stdout.as_ref(), lost.retry_count), (&b"x"[..], 0));
    let now = bench.recovered(&session, 1).await;
    assert_ne!(now.sandbox_id, session.sandbox_id);
    assert_eq!((now.recoveries_left, now.status_reason.as_str()), (2, ""));
    assert_eq!(now.expires_at, session.expires_at, "it does not live longer for that");
    let spec = bench.world.lock().last_spec.clone().unwrap();
    assert_eq!(spec.restarts, 1);
    assert_eq!(agent::SandboxSpec { restarts: 0, ..spec }, first_spec, "the same in everything else");
    assert_eq!(bench.run(&now, "out:on").await.stdout, "on");
    eventually("the old one is removed", || bench.world.lock().deleted.contains(&session.sandbox_id)).await;
}

async fn what_is_accepted_while_a_session_recovers_waits_and_runs_once() {
    let mut bench = Bench::with(recovering(3)).await;
    let session = bench.session().await;
    bench.world.lock().create_delay = Duration::from_millis(400);
    assert!(bench.lose(&session, false).await.recovering);
    let recovers = bench.get(&session.session_id).await.unwrap();
    assert_eq!(
        (recovers.state(), recovers.status_reason.as_str()),
        (SessionState::Creating, "recovering: killed")
    );
    let waiting = bench.start_in(&session, "out:late").await;
    assert_eq!(waiting.state(), State::Pending);
    let ended = bench.ended(&waiting).await;
    assert_eq!(
        (ended.state(), ended.stdout.as_ref(), ended.retry_count),
        (State::Completed, &b"late"[..], 0)
    );
    let now = bench.recovered(&session, 1).await;
    assert_eq!(bench.executor(&now).lock().started[&waiting.execution_id], 1);
}

async fn what_is_accepted_before_anybody_noticed_the_loss_runs_in_the_next_sandbox() {
    let mut bench = Bench::with(recovering(3)).await;
    let session = bench.session().await;
    assert_eq!(bench.run(&session, "out:first").await.stdout, "first");
    bench.world.kill(&session.sandbox_id);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let ended = bench.run(&session, "out:second").await;
    assert_eq!((ended.state(), ended.stdout.as_ref()), (State::Completed, &b"second"[..]), "{ended:?}");
    bench.recovered(&session, 1).await;
}

async fn a_session_recovers_as_often_as_is_allowed_and_then_fails() {
    let mut bench = Bench::with(recovering(2)).await;
    let mut session = bench.session().await;
    for recoveries in 1..=2 {
        assert!(bench.lose(&session, false).await.recovering);
        session = bench.recovered(&session, recoveries).await;
    }
    let report = bench.lose(&session, false).await;
    assert_eq!((report.applied, report.recovering), (true, false));
    let failed = bench.becomes(&session.session_id, SessionState::Failed).await;
    assert_eq!(failed.status_reason, "killed (after 2 recoveries)");
    eventually("nothing is left", || bench.world.lock().sandboxes.is_empty()).await;
}

async fn a_loss_at_the_end_of_the_lifetime_is_the_end_of_the_lifetime() {
    let mut bench = Bench::with(recovering(3)).await;
    let session = bench.session().await;
    bench.clock.advance(Duration::from_secs(301));
    bench.lose(&session, false).await;
    bench.becomes(&session.session_id, SessionState::Timeout).await;
}

async fn a_report_is_taken_once_and_a_late_one_harms_no_new_sandbox() {
    let mut bench = Bench::with(recovering(3)).await;
    let session = bench.session().await;
    assert!(bench.lose(&session, false).await.applied);
    let (session_id, sandbox_id) = (session.session_id.clone(), session.sandbox_id.clone());
    let now = bench.recovered(&session, 1).await;
    let late = pb::ReportSandboxLostRequest { session_id, sandbox_id, ..Default::default() };
    assert!(!bench.events.report_sandbox_lost(late).await.unwrap().into_inner().applied);
    assert_eq!(bench.get(&now.session_id).await.unwrap().sandbox_id, now.sandbox_id);
}

async fn a_lost_node_is_told_as_the_cause() {
    for max_recoveries in [0, 3] {
        let mut bench = Bench::with(recovering(max_recoveries)).await;
        let session = bench.session().await;
        let running = bench.start_in(&session, "out:x forever").await;
        bench.running(&running).await;
        let (session_id, sandbox_id) = (session.session_id.clone(), session.sandbox_id.clone());
        let reason = "node `n` is lost".to_owned();
        let report = pb::ReportSandboxLostRequest {
            session_id,
            sandbox_id,
            reason,
            node_lost: true,
            ..Default::default()
        };
        bench.events.report_sandbox_lost(report).await.unwrap();
        let lost = bench.ended(&running).await;
        assert_eq!((lost.state(), lost.cause()), (State::Crashed, Cause::NodeLost), "{max_recoveries}");
    }
}

async fn an_execution_with_retries_runs_again_and_its_output_goes_on_without_a_gap() {
    let mut bench = Bench::with(recovering(3)).await;
    let session = bench.session().await;
    let running = bench.try_start(with_retries(&session, "out:a gate out:b exit:0", 2)).await.unwrap();
    bench.running(&running).await;
    let attach =
        pb::AttachExecutionRequest { execution_id: running.execution_id.clone(), ..Default::default() };
    let mut stream = bench.client.attach_execution(attach).await.unwrap().into_inner();
    let live = Arc::clone(bench.service.drivers.get(&running.execution_id).unwrap().live());
    eventually("its output is collected", || live.stdout.kept() == 1).await;
    bench.lose(&session, false).await;
    let now = bench.recovered(&session, 1).await;
    let executor = bench.executor(&now);
    eventually("it runs again", || executor.lock().started.contains_key(&running.execution_id)).await;
    executor.open_gate();
    let ended = bench.ended(&running).await;
    assert_eq!((ended.state(), ended.retry_count, ended.max_retries), (State::Completed, 1, 2));
    assert_eq!(ended.stdout, "aab", "what the lost run wrote, and then all of the other");
    let mut seen = Vec::new();
    while let Some(event) = stream.message().await.unwrap() {
        match event.event.unwrap() {
            Attached::Stdout(chunk) => {
                assert_eq!(chunk.offset, seen.len() as u64);
                seen.extend_from_slice(&chunk.data);
            }
            Attached::Result(result) => assert_eq!(result.state(), State::Completed),
            _ => {}
        }
    }
    assert_eq!(seen, b"aab");
}

async fn an_execution_is_retried_as_often_as_it_asked_for_and_counts_it() {
    let mut bench = Bench::with(recovering(5)).await;
    let mut session = bench.session().await;
    let running = bench.try_start(with_retries(&session, "out:x forever", 1)).await.unwrap();
    for recoveries in 1..=2 {
        let executor = bench.executor(&session);
        eventually("it runs", || executor.lock().started.contains_key(&running.execution_id)).await;
        bench.running(&running).await;
        bench.lose(&session, false).await;
        session = bench.recovered(&session, recoveries).await;
    }
    let ended = bench.ended(&running).await;
    assert_eq!((ended.state(), ended.cause(), ended.retry_count), (State::Crashed, Cause::ExecutorLost, 1));
    assert!(!bench.executor(&session).lock().started.contains_key(&running.execution_id));
}

async fn what_ends_by_itself_or_with_its_session_is_never_retried() {
    let mut bench = Bench::with(recovering(0)).await;
    let session = bench.session().await;
    let failing = bench.try_start(with_retries(&session, "out:x exit:3", 5)).await.unwrap();
    let ended = bench.ended(&failing).await;
    assert_eq!((ended.state(), ended.retry_count), (State::Failed, 0));
    let running = bench.try_start(with_retries(&session, "forever", 5)).await.unwrap();
    bench.running(&running).await;
    bench.lose(&session, false).await;
    let ended = bench.ended(&running).await;
    assert_eq!((ended.state(), ended.retry_count), (State::Crashed, 0), "its session has no other sandbox");
}

async fn a_retry_that_waits_can_be_cancelled() {
    let mut bench = Bench::with(recovering(3)).await;
    let session = bench.session().await;
    let running = bench.try_start(with_retries(&session, "out:x forever", 5)).await.unwrap();
    bench.running(&running).await;
    bench.world.lock().create_delay = Duration::from_millis(1500);
    bench.lose(&session, false).await;
    while bench.execution(&running.execution_id).await.unwrap().retry_count == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let cancel = pb::CancelExecutionRequest { execution_id: running.execution_id.clone() };
    let cancelled = bench.client.cancel_execution(cancel).await.unwrap().into_inner().execution.unwrap();
    assert_eq!((cancelled.state(), cancelled.retry_count), (State::Cancelled, 1));
}

async fn retries_are_refused_where_they_cannot_be_kept() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let too_many = with_retries(&session, "out:x", 11);
    let status = refused(bench.try_start(too_many).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert!(status.message().contains("spec.max_retries"), "{status}");
    let mut interactive = with_retries(&session, "out:x", 1);
    interactive.spec.as_mut().unwrap().keep_stdin_open = true;
    refused(bench.try_start(interactive).await, Code::InvalidArgument, "INVALID_ARGUMENT");
}

async fn a_sandbox_with_another_isolation_is_refused() {
    let mut bench = Bench::with(recovering(3)).await;
    let session = bench.session().await;
    bench.world.lock().jail = "none";
    bench.lose(&session, false).await;
    let failed = bench.becomes(&session.session_id, SessionState::Failed).await;
    assert!(failed.status_reason.contains("another isolation"), "{failed:?}");
    assert_eq!(failed.effective_isolation, session.effective_isolation);
    eventually("nothing is left", || bench.world.lock().sandboxes.is_empty()).await;
}

async fn a_session_that_recovers_waits_for_room_and_can_be_ended_meanwhile() {
    let mut bench = Bench::with(recovering(3)).await;
    let session = bench.session().await;
    let full = || Status::resource_exhausted("full");
    bench.world.lock().create_errors.extend([full(), full(), full()]);
    bench.lose(&session, false).await;
    let now = bench.recovered(&session, 1).await;

    bench.world.lock().create_delay = Duration::from_millis(500);
    bench.lose(&now, false).await;
    let end = pb::TerminateSessionRequest { session_id: session.session_id.clone() };
    bench.client.terminate_session(end).await.unwrap();
    bench.becomes(&session.session_id, SessionState::Terminated).await;
    eventually("nothing is left", || bench.world.lock().sandboxes.is_empty()).await;
}

async fn a_recovery_goes_on_after_a_restart_with_the_same_sandbox() {
    let mut bench = Bench::with(recovering(3)).await;
    let session = bench.session().await;
    bench.world.lock().create_delay = Duration::from_millis(600);
    bench.lose(&session, false).await;
    let waits = bench.get(&session.session_id).await.unwrap();
    let pending = bench.start_in(&session, "out:late").await;
    let mut bench = bench.restart().await;
    assert_eq!(bench.ended(&pending).await.stdout, "late");
    let now = bench.recovered(&session, 1).await;
    assert_eq!(now.sandbox_id, waits.sandbox_id);
}

async fn statistics_count_sessions_ends_retries_and_recoveries() {
    let mut bench = Bench::with(recovering(3)).await;
    let session = bench.session().await;
    bench.run(&session, "out:x exit:0").await;
    let running = bench.start_in(&session, "forever").await;
    bench.running(&running).await;
    bench.lose(&session, false).await;
    bench.ended(&running).await;
    bench.recovered(&session, 1).await;
    let told = bench.events.get_statistics(pb::GetStatisticsRequest {}).await.unwrap().into_inner();
    let sessions: Vec<_> = told.sessions.iter().map(|count| (count.state(), count.count)).collect();
    assert_eq!(sessions, [(SessionState::Running, 1)]);
    let ends: Vec<_> = told
        .ended_executions
        .iter()
        .map(|count| (count.state.as_str(), count.language.as_str(), count.cause.as_str(), count.count))
        .collect();
    assert_eq!(ends, [("completed", "python", "", 1), ("crashed", "python", "executor_lost", 1)]);
    assert_eq!((told.recoveries, told.retries, told.active_executions.len()), (1, 0, 0));
}

async fn what_another_process_may_have_sent_to_a_lost_sandbox_does_not_run_in_the_next() {
    use sea_orm::ConnectionTrait;
    let mut bench = Bench::with(recovering(3)).await;
    let session = bench.session().await;
    let once = bench.start_in(&session, "out:x forever").await;
    let again = bench.try_start(with_retries(&session, "gate out:y exit:0", 1)).await.unwrap();
    for execution in [&once, &again] {
        bench.running(execution).await;
    }
    let stopped = bench.stop().await;
    // As if the process had died before it wrote that they started.
    let database = sea_orm::Database::connect(stopped.database.url().expose()).await.unwrap();
    let forget = "UPDATE executions SET state = 'pending', started_at = NULL";
    database.execute_unprepared(forget).await.unwrap();
    stopped.world.lock().scheduler_down = true;
    stopped.world.kill(&session.sandbox_id);
    stopped.clock.advance(Duration::from_secs(1));
    let mut bench = stopped.start_again().await;
    let (session_id, sandbox_id) = (session.session_id.clone(), session.sandbox_id.clone());
    let report = pb::ReportSandboxLostRequest { session_id, sandbox_id, ..Default::default() };
    assert!(bench.events.report_sandbox_lost(report).await.unwrap().into_inner().recovering);
    let lost = bench.ended(&once).await;
    assert_eq!((lost.state(), lost.cause()), (State::Crashed, Cause::ExecutorLost));
    let now = bench.recovered(&session, 1).await;
    bench.executor(&now).open_gate();
    let ended = bench.ended(&again).await;
    assert_eq!((ended.state(), ended.retry_count), (State::Completed, 1));
    let executor = bench.executor(&now);
    assert!(!executor.lock().started.contains_key(&once.execution_id));
}

/// A request to end or to delete a session, and the news of the loss of its sandbox, at once and often.
async fn a_session_that_begins_to_recover_is_ended_or_deleted_all_the_same() {
    let mut bench = Bench::with(recovering(3)).await;
    for round in 0..20 {
        let session = bench.session().await;
        bench.world.kill(&session.sandbox_id);
        let report = pb::ReportSandboxLostRequest {
            session_id: session.session_id.clone(),
            sandbox_id: session.sandbox_id.clone(),
            reason: "killed".into(),
            ..Default::default()
        };
        let (mut events, mut client, session_id) =
            (bench.events.clone(), bench.client.clone(), session.session_id.clone());
        if round % 2 == 0 {
            let request = pb::TerminateSessionRequest { session_id };
            let (told, ended) =
                tokio::join!(events.report_sandbox_lost(report), client.terminate_session(request));
            told.unwrap();
            let ended = ended.unwrap().into_inner().session.unwrap();
            assert!(
                matches!(ended.state(), SessionState::Terminated | SessionState::Failed),
                "round {round}: {ended:?}"
            );
        } else {
            let request = pb::DeleteSessionRequest { session_id };
            let (_, deleted) =
                tokio::join!(events.report_sandbox_lost(report), client.delete_session(request));
            deleted.unwrap_or_else(|status| panic!("round {round}: {status}"));
            assert_eq!(bench.get(&session.session_id).await.unwrap_err().code(), Code::NotFound);
        }
    }
}
