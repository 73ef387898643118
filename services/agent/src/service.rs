//! What the agent does: creates, destroys, finds again and follows the sandboxes of its node.
//!
//! Each creation and each destruction is a task of its own that several callers may await and none can
//! interrupt: a caller that goes away leaves nothing half done. There is one at a time for each id.

mod claim;
mod install;
mod progress;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::{FutureExt, Stream, StreamExt, stream};
use sandmesh_mesh::{Clock, Tasks};
use tokio::sync::{oneshot, watch};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

use crate::{
    Error,
    config::OnShutdown,
    drain::Drain,
    ledger::{Job, Ledger, Limits, Outcome},
    packages::Layer,
    runtime::{Ability, Found, LogPart, LogStart, Order, Problems, Runtime},
    sandbox::{Facts, Resources, Sandbox, SandboxId, Spec, State},
};

pub(crate) use self::install::{Given, Installs, passed};
use self::progress::Told;

/// How often sandboxes are tended.
const TEND_EVERY: Duration = Duration::from_secs(10);

/// How often a log that is followed is looked at.
const LOG_PAUSE: Duration = Duration::from_millis(250);

/// How many sandboxes are destroyed at once at shutdown.
const DESTROY_AT_ONCE: usize = 8;

/// What does not change about the node while the agent runs.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Its stable id.
    pub(crate) node_id: String,
    /// Its labels, for placement.
    pub(crate) labels: BTreeMap<String, String>,
    /// What it hands out.
    pub(crate) limits: Limits,
    /// What its runtime could give at the start.
    pub(crate) ability: Ability,
}

/// What the node hands out and has now.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// How many sandboxes there are, dead ones included.
    pub(crate) sandboxes: u32,
    /// What is promised to live ones.
    pub(crate) allocated: Resources,
    /// The images that are present.
    pub(crate) images: Vec<String>,
    /// The fingerprints of the packages that are installed.
    pub(crate) package_sets: Vec<String>,
    /// True while it takes no new sandboxes.
    pub(crate) draining: bool,
}

/// The sandboxes of one node.
#[derive(Debug)]
pub(crate) struct Service {
    identity: Identity,
    runtime: Arc<dyn Runtime>,
    drain: Drain,
    ledger: Mutex<Ledger>,
    installs: Installs,
    told: Told,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
}

/// Where a caller of `create` stands.
enum Begun {
    Exists(Box<Sandbox>),
    Busy(Job),
}

impl Service {
    /// A service without sandboxes.
    pub(crate) fn new(
        identity: Identity,
        runtime: Arc<dyn Runtime>,
        (drain, installs): (Drain, Installs),
        clock: Arc<dyn Clock>,
        tasks: Tasks,
    ) -> Self {
        let ledger = Mutex::new(Ledger::new(identity.limits));
        Self { identity, runtime, drain, ledger, installs, told: Told::default(), clock, tasks }
    }

    /// What does not change about the node.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The name of the runtime.
    pub(crate) fn runtime_name(&self) -> &'static str {
        self.runtime.name()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over the sandboxes of an agent before this one. Returns what must be cleared away, see
    /// [`Service::start`].
    ///
    /// # Errors
    /// When the runtime cannot be asked.
    pub(crate) async fn adopt(&self) -> Result<Vec<SandboxId>, Error> {
        let mut half_made = Vec::new();
        for found in self.runtime.adopt().await? {
            match found {
                Found::Whole(sandbox) => {
                    for key in &sandbox.facts.layers {
                        self.installs.layers.hold(&sandbox.id, key, self.clock.now());
                    }
                    self.ledger().put(*sandbox, None);
                }
                Found::HalfMade(id) => half_made.push(id),
            }
        }
        Ok(half_made)
    }

    /// Follows the sandboxes that were adopted, clears away what is half made, and prepares for the end.
    pub(crate) fn start(self: &Arc<Self>, half_made: Vec<SandboxId>, on_shutdown: OnShutdown) {
        let adopted: Vec<Sandbox> = self.ledger().sandboxes().cloned().collect();
        if !adopted.is_empty() || !half_made.is_empty() {
            let dead = adopted.iter().filter(|sandbox| sandbox.state == State::Dead).count();
            tracing::info!(
                running = adopted.len() - dead,
                dead,
                half_made = half_made.len(),
                "sandboxes found"
            );
        }
        self.runtime.start(&self.tasks);
        for sandbox in adopted.iter().filter(|sandbox| sandbox.state == State::Running) {
            self.follow(sandbox);
        }
        for id in half_made {
            // The outcome is logged where it is made.
            drop(self.begin_delete(&id));
        }
        self.tasks.spawn("tend sandboxes", Arc::clone(self).tend_forever());
        let (service, stopped) = (Arc::clone(self), self.tasks.token());
        self.tasks.spawn("agent shutdown", async move {
            stopped.cancelled().await;
            service.shut_down(on_shutdown).await;
        });
    }

