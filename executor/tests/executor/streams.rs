//! The Execute stream: starting, attaching, replaying, input, and what is refused.

use std::time::{Duration, Instant};

use sandmesh_proto::executor::{self as pb, execute_request::Frame as Input, execute_response::Frame};
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::*;

#[tokio::test]
async fn start_of_a_known_id_never_runs_twice() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let start = script("open('count', 'a').write('x'); print('once')");
    let mut talks = Vec::new();
    for _ in 0..5 {
        talks.push(Talk::open(&mut client, Input::Start(start.clone())).await.unwrap());
    }
    for talk in talks {
        assert_eq!(talk.rest(Said::default(), (0, 0)).await.unwrap().out(), "once\n");
    }
    assert_eq!(run(&mut client, start).await.out(), "once\n", "after the end too");
    assert_eq!(std::fs::read_to_string(daemon.dir.join("workspace/count")).unwrap(), "x");
}

#[tokio::test]
async fn run_outlives_its_stream_and_is_resumed_byte_for_byte() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "import time, sys\nfor n in range(40):\n    print('line', n); print('error', n, file=sys.stderr); time.sleep(0.02)";
    let start = script(text);
    let id = start.execution_id.clone();
    let mut said = Said::default();
    let mut talk = Talk::open(&mut client, Input::Start(start)).await.unwrap();
    talk.until_stdout(&mut said, "line 3").await;
    drop(talk);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let base = (said.stdout.len() as u64, said.stderr.len() as u64);
    let mut second = daemon.client().await;
    let talk = Talk::open(&mut second, attach(&id, base.0, base.1)).await.unwrap();
    let rest = talk.rest(Said::default(), base).await.unwrap();
    assert!(rest.started.is_some(), "an attach learns when it was started");
    let whole: String = (0..40).map(|n| format!("line {n}\n")).collect();
    assert_eq!(said.out() + &rest.out(), whole);
    assert_eq!(said.err() + &rest.err(), whole.replace("line", "error"));
    let end = whole.len() as u64;
    for offset in [0, 1, end / 2, end] {
        let talk = Talk::open(&mut client, attach(&id, offset, 0)).await.unwrap();
        let replay = talk.rest(Said::default(), (offset, 0)).await.unwrap();
        assert_eq!(replay.out(), whole[usize::try_from(offset).unwrap()..], "after the end, from {offset}");
        assert_eq!(replay.code(), Some(0));
    }
    let expired = Talk::open(&mut client, attach(&id, end + 1, 0)).await.err().unwrap();
    assert_eq!((expired.code(), reason(&expired).as_str()), (Code::OutOfRange, "CURSOR_EXPIRED"));
}

/// An execution that runs until its input ends.
async fn waiting(client: &mut Client) -> (String, Talk) {
    let start = pb::ExecutionStart { keep_stdin_open: true, ..script("input()") };
    let id = start.execution_id.clone();
    let mut talk = Talk::open(client, Input::Start(start)).await.unwrap();
    assert!(matches!(talk.next().await.unwrap().unwrap(), Frame::Started(_)));
    (id, talk)
}

#[tokio::test]
async fn acknowledged_execution_is_forgotten() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let (id, talk) = waiting(&mut client).await;
    let acknowledge = || pb::AcknowledgeExecutionRequest { execution_id: id.clone() };
    let early = client.acknowledge_execution(acknowledge()).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition);
    let list = client.list_executions(pb::ListExecutionsRequest {}).await.unwrap().into_inner();
    assert_eq!(list.executions, [pb::ExecutionSummary { execution_id: id.clone(), ended: false }]);
    talk.send(Input::CloseStdin(pb::StdinClose::default())).await;
    assert_eq!(talk.rest(Said::default(), (0, 0)).await.unwrap().code(), Some(1));
    client.acknowledge_execution(acknowledge()).await.unwrap();
    client.acknowledge_execution(acknowledge()).await.expect("again is fine");
    let gone = Talk::open(&mut client, attach(&id, 0, 0)).await.err().unwrap();
    assert_eq!((gone.code(), reason(&gone).as_str()), (Code::NotFound, "EXECUTION_NOT_FOUND"));
    let list = client.list_executions(pb::ListExecutionsRequest {}).await.unwrap().into_inner();
    assert!(list.executions.is_empty());
    let again = pb::ExecutionStart { execution_id: id.clone(), ..script("print(1)") };
    let refused = Talk::open(&mut client, Input::Start(again)).await.err().unwrap();
    let expected = (Code::FailedPrecondition, "EXECUTION_ACKNOWLEDGED");
    assert_eq!((refused.code(), reason(&refused).as_str()), expected, "it has run");
}

