//! The gRPC twins of behaviours 22 to 39, and what only gRPC can do: input, commands, exact bytes.

use std::{collections::HashMap, time::Duration};

use prost::Message;
use sandmesh_proto::{
    executor::{Cause, Language, Mode, SignalRequest, StdinChunk, StdinClose},
    session::{
        CancelExecutionRequest, ExecuteRequest, ExecutionSpec, GetExecutionRequest, ListExecutionsRequest,
        SendInputRequest, StartExecutionRequest, TerminateSessionRequest, WaitExecutionRequest,
        execution::State, send_input_request::Input,
    },
};
use tonic::Code;

use crate::harness::{Grpc, Wiring, code_spec, follow, refused};

in_both_wirings!(
    handler_runs_over_grpc,
    failures_and_timeouts_over_grpc,
    output_is_exact_bytes_over_grpc,
    executions_are_started_waited_for_and_listed_over_grpc,
    repeated_execute_attaches_to_the_first_run,
    input_reaches_a_run_that_keeps_its_stdin_open,
    dropped_stream_does_not_stop_the_run,
    deadline_of_a_call_is_kept_by_the_server,
);

fn shell(code: &str) -> ExecutionSpec {
    ExecutionSpec { timeout_seconds: Some(60), ..code_spec(Language::Shell, code) }
}

// 22 to 26, 31, 39
async fn handler_runs_over_grpc(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let id = grpc.session().await;
    let spec = ExecutionSpec {
        event_json: r#"{"name": "\u00c5sa", "n": 12345678901234567890}"#.into(),
        env: HashMap::from([("KEY".into(), "value".into())]),
        ..code_spec(
            Language::Python,
            "import os\ndef handler(event):\n    print('hi', event['name'])\n    return {'n': event['n'], 'key': os.environ['KEY'], 'none': None}",
        )
    };
    let run = grpc.execute(&id, spec).await;
    assert!(run.started);
    assert_eq!(String::from_utf8(run.stdout).unwrap(), "hi \u{c5}sa\n");
    let result = run.result;
    assert_eq!(
        (result.state(), result.exit_code, result.cause()),
        (State::Completed, Some(0), Cause::Unspecified)
    );
    let returned: serde_json::Value = serde_json::from_str(result.return_value_json()).unwrap();
    assert_eq!(
        returned,
        serde_json::json!({"n": 12_345_678_901_234_567_890_u64, "key": "value", "none": null})
    );
    let metrics = result.metrics.unwrap();
    assert!(metrics.cpu_time.unwrap().nanos > 0 && metrics.peak_memory_bytes > 1 << 17, "{metrics:?}");
    assert!(result.stdout.is_empty(), "what was streamed is not repeated");
    let whole =
        grpc.sessions.get_execution(GetExecutionRequest { execution_id: run.execution_id }).await.unwrap();
    assert_eq!(whole.into_inner().execution.unwrap().stdout, "hi \u{c5}sa\n".as_bytes());
    for (value, expected) in
        [("0", "0"), ("''", "\"\""), ("None", "null"), ("False", "false"), ("2.0", "2.0")]
    {
        let run = grpc.python(&id, &format!("def handler(event): return {value}")).await;
        assert_eq!(run.result.return_value_json.as_deref(), Some(expected), "{value}");
    }
    let script = ExecutionSpec { mode: Mode::Script.into(), ..code_spec(Language::Python, "print(6 * 7)") };
    let run = grpc.execute(&id, script).await;
    assert_eq!((run.stdout.as_slice(), run.result.return_value_json), (b"42\n".as_slice(), None));
    let command = ExecutionSpec {
        command: vec!["printf".into(), "%s|".into(), "a b".into(), "$HOME".into()],
        ..Default::default()
    };
    assert_eq!(grpc.execute(&id, command).await.stdout, b"a b|$HOME|");
}

