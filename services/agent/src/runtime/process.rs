//! The runtime of jailed processes: one `sandmesh-executor` for each sandbox, which outlives the agent.
//!
//! A sandbox is a directory `sandboxes/ID` below the data directory. The executor makes and enforces the
//! isolation; here is only starting it, finding it again, seeing it end and clearing it away.

mod install;
mod starts;

use self::starts::Starts;

pub(super) use self::install::proxy_socket;

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use rand::Rng;
use rustix::process::Signal;
use sandmesh_mesh::Clock;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    Ability, Contents, Found, LogPart, LogStart, Order, Problems, Runtime,
    arrival::Arrivals,
    executor::{answered, claim_noted, facts, ids_in, mount_noted, open_to, with_log},
    life::{self, Mark, Process},
    log,
    program::Program,
    record::{Record, why_dead},
    uids::Uids,
};
use crate::{
    Config, Error, layers,
    packages::{Layer, PackageSet},
    proxy::Host,
    sandbox::{Facts, Language, SandboxId, Spec},
};

/// How long an executor may take to end by itself before it is killed.
const GRACE: Duration = Duration::from_millis(300);
/// How long an executor found at the start may take to answer.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(3);
/// How many are asked at once at the start.
const ADOPT_AT_ONCE: usize = 16;

/// Makes sandboxes of processes.
#[derive(Debug)]
pub(crate) struct ProcessRuntime {
    program: Program,
    root: PathBuf,
    /// Where the sandboxes of installers are.
    installs: PathBuf,
    /// Where the layers of packages are.
    layers: PathBuf,
    /// What installers reach.
    hosts: Arc<Vec<Host>>,
    start_timeout: Duration,
    starts: Starts,
    clock: Arc<dyn Clock>,
    /// Present when the agent may give each sandbox a uid of its own.
    uids: Option<Mutex<Uids>>,
    held: Mutex<HashMap<SandboxId, Held>>,
}

