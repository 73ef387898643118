//! Nodes on other machines: they join with a token, are used as any other, and may be cut off.

use std::{fs, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::harness::{Api, Wiring, eventually, machines::Open, process::Process};

in_both_wirings!(machine_that_joined_is_used_as_any_other);

fn shell(code: &str, max_retries: u32) -> Value {
    json!({"language": "shell", "code": code, "timeout": 120, "max_retries": max_retries})
}

/// The lines 1 to `count`, as a program and as its output.
fn counting(count: u32) -> (Value, String) {
    let code = format!("for i in $(seq {count}); do echo $i; sleep 0.5; done");
    (shell(&code, 0), (1..=count).map(|number| format!("{number}\n")).collect())
}

async fn completed(api: &Api, execution: &str, stdout: &str) {
    let run = api.ended(execution).await;
    assert_eq!((&run["status"], &run["retry_count"]), (&json!("completed"), &json!(0)), "{run}");
    assert_eq!(run["stdout"], stdout);
}

async fn machine_that_joined_is_used_as_any_other(wiring: Wiring) {
    let mut mesh = Open::start(wiring, &[]).await;
    mesh.join("two").await;
    let api = mesh.server.api.clone();
    let id = mesh.session_on("two").await;
    let run = api.python(&id, "def handler(event): return {'sum': sum(range(10))}").await;
    assert_eq!(run["return_value"], json!({"sum": 45}), "{run}");
    let large = "x".repeat(3 << 20);
    api.upload(&id, "large.txt", large.clone()).await.is(200);
    let run = api.run(&id, "shell", "cat large.txt large.txt").await;
    assert_eq!(run["stdout"].as_str().map(str::len), Some(1 << 20), "as much as is told at once");
    assert_eq!(api.run(&id, "shell", "echo made > made; wc -c < large.txt").await["stdout"], "3145728\n");
    assert_eq!(api.content(&format!("/sessions/{id}/files/made")).await, b"made\n");

    let (code, output) = counting(12);
    let execution = api.start(&id, code).await;
    api.wrote(&execution, "2").await;
    mesh.server.process("two").kill();
    let again = mesh.server.process("two").launch.clone();
    let env = again.env.iter().filter(|(key, _)| key != "SANDMESH_MESH__JOIN_TOKEN").cloned().collect();
    *mesh.server.process("two") = crate::harness::process::Launch { env, ..again }.spawn();
    completed(&api, &execution, &output).await;
    assert_eq!(api.session_is(&id, "running").await["recovery_count"], 0, "the agent found its sandbox");

    let containers = api.get(&format!("/containers?session_id={id}")).await.is(200);
    let container = containers["items"][0]["id"].as_str().unwrap().to_owned();
    eventually("its health is measured", Duration::from_secs(20), async || {
        let item = api.get(&format!("/containers/{container}")).await.is(200);
        item["health"]["latency_ms"].as_f64().is_some_and(|latency| latency > 0.0)
    })
    .await;
    let log = api.get(&format!("/containers/{container}/logs")).await.is(200);
    assert!(log["logs"].as_str().unwrap().contains("serving"), "{log}");
    api.delete(&format!("/sessions/{id}")).await.is(204);
    mesh.server.expect_nothing_left(Duration::from_secs(15)).await;
}

/// Three nodes; one is cut off for a moment, and one for so long that it is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn cut_cable_costs_time_and_a_lost_node_its_sandboxes() {
    let settings = [
        ("SANDMESH_AGENT__NODE_ID", "one"),
        ("SANDMESH_SCHEDULER__NODE_LOST_AFTER", "15s"),
        ("SANDMESH_STATE_SYNC__INTERVAL", "500ms"),
        ("SANDMESH_STATE_SYNC__ORPHAN_GRACE", "1s"),
        // An executor would be taken for dead at once, if it was not known that its node cannot be asked.
        ("SANDMESH_HEALTH_PROBE__SANDBOX_PROBE_INTERVAL", "200ms"),
        ("SANDMESH_HEALTH_PROBE__SANDBOX_PROBE_TIMEOUT", "300ms"),
    ];
    let mut mesh = Open::start(Wiring::Embedded, &settings).await;
    mesh.join("two").await;
    mesh.join("three").await;
    let api = mesh.server.api.clone();
    let [here, lost, late] =
        [mesh.session_on("one").await, mesh.session_on("two").await, mesh.session_on("three").await];
    assert_eq!(api.run(&lost, "shell", "echo kept > kept").await["status"], "completed");

    let (code, output) = counting(50);
    let elsewhere = api.start(&here, code.clone()).await;
    let delayed = api.start(&late, code).await;
    let crashed = api.start(&lost, shell("echo begun; sleep 100", 0)).await;
    let retried = api.start(&lost, shell("echo begun; sleep 20; echo done", 1)).await;
    for (execution, text) in [(&elsewhere, "2"), (&delayed, "2"), (&crashed, "begun"), (&retried, "begun")] {
        api.wrote(execution, text).await;
    }
    let [two, three] = &mesh.machines[..] else { panic!("two machines joined") };
    two.cut();
    three.cut();
    let read = api.get(&format!("/sessions/{late}/files/none")).await;
    assert_eq!(read.status, 503, "what was saved is not all there is: {}", read.text);
    tokio::time::sleep(Duration::from_secs(6)).await;
    three.mend();
    mesh.node_is("three", "healthy").await;

    let run = api.ended(&crashed).await;
    assert_eq!((&run["status"], &run["cause"]), (&json!("crashed"), &json!("node_lost")), "{run}");
    assert_eq!(run["stdout"], "begun\n", "what it wrote is kept");
    completed(&api, &elsewhere, &output).await;
    completed(&api, &delayed, &output).await;
    assert_eq!(api.session_is(&late, "running").await["recovery_count"], 0, "a moment is no loss");
    let session = api.session_is(&lost, "running").await;
    assert_eq!(session["recovery_count"], 1, "{session}");
    assert_ne!(session["runtime_node"], "two");
    assert_eq!(api.run(&lost, "shell", "cat kept").await["stdout"], "kept\n", "its files came along");
    let run = api.ended(&retried).await;
    assert_eq!((&run["status"], &run["retry_count"]), (&json!("completed"), &json!(1)), "{run}");
    assert_eq!(run["stdout"], "begun\nbegun\ndone\n");

    two.mend();
    mesh.node_is("two", "healthy").await;
    eventually("what nobody has there is gone", Duration::from_secs(30), async || {
        mesh.server.executors().len() == 3
    })
    .await;
    let again = mesh.session_on("two").await;
    assert_eq!(api.run(&again, "shell", "echo on").await["stdout"], "on\n");
}

