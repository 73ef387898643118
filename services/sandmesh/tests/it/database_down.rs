//! A database server that goes away while the mesh works, and comes back: whoever asks is told so at once,
//! what runs goes on, and nothing is lost or runs twice.

use std::{
    fs,
    time::{Duration, Instant},
};

use sandmesh_mesh::database::testing::{Kind, OwnServer};
use serde_json::{Value, json};

use crate::harness::{Api, Server, Wiring, eventually, settings_of};

/// How long whoever asks may wait to hear that it does not work now.
const SOON: Duration = Duration::from_secs(9);

/// How a server goes away.
#[derive(Clone, Copy, PartialEq)]
enum Outage {
    /// It answers nothing; connections stay.
    Frozen(u64),
    /// It is killed, and starts again from what it had written.
    Killed(u64),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_is_lost_while_mariadb_is_killed_for_half_a_minute() {
    nothing_is_lost(Kind::MariaDb, Outage::Killed(30)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_is_lost_while_mariadb_hangs() {
    nothing_is_lost(Kind::MariaDb, Outage::Frozen(12)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_is_lost_while_postgres_is_killed() {
    nothing_is_lost(Kind::Postgres, Outage::Killed(12)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_is_lost_while_postgres_hangs_for_half_a_minute() {
    nothing_is_lost(Kind::Postgres, Outage::Frozen(30)).await;
}

/// Notes that it runs, and writes a line every tenth of a second.
fn counting(lines: u32) -> Value {
    let code = format!("echo run {lines} >> runs; for i in $(seq {lines}); do echo line $i; sleep 0.1; done");
    json!({"language": "shell", "code": code, "timeout": 120})
}

async fn nothing_is_lost(kind: Kind, outage: Outage) {
    let mut database = OwnServer::start(kind);
    let url = database.database().await.url();
    let server = Wiring::Embedded.start_with(&settings_of(&url)).await;
    let api = &server.api;
    let id = api.session().await;
    let (Outage::Frozen(seconds) | Outage::Killed(seconds)) = outage;
    // Ends while it is away, and ends when it is back.
    let lengths = [20, u32::try_from(seconds).unwrap() * 10 + 50];
    let mut running = Vec::new();
    for lines in lengths {
        let execution = api.start(&id, counting(lines)).await;
        api.wrote(&execution, "line 2").await;
        running.push(execution);
    }
    let began = Instant::now();
    match outage {
        Outage::Frozen(_) => database.freeze(),
        Outage::Killed(_) => database.kill(),
    }
    whoever_asks_is_told(api, &id).await;
    tokio::time::sleep(Duration::from_secs(seconds).saturating_sub(began.elapsed())).await;
    match outage {
        Outage::Frozen(_) => database.thaw(),
        Outage::Killed(_) => database.start_again(),
    }
    eventually("the server is well again", Duration::from_secs(20), async || {
        api.try_get("/health/detailed").await.is_some_and(|reply| reply.body["status"] == "healthy")
    })
    .await;
    for (execution, lines) in running.iter().zip(lengths) {
        let run = api.ended(execution).await;
        let expected: String = (1..=lines).map(|line| format!("line {line}\n")).collect();
        assert_eq!((&run["status"], &run["stdout"]), (&json!("completed"), &json!(expected)), "{run}");
    }
    let mut runs: Vec<String> = lengths.iter().map(|lines| format!("run {lines}")).collect();
    runs.sort();
    let ran = api.run(&id, "shell", "sort runs").await["stdout"].as_str().unwrap().to_owned();
    assert_eq!(ran.lines().collect::<Vec<_>>(), runs, "each ran once");
    logs_have_no_password(&server);
}

/// Reads and writes fail at once, and say that it is worth another try.
async fn whoever_asks_is_told(api: &Api, session: &str) {
    let session = format!("/sessions/{session}");
    for (method, path, body) in [
        ("GET", session.clone(), None),
        ("GET", "/sessions".to_owned(), None),
        ("GET", "/templates".to_owned(), None),
        ("POST", "/sessions".to_owned(), Some(json!({"template_id": "python-basic"}))),
        ("POST", format!("{session}/execute"), Some(counting(1))),
        ("POST", format!("{session}/execute-sync"), Some(counting(1))),
    ] {
        let start = Instant::now();
        let request = api.request(method, &path);
        let request = match &body {
            Some(body) => request.json(body),
            None => request,
        };
        let reply = api.send(request).await;
        assert!(start.elapsed() < SOON, "{method} {path}: told after {:?}", start.elapsed());
        assert!(!reply.header("retry-after").is_empty(), "{method} {path}: {}", reply.text);
        reply.refused(503, "Sandbox.Unavailable");
    }
    let health = api.get("/health/detailed").await.is(200);
    assert_ne!(health["status"], "healthy", "{health}");
    assert_eq!(api.get("/health").await.status, 200, "the gateway lives");
}

fn logs_have_no_password(server: &Server) {
    for process in &server.processes {
        let log = fs::read_to_string(&process.launch.log).unwrap();
        assert!(log.contains("127.0.0.1") && !log.contains("of-tests-only"), "{log}");
    }
}
