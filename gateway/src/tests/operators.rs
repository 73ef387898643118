//! Sandboxes, nodes and metrics through the door.

use serde_json::json;

use super::{Door, KEY};
use crate::config::Config;

#[tokio::test]
async fn a_sandbox_is_shown_with_its_health_and_what_it_uses() {
    let door = Door::new();
    let page = door.get("/api/v1/containers?limit=1").await.json();
    assert_eq!((&page["total"], &page["has_more"], &page["limit"]), (&json!(1), &json!(false), &json!(1)));
    let one = door.get("/api/v1/containers/sbx_1").await.json();
    assert_eq!(page["items"][0], one);
    assert_eq!(one["session_id"], "s1");
    assert_eq!((&one["status"], &one["restart_count"]), (&json!("running"), &json!(2)));
    assert_eq!((&one["health"]["status"], &one["health"]["latency_ms"]), (&json!("degraded"), &json!(1.5)));
    assert_eq!((&one["usage"]["memory_bytes"], &one["usage"]["cpu_time_ms"]), (&json!(7), &json!(1.5)));
    assert_eq!(door.get("/api/v1/containers?session_id=other").await.json()["items"], json!([]));
    let missing = door.get("/api/v1/containers/unknown").await;
    assert_eq!(
        (missing.status, missing.json()["error_code"].as_str()),
        (404, Some("Sandbox.SandboxNotFound"))
    );
}

#[tokio::test]
async fn a_log_is_read_by_lines_or_followed_as_text() {
    let door = Door::new();
    let log = door.get("/api/v1/containers/sbx_1/logs?tail=1").await.json();
    assert_eq!(log, json!({"container_id": "sbx_1", "logs": "two\n"}));
    let followed = door.get("/api/v1/containers/sbx_1/logs?tail=1&follow=true").await;
    assert_eq!(followed.text, "two\nthree\n");
    assert!(followed.header("content-type").starts_with("text/plain"));
    assert_eq!(door.get("/api/v1/containers/unknown/logs").await.status, 404);
    assert_eq!(door.get("/api/v1/containers/sbx_1/logs?tail=x").await.status, 422);
}

