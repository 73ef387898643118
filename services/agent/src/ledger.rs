//! The sandboxes of the node in memory: who is there, what is promised, and who is told of changes.
//!
//! Admission happens here, under the one lock that `service.rs` holds: what is promised never passes the
//! limits, however many ask at once. No I/O.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::future::{BoxFuture, Shared};
use tokio::sync::broadcast;

use crate::{
    Error,
    packages::LayerKey,
    sandbox::{Resources, Sandbox, SandboxId, State},
};

/// How many changes a slow watcher may be behind.
const WATCH_BACKLOG: usize = 1024;

/// The outcome of work that several callers may await.
pub(crate) type Outcome<T> = Shared<BoxFuture<'static, Result<T, Error>>>;

/// What is being done to a sandbox now.
#[derive(Debug, Clone)]
pub(crate) enum Job {
    /// It is being made.
    Create(Outcome<Sandbox>),
    /// It is being destroyed.
    Delete(Outcome<()>),
}

/// One sandbox, or one id of which nothing is known that is being destroyed.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The sandbox; `None` for an id of which nothing is known.
    pub(crate) sandbox: Option<Sandbox>,
    /// What is being done to it.
    pub(crate) job: Option<Job>,
}

/// What the node hands out in all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How many sandboxes, dead ones included until they are deleted.
    pub(crate) max_sandboxes: u32,
    /// CPU in thousandths of a core; `None` means it is not counted.
    pub(crate) cpu_millis: Option<u32>,
    /// Memory in bytes.
    pub(crate) memory_bytes: u64,
}

/// The sandboxes of the node.
#[derive(Debug)]
pub(crate) struct Ledger {
    limits: Limits,
    slots: BTreeMap<SandboxId, Slot>,
    changes: broadcast::Sender<Sandbox>,
}

