//! Cancelling, repeating, queueing and limiting executions.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Wiring, eventually, process::processes_with};

in_both_wirings!(
    cancelled_execution_ends_at_once_with_its_output,
    repeated_request_runs_once,
    executions_beyond_the_cap_wait_for_their_turn,
    executions_of_one_session_run_side_by_side,
    too_much_at_once_is_refused_with_a_time_to_come_back,
    run_beyond_a_limit_ends_with_its_cause_and_the_session_goes_on,
);

fn shell(code: &str) -> Value {
    json!({"language": "shell", "code": code, "timeout": 120})
}

async fn cancelled_execution_ends_at_once_with_its_output(wiring: Wiring) {
    let server = wiring.start_with(&[("SANDMESH_SESSION__MAX_CONCURRENT_EXECUTIONS", "1")]).await;
    let api = &server.api;
    let id = api.session().await;
    let mark = format!("1{}003", server.port);
    let running =
        api.start(&id, shell(&format!("trap '' TERM INT; sleep {mark} & echo begun; wait; sleep 100"))).await;
    api.wrote(&running, "begun").await;
    let waiting = api.start(&id, shell("echo never")).await;
    let cancel = async |id: &str| api.send(api.request("POST", &format!("/executions/{id}/cancel"))).await;

    let cancelled = cancel(&waiting).await.is(200);
    assert_eq!(
        (&cancelled["status"], &cancelled["stdout"]),
        (&json!("cancelled"), &json!("")),
        "{cancelled}"
    );
    let start = Instant::now();
    let cancelled = cancel(&running).await.is(200);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(
        (&cancelled["status"], &cancelled["cause"]),
        (&json!("cancelled"), &json!("cancelled")),
        "{cancelled}"
    );
    assert_eq!((&cancelled["stdout"], &cancelled["exit_code"]), (&json!("begun\n"), &json!(null)));
    eventually("the tree is gone", Duration::from_secs(2), async || {
        processes_with(&["sleep", &mark]).is_empty()
    })
    .await;

    cancel(&running).await.refused(409, "Sandbox.ExecutionEnded");
    cancel(&waiting).await.refused(409, "Sandbox.ExecutionEnded");
    cancel("none").await.refused(404, "Sandbox.ExecutionNotFound");
    assert_eq!(api.ended(&waiting).await["status"], "cancelled");
    assert_eq!(api.run(&id, "shell", "echo on").await["stdout"], "on\n", "the session goes on");
}

async fn repeated_request_runs_once(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let path = format!("/sessions/{id}/execute");
    let noting = |name: &str| format!("echo {name} >> /workspace/runs; sleep 0.5; echo {name}");
    let keyed = |name: &str| {
        let body = json!({"language": "shell", "code": noting(name)});
        api.send(api.request("POST", &path).header("Idempotency-Key", name).json(&body))
    };
    let with = |name: &str, field: &str| {
        let mut body = json!({"language": "shell", "code": noting(name)});
        body[field] = json!(name);
        body
    };
    let mut expected = Vec::new();
    for name in ["by-key", "by-request", "by-id"] {
        let mut replies = Vec::new();
        match name {
            "by-key" => replies.extend(futures::future::join_all((0..50).map(|_| keyed(name))).await),
            _ => {
                let field = if name == "by-id" { "execution_id" } else { "request_id" };
                let all = (0..50).map(|_| api.post(&path, with(name, field)));
                replies.extend(futures::future::join_all(all).await);
            }
        }
        let mut ids: Vec<String> = Vec::new();
        for reply in replies {
            ids.push(reply.is(201)["execution_id"].as_str().unwrap().to_owned());
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "{name}: {ids:?}");
        if name == "by-id" {
            assert_eq!(ids[0], "by-id");
        }
        // The same in a synchronous call: it waits for the first run and gives its result.
        let body = with(name, if name == "by-id" { "execution_id" } else { "request_id" });
        let run = api.execute(&id, body).await;
        assert_eq!((&run["id"], &run["stdout"]), (&json!(ids[0]), &json!(format!("{name}\n"))));
        expected.push(name);
    }
    let runs = api.run(&id, "shell", "cat runs").await;
    assert_eq!(runs["stdout"].as_str().unwrap().lines().collect::<Vec<_>>(), expected);
    let other = api.session().await;
    let elsewhere = api.execute(&other, with("by-request", "request_id")).await;
    assert_eq!(elsewhere["stdout"], "by-request\n", "a request id belongs to its session");
    assert_ne!(elsewhere["session_id"], json!(id));
}

