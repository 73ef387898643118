//! REST: shapes, statuses, headers.

use axum::body::Body;
use http::Request;
use serde_json::json;

use super::{Door, KEY};
use crate::config::Config;

const SESSIONS: &str = "/api/v1/sessions";

#[tokio::test]
async fn the_quick_example_creates_a_session() {
    let door = Door::new();
    let body = r#"{"template_id": "python-basic", "timeout": 300, "resources": {"cpu": "1", "memory": "512Mi", "disk": "1Gi"}}"#;
    let answer = door.post(SESSIONS, body).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    assert_eq!(answer.header("location"), "/api/v1/sessions/sess_20260102_0a1b2c3d");
    let asked = door.fakes.created.lock().unwrap()[0].clone();
    let resources = asked.resources.unwrap();
    assert_eq!(
        (resources.cpu_millis, resources.memory_bytes, resources.disk_bytes),
        (1000, 512 << 20, 1 << 30)
    );
    assert_eq!((asked.timeout_seconds, asked.idle_timeout_seconds), (Some(300), None));
}

#[tokio::test]
async fn a_session_has_the_fields_of_the_contract_and_no_internals() {
    let answer = Door::new().get("/api/v1/sessions/s1").await;
    let session = answer.json();
    let mut names: Vec<&str> = session.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    let mut expected = "id template_id status status_reason resource_limit effective_isolation workspace_path \
        runtime_type language_runtime runtime_node container_id pod_name env_vars timeout idle_timeout expires_at \
        python_package_index_url requested_dependencies installed_dependencies dependency_install_status \
        dependency_install_error dependency_install_started_at dependency_install_completed_at created_at \
        updated_at last_activity_at completed_at labels recovery_count start_type"
        .split_whitespace()
        .collect::<Vec<_>>();
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!(session["status"], "running");
    assert_eq!(session["created_at"], "2026-01-02T03:04:05.120000Z");
    assert_eq!(session["container_id"], json!(null));
    let limits = json!({"cpu": "0.5", "memory": "512Mi", "disk": "1Gi", "max_processes": 128});
    assert_eq!(session["resource_limit"], limits);
}

