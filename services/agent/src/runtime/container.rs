//! The runtime of containers: one for each sandbox, whose first process is the static executor of the node,
//! whatever the image has. Which engine makes the containers is for `docker.rs` and `containerd.rs`.
//!
//! A sandbox is a directory `sandboxes/ID` below the data directory, with its record, its log and its socket,
//! and a container `sandmesh-ID-OWNER`. The record is what is trusted at a start; a container of ours without one
//! is left over. A container is made here and by the engine; its control groups and its jails are the executor's.

mod adopt;
mod check;
pub(in crate::runtime) mod engine;
mod install;
mod left;
pub(in crate::runtime) mod plan;
pub(in crate::runtime) mod reference;
pub(in crate::runtime) mod seccomp;
mod start;
pub(in crate::runtime) mod tools;
pub(in crate::runtime) mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use rand::Rng;
use rustix::process::Signal;
use sandmesh_mesh::{Clock, Tasks};
use tokio::{
    sync::{Mutex as AsyncMutex, OnceCell, watch as channel},
    time::{Instant, timeout},
};

use self::{
    engine::{Engine, Trouble},
    left::Left,
    plan::{LABEL_OWNER, Walls, name},
    reference::is_reference,
    tools::Tools,
    watch::Watch,
};
use super::{
    Ability, Contents, Found, LogPart, LogStart, Order, Problems, Runtime,
    executor::{claim_noted, ids_in, mount_noted},
    life::Process,
    log,
    program::Program,
    record::{Record, why_dead},
    uids::Uids,
};
use crate::{
    Config, Error,
    error::ImageProblem,
    layers,
    packages::{Layer, PackageSet},
    proxy::Host,
    sandbox::{Facts, Language, SandboxId, Spec},
};

/// How long an executor may take to end by itself before it is killed.
const GRACE: Duration = Duration::from_millis(300);
/// How long the engine may take to remove a container.
const REMOVAL: Duration = Duration::from_secs(20);
/// How long an executor found at the start may take to answer.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(3);
/// How many are asked at once at the start.
const ADOPT_AT_ONCE: usize = 16;
/// The longest path below a sandbox's directory that must be that of a socket.
const LONGEST_SOCKET: &str = "sandboxes/sbx_0123456789abcdef/own/entry.sock";
const SOCKET_PATH_MAX: usize = 107;
/// Versions of the interpreters of so many images are remembered.
const MOST_IMAGES: usize = 256;

/// What an engine's part of the configuration says of all containers.
#[derive(Debug, Clone)]
pub(in crate::runtime) struct Settings {
    /// The image of a sandbox whose template names none; empty for none.
    pub(in crate::runtime) image: String,
    /// Memory of a container beyond that of its executions.
    pub(in crate::runtime) memory_overhead: u64,
}

/// Makes sandboxes of containers.
#[derive(Debug)]
pub(crate) struct ContainerRuntime {
    config: Config,
    node_id: String,
    data_dir: PathBuf,
    program: Program,
    engine: Arc<dyn Engine>,
    settings: Settings,
    watch: Arc<Watch>,
    tools: Tools,
    root: PathBuf,
    installs: PathBuf,
    layers: PathBuf,
    hosts: Arc<Vec<Host>>,
    clock: Arc<dyn Clock>,
    uids: Mutex<Uids>,
    held: Mutex<HashMap<SandboxId, Held>>,
    /// What could not be removed while the engine was away. Held by whoever clears it away.
    left: AsyncMutex<BTreeMap<SandboxId, Left>>,
    /// By the id of an image: what its interpreters are, so that no sandbox has to start them all to know.
    versions: Mutex<HashMap<String, String>>,
    ready: OnceCell<Ready>,
    ability: OnceCell<Ability>,
}

/// What is found out about the node before the first container.
#[derive(Debug)]
struct Ready {
    walls: Walls,
    /// The name of the tools that containers get.
    tools: String,
    warnings: Vec<String>,
}

