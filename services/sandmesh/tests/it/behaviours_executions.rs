//! Behaviours 23, 30, 32 to 36: how executions are started, waited for, limited and listed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Wiring, eventually, process::processes_with};

in_both_wirings!(
    synchronous_execution_answers_as_soon_as_it_ends,
    timeout_kills_the_whole_tree_and_keeps_the_output,
    large_output_is_whole_up_to_its_limit_and_truncated_beyond,
    execution_out_of_its_limits_is_refused_by_field,
    execution_needs_a_session_that_runs,
    asynchronous_execution_is_followed_by_its_id,
);

// 23
async fn synchronous_execution_answers_as_soon_as_it_ends(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let mut waits = Vec::new();
    for path in
        ["/sessions/{}/execute-sync", "/executions/sessions/{}/execute-sync", "/sessions/{}/execute-sync"]
    {
        let body = json!({"code": "def handler(event): return 'done'", "language": "python"});
        let start = Instant::now();
        let run = api.post(&path.replace("{}", &id), body).await.is(200);
        let total = start.elapsed().as_secs_f64() * 1000.0;
        assert_eq!((&run["status"], &run["return_value"]), (&json!("completed"), &json!("done")));
        let spent = |name: &str| run["metrics"][name].as_f64().unwrap_or_else(|| panic!("`{name}` of {run}"));
        waits.push(total - spent("duration_ms") - spent("start_ms") - spent("queue_ms"));
    }
    let least = waits.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(least < 250.0, "an interval of polling would show: {waits:?} ms besides the run itself");

    let slow = json!({"code": "sleep 11; echo late", "language": "shell", "timeout": 60});
    let start = Instant::now();
    let reply = api.post(&format!("/sessions/{id}/execute-sync?sync_timeout=10"), slow).await;
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let told = reply.refused(408, "Sandbox.SyncTimeout");
    let run = api.ended(told["execution_id"].as_str().unwrap()).await;
    assert_eq!((&run["status"], &run["stdout"]), (&json!("completed"), &json!("late\n")), "the run goes on");
}

// 30
async fn timeout_kills_the_whole_tree_and_keeps_the_output(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    // Numbers that are on no other command line of this machine.
    let marks = [(1, format!("1{}001", server.port)), (2, format!("1{}002", server.port))];
    let code = format!(
        "import subprocess, time\ndef handler(event):\n    subprocess.Popen(['sleep', '{}'])\n    subprocess.Popen(['sleep', '{}'], start_new_session=True)\n    print('before', flush=True)\n    time.sleep(10)\n    return 'never'",
        marks[0].1, marks[1].1
    );
    let start = Instant::now();
    let run = api.execute(&id, json!({"language": "python", "code": code, "timeout": 2})).await;
    let took = start.elapsed();
    assert_eq!(
        (&run["status"], &run["cause"], &run["exit_code"]),
        (&json!("timeout"), &json!("timeout"), &json!(null)),
        "{run}"
    );
    assert_eq!((&run["stdout"], &run["return_value"]), (&json!("before\n"), &json!(null)));
    let measured = run["metrics"]["duration_ms"].as_f64().unwrap();
    assert!((2000.0..2500.0).contains(&measured), "{measured} ms for a limit of 2 s");
    assert!(took < Duration::from_secs(6), "{took:?}");
    for (_, mark) in &marks {
        eventually("the tree is gone", Duration::from_secs(2), async || {
            processes_with(&["sleep", mark]).is_empty()
        })
        .await;
    }
    // A process that ignores SIGTERM, and one that stops itself, end all the same.
    for code in ["trap '' TERM; echo on; while :; do sleep 0.1; done", "echo on; kill -STOP $$"] {
        let run = api.execute(&id, json!({"language": "shell", "code": code, "timeout": 1})).await;
        assert_eq!((&run["status"], &run["stdout"]), (&json!("timeout"), &json!("on\n")), "{run}");
    }
    let run = api.python(&id, "def handler(event): return 'the session still works'").await;
    assert_eq!(run["return_value"], "the session still works");
}

// 32
async fn large_output_is_whole_up_to_its_limit_and_truncated_beyond(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let run =
        api.python(&id, "def handler(event):\n    print('x' * 100_000)\n    return 'y' * 1_000_000").await;
    assert_eq!(run["status"], "completed", "{}", run["error"]);
    assert_eq!(run["stdout"].as_str().unwrap(), format!("{}\n", "x".repeat(100_000)));
    assert_eq!(run["return_value"].as_str().unwrap(), "y".repeat(1_000_000));
    assert_eq!((&run["stdout_truncated"], &run["stderr_truncated"]), (&json!(false), &json!(false)));
    let again = api.get(&format!("/executions/{}/result", run["id"].as_str().unwrap())).await.is(200);
    assert_eq!(again["stdout"], run["stdout"]);

    let code = "import sys\nfor i in range(1000):\n    sys.stdout.write(f'{i:03}' + 'z' * 99_996 + '\\n')";
    let run =
        api.execute(&id, json!({"language": "python", "code": code, "mode": "script", "timeout": 100})).await;
    assert_eq!(
        (&run["status"], &run["stdout_truncated"], &run["stderr_truncated"]),
        (&json!("completed"), &json!(true), &json!(false))
    );
    let stdout = run["stdout"].as_str().unwrap();
    assert!(stdout.len() >= 1 << 20, "{} bytes kept", stdout.len());
    let whole = (0..).map(|i| format!("{i:03}{}\n", "z".repeat(99_996)));
    let expected: String = whole.take(stdout.len() / 100_000 + 1).collect();
    assert!(expected.starts_with(stdout), "the first bytes are kept");
}

