//! Follows the sandboxes of the mesh and tells the session role about those that are lost.
//!
//! A sandbox is lost when its node says that it is dead, or when its executor, which has answered
//! before, has stopped to. That the scheduler cannot be reached says nothing about any sandbox: then
//! nothing new is learned, and nothing is reported for it. The session role decides what a report means:
//! it is refused when the session has moved on.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::{StreamExt, future::join_all, stream};
use sandmesh_mesh::{Link, MAX_MESSAGE_BYTES, Mesh, Probe, Tasks, is_elsewhere, timestamp};
use sandmesh_proto::{
    agent::{GetNodeRequest, Sandbox, agent_service_client::AgentServiceClient, sandbox::State},
    executor::{GetExecutorRequest, GetExecutorResponse, executor_service_client::ExecutorServiceClient},
    health::SandboxHealth,
    scheduler::{WatchSandboxesRequest, scheduler_service_client::SchedulerServiceClient},
    session::{ReportSandboxLostRequest, session_event_service_client::SessionEventServiceClient},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::{
    Config,
    board::Board,
    condition::{Condition, Found, Track},
    convert::condition_pb,
    probe::Liveness,
};

/// How many reports wait at most; more hold up the watch, which loses nothing by it.
const MAX_WAITING_REPORTS: usize = 1024;
/// How many reports are on their way at once.
const CONCURRENT_REPORTS: usize = 8;
/// How long the session role may take to receive a report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// The first and the longest pause before something is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What is said of an executor that does not answer.
const NO_ANSWER: &str = "executor does not answer";

/// A sandbox that is lost, and the session that had it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lost {
    session_id: String,
    sandbox_id: String,
    node_id: String,
    reason: String,
    node_lost: bool,
}

/// A sandbox of a session, as told and measured last.
#[derive(Debug)]
struct Known {
    endpoint: String,
    liveness: Liveness,
    track: Track,
    reported: bool,
    health: SandboxHealth,
}

impl Known {
    fn of(sandbox: &Sandbox) -> Self {
        let spec = sandbox.spec.clone().unwrap_or_default();
        let health = SandboxHealth {
            sandbox_id: sandbox.sandbox_id.clone(),
            session_id: spec.session_id,
            node_id: sandbox.node_id.clone(),
            condition: condition_pb(Condition::Healthy).into(),
            restarts: spec.restarts,
            ..SandboxHealth::default()
        };
        let (liveness, track) = (Liveness::default(), Track::default());
        Self { endpoint: sandbox.endpoint.clone(), liveness, track, reported: false, health }
    }

    /// Takes one measurement: what its executor said, and how late.
    fn measure(&mut self, answer: Option<&Answer>, now: DateTime<Utc>, config: &Config) {
        let found = match answer {
            None => Found::Bad,
            Some(answer) if answer.latency > config.slow_after.0 => Found::Slow,
            Some(_) => Found::Good,
        };
        self.track = self.track.observe(found, config.thresholds());
        let health = &mut self.health;
        health.condition = condition_pb(self.track.condition()).into();
        health.failures = self.track.failures();
        health.reason = match (self.track.condition(), found) {
            (Condition::Healthy, _) => String::new(),
            (_, Found::Bad) => NO_ANSWER.to_owned(),
            (_, Found::Slow | Found::Good) => "executor answered late, or not, a short while ago".to_owned(),
        };
        health.latency_us = answer.map_or(0, |answer| micros(answer.latency));
        health.measured_at = Some(timestamp(now));
        if let Some(Answer { executor: Some(executor), .. }) = answer {
            (health.uptime_ms, health.usage) = (executor.uptime_ms, executor.usage);
            (health.running, health.queued) = (executor.running, executor.queued);
        }
    }
}

/// What an executor answered.
#[derive(Debug)]
struct Answer {
    /// `None` when it answered with an error: it is there all the same.
    executor: Option<GetExecutorResponse>,
    latency: Duration,
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The id of a sandbox and its node: an id is on two nodes where two schedulers placed it.
type Place = (String, String);

/// The sandboxes of sessions, as told on the open watch.
#[derive(Debug, Default)]
struct Registry(HashMap<Place, Known>);

impl Registry {
    /// Takes what the scheduler tells about a sandbox; a session's sandbox that is dead is lost, once.
    fn note(&mut self, sandbox: &Sandbox, board: &Board) -> Option<Lost> {
        let spec = sandbox.spec.as_ref()?;
        if spec.session_id.is_empty() {
            return None;
        }
        let place = (sandbox.sandbox_id.clone(), sandbox.node_id.clone());
        match sandbox.state() {
            State::Running => {
                let known = || Known::of(sandbox);
                let entry = self.0.entry(place).or_insert_with(known);
                if entry.endpoint != sandbox.endpoint || entry.health.session_id != spec.session_id {
                    *entry = known();
                }
                board.sandbox(entry.health.clone());
                None
            }
            State::Dead => {
                let entry = self.0.entry(place).or_insert_with(|| Known::of(sandbox));
                entry.endpoint.clear();
                entry.health.condition = condition_pb(Condition::Unhealthy).into();
                entry.health.reason.clone_from(&sandbox.reason);
                board.sandbox(entry.health.clone());
                lose(entry, &sandbox.reason, sandbox.node_lost)
            }
            State::Deleted => {
                self.0.remove(&place);
                board.sandbox_gone(&place.0, &place.1);
                None
            }
            State::Creating | State::Unspecified => None,
        }
    }