/// What this process holds of a sandbox.
#[derive(Debug, Clone)]
struct Held {
    process: Option<Arc<Process>>,
    /// The id of its container.
    container: Option<String>,
    /// Why it is dead, where that is known already.
    reason: Option<String>,
    uid: Option<u32>,
    expires_at: Option<chrono::DateTime<chrono::Utc>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No change in here is left half done by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ContainerRuntime {
    /// A runtime for sandboxes below `data_dir`. Asks nobody and changes nothing on the machine.
    ///
    /// # Errors
    /// When the executor program is missing, naming the setting.
    pub(in crate::runtime) fn new(
        config: &Config,
        (engine, settings): (Arc<dyn Engine>, Settings),
        data_dir: &Path,
        node_id: &str,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        Config::validate_data_dir(data_dir)?;
        let data_dir = std::path::absolute(data_dir)?;
        let longest = data_dir.join(LONGEST_SOCKET).as_os_str().len();
        anyhow::ensure!(
            longest <= SOCKET_PATH_MAX,
            "`{}` is {} bytes too long for the sockets of containers; give a shorter `--data-dir`",
            data_dir.display(),
            longest.saturating_sub(SOCKET_PATH_MAX)
        );
        let first = rand::rng().random_range(0..config.uid_count);
        Ok(Self {
            program: Program::locate(config, &data_dir, std::env::current_exe().ok().as_deref())?,
            watch: Arc::new(Watch::of(Arc::clone(&engine))),
            engine,
            settings,
            tools: Tools::new(&data_dir),
            root: data_dir.join("sandboxes"),
            installs: data_dir.join("installs"),
            layers: layers::root(&data_dir),
            hosts: Arc::new(config.packages.hosts()?),
            clock,
            uids: Mutex::new(Uids::new(config.uid_base, config.uid_count, first)),
            held: Mutex::default(),
            left: AsyncMutex::default(),
            versions: Mutex::default(),
            ready: OnceCell::new(),
            ability: OnceCell::new(),
            config: config.clone(),
            node_id: node_id.to_owned(),
            data_dir,
        })
    }

    /// What its containers are known by on an engine that others may use, too.
    fn owner(&self) -> String {
        self.data_dir.display().to_string()
    }

    fn dir(&self, id: &SandboxId) -> PathBuf {
        self.root.join(id.as_str())
    }

    fn first_uid(&self) -> u32 {
        lock(&self.uids).base()
    }

    /// Looks at the node, once.
    async fn ready(&self) -> Result<&Ready, Problems> {
        self.ready.get_or_try_init(|| self.make_ready()).await
    }

    async fn make_ready(&self) -> Result<Ready, Problems> {
        if !rustix::process::geteuid().is_root() {
            let problem = "the rights of root are missing: the agent makes directories of other users and control \
                           groups for containers; run it as root";
            return Err(Problems(vec![problem.to_owned()]));
        }
        let survey = self.engine.survey().await?;
        let tools = self.tools.assemble(self.program.path()).map_err(|why| Problems(vec![why]))?;
        let walls = Walls {
            owner: self.owner(),
            node_id: self.node_id.clone(),
            cgroup_parent: survey.cgroup_parent,
            apparmor: survey.apparmor,
            memory_overhead: self.settings.memory_overhead,
        };
        Ok(Ready { walls, tools, warnings: survey.warnings })
    }

    /// The image of a sandbox.
    fn image<'a>(&'a self, spec: &'a Spec) -> Result<&'a str, Error> {
        let no_image = |problem| Error::NoImage { image: spec.image.clone(), problem };
        match (spec.image.as_str(), self.settings.image.as_str()) {
            ("", "") => Err(no_image(ImageProblem::Unnamed(self.engine.name()))),
            ("", image) | (image, _) if is_reference(image) => Ok(image),
            _ => Err(no_image(ImageProblem::Invalid)),
        }
    }

    /// The id of an image, which is brought if it is not there. What that waits for is told.
    async fn have(&self, image: &str, progress: &channel::Sender<String>) -> Result<String, Error> {
        let have = self.engine.have_image(image, progress).await;
        have.map_err(|problem| Error::NoImage { image: image.to_owned(), problem })
    }

    fn take_uid(&self, id: &SandboxId) -> Result<u32, Error> {
        let why = || "every uid of `agent.uid_count` is held".to_owned();
        lock(&self.uids).take().ok_or_else(|| Error::StartFailed { id: id.clone(), why: why() })
    }

    fn hold(&self, id: &SandboxId, held: Held) {
        if let Some(uid) = held.uid {
            lock(&self.uids).hold(uid);
        }
        lock(&self.held).insert(id.clone(), held);
    }

    fn held(&self, id: &SandboxId) -> Option<Held> {
        lock(&self.held).get(id).cloned()
    }

    /// Why it is dead: its time was over, or else `why`.
    fn reason(&self, expires_at: Option<DateTime<Utc>>, why: String) -> String {
        why_dead(expires_at, why, self.clock.now())
    }

    /// Whether a container is of this agent; `None` where there is none.
    async fn is_ours(&self, name: &str) -> Result<Option<bool>, Trouble> {
        let labels = self.engine.labels(name).await?;
        Ok(labels.map(|labels| labels.get(LABEL_OWNER) == Some(&self.owner())))
    }

    /// Removes a container of ours, and then the directory of its sandbox.
    async fn clear(&self, id: &SandboxId, dir: &Path) -> Result<(), String> {
        let name = name(&self.owner(), id);
        if self.is_ours(&name).await.map_err(|trouble| trouble.to_string())? == Some(true) {
            self.engine.remove(&name, REMOVAL).await.map_err(|trouble| trouble.to_string())?;
        }
        // An engine that was killed while it made a container may not know any more that this runs. Of one without a
        // record only the name is known, which is its id at some engines.
        let group = Record::load(dir).ok().and_then(|record| record.container).map(|container| container.id);
        self.program.destroy(dir, &group.unwrap_or(name)).await?;
        if std::fs::symlink_metadata(dir).is_ok() {
            return Err(format!("`{}` is still there", dir.display()));
        }
        Ok(())
    }

    /// Ends the first process of a container, and with it all others. With no engine, too.
    async fn end(&self, process: &Process) -> Result<(), String> {
        // A container that gets another one than this is taken for lost.
        process.signal(Signal::INT);
        if timeout(GRACE, process.ended()).await.is_err() {
            process.signal(Signal::KILL);
        }
        let ended = timeout(REMOVAL, process.ended()).await;
        ended.map(drop).map_err(|_| "its executor still runs".to_owned())
    }
}

#[async_trait]
impl Runtime for ContainerRuntime {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn start(&self, tasks: &Tasks) {
        tasks.spawn("follow the engine", Arc::clone(&self.watch).follow(self.owner(), tasks.token()));
    }