#[tokio::test]
async fn a_token_to_join_with_is_made() {
    let door = Door::new();
    let made = door.post("/api/v1/nodes/join-tokens", "{}").await;
    assert_eq!((made.status, made.json()["token"].as_str()), (201, Some("smj_token")));
    let wrong = door.post("/api/v1/nodes/join-tokens", r#"{"valid_for": 1}"#).await;
    assert_eq!(wrong.status, 422, "{}", wrong.json());
    assert!(wrong.json().to_string().contains("valid_for"), "{}", wrong.json());
}

#[tokio::test]
async fn a_node_is_shown_drained_and_resumed() {
    let door = Door::new();
    let nodes = door.get("/api/v1/nodes").await.json();
    assert_eq!((&nodes["total"], &nodes["items"][0]["id"]), (&json!(1), &json!("n1")));
    assert_eq!(nodes["items"][0]["languages"], json!(["python", "shell"]));
    assert_eq!(door.get("/api/v1/nodes/n1").await.json(), nodes["items"][0]);
    assert_eq!(door.post("/api/v1/nodes/n1/drain", "").await.json()["draining"], true);
    assert_eq!(door.post("/api/v1/nodes/n1/resume", "").await.json()["draining"], false);
    assert_eq!(door.delete("/api/v1/nodes/n1").await.status, 204);
    assert_eq!(door.delete("/api/v1/nodes/unknown").await.status, 404);
    for path in ["/api/v1/nodes/unknown/drain", "/api/v1/nodes/unknown/resume"] {
        let refused = door.post(path, "").await;
        assert_eq!(
            (refused.status, refused.json()["error_code"].as_str()),
            (404, Some("Sandbox.NodeNotFound"))
        );
    }
}

#[tokio::test]
async fn a_pool_is_shown_and_set_and_a_wrong_number_is_named() {
    let door = Door::new();
    let pools = door.get("/api/v1/pools").await.json();
    let expected = json!({
        "template_id": "python-basic", "min": 1, "max": 9, "buffer": 0, "target": 2, "warm": 1, "starting": 1,
        "claimed": 4, "cold": 5, "last_error": "no such image", "retry_at": null,
        "profiles": []
    });
    assert_eq!((&pools["total"], &pools["items"][0]), (&json!(1), &expected));
    assert_eq!(door.get("/api/v1/pools/python-basic").await.json()["warm"], 1);
    let set = door.send("PUT", "/api/v1/pools/python-basic", r#"{"min": 2, "max": 3}"#).await.json();
    assert_eq!((&set["min"], &set["max"], &set["buffer"]), (&json!(2), &json!(3), &json!(0)));
    for (body, loc) in [("{}", json!(["body", "max"])), (r#"{"min": 4, "max": 3}"#, json!(["body", "max"]))] {
        let refused = door.send("PUT", "/api/v1/pools/python-basic", body).await;
        assert_eq!((refused.status, &refused.json()["detail"][0]["loc"]), (422, &loc), "{body}");
    }
    let unknown = door.send("PUT", "/api/v1/pools/unknown", r#"{"max": 3}"#).await;
    assert_eq!(
        (unknown.status, unknown.json()["error_code"].as_str()),
        (404, Some("Sandbox.TemplateNotFound"))
    );
}

#[tokio::test]
async fn profiles_of_a_pool_are_shown_as_they_were_written_and_a_wrong_one_is_named() {
    let door = Door::new();
    let put = async |profiles: &serde_json::Value| {
        let body = json!({"max": 3, "profiles": profiles}).to_string();
        door.send("PUT", "/api/v1/pools/python-basic", &body).await
    };
    let shown =
        put(&json!([{"resources": {"cpu": 1.5, "memory": "2048Mi"}, "min": 1, "max": 4}])).await.json();
    let expected = json!([{
        "resources": {"cpu": "1.5", "memory": "2Gi", "disk": null, "max_processes": null},
        "min": 1, "max": 4, "buffer": 0, "target": 0, "warm": 3, "starting": 0, "claimed": 0, "cold": 6,
        "last_error": null, "retry_at": null
    }]);
    assert_eq!(shown["profiles"], expected);
    let good = json!({"resources": {"cpu": "2"}, "max": 1});
    for (wrong, name) in [
        (json!({"max": 1}), json!(["resources"])),
        (json!({"resources": {"cpu": "2"}}), json!(["max"])),
        (json!({"resources": {"cpu": "2x"}, "max": 1}), json!(["resources", "cpu"])),
        (json!({"resources": {"memory": "0Mi"}, "max": 1}), json!(["resources", "memory"])),
        (json!({"resources": {"disk": "1GB"}, "max": 1}), json!(["resources", "disk"])),
        (json!({"resources": {"max_processes": 0}, "max": 1}), json!(["resources", "max_processes"])),
        (json!({"resources": {"memory": "9Gi"}, "max": 1}), json!(["resources", "memory"])),
    ] {
        let refused = put(&json!([good, wrong])).await;
        let mut loc = json!(["body", "profiles", 1]);
        loc.as_array_mut().unwrap().extend(name.as_array().unwrap().clone());
        assert_eq!((refused.status, &refused.json()["detail"][0]["loc"]), (422, &loc), "{wrong}");
    }
}

#[tokio::test]
async fn requests_are_counted_by_route_method_and_code_and_never_by_id() {
    let door = Door::new();
    for id in ["sbx_1", "unknown", "another"] {
        door.get(&format!("/api/v1/containers/{id}")).await;
    }
    door.get("/nothing/of/the/contract").await;
    door.send("BREW", "/api/v1/nodes", "").await;
    let answer = door.get("/metrics").await;
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    let count = |labels: &str| {
        let line = answer
            .text
            .lines()
            .find(|line| line.starts_with("sandmesh_requests_total") && line.contains(labels));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    let route = "route=\"/api/v1/containers/{id}\"";
    assert_eq!(count(&format!("code=\"200\",method=\"GET\",protocol=\"rest\",{route}")), Some(1));
    assert_eq!(count(&format!("code=\"404\",method=\"GET\",protocol=\"rest\",{route}")), Some(2));
    assert_eq!(count("code=\"404\",method=\"GET\",protocol=\"rest\",route=\"other\""), Some(1));
    assert_eq!(count("method=\"other\""), Some(1));
    assert!(!answer.text.contains("sbx_1") && !answer.text.contains("BREW"), "{}", answer.text);
    assert!(answer.text.contains("sandmesh_request_seconds_bucket"));
    assert!(answer.text.contains("sandmesh_nodes{state=\"healthy\"} 1"));
}

#[tokio::test]
async fn metrics_want_a_key_where_there_are_keys_unless_they_are_open() {
    let with = |open_metrics| {
        let api_keys = vec![sandmesh_mesh::Secret::new(KEY)];
        Door::with(&Config { api_keys, open_metrics, ..Config::default() })
    };
    assert_eq!(with(false).get("/metrics").await.status, 401);
    assert_eq!(with(true).get("/metrics").await.status, 200);
    assert_eq!(with(true).get("/api/v1/nodes").await.status, 401);
}

#[tokio::test]
async fn readiness_is_what_the_roles_say_that_sessions_need() {
    // The health of the fakes knows no service: none of them serves.
    let answer = Door::with_keys().get("/api/v1/health/ready").await;
    assert_eq!((answer.status, answer.json()["error_code"].as_str()), (503, Some("Sandbox.NotReady")));
    assert_eq!(Door::new().get("/api/v1/health").await.status, 200);
}
