//! Sessions that end before they ran: their node hangs while it is to make their sandbox.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Server, Wiring, process::signal};

/// A mesh whose agent hangs, with a session in creation and something that waits to run in it.
async fn hanging(settings: &[(&str, &str)]) -> (Server, i32, String, String) {
    let patient =
        [("SANDMESH_SESSION__CREATE_WAIT", "100ms"), ("SANDMESH_SCHEDULER__HEARTBEAT_TIMEOUT", "30s")];
    let settings = [settings, &patient].concat();
    let mut server = Wiring::Split.start_with(&settings).await;
    let agent = server.process("agent").pid();
    signal(agent, Signal::STOP);
    let created = server.api.post("/sessions", json!({"template_id": "python-basic"})).await.is(201);
    assert_eq!(created["status"], "creating", "{created}");
    let id = created["id"].as_str().unwrap().to_owned();
    let waiting = server.api.start(&id, json!({"language": "shell", "code": "echo never"})).await;
    (server, agent, id, waiting)
}

async fn read(server: &Server, id: &str) -> Value {
    server.api.get(&format!("/sessions/{id}")).await.is(200)
}

async fn terminate(server: &Server, id: &str) -> Value {
    server.api.send(server.api.request("POST", &format!("/sessions/{id}/terminate"))).await.is(200)
}

/// The node does now what it was asked for meanwhile, and works as before.
async fn goes_on_with_nothing_left(server: &Server, agent: i32) {
    signal(agent, Signal::CONT);
    let next = server.api.session().await;
    assert_eq!(server.api.run(&next, "shell", "echo on").await["stdout"], "on\n");
    terminate(server, &next).await;
    server.expect_nothing_left(Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn session_that_is_not_created_in_time_fails_and_leaves_no_sandbox() {
    let settings = [("SANDMESH_SESSION__CREATING_TIMEOUT", "2s")];
    let (server, agent, id, waiting) = hanging(&settings).await;
    let failed = server.api.session_is(&id, "failed").await;
    assert!(failed["status_reason"].as_str().unwrap().contains("within 2s"), "{failed}");
    assert!(!failed["completed_at"].is_null(), "{failed}");
    let run = server.api.ended(&waiting).await;
    assert_eq!((&run["status"], &run["error"]["type"]), (&json!("failed"), &json!("ExecutionStartError")));
    goes_on_with_nothing_left(&server, agent).await;
    assert_eq!(read(&server, &id).await["status"], "failed", "its row stays, with the reason");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn session_that_is_terminated_while_it_is_created_leaves_no_sandbox() {
    let (server, agent, id, waiting) = hanging(&[("SANDMESH_SESSION__TERMINATE_WAIT", "500ms")]).await;
    let ended = terminate(&server, &id).await;
    assert_eq!(ended["status"], "terminated", "{ended}");
    assert_eq!(server.api.ended(&waiting).await["status"], "cancelled");
    goes_on_with_nothing_left(&server, agent).await;
    assert_eq!(read(&server, &id).await["status"], "terminated");
}
