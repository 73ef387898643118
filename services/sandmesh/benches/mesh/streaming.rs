//! Output streamed end to end: how fast it arrives, whether every byte does, and what memory it takes.

use std::time::Instant;

use anyhow::{Context, bail, ensure};
use sandmesh_proto::{
    executor::{Language, Mode},
    session::{ExecuteRequest, ExecutionSpec, execute_response::Event, execution::State},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    process,
    stack::{Session, Stack},
    stats::median,
    work::Door,
};

/// Memory may grow by this much and by this fraction of what is streamed, and still counts as flat.
const FLAT: (f64, f64) = (16.0, 0.05);

/// What is written over and over.
const PATTERN: &[u8; 16] = b"0123456789abcdef";

const MIB: u64 = 1 << 20;

/// One stream.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Stream {
    /// From the request to the result, in 10^6 bytes per second.
    pub(crate) mb_per_second: f64,
    /// By how much the peak of the server's resident memory was above what it had before, in MiB.
    pub(crate) server_growth_mib: f64,
    /// The same of the executor.
    pub(crate) executor_growth_mib: f64,
    /// The server's resident memory before, in MiB.
    pub(crate) server_before_mib: f64,
    /// The same afterwards.
    pub(crate) server_after_mib: f64,
}

/// What was streamed through one door, in all rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Streamed {
    #[serde(skip)]
    pub(crate) door: Door,
    /// How, for people.
    pub(crate) how: &'static str,
    /// How much each time.
    pub(crate) mib: u32,
    /// Those that came whole.
    pub(crate) streams: Vec<Stream>,
    /// How many did not.
    pub(crate) failures: usize,
    /// Why the first did not.
    pub(crate) first_failure: Option<String>,
}

impl Streamed {
    /// Nothing yet.
    pub(crate) fn new(door: Door, mib: u32) -> Self {
        let how = if door == Door::Rest { "server-sent events" } else { "gRPC" };
        Self { door, how, mib, streams: Vec::new(), failures: 0, first_failure: None }
    }