    async fn tend_forever(self: Arc<Self>) {
        let stopped = self.tasks.token();
        while stopped.run_until_cancelled(tokio::time::sleep(TEND_EVERY)).await.is_some() {
            self.runtime.tend().await;
            self.tend_layers().await;
        }
    }

    async fn shut_down(self: &Arc<Self>, on_shutdown: OnShutdown) {
        let (kept, ids): (usize, Vec<SandboxId>) = {
            let ledger = self.ledger();
            let live = ledger.sandboxes().filter(|sandbox| sandbox.state.is_live()).count();
            (live, ledger.sandboxes().map(|sandbox| sandbox.id.clone()).collect())
        };
        match on_shutdown {
            OnShutdown::Keep => tracing::info!(kept, "sandboxes run on without an agent"),
            OnShutdown::Destroy => {
                tracing::info!(destroyed = ids.len(), "destroying the sandboxes");
                let gone = stream::iter(ids).for_each_concurrent(DESTROY_AT_ONCE, |id| async move {
                    // A failure is logged where it is made.
                    let _ = self.delete(&id).await;
                });
                gone.await;
            }
        }
    }

    /// Creates a sandbox and returns when its executor answers. A repeat with the same spec gets the first.
    /// When the caller goes away the creation goes on to its end.
    ///
    /// # Errors
    /// `Exists`, `Dead`, `Full`, `Unsupported`, `StartFailed`.
    pub(crate) async fn create(self: &Arc<Self>, id: SandboxId, spec: Spec) -> Result<Sandbox, Error> {
        loop {
            match self.begin_create(&id, &spec)? {
                Begun::Exists(sandbox) => return Ok(*sandbox),
                Begun::Busy(Job::Create(outcome)) => return outcome.await,
                // Once it is gone the id is free; a failure to destroy shows in the next turn.
                Begun::Busy(Job::Delete(outcome)) => drop(outcome.await),
            }
        }
    }

    fn begin_create(self: &Arc<Self>, id: &SandboxId, spec: &Spec) -> Result<Begun, Error> {
        let mut ledger = self.ledger();
        if let Some(begun) = known(&ledger, id, spec)? {
            return Ok(begun);
        }
        self.admit(&ledger, id, spec)?;
        let order = Order {
            id: id.clone(),
            spec: spec.clone(),
            created_at: self.clock.now(),
            layer: self.held(id, spec),
            progress: watch::Sender::default(),
        };
        let sandbox = sandbox_of(&order, State::Creating, Facts::default());
        let service = Arc::clone(self);
        let outcome = self.spawn("create sandbox", async move { service.make(order).await });
        ledger.put(sandbox, Some(Job::Create(outcome.clone())));
        Ok(Begun::Busy(Job::Create(outcome)))
    }

    /// The packages that a new sandbox is to have, if they are there.
    fn held(&self, id: &SandboxId, spec: &Spec) -> Option<Arc<Layer>> {
        let key = spec.packages.as_ref()?;
        let layer = self.installs.layers.hold(id, key, self.clock.now());
        if layer.is_none() {
            self.installs.layers.unhold(id, key);
        }
        layer
    }

    fn admit(&self, ledger: &Ledger, id: &SandboxId, spec: &Spec) -> Result<(), Error> {
        let node = || self.identity.node_id.clone();
        if !self.identity.ability.languages.contains(&spec.language) {
            let why = format!("it has no interpreter for {}", spec.language);
            return Err(Error::Unsupported { node: node(), id: id.clone(), why });
        }
        self.check_open()?;
        ledger.admit(&spec.resources).map_err(|what| Error::Full { node: node(), what })
    }

    /// Whether it takes new sandboxes at all.
    fn check_open(&self) -> Result<(), Error> {
        let what = match () {
            () if self.tasks.token().is_cancelled() => "it is shutting down",
            () if self.drain.is_draining() => "it takes no new sandboxes",
            () => return Ok(()),
        };
        Err(Error::Full { node: self.identity.node_id.clone(), what: what.to_owned() })
    }

