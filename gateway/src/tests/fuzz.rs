//! Arbitrary requests through the front door: each is answered in the shape of the contract, and what is
//! accepted reaches the role as it was written.
//!
//! A target replays what `__fuzz__/` keeps and then runs for a moment on inputs of chance. `just fuzz` gives
//! all of them longer, and `cargo bolero test NAME` looks for inputs that reach new code.

mod ask;
mod values;

use std::{panic::AssertUnwindSafe, time::Duration};

use axum::body::Body;
use bolero::{TypeGenerator, check};
use http::{HeaderValue, Request};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{Answer, Door};
use ask::Ask;

/// How long a target runs where nobody asks for more.
const BUDGET: Duration = Duration::from_secs(2);

/// More than any answer takes that does not hold what was asked.
const MOST: usize = 32 << 10;

/// A word of a list, or any.
#[derive(Debug, TypeGenerator)]
struct Word {
    choice: u8,
    any: String,
}

impl Word {
    fn of(&self, words: &[&str]) -> String {
        let any = || self.any.clone();
        words.get(usize::from(self.choice) % (words.len() + 1)).map_or_else(any, |word| (*word).to_owned())
    }
}

/// A gateway that is asked time after time.
struct Bench {
    runtime: Runtime,
    door: Door,
}

impl Bench {
    fn new() -> AssertUnwindSafe<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        AssertUnwindSafe(Self { runtime, door: Door::new() })
    }

    /// Asks, and checks what holds for every answer.
    fn ask(&self, request: Request<Body>) -> Answer {
        self.door.fakes.forget();
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let grpc = crate::app::is_grpc(request.headers());
        let answer = self.runtime.block_on(self.door.call(request));
        let fine = answer.status < 500 || matches!(answer.status, 501 | 503);
        assert!(fine, "{method} {uri}: {answer:?}");
        assert_ne!(answer.header("x-request-id"), "", "{method} {uri}: {answer:?}");
        if !grpc && method != "HEAD" && method != "OPTIONS" {
            judge(&answer);
        }
        answer
    }
}

/// What the contract says about a body.
fn judge(answer: &Answer) {
    let kind = answer.header("content-type");
    if answer.status >= 400 {
        assert_eq!(kind, "application/json", "{answer:?}");
        let body = answer.json();
        let text = |name: &str| body[name].as_str().unwrap_or_else(|| panic!("no {name}: {answer:?}"));
        assert!(text("error_code").starts_with("Sandbox."), "{answer:?}");
        assert!(!text("description").is_empty() && !text("solution").is_empty(), "{answer:?}");
        assert_eq!(text("request_id"), answer.header("x-request-id"));
        assert_eq!(body["detail"].is_array(), answer.status == 422, "{answer:?}");
        assert!(answer.text.len() <= MOST, "{} bytes", answer.text.len());
    } else if kind == "application/json" {
        answer.json();
    } else if kind == "text/event-stream" {
        let data = answer.text.lines().filter_map(|line| line.strip_prefix("data: "));
        let data: Vec<Value> = data.map(|data| serde_json::from_str(data).unwrap()).collect();
        assert!(!data.is_empty(), "{answer:?}");
    }
}

#[test]
fn any_request_is_answered_in_the_shape_of_the_contract() {
    let bench = Bench::new();
    let asks = check!(name = "requests").with_type::<Ask>().with_test_time(BUDGET);
    asks.for_each(|ask| {
        let bench = &*bench;
        if let Some(request) = ask.request() {
            bench.ask(request);
        }
    });
}

#[test]
fn any_body_is_answered_in_the_shape_of_the_contract() {
    const TAKES: [(&str, &str); 5] = [
        ("POST", "/api/v1/sessions"),
        ("POST", "/api/v1/sessions/s/execute"),
        ("POST", "/api/v1/sessions/s/execute-sync"),
        ("POST", "/api/v1/templates"),
        ("PUT", "/api/v1/templates/t"),
    ];
    let bench = Bench::new();
    check!(name = "bodies").with_test_time(BUDGET).for_each(|body: &[u8]| {
        let bench = &*bench;
        for (method, path) in TAKES {
            let request = Request::builder().method(method).uri(path);
            let request = request.header("content-type", "application/json");
            bench.ask(request.body(Body::from(body.to_vec())).unwrap());
        }
    });
}

#[test]
fn an_error_quotes_a_long_text_in_part() {
    let bench = Bench::new();
    let long = "\u{20ac}".repeat(1 << 18);
    let bodies = [
        json!({ "template_id": "t", "timeout": long }),
        json!({ "template_id": "t", "memory": long }),
        json!({ "template_id": "t", "network": long }),
        json!({ "template_id": "t", "env_vars": { &long: 1 } }),
        json!({ "template_id": "t", "labels": [long] }),
    ];
    for body in bodies {
        let request = Request::post("/api/v1/sessions").header("content-type", "application/json");
        let answer = bench.ask(request.body(Body::from(body.to_string())).unwrap());
        assert!(matches!(answer.status, 400 | 422), "{}", answer.status);
    }
    let path = format!("/{}", "x".repeat(60_000));
    assert_eq!(bench.ask(Request::get(path).body(Body::empty()).unwrap()).status, 404);
}

#[test]
fn any_event_id_is_where_the_stream_goes_on_or_refused() {
    let bench = Bench::new();
    check!(name = "event_ids").with_max_len(64).with_test_time(BUDGET).for_each(|id: &[u8]| {
        let bench = &*bench;
        let Ok(header) = HeaderValue::from_bytes(id) else { return };
        let request = Request::get("/api/v1/executions/e/stream").header("last-event-id", header);
        let answer = bench.ask(request.body(Body::empty()).unwrap());
        let digits = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let number = |part: &str| Some(part).filter(digits)?.parse::<u64>().ok();
        let id = str::from_utf8(id).ok().and_then(|id| id.split_once('.'));
        let expected = id.and_then(|(stdout, stderr)| Some((number(stdout)?, number(stderr)?)));
        let attached = bench.door.fakes.attached.lock().unwrap();
        let asked = attached.first().map(|asked| (asked.stdout_offset, asked.stderr_offset));
        assert_eq!(
            (asked, answer.status),
            (expected, if expected.is_some() { 200 } else { 422 }),
            "{answer:?}"
        );
    });
}
