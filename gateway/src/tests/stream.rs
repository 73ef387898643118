//! Server-sent events.

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use super::{Answer, Door};

/// Name, id and data of each event.
fn events(answer: &Answer) -> Vec<(String, String, Value)> {
    let field = |event: &str, name: &str| {
        let line = event.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_default().to_owned()
    };
    let parse = |event: &str| {
        let data = serde_json::from_str(&field(event, "data")).unwrap();
        (field(event, "event"), field(event, "id"), data)
    };
    answer.text.split("\n\n").filter(|event| !event.is_empty()).map(parse).collect()
}

#[tokio::test]
async fn a_run_is_followed_to_its_end() {
    let door = Door::new();
    let answer =
        door.post("/api/v1/sessions/s/execute-stream", r#"{"code": "x", "language": "python"}"#).await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(answer.header("content-location"), "/api/v1/executions/exec_1");
    let events = events(&answer);
    let order: Vec<(&str, &str)> = events.iter().map(|(name, id, _)| (name.as_str(), id.as_str())).collect();
    let expected =
        [("started", "0.0"), ("stdout", "1.0"), ("stdout", "3.0"), ("stderr", "3.1"), ("result", "3.1")];
    assert_eq!(order, expected);
    assert_eq!(events[0].2["execution_id"], "exec_1");
    assert_eq!(events[2].2, json!({"data": "\u{e9}", "offset": 1}));
    assert_eq!(events[4].2["status"], "completed");
}

#[tokio::test]
async fn a_client_goes_on_where_it_was() {
    let door = Door::new();
    let request =
        Request::get("/api/v1/executions/exec_1/stream?stdout_offset=1").header("last-event-id", "7.2");
    let answer = door.call(request.body(Body::empty()).unwrap()).await;
    assert_eq!(events(&answer)[1].1, "8.2");
    door.get("/api/v1/executions/exec_1/stream?stdout_offset=5&stderr_offset=6").await;
    let request = Request::post("/api/v1/sessions/s/execute-stream")
        .header("last-event-id", "9.0")
        .header("content-type", "application/json");
    let body = r#"{"code": "x", "language": "python", "request_id": "once"}"#;
    door.call(request.body(Body::from(body)).unwrap()).await;
    let asked = door.fakes.attached.lock().unwrap();
    let offsets: Vec<(u64, u64)> = asked.iter().map(|one| (one.stdout_offset, one.stderr_offset)).collect();
    assert_eq!(offsets, [(7, 2), (5, 6), (9, 0)]);
}

#[tokio::test]
async fn a_cursor_that_is_not_kept_is_gone_and_a_wrong_one_refused() {
    let door = Door::new();
    let answer = door.get("/api/v1/executions/expired/stream").await;
    assert_eq!((answer.status, answer.json()["error_code"].clone()), (410, json!("Sandbox.CursorExpired")));
    let request = Request::get("/api/v1/executions/exec_1/stream").header("last-event-id", "x");
    let answer = door.call(request.body(Body::empty()).unwrap()).await;
    assert_eq!((answer.status, answer.json()["detail"][0]["loc"][0].clone()), (422, json!("header")));
}

#[tokio::test]
async fn a_broken_stream_says_so_and_tells_no_internals() {
    let answer = Door::new().get("/api/v1/executions/breaks/stream").await;
    let last = events(&answer).pop().unwrap();
    assert_eq!((last.0.as_str(), last.1.as_str()), ("interrupted", "3.1"));
    assert_eq!(last.2["error_code"], "Sandbox.Unavailable");
    assert!(!answer.text.contains("10.0.0.7"));
}
