//! The role through its own front door, with its peers played at the wire.

/// Makes three tests of each body, one for each kind of database: `sqlite::NAME`, `mariadb::NAME` and
/// `postgres::NAME`.
macro_rules! on_every_database {
    ($($body:ident),+ $(,)?) => {
        on_every_database!(in sqlite: Sqlite, $($body),+);
        on_every_database!(in mariadb: MariaDb, $($body),+);
        on_every_database!(in postgres: Postgres, $($body),+);
    };
    (in $module:ident: $kind:ident, $($body:ident),+) => {
        mod $module {
            $(#[tokio::test]
            async fn $body() {
                let kind = sandmesh_mesh::database::testing::Kind::$kind;
                $crate::tests::ON.scope(kind, super::$body()).await;
            })+
        }
    };
}

mod database;
mod dependencies;
mod executions;
mod fakes;
mod input;
mod leases;
mod lists;
mod loss;
mod recovery;
mod sessions;
mod time;

use std::{sync::Arc, time::Duration};

use chrono::DateTime;
use sandmesh_mesh::{
    HumanDuration, Link, ManualClock, Mesh, RoleName, Tasks,
    database::testing::{Kind, TestDatabase},
    grpc_router,
};
use sandmesh_proto::{
    executor::Language,
    session::{
        self as pb, dependency_service_client::DependencyServiceClient,
        dependency_service_server::DependencyServiceServer, lease_service_client::LeaseServiceClient,
        lease_service_server::LeaseServiceServer, session_event_service_client::SessionEventServiceClient,
        session_event_service_server::SessionEventServiceServer,
        session_service_client::SessionServiceClient, session_service_server::SessionServiceServer,
    },
};
use tempfile::TempDir;
use tonic::{Code, Status, service::RoutesBuilder};

use self::fakes::{FakeExecutor, World};
use crate::{Config, Grpc, service::Service};

/// One session role among played peers.
struct Bench {
    world: World,
    clock: ManualClock,
    config: Config,
    directory: TempDir,
    database: TestDatabase,
    service: Arc<Service>,
    tasks: Tasks,
    client: SessionServiceClient<Link>,
    events: SessionEventServiceClient<Link>,
    dependencies: DependencyServiceClient<Link>,
    leases: LeaseServiceClient<Link>,
}

tokio::task_local! {
    /// The kind of database that a test runs on; SQLite where it does not say.
    static ON: Kind;
}

/// Without recovery: what a test loses stays lost, unless it is about that.
fn config() -> Config {
    Config { sweep_interval: HumanDuration(Duration::from_millis(20)), max_recoveries: 0, ..patient() }
}

/// The defaults, with time for a database server on a busy machine.
pub(crate) fn patient() -> Config {
    let patience = HumanDuration(Duration::from_secs(30));
    Config { database_connect_timeout: patience, database_statement_timeout: patience, ..Config::default() }
}

impl Bench {
    async fn new() -> Self {
        Self::with(config()).await
    }

