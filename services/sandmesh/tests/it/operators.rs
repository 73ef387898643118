//! What operators look at and decide: sandboxes, their logs, nodes, draining, metrics.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use sandmesh_proto::scheduler::{
    ListNodeSandboxesRequest, NodeServiceListNodesRequest, ReadSandboxLogRequest,
    node_service_client::NodeServiceClient,
};
use serde_json::{Value, json};

use crate::harness::{Api, Server, Wiring, eventually, process::SANDMESH, tools};

in_both_wirings!(
    sandboxes_are_listed_with_their_usage_and_their_logs,
    a_drained_node_takes_nothing_new_also_after_a_restart,
    metrics_count_requests_and_name_no_id,
);

fn cli(server: &Server, args: &[&str]) -> String {
    let mut command = Command::new(SANDMESH);
    command.args(args).env("SANDMESH_URL", format!("http://127.0.0.1:{}", server.port));
    tools::succeed(command.stdin(Stdio::null()))
}

async fn containers(api: &Api, query: &str) -> Value {
    api.get(&format!("/containers{query}")).await.is(200)
}

async fn sandboxes_are_listed_with_their_usage_and_their_logs(wiring: Wiring) {
    let server = wiring.start_with(&[("SANDMESH_HEALTH_PROBE__SANDBOX_PROBE_INTERVAL", "200ms")]).await;
    let api = &server.api;
    let sessions = [api.session().await, api.session().await, api.session().await];
    eventually("all are listed", Duration::from_secs(10), async || containers(api, "").await["total"] == 3)
        .await;
    let first = containers(api, "?limit=2").await;
    let token = first["next_page_token"].as_str().unwrap();
    let second = containers(api, &format!("?limit=2&page_token={token}")).await;
    let mut listed: Vec<String> = Vec::new();
    for page in [&first, &second] {
        for item in page["items"].as_array().unwrap() {
            listed.push(item["session_id"].as_str().unwrap().to_owned());
        }
    }
    listed.sort();
    let mut expected = sessions.to_vec();
    expected.sort();
    assert_eq!(listed, expected, "every sandbox once, over the pages");
    assert_eq!((&first["has_more"], &second["has_more"]), (&json!(true), &json!(false)));

    let one = containers(api, &format!("?session_id={}", sessions[0])).await;
    assert_eq!(one["total"], 1);
    let id = one["items"][0]["id"].as_str().unwrap().to_owned();
    let mut found = Value::Null;
    eventually("it is measured", Duration::from_secs(10), async || {
        found = api.get(&format!("/containers/{id}")).await.is(200);
        found["usage"]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0)
    })
    .await;
    assert_eq!(
        (&found["status"], &found["health"]["status"]),
        (&json!("running"), &json!("healthy")),
        "{found}"
    );
    assert!(found["health"]["latency_ms"].as_f64().unwrap() > 0.0 && found["restart_count"] == 0, "{found}");
    assert_eq!(found["effective_isolation"]["jail"], "bubblewrap");
    api.get("/containers/sbx_0000000000000000").await.refused(404, "Sandbox.SandboxNotFound");
    api.get("/containers/none").await.refused(404, "Sandbox.SandboxNotFound");

    let log = api.get(&format!("/containers/{id}/logs")).await.is(200);
    assert_eq!(log["container_id"], id.as_str());
    assert!(log["logs"].is_string());
    api.get("/containers/sbx_0000000000000000/logs").await.refused(404, "Sandbox.SandboxNotFound");
    api.get("/containers/none/logs").await.refused(404, "Sandbox.SandboxNotFound");
    // Over gRPC the same, and a log that is followed ends with its sandbox.
    let mut nodes = NodeServiceClient::new(server.grpc().await.channel);
    let request = ListNodeSandboxesRequest { session_id: sessions[0].clone(), ..Default::default() };
    let listed = nodes.list_node_sandboxes(request).await.unwrap().into_inner();
    assert_eq!((listed.sandboxes[0].sandbox_id.as_str(), listed.total), (id.as_str(), 1));
    let request = ReadSandboxLogRequest { sandbox_id: id.clone(), tail_bytes: 0, follow: true };
    let mut followed = nodes.read_sandbox_log(request).await.unwrap().into_inner();
    let table = cli(&server, &["sandbox", "list", "--session", &sessions[0]]);
    assert!(table.contains(&id) && table.contains("running"), "{table}");
    cli(&server, &["sandbox", "logs", &id]);
    api.send(api.request("POST", &format!("/sessions/{}/terminate", sessions[0]))).await.is(200);
    let ended = async { while followed.message().await.is_ok_and(|part| part.is_some()) {} };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the log ends with its sandbox");
    api.get(&format!("/containers/{id}")).await.refused(404, "Sandbox.SandboxNotFound");
}