/// What this process holds of a sandbox.
#[derive(Debug, Clone)]
struct Held {
    process: Option<Arc<Process>>,
    uid: Option<u32>,
    expires_at: Option<chrono::DateTime<chrono::Utc>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProcessRuntime {
    /// The runtime for sandboxes below `data_dir`. Changes nothing on the machine.
    ///
    /// # Errors
    /// When the executor program is missing, naming the setting.
    pub(crate) fn new(config: &Config, data_dir: &Path, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        Config::validate_data_dir(data_dir)?;
        let dedicated = rustix::process::geteuid().is_root();
        let data_dir = std::path::absolute(data_dir)?;
        Ok(Self {
            program: Program::locate(config, &data_dir, std::env::current_exe().ok().as_deref())?,
            root: data_dir.join("sandboxes"),
            installs: install::root(&data_dir),
            layers: layers::root(&data_dir),
            hosts: Arc::new(config.packages.hosts()?),
            start_timeout: config.start_timeout.0,
            starts: Starts::new(&data_dir),
            clock,
            uids: dedicated.then(|| Mutex::new(uids(config))),
            held: Mutex::default(),
        })
    }

    fn dir(&self, id: &SandboxId) -> PathBuf {
        self.root.join(id.as_str())
    }

    fn take_uid(&self, id: &SandboxId) -> Result<Option<u32>, Error> {
        let Some(uids) = &self.uids else { return Ok(None) };
        let uid = lock(uids).take();
        let why = || "every uid of `agent.uid_count` is held".to_owned();
        uid.map(Some).ok_or_else(|| Error::StartFailed { id: id.clone(), why: why() })
    }

    fn free_uid(&self, uid: Option<u32>) {
        if let (Some(uids), Some(uid)) = (&self.uids, uid) {
            lock(uids).free(uid);
        }
    }

    fn process(&self, id: &SandboxId) -> Option<Arc<Process>> {
        lock(&self.held).get(id).and_then(|held| held.process.clone())
    }

    /// Everything up to an answering executor. What it made when it fails is for `delete` to clear.
    async fn start(&self, order: &Order, uid: Option<u32>) -> Result<Facts, String> {
        let _starting = self.starts.begin().await;
        let dir = self.dir(&order.id);
        let mut record = Record {
            spec: order.spec.clone(),
            uid,
            created_at: order.created_at,
            process: None,
            container: None,
            claimed_as: None,
            facts: None,
        };
        let log = layers::make_root(&self.layers)
            .and_then(|()| prepare(&self.root, &dir))
            .map_err(|error| format!("cannot make its directory: {error}"))?;
        // Before it is started, so that its socket is not missed. Without, as with too many, it is looked for.
        let arrivals = Arrivals::into_dir(&dir).ok();
        let cannot_run = |error: io::Error| format!("cannot run its executor: {error}");
        let turns = self.starts.turn().map_err(cannot_run)?;
        let child = self.program.serve(order, (&dir, &turns), uid, log).map_err(cannot_run)?;
        record.process = mark(child.id());
        let process = Arc::new(Process::of_child(child).map_err(cannot_run)?);
        if let Some(held) = lock(&self.held).get_mut(&order.id) {
            held.process = Some(Arc::clone(&process));
        }
        record.save(&dir).map_err(|error| format!("cannot record it: {error}"))?;
        let answer = tokio::select! {
            answer = answered(&dir, &order.id, self.start_timeout, arrivals.as_ref()) => answer,
            status = process.ended() => Err(life::describe(status)),
        };
        let answer = answer.map_err(|why| with_log(&why, &dir))?;
        open_to(&dir, self.program.config().socket_group)?;
        let mut facts = facts(&dir, order.spec.language, answer);
        if let Some(layer) = &order.layer {
            facts.show_layer(&layer.key);
        }
        record.facts = Some(facts.clone());
        record.save(&dir).map_err(|error| format!("cannot record it: {error}"))?;
        Ok(facts)
    }

    async fn adopt_one(&self, id: SandboxId) -> Found {
        let dir = self.dir(&id);
        let record = match Record::load(&dir) {
            Ok(Record { facts: None, .. }) => return Found::HalfMade(id),
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(sandbox.id = %id, %error, "no record of a sandbox found; it will be destroyed");
                return Found::HalfMade(id);
            }
        };
        let (process, found) = match self.take_over(&record, &id, &dir).await {
            Ok((process, found)) => (Some(Arc::new(process)), Ok(found)),
            Err(why) => (None, Err(why)),
        };
        let sandbox = record.taken_over(id, found, self.clock.now());
        self.hold(
            sandbox.home.clone(),
            Held { process, uid: record.uid, expires_at: record.spec.expires_at },
        );
        Found::Whole(Box::new(sandbox))
    }

    async fn take_over(
        &self,
        record: &Record,
        id: &SandboxId,
        dir: &Path,
    ) -> Result<(Process, Facts), String> {
        let process = record.process.map(Process::adopt).transpose();
        let process = process.map_err(|error| format!("executor cannot be watched: {error}"))?;
        let process = process.flatten().ok_or("executor ended while no agent ran")?;
        let answer = answered(dir, id, ADOPT_TIMEOUT, None).await?;
        open_to(dir, self.program.config().socket_group)?;
        Ok((process, facts(dir, record.spec.language, answer)))
    }

    fn hold(&self, id: SandboxId, held: Held) {
        if let (Some(uids), Some(uid)) = (&self.uids, held.uid) {
            lock(uids).hold(uid);
        }
        lock(&self.held).insert(id, held);
    }

    /// Why it is dead: its time was over, or else `why`.
    fn reason(&self, expires_at: Option<DateTime<Utc>>, why: String) -> String {
        why_dead(expires_at, why, self.clock.now())
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    fn name(&self) -> &'static str {
        "process"
    }

    async fn check(&self) -> Result<Ability, Problems> {
        self.program.check(self.uids.as_ref().map(|uids| lock(uids).base())).await
    }

