//! The role against roles and executors of the test's own, over real gRPC.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, extract::Request as HttpRequest, routing::post};
use sandmesh_mesh::{HumanDuration, Link, Mesh, grpc_router};
use sandmesh_proto::{
    agent::{Sandbox, SandboxSpec, sandbox::State},
    executor::{GetExecutorRequest, GetExecutorResponse, ResourceUsage},
    health::{
        self, CheckHealthRequest, CheckHealthResponse, CheckRoleRequest, CheckRoleResponse,
        WatchHealthRequest, check_health_response,
        health_probe_service_client::HealthProbeServiceClient,
        role_health_service_server::{RoleHealthService, RoleHealthServiceServer},
        watch_health_response::Subject,
    },
    scheduler::{WatchSandboxesRequest, WatchSandboxesResponse},
    session::{
        GetStatisticsRequest, GetStatisticsResponse, ReportSandboxLostRequest, ReportSandboxLostResponse,
        session_event_service_server::{SessionEventService, SessionEventServiceServer},
    },
};
use tokio::{net::UnixListener, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, server::Grpc as Codec, service::Routes};
use tonic_prost::ProstCodec;

use super::*;

/// Long enough for a busy machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process whose roles answer with these probes; a role that is `hung` never does.
struct Roles {
    probes: Vec<Probe>,
    hung: &'static str,
    absent: &'static str,
}

#[tonic::async_trait]
impl RoleHealthService for Roles {
    async fn check_role(
        &self,
        request: Request<CheckRoleRequest>,
    ) -> Result<Response<CheckRoleResponse>, Status> {
        let role = request.into_inner().role;
        if role == self.hung {
            std::future::pending::<()>().await;
        }
        if role == self.absent {
            return Err(Status::unavailable("Connection refused"));
        }
        let probes = if role == "session" { self.probes.clone() } else { Vec::new() };
        Ok(Response::new(CheckRoleResponse { probes }))
    }
}

impl Roles {
    fn well() -> Self {
        Self { probes: Vec::new(), hung: "", absent: "" }
    }

    async fn check(self) -> CheckHealthResponse {
        let link = Link::local(grpc_router(Routes::new(RoleHealthServiceServer::new(self))));
        let health = Health::new(&all_to(&link), Duration::from_millis(200)).unwrap();
        let grpc = Grpc { health: Arc::new(health), board: Arc::default(), stopped: Tasks::new().token() };
        let service = HealthProbeServiceServer::new(grpc);
        let mut client = HealthProbeServiceClient::new(Link::local(grpc_router(Routes::new(service))));
        client.check_health(CheckHealthRequest {}).await.unwrap().into_inner()
    }
}

fn found<'a>(health: &'a CheckHealthResponse, name: &str) -> &'a Probe {
    health.probes.iter().find(|probe| probe.name == name).unwrap()
}

#[tokio::test]
async fn every_role_but_the_gateway_is_probed_with_what_it_tells_of_its_own() {
    let database = Probe { name: "database/session".to_owned(), healthy: true, ..Probe::default() };
    let health = Roles { probes: vec![database], ..Roles::well() }.check().await;
    assert_eq!(health.status(), check_health_response::Status::Healthy);
    let names: Vec<&str> = health.probes.iter().map(|probe| probe.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "database/session",
            "role/agent",
            "role/health-probe",
            "role/scheduler",
            "role/session",
            "role/state-sync",
            "role/template",
        ]
    );
    assert!(found(&health, "role/session").latency_us > 0);
    assert!(!health.version.is_empty() && health.measured_at.is_some());
}

#[tokio::test]
async fn a_role_that_hangs_is_told_within_the_timeout_and_delays_no_other() {
    let start = tokio::time::Instant::now();
    let health = Roles { hung: "state-sync", ..Roles::well() }.check().await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(health.status(), check_health_response::Status::Degraded);
    assert_eq!(found(&health, "role/state-sync").message, "no answer within 200ms");
    assert!(found(&health, "role/session").healthy);
}

