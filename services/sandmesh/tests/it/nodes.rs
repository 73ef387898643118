//! Two nodes, one of which goes away: what it had goes on at the other.

use std::time::Duration;

use sandmesh_mesh::database::testing::Kind;
use serde_json::{Value, json};

use crate::harness::{Api, Server, eventually, process::Process, twofold::Twofold};

/// Nodes are lost soon, and whoever looks looks often.
const SETTINGS: [(&str, &str); 3] = [
    ("SANDMESH_SCHEDULER__NODE_LOST_AFTER", "6s"),
    ("SANDMESH_STATE_SYNC__INTERVAL", "500ms"),
    ("SANDMESH_STATE_SYNC__ORPHAN_GRACE", "1s"),
];

fn shell(code: &str, max_retries: u32) -> Value {
    json!({"language": "shell", "code": code, "timeout": 120, "max_retries": max_retries})
}

/// A session on a node, and the name of the node.
async fn session(api: &Api) -> (String, String) {
    let id = api.session().await;
    let node = api.get(&format!("/sessions/{id}")).await.is(200)["runtime_node"].as_str().unwrap().to_owned();
    (id, node)
}

/// Sessions on both nodes: one of a template goes where others of it are, unless that node drains.
async fn one_on_each(api: &Api) -> [(String, String); 2] {
    let first = session(api).await;
    let node = format!("/nodes/{}", first.1);
    api.post(&format!("{node}/drain"), json!({})).await.is(200);
    let second = session(api).await;
    api.post(&format!("{node}/resume"), json!({})).await.is(200);
    assert_ne!(first.1, second.1, "both nodes are used");
    [first, second]
}

/// The agent of a node.
fn agent<'a>(server: &'a mut Server, node: &str) -> &'a mut Process {
    server.process(if node == "second" { "agent-2" } else { "agent" })
}

/// The agent dies, and the schedulers that saw it are started anew while it is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn session_of_a_lost_node_goes_on_at_another_also_when_no_scheduler_saw_it_go() {
    let mut mesh = Twofold::start(Kind::Postgres, &SETTINGS).await;
    let server = &mut mesh.server;
    let api = server.api.clone();
    let [(lost, node), (other, _)] = one_on_each(&api).await;
    for id in [&lost, &other] {
        assert_eq!(api.run(id, "shell", "echo kept > kept; echo on").await["stdout"], "on\n");
    }
    let running = api.start(&lost, shell("echo begun; sleep 100", 0)).await;
    let retried = api.start(&lost, shell("echo begun; sleep 25; echo done", 1)).await;
    let elsewhere = api.start(&other, shell("for i in $(seq 30); do echo $i; sleep 0.5; done", 0)).await;
    for execution in [&running, &retried, &elsewhere] {
        api.wrote(execution, if execution == &elsewhere { "2" } else { "begun" }).await;
    }
    for name in ["control", "control-2"] {
        server.process(name).kill();
    }
    agent(server, &node).kill();
    for name in ["control", "control-2"] {
        let process = server.process(name);
        *process = process.launch.spawn();
    }
    let run = api.ended(&running).await;
    assert_eq!((&run["status"], &run["cause"]), (&json!("crashed"), &json!("node_lost")), "{run}");
    let session = api.session_is(&lost, "running").await;
    assert_eq!(session["recovery_count"], 1, "{session}");
    assert_ne!(session["runtime_node"], node.as_str());
    assert_eq!(api.run(&lost, "shell", "cat kept").await["stdout"], "kept\n", "its files came along");
    let run = api.ended(&retried).await;
    assert_eq!((&run["status"], &run["retry_count"]), (&json!("completed"), &json!(1)), "{run}");
    assert_eq!(run["stdout"], "begun\nbegun\ndone\n");
    let run = api.ended(&elsewhere).await;
    assert_eq!((&run["status"], &run["retry_count"]), (&json!("completed"), &json!(0)), "{run}");

    server.start_again().await;
    eventually("the node is back, with nothing that nobody has", Duration::from_secs(30), async || {
        let listed = api.get("/containers").await.is(200);
        let on_it =
            listed["items"].as_array().unwrap().iter().filter(|item| item["node_id"] == node.as_str());
        listed["total"] == server.executors().len() && on_it.count() == 0
    })
    .await;
    for id in [&lost, &other] {
        assert_eq!(api.run(id, "shell", "cat kept").await["stdout"], "kept\n");
    }
}

/// One of two processes reconciles; when it dies the other does, within 15 seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn when_the_process_that_reconciles_dies_the_other_does() {
    let mut mesh = Twofold::start(Kind::MariaDb, &SETTINGS).await;
    let server = &mut mesh.server;
    let holds = |process: &Process| {
        let log = std::fs::read_to_string(&process.launch.log).unwrap();
        log.lines()
            .rfind(|line| line.contains("a lease") && line.contains("state-sync"))
            .is_some_and(|line| line.contains("true"))
    };
    let holders = |server: &mut Server| -> Vec<&'static str> {
        ["watch", "watch-2"].into_iter().filter(|name| holds(server.process(name))).collect()
    };
    eventually("one holds the lease", Duration::from_secs(15), async || !holders(server).is_empty()).await;
    let [holder] = holders(server)[..] else { panic!("one and only one: {:?}", holders(server)) };
    let other = if holder == "watch" { "watch-2" } else { "watch" };
    server.process(holder).kill();
    let took = eventually("the other takes over", Duration::from_secs(15), async || {
        holders(server).contains(&other)
    });
    println!("taken over after {:?}", took.await);
    let id = server.api.session().await;
    let report = server.api.post("/health/sync", json!({})).await.is(200);
    assert_eq!(
        (&report["result"]["healthy"], &report["result"]["errors"]),
        (&json!(1), &json!([])),
        "{report}"
    );
    assert_eq!(server.api.run(&id, "shell", "echo on").await["stdout"], "on\n");
}
