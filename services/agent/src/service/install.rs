//! Packages for sandboxes: a set is installed once, as a layer, and shared by all who ask for the same.
//!
//! An installation is a task of its own that several callers may await and none can interrupt. Its time
//! limit is the latest of those who wait for it.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep_until},
};

use super::Service;
use crate::{
    Error,
    layers::Layers,
    ledger::Outcome,
    packages::{Layer, LayerKey, PackageSet},
    sandbox::{Sandbox, SandboxId, Spec, State},
};

/// How long an installation at its limit may take to be stopped and cleared away.
const STOPPING: Duration = Duration::from_secs(30);

/// What is installed, and what is being installed.
#[derive(Debug)]
pub(crate) struct Installs {
    pub(crate) layers: Layers,
    /// One permit for each installer that may run.
    slots: Semaphore,
    running: Mutex<HashMap<LayerKey, Install>>,
    /// The sandboxes that are being given packages, each as often as it is.
    wanted_for: Mutex<Vec<SandboxId>>,
}

/// A sandbox that is being given packages.
pub(super) struct WantedFor<'a>(&'a Installs, SandboxId);

impl Drop for WantedFor<'_> {
    fn drop(&mut self) {
        let mut all = self.0.wanted_for();
        if let Some(at) = all.iter().position(|id| *id == self.1) {
            all.swap_remove(at);
        }
    }
}

/// An installation that runs.
#[derive(Debug, Clone)]
struct Install {
    outcome: Outcome<Arc<Layer>>,
    deadline: watch::Sender<Instant>,
}

/// A layer that a sandbox has now.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub(crate) layer: Arc<Layer>,
    /// It was there, or somebody else had it installed.
    pub(crate) reused: bool,
}

impl Installs {
    /// Nothing is being installed.
    pub(crate) fn new(layers: Layers, at_once: u32) -> Self {
        let slots = Semaphore::new(at_once as usize);
        Self { layers, slots, running: Mutex::default(), wanted_for: Mutex::default() }
    }

