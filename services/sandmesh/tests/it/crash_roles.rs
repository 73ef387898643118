//! Crash safety of single roles, which only exists where roles are processes of their own.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::Wiring;

fn shell(code: &str) -> Value {
    json!({"language": "shell", "code": code, "timeout": 120})
}

/// Writes numbered lines for about three seconds, and notes that it ran.
const COUNTING: &str = "echo run >> runs; for i in $(seq 30); do echo line $i; sleep 0.1; done";

fn counted() -> String {
    (1..=30).map(|i| format!("line {i}\n")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn killed_session_role_takes_its_executions_up_again() {
    let mut server = Wiring::Split.start().await;
    let id = server.api.session().await;
    let execution = server.api.start(&id, shell(COUNTING)).await;
    server.api.wrote(&execution, "line 3").await;
    server.process("session").kill();
    let start = Instant::now();
    let reply = server.api.get(&format!("/sessions/{id}")).await;
    assert!(start.elapsed() < Duration::from_secs(10), "told in time: {:?}", start.elapsed());
    reply.refused(503, "Sandbox.Unavailable");
    assert_eq!(server.api.get("/health").await.status, 200, "the gateway lives");
    assert_ne!(server.api.get("/health/detailed").await.is(200)["status"], "healthy");
    server.start_again().await;
    let run = server.api.ended(&execution).await;
    assert_eq!((&run["status"], &run["stdout"]), (&json!("completed"), &json!(counted())), "{run}");
    assert_eq!(server.api.run(&id, "shell", "cat runs").await["stdout"], "run\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn killed_gateway_loses_nothing_and_clients_resume() {
    let mut server = Wiring::Split.start().await;
    let id = server.api.session().await;
    let execution = server.api.start(&id, shell(COUNTING)).await;
    let mut events = server.api.follow(&execution, None).await;
    let mut seen = events.until_stdout_has("line 5").await;
    server.process("gateway").kill();
    assert!(server.api.try_get("/health").await.is_none());
    server.start_again().await;
    let cursor = seen.last().map(|event| event.id.clone());
    seen.extend(server.api.follow(&execution, cursor.as_deref()).await.rest().await);
    assert_eq!(crate::harness::events::output(&seen, "stdout"), counted());
    assert_eq!(seen.last().unwrap().data["status"], "completed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn killed_agent_keeps_executions_running_and_adopts_their_sandbox() {
    let mut server = Wiring::Split.start().await;
    let id = server.api.session().await;
    let execution = server.api.start(&id, shell(COUNTING)).await;
    server.api.wrote(&execution, "line 3").await;
    let executor = server.only_executor();
    server.process("agent").kill();
    let run = server.api.ended(&execution).await;
    assert_eq!(
        (&run["status"], &run["stdout"]),
        (&json!("completed"), &json!(counted())),
        "off the hot path: {run}"
    );
    assert_eq!(server.api.run(&id, "shell", "echo without agent").await["stdout"], "without agent\n");
    server.start_again().await;
    assert_eq!(server.only_executor(), executor);
    assert_eq!(server.api.get(&format!("/sessions/{id}")).await.is(200)["status"], "running");
    server.api.send(server.api.request("POST", &format!("/sessions/{id}/terminate"))).await.is(200);
    server.expect_nothing_left(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn killed_control_roles_come_back_and_know_the_node_again() {
    let mut server = Wiring::Split.start().await;
    let id = server.api.session().await;
    server.process("control").kill();
    assert_eq!(server.api.run(&id, "shell", "echo on").await["stdout"], "on\n", "off the hot path");
    server.process("watch").kill();
    server.start_again().await;
    let second = server.api.session().await;
    assert_eq!(server.api.run(&second, "shell", "echo placed").await["stdout"], "placed\n");
    assert_eq!(server.api.get(&format!("/sessions/{id}")).await.is(200)["status"], "running");
    assert_eq!(server.api.get("/templates").await.is(200).as_array().unwrap().len(), 3);
}
