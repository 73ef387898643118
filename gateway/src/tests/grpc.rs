//! gRPC and gRPC-web through the same door.

use axum::body::Body;
use futures::StreamExt;
use http::Request;
use prost::Message;
use sandmesh_mesh::{Link, Tasks, reason_of};
use sandmesh_proto::session::{
    ExecuteRequest, GetSessionRequest, GetSessionResponse, session_service_client::SessionServiceClient,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::{
    v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    },
    v1alpha,
};

use super::{Answer, Door, KEY};

const GET_SESSION: &str = "/sandmesh.session.v1.SessionService/GetSession";

fn client(door: &Door) -> SessionServiceClient<Link> {
    SessionServiceClient::new(Link::local(door.router.clone()))
}

fn get(id: &str) -> GetSessionRequest {
    GetSessionRequest { session_id: id.into() }
}

fn framed(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &bytes].concat()
}

async fn web(door: &Door, path: &str, headers: &[(&str, &str)]) -> Answer {
    let request = Request::post(path).header("content-type", "application/grpc-web+proto");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    door.call(request.body(Body::from(framed(&get("s1")))).unwrap()).await
}

#[tokio::test]
async fn calls_and_streams_pass_through_with_their_errors() {
    let door = Door::new();
    let session = client(&door).get_session(get("s1")).await.unwrap().into_inner().session.unwrap();
    assert_eq!(session.session_id, "s1");
    let error = client(&door).get_session(get("unknown")).await.unwrap_err();
    assert_eq!((error.code(), reason_of(&error).as_deref()), (Code::NotFound, Some("SESSION_NOT_FOUND")));
    let request = ExecuteRequest { session_id: "s1".into(), ..ExecuteRequest::default() };
    let events = client(&door).execute(request).await.unwrap().into_inner();
    assert_eq!(events.collect::<Vec<_>>().await.into_iter().filter(Result::is_ok).count(), 2);
}

#[tokio::test]
async fn only_public_services_are_there() {
    let door = Door::new();
    for path in [
        "/sandmesh.session.v1.SessionEventService/ReportSandboxLost",
        "/sandmesh.statesync.v1.StateSyncService/Reconcile",
        "/sandmesh.session.v1.SessionService/Nothing",
        "/nothing",
    ] {
        let request =
            Request::post(path).version(http::Version::HTTP_2).header("content-type", "application/grpc");
        let answer = door.call(request.body(Body::from(framed(&get("s")))).unwrap()).await;
        assert_eq!((answer.status, answer.header("grpc-status")), (200, "12"), "{path}");
    }
}

#[tokio::test]
async fn a_key_is_asked_for_and_not_passed_on() {
    let door = Door::with_keys();
    let error = client(&door).get_session(get("s1")).await.unwrap_err();
    assert_eq!(
        (error.code(), reason_of(&error).as_deref()),
        (Code::Unauthenticated, Some("UNAUTHENTICATED"))
    );
    let mut request = tonic::Request::new(get("s1"));
    request.metadata_mut().insert("authorization", format!("Bearer {KEY}").parse().unwrap());
    request.metadata_mut().insert("x-request-id", "mine-1".parse().unwrap());
    client(&door).get_session(request).await.unwrap();
    let metadata = door.fakes.metadata.lock().unwrap();
    assert!(!metadata[0].contains_key("authorization"));
    assert_eq!(metadata[0]["x-request-id"], "mine-1");
}

#[tokio::test]
async fn a_browser_is_served_by_grpc_web() {
    let door = Door::new();
    let answer = web(&door, GET_SESSION, &[]).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/grpc-web+proto"));
    assert!(answer.text.contains("s1") && answer.text.contains("grpc-status:0"), "{answer:?}");
    let refused = web(&Door::with_keys(), GET_SESSION, &[]).await;
    assert_eq!((refused.status, refused.header("grpc-status")), (200, "16"));
    let foreign = [("host", "127.0.0.1:8000"), ("origin", "https://evil.example")];
    assert_eq!(web(&door, GET_SESSION, &foreign).await.header("grpc-status"), "7");
}

#[tokio::test]
async fn a_grpc_web_answer_decodes_to_the_message() {
    let door = Door::new();
    let request = Request::post(GET_SESSION).header("content-type", "application/grpc-web+proto");
    let request = request.body(Body::from(framed(&get("s1")))).unwrap();
    let response = tower::ServiceExt::oneshot(door.router.clone(), request).await.unwrap();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let length = usize::try_from(u32::from_be_bytes(body[1..5].try_into().unwrap())).unwrap();
    let reply = GetSessionResponse::decode(&body[5..5 + length]).unwrap();
    assert_eq!(reply.session.unwrap().session_id, "s1");
    assert_eq!(body[5 + length], 0x80, "trailers follow");
}

#[tokio::test]
async fn reflection_lists_the_public_services_in_both_versions() {
    let door = Door::new();
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(Link::local(door.router.clone()));
    let mut answers =
        client.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    names.sort_unstable();
    let expected = [
        "grpc.health.v1.Health",
        "sandmesh.health.v1.HealthProbeService",
        "sandmesh.scheduler.v1.NodeService",
        "sandmesh.scheduler.v1.PoolService",
        "sandmesh.session.v1.DependencyService",
        "sandmesh.session.v1.FileService",
        "sandmesh.session.v1.SessionService",
        "sandmesh.template.v1.TemplateService",
    ];
    assert_eq!(names, expected);
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
            "sandmesh.session.v1.SessionService".into(),
        )),
    };
    let link = Link::local(door.router.clone());
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(link);
    let mut answers =
        client.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
}

#[tokio::test]
async fn health_asks_the_role_and_knows_only_public_services() {
    let door = Door::new();
    let mut client = HealthClient::new(Link::local(door.router.clone()));
    let check = |service: &str| HealthCheckRequest { service: service.into() };
    // The fake's own health knows no service, so what is asked of it is not served.
    let answer = client.check(check("sandmesh.session.v1.SessionService")).await.unwrap().into_inner();
    assert_eq!(answer.status, 2);
    let error = client.check(check("sandmesh.agent.v1.AgentService")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let mut watch = client.watch(check("nothing")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 3);
}

#[tokio::test]
async fn one_port_serves_rest_grpc_web_and_grpc() {
    let door = Door::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tasks, router) = (Tasks::new(), door.router.clone());
    tasks.spawn("server", async move { axum::serve(listener, router).await.unwrap() });
    let link = Link::dial(&format!("http://{address}")).unwrap();
    let session = SessionServiceClient::new(link).get_session(get("s1")).await.unwrap().into_inner().session;
    assert_eq!(session.unwrap().session_id, "s1");
    for (path, content_type, body, expected) in [
        ("/api/v1/sessions", "application/json", br#"{"template_id": "t"}"#.to_vec(), "201 Created"),
        (GET_SESSION, "application/grpc-web+proto", framed(&get("s1")), "grpc-status:0"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains(expected), "{path}: {answer}");
    }
}
