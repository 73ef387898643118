//! Bad input over REST: refused with its place, and the server is as well as before.

use serde_json::{Value, json};

use crate::harness::{Api, Server, Wiring};

in_both_wirings!(
    bad_json_is_refused_by_its_place,
    bad_environment_labels_and_requests_are_refused,
    body_that_is_too_large_is_refused,
    path_or_method_that_does_not_exist_is_refused,
    every_answer_has_a_request_id_and_names_ignored_fields,
    page_of_another_origin_or_name_cannot_use_a_gateway_without_keys,
);

/// The server is as it was: healthy, with nothing pending and no session but `session`.
async fn unharmed(server: &Server, session: &str) {
    assert_eq!(server.api.get("/health/detailed").await.is(200)["status"], "healthy");
    assert_eq!(server.api.get("/sessions").await.is(200)["total"], 1);
    let path = format!("/sessions/{session}/executions");
    for status in ["pending", "running"] {
        assert_eq!(server.api.get(&format!("{path}?status={status}")).await.is(200)["total"], 0);
    }
    assert_eq!(server.api.run(session, "shell", "echo well").await["stdout"], "well\n");
}

async fn post_text(api: &Api, path: &str, body: impl Into<reqwest::Body>) -> crate::harness::Reply {
    api.send(api.request("POST", path).header("content-type", "application/json").body(body)).await
}

async fn bad_json_is_refused_by_its_place(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let paths = ["/sessions".to_owned(), "/templates".into(), format!("/sessions/{id}/execute")];
    for path in &paths {
        for text in
            ["", "{", "null", "[]", "\"x\"", "{\"a\": }", "{'a': 1}", "\u{0}", "NaN", &"[".repeat(100_000)]
        {
            let reply = post_text(api, path, text.to_owned()).await;
            assert_eq!(reply.status, 422, "{path} {:.20}: {}", text, reply.text);
            let told = reply.refused(422, "Sandbox.InvalidArgument");
            assert_eq!(told["detail"][0]["loc"][0], "body", "{told}");
        }
        let reply = post_text(api, path, b"{\"a\": \"\xff\xfe\"}".to_vec()).await;
        reply.refused(422, "Sandbox.InvalidArgument");
        let plain = api.request("POST", path).header("content-type", "text/plain").body("{}");
        api.send(plain).await.refused(415, "Sandbox.UnsupportedMediaType");
    }
    let execute = format!("/sessions/{id}/execute");
    for (body, loc) in [
        (json!({"code": 1, "language": "python"}), "body.code"),
        (json!({"code": "x", "language": 1}), "body.language"),
        (json!({"code": "x", "language": "python", "timeout": 1.5}), "body.timeout"),
        (json!({"code": "x", "language": "python", "timeout": -1}), "body.timeout"),
        (json!({"code": "x", "language": "python", "timeout": 1e30}), "body.timeout"),
        (json!({"code": "x", "language": "python", "event": "text"}), "body.event"),
        (json!({"code": "x", "language": "python", "stdin": [1]}), "body.stdin"),
    ] {
        api.post(&execute, body).await.names(loc);
    }
    unharmed(&server, &id).await;
}

async fn bad_environment_labels_and_requests_are_refused(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let execute = async |field: &str, value: Value| {
        api.post(
            &format!("/sessions/{id}/execute"),
            json!({"code": "true", "language": "shell", field: value}),
        )
        .await
    };
    let create = async |field: &str, value: Value| {
        api.post("/sessions", json!({"template_id": "python-basic", field: value})).await
    };
    let refused = |reply: crate::harness::Reply, field: &str| {
        let told = reply.refused(422, "Sandbox.InvalidArgument");
        assert_eq!(told["detail"][0]["loc"][1], field, "{told}");
    };
    for env in [json!({"": "x"}), json!({"A=B": "x"}), json!({"A": "x\u{0}y"}), json!({"1A": "x"})] {
        refused(execute("env_vars", env.clone()).await, "env_vars");
        refused(create("env_vars", env).await, "env_vars");
    }
    let many: serde_json::Map<String, Value> = (0..2000).map(|n| (format!("V{n}"), json!("x"))).collect();
    refused(execute("env_vars", json!(many)).await, "env_vars");
    refused(create("env_vars", json!(many)).await, "env_vars");
    let labels: serde_json::Map<String, Value> = (0..65).map(|n| (format!("l{n}"), json!("x"))).collect();
    refused(create("labels", json!(labels)).await, "labels");
    refused(create("request_id", json!("x".repeat(129))).await, "request_id");
    refused(execute("request_id", json!("x".repeat(129))).await, "request_id");
    refused(execute("execution_id", json!("x".repeat(65))).await, "execution_id");
    refused(execute("execution_id", json!("../up")).await, "execution_id");
    refused(execute("code", json!("a\u{0}b".repeat(400_000))).await, "code");
    let keyed = api.request("POST", "/sessions").header("Idempotency-Key", "x".repeat(129));
    api.send(keyed.json(&json!({"template_id": "python-basic"}))).await.names("header.Idempotency-Key");
    unharmed(&server, &id).await;
}