    /// The task of a creation, from admission to its outcome.
    async fn make(self: &Arc<Self>, order: Order) -> Result<Sandbox, Error> {
        match self.create_told(&order).await {
            Ok(facts) => {
                let sandbox = sandbox_of(&order, State::Running, facts);
                self.ledger().put(sandbox.clone(), None);
                self.follow(&sandbox);
                Ok(sandbox)
            }
            Err(error) => {
                tracing::warn!(sandbox.id = %order.id, %error, "sandbox not created");
                self.ledger().remove(&order.id);
                self.installs.layers.release(&order.id, self.clock.now());
                Err(error)
            }
        }
    }

    /// Waits for the end of a running sandbox, and tells of it.
    fn follow(self: &Arc<Self>, sandbox: &Sandbox) {
        let (service, stopped) = (Arc::clone(self), self.tasks.token());
        let (id, home, created_at) = (sandbox.id.clone(), sandbox.home.clone(), sandbox.created_at);
        self.tasks.spawn_detached("follow sandbox", async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                reason = service.runtime.wait(&home) => service.died(&id, created_at, &reason),
            }
        });
    }

    fn died(&self, id: &SandboxId, created_at: DateTime<Utc>, reason: &str) {
        if self.ledger().died(id, created_at, reason) {
            tracing::info!(sandbox.id = %id, reason, "sandbox died");
        }
    }

    /// Destroys a sandbox. Idempotent: an unknown id is gone already. When the caller goes away the
    /// destruction goes on to its end.
    ///
    /// # Errors
    /// `DestroyFailed` when something is left; to try again is right.
    pub(crate) async fn delete(self: &Arc<Self>, id: &SandboxId) -> Result<(), Error> {
        loop {
            match self.begin_delete(id) {
                Job::Delete(outcome) => return outcome.await,
                // What is being made is destroyed when it is whole.
                Job::Create(outcome) => drop(outcome.await),
            }
        }
    }

    fn begin_delete(self: &Arc<Self>, id: &SandboxId) -> Job {
        let mut ledger = self.ledger();
        if let Some(job) = ledger.get(id).and_then(|slot| slot.job.clone()) {
            return job;
        }
        if ledger.is_home_of_another(id) {
            // The warm one is gone already; what is there is somebody's.
            return Job::Delete(futures::future::ready(Ok(())).boxed().shared());
        }
        let (service, gone, home) = (Arc::clone(self), id.clone(), ledger.home(id));
        let outcome = self.spawn("delete sandbox", async move { service.unmake(&gone, &home).await });
        ledger.begin(id, Job::Delete(outcome.clone()));
        Job::Delete(outcome)
    }

    /// The task of a destruction.
    async fn unmake(&self, id: &SandboxId, home: &SandboxId) -> Result<(), Error> {
        let outcome = self.runtime.delete(home).await;
        let mut ledger = self.ledger();
        match &outcome {
            Ok(()) => {
                ledger.remove(id);
                self.installs.layers.release(id, self.clock.now());
            }
            Err(error) => {
                tracing::error!(sandbox.id = %id, %error, "sandbox not destroyed");
                ledger.undeletable(id, &error.to_string());
            }
        }
        outcome
    }

    /// Spawns work that is carried to its end whoever awaits it.
    fn spawn<T: Clone + Send + Sync + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Outcome<T> {
        let (done, outcome) = oneshot::channel();
        self.tasks.spawn(name, async move {
            // An error means that nobody awaits it any more.
            let _ = done.send(work.await);
        });
        let lost =
            move |_| Err(Error::internal(anyhow::anyhow!("the task `{name}` ended without an outcome")));
        outcome.map(move |outcome| outcome.unwrap_or_else(lost)).boxed().shared()
    }

    /// Reads a sandbox.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn get(&self, id: &SandboxId) -> Result<Sandbox, Error> {
        let ledger = self.ledger();
        let sandbox = ledger.get(id).and_then(|slot| slot.sandbox.clone());
        sandbox.ok_or_else(|| Error::NotFound(id.to_string()))
    }

    /// At most `limit` sandboxes, ordered by id, from after `after`; and whether there are more.
    pub(crate) fn list(&self, after: Option<&SandboxId>, limit: usize) -> (Vec<Sandbox>, bool) {
        let ledger = self.ledger();
        let mut rest = ledger.sandboxes().filter(|sandbox| after.is_none_or(|after| sandbox.id > *after));
        let page = rest.by_ref().take(limit).cloned().collect();
        (page, rest.next().is_some())
    }

    /// First each sandbox that exists, then every change, until the agent stops. A watcher that falls too
    /// far behind gets an error at the end, and is to list again.
    pub(crate) fn watch(&self) -> impl Stream<Item = Result<Sandbox, Error>> + Send + 'static {
        let (existing, changes) = self.ledger().watch();
        let changes = BroadcastStream::new(changes).map(|change| {
            change.map_err(|BroadcastStreamRecvError::Lagged(missed)| Error::WatchLagged(missed))
        });
        let stopped = self.tasks.token().cancelled_owned();
        stream::iter(existing.into_iter().map(Ok)).chain(changes).take_until(stopped)
    }

    /// Has the node take no new sandboxes, or take some again.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub(crate) fn set_draining(&self, draining: bool) -> Result<(), Error> {
        self.drain.set(draining).map_err(|error| {
            let told = "that the node drains cannot be written down, so it is as it was";
            Error::internal(anyhow::Error::new(error).context(told))
        })?;
        tracing::info!(node.id = self.identity.node_id, draining, "draining was decided");
        Ok(())
    }

    /// The end of the log of a sandbox, and what is added to it while the sandbox is there, if `follow`.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn read_log(
        self: &Arc<Self>,
        id: &SandboxId,
        tail: u64,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<Vec<u8>, Error>> + Send + 'static, Error> {
        self.get(id)?;
        let (service, id, stopped) = (Arc::clone(self), id.clone(), self.tasks.token().cancelled_owned());
        let parts = stream::unfold(Some(LogStart::Tail(tail)), move |from| {
            let (service, id) = (Arc::clone(&service), id.clone());
            async move {
                let part = service.next_log_part(&id, from?, follow).await?;
                let next = Some(LogStart::At(part.next)).filter(|_| follow);
                Some((Ok(part.data), next))
            }
        });
        Ok(parts.take_until(stopped))
    }

    /// The next part of a log with something in it; `None` when there will be none.
    async fn next_log_part(&self, id: &SandboxId, mut from: LogStart, follow: bool) -> Option<LogPart> {
        loop {
            // The log goes with the sandbox.
            let home = self.ledger().home(id);
            let part = self.runtime.log(&home, from).await.ok()?;
            if !part.data.is_empty() {
                return Some(part);
            }
            if !follow || self.get(id).is_err() {
                return None;
            }
            from = LogStart::At(part.next);
            tokio::time::sleep(LOG_PAUSE).await;
        }
    }

    /// What the node has now.
    pub(crate) async fn load(&self) -> Load {
        let images = self.runtime.images().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "images not listed");
            Vec::new()
        });
        let package_sets = self.installs.layers.fingerprints();
        let ledger = self.ledger();
        let draining = self.tasks.token().is_cancelled() || self.drain.is_draining();
        Load { sandboxes: ledger.count(), allocated: ledger.allocated(), images, package_sets, draining }
    }

    /// Measures now whether the runtime can work.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) async fn check(&self) -> Result<Ability, Problems> {
        self.runtime.check().await
    }
}