// 33, 34
async fn execution_out_of_its_limits_is_refused_by_field(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let good = json!({"code": "true", "language": "shell"});
    let changed = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body
    };
    let missing = |field: &str| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(field);
        body
    };
    let cases = [
        ("code", missing("code")),
        ("language", missing("language")),
        ("code", changed("code", json!(""))),
        ("code", changed("code", json!("#".repeat((1 << 20) + 1)))),
        ("language", changed("language", json!("ruby"))),
        ("timeout", changed("timeout", json!(0))),
        ("timeout", changed("timeout", json!(3601))),
        ("timeout", changed("timeout", json!("1"))),
        ("event", changed("event", json!([1]))),
        ("event", changed("event", json!({"e": "x".repeat(6 << 20)}))),
        ("mode", changed("mode", json!("maybe"))),
        ("entrypoint", changed("entrypoint", json!("os.system"))),
        ("execution_id", changed("execution_id", json!("a b"))),
        ("env_vars", changed("env_vars", json!([]))),
    ];
    for (field, body) in &cases {
        for path in ["execute", "execute-sync", "execute-stream"] {
            api.post(&format!("/sessions/{id}/{path}"), body.clone()).await.names(&format!("body.{field}"));
        }
        api.post(&format!("/executions/sessions/{id}/execute"), body.clone())
            .await
            .names(&format!("body.{field}"));
    }
    let sync =
        async |query: &str| api.post(&format!("/sessions/{id}/execute-sync?{query}"), good.clone()).await;
    for (name, values) in [("sync_timeout", ["5", "4000", "x"]), ("poll_interval", ["0.05", "11", "x"])] {
        for value in values {
            sync(&format!("{name}={value}")).await.names(&format!("query.{name}"));
        }
    }
    for query in ["sync_timeout=10", "sync_timeout=3600", "poll_interval=0.1", "poll_interval=10"] {
        assert_eq!(sync(query).await.is(200)["status"], "completed", "{query}");
    }
    for timeout in [1, 3600] {
        assert_eq!(api.execute(&id, changed("timeout", json!(timeout))).await["status"], "completed");
    }
    let all = api.get(&format!("/sessions/{id}/executions")).await.is(200);
    assert_eq!(all["total"], 6, "nothing that was refused exists");
}

// 35
async fn execution_needs_a_session_that_runs(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let body = json!({"code": "true", "language": "shell"});
    let id = api.session().await;
    api.send(api.request("POST", &format!("/sessions/{id}/terminate"))).await.is(200);
    for path in ["execute", "execute-sync", "execute-stream"] {
        let reply = api.post(&format!("/sessions/none/{path}"), body.clone()).await;
        reply.refused(404, "Sandbox.SessionNotFound");
        let reply = api.post(&format!("/sessions/{id}/{path}"), body.clone()).await;
        reply.refused(409, "Sandbox.SessionNotActive");
    }
}

// 36
async fn asynchronous_execution_is_followed_by_its_id(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    for n in 0..3 {
        api.run(&id, "shell", &format!("echo {n}")).await;
    }
    let body = json!({"code": "echo begun; sleep 1; echo ended", "language": "shell"});
    let accepted = api.post(&format!("/executions/sessions/{id}/execute"), body).await.is(201);
    assert_eq!((&accepted["status"], &accepted["session_id"]), (&json!("pending"), &json!(id)));
    assert!(accepted["created_at"].is_string());
    let execution = accepted["execution_id"].as_str().unwrap();
    let stamp = execution.strip_prefix("exec_").and_then(|rest| rest.split_once('_')).unwrap();
    assert!(stamp.0.len() == 14 && stamp.1.len() >= 8, "{execution}");

    let status = api.get(&format!("/executions/{execution}/status")).await.is(200);
    assert!(["pending", "running"].contains(&status["status"].as_str().unwrap()), "{status}");
    assert!(status["exit_code"].is_null() && status["completed_at"].is_null(), "{status}");
    let ended = api.ended(execution).await;
    assert_eq!((&ended["status"], &ended["stdout"]), (&json!("completed"), &json!("begun\nended\n")));
    let result = api.get(&format!("/executions/{execution}/result")).await.is(200);
    assert_eq!(result, ended);
    for path in ["", "/status", "/result", "/stream"] {
        let reply = api.get(&format!("/executions/none{path}")).await;
        reply.refused(404, "Sandbox.ExecutionNotFound");
    }

    for path in [format!("/sessions/{id}/executions"), format!("/executions/sessions/{id}/executions")] {
        let all = api.get(&path).await.is(200);
        assert_eq!((&all["total"], &all["items"][0]["id"]), (&json!(4), &json!(execution)), "newest first");
        let page = api.get(&format!("{path}?limit=1&offset=1")).await.is(200);
        assert_eq!(
            (&page["total"], &page["items"][0]["stdout"], &page["has_more"]),
            (&json!(4), &json!("2\n"), &json!(true))
        );
        assert_eq!(api.get(&format!("{path}?status=failed")).await.is(200)["total"], 0);
        assert_eq!(
            api.get(&format!("{path}?status=completed&limit=2")).await.is(200)["items"]
                .as_array()
                .unwrap()
                .len(),
            2
        );
        api.get(&format!("{path}?status=happy")).await.names("query.status");
    }
}
