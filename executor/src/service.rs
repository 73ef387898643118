//! The executions of a sandbox: who gets in, who is known, who is forgotten.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use sandmesh_proto::executor as pb;
use tokio::sync::{Notify, OnceCell, Semaphore, watch};

use crate::{
    cli::Language,
    clock,
    execution::{Cursor, Execution, Stop},
    isolation::{Sandbox, layer::Layer},
    registry::Registry,
    replay::Keep,
    request::Start,
    run::Run,
    status::Error,
    warm::Warm,
    workspace::Workspace,
};

/// Executions that are kept until they are acknowledged.
const MAX_KEPT: usize = 1024;

/// How much is run and kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    pub(crate) max_executions: usize,
    pub(crate) max_queued: usize,
    pub(crate) keep: Keep,
}

/// The service behind the gRPC methods.
#[derive(Debug)]
pub(crate) struct Service {
    sandbox_id: String,
    sandbox: Arc<Sandbox>,
    warm: Arc<Warm>,
    workspace: Workspace,
    capacity: Capacity,
    known_versions: Vec<(Language, String)>,
    started: Instant,
    /// One permit per execution that may run or wait.
    places: Arc<Semaphore>,
    /// One permit per execution that may run.
    slots: Arc<Semaphore>,
    registry: Mutex<Registry>,
    /// How many executions arrived so far, which gives each its place in their order.
    arrivals: AtomicU64,
    /// Told of each of them.
    arrived: Notify,
    languages: OnceCell<Vec<pb::LanguageRuntime>>,
    /// Held by whoever changes the layer of packages.
    mounting: tokio::sync::Mutex<()>,
    /// Who a warm sandbox was claimed for.
    claimant: OnceLock<String>,
    /// When the sandbox ends by itself, in seconds of Unix time.
    expires_at: watch::Sender<Option<u64>>,
}

impl Service {
    /// A service with nothing to do yet.
    pub(crate) fn new(
        sandbox_id: String,
        sandbox: Sandbox,
        workspace: Workspace,
        capacity: Capacity,
        (known_versions, expires_at): (Vec<(Language, String)>, Option<u64>),
    ) -> Self {
        let (sandbox, slots) = (Arc::new(sandbox), Arc::new(Semaphore::new(capacity.max_executions)));
        Self {
            sandbox_id,
            warm: Arc::new(Warm::new(Arc::clone(&sandbox), Arc::clone(&slots))),
            sandbox,
            workspace,
            capacity,
            known_versions,
            started: Instant::now(),
            places: Arc::new(Semaphore::new(capacity.max_executions + capacity.max_queued)),
            slots,
            registry: Mutex::default(),
            arrivals: AtomicU64::new(0),
            arrived: Notify::new(),
            languages: OnceCell::new(),
            mounting: tokio::sync::Mutex::default(),
            claimant: OnceLock::new(),
            expires_at: watch::Sender::new(expires_at),
        }
    }

    /// Takes a warm sandbox for one user, who has it until another time.
    pub(crate) fn claim(&self, claimant: String, expires_at: Option<u64>) -> Result<(), Error> {
        let registry = self.registry();
        if self.claimant.get() != Some(&claimant) {
            match () {
                () if registry.draining => return Err(Error::Draining),
                () if self.arrivals.load(Ordering::Relaxed) > 0 => {
                    return Err(Error::NotClean("something was run in it"));
                }
                () if !self.workspace.is_empty() => {
                    return Err(Error::NotClean("its workspace is not empty"));
                }
                () => self.claimant.set(claimant).map_err(|_| Error::Claimed)?,
            }
        }
        self.expires_at.send_replace(expires_at);
        Ok(())
    }

    /// When the sandbox ends by itself, as it is now and changes.
    pub(crate) fn expiry(&self) -> watch::Receiver<Option<u64>> {
        self.expires_at.subscribe()
    }

    /// The sandbox.
    pub(crate) fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The warm parents and spares.
    pub(crate) fn warm(&self) -> &Arc<Warm> {
        &self.warm
    }

    /// The files.
    pub(crate) fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Starts an execution; one that is known already is not started again, nor is one that was acknowledged.
    pub(crate) async fn start(&self, start: Start) -> Result<Arc<Execution>, Error> {
        let number = self.arrivals.fetch_add(1, Ordering::Relaxed);
        let (execution, stdin) =
            Execution::new(start.id.clone(), number, self.capacity.keep, self.sandbox.spool()).await;
        execution.take_first_input(start.stdin.len() as u64, start.keep_stdin_open);
        let execution = Arc::new(execution);
        let place = {
            let mut registry = self.registry();
            if let Some(known) = registry.executions.get(&start.id) {
                return Ok(Arc::clone(known));
            }
            if registry.was_there(&start.id) {
                return Err(Error::Acknowledged(start.id));
            }
            let place = self.admit(&registry)?;
            registry.executions.insert(start.id.clone(), Arc::clone(&execution));
            place
        };
        self.arrived.notify_one();
        let run = Run {
            execution: Arc::clone(&execution),
            start,
            stdin,
            sandbox: Arc::clone(&self.sandbox),
            warm: Arc::clone(&self.warm),
            workspace: self.workspace.clone(),
            slots: Arc::clone(&self.slots),
            place,
        };
        clock::spawn(run.run());
        Ok(execution)
    }