    /// The sandboxes of this machine, or of others, whose executor can be asked, with its endpoint.
    fn to_ask(&self, elsewhere: bool) -> Vec<(Place, String)> {
        let can_be_asked = |known: &Known| !known.reported && !known.endpoint.is_empty();
        let live = self
            .0
            .iter()
            .filter(|(_, known)| can_be_asked(known) && machine(&known.endpoint).is_some() == elsewhere);
        live.map(|(place, known)| (place.clone(), known.endpoint.clone())).collect()
    }

    /// Takes what the executor at `endpoint` answered, if anything, at `now`.
    fn answered(
        &mut self,
        (place, endpoint): (&Place, &str),
        answer: Option<&Answer>,
        now: DateTime<Utc>,
        (board, config): (&Board, &Config),
    ) -> Option<Lost> {
        let known = self.0.get_mut(place).filter(|known| known.endpoint == endpoint)?;
        known.measure(answer, now, config);
        board.sandbox(known.health.clone());
        if known.liveness.observe(answer.is_some(), config.sandbox_probe_failures) {
            return lose(known, NO_ANSWER, false);
        }
        None
    }
}

/// The other machine that an executor is on.
fn machine(endpoint: &str) -> Option<&str> {
    let (machine, _) = endpoint.rsplit_once('/').filter(|_| is_elsewhere(endpoint))?;
    Some(machine)
}

fn lose(known: &mut Known, reason: &str, node_lost: bool) -> Option<Lost> {
    if known.reported {
        return None;
    }
    known.reported = true;
    let SandboxHealth { session_id, sandbox_id, node_id, .. } = known.health.clone();
    Some(Lost { session_id, sandbox_id, node_id, reason: reason.to_owned(), node_lost })
}

/// Follows the sandboxes; see the module.
#[derive(Debug)]
pub(crate) struct Sandboxes {
    scheduler: Link,
    sessions: Link,
    mesh: Mesh,
    board: Arc<Board>,
    config: Config,
    registry: Mutex<Registry>,
    /// Why the watch is not open; `None` while it is.
    interrupted: Mutex<Option<String>>,
}

impl Sandboxes {
    /// Follows the sandboxes that `scheduler` tells about, reports to `sessions`, and puts what it measures
    /// on `board`.
    pub(crate) fn new(
        scheduler: Link,
        sessions: Link,
        mesh: &Mesh,
        board: Arc<Board>,
        config: Config,
    ) -> Self {
        let interrupted = Mutex::new(Some("not opened yet".to_owned()));
        let (mesh, registry) = (mesh.clone(), Mutex::default());
        Self { scheduler, sessions, mesh, board, config, registry, interrupted }
    }

    /// Spawns the watch, the probes of executors, and the reports.
    pub(crate) fn start(self: Arc<Self>, tasks: &Tasks) {
        let (reports, waiting) = mpsc::channel(MAX_WAITING_REPORTS);
        let (watch, ask) = (Arc::clone(&self), Arc::clone(&self));
        let (to_watch, to_ask) = (reports.clone(), reports);
        spawn(tasks, "sandbox watch", async move { watch.watch(&to_watch).await });
        let (ask_others, to_ask_others) = (Arc::clone(&ask), to_ask.clone());
        spawn(tasks, "executor probes", async move { ask.ask_executors(&to_ask, false).await });
        spawn(tasks, "executor probes elsewhere", async move {
            ask_others.ask_executors(&to_ask_others, true).await;
        });
        spawn(tasks, "lost sandbox reports", async move { self.report(waiting).await });
    }

    /// Whether the watch is open.
    pub(crate) fn probe(&self) -> Probe {
        let interrupted = lock(&self.interrupted).clone();
        Probe {
            name: "watch/sandboxes".to_owned(),
            healthy: interrupted.is_none(),
            message: interrupted.unwrap_or_default(),
            ..Probe::default()
        }
    }

