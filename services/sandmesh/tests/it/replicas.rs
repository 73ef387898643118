//! Two processes of the session role on one database server and one object store: either does what the
//! other was asked for, and one of them may die.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use sandmesh_mesh::{Link, database::testing::Kind};
use sandmesh_proto::{
    executor::Language,
    session::{
        AttachExecutionRequest, CancelExecutionRequest, CreateSessionRequest, Execution, ExecutionSpec,
        GetSessionRequest, ListExecutionsRequest, Session, StartExecutionRequest, TerminateSessionRequest,
        UploadEnd, UploadFileRequest, UploadStart, WaitExecutionRequest, attach_execution_response::Event,
        execution, file_service_client::FileServiceClient, session,
        session_service_client::SessionServiceClient, upload_file_request::Frame,
    },
};
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{ON, Server, Wiring, eventually, process::signal};

macro_rules! on_every_server {
    ($($body:ident),+ $(,)?) => {
        on_every_server!(in mariadb: MariaDb, $($body),+);
        on_every_server!(in postgres: Postgres, $($body),+);
    };
    (in $module:ident: $kind:ident, $($body:ident),+) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn $body() {
                super::ON.scope(super::Kind::$kind, super::$body()).await;
            })+
        }
    };
}

on_every_server!(
    killed_replica_loses_nothing_and_nothing_runs_twice,
    replica_does_what_the_other_was_asked_for,
    session_whose_replica_died_in_its_creation_is_created,
    replica_that_was_not_heard_of_for_long_ends_and_runs_nothing_twice,
    gateway_goes_on_with_the_replica_that_is_left,
);

/// A mesh with two session roles, and a client of each.
struct Two {
    server: Server,
    clients: [Replica; 2],
    addresses: [String; 2],
    _objects: TempDir,
}

#[derive(Clone)]
struct Replica {
    sessions: SessionServiceClient<Link>,
    files: FileServiceClient<Link>,
}

impl Two {
    async fn start() -> Self {
        let objects = tempfile::tempdir().unwrap();
        let setting = objects.path().display().to_string();
        let mut server = Wiring::Split.start_with(&[("SANDMESH_SESSION__OBJECT_DIR", &setting)]).await;
        let (second, first) = server.start_replica("session");
        let client = |address: &str| {
            let link = Link::dial(address).unwrap();
            Replica { sessions: SessionServiceClient::new(link.clone()), files: FileServiceClient::new(link) }
        };
        let clients = [client(&first), client(&second)];
        let two = Self { server, clients, addresses: [first, second], _objects: objects };
        eventually("the second answers", Duration::from_secs(30), async || {
            let request = GetSessionRequest { session_id: "none".into() };
            let answer = two.clients[1].sessions.clone().get_session(request).await;
            answer.is_err_and(|status| status.code() == tonic::Code::NotFound)
        })
        .await;
        two
    }
}

impl Two {
    /// Has the gateway go to either.
    async fn link_gateway_to_both(&mut self) {
        let [first, second] = &self.addresses;
        let gateway = self.server.process("gateway");
        let link = gateway.launch.args.iter_mut().find(|arg| arg.starts_with("session=")).unwrap();
        *link = format!("session={first},{second}");
        gateway.kill();
        self.server.start_again().await;
    }
}

impl Replica {
    async fn session(&self, id: &str) -> Session {
        let request = CreateSessionRequest {
            template_id: "python-basic".into(),
            session_id: id.into(),
            ..Default::default()
        };
        self.sessions.clone().create_session(request).await.unwrap();
        self.becomes(id, session::State::Running).await
    }

    async fn becomes(&self, id: &str, state: session::State) -> Session {
        let mut found = Session::default();
        eventually("the session is where it should be", Duration::from_secs(30), async || {
            let request = GetSessionRequest { session_id: id.into() };
            if let Ok(answer) = self.sessions.clone().get_session(request).await {
                found = answer.into_inner().session.unwrap();
            }
            found.state() == state
        })
        .await;
        found
    }