fn sandbox_of(order: &Order, state: State, facts: Facts) -> Sandbox {
    let Order { id, spec, created_at, .. } = order.clone();
    Sandbox { home: id.clone(), id, spec, state, reason: String::new(), created_at, facts }
}

/// What there is of an id already.
fn known(ledger: &Ledger, id: &SandboxId, spec: &Spec) -> Result<Option<Begun>, Error> {
    if ledger.is_home_of_another(id) {
        return Err(Error::Exists(id.clone()));
    }
    let Some(slot) = ledger.get(id) else { return Ok(None) };
    match (&slot.sandbox, &slot.job) {
        (_, Some(Job::Delete(outcome))) => Ok(Some(Begun::Busy(Job::Delete(outcome.clone())))),
        (Some(sandbox), _) if !sandbox.spec.is_same(spec) => Err(Error::Exists(id.clone())),
        (_, Some(Job::Create(outcome))) => Ok(Some(Begun::Busy(Job::Create(outcome.clone())))),
        (Some(sandbox), None) if sandbox.state == State::Dead => {
            Err(Error::Dead(id.clone(), sandbox.reason.clone()))
        }
        (Some(sandbox), None) => Ok(Some(Begun::Exists(Box::new(sandbox.clone())))),
        (None, None) => Err(Error::NotFound(id.to_string())),
    }
}

#[cfg(test)]
pub(crate) mod contract;
