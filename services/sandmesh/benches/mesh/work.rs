//! What is done for one sample: start a process or make a call, and check that the result is right.

use std::{
    ffi::CString,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use sandmesh_proto::{
    executor::{self, ExecutionStart, Language, execute_request, execute_response, execution_exited::Status},
    session::{
        ExecuteRequest, Execution, ExecutionSpec, GetSessionRequest, StartExecutionRequest,
        WaitExecutionRequest, execute_response::Event, execution::State,
    },
};
use serde_json::json;
use tonic_health::pb::HealthCheckRequest;

use crate::{
    baseline::{self, Jail, Program},
    containers::Containers,
    kernel::Spent,
    pools,
    settings::Settings,
    stack::{Session, Stack},
};

/// The time limit of each execution.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Makes each execution's id.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// `ExecutorService` on the sandbox's own unix socket, acknowledged afterwards.
    Executor,
    /// `SessionService` on the mesh's unix socket.
    SessionRole,
    /// `SessionService` through the gateway, on TCP.
    Gateway,
    /// REST through the gateway, on TCP.
    Rest,
}

/// Which server does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    /// The server as it is configured by default.
    Default,
    /// The one that starts an interpreter for each execution.
    Fresh,
    /// The one that logs how long its writers wait.
    Logged,
    /// The one whose sandboxes are containers of Docker.
    Docker,
    /// The one whose sandboxes are containers of containerd.
    Containerd,
}

/// What is done.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    /// Start a process and wait for its end.
    Spawn(Program, Jail),
    /// Run code and wait for its result.
    Execute(On, Language, Door),
    /// Have an execution accepted, which makes it durable; its end is waited for without being timed.
    Accept,
    /// Run code through the gateway; what is timed is the writing of its record alone: the insert and the
    /// update, as those who write them wait for them.
    Record,
    /// Create a session and wait until it runs.
    CreateSession,
    /// Create a session, run code in it and wait for the result.
    FirstResult(On),
    /// Run a trivial command in a container, with Docker's own client.
    DockerRun,
    /// Create a session that gets a warm sandbox; that there is one is waited for without being timed.
    ClaimSession,
    /// Create many sessions at once, of which some find a warm sandbox, and wait until all run: the slowest of
    /// a hundred but one.
    Burst,
    /// A unary call that does nothing, on a unix socket.
    Nothing,
    /// Read a session.
    GetSession(Door),
}

/// What work is done with.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) settings: Settings,
    pub(crate) warm: Stack,
    pub(crate) fresh: Option<Stack>,
    pub(crate) logged: Option<Stack>,
    pub(crate) containers: Containers,
}

/// What one piece of work took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    /// Time on the clock.
    pub(crate) wall: Duration,
    /// CPU time, where it is known of each alone.
    pub(crate) cpu: Option<Duration>,
}

impl Bench {
    /// The server that `on` names.
    ///
    /// # Errors
    /// When it was not started.
    pub(crate) fn stack(&self, on: On) -> anyhow::Result<&Stack> {
        match on {
            On::Default => Ok(&self.warm),
            On::Fresh => self.fresh.as_ref().context("no server without warm interpreters was started"),
            On::Logged => self.logged.as_ref().context("no server that logs what it writes was started"),
            On::Docker | On::Containerd => self.containers.stack(on),
        }
    }

    /// The CPU time of all servers until now.
    pub(crate) fn cpu(&self) -> Duration {
        let stacks = [Some(&self.warm), self.fresh.as_ref(), self.logged.as_ref()];
        let servers: Duration = stacks.into_iter().flatten().map(|stack| stack.server.group().cpu()).sum();
        servers + self.containers.cpu()
    }
}

impl Work {
    /// The server that it burdens; a process of its own burdens none.
    pub(crate) fn on(self) -> Option<On> {
        match self {
            Self::Spawn(..) | Self::DockerRun => None,
            Self::Execute(on, ..) | Self::FirstResult(on) => Some(on),
            Self::Record => Some(On::Logged),
            _ => Some(On::Default),
        }
    }