#[tokio::test]
async fn a_role_that_cannot_be_reached_is_told_with_the_reason() {
    let health = Roles { absent: "session", ..Roles::well() }.check().await;
    assert_eq!(health.status(), check_health_response::Status::Unhealthy);
    assert!(found(&health, "role/session").message.contains("connection refused"));
}

#[tokio::test]
async fn of_several_processes_of_a_role_the_one_that_is_away_is_told_and_the_role_is_well() {
    let here = Link::local(grpc_router(Routes::new(RoleHealthServiceServer::new(Roles::well()))));
    let away = Link::dial("unix:/nowhere/session.sock").unwrap();
    let mesh =
        RoleName::ALL.into_iter().fold(Mesh::builder("/nowhere"), |mesh, role| mesh.link(role, here.clone()));
    let mesh = mesh.peers(RoleName::Session, away).build();
    let report = Health::new(&mesh, Duration::from_millis(500)).unwrap().check().await;
    let of_role: Vec<_> = report.probes.iter().filter(|probe| probe.name.contains("session")).collect();
    let told: Vec<_> = of_role.iter().map(|probe| (probe.name.as_str(), probe.healthy)).collect();
    assert_eq!(
        told,
        [
            ("role/session", true),
            ("role/session at local", true),
            ("role/session at unix:/nowhere/session.sock", false)
        ]
    );
    assert_eq!(of_role[0].message, "1 of 2 processes answer");
    assert_eq!(report.overall, probe::Overall::Degraded);
}

#[tokio::test]
async fn a_database_that_is_down_makes_the_whole_unhealthy() {
    let message = "no such table".to_owned();
    let database = Probe { name: "database/session".to_owned(), message, ..Probe::default() };
    let health = Roles { probes: vec![database], ..Roles::well() }.check().await;
    assert_eq!(health.status(), check_health_response::Status::Unhealthy);
    assert_eq!(found(&health, "database/session").message, "no such table");
}

#[tokio::test]
async fn a_role_without_a_link_to_the_session_role_is_not_made() {
    let error = create(&Config::default(), &Mesh::builder("/nowhere").build()).await.unwrap_err();
    assert!(error.to_string().contains("mesh.links."), "{error}");
}

type Watch = mpsc::Sender<Result<WatchSandboxesResponse, Status>>;

/// The sandboxes role at work, between a scheduler and a session role of the test's own.
struct Bench {
    sandboxes: Arc<Sandboxes>,
    board: Arc<Board>,
    watches: mpsc::UnboundedReceiver<Watch>,
    reports: mpsc::UnboundedReceiver<ReportSandboxLostRequest>,
    tasks: Tasks,
}

/// A session role that takes reports, after it has refused some with these.
struct Sessions {
    refusals: Mutex<VecDeque<Status>>,
    reports: mpsc::UnboundedSender<ReportSandboxLostRequest>,
}

#[tonic::async_trait]
impl SessionEventService for Sessions {
    async fn report_sandbox_lost(
        &self,
        request: Request<ReportSandboxLostRequest>,
    ) -> Result<Response<ReportSandboxLostResponse>, Status> {
        let refusal = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        if let Some(status) = refusal {
            return Err(status);
        }
        self.reports.send(request.into_inner()).unwrap();
        Ok(Response::new(ReportSandboxLostResponse { applied: true, recovering: false }))
    }

    async fn get_statistics(
        &self,
        _: Request<GetStatisticsRequest>,
    ) -> Result<Response<GetStatisticsResponse>, Status> {
        Err(Status::unimplemented("not asked by this role"))
    }
}

/// A scheduler that answers `WatchSandboxes` and nothing else; every watch is handed to the test.
fn scheduler(watches: mpsc::UnboundedSender<Watch>) -> Link {
    let watch = tower::service_fn(move |_: Request<WatchSandboxesRequest>| {
        let (sender, events) = mpsc::channel(16);
        watches.send(sender).unwrap();
        std::future::ready(Ok::<_, Status>(Response::new(ReceiverStream::new(events))))
    });
    let handler = move |request: HttpRequest| {
        let watch = watch.clone();
        async move { Codec::new(ProstCodec::default()).server_streaming(watch, request).await }
    };
    Link::local(Router::new().route("/sandmesh.scheduler.v1.SchedulerService/WatchSandboxes", post(handler)))
}