    /// Keeps a watch open for ever.
    async fn watch(&self, reports: &mpsc::Sender<Lost>) {
        let mut pause = BACKOFF.0;
        loop {
            let opened = Instant::now();
            let ended = self.follow(reports).await;
            let why = ended.err().map_or_else(|| "the watch ended".to_owned(), |status| in_words(&status));
            tracing::debug!(reason = why, "the watch of the sandboxes was interrupted");
            *lock(&self.interrupted) = Some(why);
            if opened.elapsed() > BACKOFF.1 {
                pause = BACKOFF.0;
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// Opens one watch and follows it to its end. It begins with every sandbox there is, so what was
    /// known before is forgotten: it may have ended unseen.
    async fn follow(&self, reports: &mpsc::Sender<Lost>) -> Result<(), Status> {
        let mut client =
            SchedulerServiceClient::new(self.scheduler.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut events = client.watch_sandboxes(WatchSandboxesRequest {}).await?.into_inner();
        lock(&self.registry).0.clear();
        self.board.forget_sandboxes();
        *lock(&self.interrupted) = None;
        while let Some(event) = events.message().await? {
            let lost = event.sandbox.and_then(|sandbox| lock(&self.registry).note(&sandbox, &self.board));
            if let Some(lost) = lost {
                let _ = reports.send(lost).await;
            }
        }
        Ok(())
    }

    /// Asks the executors of all running sandboxes of this machine, or of others, again and again.
    async fn ask_executors(&self, reports: &mpsc::Sender<Lost>, elsewhere: bool) {
        loop {
            sleep(self.config.sandbox_probe_interval.0).await;
            let mut to_ask = lock(&self.registry).to_ask(elsewhere);
            if elsewhere {
                // That a node cannot be asked is its matter: the scheduler says what becomes of it.
                let there = self.reachable(&to_ask).await;
                to_ask
                    .retain(|(_, endpoint)| machine(endpoint).is_some_and(|machine| there.contains(machine)));
            }
            stream::iter(to_ask)
                .for_each_concurrent(self.config.max_concurrent_probes, async |(place, endpoint)| {
                    let answer = self.ask(&endpoint).await;
                    let (asked, now) = ((&place, endpoint.as_str()), self.mesh.clock().now());
                    let told = (&*self.board, &self.config);
                    let lost = lock(&self.registry).answered(asked, answer.as_ref(), now, told);
                    if let Some(lost) = lost {
                        let _ = reports.send(lost).await;
                    }
                })
                .await;
        }
    }

    /// What an executor says of itself; `None` when it says nothing at all.
    async fn ask(&self, endpoint: &str) -> Option<Answer> {
        let mut client = ExecutorServiceClient::new(self.mesh.dial_executor(endpoint).ok()?);
        let asked = Instant::now();
        let answer =
            timeout(self.config.sandbox_probe_timeout.0, client.get_executor(GetExecutorRequest {})).await;
        let latency = asked.elapsed();
        match answer.ok()? {
            Ok(executor) => Some(Answer { executor: Some(executor.into_inner()), latency }),
            Err(status) => (!is_silence(status.code())).then_some(Answer { executor: None, latency }),
        }
    }

    /// The machines of these sandboxes whose agent answers.
    async fn reachable(&self, to_ask: &[(Place, String)]) -> BTreeSet<String> {
        let machines: BTreeSet<&str> = to_ask.iter().filter_map(|(_, endpoint)| machine(endpoint)).collect();
        let answers = machines.into_iter().map(async |machine| {
            let mut agent = AgentServiceClient::new(self.mesh.dial(machine).ok()?);
            let limit = self.config.sandbox_probe_timeout.0;
            let answer = timeout(limit, agent.get_node(GetNodeRequest {})).await;
            matches!(answer, Ok(Ok(_))).then(|| machine.to_owned())
        });
        join_all(answers).await.into_iter().flatten().collect()
    }

    async fn report(&self, waiting: mpsc::Receiver<Lost>) {
        ReceiverStream::new(waiting)
            .for_each_concurrent(CONCURRENT_REPORTS, async |lost| self.report_one(lost).await)
            .await;
    }

    /// Reports until the session role has taken it or has refused it.
    async fn report_one(&self, lost: Lost) {
        let Lost { session_id, sandbox_id, node_id, reason, node_lost } = lost;
        let mut pause = BACKOFF.0;
        loop {
            let mut client = SessionEventServiceClient::new(self.sessions.clone());
            let request = ReportSandboxLostRequest {
                session_id: session_id.clone(),
                sandbox_id: sandbox_id.clone(),
                reason: reason.clone(),
                node_lost,
                node_id: node_id.clone(),
            };
            let answer = timeout(REPORT_TIMEOUT, client.report_sandbox_lost(request)).await;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
                Ok(response) => {
                    let applied = response.into_inner().applied;
                    tracing::info!(session_id, sandbox_id, reason, applied, "reported a lost sandbox");
                    return;
                }
                Err(status) if is_passing(status.code()) => {}
                Err(status) if status.code() == Code::NotFound => return,
                Err(status) => {
                    let why = in_words(&status);
                    tracing::error!(session_id, sandbox_id, why, "a lost sandbox could not be reported");
                    return;
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }
}

/// Spawns a task that is dropped at shutdown: every one of these can stop at any await.
fn spawn(tasks: &Tasks, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    let token = tasks.token();
    tasks.spawn(name, async move {
        let _ = token.run_until_cancelled(task).await;
    });
}

/// Codes that the client makes itself when nobody answers.
fn is_silence(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

/// Codes after which the same call may go well.
fn is_passing(code: Code) -> bool {
    is_silence(code) || matches!(code, Code::Aborted | Code::ResourceExhausted)
}

fn in_words(status: &Status) -> String {
    format!("{}: {}", status.code().description(), status.message()).to_lowercase()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
