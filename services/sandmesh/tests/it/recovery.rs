//! Sessions that lose their sandboxes: another one takes its place, and what may run again does.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Api, Server, Wiring, eventually, process::signal};

in_both_wirings!(
    a_session_whose_executor_is_killed_recovers_and_goes_on,
    an_execution_with_retries_survives_the_loss_of_its_sandbox,
    a_session_recovers_so_often_and_no_more,
    a_session_that_recovers_can_be_ended_and_leaves_nothing,
);

fn shell(code: &str) -> Value {
    json!({"language": "shell", "code": code, "timeout": 120})
}

/// Waits until a session runs again, with this many recoveries behind it.
async fn recovered(api: &Api, id: &str, recoveries: u64) -> Value {
    let mut session = Value::Null;
    eventually("the session recovers", Duration::from_secs(30), async || {
        session = api.get(&format!("/sessions/{id}")).await.is(200);
        session["status"] == "running" && session["recovery_count"] == recoveries
    })
    .await;
    session
}

async fn kill_executor(server: &Server) {
    signal(server.only_executor(), Signal::KILL);
}

async fn a_session_whose_executor_is_killed_recovers_and_goes_on(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let created = api.create(json!({"template_id": "python-basic", "env_vars": {"MODE": "fast"}})).await;
    let id = created["id"].as_str().unwrap();
    assert_eq!(api.run(id, "shell", "echo kept > /workspace/kept.txt; echo on").await["stdout"], "on\n");
    let before = api.get("/containers").await.is(200)["items"][0].clone();
    let running = api.start(id, shell("echo begun; sleep 100")).await;
    api.wrote(&running, "begun").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let killed = Instant::now();
    kill_executor(&server).await;
    let lost = api.ended(&running).await;
    assert_eq!((&lost["status"], &lost["cause"]), (&json!("crashed"), &json!("executor_lost")), "{lost}");
    assert_eq!((&lost["stdout"], &lost["retry_count"]), (&json!("begun\n"), &json!(0)));
    // Whatever its state is now, what is accepted runs.
    let waiting = api.start(id, shell("echo $MODE")).await;
    let session = recovered(api, id, 1).await;
    println!("{wiring:?}: runs again {:?} after the kill", killed.elapsed());
    assert_eq!(api.ended(&waiting).await["stdout"], "fast\n");
    let kept = api.run(id, "shell", "cat /workspace/kept.txt").await;
    assert_eq!(kept["stdout"], "kept\n", "the workspace is as it was saved: {kept}");
    for field in ["resource_limit", "effective_isolation", "expires_at", "language_runtime"] {
        assert_eq!(session[field], created[field], "{field}");
    }
    let after = api.get(&format!("/containers?session_id={id}")).await.is(200);
    assert_eq!((&after["total"], &after["items"][0]["restart_count"]), (&json!(1), &json!(1)), "{after}");
    assert_ne!(after["items"][0]["id"], before["id"]);
    let text = api.send(api.request_root("GET", "/metrics")).await.text;
    assert!(text.contains("sandmesh_session_recoveries_total 1"), "{text}");
    api.send(api.request("POST", &format!("/sessions/{id}/terminate"))).await.is(200);
    server.expect_nothing_left(Duration::from_secs(10)).await;
}

async fn an_execution_with_retries_survives_the_loss_of_its_sandbox(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let mut body = shell("echo begun; sleep 3; echo done");
    body["max_retries"] = json!(2);
    let retried = api.start(&id, body).await;
    api.wrote(&retried, "begun").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    kill_executor(&server).await;
    let run = api.ended(&retried).await;
    assert_eq!(
        (&run["status"], &run["retry_count"], &run["max_retries"]),
        (&json!("completed"), &json!(1), &json!(2)),
        "{run}"
    );
    assert_eq!(run["stdout"], "begun\nbegun\ndone\n");
    // An end of its own is none of that.
    let mut body = shell("exit 3");
    body["max_retries"] = json!(2);
    let run = api.execute(&id, body).await;
    assert_eq!((&run["status"], &run["retry_count"]), (&json!("failed"), &json!(0)), "{run}");
    let mut body = shell("true");
    body["max_retries"] = json!(11);
    api.post(&format!("/sessions/{id}/execute"), body).await.names("body.max_retries");
}

async fn a_session_recovers_so_often_and_no_more(wiring: Wiring) {
    let server = wiring.start_with(&[("SANDMESH_SESSION__MAX_RECOVERIES", "1")]).await;
    let api = &server.api;
    let id = api.session().await;
    kill_executor(&server).await;
    recovered(api, &id, 1).await;
    kill_executor(&server).await;
    let failed = api.session_is(&id, "failed").await;
    assert!(failed["status_reason"].as_str().unwrap().contains("after 1 recoveries"), "{failed}");
    api.post(&format!("/sessions/{id}/execute"), shell("true"))
        .await
        .refused(409, "Sandbox.SessionNotActive");
    server.expect_nothing_left(Duration::from_secs(10)).await;
    let done = api.post("/health/sync", json!({})).await.is(200);
    assert_eq!(done["result"]["unhealthy"], 0, "{done}");
}

async fn a_session_that_recovers_can_be_ended_and_leaves_nothing(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    kill_executor(&server).await;
    let ended = api.send(api.request("POST", &format!("/sessions/{id}/terminate"))).await.is(200);
    assert_eq!(ended["status"], "terminated", "{ended}");
    server.expect_nothing_left(Duration::from_secs(10)).await;
}

/// The agent's process dies and stays away: its node is lost, and so is what ran there, though it runs still.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_ran_on_a_lost_node_ends_as_that_and_is_removed_when_the_node_comes_back() {
    let settings = [
        ("SANDMESH_SCHEDULER__NODE_LOST_AFTER", "5s"),
        ("SANDMESH_SESSION__MAX_RECOVERIES", "0"),
        ("SANDMESH_STATE_SYNC__INTERVAL", "500ms"),
    ];
    let mut server = Wiring::Split.start_with(&settings).await;
    let id = server.api.session().await;
    let running = server.api.start(&id, shell("echo begun; sleep 100")).await;
    server.api.wrote(&running, "begun").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.process("agent").kill();
    let run = server.api.ended(&running).await;
    assert_eq!((&run["status"], &run["cause"]), (&json!("crashed"), &json!("node_lost")), "{run}");
    assert_eq!(server.api.get("/nodes").await.is(200)["items"][0]["status"], "lost");
    let failed = server.api.session_is(&id, "failed").await;
    assert!(failed["status_reason"].as_str().unwrap().contains("is lost"), "{failed}");
    assert_eq!(server.executors().len(), 1, "it runs on, where nobody reaches it");
    server.start_again().await;
    server.expect_nothing_left(Duration::from_secs(30)).await;
    assert_eq!(server.api.get("/nodes").await.is(200)["items"][0]["status"], "healthy");
    assert_eq!(server.api.run(&server.api.session().await, "shell", "echo on").await["stdout"], "on\n");
}