    async fn start(&self, session: &str, id: &str, code: &str) {
        let spec = ExecutionSpec {
            code: code.into(),
            language: Language::Shell.into(),
            timeout_seconds: Some(120),
            ..Default::default()
        };
        let request = StartExecutionRequest {
            session_id: session.into(),
            execution_id: id.into(),
            spec: Some(spec),
            ..Default::default()
        };
        self.sessions.clone().start_execution(request).await.unwrap();
    }

    async fn ended(&self, id: &str) -> Execution {
        let request = WaitExecutionRequest { execution_id: id.into(), wait_ms: 60_000 };
        let execution =
            self.sessions.clone().wait_execution(request).await.unwrap().into_inner().execution.unwrap();
        assert!(execution.completed_at.is_some(), "{execution:?}");
        execution
    }

    async fn upload(&self, session: &str, path: &str, data: &'static [u8]) {
        let start = UploadStart { session_id: session.into(), path: path.into(), ..Default::default() };
        let frames = [Frame::Start(start), Frame::Data(data.into()), Frame::End(UploadEnd {})];
        let frames = frames.map(|frame| UploadFileRequest { frame: Some(frame) });
        self.files.clone().upload_file(tokio_stream::iter(frames)).await.unwrap();
    }

    async fn run(&self, session: &str, id: &str, code: &str) -> String {
        self.start(session, id, code).await;
        String::from_utf8(self.ended(id).await.stdout.to_vec()).unwrap()
    }
}

async fn killed_replica_loses_nothing_and_nothing_runs_twice() {
    let mut two = Two::start().await;
    let [first, second] = two.clients.clone();
    first.session("a").await;
    second.session("b").await;
    let code = |n: usize| {
        let seconds = ["0", "0.3", "1", "2.5", "4"][n % 5];
        format!(
            "echo start {n} >> runs; echo first {n}; sleep {seconds}; echo second {n}; echo end {n} >> runs"
        )
    };
    for n in 0..20 {
        let asked = if n % 2 == 0 { &first } else { &second };
        asked.start(["a", "b"][n / 10], &format!("e{n}"), &code(n)).await;
    }
    two.server.process("session").kill();
    for n in 0..20 {
        let run = second.ended(&format!("e{n}")).await;
        assert_eq!(run.state(), execution::State::Completed, "{run:?}");
        assert_eq!(run.stdout, format!("first {n}\nsecond {n}\n").as_bytes());
    }
    for (half, session) in ["a", "b"].into_iter().enumerate() {
        let mut expected: Vec<String> =
            (half * 10..half * 10 + 10).flat_map(|n| [format!("start {n}"), format!("end {n}")]).collect();
        expected.sort();
        let ran = second.run(session, &format!("ran-{session}"), "LC_ALL=C sort runs").await;
        assert_eq!(ran.lines().collect::<Vec<_>>(), expected, "each ran once");
        let request = ListExecutionsRequest { session_id: session.into(), ..Default::default() };
        let listed = second.sessions.clone().list_executions(request).await.unwrap().into_inner();
        assert_eq!(listed.total, 11, "none is lost, none was made up");
    }
    two.server.start_again().await;
    assert_eq!(first.run("a", "again", "echo on").await, "on\n");
    for session in ["a", "b"] {
        let request = TerminateSessionRequest { session_id: session.into() };
        first.sessions.clone().terminate_session(request).await.unwrap();
    }
    two.server.expect_nothing_left(Duration::from_secs(15)).await;
}

async fn replica_does_what_the_other_was_asked_for() {
    let two = Two::start().await;
    let [first, second] = two.clients.clone();
    first.session("a").await;
    first.start("a", "counting", "for i in $(seq 20); do echo line $i; sleep 0.1; done").await;
    let request = AttachExecutionRequest { execution_id: "counting".into(), ..Default::default() };
    let mut stream = second.sessions.clone().attach_execution(request).await.unwrap().into_inner();
    let (mut output, mut result) = (Vec::new(), None);
    while let Some(event) = stream.message().await.unwrap() {
        match event.event.unwrap() {
            Event::Stdout(chunk) => output.extend_from_slice(&chunk.data),
            Event::Result(execution) => result = Some(execution),
            _ => {}
        }
    }
    let expected: String = (1..=20).map(|i| format!("line {i}\n")).collect();
    assert_eq!(String::from_utf8(output).unwrap(), expected);
    assert_eq!(result.unwrap().state(), execution::State::Completed);
    second.upload("a", "from-afar", b"there").await;
    assert_eq!(second.run("a", "read", "cat from-afar").await, "there");
    first.start("a", "long", "echo begun; sleep 60").await;
    let request = CancelExecutionRequest { execution_id: "long".into() };
    second.sessions.clone().cancel_execution(request).await.unwrap();
    for replica in [&first, &second] {
        assert_eq!(replica.ended("long").await.state(), execution::State::Cancelled);
    }
    let request = TerminateSessionRequest { session_id: "a".into() };
    second.sessions.clone().terminate_session(request).await.unwrap();
    assert_eq!(first.becomes("a", session::State::Terminated).await.state(), session::State::Terminated);
}

