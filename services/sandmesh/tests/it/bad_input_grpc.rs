//! Bad input over gRPC: BadRequest names the field; broken frames are refused; the server stays well.

use std::{collections::HashMap, future::poll_fn, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use sandmesh_proto::{
    executor::{Language, Mode, Resources, SignalRequest},
    session::{
        AttachExecutionRequest, CancelExecutionRequest, CreateSessionRequest, Dependency, ExecuteRequest,
        ExecutionSpec, GetExecutionRequest, GetSessionRequest, ListExecutionsRequest, SendInputRequest,
        StartExecutionRequest, TerminateSessionRequest, WaitExecutionRequest, send_input_request::Input,
    },
};
use tonic::{Code, client::GrpcService};
use tonic_types::StatusExt;

use crate::harness::{Grpc, Server, Wiring, code_spec, refused, violates};

in_both_wirings!(
    session_field_out_of_its_limits_is_named,
    execution_field_out_of_its_limits_is_named,
    unknown_id_is_not_found,
    many_mistakes_at_once_are_still_told,
    broken_frame_is_refused,
    service_of_the_mesh_is_not_served_to_clients,
);

async fn unharmed(server: &Server, session: &str, executions: u64) {
    assert_eq!(server.api.get("/health/detailed").await.is(200)["status"], "healthy");
    let all = server.api.get(&format!("/sessions/{session}/executions")).await.is(200);
    assert_eq!(all["total"], executions, "{all}");
    assert_eq!(server.api.run(session, "shell", "echo well").await["stdout"], "well\n");
}

async fn session_field_out_of_its_limits_is_named(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let good = CreateSessionRequest { template_id: "python-basic".into(), ..Default::default() };
    let resources =
        |resources: Resources| CreateSessionRequest { resources: Some(resources), ..good.clone() };
    let dependency = |name: &str| Dependency { name: name.into(), version: String::new() };
    let pairs = |count: u32| (0..count).map(|n| (format!("N{n}"), "x".to_owned())).collect::<HashMap<_, _>>();
    let cases = [
        ("template_id", CreateSessionRequest { template_id: String::new(), ..good.clone() }),
        ("session_id", CreateSessionRequest { session_id: "a/b".into(), ..good.clone() }),
        ("session_id", CreateSessionRequest { session_id: "x".repeat(65), ..good.clone() }),
        ("timeout_seconds", CreateSessionRequest { timeout_seconds: Some(0), ..good.clone() }),
        ("timeout_seconds", CreateSessionRequest { timeout_seconds: Some(3601), ..good.clone() }),
        (
            "install_timeout_seconds",
            CreateSessionRequest { install_timeout_seconds: Some(29), ..good.clone() },
        ),
        (
            "install_timeout_seconds",
            CreateSessionRequest { install_timeout_seconds: Some(1801), ..good.clone() },
        ),
        ("request_id", CreateSessionRequest { request_id: "x".repeat(129), ..good.clone() }),
        ("resources.cpu_millis", resources(Resources { cpu_millis: 1_000_000, ..Default::default() })),
        ("resources.memory_bytes", resources(Resources { memory_bytes: 1 << 50, ..Default::default() })),
        ("resources.disk_bytes", resources(Resources { disk_bytes: 1 << 50, ..Default::default() })),
        ("resources.max_processes", resources(Resources { max_processes: 1_000_000, ..Default::default() })),
        ("labels", CreateSessionRequest { labels: pairs(65), ..good.clone() }),
        ("env", CreateSessionRequest { env: pairs(2000), ..good.clone() }),
        (
            "dependencies",
            CreateSessionRequest { dependencies: vec![dependency("click"); 51], ..good.clone() },
        ),
        (
            "dependencies[1].name",
            CreateSessionRequest {
                dependencies: vec![dependency("click"), dependency("-r x")],
                ..good.clone()
            },
        ),
    ];
    for (field, request) in cases {
        violates(grpc.sessions.create_session(request).await, field);
    }
    let id = grpc.session().await;
    assert_eq!(server.api.get("/sessions").await.is(200)["total"], 1, "nothing that was refused exists");
    unharmed(&server, &id, 0).await;
}

async fn execution_field_out_of_its_limits_is_named(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let id = grpc.session().await;
    let good = code_spec(Language::Shell, "true");
    let with = |spec: ExecutionSpec| StartExecutionRequest {
        session_id: id.clone(),
        spec: Some(spec),
        ..Default::default()
    };
    let cases = [
        ("spec", StartExecutionRequest { session_id: id.clone(), ..Default::default() }),
        ("session_id", StartExecutionRequest { spec: Some(good.clone()), ..Default::default() }),
        ("spec.code", with(code_spec(Language::Shell, ""))),
        ("spec.code", with(code_spec(Language::Shell, &"#".repeat((1 << 20) + 1)))),
        ("spec.language", with(code_spec(Language::Unspecified, "true"))),
        ("spec.language", with(ExecutionSpec { language: 99, ..good.clone() })),
        ("spec.mode", with(ExecutionSpec { mode: 99, ..good.clone() })),
        ("spec.timeout_seconds", with(ExecutionSpec { timeout_seconds: Some(0), ..good.clone() })),
        ("spec.timeout_seconds", with(ExecutionSpec { timeout_seconds: Some(3601), ..good.clone() })),
        ("spec.event_json", with(ExecutionSpec { event_json: "{".into(), ..good.clone() })),
        ("spec.event_json", with(ExecutionSpec { event_json: "[1]".into(), ..good.clone() })),
        (
            "spec.event_json",
            with(ExecutionSpec {
                event_json: format!("{{\"a\":\"{}\"}}", "x".repeat(6 << 20)),
                ..good.clone()
            }),
        ),
        ("spec.entrypoint", with(ExecutionSpec { entrypoint: "a b".into(), ..good.clone() })),
        ("spec.command", with(ExecutionSpec { command: vec!["x".into(); 1025], ..Default::default() })),
        (
            "spec.code",
            with(ExecutionSpec { command: vec!["true".into()], mode: Mode::Handler.into(), ..good.clone() }),
        ),
        ("execution_id", StartExecutionRequest { execution_id: "a/b".into(), ..with(good.clone()) }),
        ("request_id", StartExecutionRequest { request_id: "x".repeat(129), ..with(good.clone()) }),
    ];
    for (field, request) in cases {
        violates(grpc.sessions.start_execution(request.clone()).await, field);
        let StartExecutionRequest { session_id, spec, execution_id, request_id } = request;
        violates(
            grpc.sessions.execute(ExecuteRequest { session_id, spec, execution_id, request_id }).await,
            field,
        );
    }
    unharmed(&server, &id, 0).await;
}

async fn unknown_id_is_not_found(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let id = grpc.session().await;
    let client = &mut grpc.sessions;
    let (session, execution) = ("SESSION_NOT_FOUND", "EXECUTION_NOT_FOUND");
    for unknown in ["none", "../../etc", &"x".repeat(10_000), "\u{0}", "'; drop table sessions; --"] {
        let id = || unknown.to_owned();
        let not_found = |status: tonic::Status, reason: &str| match status.code() {
            // An id that no session could have may also be told as a bad field.
            Code::InvalidArgument => {}
            _ => _ = refused::<()>(Err(status), Code::NotFound, reason),
        };
        not_found(client.get_session(GetSessionRequest { session_id: id() }).await.unwrap_err(), session);
        not_found(
            client.terminate_session(TerminateSessionRequest { session_id: id() }).await.unwrap_err(),
            session,
        );
        let list = ListExecutionsRequest { session_id: id(), ..Default::default() };
        not_found(client.list_executions(list).await.unwrap_err(), session);
        let start = StartExecutionRequest {
            session_id: id(),
            spec: Some(code_spec(Language::Shell, "true")),
            ..Default::default()
        };
        not_found(client.start_execution(start).await.unwrap_err(), session);
        not_found(
            client.get_execution(GetExecutionRequest { execution_id: id() }).await.unwrap_err(),
            execution,
        );
        not_found(
            client
                .wait_execution(WaitExecutionRequest { execution_id: id(), wait_ms: 10 })
                .await
                .unwrap_err(),
            execution,
        );
        not_found(
            client.cancel_execution(CancelExecutionRequest { execution_id: id() }).await.unwrap_err(),
            execution,
        );
        let attach = AttachExecutionRequest { execution_id: id(), ..Default::default() };
        not_found(client.attach_execution(attach).await.unwrap_err(), execution);
        let input = Some(Input::Signal(SignalRequest { signal: 15, sequence: 0 }));
        not_found(
            client.send_input(SendInputRequest { execution_id: id(), input }).await.unwrap_err(),
            execution,
        );
    }
    unharmed(&server, &id, 0).await;
}

async fn many_mistakes_at_once_are_still_told(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let id = grpc.session().await;
    // An answer travels in headers, whose size is limited: however long the mistakes are, it must fit.
    let env: HashMap<String, String> =
        (0..200).map(|n| (format!("{n} {}", "k".repeat(100)), "x".into())).collect();
    let template_id = "python-basic".to_owned();
    let request = CreateSessionRequest { template_id, env, ..Default::default() };
    let status = grpc.sessions.create_session(request).await;
    let status = refused(status, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert!(!status.get_error_details().bad_request().unwrap().field_violations.is_empty());
    let spec = ExecutionSpec { entrypoint: "e ".repeat(100_000), ..code_spec(Language::Python, "x") };
    let request = StartExecutionRequest { session_id: id.clone(), spec: Some(spec), ..Default::default() };
    violates(grpc.sessions.start_execution(request).await, "spec.entrypoint");
    unharmed(&server, &id, 0).await;
}

/// Sends bytes as the body of a gRPC call; gives the gRPC status of the answer, which has no message.
async fn raw_call(grpc: &Grpc, path: &str, body: Vec<u8>) -> Option<i32> {
    let request = tonic::codegen::http::Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(Full::new(Bytes::from(body))))
        .unwrap();
    let mut channel = grpc.channel.clone();
    poll_fn(|context| GrpcService::<tonic::body::Body>::poll_ready(&mut channel, context)).await.unwrap();
    let call = tokio::time::timeout(Duration::from_secs(20), GrpcService::call(&mut channel, request));
    let response = call.await.expect("an answer in time").unwrap();
    if let Some(status) = response.headers().get("grpc-status") {
        return status.to_str().unwrap().parse().ok();
    }
    let trailers = response.into_body().collect().await.unwrap().trailers().cloned()?;
    trailers.get("grpc-status")?.to_str().unwrap().parse().ok()
}

async fn broken_frame_is_refused(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let id = grpc.session().await;
    let framed = |length: u32, message: &[u8]| {
        let mut frame = vec![0];
        frame.extend(length.to_be_bytes());
        frame.extend(message);
        frame
    };
    let broken = [
        ("no protobuf", framed(4, b"\xff\xff\xff\xff")),
        ("a field of another type", framed(2, b"\x08\x01")),
        ("a string that is no UTF-8", framed(4, b"\x12\x02\xff\xfe")),
        ("a length beyond the message", framed(5, b"\x12\x7fabc")),
        ("a compressed flag without an encoding", [vec![1], framed(2, b"\x12\x00")[1..].to_vec()].concat()),
        ("a flag that does not exist", [vec![9], framed(2, b"\x12\x00")[1..].to_vec()].concat()),
        ("a frame that ends early", framed(100, b"\x12\x02ab")),
        ("half a header", vec![0, 0]),
        ("no frame at all", Vec::new()),
        ("a frame of 4 GiB", framed(u32::MAX, b"\x12\x02ab")),
    ];
    let (invalid, exhausted, out_of_range) = (3, 8, 11);
    let mut wrong = Vec::new();
    for method in ["CreateSession", "Execute", "StartExecution"] {
        for (what, body) in &broken {
            let path = format!("/sandmesh.session.v1.SessionService/{method}");
            let status = raw_call(&grpc, &path, body.clone()).await;
            let too_long =
                what.contains("GiB") && (status == Some(exhausted) || status == Some(out_of_range));
            if status != Some(invalid) && !too_long {
                wrong.push(format!("{method}, {what}: grpc-status {status:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "INVALID_ARGUMENT is {invalid}:\n{}", wrong.join("\n"));
    assert_eq!(server.api.get("/sessions").await.is(200)["total"], 1);
    unharmed(&server, &id, 0).await;
}

async fn service_of_the_mesh_is_not_served_to_clients(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let id = grpc.session().await;
    for path in [
        "/sandmesh.session.v1.SessionEventService/ReportSandboxLost",
        "/sandmesh.session.v1.LeaseService/HoldLease",
        "/sandmesh.agent.v1.AgentService/DestroySandbox",
        "/sandmesh.scheduler.v1.SchedulerService/PlaceSandbox",
        "/sandmesh.health.v1.RoleHealthService/CheckRole",
        "/sandmesh.session.v1.SessionService/NoSuchMethod",
        "/no.such.Service/Method",
    ] {
        let status = raw_call(&grpc, path, vec![0, 0, 0, 0, 0]).await;
        assert_eq!(status, Some(12), "{path} is UNIMPLEMENTED here");
    }
    unharmed(&server, &id, 0).await;
}