    async fn images(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    async fn adopt(&self) -> Result<Vec<Found>, Error> {
        self.clear_installers().await;
        let ids = ids_in(&self.root).map_err(|error| {
            Error::internal(
                anyhow::Error::new(error).context(format!("cannot read `{}`", self.root.display())),
            )
        })?;
        let found = stream::iter(ids).map(|id| self.adopt_one(id)).buffer_unordered(ADOPT_AT_ONCE);
        Ok(found.collect().await)
    }

    async fn create(&self, order: &Order) -> Result<Facts, Error> {
        let id = &order.id;
        let uid = self.take_uid(id)?;
        self.hold(id.clone(), Held { process: None, uid, expires_at: order.spec.expires_at });
        match self.start(order, uid).await {
            Ok(facts) => Ok(facts),
            Err(why) => {
                if let Err(error) = self.delete(id).await {
                    tracing::warn!(sandbox.id = %id, %error, "left over from a failed start");
                }
                Err(Error::StartFailed { id: id.clone(), why })
            }
        }
    }

    async fn claim(&self, home: &SandboxId, order: &Order) -> Result<(), Error> {
        claim_noted(&self.dir(home), home, order).await?;
        let expires_at = order.spec.expires_at;
        lock(&self.held).get_mut(home).into_iter().for_each(|held| held.expires_at = expires_at);
        Ok(())
    }

    async fn interpreter(&self, _: &Spec, language: Language) -> Result<Option<String>, String> {
        let found = self.program.runtime(language);
        found.map(Some).ok_or_else(|| format!("it has no {language}"))
    }

    async fn install(
        &self,
        _: &Spec,
        set: &PackageSet,
        files: &Path,
        deadline: watch::Receiver<Instant>,
    ) -> Result<Contents, Error> {
        self.run_installer(set, files, deadline).await
    }

    async fn mount_layer(&self, id: &SandboxId, layer: &Layer) -> Result<(), Error> {
        mount_noted(&self.dir(id), id, layer).await
    }

    async fn tend(&self) {
        let ids: Vec<SandboxId> = lock(&self.held).keys().cloned().collect();
        log::bound_all(&self.root, &ids);
    }

    async fn log(&self, id: &SandboxId, from: LogStart) -> io::Result<LogPart> {
        log::read(&self.dir(id), from)
    }

    async fn wait(&self, id: &SandboxId) -> String {
        let Some(held) = lock(&self.held).get(id).cloned() else { return "it is gone".to_owned() };
        match held.process {
            Some(process) => {
                let status = process.ended().await;
                self.reason(held.expires_at, life::describe(status))
            }
            None => self.reason(held.expires_at, life::describe(None)),
        }
    }

    async fn delete(&self, id: &SandboxId) -> Result<(), Error> {
        let dir = self.dir(id);
        let process = self.process(id);
        if let Some(process) = &process {
            process.signal(Signal::TERM);
            if timeout(GRACE, process.ended()).await.is_err() {
                process.signal(Signal::KILL);
            }
        }
        let failed = |why| Error::DestroyFailed { id: id.clone(), why };
        self.program.destroy(&dir, id.as_str()).await.map_err(failed)?;
        if fs::symlink_metadata(&dir).is_ok() {
            return Err(failed(format!("`{}` is still there", dir.display())));
        }
        if let Some(process) = &process {
            let ended = timeout(GRACE, process.ended()).await;
            ended.map_err(|_| failed("its executor still runs".to_owned()))?;
        }
        let held = lock(&self.held).remove(id);
        self.free_uid(held.and_then(|held| held.uid));
        Ok(())
    }
}

/// They start anywhere, so that two data directories on one machine seldom share one.
fn uids(config: &Config) -> Uids {
    Uids::new(config.uid_base, config.uid_count, rand::rng().random_range(0..config.uid_count))
}

/// Makes the directory of a sandbox, and opens its log. One without a record is half made.
fn prepare(root: &Path, dir: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    DirBuilder::new().mode(0o700).create(dir)?;
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(log::path(dir))
}

fn mark(pid: Option<u32>) -> Option<Mark> {
    let pid = i32::try_from(pid?).ok()?;
    Some(Mark { pid, start_time: life::start_time(pid)? })
}

#[cfg(test)]
pub(crate) mod tests;
