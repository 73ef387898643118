//! Case 30: more than a server should have to take.

use std::time::Duration;

use futures::future::join_all;
use sandmesh_proto::{
    executor::{Language, Resources},
    session::{
        CreateSessionRequest, ExecuteRequest, ExecutionSpec, Session, StartExecutionRequest,
        WaitExecutionRequest,
    },
};
use tokio::{io::AsyncWriteExt as _, time::timeout};
use tonic::{Code, Status};

use super::{names::refused, prepare};
use crate::attack::{
    arena::{Arena, Wish, timed, within},
    host::memory_of,
    verdict::Evidence,
};

pub(super) async fn oversized(arena: &Arena) -> anyhow::Result<Evidence> {
    const MAY_GROW_KIB: u64 = 512 << 10;
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    let pids = arena.host.as_ref().map(|host| host.local.pids.clone()).unwrap_or_default();
    let memory = || pids.iter().filter_map(|pid| memory_of(*pid)).sum::<u64>();
    let before = memory();
    for (what, spec) in too_large(arena) {
        let request = StartExecutionRequest {
            session_id: session.session_id.clone(),
            spec: Some(spec),
            ..Default::default()
        };
        let answer = arena.sessions()?.start_execution(timed(request)).await;
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        let held = [Code::InvalidArgument, Code::OutOfRange, Code::ResourceExhausted].contains(&code);
        evidence.client(what, held, format!("{code:?}"));
    }
    let resources = Resources {
        memory_bytes: u64::MAX,
        cpu_millis: u32::MAX,
        disk_bytes: u64::MAX,
        max_processes: u32::MAX,
    };
    let template_id = arena.target.template.clone();
    let huge =
        CreateSessionRequest { template_id, resources: Some(resources), ..CreateSessionRequest::default() };
    refused(
        &mut evidence,
        "a session with everything".to_owned(),
        &arena.sessions()?.create_session(timed(huge)).await,
    );
    raw_requests(arena, &session, &mut evidence).await?;
    many_streams(arena, &session, &mut evidence).await?;
    slow_reader(arena, &session, &mut evidence).await?;
    idle_connections(arena, &mut evidence).await?;
    if !pids.is_empty() {
        let after = memory();
        let told = format!("{} MiB, before {} MiB", after >> 10, before >> 10);
        evidence.host("memory of the server", before > 0 && after < before + MAY_GROW_KIB, told);
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

/// Specs beyond a limit of the contract.
fn too_large(arena: &Arena) -> Vec<(&'static str, ExecutionSpec)> {
    let spec = || arena.code(Language::Python, "pass");
    let nested = format!("{{\"a\": {}{}}}", "[".repeat(200_000), "]".repeat(199_999));
    vec![
        ("code of 2 MiB", ExecutionSpec { code: "#".repeat(2 << 20), ..spec() }),
        ("no code", ExecutionSpec { code: String::new(), ..spec() }),
        (
            "an event of 7 MiB",
            ExecutionSpec { event_json: format!("{{\"a\": \"{}\"}}", "x".repeat(7 << 20)), ..spec() },
        ),
        ("an event that is not JSON", ExecutionSpec { event_json: nested, ..spec() }),
        ("a time limit beyond all", ExecutionSpec { timeout_seconds: Some(u32::MAX), ..spec() }),
        ("2000 words", ExecutionSpec { command: vec!["x".to_owned(); 2000], code: String::new(), ..spec() }),
        (
            "10000 variables",
            ExecutionSpec { env: (0..10_000).map(|n| (format!("V{n}"), "x".to_owned())).collect(), ..spec() },
        ),
        ("a name with a NUL", ExecutionSpec { env: [("A\0B".to_owned(), "x".to_owned())].into(), ..spec() }),
        (
            "an entry point that is code",
            ExecutionSpec { entrypoint: "__import__('os').system('id')".to_owned(), ..spec() },
        ),
    ]
}

/// Requests that no client library would send.
async fn raw_requests(arena: &Arena, session: &Session, evidence: &mut Evidence) -> anyhow::Result<()> {
    let door = arena.door()?;
    let execute = format!("POST /api/v1/sessions/{}/execute-sync", session.session_id);
    let host = format!("Host: {}", door.address);
    let long = format!("X-Long: {}", "y".repeat(1 << 20));
    let many: Vec<String> = (0..20_000).map(|n| format!("X-{n}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let body = format!("{{\"code\": \"{}\", \"language\": \"shell\"}}", "#".repeat(20 << 20));
    let frame = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x04\x00\x00\x00\x00\x00".to_vec();
    let mut web = format!(
        "POST /sandmesh.session.v1.SessionService/CreateSession HTTP/1.1\r\n{host}\r\nConnection: close\r\n\
         Content-Type: application/grpc-web+proto\r\nContent-Length: 5\r\n\r\n"
    )
    .into_bytes();
    web.extend(b"\x00\xff\xff\xff\xff");
    let replies = [
        ("a header of 1 MiB", door.send("GET /api/v1/sessions", &[&long], "").await?),
        ("20000 headers", door.send("GET /api/v1/sessions", &many, "").await?),
        ("a path of 1 MiB", door.send(&format!("GET /{}", "p".repeat(1 << 20)), &[], "").await?),
        ("a body of 20 MiB", door.send(&execute, &[], &body).await?),
        ("deep JSON", door.send(&execute, &[], &"[".repeat(1 << 20)).await?),
        ("two lengths", door.send(&execute, &["Content-Length: 5", "Content-Length: 50"], "").await?),
        (
            "a length and chunks",
            door.send(&execute, &["Content-Length: 5", "Transfer-Encoding: chunked"], "").await?,
        ),
        ("a negative length", door.send(&execute, &["Content-Length: -1"], "").await?),
        (
            "chunks without end",
            door.raw(
                format!(
                    "{execute} HTTP/1.1\r\n{host}\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"
                )
                .as_bytes(),
            )
            .await?,
        ),
        ("no HTTP at all", door.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await?),
        ("a frame of 16 MiB", door.raw(&frame).await?),
    ];
    for (what, reply) in replies {
        evidence.client(what, reply.is_refusal(), format!("status {}", reply.status));
    }
    let reply = door.raw(&web).await?;
    let told = format!("status {}, grpc-status {:?}", reply.status, reply.header("grpc-status"));
    evidence.client(
        "a message of 4 GiB",
        reply.header("grpc-status").is_none_or(|status| status != "0"),
        told,
    );
    Ok(())
}

/// Very many calls at once, while others want to be served, too.
async fn many_streams(arena: &Arena, session: &Session, evidence: &mut Evidence) -> anyhow::Result<()> {
    const MANY: usize = 5000;
    let spec = within(arena.code(Language::Shell, "sleep 30"), 60);
    let request = StartExecutionRequest {
        session_id: session.session_id.clone(),
        spec: Some(spec),
        ..Default::default()
    };
    let started = arena.sessions()?.start_execution(timed(request)).await?.into_inner().execution;
    let execution_id = started.map(|execution| execution.execution_id).unwrap_or_default();
    let client = arena.sessions()?;
    let waits = join_all((0..MANY).map(|_| {
        let mut client = client.clone();
        let request = WaitExecutionRequest { execution_id: execution_id.clone(), wait_ms: 1500 };
        async move { client.wait_execution(timed(request)).await.map_err(|status| status.code()) }
    }));
    let other = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        arena.door()?.send("GET /api/v1/health", &[], "").await
    };
    let (answers, other) = tokio::join!(waits, other);
    let answered = answers.iter().filter(|answer| answer.is_ok()).count();
    let odd = answers.iter().filter_map(|answer| answer.as_ref().err()).find(|code| {
        ![Code::ResourceExhausted, Code::DeadlineExceeded, Code::Unavailable, Code::Cancelled].contains(*code)
    });
    let told = format!("{answered} answered, {} refused, {odd:?}", MANY - answered);
    evidence.client(format!("{MANY} streams at once"), odd.is_none(), told);
    let told = other.as_ref().map_or_else(|error| error.to_string(), |reply| reply.status.to_string());
    evidence.client("somebody else meanwhile", other.is_ok_and(|reply| reply.status == 200), told);
    let request = sandmesh_proto::session::CancelExecutionRequest { execution_id };
    arena.sessions()?.cancel_execution(timed(request)).await?;
    Ok(())
}

/// A reader that takes nothing holds up nobody but itself.
async fn slow_reader(arena: &Arena, session: &Session, evidence: &mut Evidence) -> anyhow::Result<()> {
    let spec = within(arena.code(Language::Shell, "yes slow | head -c 200000000; exit 9"), 60);
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let link = arena.own_link()?;
        let key = crate::attack::arena::Key::new(arena.target.api_key.as_ref().map(|key| key.expose()))?;
        let service = tonic::service::interceptor::InterceptedService::new(link, key);
        let mut client = sandmesh_proto::session::session_service_client::SessionServiceClient::new(service);
        let request = ExecuteRequest {
            session_id: session.session_id.clone(),
            spec: Some(spec.clone()),
            ..Default::default()
        };
        let mut stream = client.execute(request).await?.into_inner();
        let first = stream.message().await?;
        stalled.push((stream, first));
    }
    let beside = arena.run(session, arena.code(Language::Shell, "echo beside")).await?;
    evidence.client("a run beside readers that stall", beside.stdout == b"beside\n", beside.ending());
    for (_, first) in &stalled {
        use sandmesh_proto::session::execute_response::Event;
        let Some(Some(Event::Accepted(accepted))) = first.as_ref().map(|first| first.event.clone()) else {
            continue;
        };
        let request = WaitExecutionRequest { execution_id: accepted.execution_id, wait_ms: 30_000 };
        let record = arena
            .sessions()?
            .wait_execution(timed(request))
            .await?
            .into_inner()
            .execution
            .unwrap_or_default();
        let held = record.exit_code == Some(9);
        evidence.client(
            "a run that nobody reads",
            held,
            format!("{:?}, exit code {:?}", record.state(), record.exit_code),
        );
    }
    Ok(())
}

/// Connections that begin a request and never end it.
async fn idle_connections(arena: &Arena, evidence: &mut Evidence) -> anyhow::Result<()> {
    let door = arena.door()?;
    let mut idle = Vec::new();
    for _ in 0..400 {
        let mut stream = door.connect().await?;
        stream.write_all(b"POST /api/v1/sessions HTTP/1.1\r\nContent-Le").await?;
        idle.push(stream);
    }
    let answer = timeout(Duration::from_secs(10), door.send("GET /api/v1/health", &[], "")).await;
    let told = format!("{:?}", answer.as_ref().map(|reply| reply.as_ref().map(|reply| reply.status).ok()));
    evidence.client(
        "health beside 400 half requests",
        matches!(answer, Ok(Ok(reply)) if reply.status == 200),
        told,
    );
    Ok(())
}