    async fn check(&self) -> Result<Ability, Problems> {
        let ready = self.ready().await?;
        let known = self.ability.initialized();
        let ability = self.ability.get_or_try_init(|| self.probe(ready)).await?;
        if known {
            // What was found out holds as long as the engine is there.
            self.engine.ping().await.map_err(|trouble| Problems(vec![trouble.to_string()]))?;
        }
        Ok(ability.clone())
    }

    async fn images(&self) -> Result<Vec<String>, Error> {
        self.engine.images().await.map_err(Error::internal)
    }

    async fn claim(&self, home: &SandboxId, order: &Order) -> Result<(), Error> {
        claim_noted(&self.dir(home), home, order).await?;
        let expires_at = order.spec.expires_at;
        lock(&self.held).get_mut(home).into_iter().for_each(|held| held.expires_at = expires_at);
        Ok(())
    }

    async fn interpreter(&self, spec: &Spec, language: Language) -> Result<Option<String>, String> {
        let image = self.image(spec).map_err(|error| error.to_string())?;
        // Where it is not there yet, nobody installed anything for it.
        let id = self.engine.image_id(image).await.map_err(|trouble| trouble.to_string())?;
        Ok(id.map(|id| format!("image {id} {language}")))
    }

    async fn adopt(&self) -> Result<Vec<Found>, Error> {
        self.clear_installers().await;
        let unreadable = |error: io::Error| {
            let context = format!("cannot read `{}`", self.root.display());
            Error::internal(anyhow::Error::new(error).context(context))
        };
        let mut ids: BTreeSet<SandboxId> = ids_in(&self.root).map_err(unreadable)?.into_iter().collect();
        ids.extend(self.own_containers().await.map_err(Error::internal)?);
        let found: Vec<Found> =
            stream::iter(ids).map(|id| self.adopt_one(id)).buffer_unordered(ADOPT_AT_ONCE).collect().await;
        self.keep_tools(&found).await;
        Ok(found)
    }

    async fn create(&self, order: &Order) -> Result<Facts, Error> {
        let id = &order.id;
        let image = self.image(&order.spec)?;
        let image_id = self.have(image, &order.progress).await?;
        self.take_place(id).await?;
        let uid = self.take_uid(id)?;
        let expires_at = order.spec.expires_at;
        self.hold(id, Held { process: None, container: None, reason: None, uid: Some(uid), expires_at });
        match self.start_sandbox(order, uid, &image_id).await {
            Ok(facts) => Ok(facts),
            Err(why) => {
                self.give_up(id).await;
                Err(Error::StartFailed { id: id.clone(), why: format!("image `{image}`: {why}") })
            }
        }
    }

    async fn install(
        &self,
        spec: &Spec,
        set: &PackageSet,
        files: &Path,
        deadline: channel::Receiver<Instant>,
    ) -> Result<Contents, Error> {
        self.run_installer(self.image(spec)?, set, files, deadline).await
    }

    async fn mount_layer(&self, id: &SandboxId, layer: &Layer) -> Result<(), Error> {
        mount_noted(&self.dir(id), id, layer).await
    }

    async fn tend(&self) {
        let ids: Vec<SandboxId> = lock(&self.held).keys().cloned().collect();
        log::bound_all(&self.root, &ids);
        self.clear_left().await;
    }

    async fn log(&self, id: &SandboxId, from: LogStart) -> io::Result<LogPart> {
        log::read(&self.dir(id), from)
    }

    async fn wait(&self, id: &SandboxId) -> String {
        let Some(held) = self.held(id) else { return "it is gone".to_owned() };
        let (Some(process), Some(container)) = (&held.process, &held.container) else {
            return self.reason(held.expires_at, held.reason.unwrap_or_else(|| "executor ended".to_owned()));
        };
        process.ended().await;
        let why = self.watch.cause(&name(&self.owner(), id), container).await;
        self.reason(held.expires_at, why)
    }

    async fn delete(&self, id: &SandboxId) -> Result<(), Error> {
        let failed = |why| Error::DestroyFailed { id: id.clone(), why };
        let held = self.held(id);
        if let Some(process) = held.as_ref().and_then(|held| held.process.as_ref()) {
            self.end(process).await.map_err(failed)?;
        }
        self.clear(id, &self.dir(id)).await.map_err(failed)?;
        self.watch.forget(&name(&self.owner(), id));
        let held = lock(&self.held).remove(id);
        if let Some(uid) = held.and_then(|held| held.uid) {
            lock(&self.uids).free(uid);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