#[tokio::test]
async fn of_several_those_that_ended_are_forgotten() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let start = script("pass");
        ids.push(start.execution_id.clone());
        run(&mut client, start).await;
    }
    let (id, talk) = waiting(&mut client).await;
    ids.insert(1, id);
    let acknowledge = || pb::AcknowledgeExecutionsRequest { execution_ids: ids.clone() };
    let refused = client.acknowledge_executions(acknowledge()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "one of them runs");
    let list = client.list_executions(pb::ListExecutionsRequest {}).await.unwrap().into_inner();
    assert_eq!(list.executions, [pb::ExecutionSummary { execution_id: ids[1].clone(), ended: false }]);
    talk.send(Input::CloseStdin(pb::StdinClose::default())).await;
    talk.rest(Said::default(), (0, 0)).await.unwrap();
    for _ in 0..2 {
        client.acknowledge_executions(acknowledge()).await.unwrap();
    }
    let list = client.list_executions(pb::ListExecutionsRequest {}).await.unwrap().into_inner();
    assert!(list.executions.is_empty());
}

#[tokio::test]
async fn stdin_is_exact_and_late_input_is_ignored() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let start = pb::ExecutionStart {
        stdin: "first ".into(),
        keep_stdin_open: true,
        ..script("import sys; print(sys.stdin.read())")
    };
    let talk = Talk::open(&mut client, Input::Start(start)).await.unwrap();
    for (offset, data) in [(6, "second "), (6, "second "), (10, "nd third")] {
        talk.send(Input::Stdin(pb::StdinChunk { offset, data: data.into() })).await;
    }
    talk.send(Input::CloseStdin(pb::StdinClose::default())).await;
    let said = talk.rest(Said::default(), (0, 0)).await.unwrap();
    assert_eq!(said.out(), "first second third\n");

    // More than a pipe holds, to a process that takes its time: the caller waits, nothing is lost.
    let text = "import sys, time, hashlib; time.sleep(0.3); print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())";
    let talk =
        Talk::open(&mut client, Input::Start(pb::ExecutionStart { keep_stdin_open: true, ..script(text) }))
            .await
            .unwrap();
    for n in 0..40_u8 {
        let chunk = pb::StdinChunk { offset: u64::from(n) << 17, data: vec![n; 1 << 17].into() };
        talk.send(Input::Stdin(chunk)).await;
    }
    talk.send(Input::CloseStdin(pb::StdinClose::default())).await;
    let said = talk.rest(Said::default(), (0, 0)).await.unwrap();
    let check = script(
        "import hashlib; print(hashlib.sha256(b''.join(bytes([n]) * (1 << 17) for n in range(40))).hexdigest())",
    );
    assert_eq!(said.out(), run(&mut client, check).await.out());

    let text = "import os, time; os.close(0); print('closed'); time.sleep(0.3); print('end')";
    let mut talk =
        Talk::open(&mut client, Input::Start(pb::ExecutionStart { keep_stdin_open: true, ..script(text) }))
            .await
            .unwrap();
    let mut said = Said::default();
    talk.until_stdout(&mut said, "closed").await;
    for n in 0..3 {
        talk.send(Input::Stdin(pb::StdinChunk { offset: n * 100_000, data: vec![0; 100_000].into() })).await;
    }
    assert_eq!(talk.rest(said, (0, 0)).await.unwrap().out(), "closed\nend\n");
}

#[tokio::test]
async fn signal_reaches_the_main_process() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done";
    let mut talk = Talk::open(&mut client, Input::Start(shell(text))).await.unwrap();
    let mut said = Said::default();
    talk.until_stdout(&mut said, "ready").await;
    talk.send(signal(libc::SIGUSR1, 0)).await;
    let said = talk.rest(said, (0, 0)).await.unwrap();
    assert_eq!((said.out().as_str(), said.code()), ("ready\ncaught\n", Some(5)));
    let talk = Talk::open(&mut client, Input::Start(shell("sleep 30"))).await.unwrap();
    talk.send(signal(libc::SIGKILL, 0)).await;
    let said = talk.rest(Said::default(), (0, 0)).await.unwrap();
    assert_eq!((said.signal(), said.cause()), (Some(libc::SIGKILL), pb::Cause::Unspecified));
}