    fn admit(&self, registry: &Registry) -> Result<tokio::sync::OwnedSemaphorePermit, Error> {
        if registry.draining {
            return Err(Error::Draining);
        }
        if registry.executions.len() >= MAX_KEPT {
            return Err(Error::Full(format!("{MAX_KEPT} executions are kept and none was acknowledged")));
        }
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let Capacity { max_executions, max_queued, .. } = self.capacity;
            Error::Full(format!("{max_executions} executions run and {max_queued} wait already"))
        })
    }

    /// The execution of this id, if it can be continued from there.
    pub(crate) async fn attach(&self, id: &str, from: Cursor) -> Result<Arc<Execution>, Error> {
        let execution = self.find(id)?;
        execution.check(from).await?;
        Ok(execution)
    }

    /// Kills an execution; false if it had ended already.
    pub(crate) fn cancel(&self, id: &str) -> Result<bool, Error> {
        Ok(self.find(id)?.stop(Stop::Cancelled))
    }

    /// Forgets executions that ended; one that is not known is forgotten already. Fails where one still runs.
    pub(crate) fn acknowledge(&self, ids: &[String]) -> Result<(), Error> {
        let mut registry = self.registry();
        let mut running = None;
        for id in ids {
            match registry.executions.get(id) {
                Some(execution) if !execution.has_ended() => running = Some(id),
                _ => registry.forget(id),
            }
        }
        running.map_or(Ok(()), |id| Err(Error::StillRunning(id.clone())))
    }

    /// The executions that are kept, in order of arrival.
    pub(crate) fn list(&self) -> Vec<Arc<Execution>> {
        let mut executions: Vec<_> = self.registry().executions.values().cloned().collect();
        executions.sort_by_key(|execution| execution.number);
        executions
    }

    /// Who this executor is.
    pub(crate) async fn describe(&self) -> pb::GetExecutorResponse {
        let languages =
            self.languages.get_or_init(|| self.sandbox.interpreters().describe(&self.known_versions)).await;
        let running = self.running();
        pb::GetExecutorResponse {
            sandbox_id: self.sandbox_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            languages: languages.clone(),
            isolation: Some(self.sandbox.isolation()),
            running: count(running),
            queued: count(self.inside().saturating_sub(running)),
            usage: Some(self.sandbox.usage()),
        }
    }

    /// Shows executions another layer of packages from now on. When that does not work they see what they saw.
    pub(crate) async fn mount_layer(&self, layer: Layer) -> Result<(), Error> {
        if !self.sandbox.has_jail() {
            return Err(Error::NoJail);
        }
        if !self.sandbox.has_layer(&layer) {
            return Err(Error::NoLayer);
        }
        let _mounting = self.mounting.lock().await;
        if self.sandbox.layer().as_ref() == Some(&layer) {
            return Ok(());
        }
        let before = self.sandbox.set_layer(Some(layer));
        let Err(err) = self.warm.renew().await else { return Ok(()) };
        tracing::error!(stage = err.stage, error = %err.source, "the layer of packages cannot be shown");
        self.sandbox.set_layer(before);
        // Where that fails too, the next execution tries again.
        let _ = self.warm.renew().await;
        Err(Error::NotMounted(format!("{} ({})", err.source, err.stage)))
    }

    /// Waits until an execution arrives; at once if one did since the last time. For one waiter.
    pub(crate) async fn arrival(&self) {
        self.arrived.notified().await;
    }

    /// Whether no execution runs, or waits to.
    pub(crate) fn is_empty(&self) -> bool {
        self.inside() == 0
    }

    /// How many executions run, or wait to.
    fn inside(&self) -> usize {
        let Capacity { max_executions, max_queued, .. } = self.capacity;
        max_executions + max_queued - self.places.available_permits()
    }

    /// How many executions run.
    pub(crate) fn running(&self) -> usize {
        self.warm.running()
    }

    /// Stops every execution that has not ended.
    pub(crate) fn stop_all(&self, reason: Stop) {
        for execution in self.list() {
            execution.stop(reason);
        }
    }

    /// Stops every execution whose process is there; what has not begun has done nothing yet.
    pub(crate) fn stop_started(&self, reason: Stop) {
        for execution in self.list().iter().filter(|execution| execution.was_started()) {
            execution.stop(reason);
        }
    }

    /// Takes no more executions, ends those that are there, and waits for their outcomes.
    pub(crate) async fn drain(&self) {
        self.registry().draining = true;
        self.stop_all(Stop::SessionEnded);
        for execution in self.list() {
            execution.ended().await;
        }
        // Until nothing is left of them, which is bounded.
        let most = u32::try_from(self.capacity.max_executions).unwrap_or(u32::MAX);
        let _ = self.slots.acquire_many(most).await;
        self.warm.end().await;
    }

    fn find(&self, id: &str) -> Result<Arc<Execution>, Error> {
        self.registry().executions.get(id).cloned().ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        // No change in here is left half done by a panic.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