async fn body_that_is_too_large_is_refused(wiring: Wiring) {
    let server = wiring.start_with(&[("SANDMESH_GATEWAY__MAX_BODY", "8MiB")]).await;
    let api = &server.api;
    let id = api.session().await;
    let huge = format!("{{\"code\": \"{}\"}}", "x".repeat(9 << 20));
    for path in ["/sessions".to_owned(), "/templates".into(), format!("/sessions/{id}/execute-sync")] {
        post_text(api, &path, huge.clone()).await.refused(413, "Sandbox.PayloadTooLarge");
    }
    // A body without a length is refused as soon as it is too long.
    let pieces = futures::stream::iter((0..90).map(|_| Ok::<_, std::io::Error>(vec![b' '; 100_000])));
    let reply = post_text(api, "/sessions", reqwest::Body::wrap_stream(pieces)).await;
    reply.refused(413, "Sandbox.PayloadTooLarge");
    let long = api.request("GET", "/health").header("x-long", "y".repeat(1 << 20));
    match long.send().await {
        Ok(response) => assert!(response.status().is_client_error(), "{response:?}"),
        Err(error) => assert!(!error.is_timeout(), "the connection is closed at once: {error}"),
    }
    unharmed(&server, &id).await;
}

async fn path_or_method_that_does_not_exist_is_refused(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    for path in [
        "/nothing",
        "/sessions/a/b/c",
        "/sessions/%2e%2e%2fetc",
        "/executions/%ff",
        "/sessions/a%00b",
        "/templates/x%2Fy",
    ] {
        let reply = api.get(path).await;
        assert!([400, 404, 422].contains(&reply.status), "{path}: {}", reply.text);
        let code = reply.body["error_code"].as_str().unwrap_or_default().to_owned();
        let status = reply.status;
        reply.refused(status, &code);
    }
    for (method, path) in [
        ("PATCH", "/sessions"),
        ("DELETE", "/sessions"),
        ("PUT", "/health"),
        ("POST", "/templates/python-basic"),
    ] {
        api.send(api.request(method, path)).await.refused(405, "Sandbox.MethodNotAllowed");
    }
    api.send(api.request_root("GET", "/nothing")).await.refused(404, "Sandbox.RouteNotFound");
    let long = format!("/sessions/{}", "x".repeat(5000));
    let reply = api.get(&long).await;
    assert!([404, 414, 422].contains(&reply.status), "{}", reply.text);
    unharmed(&server, &id).await;
}

async fn every_answer_has_a_request_id_and_names_ignored_fields(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let with_id = async |id: &str| api.send(api.request("GET", "/health").header("X-Request-ID", id)).await;
    assert_eq!(with_id("my-id.1").await.header("x-request-id"), "my-id.1");
    for insane in ["a b", "<script>", &"x".repeat(500)] {
        let reply = with_id(insane).await;
        assert!(!reply.header("x-request-id").is_empty() && reply.header("x-request-id") != insane);
    }
    let (one, two) = (api.get("/health").await, api.get("/health").await);
    assert_ne!(one.header("x-request-id"), two.header("x-request-id"));
    let missing = api.request("GET", "/sessions/none").header("X-Request-ID", "find-me");
    assert_eq!(api.send(missing).await.refused(404, "Sandbox.SessionNotFound")["request_id"], "find-me");

    let body = json!({"code": "true", "language": "shell", "tiemout": 5, "gpu": {"count": 1}});
    let reply = api.post(&format!("/sessions/{id}/execute-sync"), body).await;
    let ignored = reply.header("sandmesh-ignored-fields").to_owned();
    assert!(ignored.contains("tiemout") && ignored.contains("gpu") && !ignored.contains("code"), "{ignored}");
    assert_eq!(reply.is(200)["status"], "completed", "a field that is not known is no error");
    let reply =
        api.post(&format!("/sessions/{id}/execute-sync"), json!({"code": "true", "language": "shell"})).await;
    assert_eq!(reply.header("sandmesh-ignored-fields"), "");
    unharmed(&server, &id).await;
}

async fn page_of_another_origin_or_name_cannot_use_a_gateway_without_keys(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let create = || api.request("POST", "/sessions").json(&json!({"template_id": "python-basic"}));
    // A name that a stranger points at this machine (DNS rebinding), and a page of another origin.
    api.send(create().header("host", "evil.example")).await.refused(403, "Sandbox.HostNotAllowed");
    api.send(create().header("origin", "https://evil.example"))
        .await
        .refused(403, "Sandbox.OriginNotAllowed");
    let grpc_web = api.request_root("POST", "/sandmesh.session.v1.SessionService/CreateSession");
    let grpc_web = grpc_web
        .header("content-type", "application/grpc-web+proto")
        .header("origin", "https://evil.example");
    let answer = api.send(grpc_web.body(vec![0, 0, 0, 0, 0])).await;
    assert!(
        answer.status == 403 || answer.header("grpc-status") == "7",
        "{} {:?}",
        answer.status,
        answer.headers
    );
    let preflight = api.request("OPTIONS", "/sessions").header("origin", "https://evil.example");
    let answer = api.send(preflight.header("access-control-request-method", "POST")).await;
    assert_eq!(answer.header("access-control-allow-origin"), "", "{}", answer.status);
    assert_eq!(api.get("/sessions").await.is(200)["total"], 0);
    let local = create().header("host", format!("localhost:{}", server.port));
    api.send(local.header("origin", format!("http://localhost:{}", server.port))).await.is(201);
}
