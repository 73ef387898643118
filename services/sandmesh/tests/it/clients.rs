//! Clients that are not ours: grpcurl by reflection, Python from proto/, gRPC-web as a browser speaks it.

use std::process::Command;

use prost::Message;
use sandmesh_proto::{
    executor::Language,
    session::{
        CreateSessionRequest, CreateSessionResponse, ExecuteRequest, ExecuteResponse, GetSessionRequest,
        execute_response::Event, execution::State,
    },
};
use serde_json::{Value, json};

use crate::harness::{Server, Wiring, code_spec, tools};

in_both_wirings!(
    grpcurl_runs_the_main_job_by_reflection,
    python_client_generated_from_proto_runs_the_main_job,
    grpc_web_carries_unary_calls_streams_and_errors,
    openapi_and_its_page_are_served,
);

/// One grpcurl call; gives the answers, one for each message of a stream.
fn grpcurl(server: &Server, data: &Value, method: &str) -> Vec<Value> {
    let mut command = tools::grpcurl();
    command.args([
        "-plaintext",
        "-max-time",
        "60",
        "-d",
        &data.to_string(),
        &format!("127.0.0.1:{}", server.port),
        method,
    ]);
    let text = tools::succeed(&mut command);
    serde_json::Deserializer::from_str(&text).into_iter().map(Result::unwrap).collect()
}

async fn grpcurl_runs_the_main_job_by_reflection(wiring: Wiring) {
    let server = wiring.start().await;
    let address = format!("127.0.0.1:{}", server.port);
    let services = tools::succeed(tools::grpcurl().args(["-plaintext", &address, "list"]));
    let mut services: Vec<&str> =
        services.lines().filter(|name| !name.starts_with("grpc.reflection")).collect();
    services.sort_unstable();
    let public = [
        "grpc.health.v1.Health",
        "sandmesh.health.v1.HealthProbeService",
        "sandmesh.scheduler.v1.NodeService",
        "sandmesh.scheduler.v1.PoolService",
        "sandmesh.session.v1.DependencyService",
        "sandmesh.session.v1.FileService",
        "sandmesh.session.v1.SessionService",
        "sandmesh.template.v1.TemplateService",
    ];
    assert_eq!(services, public, "what clients may call, and nothing of the mesh");
    let described = tools::succeed(tools::grpcurl().args([
        "-plaintext",
        &address,
        "describe",
        "sandmesh.session.v1.SessionService",
    ]));
    assert!(described.contains("rpc Execute"), "{described}");

    let service = "sandmesh.session.v1.SessionService";
    let created =
        grpcurl(&server, &json!({"template_id": "python-basic"}), &format!("{service}/CreateSession"));
    let id = created[0]["session"]["sessionId"].as_str().unwrap();
    server.api.session_is(id, "running").await;
    let code = "def handler(event): return {\"result\": \"hello world\"}";
    let spec = json!({"session_id": id, "spec": {"language": "LANGUAGE_PYTHON", "code": code}});
    let events = grpcurl(&server, &spec, &format!("{service}/Execute"));
    let kinds: Vec<&String> = events.iter().flat_map(|event| event.as_object().unwrap().keys()).collect();
    assert_eq!(kinds, ["accepted", "started", "result"]);
    let returned: Value =
        serde_json::from_str(events[2]["result"]["returnValueJson"].as_str().unwrap()).unwrap();
    assert_eq!(returned, json!({"result": "hello world"}));

    let mut unknown = tools::grpcurl();
    unknown.args([
        "-plaintext",
        "-d",
        r#"{"session_id": "none"}"#,
        &address,
        &format!("{service}/GetSession"),
    ]);
    let output = unknown.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("NotFound"), "{told}");
    let health =
        tools::succeed(tools::grpcurl().args(["-plaintext", &address, "grpc.health.v1.Health/Check"]));
    assert!(health.contains("SERVING"), "{health}");
}

async fn python_client_generated_from_proto_runs_the_main_job(wiring: Wiring) {
    let server = wiring.start().await;
    let (proto, generated) = (tools::root().join("proto"), server.scratch().join("generated"));
    std::fs::create_dir(&generated).unwrap();
    let mut files: Vec<String> = Vec::new();
    for package in ["executor", "session"] {
        let dir = proto.join("sandmesh").join(package).join("v1");
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        files.extend(entries.map(|path| path.display().to_string()).filter(|path| path.ends_with(".proto")));
    }
    let mut protoc = tools::python();
    protoc.args(["-m", "grpc_tools.protoc"]).arg("-I").arg(&proto);
    for kind in ["python_out", "grpc_python_out"] {
        protoc.arg(format!("--{kind}={}", generated.display()));
    }
    tools::succeed(protoc.args(&files));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/clients/hello.py");
    let mut client: Command = tools::python();
    let text = tools::succeed(client.arg(script).arg(&generated).arg(format!("127.0.0.1:{}", server.port)));
    let told: Value = serde_json::from_str(&text).unwrap();
    let expected = json!({
        "events": ["accepted", "started", "stdout", "result"],
        "stdout": "hello python\n",
        "state": "STATE_COMPLETED",
        "exit_code": 0,
        "return_value": {"result": "hello world"},
        "missing": "NOT_FOUND",
    });
    assert_eq!(told, expected);
}

