//! Following an execution: server-sent events and `AttachExecution`, from any byte, at any time.

use sandmesh_proto::session::{AttachExecutionRequest, attach_execution_response::Event as Attached};
use serde_json::json;
use tonic::Code;

use crate::harness::{Events, Grpc, Wiring, events::output, refused};

in_both_wirings!(
    stream_tells_start_output_and_result_with_cursors,
    stream_resumes_after_the_last_event_without_gap_or_repeat,
    stream_starts_at_the_offsets_that_are_asked_for,
    attach_gives_every_watcher_the_same_bytes,
    output_beyond_what_is_kept_is_an_expired_cursor,
);

/// Writes forty numbered lines, to both streams, for about a second.
const COUNTING: &str = "for i in $(seq 40); do echo line $i; echo note $i >&2; sleep 0.03; done";

fn lines(word: &str) -> String {
    (1..=40).map(|i| format!("{word} {i}\n")).collect()
}

async fn stream_tells_start_output_and_result_with_cursors(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let stream = |body: serde_json::Value| {
        Events::open(api.request("POST", &format!("/sessions/{id}/execute-stream")).json(&body))
    };
    let events = stream(
        json!({"language": "python", "code": "def handler(event):\n    print('out')\n    return [1]"}),
    )
    .await
    .rest()
    .await;
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["started", "stdout", "result"], "{events:?}");
    assert!(events.iter().all(|event| !event.id.is_empty()), "each has a cursor: {events:?}");
    assert_eq!(output(&events, "stdout"), "out\n");
    let result = &events[2].data;
    assert_eq!(
        (&result["status"], &result["return_value"], &result["exit_code"]),
        (&json!("completed"), &json!([1]), &json!(0))
    );
    let stored = api.get(&format!("/executions/{}", result["id"].as_str().unwrap())).await.is(200);
    assert_eq!(
        (&stored["status"], &stored["stdout"]),
        (&json!("completed"), &json!("out\n")),
        "ended when it is told"
    );

    let events = stream(json!({"language": "shell", "code": "echo bad >&2; exit 3"})).await.rest().await;
    assert_eq!(output(&events, "stderr"), "bad\n");
    let last = events.last().unwrap();
    assert_eq!((&last.data["status"], &last.data["exit_code"]), (&json!("failed"), &json!(3)), "{events:?}");

    // What is written is sent when it is written, not at the end.
    let mut live = stream(json!({"language": "shell", "code": "echo first; sleep 3; echo second"})).await;
    let start = std::time::Instant::now();
    live.until_stdout_has("first").await;
    assert!(start.elapsed().as_secs_f32() < 2.5, "{:?}", start.elapsed());
    assert_eq!(output(&live.rest().await, "stdout"), "second\n");
}

async fn stream_resumes_after_the_last_event_without_gap_or_repeat(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let execution = api.start(&id, json!({"language": "shell", "code": COUNTING})).await;
    let (mut all, mut cursor) = (Vec::new(), None::<String>);
    for stop in ["line 3\n", "line 9\n", "line 20\n"] {
        let mut events = api.follow(&execution, cursor.as_deref()).await;
        while !output(&all, "stdout").contains(stop) {
            all.push(events.next().await.expect("it still runs"));
        }
        cursor = all.last().map(|event| event.id.clone());
    }
    all.extend(api.follow(&execution, cursor.as_deref()).await.rest().await);
    assert_eq!((output(&all, "stdout"), output(&all, "stderr")), (lines("line"), lines("note")));
    assert_eq!(all.last().unwrap().data["status"], "completed");

    // After its end, from every cursor that was ever given.
    let whole = api.follow(&execution, None).await.rest().await;
    assert_eq!((output(&whole, "stdout"), output(&whole, "stderr")), (lines("line"), lines("note")));
    for (position, event) in all.iter().enumerate().filter(|(_, event)| event.name != "result") {
        let rest = api.follow(&execution, Some(&event.id)).await.rest().await;
        for stream in ["stdout", "stderr"] {
            let joined = output(&all[..=position], stream) + &output(&rest, stream);
            assert_eq!(joined, output(&whole, stream), "{stream} after {}", event.id);
        }
        assert_eq!(rest.last().map(|event| event.name.as_str()), Some("result"));
    }
    let forged =
        api.request("GET", &format!("/executions/{execution}/stream")).header("Last-Event-ID", "forged");
    api.send(forged).await.names("header.Last-Event-ID");
}

