//! Watchers as clients should write them: they go on from their cursor whenever a stream breaks, and check
//! that no byte comes twice and none is left out.

use std::{
    io::BufRead,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::{Buf, Bytes};
use sandmesh_proto::{
    executor::{Cause, OutputChunk},
    session::{
        AttachExecutionRequest, AttachExecutionResponse, Execution, attach_execution_response::Event,
        session_service_client::SessionServiceClient,
    },
};
use serde::Deserialize;
use serde_json::Value;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::harness::Api;

/// How long a watcher tries to go on before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause before a watcher goes on after a break.
const PAUSE: Duration = Duration::from_millis(20);

/// The first byte of each stream that a watcher does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
}

/// One of the streams of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Out {
    Stdout,
    Stderr,
}

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The execution ended, in this state and by this cause (empty: by itself).
    Ended { state: String, cause: String },
    /// The bytes at the cursor are not kept any more.
    Expired,
    /// It broke, and can be taken up again.
    Broken(String),
    /// The server broke its promise.
    Wrong(String),
}

/// Takes what is seen: the stream and its next bytes. False: break off here, as a client that goes away.
pub(crate) trait Take: FnMut(Out, &[u8]) -> bool + Send {}
impl<F: FnMut(Out, &[u8]) -> bool + Send> Take for F {}

/// Everything that a watcher saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Seen {
    pub(crate) fn take(&mut self, out: Out, bytes: &[u8]) {
        match out {
            Out::Stdout => self.stdout.extend_from_slice(bytes),
            Out::Stderr => self.stderr.extend_from_slice(bytes),
        }
    }
}

/// A watcher of one execution.
#[derive(Debug, Clone)]
pub(crate) struct Watcher {
    front: Front,
    execution_id: String,
    pub(crate) at: At,
    /// How often it has gone on after a break.
    pub(crate) resumed: u32,
}

/// A stream that is open.
pub(crate) enum Open {
    Sse(reqwest::Response),
    Grpc(Streaming<AttachExecutionResponse>),
}

/// The way in.
#[derive(Debug, Clone)]
pub(crate) enum Front {
    /// Server-sent events, resumed by `Last-Event-ID`.
    Sse(Api),
    /// `AttachExecution` at an address.
    Grpc(String),
}

impl Watcher {
    pub(crate) fn new(front: Front, execution_id: &str) -> Self {
        Self { front, execution_id: execution_id.to_owned(), at: At::default(), resumed: 0 }
    }