impl Ledger {
    /// An empty one.
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, slots: BTreeMap::new(), changes: broadcast::channel(WATCH_BACKLOG).0 }
    }

    /// The slot of an id.
    pub(crate) fn get(&self, id: &SandboxId) -> Option<&Slot> {
        self.slots.get(id)
    }

    /// What the runtime knows a sandbox by.
    pub(crate) fn home(&self, id: &SandboxId) -> SandboxId {
        let sandbox = self.get(id).and_then(|slot| slot.sandbox.as_ref());
        sandbox.map_or_else(|| id.clone(), |sandbox| sandbox.home.clone())
    }

    /// Whether another sandbox is at home under this id: a warm one had it, which was claimed.
    pub(crate) fn is_home_of_another(&self, id: &SandboxId) -> bool {
        self.sandboxes().any(|sandbox| sandbox.home == *id && sandbox.id != *id)
    }

    /// The sandboxes, ordered by id.
    pub(crate) fn sandboxes(&self) -> impl Iterator<Item = &Sandbox> {
        self.slots.values().filter_map(|slot| slot.sandbox.as_ref())
    }

    /// How many sandboxes there are, dead ones included.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.sandboxes().count()).unwrap_or(u32::MAX)
    }

    /// What is promised to live sandboxes.
    pub(crate) fn allocated(&self) -> Resources {
        let live = self.sandboxes().filter(|sandbox| sandbox.state.is_live());
        live.map(|sandbox| sandbox.spec.resources).fold(Resources::default(), |sum, one| Resources {
            cpu_millis: sum.cpu_millis.saturating_add(one.cpu_millis),
            memory_bytes: sum.memory_bytes.saturating_add(one.memory_bytes),
            disk_bytes: sum.disk_bytes.saturating_add(one.disk_bytes),
            max_processes: sum.max_processes.saturating_add(one.max_processes),
        })
    }

    /// Says what there is no more of for a sandbox of this size.
    ///
    /// # Errors
    /// The limit that it would pass, for a person.
    pub(crate) fn admit(&self, wanted: &Resources) -> Result<(), String> {
        let Limits { max_sandboxes, cpu_millis, memory_bytes } = self.limits;
        if self.count() >= max_sandboxes {
            return Err(format!("it has its {max_sandboxes} sandboxes"));
        }
        let used = self.allocated();
        if used.memory_bytes.saturating_add(wanted.memory_bytes) > memory_bytes {
            return Err(format!("{} of {memory_bytes} bytes of memory are promised", used.memory_bytes));
        }
        match cpu_millis {
            Some(limit) if used.cpu_millis.saturating_add(wanted.cpu_millis) > limit => {
                Err(format!("{} of {limit} cpu_millis are promised", used.cpu_millis))
            }
            _ => Ok(()),
        }
    }

    /// Puts a sandbox in, and tells the watchers.
    pub(crate) fn put(&mut self, sandbox: Sandbox, job: Option<Job>) {
        self.tell(&sandbox);
        self.slots.insert(sandbox.id.clone(), Slot { sandbox: Some(sandbox), job });
    }

    /// Puts in what is being done to an id.
    pub(crate) fn begin(&mut self, id: &SandboxId, job: Job) {
        self.slots.entry(id.clone()).or_insert(Slot { sandbox: None, job: None }).job = Some(job);
    }

    /// Marks a running sandbox as dead, and tells the watchers. False when it is not running any more, is
    /// being destroyed anyway, or is another of the same id.
    pub(crate) fn died(&mut self, id: &SandboxId, created_at: DateTime<Utc>, reason: &str) -> bool {
        let Some(Slot { sandbox: Some(sandbox), job: None }) = self.slots.get(id) else { return false };
        if sandbox.state != State::Running || sandbox.created_at != created_at {
            return false;
        }
        self.put(Sandbox { state: State::Dead, reason: reason.to_owned(), ..sandbox.clone() }, None);
        true
    }

    /// A running sandbox has another layer of packages; watchers are told.
    pub(crate) fn mounted(&mut self, id: &SandboxId, created_at: DateTime<Utc>, key: &LayerKey) {
        let Some(Slot { sandbox: Some(sandbox), job }) = self.slots.get_mut(id) else { return };
        if sandbox.created_at == created_at {
            sandbox.facts.show_layer(key);
            let (sandbox, job) = (sandbox.clone(), job.clone());
            self.put(sandbox, job);
        }
    }

    /// What the creation of a sandbox waits for, which may take long; empty when it goes on. Watchers are told.
    pub(crate) fn waits(&mut self, id: &SandboxId, created_at: DateTime<Utc>, reason: String) {
        let Some(Slot { sandbox: Some(sandbox), job }) = self.slots.get(id) else { return };
        if sandbox.state == State::Creating && sandbox.created_at == created_at && sandbox.reason != reason {
            let (sandbox, job) = (Sandbox { reason, ..sandbox.clone() }, job.clone());
            self.put(sandbox, job);
        }
    }

    /// A destruction failed: what is left is dead, and may be destroyed again.
    pub(crate) fn undeletable(&mut self, id: &SandboxId, reason: &str) {
        if let Some(Slot { sandbox: Some(sandbox), .. }) = self.slots.remove(id) {
            self.put(Sandbox { state: State::Dead, reason: reason.to_owned(), ..sandbox }, None);
        }
    }

    /// Takes a sandbox out, and tells the watchers.
    pub(crate) fn remove(&mut self, id: &SandboxId) {
        if let Some(Slot { sandbox: Some(mut sandbox), .. }) = self.slots.remove(id) {
            sandbox.state = State::Deleted;
            self.tell(&sandbox);
        }
    }

    /// What exists now, and every change after.
    pub(crate) fn watch(&self) -> (Vec<Sandbox>, broadcast::Receiver<Sandbox>) {
        (self.sandboxes().cloned().collect(), self.changes.subscribe())
    }

    fn tell(&self, sandbox: &Sandbox) {
        // An error means that nobody watches.
        let _ = self.changes.send(sandbox.clone());
    }
}