    /// Adds one.
    pub(crate) fn add(&mut self, stream: anyhow::Result<Stream>) {
        match stream {
            Ok(stream) => self.streams.push(stream),
            Err(error) => {
                self.failures += 1;
                self.first_failure.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }

    /// The median of a figure.
    pub(crate) fn median(&self, figure: impl Fn(&Stream) -> f64) -> f64 {
        median(&self.streams.iter().map(figure).collect::<Vec<_>>())
    }

    /// Whether memory stayed flat in server and executor.
    pub(crate) fn is_flat(&self) -> bool {
        let most = FLAT.0.max(FLAT.1 * f64::from(self.mib));
        self.median(|stream| stream.server_growth_mib.max(stream.executor_growth_mib)) <= most
    }
}

/// Streams that many MiB through the gateway, in a session of its own.
///
/// # Errors
/// When it does not arrive whole.
pub(crate) async fn stream(stack: &Stack, door: Door, mib: u32) -> anyhow::Result<Stream> {
    let session = stack.open_session().await?;
    let streamed = measured(stack, &session, door, mib).await;
    stack.end_session(&session.id).await?;
    streamed
}

async fn measured(stack: &Stack, session: &Session, door: Door, mib: u32) -> anyhow::Result<Stream> {
    let server = stack.server.pid();
    let executor = stack.server.group().executor_of(&session.sandbox).context("it has no executor")?;
    let before = [server, executor].map(|pid| process::memory(pid).rss);
    process::forget_peak(server)?;
    process::forget_peak(executor)?;
    let began = Instant::now();
    let received = match door {
        Door::Rest => by_events(stack, session, mib).await?,
        _ => by_grpc(stack, session, mib).await?,
    };
    let seconds = began.elapsed().as_secs_f64();
    ensure!(received == u64::from(mib) * MIB, "{received} bytes came of {mib} MiB");
    let growth = |pid, before| mebibytes(process::peak(pid).saturating_sub(before));
    Ok(Stream {
        mb_per_second: received as f64 / 1e6 / seconds,
        server_growth_mib: growth(server, before[0]),
        executor_growth_mib: growth(executor, before[1]),
        server_before_mib: mebibytes(before[0]),
        server_after_mib: mebibytes(process::memory(server).rss),
    })
}

async fn by_grpc(stack: &Stack, session: &Session, mib: u32) -> anyhow::Result<u64> {
    let spec = ExecutionSpec {
        code: code(mib),
        language: Language::Python.into(),
        mode: Mode::Script.into(),
        timeout_seconds: Some(120),
        ..Default::default()
    };
    let request = ExecuteRequest { session_id: session.id.clone(), spec: Some(spec), ..Default::default() };
    let mut events = stack.gateway.clone().execute(request).await?.into_inner();
    let mut received = 0;
    while let Some(response) = events.message().await? {
        match response.event {
            Some(Event::Stdout(chunk)) => received = follow(received, chunk.offset, &chunk.data)?,
            Some(Event::Result(execution)) => {
                ensure!(execution.state() == State::Completed, "it did not complete: {execution:?}");
                return Ok(received);
            }
            _ => {}
        }
    }
    bail!("the stream ended without a result after {received} bytes")
}

async fn by_events(stack: &Stack, session: &Session, mib: u32) -> anyhow::Result<u64> {
    let body = json!({"code": code(mib), "language": "python", "mode": "script", "timeout": 120});
    let path = format!("/sessions/{}/execute-stream", session.id);
    let mut response = stack.post_for_stream(&path, &body).await?.error_for_status()?;
    let (mut received, mut name, mut rest) = (0, String::new(), Vec::new());
    while let Some(bytes) = response.chunk().await? {
        rest.extend_from_slice(&bytes);
        let mut at = 0;
        while let Some(length) = rest[at..].iter().position(|byte| *byte == b'\n') {
            let line = &rest[at..at + length];
            at += length + 1;
            if let Some(event) = line.strip_prefix(b"event: ") {
                name = String::from_utf8_lossy(event).into_owned();
            } else if let Some(data) = line.strip_prefix(b"data: ") {
                match name.as_str() {
                    "stdout" => received = follow_event(received, data)?,
                    "result" => return completed(data).map(|()| received),
                    "failed" | "interrupted" => bail!("{name}: {}", String::from_utf8_lossy(data)),
                    _ => {}
                }
            }
        }
        rest.drain(..at);
    }
    bail!("the stream ended without a result after {received} bytes")
}

#[derive(serde::Deserialize)]
struct Output<'a> {
    #[serde(borrow)]
    data: std::borrow::Cow<'a, str>,
    offset: u64,
}

fn follow_event(received: u64, data: &[u8]) -> anyhow::Result<u64> {
    let output: Output<'_> = serde_json::from_slice(data)?;
    follow(received, output.offset, output.data.as_bytes())
}

fn completed(data: &[u8]) -> anyhow::Result<()> {
    let execution: Value = serde_json::from_slice(data)?;
    ensure!(execution["status"] == "completed", "it did not complete: {}", execution["status"]);
    Ok(())
}

/// Checks that a chunk is the next and holds what was written; returns where the one after it begins.
fn follow(received: u64, offset: u64, data: &[u8]) -> anyhow::Result<u64> {
    ensure!(offset == received, "byte {offset} came where {received} was due");
    let width = PATTERN.len();
    let skew = usize::try_from(offset % width as u64)?;
    let (head, body) = data.split_at(((width - skew) % width).min(data.len()));
    let pattern = u128::from_ne_bytes(*PATTERN);
    let (whole, tail) = body.as_chunks::<16>();
    let right = PATTERN[skew..].starts_with(head)
        && whole.iter().all(|part| u128::from_ne_bytes(*part) == pattern)
        && PATTERN.starts_with(tail);
    ensure!(right, "another byte than was written came within {} of {offset}", data.len());
    Ok(received + data.len() as u64)
}

/// A script that writes that many MiB.
fn code(mib: u32) -> String {
    format!(
        "import os\nblock = memoryview(b'{}' * 65536)\nfor _ in range({mib}):\n    rest = block\n    \
         while rest:\n        rest = rest[os.write(1, rest):]\n",
        String::from_utf8_lossy(PATTERN)
    )
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}
