//! Server-sent events, read as the standard says.

use std::time::Duration;

use serde_json::Value;

/// How long a stream may be silent: it sends a comment from time to time.
const SILENCE: Duration = Duration::from_secs(60);

/// One event.
#[derive(Debug, Clone, Default)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) data: Value,
}

/// An open stream of events.
#[derive(Debug)]
pub(crate) struct Events {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

impl Events {
    /// Sends a request whose answer is a stream of events.
    pub(crate) async fn open(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(content_type.starts_with("text/event-stream"), "{content_type}");
        Self { response, buffer: Vec::new() }
    }

    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(block) = self.block() {
                match parse(&block) {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let chunk =
                tokio::time::timeout(SILENCE, self.response.chunk()).await.expect("the stream is alive");
            self.buffer.extend_from_slice(&chunk.ok()??);
        }
    }

    /// Every event up to the end of the stream.
    pub(crate) async fn rest(mut self) -> Vec<Event> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }

    /// Reads until the standard output has a text; gives the events up to there.
    pub(crate) async fn until_stdout_has(&mut self, text: &str) -> Vec<Event> {
        let mut all = Vec::new();
        while !output(&all, "stdout").contains(text) {
            let event = self.next().await.unwrap_or_else(|| panic!("ended before {text:?}: {all:?}"));
            all.push(event);
        }
        all
    }

    /// The bytes up to the next empty line.
    fn block(&mut self) -> Option<String> {
        let end = self.buffer.windows(2).position(|pair| pair == b"\n\n")?;
        let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
        Some(String::from_utf8(block).unwrap())
    }
}

/// An event; `None` for a block that only has comments.
fn parse(block: &str) -> Option<Event> {
    let mut event = Event::default();
    let mut data = Vec::new();
    for line in block.lines().filter(|line| !line.starts_with(':')) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut event.name),
            "id" => value.clone_into(&mut event.id),
            "data" => data.push(value),
            _ => {}
        }
    }
    if data.is_empty() {
        return None;
    }
    event.data = serde_json::from_str(&data.join("\n")).unwrap();
    Some(event)
}

/// What the events say was written to `stream`.
pub(crate) fn output(events: &[Event], stream: &str) -> String {
    let text = |event: &Event| event.data["data"].as_str().unwrap_or_default().to_owned();
    events.iter().filter(|event| event.name == stream).map(text).collect()
}