    async fn with(config: Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let world = World::new(directory.path().to_owned());
        let clock = ManualClock::new(DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        let database = TestDatabase::create(ON.try_with(|kind| *kind).unwrap_or(Kind::Sqlite)).await;
        let config = Config { database_url: database.url(), ..config };
        Self::start(Stopped { world, clock, config, directory, database }).await
    }

    async fn start(stopped: Stopped) -> Self {
        let Stopped { world, clock, config, directory, database } = stopped;
        let mesh = Mesh::builder(directory.path())
            .clock(Arc::new(clock.clone()))
            .link(RoleName::Scheduler, world.scheduler())
            .link(RoleName::Template, world.template())
            .build();
        let service = crate::open(&config, &mesh).await.unwrap();
        let grpc = Grpc(Arc::clone(&service));
        let mut routes = RoutesBuilder::default();
        routes.add_service(SessionServiceServer::new(grpc.clone()));
        routes.add_service(DependencyServiceServer::new(grpc.clone()));
        routes.add_service(LeaseServiceServer::new(grpc.clone()));
        routes.add_service(SessionEventServiceServer::new(grpc));
        let link = Link::local(grpc_router(routes.routes()));
        let tasks = mesh.tasks().clone();
        tasks.spawn("acknowledge leftovers", Arc::clone(&service).acknowledge_leftovers());
        tasks.spawn("sweep sessions", Arc::clone(&service).sweep_forever());
        let client = SessionServiceClient::new(link.clone()).max_decoding_message_size(64 << 20);
        let events = SessionEventServiceClient::new(link.clone());
        let (dependencies, leases) =
            (DependencyServiceClient::new(link.clone()), LeaseServiceClient::new(link));
        Self {
            world,
            clock,
            config,
            directory,
            database,
            service,
            tasks,
            client,
            events,
            dependencies,
            leases,
        }
    }

    /// Stops the role in the middle of whatever it does, and starts another on the same data.
    async fn restart(self) -> Self {
        self.stop().await.start_again().await
    }

    async fn stop(self) -> Stopped {
        assert_eq!(self.tasks.shut_down(Duration::from_secs(5)).await, 0, "every task ends when told to");
        let Self { world, clock, config, directory, database, .. } = self;
        Stopped { world, clock, config, directory, database }
    }

    async fn session(&mut self) -> pb::Session {
        let request = pb::CreateSessionRequest { template_id: "python-basic".into(), ..Default::default() };
        self.create(request).await.unwrap()
    }

    async fn create(&mut self, request: pb::CreateSessionRequest) -> Result<pb::Session, Status> {
        Ok(self.client.create_session(request).await?.into_inner().session.unwrap())
    }

    async fn get(&mut self, id: &str) -> Result<pb::Session, Status> {
        let request = pb::GetSessionRequest { session_id: id.to_owned() };
        Ok(self.client.get_session(request).await?.into_inner().session.unwrap())
    }

    async fn start_in(&mut self, session: &pb::Session, code: &str) -> pb::Execution {
        self.try_start(start(&session.session_id, code)).await.unwrap()
    }

    async fn try_start(&mut self, request: pb::StartExecutionRequest) -> Result<pb::Execution, Status> {
        Ok(self.client.start_execution(request).await?.into_inner().execution.unwrap())
    }

    async fn execution(&mut self, id: &str) -> Result<pb::Execution, Status> {
        let request = pb::GetExecutionRequest { execution_id: id.to_owned() };
        Ok(self.client.get_execution(request).await?.into_inner().execution.unwrap())
    }

    /// Waits for the end of an execution; fails the test when it takes far too long.
    async fn ended(&mut self, execution: &pb::Execution) -> pb::Execution {
        let request =
            pb::WaitExecutionRequest { execution_id: execution.execution_id.clone(), wait_ms: 10_000 };
        let execution = self.client.wait_execution(request).await.unwrap().into_inner().execution.unwrap();
        assert!(execution.completed_at.is_some(), "{} does not end", execution.execution_id);
        execution
    }

    async fn run(&mut self, session: &pb::Session, code: &str) -> pb::Execution {
        let execution = self.start_in(session, code).await;
        self.ended(&execution).await
    }

    /// Waits until an execution runs.
    async fn running(&mut self, execution: &pb::Execution) {
        loop {
            match self.execution(&execution.execution_id).await.unwrap().state() {
                pb::execution::State::Running => return,
                pb::execution::State::Pending => tokio::time::sleep(Duration::from_millis(5)).await,
                state => panic!("{} ended as {state:?}", execution.execution_id),
            }
        }
    }

    /// Waits until a session is in a state.
    async fn becomes(&mut self, id: &str, state: pb::session::State) -> pb::Session {
        for _ in 0..2000 {
            let session = self.get(id).await.unwrap();
            if session.state() == state {
                return session;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("session {id} does not become {state:?}: {:?}", self.get(id).await);
    }

    fn executor(&self, session: &pb::Session) -> FakeExecutor {
        self.world.executor(&session.sandbox_id)
    }
}

/// A role that was stopped.
struct Stopped {
    world: World,
    clock: ManualClock,
    config: Config,
    directory: TempDir,
    database: TestDatabase,
}

impl Stopped {
    async fn start_again(self) -> Bench {
        Bench::start(self).await
    }
}

fn spec(code: &str) -> pb::ExecutionSpec {
    pb::ExecutionSpec { code: code.to_owned(), language: Language::Python.into(), ..Default::default() }
}

fn start(session_id: &str, code: &str) -> pb::StartExecutionRequest {
    pb::StartExecutionRequest {
        session_id: session_id.to_owned(),
        spec: Some(spec(code)),
        ..Default::default()
    }
}

fn new_session() -> pb::CreateSessionRequest {
    pb::CreateSessionRequest { template_id: "python-basic".into(), ..Default::default() }
}

/// Checks code and reason of a refusal.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, reason: &str) -> Status {
    let status = result.unwrap_err();
    assert_eq!(
        (status.code(), sandmesh_mesh::reason_of(&status).as_deref()),
        (code, Some(reason)),
        "{status}"
    );
    status
}

/// Waits until something is true; fails the test when it takes far too long.
async fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if test() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not within ten seconds: {what}");
}
