//! Crash safety: whatever dies, no accepted execution is lost or runs twice, and nothing is left over.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Api, Server, Wiring, eventually, process::signal};

in_both_wirings!(
    killed_executor_crashes_its_executions_with_a_cause,
    killed_server_loses_no_execution_and_runs_none_twice,
    killed_server_loses_no_execution_that_waits_for_its_turn,
    killed_server_keeps_its_sessions_and_their_workspace,
    graceful_stop_keeps_sandboxes_that_are_to_be_kept,
    graceful_stop_leaves_nothing_when_sandboxes_are_to_be_destroyed,
    terminating_after_a_crash_leaves_nothing,
);

const KEEP: (&str, &str) = ("SANDMESH_AGENT__ON_SHUTDOWN", "keep");

fn shell(code: &str) -> Value {
    json!({"language": "shell", "code": code, "timeout": 120})
}

async fn terminate(api: &Api, id: &str) -> Value {
    api.send(api.request("POST", &format!("/sessions/{id}/terminate"))).await.is(200)
}

async fn killed_executor_crashes_its_executions_with_a_cause(wiring: Wiring) {
    // Without recovery, which has tests of its own.
    let server = wiring.start_with(&[("SANDMESH_SESSION__MAX_RECOVERIES", "0")]).await;
    let api = &server.api;
    let id = api.session().await;
    let mark = format!("1{}004", server.port);
    let mut running = Vec::new();
    for n in 0..3 {
        let execution = api.start(&id, shell(&format!("echo begun {n}; sleep {mark}"))).await;
        api.wrote(&execution, "begun").await;
        running.push(execution);
    }
    // What a watcher sees reaches the record a moment later.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let start = Instant::now();
    signal(server.only_executor(), Signal::KILL);
    for (n, execution) in running.iter().enumerate() {
        let run = api.ended(execution).await;
        assert_eq!((&run["status"], &run["cause"]), (&json!("crashed"), &json!("executor_lost")), "{run}");
        assert_eq!(run["stdout"], format!("begun {n}\n"), "the output so far is kept");
        assert!(run["completed_at"].is_string() && run["exit_code"].is_null(), "{run}");
    }
    let took = start.elapsed();
    println!("{wiring:?}: crashed {took:?} after the kill");
    assert!(took < Duration::from_secs(5), "{took:?}; the aim is 2 s");
    let session = api.session_is(&id, "failed").await;
    assert!(session["status_reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{session}");
    api.post(&format!("/sessions/{id}/execute"), shell("true"))
        .await
        .refused(409, "Sandbox.SessionNotActive");
    server.expect_nothing_left(Duration::from_secs(10)).await;
    assert_eq!(api.run(&api.session().await, "shell", "echo on").await["stdout"], "on\n");
}

/// Twenty executions in two sessions: short and long, each notes its start and its end.
struct Twenty {
    sessions: Vec<String>,
    executions: Vec<String>,
}

impl Twenty {
    async fn start(api: &Api) -> Self {
        let sessions = vec![api.session().await, api.session().await];
        let mut executions = Vec::new();
        for n in 0..20_usize {
            let seconds = ["0", "0.3", "1", "2.5", "4"][n % 5];
            let code = format!(
                "echo start {n} >> runs; echo first {n}; sleep {seconds}; echo second {n}; echo note {n} >&2; echo end {n} >> runs"
            );
            executions.push(api.start(&sessions[n % 2], shell(&code)).await);
        }
        Self { sessions, executions }
    }

    /// Each ended well, with all its output, and ran once.
    async fn check(&self, api: &Api) {
        self.check_with(api, 0).await;
    }

    /// As `check`, with so many other executions in the first session, which noted nothing.
    async fn check_with(&self, api: &Api, others: u64) {
        for (n, execution) in self.executions.iter().enumerate() {
            let run = api.ended(execution).await;
            assert_eq!((&run["status"], &run["exit_code"]), (&json!("completed"), &json!(0)), "{run}");
            assert_eq!(run["stdout"], format!("first {n}\nsecond {n}\n"));
            assert_eq!(run["stderr"], format!("note {n}\n"));
        }
        for (half, session) in self.sessions.iter().enumerate() {
            let runs = api.run(session, "shell", "sort runs").await;
            let mut expected: Vec<String> = (0..20)
                .filter(|n| n % 2 == half)
                .flat_map(|n| [format!("start {n}"), format!("end {n}")])
                .collect();
            expected.sort();
            assert_eq!(
                runs["stdout"].as_str().unwrap().lines().collect::<Vec<_>>(),
                expected,
                "each ran once"
            );
            let listed = api.get(&format!("/sessions/{session}/executions")).await.is(200);
            let others = if half == 0 { others } else { 0 };
            assert_eq!(listed["total"], 11 + others, "none is lost, none was made up");
        }
    }
}

pub(crate) async fn killed_server_loses_no_execution_and_runs_none_twice(wiring: Wiring) {
    let mut server = wiring.start().await;
    // Once as soon as all are accepted, once while some have ended and others run.
    let twenty = Twenty::start(&server.api).await;
    server.kill();
    server.start_again().await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    server.kill();
    server.start_again().await;
    twenty.check(&server.api).await;
    for session in &twenty.sessions {
        assert_eq!(terminate(&server.api, session).await["status"], "terminated");
    }
    server.expect_nothing_left(Duration::from_secs(10)).await;
}

async fn killed_server_loses_no_execution_that_waits_for_its_turn(wiring: Wiring) {
    let mut server = wiring.start_with(&[("SANDMESH_SESSION__MAX_CONCURRENT_EXECUTIONS", "3")]).await;
    let twenty = Twenty::start(&server.api).await;
    let cancelled = server.api.start(&twenty.sessions[0], shell("sleep 100")).await;
    server.kill();
    server.start_again().await;
    server.api.send(server.api.request("POST", &format!("/executions/{cancelled}/cancel"))).await.is(200);
    twenty.check_with(&server.api, 1).await;
    assert_eq!(server.api.ended(&cancelled).await["status"], "cancelled");
}

async fn killed_server_keeps_its_sessions_and_their_workspace(wiring: Wiring) {
    let mut server = wiring.start().await;
    let id = server.api.session().await;
    server.api.run(&id, "shell", "echo kept > state").await;
    let before = server.api.get(&format!("/sessions/{id}")).await.is(200);
    let executor = server.only_executor();
    server.kill();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.only_executor(), executor, "a sandbox outlives the server");
    server.start_again().await;
    let after = server.api.get(&format!("/sessions/{id}")).await.is(200);
    for field in
        ["status", "created_at", "expires_at", "runtime_node", "resource_limit", "effective_isolation"]
    {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert_eq!(server.api.run(&id, "shell", "cat state").await["stdout"], "kept\n");
    assert_eq!(server.only_executor(), executor);
    // An executor that died while nobody watched is found at the start.
    let lost = server.api.start(&id, shell("echo begun; sleep 100")).await;
    server.api.wrote(&lost, "begun").await;
    server.kill();
    signal(executor, Signal::KILL);
    server.start_again().await;
    let run = server.api.ended(&lost).await;
    assert_eq!((&run["status"], &run["cause"]), (&json!("crashed"), &json!("executor_lost")), "{run}");
    // Its session gets another sandbox, and what may have run in the lost one does not run there.
    server.api.session_is(&id, "running").await;
    let session = server.api.get(&format!("/sessions/{id}")).await.is(200);
    assert_eq!(session["recovery_count"], 1, "{session}");
    assert_eq!(server.api.run(&id, "shell", "cat state").await["stdout"], "kept\n");
    terminate(&server.api, &id).await;
    server.expect_nothing_left(Duration::from_secs(10)).await;
}

async fn graceful_stop_keeps_sandboxes_that_are_to_be_kept(wiring: Wiring) {
    let mut server = wiring.start_with(&[KEEP]).await;
    let twenty = Twenty::start(&server.api).await;
    // A client that follows a run does not hold up the stop.
    let long = server.api.start(&twenty.sessions[0], shell("echo begun; sleep 8; echo ended")).await;
    let mut follower = server.api.follow(&long, None).await;
    follower.until_stdout_has("begun").await;
    let start = Instant::now();
    server.stop();
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    server.start_again().await;
    let run = server.api.ended(&long).await;
    assert_eq!((&run["status"], &run["stdout"]), (&json!("completed"), &json!("begun\nended\n")), "{run}");
    for session in &twenty.sessions {
        assert_eq!(server.api.get(&format!("/sessions/{session}")).await.is(200)["status"], "running");
    }
    server.api.delete(&format!("/sessions/{}", twenty.sessions[1])).await;
    for execution in twenty.executions.iter().step_by(2) {
        assert_eq!(server.api.ended(execution).await["status"], "completed");
    }
    terminate(&server.api, &twenty.sessions[0]).await;
    server.expect_nothing_left(Duration::from_secs(10)).await;
}

async fn graceful_stop_leaves_nothing_when_sandboxes_are_to_be_destroyed(wiring: Wiring) {
    let mut server = wiring.start_with(&[("SANDMESH_SESSION__MAX_RECOVERIES", "0")]).await;
    let id = server.api.session().await;
    let running = server.api.start(&id, shell("echo begun; sleep 100")).await;
    server.api.wrote(&running, "begun").await;
    server.stop();
    assert_eq!(server.leftovers(), Vec::<String>::new());
    server.start_again().await;
    let run = server.api.ended(&running).await;
    // Who notices first decides the word: the executor, which is told to end, or the others, who miss it.
    let told = (run["status"].as_str().unwrap(), run["cause"].as_str().unwrap());
    assert!([("cancelled", "session_ended"), ("crashed", "executor_lost")].contains(&told), "{run}");
    server.api.session_is(&id, "failed").await;
}

async fn terminating_after_a_crash_leaves_nothing(wiring: Wiring) {
    let mut server = wiring.start().await;
    let sessions = [server.api.session().await, server.api.session().await];
    let running =
        server.api.start(&sessions[0], shell("sleep 100 & setsid sleep 100 & echo begun; wait")).await;
    server.api.wrote(&running, "begun").await;
    server.kill();
    assert!(!server.leftovers().is_empty());
    server.start_again().await;
    terminate(&server.api, &sessions[0]).await;
    assert_eq!(server.api.delete(&format!("/sessions/{}", sessions[1])).await.status, 204);
    server.expect_nothing_left(Duration::from_secs(10)).await;
    assert_eq!(server.api.ended(&running).await["cause"], "session_ended");
    // Killed between its sandbox's creation and the row that names it, a session leaves no orphan.
    let creating = tokio::spawn({
        let api = server.api.clone();
        async move {
            api.request("POST", "/sessions")
                .json(&json!({"id": "cut", "template_id": "python-basic"}))
                .send()
                .await
                .is_ok()
        }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    server.kill();
    let _ = creating.await;
    server.start_again().await;
    settled(&server, "cut").await;
    server.expect_nothing_left(Duration::from_secs(30)).await;
}

/// Ends a session that may or may not have been accepted.
async fn settled(server: &Server, id: &str) {
    let path = format!("/sessions/{id}");
    if server.api.get(&path).await.status == 200 {
        eventually("the session is decided", Duration::from_secs(30), async || {
            server.api.get(&path).await.is(200)["status"] != "creating"
        })
        .await;
        terminate(&server.api, id).await;
    }
}