    /// Follows to the end, taking the stream up again after each break.
    pub(crate) async fn until_end(&mut self, mut take: impl Take) -> End {
        let mut last = (self.at, Instant::now());
        loop {
            match self.once(&mut take).await {
                End::Broken(why) => {
                    if last.0 != self.at {
                        last = (self.at, Instant::now());
                    }
                    if last.1.elapsed() > PATIENCE {
                        return End::Wrong(format!("nothing new within {PATIENCE:?}: {why}"));
                    }
                }
                end => return end,
            }
            self.resumed += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Follows to the end and keeps everything.
    pub(crate) async fn all(&mut self) -> (Seen, End) {
        let mut seen = Seen::default();
        let end = self
            .until_end(|out, bytes| {
                seen.take(out, bytes);
                true
            })
            .await;
        (seen, end)
    }

    /// Follows from where it is until the stream ends in any way.
    pub(crate) async fn once(&mut self, take: &mut impl Take) -> End {
        match self.open().await {
            Ok(open) => self.read(open, take).await,
            Err(end) => end,
        }
    }

    /// Opens a stream from where it is.
    pub(crate) async fn open(&self) -> Result<Open, End> {
        match &self.front {
            Front::Sse(api) => self.open_sse(api).await.map(Open::Sse),
            Front::Grpc(address) => self.open_grpc(address).await.map(Open::Grpc),
        }
    }

    /// Reads a stream until it ends in any way.
    pub(crate) async fn read(&mut self, open: Open, take: &mut impl Take) -> End {
        let ended = match open {
            Open::Sse(response) => self.read_sse(response, take).await,
            Open::Grpc(stream) => self.read_grpc(stream, take).await,
        };
        ended.unwrap_or_else(|end| end)
    }

    async fn open_grpc(&self, address: &str) -> Result<Streaming<AttachExecutionResponse>, End> {
        let channel = Channel::from_shared(address.to_owned()).expect("an address").connect().await;
        let mut sessions =
            SessionServiceClient::new(channel.map_err(|error| End::Broken(error.to_string()))?);
        let request = AttachExecutionRequest {
            execution_id: self.execution_id.clone(),
            stdout_offset: self.at.stdout,
            stderr_offset: self.at.stderr,
        };
        Ok(sessions.attach_execution(request).await.map_err(|status| broken(&status))?.into_inner())
    }

    async fn read_grpc(
        &mut self,
        mut stream: Streaming<AttachExecutionResponse>,
        take: &mut impl Take,
    ) -> Result<End, End> {
        while let Some(message) = stream.message().await.map_err(|status| broken(&status))? {
            let goes_on = match message.event {
                Some(Event::Stdout(chunk)) => self.chunk(Out::Stdout, &chunk, take)?,
                Some(Event::Stderr(chunk)) => self.chunk(Out::Stderr, &chunk, take)?,
                Some(Event::Result(execution)) => return Ok(ended(&execution)),
                Some(Event::Started(_)) | None => true,
            };
            if !goes_on {
                return Err(End::Broken("broken off".into()));
            }
        }
        Err(End::Wrong("the stream ended without a result".into()))
    }

    async fn open_sse(&self, api: &Api) -> Result<reqwest::Response, End> {
        let mut request = api.request("GET", &format!("/executions/{}/stream", self.execution_id));
        if self.at != At::default() {
            request = request.header("Last-Event-ID", format!("{}.{}", self.at.stdout, self.at.stderr));
        }
        let response = request.send().await.map_err(|error| End::Broken(error.to_string()))?;
        match response.status().as_u16() {
            200 => Ok(response),
            410 => Err(End::Expired),
            status @ (408 | 429 | 502..) => Err(End::Broken(format!("status {status}"))),
            status => Err(End::Wrong(format!("status {status}"))),
        }
    }

    async fn read_sse(&mut self, response: reqwest::Response, take: &mut impl Take) -> Result<End, End> {
        let mut lines = Lines::of(response);
        let mut event = SseEvent::default();
        loop {
            let line = lines.next().await.map_err(End::Broken)?;
            if event.line(line)
                && let Some(end) = self.event(&std::mem::take(&mut event), take)?
            {
                return Ok(end);
            }
        }
    }

    /// Takes an event; `Some` when it is the last.
    fn event(&mut self, event: &SseEvent, take: &mut impl Take) -> Result<Option<End>, End> {
        let wrong = |why: String| End::Wrong(format!("{why} in {event:?}"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let goes_on = match event.name.as_str() {
            "stdout" | "stderr" => {
                let out = if event.name == "stdout" { Out::Stdout } else { Out::Stderr };
                let chunk = chunk_of(&event.data).map_err(wrong)?;
                let goes_on = self.chunk(out, &chunk, take)?;
                let cursor = format!("{}.{}", self.at.stdout, self.at.stderr);
                if event.id != cursor {
                    return Err(wrong(format!("the cursor is not {cursor}")));
                }
                goes_on
            }
            "started" => true,
            "result" | "failed" => {
                let data: Value =
                    serde_json::from_str(&event.data).map_err(|error| wrong(error.to_string()))?;
                return Ok(Some(End::Ended { state: text(&data["status"]), cause: text(&data["cause"]) }));
            }
            "interrupted" if event.data.contains("Sandbox.CursorExpired") => return Err(End::Expired),
            "interrupted" if event.data.contains("Unavailable") => {
                return Err(End::Broken(event.data.clone()));
            }
            _ => return Err(wrong("an event that should not be".into())),
        };
        if goes_on { Ok(None) } else { Err(End::Broken("broken off".into())) }
    }

    fn chunk(&mut self, out: Out, chunk: &OutputChunk, take: &mut impl Take) -> Result<bool, End> {
        let at = match out {
            Out::Stdout => &mut self.at.stdout,
            Out::Stderr => &mut self.at.stderr,
        };
        if chunk.offset != *at || chunk.data.is_empty() {
            let length = chunk.data.len();
            return Err(End::Wrong(format!("{length} bytes at {} of {out:?}, not at {at}", chunk.offset)));
        }
        *at += chunk.data.len() as u64;
        Ok(take(out, &chunk.data))
    }
}

/// What a refusal or a break means to a client.
fn broken(status: &Status) -> End {
    match status.code() {
        Code::OutOfRange => End::Expired,
        // The last two are what this client itself makes of a connection that breaks.
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            End::Broken(format!("{status:?}"))
        }
        _ => End::Wrong(format!("{status:?}")),
    }
}

fn ended(execution: &Execution) -> End {
    let word = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_lowercase();
    let cause = match execution.cause() {
        Cause::Unspecified => String::new(),
        cause => word(cause.as_str_name(), "CAUSE_"),
    };
    End::Ended { state: word(execution.state().as_str_name(), "STATE_"), cause }
}

/// The output in the data of an event. Large ones come fast: the text is taken as it is.
fn chunk_of(data: &str) -> Result<OutputChunk, String> {
    #[derive(Deserialize)]
    struct Data {
        data: String,
        offset: u64,
        base64: Option<String>,
    }
    let Data { data, offset, base64 } = serde_json::from_str(data).map_err(|error| error.to_string())?;
    let data = match base64 {
        Some(exact) => BASE64_STANDARD.decode(exact).map_err(|error| error.to_string())?,
        None => data.into_bytes(),
    };
    Ok(OutputChunk { offset, data: data.into() })
}

/// The lines of a body as they come.
struct Lines {
    response: reqwest::Response,
    buffer: Bytes,
    line: Vec<u8>,
}

impl Lines {
    fn of(response: reqwest::Response) -> Self {
        Self { response, buffer: Bytes::new(), line: Vec::new() }
    }

    async fn next(&mut self) -> Result<&str, String> {
        self.line.clear();
        loop {
            // The standard library looks for the byte fast, in builds for debugging too.
            let read = (&*self.buffer).read_until(b'\n', &mut self.line).expect("memory can be read");
            self.buffer.advance(read);
            if self.line.pop_if(|byte| *byte == b'\n').is_some() {
                return std::str::from_utf8(&self.line).map_err(|error| error.to_string());
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await;
            self.buffer = match chunk.map_err(|_| "silence")? {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Err("the body ended".into()),
                Err(error) => return Err(error.to_string()),
            };
        }
    }
}

/// An event as it is read.
#[derive(Debug, Default)]
struct SseEvent {
    name: String,
    id: String,
    data: String,
}

impl SseEvent {
    /// Takes a line; true when the event is complete.
    fn line(&mut self, line: &str) -> bool {
        let (field, value) = line.split_once(": ").unwrap_or((line, ""));
        match field {
            "event" => value.clone_into(&mut self.name),
            "id" => value.clone_into(&mut self.id),
            "data" => value.clone_into(&mut self.data),
            _ => {}
        }
        line.is_empty() && !self.name.is_empty()
    }
}
