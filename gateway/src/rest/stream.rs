//! Output as server-sent events.
//!
//! Each event's id is a cursor, `STDOUT_OFFSET.STDERR_OFFSET`: the first byte of each stream that the
//! client does not have yet. Output is bytes and an event is text, so a character that is cut by the end
//! of a chunk is held back until its rest comes, and the cursor stays before it.

use std::{convert::Infallible, fmt, str::FromStr};

use axum::{
    extract::FromRequestParts,
    response::sse::{Event, KeepAlive},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures::Stream;
use http::request::Parts;
use sandmesh_proto::{
    executor::{ExecutionStarted, OutputChunk},
    session::{
        AttachExecutionResponse, Execution as WireExecution, attach_execution_response::Event as Wire,
    },
};
use serde::{Deserialize, Serialize};
use tonic::{Status, Streaming};
use utoipa::IntoParams;

use super::{
    escape::push_string,
    json::{
        execution::{Execution, millis},
        time,
    },
};
use crate::{
    app::App,
    error::{ApiError, Violation},
    extract::Query,
};

/// Where a client goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The first byte of the standard output that the client does not have.
    pub(super) stdout: u64,
    /// The first byte of the standard error that the client does not have.
    pub(super) stderr: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.stdout, self.stderr)
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // A number may have a sign for the library, and no event has such an id.
        let number = |part: &str| {
            let digits = part.bytes().all(|byte| byte.is_ascii_digit());
            if digits { part.parse().map_err(|_| ()) } else { Err(()) }
        };
        let (stdout, stderr) = text.split_once('.').ok_or(())?;
        Ok(Self { stdout: number(stdout)?, stderr: number(stderr)? })
    }
}

/// Where to go on, in the query.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Offsets {
    /// The first byte of the standard output that is wanted.
    #[param(default = 0)]
    stdout_offset: Option<u64>,
    /// The first byte of the standard error that is wanted.
    #[param(default = 0)]
    stderr_offset: Option<u64>,
}

impl<S: Send + Sync> FromRequestParts<S> for Cursor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(offsets) = Query::<Offsets>::from_request_parts(parts, state).await?;
        let Some(last) = parts.headers.get("last-event-id") else {
            return Ok(Self {
                stdout: offsets.stdout_offset.unwrap_or(0),
                stderr: offsets.stderr_offset.unwrap_or(0),
            });
        };
        last.to_str().ok().and_then(|id| id.parse().ok()).ok_or_else(|| {
            let problem = "must be the id of an event of this stream, such as `120.0`";
            ApiError::field(Violation::new(&["header", "Last-Event-ID"], "value_error", problem))
        })
    }
}

/// How a silent stream stays open.
pub(super) fn keep_alive(app: &App) -> KeepAlive {
    KeepAlive::new().interval(app.config().keep_alive.0).text("keep-alive")
}

/// The events of an execution as a client reads them. The last one is `result` when it ran, `failed` when
/// it never did, and `interrupted` when this stream broke, with the body of the error: then the client
/// goes on from its cursor.
pub(super) fn events(
    mut wire: Streaming<AttachExecutionResponse>,
    execution_id: String,
    request_id: String,
    cursor: Cursor,
) -> impl Stream<Item = Result<Event, Infallible>> + use<> {
    let mut writer = Writer::new(execution_id, cursor);
    async_stream::stream! {
        loop {
            let (events, last) = match wire.message().await {
                Ok(Some(message)) => writer.write(message),
                Ok(None) => (vec![writer.interrupted(Status::unavailable("the stream ended"), &request_id)], true),
                Err(status) => (vec![writer.interrupted(status, &request_id)], true),
            };
            for event in events {
                yield Ok(event.into());
            }
            if last {
                break;
            }
        }
    }
}

/// One event, before it is text.
#[derive(Debug, PartialEq)]
struct Written {
    name: &'static str,
    id: String,
    data: String,
}

impl From<Written> for Event {
    fn from(written: Written) -> Self {
        Self::default().event(written.name).id(written.id).data(written.data)
    }
}

/// Turns messages into events and keeps the cursor.
struct Writer {
    execution_id: String,
    stdout: Splitter,
    stderr: Splitter,
}

#[derive(Serialize)]
struct Started<'a> {
    execution_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    queue_ms: f64,
    start_ms: f64,
}