#[tokio::test]
async fn wrong_fields_are_told_by_their_place() {
    let door = Door::new();
    for (path, body, status, loc) in [
        (SESSIONS, r#"{"template_id": "t", "timeout": 0}"#, 422, json!(["body", "timeout"])),
        (SESSIONS, r#"{"template_id": "t", "timeout": "x"}"#, 422, json!(["body", "timeout"])),
        (SESSIONS, r#"{"template_id": "t", "cpu": "abc"}"#, 422, json!(["body", "cpu"])),
        (SESSIONS, r#"{"template_id": "t", "cpu": 0}"#, 422, json!(["body", "cpu"])),
        (SESSIONS, r#"{"template_id": "t", "network": "host"}"#, 422, json!(["body", "network"])),
        (SESSIONS, r#"{"template_id": "t", "id": ""}"#, 422, json!(["body", "id"])),
        (SESSIONS, "{}", 422, json!(["body", "template_id"])),
        (SESSIONS, "{", 422, json!(["body"])),
        ("/api/v1/sessions/s/execute", r#"{"language": "python"}"#, 422, json!(["body", "code"])),
        ("/api/v1/sessions/s/execute", r#"{"code": "x"}"#, 422, json!(["body", "language"])),
        (
            "/api/v1/sessions/s/execute",
            r#"{"code": "x", "language": "ruby"}"#,
            422,
            json!(["body", "language"]),
        ),
        (
            "/api/v1/sessions/s/execute",
            r#"{"code": "x", "language": "shell", "event": []}"#,
            422,
            json!(["body", "event"]),
        ),
        (
            "/api/v1/templates",
            r#"{"id": "t", "name": "n", "image_url": "i", "runtime_type": "bash", "default_memory_mb": 0}"#,
            422,
            json!(["body", "default_memory_mb"]),
        ),
    ] {
        let answer = door.post(path, body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        assert_eq!(answer.json()["detail"][0]["loc"], loc, "{body}: {}", answer.text);
        assert_eq!(answer.json()["error_code"], "Sandbox.InvalidArgument");
    }
}

#[tokio::test]
async fn every_missing_field_is_named_at_once() {
    let answer = Door::new().post("/api/v1/sessions/s/execute", "{}").await;
    let detail = answer.json()["detail"].clone();
    let kinds: Vec<_> = detail.as_array().unwrap().iter().map(|one| (&one["loc"][1], &one["type"])).collect();
    assert_eq!(kinds, [(&json!("code"), &json!("missing")), (&json!("language"), &json!("missing"))]);
}

#[tokio::test]
async fn a_size_with_an_unknown_unit_is_a_bad_request() {
    let answer = Door::new().post(SESSIONS, r#"{"template_id": "t", "memory": "512M"}"#).await;
    assert_eq!(
        (answer.status, answer.json()["error_code"].clone()),
        (400, json!("Sandbox.InvalidParameter"))
    );
}

#[tokio::test]
async fn errors_of_roles_have_their_status_and_body() {
    let door = Door::new();
    for (template, status, code) in [
        ("nothing", 400, "Sandbox.TemplateNotFound"),
        ("full", 503, "Sandbox.NoCapacity"),
        ("broken", 500, "Sandbox.Internal"),
        ("panic", 500, "Sandbox.Internal"),
    ] {
        let answer = door.post(SESSIONS, &format!(r#"{{"template_id": "{template}"}}"#)).await;
        assert_eq!((answer.status, answer.json()["error_code"].clone()), (status, json!(code)), "{template}");
        assert!(!answer.text.contains("hunter2"));
    }
    let answer = door.post(SESSIONS, r#"{"template_id": "full"}"#).await;
    assert_eq!(answer.header("retry-after"), "7");
    let answer = door.get("/api/v1/sessions/unknown").await;
    assert_eq!(answer.status, 404);
    let expected = json!({
        "error_code": "Sandbox.SessionNotFound",
        "description": "session `unknown` not found",
        "detail": "",
        "solution": "check the id, or create a session with POST /api/v1/sessions",
        "request_id": answer.header("x-request-id"),
    });
    assert_eq!(answer.json(), expected);
}

#[tokio::test]
async fn a_request_id_is_kept_passed_on_and_told() {
    let door = Door::new();
    let request = Request::get("/api/v1/sessions/unknown").header("x-request-id", "mine-1");
    let answer = door.call(request.body(Body::empty()).unwrap()).await;
    assert_eq!(
        (answer.header("x-request-id"), answer.json()["request_id"].clone()),
        ("mine-1", json!("mine-1"))
    );
    let metadata = door.fakes.metadata.lock().unwrap();
    assert_eq!(metadata[0]["x-request-id"], "mine-1");
    assert!(metadata[0].contains_key("grpc-timeout"));
}

#[tokio::test]
async fn unknown_fields_are_ignored_and_named() {
    let door = Door::new();
    let body = r#"{"template_id": "t", "gpu": 1, "resources": {"tpu": 2}}"#;
    let answer = door.post(SESSIONS, body).await;
    assert_eq!((answer.status, answer.header("sandmesh-ignored-fields")), (201, "gpu, resources.tpu"));
    let answer = door.get("/api/v1/sessions?colour=red").await;
    assert_eq!((answer.status, answer.header("sandmesh-ignored-fields")), (200, "colour"));
}

#[tokio::test]
async fn bodies_are_limited_and_declared() {
    let door = Door::with(&Config { max_body: sandmesh_mesh::ByteSize(1024), ..Config::default() });
    let answer = door.post(SESSIONS, &format!(r#"{{"template_id": "{}"}}"#, "x".repeat(2000))).await;
    assert_eq!((answer.status, answer.json()["error_code"].clone()), (413, json!("Sandbox.PayloadTooLarge")));
    let request = Request::post(SESSIONS).header("content-type", "text/plain");
    let answer = door.call(request.body(Body::from(r#"{"template_id": "t"}"#)).unwrap()).await;
    assert_eq!(answer.status, 415);
}

#[tokio::test]
async fn what_is_not_there_is_told_in_the_same_shape() {
    let door = Door::new();
    for (method, path, status, code) in [
        ("GET", "/api/v1/none", 404, "Sandbox.RouteNotFound"),
        ("GET", "/", 404, "Sandbox.RouteNotFound"),
        ("POST", "/api/v1/sessions/s/files/upload", 400, "Sandbox.InvalidForm"),
        ("PATCH", SESSIONS, 405, "Sandbox.MethodNotAllowed"),
        ("GET", "/api/v1/sessions/%ff", 400, "Sandbox.InvalidPath"),
    ] {
        let answer = door.send(method, path, "{}").await;
        assert_eq!(
            (answer.status, answer.json()["error_code"].clone()),
            (status, json!(code)),
            "{method} {path}"
        );
        assert_eq!(answer.json()["request_id"], answer.header("x-request-id"));
    }
}

#[tokio::test]
async fn lists_are_clamped_and_say_whether_there_is_more() {
    let door = Door::new();
    let answer = door.get("/api/v1/sessions?limit=1000&offset=1&status=running&template_id=t").await;
    let page = answer.json();
    assert_eq!((&page["total"], &page["limit"], &page["offset"]), (&json!(5), &json!(200), &json!(1)));
    assert_eq!((&page["has_more"], &page["next_page_token"]), (&json!(true), &json!("t2")));
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    let asked = door.fakes.listed.lock().unwrap()[0].clone();
    assert_eq!((asked.page_size, asked.offset, asked.state, asked.template_id.as_str()), (200, 1, 2, "t"));
}

#[tokio::test]
async fn a_wrong_query_is_told_by_its_place() {
    let door = Door::new();
    for (query, field) in [
        ("limit=abc", "limit"),
        ("offset=-1", "offset"),
        ("status=sleeping", "status"),
        ("limit=1&limit=2", "limit"),
    ] {
        let answer = door.get(&format!("{SESSIONS}?{query}")).await;
        assert_eq!(answer.status, 422, "{query}: {}", answer.text);
        assert_eq!(answer.json()["detail"][0]["loc"][0], "query", "{query}");
        assert!(answer.text.contains(field), "{query}: {}", answer.text);
    }
    assert_eq!(door.get("/api/v1/sessions?limit=0").await.json()["limit"], 1);
}

#[tokio::test]
async fn a_synchronous_run_answers_with_its_end_whatever_it_is() {
    let door = Door::new();
    let answer = door.post("/api/v1/sessions/s/execute-sync", r#"{"code": "x", "language": "python"}"#).await;
    assert_eq!(answer.status, 200);
    let execution = answer.json();
    assert_eq!((&execution["status"], &execution["stdout"]), (&json!("failed"), &json!("out\u{fffd}")));
    assert_eq!(execution["execution_time"], json!(0.0015));
    assert_eq!(
        (&execution["metrics"]["duration_ms"], &execution["metrics"]["peak_memory_mb"]),
        (&json!(1.5), &json!(1.5))
    );
    assert!(
        answer.text.contains(r#""return_value":{"n": 1.10, "big": 12345678901234567890123}"#),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn a_synchronous_run_that_does_not_end_in_time_names_its_execution() {
    let door = Door::new();
    let path = "/api/v1/executions/sessions/slow/execute-sync?sync_timeout=10&poll_interval=0.1";
    let answer = door.post(path, r#"{"code": "x", "language": "python"}"#).await;
    assert_eq!((answer.status, answer.json()["execution_id"].clone()), (408, json!("slow")));
    assert_eq!(answer.json()["error_code"], "Sandbox.SyncTimeout");
    let timeout = door.fakes.metadata.lock().unwrap()[1]["grpc-timeout"].clone();
    assert_eq!(timeout, "40000000u");
}

#[tokio::test]
async fn waiting_has_bounds_that_are_themselves_fine() {
    let door = Door::new();
    let body = r#"{"code": "x", "language": "python"}"#;
    for (query, status) in [
        ("sync_timeout=5", 422),
        ("sync_timeout=4000", 422),
        ("poll_interval=0.05", 422),
        ("poll_interval=11", 422),
        ("poll_interval=NaN", 422),
        ("sync_timeout=10&poll_interval=0.1", 200),
        ("sync_timeout=3600&poll_interval=10", 200),
    ] {
        let answer = door.post(&format!("/api/v1/sessions/s/execute-sync?{query}"), body).await;
        assert_eq!(answer.status, status, "{query}: {}", answer.text);
    }
    let body = r#"{"code": "x", "language": "python", "sync_timeout": 5}"#;
    let answer = door.post("/api/v1/sessions/s/execute-sync", body).await;
    assert_eq!(answer.json()["detail"][0]["loc"], json!(["body", "sync_timeout"]));
}

#[tokio::test]
async fn an_execution_is_accepted_and_idempotent_by_header() {
    let door = Door::new();
    let request = Request::post("/api/v1/executions/sessions/s/execute")
        .header("content-type", "application/json")
        .header("idempotency-key", "once");
    let body = r#"{"code": "x", "language": "javascript", "event": {"a": 1.10}, "env_vars": {"A": "b"}, "stdin": "in", "mode": "script"}"#;
    let answer = door.call(request.body(Body::from(body)).unwrap()).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    let accepted = answer.json();
    assert_eq!((&accepted["execution_id"], &accepted["status"]), (&json!("exec_1"), &json!("pending")));
    let asked = door.fakes.started.lock().unwrap()[0].clone();
    let spec = asked.spec.unwrap();
    assert_eq!((asked.request_id.as_str(), asked.session_id.as_str()), ("once", "s"));
    assert_eq!((spec.event_json.as_str(), spec.language, spec.mode), (r#"{"a": 1.10}"#, 2, 2));
    assert_eq!((spec.timeout_seconds, &spec.stdin[..], spec.env["A"].as_str()), (None, &b"in"[..], "b"));
}

#[tokio::test]
async fn an_ended_execution_cannot_be_cancelled() {
    let answer = Door::new().post("/api/v1/executions/exec_1/cancel", "").await;
    assert_eq!((answer.status, answer.json()["error_code"].clone()), (409, json!("Sandbox.ExecutionEnded")));
}

#[tokio::test]
async fn a_partial_update_changes_what_is_given_and_nothing_else() {
    let door = Door::new();
    let body = r#"{"name": "n", "default_timeout_sec": 60, "default_cpu_cores": 0.5, "pool": {"min": 1, "profiles": []}, "created_at": "x"}"#;
    let answer = door.send("PUT", "/api/v1/templates/t", body).await;
    assert_eq!((answer.status, answer.header("sandmesh-ignored-fields")), (200, "created_at"));
    let asked = door.fakes.updated.lock().unwrap()[0].clone();
    let paths =
        ["name", "default_resources.cpu_millis", "default_timeout_seconds", "pool.min", "pool.profiles"];
    assert_eq!(asked.update_mask.unwrap().paths, paths);
    assert_eq!(asked.template.unwrap().template_id, "t");
    assert_eq!(answer.json()["default_timeout"], answer.json()["default_timeout_sec"]);
    assert_eq!(door.send("PUT", "/api/v1/templates/t", "{}").await.status, 200);
    assert_eq!(door.fakes.updated.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn templates_are_a_bare_list_and_deleting_says_so() {
    let door = Door::new();
    assert_eq!(door.get("/api/v1/templates").await.json()[0]["id"], "python-basic");
    let answer = door.delete("/api/v1/templates/t").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"message": "template `t` deleted"})));
    let answer = door.delete("/api/v1/sessions/s").await;
    assert_eq!((answer.status, answer.text.as_str()), (204, ""));
}

#[tokio::test]
async fn health_is_measured_and_told() {
    let door = Door::new();
    let health = door.get("/api/v1/health").await.json();
    assert_eq!(health["status"], "healthy");
    assert!(health["uptime"].as_f64().unwrap() >= 0.0);
    let detailed = door.get("/api/v1/health/detailed").await.json();
    assert_eq!(detailed["status"], "degraded");
    assert_eq!(detailed["dependencies"]["nodes"]["status"], "unhealthy");
    assert_eq!(detailed["dependencies"]["session"]["status"], "healthy");
    let synced = door.post("/api/v1/health/sync", "").await.json();
    assert_eq!((&synced["status"], &synced["result"]["checked"]), (&json!("completed"), &json!(3)));
}

#[tokio::test]
async fn keys_guard_everything_but_health_and_documents() {
    let door = Door::with_keys();
    for (path, status) in [
        ("/api/v1/health", 200),
        ("/openapi.json", 200),
        ("/docs/", 200),
        ("/api/v1/health/detailed", 401),
        ("/api/v1/sessions/unknown", 401),
        ("/nothing", 401),
    ] {
        assert_eq!(door.get(path).await.status, status, "{path}");
    }
    let answer = door.get("/api/v1/sessions/s").await;
    assert_eq!(
        (answer.header("www-authenticate"), answer.json()["error_code"].clone()),
        ("Bearer", json!("Sandbox.Unauthenticated"))
    );
    let request = Request::get("/api/v1/sessions/s").header("authorization", format!("Bearer {KEY}"));
    assert_eq!(door.call(request.body(Body::empty()).unwrap()).await.status, 200);
}

#[tokio::test]
async fn other_origins_are_answered_only_where_configured() {
    let preflight = |origin: &str| {
        Request::options(SESSIONS)
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization, content-type")
            .body(Body::empty())
            .unwrap()
    };
    let answer = Door::new().call(preflight("https://app.example.com")).await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
    let door =
        Door::with(&Config { cors_origins: vec!["https://app.example.com".into()], ..Config::default() });
    let answer = door.call(preflight("https://app.example.com")).await;
    assert_eq!(answer.header("access-control-allow-origin"), "https://app.example.com");
    assert_eq!(answer.header("access-control-allow-headers"), "authorization, content-type");
    assert_eq!(door.call(preflight("https://evil.example")).await.header("access-control-allow-origin"), "");
}
