//! Follows the sandboxes of the mesh and tells the session role about those that are lost.
//!
//! A sandbox is lost when its node says that it is dead, or when its executor, which has answered
//! before, has stopped to. That the scheduler cannot be reached says nothing about any sandbox: then
//! nothing new is learned, and nothing is reported for it. The session role decides what a report means:
//! it is refused when the session has moved on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use sandmesh_mesh::{Link, MAX_MESSAGE_BYTES, Probe, Tasks};
use sandmesh_proto::{
    agent::{Sandbox, sandbox::State},
    executor::{GetExecutorRequest, executor_service_client::ExecutorServiceClient},
    scheduler::{WatchSandboxesRequest, scheduler_service_client::SchedulerServiceClient},
    session::{ReportSandboxLostRequest, session_event_service_client::SessionEventServiceClient},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::{Config, probe::Liveness};

/// How many reports wait at most; more hold up the watch, which loses nothing by it.
const MAX_WAITING_REPORTS: usize = 1024;
/// How many reports are on their way at once.
const CONCURRENT_REPORTS: usize = 8;
/// How long the session role may take to receive a report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// The first and the longest pause before something is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A sandbox that is lost, and the session that had it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lost {
    session_id: String,
    sandbox_id: String,
    reason: String,
}

/// A sandbox of a session, as told last.
#[derive(Debug)]
struct Known {
    session_id: String,
    endpoint: String,
    liveness: Liveness,
    reported: bool,
}

/// The sandboxes of sessions, as told on the open watch.
#[derive(Debug, Default)]
struct Registry(HashMap<String, Known>);

impl Registry {
    /// Takes what the scheduler tells about a sandbox; a session's sandbox that is dead is lost, once.
    fn note(&mut self, sandbox: &Sandbox) -> Option<Lost> {
        let spec = sandbox.spec.as_ref()?;
        if spec.session_id.is_empty() {
            return None;
        }
        let known = || Known {
            session_id: spec.session_id.clone(),
            endpoint: sandbox.endpoint.clone(),
            liveness: Liveness::default(),
            reported: false,
        };
        match sandbox.state() {
            State::Running => {
                let entry = self.0.entry(sandbox.sandbox_id.clone()).or_insert_with(known);
                if entry.endpoint != sandbox.endpoint || entry.session_id != spec.session_id {
                    *entry = known();
                }
                None
            }
            State::Dead => {
                let entry = self.0.entry(sandbox.sandbox_id.clone()).or_insert_with(known);
                entry.endpoint.clear();
                lose(entry, &sandbox.sandbox_id, &sandbox.reason)
            }
            State::Deleted => {
                self.0.remove(&sandbox.sandbox_id);
                None
            }
            State::Creating | State::Unspecified => None,
        }
    }

    /// The sandboxes whose executor can be asked from here, with its endpoint.
    fn to_ask(&self) -> Vec<(String, String)> {
        let local = self.0.iter().filter(|(_, known)| !known.reported && known.endpoint.starts_with("unix:"));
        local.map(|(id, known)| (id.clone(), known.endpoint.clone())).collect()
    }

    /// Takes whether the executor at `endpoint` answered.
    fn answered(&mut self, sandbox_id: &str, endpoint: &str, answered: bool, limit: u32) -> Option<Lost> {
        let known = self.0.get_mut(sandbox_id).filter(|known| known.endpoint == endpoint)?;
        if known.liveness.observe(answered, limit) {
            return lose(known, sandbox_id, "executor does not answer");
        }
        None
    }
}

fn lose(known: &mut Known, sandbox_id: &str, reason: &str) -> Option<Lost> {
    if known.reported {
        return None;
    }
    known.reported = true;
    Some(Lost {
        session_id: known.session_id.clone(),
        sandbox_id: sandbox_id.to_owned(),
        reason: reason.to_owned(),
    })
}

/// Follows the sandboxes; see the module.
#[derive(Debug)]
pub(crate) struct Sandboxes {
    scheduler: Link,
    sessions: Link,
    config: Config,
    registry: Mutex<Registry>,
    /// Why the watch is not open; `None` while it is.
    interrupted: Mutex<Option<String>>,
}

impl Sandboxes {
    /// Follows the sandboxes that `scheduler` tells about, and reports to `sessions`.
    pub(crate) fn new(scheduler: Link, sessions: Link, config: Config) -> Self {
        let interrupted = Mutex::new(Some("not opened yet".to_owned()));
        Self { scheduler, sessions, config, registry: Mutex::default(), interrupted }
    }

    /// Spawns the watch, the probes of executors, and the reports.
    pub(crate) fn start(self: Arc<Self>, tasks: &Tasks) {
        let (reports, waiting) = mpsc::channel(MAX_WAITING_REPORTS);
        let (watch, ask) = (Arc::clone(&self), Arc::clone(&self));
        let (to_watch, to_ask) = (reports.clone(), reports);
        spawn(tasks, "sandbox watch", async move { watch.watch(&to_watch).await });
        spawn(tasks, "executor probes", async move { ask.ask_executors(&to_ask).await });
        spawn(tasks, "lost sandbox reports", async move { self.report(waiting).await });
    }

    /// Whether the watch is open.
    pub(crate) fn probe(&self) -> Probe {
        let interrupted = lock(&self.interrupted).clone();
        Probe {
            name: "watch/sandboxes".to_owned(),
            healthy: interrupted.is_none(),
            message: interrupted.unwrap_or_default(),
            latency_us: 0,
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
        *lock(&self.interrupted) = None;
        while let Some(event) = events.message().await? {
            let lost = event.sandbox.and_then(|sandbox| lock(&self.registry).note(&sandbox));
            if let Some(lost) = lost {
                let _ = reports.send(lost).await;
            }
        }
        Ok(())
    }

    /// Asks the executors of all running sandboxes, again and again.
    async fn ask_executors(&self, reports: &mpsc::Sender<Lost>) {
        loop {
            sleep(self.config.sandbox_probe_interval.0).await;
            let to_ask = lock(&self.registry).to_ask();
            stream::iter(to_ask)
                .for_each_concurrent(self.config.max_concurrent_probes, async |(sandbox_id, endpoint)| {
                    let answered = self.answers(&endpoint).await;
                    let limit = self.config.sandbox_probe_failures;
                    let lost = lock(&self.registry).answered(&sandbox_id, &endpoint, answered, limit);
                    if let Some(lost) = lost {
                        let _ = reports.send(lost).await;
                    }
                })
                .await;
        }
    }

    /// Whether an executor says anything at all.
    async fn answers(&self, endpoint: &str) -> bool {
        let Ok(link) = Link::dial(endpoint) else { return false };
        let mut client = ExecutorServiceClient::new(link);
        match timeout(self.config.sandbox_probe_timeout.0, client.get_executor(GetExecutorRequest {})).await {
            Ok(Ok(_)) => true,
            Ok(Err(status)) => !is_silence(status.code()),
            Err(_) => false,
        }
    }

    async fn report(&self, waiting: mpsc::Receiver<Lost>) {
        ReceiverStream::new(waiting)
            .for_each_concurrent(CONCURRENT_REPORTS, async |lost| self.report_one(lost).await)
            .await;
    }

    /// Reports until the session role has taken it or has refused it.
    async fn report_one(&self, lost: Lost) {
        let Lost { session_id, sandbox_id, reason } = lost;
        let mut pause = BACKOFF.0;
        loop {
            let mut client = SessionEventServiceClient::new(self.sessions.clone());
            let request = ReportSandboxLostRequest {
                session_id: session_id.clone(),
                sandbox_id: sandbox_id.clone(),
                reason: reason.clone(),
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