fn ended_with(process: &mut Process, text: &str) {
    let status = process.wait(Duration::from_secs(20)).expect("it ends");
    let log = process.log_tail(5);
    assert!(!status.success() && log.contains(text), "{status}\n{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_who_has_a_token_of_this_mesh_joins_and_under_a_name_of_its_own() {
    let mut mesh = Open::start(Wiring::Embedded, &[("SANDMESH_AGENT__NODE_ID", "one")]).await;
    let other = Open::start(Wiring::Embedded, &[]).await;
    let (token, foreign) = (mesh.token().await, other.token().await);
    drop(other);
    ended_with(&mut mesh.launch("two", &foreign).spawn(), "is not the mesh that the token");
    let mut forged = token.clone();
    forged.replace_range(60..64, if &forged[60..64] == "AAAA" { "BBBB" } else { "AAAA" });
    ended_with(&mut mesh.launch("three", &forged).spawn(), "the token is not of this mesh, or too old");
    ended_with(&mut mesh.launch("one", &token).spawn(), "there is a node `one`");
    let nodes = mesh.server.api.get("/nodes").await.is(200);
    assert_eq!(nodes["total"], 1, "{nodes}");
}

/// One cannot be dialled, and is the emptiest of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn node_that_cannot_be_dialled_holds_up_nobody() {
    let mut mesh = Open::start(Wiring::Embedded, &[("SANDMESH_AGENT__NODE_ID", "one")]).await;
    let token = mesh.token().await;
    let mut launch = mesh.launch("two", &token);
    launch.env.push(("SANDMESH_AGENT__ADVERTISE".to_owned(), "https://127.0.0.1:9".to_owned()));
    mesh.server.processes.push(launch.spawn());
    mesh.node_is("two", "silent").await;
    for _ in 0..3 {
        let id = mesh.server.api.session().await;
        let session = mesh.server.api.get(&format!("/sessions/{id}")).await.is(200);
        assert_eq!(session["runtime_node"], "one", "{session}");
    }
}

/// The same machine with the same certificate, and another with the name.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn node_that_was_removed_does_not_come_back_and_its_sessions_go_on() {
    let mut mesh = Open::start(Wiring::Embedded, &[("SANDMESH_AGENT__NODE_ID", "one")]).await;
    mesh.join("two").await;
    let api = mesh.server.api.clone();
    let id = mesh.session_on("two").await;
    assert_eq!(api.run(&id, "shell", "echo kept > kept").await["status"], "completed");
    api.delete("/nodes/one").await.refused(409, "Sandbox.NodePresent");
    api.delete("/nodes/none").await.refused(404, "Sandbox.NodeNotFound");
    api.delete("/nodes/two").await.is(204);
    let mut session = json!(null);
    eventually("the session goes on elsewhere", Duration::from_secs(20), async || {
        session = api.get(&format!("/sessions/{id}")).await.is(200);
        session["runtime_node"] == "one" && session["status"] == "running"
    })
    .await;
    assert_eq!(api.run(&id, "shell", "cat kept").await["stdout"], "kept\n");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(api.get("/nodes/two").await.is(200)["status"], "lost", "its reports are not taken");
    mesh.server.process("two").kill();
    let token = mesh.token().await;
    let launch = mesh.launch("two", &token);
    let data_dir = launch.args[2].clone();
    fs::remove_file(format!("{data_dir}/identity.json")).unwrap();
    mesh.server.processes.push(launch.spawn());
    mesh.node_is("two", "healthy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn machine_gets_its_next_certificate_while_it_works() {
    let settings = [("SANDMESH_SCHEDULER__JOIN__CERTIFICATE_VALID_FOR", "60s")];
    let mut mesh = Open::start(Wiring::Embedded, &settings).await;
    mesh.join("two").await;
    let identity = mesh.server.scratch().join("two/identity.json");
    let expires = || -> DateTime<Utc> {
        let kept: Value = serde_json::from_slice(&fs::read(&identity).unwrap()).unwrap();
        kept["expires_at"].as_str().unwrap().parse().unwrap()
    };
    let (first, id) = (expires(), mesh.session_on("two").await);
    let (code, output) = counting(130);
    let execution = mesh.server.api.start(&id, code).await;
    eventually("there is another", Duration::from_secs(45), async || expires() > first).await;
    tokio::time::sleep((first - Utc::now()).to_std().unwrap_or_default()).await;
    assert_eq!(mesh.server.api.run(&id, "shell", "echo on").await["stdout"], "on\n", "the first is over");
    completed(&mesh.server.api, &execution, &output).await;
    mesh.node_is("two", "healthy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn where_machines_cannot_join_there_is_no_token() {
    let server = Wiring::Embedded.start().await;
    let refused = server.api.post("/nodes/join-tokens", json!({})).await;
    refused.refused(409, "Sandbox.JoinDisabled");
}