#[tokio::test]
async fn malformed_frames_are_refused_by_field() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let refused = |status: tonic::Status| {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
        status.get_details_bad_request().unwrap().field_violations[0].field.clone()
    };
    for (first, field) in [
        (Input::CloseStdin(pb::StdinClose::default()), "frame"),
        (Input::Start(pb::ExecutionStart { timeout: None, ..script("pass") }), "start.timeout"),
        (
            Input::Start(pb::ExecutionStart { execution_id: "a/b".into(), ..script("pass") }),
            "start.execution_id",
        ),
        (Input::Start(pb::ExecutionStart { event_json: "{".into(), ..script("pass") }), "start.event_json"),
    ] {
        let status = Talk::open(&mut client, first).await.err().unwrap();
        assert_eq!(refused(status), field);
    }
    let empty = client.execute(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(refused(empty), "frame");
    for (frame, field) in [
        (Input::Stdin(pb::StdinChunk { offset: 5, data: "x".into() }), "stdin.offset"),
        (Input::Stdin(pb::StdinChunk { offset: 0, data: vec![0; (1 << 20) + 1].into() }), "stdin.data"),
        (signal(64, 0), "signal.signal"),
        (signal(0, 0), "signal.signal"),
        (Input::Start(script("pass")), "frame"),
    ] {
        let start = pb::ExecutionStart {
            keep_stdin_open: true,
            ..script("import time; time.sleep(0.5); print('done')")
        };
        let id = start.execution_id.clone();
        let talk = Talk::open(&mut client, Input::Start(start)).await.unwrap();
        talk.send(frame).await;
        let status = talk.rest(Said::default(), (0, 0)).await.unwrap_err();
        assert_eq!(refused(status), field);
        let talk = Talk::open(&mut client, attach(&id, 0, 0)).await.unwrap();
        assert_eq!(talk.rest(Said::default(), (0, 0)).await.unwrap().out(), "done\n", "the run goes on");
    }
    let closed = script("import time; time.sleep(0.3)");
    let talk = Talk::open(&mut client, Input::Start(closed)).await.unwrap();
    talk.send(Input::Stdin(pb::StdinChunk { offset: 0, data: "x".into() })).await;
    assert_eq!(refused(talk.rest(Said::default(), (0, 0)).await.unwrap_err()), "stdin");
}

#[tokio::test]
async fn endless_output_is_truncated_and_memory_stays_flat() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    run(&mut client, script("print('warm')")).await;
    let before = rss(daemon.child.id());
    let text = "import sys\nfor n in range(100): sys.stdout.write(chr(65 + n % 26) * (1 << 20))\nsys.stderr.write('end')";
    let began = Instant::now();
    let said = run(&mut client, script(text)).await;
    println!("100 MiB in {:?}", began.elapsed());
    let exited = said.exited();
    assert_eq!((said.code(), exited.stdout_bytes, exited.stdout_truncated), (Some(0), 100 << 20, true));
    assert_eq!(said.stdout, vec![b'A'; 1 << 20], "the first bytes are kept");
    assert_eq!((said.err().as_str(), exited.stderr_truncated), ("end", false));
    let grown = rss(daemon.child.id()).saturating_sub(before);
    assert!(grown < 8 << 20, "grew by {} KiB", grown >> 10);
    assert_eq!(std::fs::read_dir(daemon.dir.join("spool")).unwrap().count(), 0);
}

#[tokio::test]
async fn output_is_bytes_and_one_long_line_is_fine() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let said =
        run(&mut client, script("import sys; sys.stdout.buffer.write(bytes(range(256)) * 2000)")).await;
    let expected: Vec<u8> = (0..2000).flat_map(|_| 0..=255_u8).collect();
    assert_eq!(said.stdout, expected);
}

#[tokio::test]
async fn metrics_are_measured_on_the_execution() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "
import time, os
data = bytearray(100 << 20)
end = time.process_time() + 0.3
while time.process_time() < end: pass
with open('/workspace/file', 'wb') as f: f.write(data[:8 << 20]); f.flush(); os.fsync(f.fileno())
time.sleep(0.2)
";
    let said = run(&mut client, script(text)).await;
    let metrics = said.exited().metrics.unwrap();
    let millis = |d: Option<prost_types::Duration>| Duration::try_from(d.unwrap()).unwrap().as_millis();
    assert!((300..2000).contains(&millis(metrics.cpu_time)), "{metrics:?}");
    assert!(millis(metrics.duration) >= 500, "{metrics:?}");
    assert!((100..200).contains(&(metrics.peak_memory_bytes >> 20)), "{metrics:?}");
    assert!(metrics.io_write_bytes >= 8 << 20, "{metrics:?}");
    assert!(millis(metrics.startup) < 5000 && metrics.queued.is_some(), "{metrics:?}");
    let small = run(&mut client, python("def handler(e): return 1")).await;
    assert!(
        small.exited().metrics.unwrap().peak_memory_bytes < 64 << 20,
        "each execution has its own account"
    );
    assert_eq!(small.value(), json!(1));
}

fn reason(status: &tonic::Status) -> String {
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.domain, "sandmesh");
    info.reason
}

/// Memory of a process that is its own.
fn rss(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}