// 26 to 30
async fn failures_and_timeouts_over_grpc(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let id = grpc.session().await;
    let run = grpc.python(&id, "def handler(event): raise KeyError('gone')").await;
    let error = run.result.error.clone().unwrap();
    assert_eq!(
        (run.result.state(), run.result.exit_code, error.r#type.as_str()),
        (State::Failed, Some(1), "KeyError")
    );
    assert!(String::from_utf8_lossy(&run.stderr).contains("Traceback"));
    let run = grpc.execute(&id, shell("kill -9 $$")).await.result;
    assert_eq!((run.state(), run.exit_code, run.signal), (State::Failed, None, Some(9)));
    let missing = ExecutionSpec { command: vec!["no-such-program".into()], ..Default::default() };
    let run = grpc.execute(&id, missing).await;
    assert_eq!(run.result.state(), State::Failed);
    let told = run.result.error.unwrap();
    assert!(!run.started && told.message.contains("no-such-program"), "{told:?}");

    let spec = ExecutionSpec { timeout_seconds: Some(1), ..shell("echo before; sleep 100") };
    let run = grpc.execute(&id, spec).await;
    assert_eq!(
        (run.result.state(), run.result.cause(), run.result.exit_code),
        (State::Timeout, Cause::Timeout, None)
    );
    assert_eq!(run.stdout, b"before\n");
    let measured = Duration::try_from(run.result.metrics.unwrap().duration.unwrap()).unwrap();
    assert!((1000..1500).contains(&measured.as_millis()), "{measured:?}");
}

// 31, 32
async fn output_is_exact_bytes_over_grpc(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let id = grpc.session().await;
    let code = "import os\nos.write(1, bytes(range(256)) * 400)\nos.write(2, b'\\xff\\x00\\x1b[31m')";
    let run = grpc
        .execute(&id, ExecutionSpec { mode: Mode::Script.into(), ..code_spec(Language::Python, code) })
        .await;
    let all: Vec<u8> = (0..=255).cycle().take(256 * 400).collect();
    assert!(run.stdout == all, "{} bytes, not these", run.stdout.len());
    assert_eq!(run.stderr, b"\xff\x00\x1b[31m");
    // More than a record keeps inline: it is streamed whole, and replayed whole.
    let run = grpc.execute(&id, shell("seq 1000000")).await;
    let expected: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
    assert!(run.stdout == expected.as_bytes(), "{} of {} bytes", run.stdout.len(), expected.len());
    assert!(!run.result.stdout_truncated);
    let got =
        grpc.sessions.get_execution(GetExecutionRequest { execution_id: run.execution_id }).await.unwrap();
    let got = got.into_inner().execution.unwrap();
    assert!(
        expected.as_bytes().starts_with(&got.stdout) && got.stdout.len() >= 1 << 20,
        "{}",
        got.stdout.len()
    );
    assert!(got.stdout_truncated, "one message has the beginning, and says so");
}

// 35, 36
async fn executions_are_started_waited_for_and_listed_over_grpc(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let id = grpc.session().await;
    let start = |session_id: &str, code: &str| StartExecutionRequest {
        session_id: session_id.into(),
        spec: Some(shell(code)),
        ..Default::default()
    };
    let first = grpc.sessions.start_execution(start(&id, "sleep 1.5; echo done")).await.unwrap();
    let first = first.into_inner().execution.unwrap();
    assert_eq!(first.state(), State::Pending);
    let wait = |wait_ms: u32| WaitExecutionRequest { execution_id: first.execution_id.clone(), wait_ms };
    let early = grpc.sessions.wait_execution(wait(0)).await.unwrap().into_inner().execution.unwrap();
    assert!(matches!(early.state(), State::Pending | State::Running), "{early:?}");
    let ended = grpc.sessions.wait_execution(wait(30_000)).await.unwrap().into_inner().execution.unwrap();
    assert_eq!((ended.state(), &ended.stdout[..]), (State::Completed, b"done\n".as_slice()));

    let second = grpc.execute(&id, shell("exit 1")).await.execution_id;
    let list = |state: State| ListExecutionsRequest {
        session_id: id.clone(),
        state: state.into(),
        ..Default::default()
    };
    let all = grpc.sessions.list_executions(list(State::Unspecified)).await.unwrap().into_inner();
    let ids: Vec<&str> = all.executions.iter().map(|execution| execution.execution_id.as_str()).collect();
    assert_eq!((ids, all.total), (vec![second.as_str(), first.execution_id.as_str()], 2), "newest first");
    let failed = grpc.sessions.list_executions(list(State::Failed)).await.unwrap().into_inner();
    assert_eq!((failed.total, failed.executions[0].execution_id.as_str()), (1, second.as_str()));

    let cancel = CancelExecutionRequest { execution_id: second };
    refused(grpc.sessions.cancel_execution(cancel).await, Code::FailedPrecondition, "EXECUTION_ENDED");
    let long =
        grpc.sessions.start_execution(start(&id, "sleep 100")).await.unwrap().into_inner().execution.unwrap();
    let cancel = CancelExecutionRequest { execution_id: long.execution_id };
    let cancelled = grpc.sessions.cancel_execution(cancel).await.unwrap().into_inner().execution.unwrap();
    assert_eq!(cancelled.state(), State::Cancelled);

    refused(grpc.sessions.start_execution(start("none", "true")).await, Code::NotFound, "SESSION_NOT_FOUND");
    grpc.sessions.terminate_session(TerminateSessionRequest { session_id: id.clone() }).await.unwrap();
    refused(
        grpc.sessions.start_execution(start(&id, "true")).await,
        Code::FailedPrecondition,
        "SESSION_NOT_ACTIVE",
    );
    let execute = ExecuteRequest { session_id: id, spec: Some(shell("true")), ..Default::default() };
    refused(grpc.sessions.execute(execute).await, Code::FailedPrecondition, "SESSION_NOT_ACTIVE");
}

pub(crate) async fn repeated_execute_attaches_to_the_first_run(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let id = grpc.session().await;
    let request = ExecuteRequest {
        session_id: id.clone(),
        spec: Some(shell("echo run >> runs; for i in 1 2 3 4 5; do echo $i; sleep 0.1; done")),
        request_id: "once".into(),
        ..Default::default()
    };
    async fn run(mut grpc: Grpc, request: ExecuteRequest) -> (String, Vec<u8>) {
        let outcome = follow(grpc.sessions.execute(request).await.unwrap().into_inner()).await;
        (outcome.execution_id, outcome.stdout)
    }
    let all = futures::future::join_all((0..20).map(|_| run(grpc.clone(), request.clone()))).await;
    assert!(
        all.iter().all(|(execution, stdout)| *execution == all[0].0 && stdout == b"1\n2\n3\n4\n5\n"),
        "{all:?}"
    );
    assert_eq!(run(grpc.clone(), request).await, all[0], "also after its end");
    assert_eq!(grpc.execute(&id, shell("cat runs")).await.stdout, b"run\n");
}

async fn input_reaches_a_run_that_keeps_its_stdin_open(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let id = grpc.session().await;
    let spec = ExecutionSpec {
        stdin: b"zero\n".to_vec().into(),
        keep_stdin_open: true,
        ..shell("while read line; do echo \"got $line\"; done; echo end")
    };
    let request = StartExecutionRequest { session_id: id.clone(), spec: Some(spec), ..Default::default() };
    let execution =
        grpc.sessions.start_execution(request).await.unwrap().into_inner().execution.unwrap().execution_id;
    server.api.wrote(&execution, "got zero").await;
    let send = |input: Input| SendInputRequest { execution_id: execution.clone(), input: Some(input) };
    let chunk = |offset: u64, data: &'static [u8]| Input::Stdin(StdinChunk { offset, data: data.into() });
    grpc.sessions.send_input(send(chunk(5, b"one\nt"))).await.unwrap();
    grpc.sessions.send_input(send(chunk(5, b"one\nt"))).await.unwrap();
    grpc.sessions.send_input(send(chunk(10, b"wo\n"))).await.unwrap();
    let gap = grpc.sessions.send_input(send(chunk(500, b"late"))).await.expect_err("a gap");
    assert_eq!(gap.code(), Code::InvalidArgument, "{gap:?}");
    grpc.sessions.send_input(send(Input::CloseStdin(StdinClose::default()))).await.unwrap();
    let run = server.api.ended(&execution).await;
    assert_eq!(run["stdout"], "got zero\ngot one\ngot two\nend\n", "{run}");
    refused(
        grpc.sessions.send_input(send(chunk(13, b"x"))).await,
        Code::FailedPrecondition,
        "EXECUTION_NOT_RUNNING",
    );

    let trap = shell("trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done");
    let request = StartExecutionRequest { session_id: id, spec: Some(trap), ..Default::default() };
    let execution =
        grpc.sessions.start_execution(request).await.unwrap().into_inner().execution.unwrap().execution_id;
    server.api.wrote(&execution, "ready").await;
    let input = Some(Input::Signal(SignalRequest { signal: 10, sequence: 0 }));
    grpc.sessions.send_input(SendInputRequest { execution_id: execution.clone(), input }).await.unwrap();
    let run = server.api.ended(&execution).await;
    assert_eq!((&run["exit_code"], &run["stdout"]), (&5.into(), &"ready\ncaught\n".into()), "{run}");
}

async fn dropped_stream_does_not_stop_the_run(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let id = grpc.session().await;
    let request = ExecuteRequest {
        session_id: id,
        spec: Some(shell("sleep 1; echo on")),
        execution_id: "dropped".into(),
        ..Default::default()
    };
    let mut stream = grpc.sessions.execute(request).await.unwrap().into_inner();
    stream.message().await.unwrap().expect("accepted");
    drop(stream);
    let run = server.api.ended("dropped").await;
    assert_eq!((&run["status"], &run["stdout"]), (&"completed".into(), &"on\n".into()), "{run}");
}

async fn deadline_of_a_call_is_kept_by_the_server(wiring: Wiring) {
    let server = wiring.start().await;
    let id = server.api.session().await;
    let execution =
        server.api.start(&id, serde_json::json!({"language": "shell", "code": "sleep 100"})).await;
    let wait = WaitExecutionRequest { execution_id: execution, wait_ms: 20_000 }.encode_to_vec();
    let frame = [&[0][..], &u32::try_from(wait.len()).unwrap().to_be_bytes(), &wait].concat();
    // Over gRPC-web, because a gRPC client would end the call by itself.
    let call = server.api.request_root("POST", "/sandmesh.session.v1.SessionService/WaitExecution");
    let call = call.header("content-type", "application/grpc-web+proto").header("grpc-timeout", "300m");
    let start = std::time::Instant::now();
    let answer = server.api.send(call.body(frame)).await;
    let told = format!("{:?}{}", answer.headers, answer.text);
    assert!(told.contains("\"grpc-status\": \"4\"") || told.contains("grpc-status:4"), "{told}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
