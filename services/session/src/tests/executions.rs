use std::collections::HashSet;

use sandmesh_proto::{
    executor::{Cause, Mode},
    session::{
        attach_execution_response::Event as Attached, execute_response::Event, execution::State,
        session::State as SessionState,
    },
};
use tokio::time::Instant;

use super::*;

on_every_database!(
    a_run_is_followed_from_accepted_to_result,
    an_execution_gets_the_environment_of_template_session_and_request,
    second_execute_with_same_request_id_returns_first,
    concurrent_executes_with_one_request_id_run_once,
    an_execution_id_of_another_session_is_taken,
    a_session_being_created_accepts_and_runs_later,
    how_a_process_ended_decides_the_state,
    cancelling_ends_a_run_and_keeps_its_output,
    an_execution_cancelled_before_its_start_never_runs,
    a_stream_that_breaks_is_attached_to_again_where_it_was,
    a_dead_sandbox_ends_what_runs_within_two_seconds,
    while_nobody_knows_whether_a_sandbox_lives_nothing_is_said_to_be_lost,
    an_executor_that_forgot_a_run_means_that_it_crashed,
    what_is_said_to_be_lost_does_not_run_on_and_is_acknowledged,
    an_executor_that_does_not_hear_an_acknowledgement_hears_it_again,
    what_ends_together_is_acknowledged_together,
    a_cursor_that_cannot_be_served_is_refused_by_the_call_itself,
    executions_start_in_the_order_in_which_they_were_accepted,
    a_full_queue_is_waited_for,
    a_session_has_no_more_active_executions_than_it_may,
    waiting_ends_at_its_limit,
    long_output_and_values_are_kept_whole,
    output_beyond_what_is_kept_is_counted_and_its_cursor_has_expired,
    a_large_program_that_waits_for_a_place_can_be_cancelled,
    large_input_reaches_the_executor_whole,
    dropping_the_stream_does_not_stop_the_run,
    an_execution_in_a_session_that_is_gone_from_the_node_does_not_stay_pending,
);

async fn collect(bench: &mut Bench, request: pb::ExecuteRequest) -> Vec<Event> {
    let mut stream = bench.client.execute(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await.unwrap() {
        events.push(event.event.unwrap());
    }
    events
}

fn execute(session: &pb::Session, code: &str) -> pb::ExecuteRequest {
    pb::ExecuteRequest {
        session_id: session.session_id.clone(),
        spec: Some(spec(code)),
        ..Default::default()
    }
}

fn stdout(events: &[Event]) -> Vec<u8> {
    let mut all = Vec::new();
    for event in events {
        if let Event::Stdout(chunk) = event {
            assert_eq!(chunk.offset, all.len() as u64, "no byte twice, none missing");
            assert!(chunk.data.len() <= 64 << 10);
            all.extend_from_slice(&chunk.data);
        }
    }
    all
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

fn result(events: &[Event]) -> &pb::Execution {
    match events.last() {
        Some(Event::Result(result)) => result,
        other => panic!("the last event is {other:?}"),
    }
}

async fn a_run_is_followed_from_accepted_to_result() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let events =
        collect(&mut bench, execute(&session, "out:hello sleep:30 err:oops value:{\"a\":0} exit:0")).await;
    assert!(matches!(events[0], Event::Accepted(_)), "{events:?}");
    assert!(matches!(events[1], Event::Started(_)), "{events:?}");
    assert_eq!(stdout(&events), b"hello");
    let result = result(&events);
    assert_eq!((result.state(), result.exit_code), (State::Completed, Some(0)));
    assert_eq!(result.return_value_json.as_deref(), Some("{\"a\":0}"));
    assert_eq!((result.stdout.len(), result.stderr.len()), (0, 0), "it was streamed");
    let record = bench.execution(&result.execution_id).await.unwrap();
    assert_eq!((&record.stdout[..], &record.stderr[..]), (&b"hello"[..], &b"oops"[..]));
    assert_eq!(record.metrics.unwrap().peak_memory_bytes, 4096);
    assert!(record.started_at.is_some() && record.completed_at.is_some());
    let executor = bench.executor(&session);
    eventually("the executor may forget it", || executor.lock().acknowledged.len() == 1).await;
}

async fn an_execution_gets_the_environment_of_template_session_and_request() {
    let mut bench = Bench::new().await;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let request =
        pb::CreateSessionRequest { env: [pair("BOTH", "s"), pair("MINE", "s")].into(), ..new_session() };
    let session = bench.create(request).await.unwrap();
    let mut request = start(&session.session_id, "exit:0");
    let spec = request.spec.as_mut().unwrap();
    spec.env = [pair("MINE", "e")].into();
    spec.event_json = "{\"n\": 1}".into();
    let execution = bench.try_start(request).await.unwrap();
    bench.ended(&execution).await;
    let executor = bench.executor(&session);
    let sent = executor.lock().starts[&execution.execution_id].clone();
    assert_eq!(sent.env, [pair("FROM_TEMPLATE", "t"), pair("BOTH", "s"), pair("MINE", "e")].into());
    assert_eq!((sent.mode(), sent.timeout.unwrap().seconds), (Mode::Handler, 30));
    assert_eq!(sent.event_json, "{\"n\": 1}");
}

async fn second_execute_with_same_request_id_returns_first() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    for (execution_id, request_id) in [("", "r1"), ("e1", "")] {
        let mut request = start(&session.session_id, "out:once");
        (request.execution_id, request.request_id) = (execution_id.into(), request_id.into());
        let first = bench.try_start(request.clone()).await.unwrap();
        let ended = bench.ended(&first).await;
        let second = bench.try_start(request).await.unwrap();
        assert_eq!(second, ended);
        assert_eq!(bench.executor(&session).lock().started[&first.execution_id], 1);
    }
}

