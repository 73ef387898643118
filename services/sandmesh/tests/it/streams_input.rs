//! Input for a run: every byte is read once, however often and over however many connections it was sent.

use std::time::Duration;

use sandmesh_proto::{
    executor::{Language, SignalRequest, StdinChunk, StdinClose},
    session::{ExecutionSpec, SendInputRequest, StartExecutionRequest, send_input_request::Input},
};
use serde_json::Value;
use tonic::{Code, Status};

use crate::{
    harness::{Grpc, Server, Wiring, code_spec},
    streams_watch::{Front, Out, Watcher},
};

in_both_wirings!(
    input_that_is_sent_again_after_a_break_is_read_once,
    input_goes_on_after_the_service_was_killed_and_started_again,
);

/// How long a client tries to get its input through.
const ATTEMPTS: usize = 400;

async fn start(grpc: &mut Grpc, code: &str) -> String {
    let session_id = grpc.session().await;
    let spec = ExecutionSpec {
        keep_stdin_open: true,
        timeout_seconds: Some(120),
        ..code_spec(Language::Shell, code)
    };
    let request = StartExecutionRequest { session_id, spec: Some(spec), ..Default::default() };
    let started = grpc.sessions.start_execution(request).await.unwrap().into_inner();
    started.execution.unwrap().execution_id
}

/// Sends input as a client should: once more when it is not known whether it arrived.
struct Sender {
    address: String,
    execution_id: String,
    grpc: Option<Grpc>,
}

impl Sender {
    fn new(server: &Server, execution_id: &str) -> Self {
        let address = format!("http://127.0.0.1:{}", server.port);
        Self { address, execution_id: execution_id.to_owned(), grpc: None }
    }

    async fn send(&mut self, input: Input) {
        for _ in 0..ATTEMPTS {
            match self.once(input.clone()).await {
                Ok(()) => return,
                Err(status) if [Code::Unavailable, Code::Unknown].contains(&status.code()) => {
                    self.grpc = None;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(status) => panic!("refused: {status:?}"),
            }
        }
        panic!("input does not get through");
    }

    async fn once(&mut self, input: Input) -> Result<(), Status> {
        let grpc = match &mut self.grpc {
            Some(grpc) => grpc,
            none => none.insert(Grpc::try_connect(&self.address).await?),
        };
        let request = SendInputRequest { execution_id: self.execution_id.clone(), input: Some(input) };
        grpc.sessions.send_input(request).await.map(|_| ())
    }

    /// Sends a piece and goes away before the answer can come.
    async fn and_leave(&mut self, input: Input) {
        let _ = tokio::time::timeout(Duration::from_micros(700), self.once(input)).await;
        self.grpc = None;
    }
}

fn piece(all: &[u8], from: usize, to: usize) -> Input {
    let data = all[from..to.min(all.len())].to_vec();
    Input::Stdin(StdinChunk { offset: from as u64, data: data.into() })
}

/// Lines that differ, so that any that is lost, doubled or out of order shows.
fn lines(count: usize) -> Vec<u8> {
    (0..count).flat_map(|n| format!("line {n} of the input\n").into_bytes()).collect()
}

async fn input_that_is_sent_again_after_a_break_is_read_once(wiring: Wiring) {
    const PIECE: usize = 4096;
    let mut server = wiring.start().await;
    let execution = start(&mut server.grpc().await, "cat").await;
    server.api.execution_when(&execution, |execution| execution["status"] == "running").await;
    let all = lines(10_000);
    let mut sender = Sender::new(&server, &execution);
    for (n, from) in (0..all.len()).step_by(PIECE).enumerate() {
        match n % 4 {
            0 => sender.and_leave(piece(&all, from, from + PIECE)).await,
            // A piece that overlaps with what went before.
            1 => sender.send(piece(&all, from.saturating_sub(PIECE * 3 / 2), from + PIECE / 2)).await,
            _ => {}
        }
        sender.send(piece(&all, from, from + PIECE)).await;
        if wiring == Wiring::Split && n % 20 == 10 {
            server.process("gateway").kill();
            server.start_again().await;
        }
    }
    let beyond = Input::Stdin(StdinChunk { offset: all.len() as u64 + 1, data: "x".into() });
    let gap = sender.once(beyond).await.expect_err("a gap");
    assert_eq!(gap.code(), Code::InvalidArgument, "{gap:?}");
    sender.send(Input::CloseStdin(StdinClose::default())).await;
    if let Err(status) = sender.once(Input::CloseStdin(StdinClose::default())).await {
        // Its end came before.
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    }
    let mut watcher = Watcher::new(Front::Sse(server.api.clone()), &execution);
    let (seen, end) = watcher.all().await;
    assert!(seen.stdout == all, "{} of {} bytes: {end:?}", seen.stdout.len(), all.len());
}

async fn input_goes_on_after_the_service_was_killed_and_started_again(wiring: Wiring) {
    let mut server = wiring.start().await;
    let code = "trap 'echo caught' USR1; while read line; do echo \"$line\"; done; echo end";
    let execution = start(&mut server.grpc().await, code).await;
    server.api.execution_when(&execution, |execution| execution["status"] == "running").await;
    let all = lines(30);
    let mut sender = Sender::new(&server, &execution);
    let third = all.len() / 3;
    for part in 0..3 {
        let to = if part == 2 { all.len() } else { third * (part + 1) };
        sender.send(piece(&all, third * part, to)).await;
        // What was read is known to have arrived; a line that is not whole yet is not written.
        let whole = all[..to].iter().rposition(|byte| *byte == b'\n').unwrap();
        let text = String::from_utf8(all[..=whole].to_vec()).unwrap();
        wrote(&server, &execution, &text).await;
        match wiring {
            Wiring::Embedded => server.kill(),
            Wiring::Split => server.process("session").kill(),
        }
        server.start_again().await;
        // What arrived before is dropped, wherever it is sent from.
        sender.send(piece(&all, to.saturating_sub(third / 2), to)).await;
    }
    sender.send(Input::Signal(SignalRequest { signal: 10, sequence: 0 })).await;
    wrote(&server, &execution, "caught").await;
    sender.send(Input::CloseStdin(StdinClose::default())).await;
    let run: Value = server.api.ended(&execution).await;
    let expected = String::from_utf8(all).unwrap() + "caught\nend\n";
    assert_eq!((run["stdout"].as_str().unwrap(), &run["exit_code"]), (expected.as_str(), &0.into()), "{run}");
}

/// Waits until the standard output has a text.
async fn wrote(server: &Server, execution: &str, text: &str) {
    let mut seen = Vec::new();
    let mut watcher = Watcher::new(Front::Sse(server.api.clone()), execution);
    watcher
        .once(&mut |out, bytes: &[u8]| {
            if out == Out::Stdout {
                seen.extend_from_slice(bytes);
            }
            !String::from_utf8_lossy(&seen).contains(text)
        })
        .await;
    assert!(String::from_utf8_lossy(&seen).contains(text), "{:?}", String::from_utf8_lossy(&seen));
}