    fn wanted_for(&self) -> MutexGuard<'_, Vec<SandboxId>> {
        self.wanted_for.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin_for(&self, id: &SandboxId) -> WantedFor<'_> {
        self.wanted_for().push(id.clone());
        WantedFor(self, id.clone())
    }

    /// Whether a sandbox is being given packages.
    pub(crate) fn is_for(&self, id: &SandboxId) -> bool {
        self.wanted_for().contains(id)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<LayerKey, Install>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// The key of the layer that a set becomes for sandboxes of this; `None` while that cannot be known, and then
    /// it is not there.
    ///
    /// # Errors
    /// `NoInstaller` when there is no interpreter for it.
    pub(crate) async fn layer_key(&self, spec: &Spec, set: &PackageSet) -> Result<Option<LayerKey>, Error> {
        let interpreter = self.runtime.interpreter(spec, set.language).await;
        let interpreter = interpreter.map_err(|why| self.no_installer(why))?;
        Ok(interpreter.map(|interpreter| set.key(&interpreter)))
    }

    fn no_installer(&self, why: impl Into<String>) -> Error {
        Error::NoInstaller { node: self.identity.node_id.clone(), why: why.into() }
    }

    /// What a sandbox has of packages.
    pub(crate) fn layer_of(&self, sandbox: &Sandbox) -> Option<Arc<Layer>> {
        sandbox.facts.layer.as_ref().and_then(|key| self.installs.layers.get(key))
    }

    /// Installs packages, unless they are, and gives them to a sandbox. When the caller goes away an
    /// installation goes on.
    ///
    /// # Errors
    /// `NotFound`, `NoInstaller`, `InstallFailed`, `NotMounted`, `Stopping`.
    pub(crate) async fn install_packages(
        self: &Arc<Self>,
        id: &SandboxId,
        set: PackageSet,
        limit: Duration,
    ) -> Result<Given, Error> {
        // First, so that a warm one is not claimed meanwhile, or is gone already.
        let _giving = self.installs.begin_for(id);
        let sandbox = self.get(id)?;
        if sandbox.state != State::Running {
            return Err(Error::NotFound(id.to_string()));
        }
        if sandbox.facts.isolation.jail == "none" {
            return Err(self.no_installer("it has no jail to install in: `agent.isolation.jail` is off"));
        }
        let key = self.layer_key(&sandbox.spec, &set).await?;
        let key = key.ok_or_else(|| self.no_installer("its image is gone"))?;
        let held = self.installs.layers.hold(id, &key, self.clock.now());
        let given = match held {
            Some(layer) => Ok(Given { layer, reused: true }),
            None => self.installed(&key, (sandbox.spec.clone(), set), Instant::now() + limit).await,
        };
        let given = match given {
            Ok(given) => self.give(&sandbox, &given.layer).await.map(|()| given),
            Err(error) => Err(error),
        };
        if given.is_err() && self.get(id).map_or(true, |now| !now.facts.layers.contains(&key)) {
            self.installs.layers.unhold(id, &key);
        }
        given
    }

    /// The layer, once it is installed.
    async fn installed(
        self: &Arc<Self>,
        key: &LayerKey,
        what: (Spec, PackageSet),
        deadline: Instant,
    ) -> Result<Given, Error> {
        let (install, reused) = self.begin_install(key, what, deadline);
        let Some(install) = install else {
            let layer = self.installs.layers.get(key);
            let lost = || Error::internal(anyhow::anyhow!("layer `{key}` vanished"));
            return layer.map(|layer| Given { layer, reused: true }).ok_or_else(lost);
        };
        let late = || Error::InstallFailed {
            message: "the time limit was reached before the packages were installed".to_owned(),
            timed_out: true,
        };
        // Where nobody has more patience it is stopped at this very moment, and its outcome says more.
        let patience = if *install.deadline.borrow() > deadline { Duration::ZERO } else { STOPPING };
        let outcome = tokio::time::timeout_at(deadline + patience, install.outcome).await;
        let layer = outcome.unwrap_or_else(|_| Err(late()))?;
        Ok(Given { layer, reused })
    }

    /// Begins an installation, or joins the one that runs, and whether it does. `None` when it has ended well
    /// just now.
    fn begin_install(
        self: &Arc<Self>,
        key: &LayerKey,
        (spec, set): (Spec, PackageSet),
        deadline: Instant,
    ) -> (Option<Install>, bool) {
        let mut running = self.installs.running();
        if let Some(install) = running.get(key) {
            install.deadline.send_if_modified(|latest| {
                let later = deadline > *latest;
                *latest = deadline.max(*latest);
                later
            });
            return (Some(install.clone()), true);
        }
        if self.installs.layers.get(key).is_some() {
            return (None, true);
        }
        let (service, key) = (Arc::clone(self), key.clone());
        let (latest, until) = watch::channel(deadline);
        let name = key.clone();
        let outcome = self.spawn("install packages", async move {
            let stopped = service.tasks.token();
            let node = || Error::Stopping(service.identity.node_id.clone());
            let installed = stopped.run_until_cancelled(service.install(&key, (&spec, &set), until)).await;
            // After the layer is there: whoever comes in between joins this one or finds it.
            service.installs.running().remove(&key);
            installed.unwrap_or_else(|| Err(node()))
        });
        let install = Install { outcome, deadline: latest };
        running.insert(name, install.clone());
        (Some(install), false)
    }

    /// The task of an installation.
    async fn install(
        &self,
        key: &LayerKey,
        what: (&Spec, &PackageSet),
        mut until: watch::Receiver<Instant>,
    ) -> Result<Arc<Layer>, Error> {
        let started = Instant::now();
        let slot = tokio::select! {
            slot = self.installs.slots.acquire() => slot,
            () = passed(&mut until) => {
                let message = "too many other installations run on the node".to_owned();
                return Err(Error::InstallFailed { message, timed_out: true });
            }
        };
        let dir = self.installs.layers.begin(key).map_err(Error::internal)?;
        let made = self.make_layer(key, what, &dir, until).await;
        drop(slot);
        match &made {
            Ok(layer) => tracing::info!(
                layer.key = %key, packages = layer.installed.len(), bytes = layer.bytes,
                seconds = started.elapsed().as_secs_f64(), "packages installed"
            ),
            Err(error) => {
                tracing::info!(layer.key = %key, %error, "packages not installed");
                self.installs.layers.discard(&dir);
            }
        }
        made
    }

    async fn make_layer(
        &self,
        key: &LayerKey,
        (spec, set): (&Spec, &PackageSet),
        dir: &Path,
        until: watch::Receiver<Instant>,
    ) -> Result<Arc<Layer>, Error> {
        let contents = self.runtime.install(spec, set, &dir.join("files"), until).await?;
        let layer = Layer {
            key: key.clone(),
            fingerprint: set.fingerprint.clone(),
            language: set.language,
            installed: contents.installed,
            bytes: contents.bytes,
            installed_at: self.clock.now(),
        };
        self.installs.layers.finish(dir, layer).map_err(Error::internal)
    }

    /// Gives a layer to a sandbox that runs.
    async fn give(&self, sandbox: &Sandbox, layer: &Layer) -> Result<(), Error> {
        self.runtime.mount_layer(&sandbox.home, layer).await?;
        self.ledger().mounted(&sandbox.id, sandbox.created_at, &layer.key);
        Ok(())
    }

    /// Removes layers that are not to be kept.
    pub(super) async fn tend_layers(self: &Arc<Self>) {
        let service = Arc::clone(self);
        let now = self.clock.now();
        // Many files may go.
        let gone = tokio::task::spawn_blocking(move || service.installs.layers.evict(now)).await;
        if let Ok(gone @ 1..) = gone {
            tracing::info!(gone, "layers of packages removed that nobody used");
        }
    }
}

/// Waits for a deadline that may be moved.
pub(crate) async fn passed(deadline: &mut watch::Receiver<Instant>) {
    loop {
        let until = *deadline.borrow_and_update();
        tokio::select! {
            () = sleep_until(until) => return,
            changed = deadline.changed() => if changed.is_err() {
                return sleep_until(until).await;
            },
        }
    }
}