fn bench(refusals: impl IntoIterator<Item = Status>) -> Bench {
    let (watch_sender, watches) = mpsc::unbounded_channel();
    let (report_sender, reports) = mpsc::unbounded_channel();
    let refusals = Mutex::new(refusals.into_iter().collect());
    let sessions = SessionEventServiceServer::new(Sessions { refusals, reports: report_sender });
    let config = Config {
        sandbox_probe_interval: HumanDuration(Duration::from_millis(20)),
        sandbox_probe_timeout: HumanDuration(Duration::from_millis(500)),
        ..Config::default()
    };
    let sessions = Link::local(grpc_router(Routes::new(sessions)));
    let (board, mesh) = (Arc::new(Board::default()), Mesh::builder("/none").build());
    let sandboxes = Sandboxes::new(scheduler(watch_sender), sessions, &mesh, Arc::clone(&board), config);
    let (sandboxes, tasks) = (Arc::new(sandboxes), Tasks::new());
    Arc::clone(&sandboxes).start(&tasks);
    Bench { sandboxes, board, watches, reports, tasks }
}

impl Bench {
    async fn watch(&mut self) -> Watch {
        timeout(PATIENCE, self.watches.recv()).await.unwrap().unwrap()
    }

    async fn report(&mut self) -> ReportSandboxLostRequest {
        timeout(PATIENCE, self.reports.recv()).await.unwrap().unwrap()
    }

    async fn reports_nothing_for(&mut self, time: Duration) {
        let report = timeout(time, self.reports.recv()).await;
        assert!(report.is_err(), "{report:?}");
    }
}

fn sandbox(state: State, session_id: &str) -> Sandbox {
    Sandbox {
        sandbox_id: "sbx_1".to_owned(),
        spec: Some(SandboxSpec { session_id: session_id.to_owned(), ..SandboxSpec::default() }),
        state: state.into(),
        reason: if state == State::Dead { "out of memory".to_owned() } else { String::new() },
        ..Sandbox::default()
    }
}

async fn tell(watch: &Watch, sandbox: Sandbox) {
    watch.send(Ok(WatchSandboxesResponse { sandbox: Some(sandbox) })).await.unwrap();
}