async fn concurrent_executes_with_one_request_id_run_once() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let request =
        pb::StartExecutionRequest { request_id: "r".into(), ..start(&session.session_id, "out:once") };
    let attempts =
        (0..8).map(|_| {
            let (mut client, request) = (bench.client.clone(), request.clone());
            async move {
                client.start_execution(request).await.unwrap().into_inner().execution.unwrap().execution_id
            }
        });
    let ids: std::collections::HashSet<String> =
        futures::future::join_all(attempts).await.into_iter().collect();
    assert_eq!(ids.len(), 1);
    let execution = bench.execution(ids.iter().next().unwrap()).await.unwrap();
    bench.ended(&execution).await;
    assert_eq!(bench.executor(&session).lock().started[&execution.execution_id], 1);
}

async fn an_execution_id_of_another_session_is_taken() {
    let mut bench = Bench::new().await;
    let (one, other) = (bench.session().await, bench.session().await);
    let with_id = |session: &pb::Session| pb::StartExecutionRequest {
        execution_id: "e".into(),
        ..start(&session.session_id, "out:x")
    };
    bench.try_start(with_id(&one)).await.unwrap();
    refused(bench.try_start(with_id(&other)).await, Code::AlreadyExists, "EXECUTION_EXISTS");
}

async fn a_session_being_created_accepts_and_runs_later() {
    let mut bench = Bench::with(Config { create_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    bench.world.lock().create_delay = Duration::from_millis(400);
    let session = bench.session().await;
    let execution = bench.start_in(&session, "out:later").await;
    assert_eq!(execution.state(), State::Pending);
    assert_eq!(bench.ended(&execution).await.stdout, "later");
}

async fn how_a_process_ended_decides_the_state() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let failed = bench.run(&session, "out:x exit:3").await;
    assert_eq!((failed.state(), failed.exit_code), (State::Failed, Some(3)));
    let oom = bench.run(&session, "oom").await;
    assert_eq!((oom.state(), oom.cause(), oom.signal), (State::Crashed, Cause::Oom, Some(9)));
    let unstarted = bench.run(&session, "nostart").await;
    assert_eq!((unstarted.state(), unstarted.started_at), (State::Failed, None));
    let error = unstarted.error.unwrap();
    assert_eq!(error.r#type, "ExecutionStartError");
    assert!(error.message.contains("no such interpreter") && error.message.contains("ENOENT"), "{error:?}");
}

async fn cancelling_ends_a_run_and_keeps_its_output() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let running = bench.start_in(&session, "out:partial forever").await;
    bench.running(&running).await;
    let cancel = pb::CancelExecutionRequest { execution_id: running.execution_id.clone() };
    let ended = bench.client.cancel_execution(cancel.clone()).await.unwrap().into_inner().execution.unwrap();
    assert_eq!((ended.state(), ended.cause()), (State::Cancelled, Cause::Cancelled));
    assert_eq!(ended.stdout, "partial");
    refused(bench.client.cancel_execution(cancel).await, Code::FailedPrecondition, "EXECUTION_ENDED");
}

async fn an_execution_cancelled_before_its_start_never_runs() {
    let mut bench = Bench::with(Config { create_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    bench.world.lock().create_delay = Duration::from_millis(600);
    let session = bench.session().await;
    let pending = bench.start_in(&session, "out:x").await;
    let cancel = pb::CancelExecutionRequest { execution_id: pending.execution_id };
    let ended = bench.client.cancel_execution(cancel).await.unwrap().into_inner().execution.unwrap();
    assert_eq!((ended.state(), ended.started_at), (State::Cancelled, None));
    bench.becomes(&session.session_id, SessionState::Running).await;
    assert!(bench.executor(&session).lock().started.is_empty());
}

async fn a_stream_that_breaks_is_attached_to_again_where_it_was() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let executor = bench.executor(&session);
    executor.lock().break_after = Some(10_000);
    let events = collect(&mut bench, execute(&session, "fill:45000 exit:0")).await;
    assert_eq!(stdout(&events), pattern(45_000));
    let record = bench.execution(&result(&events).execution_id).await.unwrap();
    assert_eq!(record.stdout, pattern(45_000));
    assert_eq!((record.state(), record.stdout_truncated), (State::Completed, false));
    assert!(executor.lock().attaches >= 4);
    assert_eq!(executor.lock().started.values().sum::<u32>(), 1);
}

async fn a_dead_sandbox_ends_what_runs_within_two_seconds() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let running = bench.start_in(&session, "out:partial forever").await;
    bench.running(&running).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let killed = Instant::now();
    bench.world.kill(&session.sandbox_id);
    let ended = bench.ended(&running).await;
    assert!(killed.elapsed() < Duration::from_secs(2));
    assert_eq!((ended.state(), ended.cause()), (State::Crashed, Cause::ExecutorLost));
    assert!(ended.cause_detail.contains("killed by a test"), "{}", ended.cause_detail);
    assert_eq!(ended.stdout, "partial");
    bench.becomes(&session.session_id, SessionState::Failed).await;
    eventually("what is left of it is removed", || bench.world.lock().sandboxes.is_empty()).await;
}

async fn while_nobody_knows_whether_a_sandbox_lives_nothing_is_said_to_be_lost() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let running = bench.start_in(&session, "forever").await;
    bench.running(&running).await;
    bench.world.lock().scheduler_down = true;
    bench.world.kill(&session.sandbox_id);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(bench.execution(&running.execution_id).await.unwrap().state(), State::Running);
    bench.world.lock().scheduler_down = false;
    assert_eq!(bench.ended(&running).await.state(), State::Crashed);
}