async fn executions_beyond_the_cap_wait_for_their_turn(wiring: Wiring) {
    let server = wiring.start_with(&[("SANDMESH_SESSION__MAX_CONCURRENT_EXECUTIONS", "2")]).await;
    let api = &server.api;
    let id = api.session().await;
    let code = "import time\ndef handler(event):\n    start = time.time()\n    time.sleep(0.6)\n    return [start, time.time()]";
    let mut executions = Vec::new();
    for _ in 0..6 {
        executions.push(api.start(&id, json!({"language": "python", "code": code})).await);
    }
    let mut spans = Vec::new();
    let mut longest_wait = 0.0_f64;
    for execution in &executions {
        let run = api.ended(execution).await;
        assert_eq!(run["status"], "completed", "{run}");
        spans.push([run["return_value"][0].as_f64().unwrap(), run["return_value"][1].as_f64().unwrap()]);
        longest_wait = longest_wait.max(run["metrics"]["queue_ms"].as_f64().unwrap());
    }
    let at_once = |time: f64| spans.iter().filter(|span| span[0] <= time && time < span[1]).count();
    let most = spans.iter().map(|span| at_once(span[0])).max().unwrap();
    assert_eq!(most, 2, "{spans:?}");
    assert!(longest_wait > 600.0, "the last waited for two others: {longest_wait} ms");
}

async fn executions_of_one_session_run_side_by_side(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    // Each waits for the other: they only end when both run at once.
    let meet = |own: &str, other: &str| {
        shell(&format!(
            "touch /workspace/{own}; for i in $(seq 600); do [ -e /workspace/{other} ] && echo met && exit; sleep 0.05; done; exit 9"
        ))
    };
    let (one, two) = tokio::join!(api.execute(&id, meet("a", "b")), api.execute(&id, meet("b", "a")));
    assert_eq!((&one["stdout"], &two["stdout"]), (&json!("met\n"), &json!("met\n")), "{one} {two}");
}

async fn too_much_at_once_is_refused_with_a_time_to_come_back(wiring: Wiring) {
    let settings = [
        ("SANDMESH_SESSION__MAX_EXECUTIONS_PER_SESSION", "2"),
        ("SANDMESH_SESSION__MAX_SESSIONS", "2"),
        ("SANDMESH_AGENT__MAX_SANDBOXES", "1"),
    ];
    let server = wiring.start_with(&settings).await;
    let api = &server.api;
    let id = api.session().await;
    let first = api.start(&id, shell("sleep 100")).await;
    api.start(&id, shell("sleep 100")).await;
    let reply = api.post(&format!("/sessions/{id}/execute"), shell("true")).await;
    assert!(reply.header("retry-after").parse::<u32>().unwrap() >= 1);
    reply.refused(429, "Sandbox.TooManyExecutions");
    api.send(api.request("POST", &format!("/executions/{first}/cancel"))).await.is(200);
    assert_eq!(api.execute(&id, shell("echo room")).await["stdout"], "room\n");

    // A second session is within the quota, and no node has room for its sandbox.
    let reply = api.post("/sessions", json!({"template_id": "python-basic"})).await;
    assert!(reply.header("retry-after").parse::<u32>().unwrap() >= 1);
    reply.refused(503, "Sandbox.NoCapacity");
    api.send(api.request("POST", &format!("/sessions/{id}/terminate"))).await.is(200);
    let second = api.session().await;
    api.get(&format!("/sessions/{second}")).await.is(200);
}

pub(crate) async fn run_beyond_a_limit_ends_with_its_cause_and_the_session_goes_on(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let session = api.create(json!({"template_id": "python-basic", "memory": "128Mi"})).await;
    let id = session["id"].as_str().unwrap();
    let hog = "def handler(event):\n    print('begun', flush=True)\n    kept = []\n    while True:\n        kept.append(bytearray(4 << 20))";
    let run = api.execute(id, json!({"language": "python", "code": hog, "timeout": 60})).await;
    assert_eq!((&run["status"], &run["cause"]), (&json!("crashed"), &json!("oom")), "{run}");
    assert_eq!(run["stdout"], "begun\n");

    let bomb = "import os, time\ndef handler(event):\n    made = 0\n    try:\n        while made < 5000:\n            if os.fork() == 0:\n                time.sleep(60)\n                os._exit(0)\n            made += 1\n    except OSError:\n        return made";
    let run = api.execute(id, json!({"language": "python", "code": bomb, "timeout": 60})).await;
    assert!(
        run["return_value"].as_u64().is_some_and(|made| made < 1024) || run["cause"] == "pids_limit",
        "{run}"
    );
    let run = api.run(id, "shell", "ls /proc | grep -c '^[0-9]'; echo on").await;
    assert!(run["stdout"].as_str().is_some_and(|out| out.ends_with("on\n")), "{run}");
    assert_eq!(api.get(&format!("/sessions/{id}")).await.is(200)["status"], "running");
}