/// One gRPC-web call as a browser makes it; gives the messages, and the trailers as text.
async fn grpc_web(server: &Server, method: &str, message: &impl Message) -> (Vec<Vec<u8>>, String) {
    let frame = |message: Vec<u8>| {
        [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat()
    };
    let request = server.api.request_root("POST", &format!("/sandmesh.session.v1.SessionService/{method}"));
    let request = request
        .header("content-type", "application/grpc-web+proto")
        .header("accept", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        .header("origin", format!("http://127.0.0.1:{}", server.port));
    let response = request.body(frame(message.encode_to_vec())).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(content_type.starts_with("application/grpc-web"), "{content_type}");
    let early = response.headers().iter().filter(|(name, _)| name.as_str().starts_with("grpc-"));
    let mut trailers: String =
        early.map(|(name, value)| format!("{name}:{}\r\n", value.to_str().unwrap())).collect();
    let mut messages = Vec::new();
    let body = response.bytes().await.unwrap();
    let mut rest = body.as_ref();
    while let Some((head, tail)) = rest.split_at_checked(5) {
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
        match head[0] & 0x80 {
            0 => messages.push(tail[..length].to_vec()),
            _ => trailers += &String::from_utf8_lossy(&tail[..length]),
        }
        rest = &tail[length..];
    }
    assert!(rest.is_empty(), "half a frame at the end");
    (messages, trailers.replace(": ", ":"))
}

async fn grpc_web_carries_unary_calls_streams_and_errors(wiring: Wiring) {
    let server = wiring.start().await;
    let create = CreateSessionRequest { template_id: "python-basic".into(), ..Default::default() };
    let (messages, trailers) = grpc_web(&server, "CreateSession", &create).await;
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
    let id = CreateSessionResponse::decode(messages[0].as_slice()).unwrap().session.unwrap().session_id;
    server.api.session_is(&id, "running").await;

    let spec = code_spec(Language::Python, "def handler(event):\n    print('over the web')\n    return 5");
    let execute = ExecuteRequest { session_id: id, spec: Some(spec), ..Default::default() };
    let (messages, trailers) = grpc_web(&server, "Execute", &execute).await;
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
    let mut stdout = Vec::new();
    let mut result = None;
    for message in messages {
        match ExecuteResponse::decode(message.as_slice()).unwrap().event.unwrap() {
            Event::Stdout(chunk) => stdout.extend(chunk.data),
            Event::Result(execution) => result = Some(execution),
            _ => {}
        }
    }
    let result = result.unwrap();
    assert_eq!(
        (stdout.as_slice(), result.state(), result.return_value_json()),
        (b"over the web\n".as_slice(), State::Completed, "5")
    );

    let missing = GetSessionRequest { session_id: "none".into() };
    let (messages, trailers) = grpc_web(&server, "GetSession", &missing).await;
    assert!(messages.is_empty() && trailers.contains("grpc-status:5"), "{trailers}");
    assert!(trailers.contains("grpc-status-details-bin"), "the reason travels, too: {trailers}");
}

async fn openapi_and_its_page_are_served(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let openapi = api.send(api.request_root("GET", "/openapi.json")).await.is(200);
    assert!(openapi["openapi"].as_str().unwrap().starts_with("3."));
    let paths = openapi["paths"].as_object().unwrap();
    for path in [
        "/api/v1/health",
        "/api/v1/health/detailed",
        "/api/v1/health/sync",
        "/api/v1/sessions",
        "/api/v1/sessions/{id}/terminate",
        "/api/v1/sessions/{id}/execute",
        "/api/v1/sessions/{id}/execute-sync",
        "/api/v1/sessions/{id}/execute-stream",
        "/api/v1/sessions/{id}/executions",
        "/api/v1/executions/{id}",
        "/api/v1/executions/{id}/stream",
        "/api/v1/executions/{id}/cancel",
        "/api/v1/executions/sessions/{id}/execute",
        "/api/v1/templates/{id}",
    ] {
        let generic = |known: &String| {
            let steps = |path: &str| {
                path.split('/')
                    .map(|step| if step.starts_with('{') { "{}".into() } else { step.to_owned() })
                    .collect::<Vec<_>>()
            };
            steps(known) == steps(path)
        };
        assert!(paths.keys().any(generic), "{path} is not in {:?}", paths.keys());
    }
    let page = api.send(api.request_root("GET", "/docs")).await;
    assert!(page.status == 200 && page.text.to_lowercase().contains("swagger"), "{}", page.text);
}