async fn an_executor_that_forgot_a_run_means_that_it_crashed() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let running = bench.start_in(&session, "out:x forever").await;
    bench.running(&running).await;
    let executor = bench.executor(&session);
    // As an executor does that was replaced: the stream ends, and the next finds nothing.
    executor.forget(&running.execution_id);
    let ended = bench.ended(&running).await;
    assert_eq!((ended.state(), ended.cause()), (State::Crashed, Cause::ExecutorLost));
    assert_eq!(bench.get(&session.session_id).await.unwrap().state(), SessionState::Running);
}

async fn what_is_said_to_be_lost_does_not_run_on_and_is_acknowledged() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let running = bench.start_in(&session, "out:x forever").await;
    bench.running(&running).await;
    let executor = bench.executor(&session);
    executor.lock().confused = true;
    executor.cut(&running.execution_id);
    let ended = bench.ended(&running).await;
    assert_eq!((ended.state(), ended.cause()), (State::Crashed, Cause::ExecutorLost));
    eventually("it is acknowledged", || executor.lock().acknowledged == [running.execution_id.clone()]).await;
}

async fn an_executor_that_does_not_hear_an_acknowledgement_hears_it_again() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let executor = bench.executor(&session);
    executor.lock().deaf = 7;
    let ended = bench.run(&session, "out:x").await;
    eventually("it is acknowledged", || executor.lock().acknowledged == [ended.execution_id.clone()]).await;
}