#[tokio::test]
async fn a_dead_sandbox_of_a_session_is_reported_once() {
    let mut bench = bench([]);
    let watch = bench.watch().await;
    tell(&watch, sandbox(State::Running, "sess_1")).await;
    tell(&watch, sandbox(State::Dead, "sess_1")).await;
    tell(&watch, sandbox(State::Dead, "sess_1")).await;
    let expected = ReportSandboxLostRequest {
        session_id: "sess_1".to_owned(),
        sandbox_id: "sbx_1".to_owned(),
        reason: "out of memory".to_owned(),
        node_lost: false,
        node_id: sandbox(State::Dead, "sess_1").node_id,
    };
    assert_eq!(bench.report().await, expected);
    bench.reports_nothing_for(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn a_dead_warm_sandbox_and_a_deleted_one_are_nobodys_loss() {
    let mut bench = bench([]);
    let watch = bench.watch().await;
    tell(&watch, sandbox(State::Dead, "")).await;
    tell(&watch, sandbox(State::Deleted, "sess_1")).await;
    bench.reports_nothing_for(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn a_report_is_repeated_until_the_session_role_is_there() {
    let mut bench = bench([Status::unavailable("starting"), Status::deadline_exceeded("slow")]);
    let watch = bench.watch().await;
    tell(&watch, sandbox(State::Dead, "sess_1")).await;
    assert_eq!(bench.report().await.session_id, "sess_1");
}

#[tokio::test]
async fn a_report_about_a_forgotten_session_is_not_repeated() {
    let mut bench = bench([Status::not_found("gone")]);
    let watch = bench.watch().await;
    tell(&watch, sandbox(State::Dead, "sess_1")).await;
    bench.reports_nothing_for(Duration::from_millis(500)).await;
}

#[tokio::test]
async fn a_watch_that_breaks_reports_nothing_and_is_opened_again() {
    let mut bench = bench([]);
    let watch = bench.watch().await;
    tell(&watch, sandbox(State::Running, "sess_1")).await;
    watch.send(Err(Status::unavailable("the scheduler stopped"))).await.unwrap();
    let watch = bench.watch().await;
    bench.reports_nothing_for(Duration::from_millis(100)).await;
    assert!(bench.sandboxes.probe().healthy);
    tell(&watch, sandbox(State::Dead, "sess_1")).await;
    assert_eq!(bench.report().await.session_id, "sess_1");
}

#[tokio::test]
async fn the_probe_tells_why_the_watch_is_not_open() {
    let tasks = Tasks::new();
    let nowhere = || Link::dial("unix:/nonexistent/scheduler.sock").unwrap();
    let (mesh, config) = (Mesh::builder("/none").build(), Config::default());
    let sandboxes = Arc::new(Sandboxes::new(nowhere(), nowhere(), &mesh, Arc::default(), config));
    assert_eq!(sandboxes.probe().message, "not opened yet");
    Arc::clone(&sandboxes).start(&tasks);
    timeout(PATIENCE, async {
        while sandboxes.probe().message == "not opened yet" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(!sandboxes.probe().healthy);
    assert!(!sandboxes.probe().message.is_empty());
    assert_eq!(tasks.shut_down(PATIENCE).await, 0);
}

/// An executor on a socket of its own, until its tasks are shut down.
fn executor(socket: &Path) -> Tasks {
    let tasks = Tasks::new();
    let answer = tower::service_fn(|_: Request<GetExecutorRequest>| {
        let usage = ResourceUsage { memory_bytes: 7, ..ResourceUsage::default() };
        let said = GetExecutorResponse { uptime_ms: 5, running: 2, usage: Some(usage), ..Default::default() };
        std::future::ready(Ok::<_, Status>(Response::new(said)))
    });
    let handler = move |request: HttpRequest| async move {
        Codec::new(ProstCodec::default()).unary(answer, request).await
    };
    let router = Router::new().route("/sandmesh.executor.v1.ExecutorService/GetExecutor", post(handler));
    let listener = UnixListener::bind(socket).unwrap();
    let stop = tasks.token();
    tasks.spawn("executor", async move {
        let stopped = stop.clone().cancelled_owned();
        let served = axum::serve(listener, router).with_graceful_shutdown(stopped).into_future();
        stop.run_until_cancelled(served).await;
    });
    tasks
}

#[tokio::test]
async fn an_executor_that_stops_answering_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("executor.sock");
    let running = executor(&socket);
    let mut bench = bench([]);
    let watch = bench.watch().await;
    let endpoint = format!("unix:{}", socket.display());
    tell(&watch, Sandbox { endpoint, ..sandbox(State::Running, "sess_1") }).await;
    bench.reports_nothing_for(Duration::from_millis(300)).await;
    running.shut_down(PATIENCE).await;
    let report = bench.report().await;
    assert_eq!((report.session_id.as_str(), report.reason.as_str()), ("sess_1", "executor does not answer"));
    bench.reports_nothing_for(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn an_executor_that_cannot_be_reached_from_here_is_not_reported() {
    let mut bench = bench([]);
    let watch = bench.watch().await;
    let endpoint = "unix:/run/of/another/machine/executor.sock".to_owned();
    tell(&watch, Sandbox { endpoint, ..sandbox(State::Running, "sess_1") }).await;
    bench.reports_nothing_for(Duration::from_millis(500)).await;
}

#[tokio::test]
async fn the_tasks_end_when_told_to() {
    let mut bench = bench([]);
    let _watch = bench.watch().await;
    assert_eq!(bench.tasks.shut_down(PATIENCE).await, 0);
}

impl Bench {
    /// Waits until what is known of the sandbox is as it should be.
    async fn known(&self, holds: impl Fn(&health::SandboxHealth) -> bool) -> health::SandboxHealth {
        let search = async {
            loop {
                let found = self.board.list_sandboxes(&["sbx_1".to_owned()].into(), "", 1).0.pop();
                match found.filter(|health| holds(health)) {
                    Some(health) => return health,
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        timeout(PATIENCE, search).await.unwrap()
    }
}

#[tokio::test]
async fn a_sandbox_is_known_with_what_its_executor_says_until_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("executor.sock");
    let running = executor(&socket);
    let mut bench = bench([]);
    let watch = bench.watch().await;
    let endpoint = format!("unix:{}", socket.display());
    let mut told = Sandbox { endpoint, node_id: "n".to_owned(), ..sandbox(State::Running, "sess_1") };
    told.spec.as_mut().unwrap().restarts = 3;
    tell(&watch, told.clone()).await;
    let health = bench.known(|health| health.measured_at.is_some()).await;
    assert_eq!(health.condition(), health::Condition::Healthy);
    assert_eq!((health.session_id.as_str(), health.node_id.as_str()), ("sess_1", "n"));
    assert_eq!((health.uptime_ms, health.running, health.restarts), (5, 2, 3));
    assert!(health.usage.unwrap().memory_bytes == 7 && health.latency_us > 0);

    running.shut_down(PATIENCE).await;
    let health = bench.known(|health| health.condition() == health::Condition::Unhealthy).await;
    assert_eq!(health.reason, "executor does not answer");
    assert!(health.failures >= 3);
    assert_eq!(bench.report().await.session_id, "sess_1");
    tell(&watch, Sandbox { state: State::Deleted.into(), ..told }).await;
    let gone = async {
        while !bench.board.list_sandboxes(&Default::default(), "", 1).0.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test]
async fn who_follows_health_sees_what_is_known_and_what_comes() {
    let mut bench = bench([]);
    let watch = bench.watch().await;
    tell(&watch, sandbox(State::Running, "sess_1")).await;
    bench.known(|_| true).await;
    let health = Health::new(&all_to(&Link::local(Router::new())), Duration::from_millis(200)).unwrap();
    let (health, board, stopped) = (Arc::new(health), Arc::clone(&bench.board), bench.tasks.token());
    let service = HealthProbeServiceServer::new(Grpc { health, board, stopped });
    let mut client = HealthProbeServiceClient::new(Link::local(grpc_router(Routes::new(service))));
    let mut events = client.watch_health(WatchHealthRequest {}).await.unwrap().into_inner();
    tell(&watch, sandbox(State::Dead, "sess_1")).await;
    let mut conditions = Vec::new();
    while conditions.last() != Some(&health::Condition::Unhealthy) {
        let event = timeout(PATIENCE, events.message()).await.unwrap().unwrap().unwrap();
        let Some(Subject::Sandbox(health)) = event.subject else { continue };
        conditions.push(health.condition());
    }
    assert_eq!(conditions[0], health::Condition::Healthy);
    bench.tasks.shut_down(PATIENCE).await;
    assert!(events.message().await.unwrap().is_none(), "it ends when the process stops");
}

fn all_to(link: &Link) -> Mesh {
    let links = RoleName::ALL.into_iter();
    links.fold(Mesh::builder("/nowhere"), |mesh, role| mesh.link(role, link.clone())).build()
}

#[tokio::test]
async fn a_sandbox_of_a_lost_node_is_reported_as_that() {
    let mut bench = bench([]);
    let watch = bench.watch().await;
    tell(&watch, Sandbox { node_lost: true, ..sandbox(State::Dead, "sess_1") }).await;
    assert!(bench.report().await.node_lost);
}