    /// Does it once, in the session of this number, and tells how long it took without what has to be
    /// tidied up afterwards.
    ///
    /// # Errors
    /// When it fails or has another result than it should.
    pub(crate) async fn once(self, bench: &Bench, session: usize) -> anyhow::Result<Took> {
        let wall = match self {
            Self::Spawn(program, jail) => return spawn(program, jail, bench).await,
            Self::Execute(on, language, door) => {
                let stack = bench.stack(on)?;
                execute(stack, &stack.sessions[session], language, door).await?
            }
            Self::Accept => accept(&bench.warm).await?,
            Self::Record => record(bench.stack(On::Logged)?).await?,
            Self::CreateSession => create(&bench.warm, false).await?,
            Self::FirstResult(on) => create(bench.stack(on)?, true).await?,
            Self::DockerRun => run(bench.containers.docker_run()?).await?.wall,
            Self::ClaimSession => pools::claim(&bench.warm).await?,
            Self::Burst => pools::burst(&bench.warm).await?,
            Self::Nothing => {
                let began = Instant::now();
                bench.warm.health.clone().check(HealthCheckRequest::default()).await?;
                began.elapsed()
            }
            Self::GetSession(door) => get_session(&bench.warm, door).await?,
        };
        Ok(Took { wall, cpu: None })
    }
}

async fn spawn(program: Program, jail: Jail, bench: &Bench) -> anyhow::Result<Took> {
    let spent = run(baseline::argv(program, jail, &bench.settings)?).await?;
    // Bubblewrap leaves its inner process to the system to reap, so what that used is not known here.
    Ok(Took { wall: spent.wall, cpu: (jail == Jail::None).then_some(spent.cpu) })
}

async fn run(argv: Vec<CString>) -> anyhow::Result<Spent> {
    tokio::task::spawn_blocking(move || baseline::run(&argv)).await?
}

/// Runs code and waits for its result.
///
/// # Errors
/// When it does not complete with the right result.
pub(crate) async fn execute(
    stack: &Stack,
    session: &Session,
    language: Language,
    door: Door,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    match door {
        Door::Executor => return execute_directly(session, language).await,
        Door::SessionRole | Door::Gateway => {
            let service = if door == Door::Gateway { &stack.gateway } else { &stack.session_role };
            let spec = Some(spec(language));
            let request = ExecuteRequest { session_id: session.id.clone(), spec, ..Default::default() };
            let mut events = service.clone().execute(request).await?.into_inner();
            loop {
                match events.message().await?.context("the stream ended without a result")?.event {
                    Some(Event::Result(execution)) => break check(&execution)?,
                    _ => continue,
                }
            }
        }
        Door::Rest => execute_rest(stack, &session.id, language).await?,
    }
    Ok(began.elapsed())
}

/// As the session role does it: the stream to its last frame, which is timed, then the acknowledgement.
async fn execute_directly(session: &Session, language: Language) -> anyhow::Result<Duration> {
    let execution_id = format!("bench_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let start = ExecutionStart {
        execution_id: execution_id.clone(),
        session_id: session.id.clone(),
        language: language.into(),
        code: code(language).into(),
        timeout: Some(TIMEOUT.try_into()?),
        ..Default::default()
    };
    let request = executor::ExecuteRequest { frame: Some(execute_request::Frame::Start(start)) };
    let mut service = session.executor.clone();
    let began = Instant::now();
    let mut frames = service.execute(tokio_stream::once(request)).await?.into_inner();
    let exited = loop {
        match frames.message().await?.context("the stream ended without an outcome")?.frame {
            Some(execute_response::Frame::Exited(exited)) => break exited,
            Some(execute_response::Frame::Failed(failed)) => bail!("it could not be started: {failed:?}"),
            _ => continue,
        }
    };
    let took = began.elapsed();
    let value = exited.return_value_json.as_deref().map(serde_json::from_slice::<u32>);
    let right = exited.status == Some(Status::ExitCode(0)) && matches!(value, Some(Ok(42)));
    ensure!(right, "the execution has another result: {exited:?}");
    service.acknowledge_execution(executor::AcknowledgeExecutionRequest { execution_id }).await?;
    Ok(took)
}