async fn session_whose_replica_died_in_its_creation_is_created() {
    let mut two = Two::start().await;
    let [first, second] = two.clients.clone();
    let request = CreateSessionRequest {
        template_id: "python-basic".into(),
        session_id: "cut".into(),
        ..Default::default()
    };
    let mut asked = first.sessions.clone();
    let creating = tokio::spawn(async move { asked.create_session(request).await });
    eventually("it is accepted", Duration::from_secs(10), async || {
        let request = GetSessionRequest { session_id: "cut".into() };
        second.sessions.clone().get_session(request).await.is_ok()
    })
    .await;
    two.server.process("session").kill();
    let _ = creating.await;
    second.becomes("cut", session::State::Running).await;
    assert_eq!(second.run("cut", "e", "echo here").await, "here\n");
    assert_eq!(two.server.executors().len(), 1, "one sandbox was made");
}

async fn replica_that_was_not_heard_of_for_long_ends_and_runs_nothing_twice() {
    let mut two = Two::start().await;
    let [first, second] = two.clients.clone();
    first.session("a").await;
    for n in 0..5 {
        let code = format!("echo start {n} >> runs; sleep {n}; echo out {n}");
        first.start("a", &format!("e{n}"), &code).await;
    }
    let frozen = two.server.process("session").pid();
    signal(frozen, Signal::STOP);
    let stopped = Instant::now();
    for n in 0..5 {
        let run = second.ended(&format!("e{n}")).await;
        assert_eq!((run.state(), run.stdout), (execution::State::Completed, format!("out {n}\n").into()));
    }
    assert!(stopped.elapsed() < Duration::from_secs(15), "taken over after {:?}", stopped.elapsed());
    signal(frozen, Signal::CONT);
    let ended = two.server.process("session").wait(Duration::from_secs(20)).expect("it ends by itself");
    assert_eq!(ended.code(), Some(75), "so that it is started again");
    let ran = second.run("a", "ran", "sort runs").await;
    assert_eq!(ran.lines().count(), 5, "{ran}");
    two.server.start_again().await;
    assert_eq!(first.run("a", "again", "echo on").await, "on\n");
}

async fn gateway_goes_on_with_the_replica_that_is_left() {
    let mut two = Two::start().await;
    two.link_gateway_to_both().await;
    let (one, other) = (two.server.api.session().await, two.server.api.session().await);
    let code = "for i in $(seq 30); do echo line $i; sleep 0.1; done";
    let mut running = Vec::new();
    for session in [&one, &other] {
        running.push(two.server.api.start(session, json!({"language": "shell", "code": code})).await);
    }
    // What reads is asked of the other then, also where it was under way.
    let api = two.server.api.clone();
    let reading = tokio::spawn(async move {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            futures::future::join_all((0..4).map(async |_| api.get("/sessions").await.is(200))).await;
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    two.server.process("session").kill();
    reading.await.unwrap();
    let expected: String = (1..=30).map(|line| format!("line {line}\n")).collect();
    for execution in &running {
        let run = two.server.api.ended(execution).await;
        assert_eq!((&run["status"], &run["stdout"]), (&json!("completed"), &json!(expected)), "{run}");
    }
    for session in [&one, &other] {
        let run = two.server.api.run(session, "shell", "echo on").await;
        assert_eq!(run["stdout"], "on\n", "{run}");
    }
}