impl Writer {
    fn new(execution_id: String, cursor: Cursor) -> Self {
        Self { execution_id, stdout: Splitter::at(cursor.stdout), stderr: Splitter::at(cursor.stderr) }
    }

    /// The events of a message, and whether they are the last.
    fn write(&mut self, message: AttachExecutionResponse) -> (Vec<Written>, bool) {
        match message.event {
            Some(Wire::Started(started)) => (vec![self.started(&started)], false),
            Some(Wire::Stdout(chunk)) => {
                let pieces = self.stdout.push(&chunk);
                (self.output("stdout", pieces), false)
            }
            Some(Wire::Stderr(chunk)) => {
                let pieces = self.stderr.push(&chunk);
                (self.output("stderr", pieces), false)
            }
            Some(Wire::Result(execution)) => (self.ended(execution), true),
            None => (Vec::new(), false),
        }
    }

    fn started(&self, started: &ExecutionStarted) -> Written {
        let data = Started {
            execution_id: &self.execution_id,
            started_at: time(started.started_at.as_ref()),
            queue_ms: millis(started.queued.as_ref()),
            start_ms: millis(started.startup.as_ref()),
        };
        self.event("started", &data)
    }

    fn output(&self, name: &'static str, pieces: Vec<Piece>) -> Vec<Written> {
        pieces.into_iter().map(|piece| self.written(name, piece.into_json())).collect()
    }

    /// What was held back, then the end.
    fn ended(&mut self, execution: WireExecution) -> Vec<Written> {
        let stdout = self.stdout.finish().into_iter().collect();
        let mut events = self.output("stdout", stdout);
        let stderr = self.stderr.finish().into_iter().collect();
        events.extend(self.output("stderr", stderr));
        let name = if execution.started_at.is_some() { "result" } else { "failed" };
        events.push(match Execution::try_from(execution) {
            Ok(execution) => self.event(name, &execution),
            Err(error) => self.event("interrupted", &error.body("")),
        });
        events
    }

    fn interrupted(&self, status: Status, request_id: &str) -> Written {
        self.event("interrupted", &ApiError::from(status).body(request_id))
    }

    fn event(&self, name: &'static str, data: &impl Serialize) -> Written {
        // None of these types can fail.
        self.written(name, serde_json::to_string(data).unwrap_or_default())
    }

    /// Data is one line: JSON text has no raw line breaks.
    fn written(&self, name: &'static str, data: String) -> Written {
        let cursor = Cursor { stdout: self.stdout.next, stderr: self.stderr.next };
        Written { name, id: cursor.to_string(), data }
    }
}

/// A piece of output that is whole characters.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    /// The position of its first byte in the stream.
    offset: u64,
    /// The text; what is not UTF-8 is U+FFFD.
    text: String,
    /// The bytes, where the text is not them.
    exact: Option<Vec<u8>>,
}

impl Piece {
    /// `{"data": ..., "offset": ..., "base64": ...}`, the last with the exact bytes and only where `data` is
    /// not them.
    fn into_json(self) -> String {
        let mut json = String::from("{\"data\":");
        push_string(&mut json, &self.text);
        json.push_str(",\"offset\":");
        json.push_str(&self.offset.to_string());
        if let Some(exact) = self.exact {
            json.push_str(",\"base64\":\"");
            BASE64_STANDARD.encode_string(exact, &mut json);
            json.push('"');
        }
        json.push('}');
        json
    }
}

/// Cuts a stream of bytes between characters.
#[derive(Debug)]
struct Splitter {
    /// The position of the first byte that was not handed out.
    next: u64,
    /// The bytes from there on: the beginning of a character.
    held: Vec<u8>,
}

impl Splitter {
    fn at(next: u64) -> Self {
        Self { next, held: Vec::new() }
    }

    /// Takes a chunk and hands out what is whole.
    fn push(&mut self, chunk: &OutputChunk) -> Vec<Piece> {
        let mut pieces = Vec::new();
        // A client may have asked for any position.
        let expected = self.next.saturating_add(len(&self.held));
        if chunk.offset != expected {
            pieces.extend(self.finish());
            self.next = chunk.offset;
        }
        self.held.extend_from_slice(&chunk.data);
        let rest = self.held.split_off(self.held.len() - incomplete(&self.held));
        pieces.extend(self.finish());
        self.held = rest;
        pieces
    }