async fn a_drained_node_takes_nothing_new_also_after_a_restart(wiring: Wiring) {
    let mut server = wiring.start_with(&[("SANDMESH_AGENT__ON_SHUTDOWN", "keep")]).await;
    let kept = server.api.session().await;
    let nodes = server.api.get("/nodes").await.is(200);
    assert_eq!((&nodes["total"], &nodes["items"][0]["status"]), (&json!(1), &json!("healthy")), "{nodes}");
    assert!(nodes["items"][0]["sandboxes"].is_u64());
    let id = nodes["items"][0]["id"].as_str().unwrap().to_owned();
    let drain = |verb: &str| server.api.request("POST", &format!("/nodes/{id}/{verb}"));
    let drained = server.api.send(drain("drain")).await.is(200);
    assert_eq!(drained["draining"], true);
    let refused = |api: &Api| {
        let api = api.clone();
        async move {
            let reply = api.post("/sessions", json!({"template_id": "python-basic"})).await;
            assert!(reply.header("retry-after").parse::<u32>().unwrap() >= 1);
            reply.refused(503, "Sandbox.NoCapacity");
        }
    };
    refused(&server.api).await;
    assert_eq!(server.api.run(&kept, "shell", "echo on").await["stdout"], "on\n", "what it has goes on");
    server.kill();
    server.start_again().await;
    refused(&server.api).await;
    let table = cli(&server, &["nodes"]);
    assert!(table.contains("healthy, draining"), "{table}");
    let mut client = NodeServiceClient::new(server.grpc().await.channel);
    let listed = client.list_nodes(NodeServiceListNodesRequest {}).await.unwrap().into_inner();
    assert!(listed.nodes[0].node.as_ref().unwrap().draining);

    cli(&server, &["nodes", "resume", &id]);
    assert_eq!(server.api.run(&server.api.session().await, "shell", "echo new").await["stdout"], "new\n");
    assert_eq!(server.api.run(&kept, "shell", "echo on").await["stdout"], "on\n");
    for verb in ["drain", "resume"] {
        let unknown = server.api.request("POST", &format!("/nodes/none/{verb}"));
        server.api.send(unknown).await.refused(404, "Sandbox.NodeNotFound");
    }
    server.api.send(server.api.request("POST", &format!("/sessions/{kept}/terminate"))).await.is(200);
}

async fn metrics_count_requests_and_name_no_id(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    api.get(&format!("/sessions/{id}")).await.is(200);
    api.get("/sessions/none").await.refused(404, "Sandbox.SessionNotFound");
    server.grpc().await.get(&id).await;
    let text = api.send(api.request_root("GET", "/metrics")).await.text;
    for line in [
        r#"sandmesh_requests_total{code="404",method="GET",protocol="rest",route="/api/v1/sessions/{id}"} 1"#,
        r#"route="/sandmesh.session.v1.SessionService/GetSession"} 1"#,
        r#"sandmesh_nodes{state="healthy"} 1"#,
        r#"sandmesh_role_up{role="scheduler"} 1"#,
        "process_open_fds",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains(&id), "{text}");
}
