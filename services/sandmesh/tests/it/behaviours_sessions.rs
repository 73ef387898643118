//! Behaviours 11 to 21: sessions, from their creation to their end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Api, Wiring};

in_both_wirings!(
    created_session_runs_with_the_defaults_of_its_template,
    session_id_and_request_id_are_taken_once,
    session_out_of_its_limits_is_refused,
    sessions_are_listed_newest_first_by_page_and_filter,
    unknown_session_is_not_found,
    terminated_session_is_gone_from_the_machine,
    deleted_session_is_forgotten_with_its_executions,
    session_ends_at_its_lifetime_or_when_idle,
);

async fn terminate(api: &Api, id: &str) -> Value {
    api.send(api.request("POST", &format!("/sessions/{id}/terminate"))).await.is(200)
}

/// `PREFIX_` and then groups of digits (`0`) and hex digits (`f`), as `pattern` shows.
fn looks_like(id: &str, pattern: &str) -> bool {
    let fits = |(c, p): (char, char)| match p {
        '0' => c.is_ascii_digit(),
        'f' => c.is_ascii_digit() || ('a'..='f').contains(&c),
        _ => c == p,
    };
    id.len() == pattern.len() && id.chars().zip(pattern.chars()).all(fits)
}

// 11, 12
async fn created_session_runs_with_the_defaults_of_its_template(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let template = json!({"id": "own", "name": "own", "image_url": "x", "runtime_type": "python3.11",
        "default_cpu_cores": 0.5, "default_memory_mb": 256, "default_disk_mb": 512, "default_timeout": 120,
        "default_env_vars": {"FROM_TEMPLATE": "yes"}});
    api.post("/templates", template).await.is(201);
    let start = Instant::now();
    let created = api.post("/sessions", json!({"template_id": "own"})).await.is(201);
    let id = created["id"].as_str().unwrap();
    assert!(looks_like(id, "sess_00000000_ffffffff"), "{id}");
    let session = api.session_is(id, "running").await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());

    assert_eq!(session["template_id"], "own");
    assert_eq!(session["timeout"], 120);
    assert_eq!(
        session["resource_limit"]["cpu"].as_str().map(|cpu| cpu.parse::<f64>().unwrap()),
        Some(0.5),
        "{session}"
    );
    assert_eq!(
        (&session["resource_limit"]["memory"], &session["resource_limit"]["disk"]),
        (&json!("256Mi"), &json!("512Mi"))
    );
    assert!(session["resource_limit"]["max_processes"].as_u64().unwrap() > 0);
    assert_eq!(
        (&session["runtime_type"], &session["language_runtime"]),
        (&json!("process"), &json!("python3.11"))
    );
    assert_eq!(session["workspace_path"], "/workspace");
    let isolation = &session["effective_isolation"];
    for (layer, expected) in
        [("sandbox", "process"), ("jail", "bubblewrap"), ("seccomp", "strict"), ("network", "none")]
    {
        assert_eq!(isolation[layer], expected, "{isolation}");
    }
    assert!(isolation["user"].as_str().is_some_and(|user| !user.is_empty()), "{isolation}");
    assert!(session["runtime_node"].is_string(), "{session}");
    assert!(session["completed_at"].is_null() && session["expires_at"].is_string(), "{session}");
    let run = api.python(id, "import os\ndef handler(event): return os.environ['FROM_TEMPLATE']").await;
    assert_eq!(run["return_value"], "yes", "{run}");

    // The quick example of the platform asks for the limits in `resources`.
    let asked = json!({"template_id": "python-basic", "timeout": 300, "resources": {"cpu": "1", "memory": "512Mi", "disk": "1Gi"}});
    let session = api.create(asked).await;
    let limit = &session["resource_limit"];
    assert_eq!(
        (&limit["cpu"], &limit["memory"], &limit["disk"]),
        (&json!("1"), &json!("512Mi"), &json!("1Gi"))
    );
}