    /// Hands out what was held back, whole or not.
    fn finish(&mut self) -> Option<Piece> {
        let bytes = std::mem::take(&mut self.held);
        if bytes.is_empty() {
            return None;
        }
        let offset = self.next;
        self.next = offset.saturating_add(len(&bytes));
        Some(match String::from_utf8(bytes) {
            Ok(text) => Piece { offset, text, exact: None },
            Err(error) => {
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                Piece { offset, text, exact: Some(error.into_bytes()) }
            }
        })
    }
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// How many bytes at the end are the beginning of a character that goes on: at most three.
fn incomplete(bytes: &[u8]) -> usize {
    let begins = |back: &usize| {
        let tail = &bytes[bytes.len() - back..];
        matches!(std::str::from_utf8(tail), Err(error) if error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=bytes.len().min(3)).rev().find(begins).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(offset: u64, data: &[u8]) -> OutputChunk {
        OutputChunk { offset, data: data.to_vec().into() }
    }

    proptest! {
        #[test]
        fn pieces_joined_are_the_whole(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..64),
                "\\PC{0,24}".prop_map(String::into_bytes),
            ],
            size in 1usize..8,
            start in 0u64..1000,
        ) {
            let mut splitter = Splitter::at(start);
            let mut pieces = Vec::new();
            let mut offset = start;
            for part in bytes.chunks(size) {
                pieces.extend(splitter.push(&chunk(offset, part)));
                offset += len(part);
                prop_assert!(offset - splitter.next <= 3, "held back more than a character");
            }
            pieces.extend(splitter.finish());
            let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
            let exact: Vec<u8> = pieces
                .iter()
                .flat_map(|piece| piece.exact.clone().unwrap_or_else(|| piece.text.clone().into_bytes()))
                .collect();
            prop_assert_eq!(exact, bytes);
            prop_assert_eq!(splitter.next, offset);
        }

        #[test]
        fn a_cursor_reads_back_as_written(stdout: u64, stderr: u64) {
            let cursor = Cursor { stdout, stderr };
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn resuming_from_any_event_misses_nothing(text in "\\PC{1,24}", size in 1usize..5) {
            let bytes = text.as_bytes();
            let mut splitter = Splitter::at(0);
            let mut seen = String::new();
            for (index, part) in bytes.chunks(size).enumerate() {
                let offset = u64::try_from(index * size).unwrap();
                seen.extend(splitter.push(&chunk(offset, part)).into_iter().map(|piece| piece.text));
                let rest = std::str::from_utf8(&bytes[usize::try_from(splitter.next).unwrap()..]).unwrap();
                prop_assert_eq!(format!("{seen}{rest}"), text.clone());
            }
        }
    }

    #[test]
    fn a_cut_character_waits_for_its_rest() {
        let mut writer = Writer::new("exec_1".into(), Cursor::default());
        let message = |chunk| AttachExecutionResponse { event: Some(Wire::Stdout(chunk)) };
        let (first, _) = writer.write(message(chunk(0, b"a\xe2\x82")));
        assert_eq!((first[0].id.as_str(), first[0].data.as_str()), ("1.0", r#"{"data":"a","offset":0}"#));
        let (second, _) = writer.write(message(chunk(3, b"\xac")));
        assert_eq!((second[0].id.as_str(), second[0].data.as_str()), ("4.0", r#"{"data":"€","offset":1}"#));
    }

    #[test]
    fn bytes_that_are_not_text_come_exactly_besides() {
        let mut writer = Writer::new("exec_1".into(), Cursor { stdout: 0, stderr: 5 });
        let event = Wire::Stderr(chunk(5, b"\xffx"));
        let (events, last) = writer.write(AttachExecutionResponse { event: Some(event) });
        assert!(!last);
        assert_eq!(events[0].id, "0.7");
        assert_eq!(events[0].data, "{\"data\":\"\u{fffd}x\",\"offset\":5,\"base64\":\"/3g=\"}");
    }

    #[test]
    fn a_run_that_never_started_ends_with_failed() {
        let execution = WireExecution { state: 4, ..WireExecution::default() };
        let started =
            WireExecution { started_at: Some(prost_types::Timestamp::default()), ..execution.clone() };
        for (execution, name) in [(execution, "failed"), (started, "result")] {
            let mut writer = Writer::new("exec_1".into(), Cursor::default());
            let (events, last) =
                writer.write(AttachExecutionResponse { event: Some(Wire::Result(execution)) });
            assert_eq!((events[0].name, last), (name, true));
        }
    }
}