async fn execute_rest(stack: &Stack, session_id: &str, language: Language) -> anyhow::Result<()> {
    let language_word = language.as_str_name().trim_start_matches("LANGUAGE_").to_lowercase();
    let body = json!({"code": code(language), "language": language_word});
    let execution = stack.post(&format!("/sessions/{session_id}/execute-sync"), &body).await?;
    let right = execution["status"] == "completed" && execution["return_value"] == 42;
    ensure!(right, "the execution has another result: {execution}");
    Ok(())
}

/// How long an execution waited for its insert and its update, by the server's log.
async fn record(stack: &Stack) -> anyhow::Result<Duration> {
    let before = stack.server.log_length();
    execute(stack, &stack.sessions[0], Language::Python, Door::Gateway).await?;
    let log = stack.server.log_since(before)?;
    let waits: Vec<u64> = log
        .split("waited_us=")
        .skip(1)
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .collect();
    ensure!(waits.len() >= 2, "an insert and an update were expected in the log: {log}");
    Ok(Duration::from_micros(waits.iter().sum()))
}

async fn accept(stack: &Stack) -> anyhow::Result<Duration> {
    let mut service = stack.session_role.clone();
    let session_id = stack.sessions[0].id.clone();
    let spec = Some(spec(Language::Python));
    let request = StartExecutionRequest { session_id, spec, ..Default::default() };
    let began = Instant::now();
    let started = service.start_execution(request).await?.into_inner();
    let took = began.elapsed();
    let execution_id = started.execution.context("no execution was started")?.execution_id;
    let wait = WaitExecutionRequest { execution_id, wait_ms: 60_000 };
    let ended = service.wait_execution(wait).await?.into_inner();
    check(&ended.execution.context("the execution is not known any more")?)?;
    Ok(took)
}

async fn create(stack: &Stack, execute: bool) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let session_id = stack.create_session().await?;
    let executed = match execute {
        true => execute_rest(stack, &session_id, Language::Python).await,
        false => Ok(()),
    };
    let took = began.elapsed();
    stack.end_session(&session_id).await?;
    executed.map(|()| took)
}

async fn get_session(stack: &Stack, door: Door) -> anyhow::Result<Duration> {
    let session_id = stack.sessions[0].id.clone();
    let began = Instant::now();
    match door {
        Door::Rest => {
            stack.get(&format!("/sessions/{session_id}")).await?;
        }
        Door::Gateway => {
            stack.gateway.clone().get_session(GetSessionRequest { session_id }).await?;
        }
        Door::SessionRole => {
            stack.session_role.clone().get_session(GetSessionRequest { session_id }).await?;
        }
        Door::Executor => bail!("an executor knows nothing about sessions"),
    }
    Ok(began.elapsed())
}

/// As little as a handler can do, and something to check.
fn code(language: Language) -> &'static str {
    match language {
        Language::Javascript => "function handler(event) { return 42 }",
        Language::Shell => "echo 42 >\"$RESULT_FILE\"",
        Language::Python | Language::Unspecified => "def handler(event): return 42",
    }
}

fn spec(language: Language) -> ExecutionSpec {
    ExecutionSpec { code: code(language).to_owned(), language: language.into(), ..Default::default() }
}

fn check(execution: &Execution) -> anyhow::Result<()> {
    let value = execution.return_value_json.as_deref().map(str::trim);
    let right = execution.state() == State::Completed && value == Some("42");
    ensure!(right, "the execution has another result: {execution:?}");
    Ok(())
}