// 13
pub(crate) async fn session_id_and_request_id_are_taken_once(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let body = json!({"id": "my-Session_1", "template_id": "python-basic"});
    assert_eq!(api.create(body.clone()).await["id"], "my-Session_1");
    api.post("/sessions", body).await.refused(409, "Sandbox.SessionExists");

    let asked = json!({"template_id": "python-basic", "request_id": "request-1"});
    let first = api.post("/sessions", asked.clone()).await.is(201);
    let second = api.post("/sessions", asked.clone()).await.is(201);
    assert_eq!(first["id"], second["id"]);
    let keyed = || {
        api.request("POST", "/sessions")
            .header("Idempotency-Key", "key-1")
            .json(&json!({"template_id": "python-basic"}))
    };
    let first = api.send(keyed()).await.is(201);
    let second = api.send(keyed()).await.is(201);
    assert_eq!(first["id"], second["id"]);
    let concurrent = (0..10)
        .map(|_| api.post("/sessions", json!({"template_id": "python-basic", "request_id": "at-once"})));
    let mut ids: Vec<String> = Vec::new();
    for reply in futures::future::join_all(concurrent).await {
        ids.push(reply.is(201)["id"].to_string());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(api.get("/sessions").await.is(200)["total"], 4);
}

// 14, 15
async fn session_out_of_its_limits_is_refused(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let body = |field: &str, value: Value| json!({"template_id": "python-basic", field: value});
    api.post("/sessions", json!({"template_id": "none"})).await.refused(400, "Sandbox.TemplateNotFound");
    for (field, value) in [
        ("timeout", json!(0)),
        ("timeout", json!(3601)),
        ("cpu", json!("abc")),
        ("cpu", json!("0")),
        ("cpu", json!("1000")),
        ("id", json!("a/b")),
        ("id", json!("..")),
        ("id", json!("x".repeat(65))),
        ("install_timeout", json!(29)),
        ("install_timeout", json!(1801)),
        ("timeout", json!("soon")),
        ("env_vars", json!(["A=1"])),
        ("env_vars", json!({"A": 1})),
    ] {
        let reply = api.post("/sessions", body(field, value.clone())).await;
        assert_eq!(reply.status, 422, "{field} {value}: {}", reply.text);
        if !(field == "env_vars" && value.is_object()) {
            reply.names(&format!("body.{field}"));
        }
    }
    for (field, value) in [("memory", "512M"), ("disk", "1G"), ("memory", "lots")] {
        let reply = api.post("/sessions", body(field, json!(value))).await;
        let told = reply.refused(400, "Sandbox.InvalidParameter");
        assert!(told["description"].as_str().unwrap().contains(field), "{told}");
    }
    let reply =
        api.post("/sessions", json!({"template_id": "python-basic", "resources": {"memory": "512M"}})).await;
    reply.refused(400, "Sandbox.InvalidParameter");
    api.post("/sessions", json!({})).await.names("body.template_id");
    api.post("/sessions", json!({"template_id": ""})).await.names("body.template_id");
    for bad in ["https://evil.example/x.whl", "../x", "-r x.txt", "pandas2.3.3 ", ""] {
        let dependencies = json!({"template_id": "python-basic", "dependencies": [{"name": bad}]});
        api.post("/sessions", dependencies).await.names("body.dependencies.0.name");
    }
    let many = vec![json!({"name": "click"}); 51];
    api.post("/sessions", body("dependencies", json!(many))).await.names("body.dependencies");
    assert_eq!(api.get("/sessions").await.is(200)["total"], 0, "nothing that was refused exists");
}

// 16, 17, 18
pub(crate) async fn sessions_are_listed_newest_first_by_page_and_filter(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    for (id, template) in [("a", "python-basic"), ("b", "shell-basic"), ("c", "python-basic")] {
        api.create(json!({"id": id, "template_id": template})).await;
    }
    let ids = |page: &Value| {
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["id"].as_str().unwrap().to_owned())
            .collect::<String>()
    };
    let all = api.get("/sessions").await.is(200);
    assert_eq!((ids(&all).as_str(), &all["total"], &all["has_more"]), ("cba", &json!(3), &json!(false)));
    assert_eq!((&all["limit"], &all["offset"]), (&json!(50), &json!(0)));
    let page = api.get("/sessions?limit=1&offset=1").await.is(200);
    assert_eq!((ids(&page).as_str(), &page["total"], &page["has_more"]), ("b", &json!(3), &json!(true)));
    let last = api.get("/sessions?limit=1&offset=2").await.is(200);
    assert_eq!((ids(&last).as_str(), &last["has_more"]), ("a", &json!(false)));
    let beyond = api.get("/sessions?limit=1&offset=9").await.is(200);
    assert_eq!(
        (ids(&beyond).as_str(), &beyond["total"], &beyond["has_more"]),
        ("", &json!(3), &json!(false))
    );

    let first = api.get("/sessions?limit=2").await.is(200);
    let token = first["next_page_token"].as_str().unwrap();
    let next = api.get(&format!("/sessions?limit=2&page_token={token}")).await.is(200);
    assert_eq!((ids(&first), ids(&next)), ("cb".into(), "a".into()));
    assert!(next["next_page_token"].as_str().is_none_or(str::is_empty), "{next}");

    terminate(api, "c").await;
    for (query, expected) in [
        ("status=running", "ba"),
        ("status=terminated", "c"),
        ("template_id=python-basic", "ca"),
        ("template_id=python-basic&status=running", "a"),
        ("template_id=none", ""),
    ] {
        let page = api.get(&format!("/sessions?{query}")).await.is(200);
        assert_eq!(
            (ids(&page).as_str(), page["total"].as_u64().unwrap()),
            (expected, expected.len() as u64),
            "{query}"
        );
    }
    assert_eq!(api.get("/sessions?limit=1000").await.is(200)["limit"], 200);
    api.get("/sessions?limit=many").await.names("query.limit");
    api.get("/sessions?offset=-1").await.names("query.offset");
    api.get("/sessions?status=happy").await.names("query.status");
    api.get("/sessions?page_token=forged").await.refused(422, "Sandbox.PageTokenInvalid");
}