async fn what_ends_together_is_acknowledged_together() {
    for is_old in [false, true] {
        let mut bench = Bench::new().await;
        let session = bench.session().await;
        let executor = bench.executor(&session);
        executor.lock().is_old = is_old;
        for _ in 0..8 {
            bench.start_in(&session, "gate out:x").await;
        }
        eventually("all run", || executor.lock().started.len() == 8).await;
        executor.open_gate();
        let acknowledged = || executor.lock().acknowledged.iter().collect::<HashSet<_>>().len();
        eventually("all are acknowledged", || acknowledged() == 8).await;
        let executor = executor.lock();
        let (calls, unknown) = (executor.acknowledgements, executor.unknown);
        assert!(if is_old { unknown > 0 } else { calls < 8 }, "{calls} calls, {unknown} unknown");
    }
}

async fn a_cursor_that_cannot_be_served_is_refused_by_the_call_itself() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let running = bench.start_in(&session, "out:abc gate").await;
    bench.running(&running).await;
    let mut attach = pb::AttachExecutionRequest {
        execution_id: running.execution_id.clone(),
        stdout_offset: 4,
        stderr_offset: 0,
    };
    let refusal = bench.client.attach_execution(attach.clone()).await;
    refused(refusal, Code::OutOfRange, "CURSOR_EXPIRED");
    bench.executor(&session).open_gate();
    bench.ended(&running).await;
    refused(bench.client.attach_execution(attach.clone()).await, Code::OutOfRange, "CURSOR_EXPIRED");
    attach.stdout_offset = 3;
    bench.client.attach_execution(attach).await.unwrap();
}

async fn executions_start_in_the_order_in_which_they_were_accepted() {
    let mut bench = Bench::with(Config { create_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    bench.world.lock().create_delay = Duration::from_millis(300);
    let session = bench.session().await;
    let mut accepted = Vec::new();
    for number in 0..30 {
        // Some take longer on their way than those after them.
        let code = format!("{}out:{number}", " ".repeat(if number % 3 == 0 { 100_000 } else { 0 }));
        accepted.push(bench.start_in(&session, &code).await);
    }
    for execution in &accepted {
        bench.ended(execution).await;
    }
    let ids: Vec<_> = accepted.into_iter().map(|execution| execution.execution_id).collect();
    assert_eq!(bench.executor(&session).lock().order, ids);
}

async fn a_full_queue_is_waited_for() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    bench.executor(&session).lock().full = 4;
    let execution = bench.start_in(&session, "out:patience").await;
    assert_eq!(bench.ended(&execution).await.stdout, "patience");
}

async fn a_session_has_no_more_active_executions_than_it_may() {
    let mut bench = Bench::with(Config { max_executions_per_session: 2, ..config() }).await;
    let session = bench.session().await;
    let first = bench.start_in(&session, "forever").await;
    bench.start_in(&session, "forever").await;
    let third = bench.try_start(start(&session.session_id, "out:x")).await;
    refused(third, Code::ResourceExhausted, "TOO_MANY_EXECUTIONS");
    let cancel = pb::CancelExecutionRequest { execution_id: first.execution_id };
    bench.client.cancel_execution(cancel).await.unwrap();
    bench.run(&session, "out:x").await;
}

async fn waiting_ends_at_its_limit() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let running = bench.start_in(&session, "forever").await;
    let wait = pb::WaitExecutionRequest { execution_id: running.execution_id, wait_ms: 50 };
    let waited = bench.client.wait_execution(wait.clone()).await.unwrap().into_inner().execution.unwrap();
    assert!(matches!(waited.state(), State::Pending | State::Running));
    let long = pb::WaitExecutionRequest { wait_ms: 3_600_001, ..wait };
    refused(bench.client.wait_execution(long).await, Code::InvalidArgument, "INVALID_ARGUMENT");
}