async fn stream_starts_at_the_offsets_that_are_asked_for(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let run = api.run(&id, "shell", "printf 0123456789; printf abcdef >&2").await;
    let path = format!("/executions/{}/stream", run["id"].as_str().unwrap());
    let read = async |query: &str| {
        let events = Events::open(api.request("GET", &format!("{path}?{query}"))).await.rest().await;
        (output(&events, "stdout"), output(&events, "stderr"))
    };
    assert_eq!(read("").await, ("0123456789".into(), "abcdef".into()));
    assert_eq!(read("stdout_offset=4&stderr_offset=5").await, ("456789".into(), "f".into()));
    assert_eq!(read("stdout_offset=10").await, (String::new(), "abcdef".into()));
    api.get(&format!("{path}?stdout_offset=-1")).await.names("query.stdout_offset");
    api.get(&format!("{path}?stderr_offset=x")).await.names("query.stderr_offset");
}

/// What `AttachExecution` gives from two offsets to the end.
async fn attach(
    mut grpc: Grpc,
    execution_id: &str,
    stdout_offset: u64,
    stderr_offset: u64,
) -> (Vec<u8>, Vec<u8>) {
    let request = AttachExecutionRequest { execution_id: execution_id.into(), stdout_offset, stderr_offset };
    let mut stream = grpc.sessions.attach_execution(request).await.unwrap().into_inner();
    let (mut stdout, mut stderr, mut ended) = (Vec::new(), Vec::new(), false);
    while let Some(response) = stream.message().await.unwrap() {
        assert!(!ended, "the result is the last event");
        match response.event.unwrap() {
            Attached::Started(_) => {}
            Attached::Stdout(chunk) => {
                assert_eq!(chunk.offset, stdout_offset + stdout.len() as u64);
                stdout.extend(chunk.data);
            }
            Attached::Stderr(chunk) => {
                assert_eq!(chunk.offset, stderr_offset + stderr.len() as u64);
                stderr.extend(chunk.data);
            }
            Attached::Result(execution) => {
                ended = true;
                assert_eq!(execution.exit_code, Some(0));
            }
        }
    }
    assert!(ended, "a stream ends with the result");
    (stdout, stderr)
}

async fn attach_gives_every_watcher_the_same_bytes(wiring: Wiring) {
    let server = wiring.start().await;
    let id = server.api.session().await;
    let execution = server.api.start(&id, json!({"language": "shell", "code": COUNTING})).await;
    // An offset that was not written yet is no cursor that was ever given.
    server.api.wrote(&execution, "line 20\n").await;
    let grpc = server.grpc().await;
    let (stdout, stderr) = (lines("line").into_bytes(), lines("note").into_bytes());
    let from = |bytes: &[u8], offset: u64| bytes[usize::try_from(offset).unwrap()..].to_vec();
    let offsets = [(0, 0), (7, 0), (0, 50), (100, 100)];
    let live = offsets.map(|(out, err)| attach(grpc.clone(), &execution, out, err));
    for ((out, err), read) in offsets.into_iter().zip(futures::future::join_all(live).await) {
        let expected = (from(&stdout, out), from(&stderr, err));
        assert_eq!(read, expected, "live from {out}, {err}");
        assert_eq!(attach(grpc.clone(), &execution, out, err).await, expected, "replayed from {out}, {err}");
    }
    let end = (stdout.len() as u64, stderr.len() as u64);
    assert_eq!(attach(grpc.clone(), &execution, end.0, end.1).await, (Vec::new(), Vec::new()));
    let mut sessions = grpc.sessions;
    let none = AttachExecutionRequest { execution_id: "none".into(), ..Default::default() };
    refused(sessions.attach_execution(none).await, Code::NotFound, "EXECUTION_NOT_FOUND");
}

async fn output_beyond_what_is_kept_is_an_expired_cursor(wiring: Wiring) {
    let server = wiring.start_with(&[("SANDMESH_AGENT__MAX_OUTPUT", "64KiB")]).await;
    let api = &server.api;
    let id = api.session().await;
    let run = api.run(&id, "shell", "head -c 200000 /dev/zero | tr '\\0' x").await;
    assert_eq!(
        (&run["status"], &run["stdout_truncated"]),
        (&json!("completed"), &json!(true)),
        "{}",
        run["error"]
    );
    assert_eq!(run["stdout"].as_str().unwrap().len(), 64 << 10);
    let execution = run["id"].as_str().unwrap();
    api.get(&format!("/executions/{execution}/stream?stdout_offset=100000"))
        .await
        .refused(410, "Sandbox.CursorExpired");
    let mut grpc = server.grpc().await;
    let request =
        AttachExecutionRequest { execution_id: execution.into(), stdout_offset: 100_000, stderr_offset: 0 };
    refused(grpc.sessions.attach_execution(request).await, Code::OutOfRange, "CURSOR_EXPIRED");
    assert_eq!(attach(grpc, execution, 65_000, 0).await.0.len(), (64 << 10) - 65_000);
}