// 19
async fn unknown_session_is_not_found(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    for (method, path) in [
        ("GET", "/sessions/none"),
        ("POST", "/sessions/none/terminate"),
        ("DELETE", "/sessions/none"),
        ("GET", "/sessions/none/executions"),
        ("GET", "/executions/sessions/none/executions"),
    ] {
        let told = api.send(api.request(method, path)).await.refused(404, "Sandbox.SessionNotFound");
        assert_eq!(told["description"], "session `none` not found", "{method} {path}");
    }
}

// 20
async fn terminated_session_is_gone_from_the_machine(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let running = api.start(&id, json!({"language": "shell", "code": "echo begun; sleep 1000"})).await;
    api.wrote(&running, "begun").await;
    assert!(!server.leftovers().is_empty(), "a session has a sandbox");
    let session = terminate(api, &id).await;
    assert_eq!(session["status"], "terminated");
    assert!(session["completed_at"].is_string(), "{session}");
    server.expect_nothing_left(Duration::from_secs(10)).await;
    let ended = api.ended(&running).await;
    assert_eq!(
        (&ended["status"], &ended["cause"]),
        (&json!("cancelled"), &json!("session_ended")),
        "{ended}"
    );
    assert_eq!(ended["stdout"], "begun\n");

    let again = terminate(api, &id).await;
    assert_eq!((&again["status"], &again["completed_at"]), (&session["status"], &session["completed_at"]));
    assert_eq!(api.get(&format!("/sessions/{id}")).await.is(200)["status"], "terminated");
}

// 21
pub(crate) async fn deleted_session_is_forgotten_with_its_executions(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let run = api.python(&id, "def handler(event): return 1").await;
    let execution = format!("/executions/{}", run["id"].as_str().unwrap());
    api.get(&execution).await.is(200);
    assert_eq!(api.delete(&format!("/sessions/{id}")).await.status, 204);
    api.get(&format!("/sessions/{id}")).await.refused(404, "Sandbox.SessionNotFound");
    api.get(&execution).await.refused(404, "Sandbox.ExecutionNotFound");
    api.get(&format!("{execution}/result")).await.refused(404, "Sandbox.ExecutionNotFound");
    api.delete(&format!("/sessions/{id}")).await.refused(404, "Sandbox.SessionNotFound");
    assert_eq!(api.get("/sessions").await.is(200)["total"], 0);
    server.expect_nothing_left(Duration::from_secs(10)).await;
}

async fn session_ends_at_its_lifetime_or_when_idle(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let short = api.create(json!({"template_id": "python-basic", "timeout": 3})).await;
    let idle = api.create(json!({"template_id": "python-basic", "idle_timeout": 1})).await;
    let (short, idle) = (short["id"].as_str().unwrap(), idle["id"].as_str().unwrap());
    let run = api
        .start(short, json!({"language": "shell", "code": "echo begun; sleep 1000", "timeout": 600}))
        .await;
    api.session_is(idle, "completed").await;
    let session = api.session_is(short, "timeout").await;
    assert!(session["completed_at"].is_string(), "{session}");
    let run = api.ended(&run).await;
    assert_eq!(
        (&run["status"], &run["cause"], &run["stdout"]),
        (&json!("cancelled"), &json!("session_ended"), &json!("begun\n"))
    );
    let refused =
        api.post(&format!("/sessions/{short}/execute"), json!({"language": "shell", "code": "true"})).await;
    refused.refused(409, "Sandbox.SessionNotActive");
    server.expect_nothing_left(Duration::from_secs(10)).await;
}