async fn long_output_and_values_are_kept_whole() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let length = 3 << 20;
    let ended = bench.run(&session, &format!("fill:{length} bigvalue:1000000")).await;
    assert_eq!(ended.stdout, pattern(1 << 20), "an answer holds the first MiB");
    assert!(ended.stdout_truncated);
    assert_eq!(ended.return_value_json.unwrap().len(), 1_000_002);
    let offset = 2_000_000;
    let attach = pb::AttachExecutionRequest {
        execution_id: ended.execution_id,
        stdout_offset: offset as u64,
        stderr_offset: 0,
    };
    let mut stream = bench.client.attach_execution(attach).await.unwrap().into_inner();
    let mut replayed = pattern(length)[..offset].to_vec();
    while let Some(event) = stream.message().await.unwrap() {
        match event.event.unwrap() {
            Attached::Stdout(chunk) => {
                assert_eq!(chunk.offset, replayed.len() as u64);
                replayed.extend_from_slice(&chunk.data);
            }
            Attached::Result(result) => assert!(!result.stdout_truncated, "everything was kept"),
            Attached::Started(_) | Attached::Stderr(_) => {}
        }
    }
    assert_eq!(replayed, pattern(length));
}

async fn output_beyond_what_is_kept_is_counted_and_its_cursor_has_expired() {
    let limit = sandmesh_mesh::ByteSize(100_000);
    let mut bench = Bench::with(Config { max_output: limit, ..config() }).await;
    let session = bench.session().await;
    let ended = bench.run(&session, "fill:150000").await;
    assert_eq!((ended.stdout.len(), ended.stdout_truncated), (100_000, true));
    let mut attach = pb::AttachExecutionRequest {
        execution_id: ended.execution_id,
        stdout_offset: 100_000,
        stderr_offset: 0,
    };
    bench.client.attach_execution(attach.clone()).await.unwrap();
    attach.stdout_offset += 1;
    refused(bench.client.attach_execution(attach).await, Code::OutOfRange, "CURSOR_EXPIRED");
}

async fn a_large_program_that_waits_for_a_place_can_be_cancelled() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    bench.executor(&session).lock().full = u32::MAX;
    let waiting = bench.start_in(&session, &format!("{}out:done", " ".repeat(100_000))).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let attempts = u32::MAX - bench.executor(&session).lock().full;
    assert!(attempts <= 4, "{attempts} attempts, each with the whole program");
    let asked = Instant::now();
    let cancel = pb::CancelExecutionRequest { execution_id: waiting.execution_id };
    bench.client.cancel_execution(cancel).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert_eq!(bench.service.programs.available_permits(), crate::service::PROGRAMS_AT_ONCE);
}

async fn large_input_reaches_the_executor_whole() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let code = format!("{}out:done", " ".repeat(100_000));
    let mut request = start(&session.session_id, &code);
    let spec = request.spec.as_mut().unwrap();
    spec.event_json = format!("{{\"x\":\"{}\"}}", "e".repeat(1 << 20));
    spec.stdin = vec![7; 200_000].into();
    let execution = bench.try_start(request.clone()).await.unwrap();
    let ended = bench.ended(&execution).await;
    assert_eq!((ended.stdout.as_ref(), ended.code), (&b"done"[..], code));
    let sent = bench.executor(&session).lock().starts[&execution.execution_id].clone();
    assert_eq!((sent.event_json, sent.stdin.len()), (request.spec.unwrap().event_json.into(), 200_000));
}

async fn dropping_the_stream_does_not_stop_the_run() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let mut request = execute(&session, "out:a sleep:100 out:b");
    request.execution_id = "e".into();
    let mut stream = bench.client.execute(request).await.unwrap().into_inner();
    stream.message().await.unwrap();
    drop(stream);
    let execution = bench.execution("e").await.unwrap();
    assert_eq!(bench.ended(&execution).await.stdout, "ab");
}

async fn an_execution_in_a_session_that_is_gone_from_the_node_does_not_stay_pending() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    bench.world.kill(&session.sandbox_id);
    let ended = bench.run(&session, "out:x").await;
    assert_eq!((ended.state(), ended.cause()), (State::Crashed, Cause::ExecutorLost));
}
