//! The nodes and their sandboxes in memory, as last reported, and what is on its way to them.
//!
//! It is rebuilt from what the agents report, so it may be behind; whoever must be sure asks the node.
//! No I/O: `follower.rs` feeds it and `service.rs` asks it.

mod warm;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sandmesh_mesh::{CancellationToken, Clock, Link, timestamp};
use sandmesh_proto::{
    agent::{Node, Sandbox, SandboxSpec, sandbox::State},
    scheduler::NodeStatus,
};
use tokio::sync::{Notify, broadcast};

use crate::{
    Config, Error,
    placement::{self, Choice, Refusal, Wanted},
    view,
};

/// How many changes a slow watcher may be behind.
const WATCH_BACKLOG: usize = 1024;
/// For how long a placement is remembered of which the node has told nothing.
const PLACEMENT_MEMORY: Duration = Duration::from_secs(600);
/// For how long nobody else is given a warm sandbox that somebody was about to have.
const CLAIM_MEMORY: Duration = Duration::from_secs(60);

pub(crate) use self::warm::Used;

/// The nodes and their sandboxes.
#[derive(Debug)]
pub(crate) struct Registry {
    config: Config,
    clock: Arc<dyn Clock>,
    stopped: CancellationToken,
    known: Mutex<Known>,
    changes: broadcast::Sender<Sandbox>,
    reported: Notify,
    /// Told whenever there may be room that was not there before.
    room: Notify,
}

#[derive(Debug, Default)]
struct Known {
    nodes: BTreeMap<String, Entry>,
    /// Where sandboxes were sent of which their node has told nothing yet.
    placements: HashMap<String, Placement>,
    /// Warm sandboxes that somebody is about to have, and since when.
    claiming: HashMap<Place, DateTime<Utc>>,
}

#[derive(Debug)]
struct Placement {
    node_id: String,
    spec: SandboxSpec,
    placed_at: DateTime<Utc>,
}

/// The id of a sandbox, and its node.
pub(crate) type Place = (String, String);

/// One node.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As it reported last.
    pub(crate) node: Node,
    /// Its sandboxes, by id.
    pub(crate) sandboxes: BTreeMap<String, Sandbox>,
    /// Whether `sandboxes` is all of them, and up to date.
    pub(crate) followed: bool,
    /// It reported to this process; one that did not is known of from before.
    reported: bool,
    /// It was silent for so long that its sandboxes count as dead, until it reports again.
    lost: bool,
    last_seen: DateTime<Utc>,
    link: Link,
    follower: CancellationToken,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.follower.cancel();
    }
}

impl Registry {
    /// One without nodes; followers end when `stopped` is cancelled.
    pub(crate) fn new(config: Config, clock: Arc<dyn Clock>, stopped: CancellationToken) -> Self {
        Self {
            config,
            clock,
            stopped,
            known: Mutex::default(),
            changes: broadcast::channel(WATCH_BACKLOG).0,
            reported: Notify::new(),
            room: Notify::new(),
        }
    }

    /// Told whenever there may be room that was not there before, once for all that happened since.
    pub(crate) fn room(&self) -> &Notify {
        &self.room
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_healthy(&self, entry: &Entry) -> bool {
        let silent = (self.clock.now() - entry.last_seen).to_std().unwrap_or_default();
        silent <= self.config.heartbeat_timeout.0
    }

    /// Takes a report. `Some` when the node is new or has moved: its sandboxes are then to be followed until
    /// the token is cancelled.
    ///
    /// # Errors
    /// `TooManyNodes`.
    pub(crate) fn report(&self, node: Node, link: Link) -> Result<Option<CancellationToken>, Error> {
        let now = self.clock.now();
        let mut known = self.known();
        self.sweep(&mut known, now);
        let entry = known.nodes.get_mut(&node.node_id);
        // One that was lost is followed anew: what it has is not what is known here.
        let same = |entry: &&mut Entry| entry.node.endpoint == node.endpoint && entry.reported && !entry.lost;
        let follow = match entry.filter(same) {
            Some(entry) => {
                (entry.node, entry.last_seen) = (node, now);
                None
            }
            None => Some(self.add(&mut known, node, link)?),
        };
        drop(known);
        self.reported.notify_waiters();
        self.room.notify_one();
        Ok(follow)
    }

    /// Adds a node that is new or has moved. What was known of its sandboxes stays until it tells.
    fn add(&self, known: &mut Known, node: Node, link: Link) -> Result<CancellationToken, Error> {
        let id = node.node_id.clone();
        let before = known.nodes.remove(&id);
        if known.nodes.len() >= self.config.max_nodes as usize {
            return Err(Error::TooManyNodes(self.config.max_nodes));
        }
        let sandboxes = before.map(|mut entry| std::mem::take(&mut entry.sandboxes)).unwrap_or_default();
        let follower = self.stopped.child_token();
        let last_seen = self.clock.now();
        let (followed, reported, lost) = (false, true, false);
        let entry =
            Entry { node, sandboxes, followed, reported, lost, last_seen, link, follower: follower.clone() };
        known.nodes.insert(id, entry);
        Ok(follower)
    }

    /// Knows of a node from before: it counts as late until it reports, and as lost if it does not.
    pub(crate) fn remember(&self, node: Node, link: Link) {
        let late = TimeDelta::from_std(self.config.heartbeat_timeout.0).unwrap_or_default();
        let entry = Entry {
            sandboxes: BTreeMap::new(),
            followed: false,
            reported: false,
            lost: false,
            last_seen: self.clock.now() - late - TimeDelta::milliseconds(1),
            link,
            follower: self.stopped.child_token(),
            node,
        };
        self.known().nodes.entry(entry.node.node_id.clone()).or_insert(entry);
    }

    /// Where each node is reached, by its id; those that were forgotten are not among them.
    pub(crate) fn places(&self) -> BTreeMap<String, String> {
        let mut known = self.known();
        self.sweep(&mut known, self.clock.now());
        known.nodes.iter().map(|(id, entry)| (id.clone(), entry.node.endpoint.clone())).collect()
    }

    fn sweep(&self, known: &mut Known, now: DateTime<Utc>) {
        let silent = |since: DateTime<Utc>| (now - since).to_std().unwrap_or_default();
        known.nodes.retain(|_, entry| silent(entry.last_seen) <= self.config.forget_after.0);
        known.placements.retain(|_, placement| silent(placement.placed_at) <= PLACEMENT_MEMORY);
        known.claiming.retain(|_, since| silent(*since) <= CLAIM_MEMORY);
    }

    /// The sandboxes of a node, all of them: it is followed from now on.
    pub(crate) fn opened(&self, node_id: &str, sandboxes: Vec<Sandbox>) {
        let mut known = self.known();
        let Known { nodes, placements, .. } = &mut *known;
        let Some(entry) = nodes.get_mut(node_id).filter(|entry| !entry.lost) else { return };
        let before = std::mem::take(&mut entry.sandboxes);
        entry.followed = true;
        for sandbox in sandboxes {
            placements.remove(&sandbox.sandbox_id);
            if before.get(&sandbox.sandbox_id) != Some(&sandbox) {
                self.tell(&sandbox);
            }
            entry.sandboxes.insert(sandbox.sandbox_id.clone(), sandbox);
        }
        for (id, gone) in before {
            if !entry.sandboxes.contains_key(&id) {
                self.tell(&Sandbox { state: State::Deleted.into(), ..gone });
            }
        }
    }

    /// A change that a node tells of.
    pub(crate) fn changed(&self, node_id: &str, sandbox: Sandbox) {
        let mut known = self.known();
        let Known { nodes, placements, claiming } = &mut *known;
        let Some(entry) = nodes.get_mut(node_id).filter(|entry| !entry.lost) else { return };
        let id = sandbox.sandbox_id.clone();
        placements.remove(&id);
        if entry.sandboxes.get(&id) == Some(&sandbox) {
            return;
        }
        self.tell(&sandbox);
        if matches!(sandbox.state(), State::Deleted | State::Dead) {
            self.room.notify_one();
        }
        match sandbox.state() {
            State::Deleted => {
                entry.sandboxes.remove(&id);
                claiming.remove(&(id, node_id.to_owned()));
            }
            _ => drop(entry.sandboxes.insert(id, sandbox)),
        }
    }

    /// Declares the nodes lost that were silent for too long, and tells that their sandboxes are dead.
    /// Returns their ids.
    pub(crate) fn declare_lost(&self) -> Vec<String> {
        let now = self.clock.now();
        let silent = |entry: &Entry| (now - entry.last_seen).to_std().unwrap_or_default();
        let mut lost = Vec::new();
        for (id, entry) in &mut self.known().nodes {
            if entry.lost || silent(entry) <= self.config.node_lost_after.0 {
                continue;
            }
            (entry.lost, entry.followed) = (true, false);
            lost.push(id.clone());
            for sandbox in entry.sandboxes.values_mut() {
                let reason = format!("node `{id}` is lost");
                *sandbox =
                    Sandbox { state: State::Dead.into(), reason, node_lost: true, ..std::mem::take(sandbox) };
                self.tell(sandbox);
            }
        }
        lost
    }

    /// Whether a node is lost.
    pub(crate) fn is_lost(&self, node_id: &str) -> bool {
        self.known().nodes.get(node_id).is_some_and(|entry| entry.lost)
    }

    /// What is known of a sandbox on a node that is lost.
    pub(crate) fn on_lost_node(&self, sandbox_id: &str, node_id: &str) -> Option<Sandbox> {
        let known = self.known();
        known.nodes.get(node_id).filter(|entry| entry.lost)?.sandboxes.get(sandbox_id).cloned()
    }

    /// Takes what a node says of itself besides its reports. Returns it, if it is known.
    pub(crate) fn told(&self, node: Node) -> Option<NodeStatus> {
        let mut known = self.known();
        let entry = known.nodes.get_mut(&node.node_id)?;
        entry.node = Node { endpoint: std::mem::take(&mut entry.node.endpoint), ..node };
        self.room.notify_one();
        Some(self.status(entry))
    }

    /// A node is not followed any more; what is known of its sandboxes may be old.
    pub(crate) fn closed(&self, node_id: &str) {
        if let Some(entry) = self.known().nodes.get_mut(node_id) {
            entry.followed = false;
        }
    }

    fn tell(&self, sandbox: &Sandbox) {
        // An error means that nobody watches.
        let _ = self.changes.send(sandbox.clone());
    }

    /// Where a sandbox may go, best first, as far as is known. What is on its way to a node counts as there.
    pub(crate) fn choose(&self, wanted: &Wanted) -> Choice {
        placement::choose(wanted, &self.views(&self.known()))
    }

    /// Whether there is a node that could run this, now or when others are gone, besides those that refused.
    pub(crate) fn could_run(&self, wanted: &Wanted, refused: &[Refusal]) -> bool {
        let views = self.views(&self.known());
        let asked = |node: &placement::NodeView| refused.iter().any(|refusal| refusal.node_id == node.id);
        views.iter().any(|node| placement::could_run(wanted, node) && !asked(node))
    }

    fn views(&self, known: &Known) -> Vec<placement::NodeView> {
        let view = |entry: &Entry| {
            let coming = known.placements.values().filter(|placed| placed.node_id == entry.node.node_id);
            view::of(entry, coming.map(|placed| &placed.spec), self.is_healthy(entry))
        };
        known.nodes.values().map(view).collect()
    }

    /// Chooses the best node for a sandbox, but for those to `avoid`, and remembers that it goes there: nobody
    /// else gets that room.
    pub(crate) fn reserve(
        &self,
        sandbox_id: &str,
        spec: &SandboxSpec,
        (wanted, avoid): (&Wanted, &[String]),
    ) -> Option<String> {
        let mut known = self.known();
        let choice = placement::choose(wanted, &self.views(&known));
        let node_id = choice.candidates.into_iter().find(|node_id| !avoid.contains(node_id))?;
        Some(known.bind(sandbox_id, node_id, spec, self.clock.now()))
    }

    /// Remembers that a sandbox goes to a node, unless it went to one already; returns the one that it is.
    pub(crate) fn bind(&self, sandbox_id: &str, node_id: &str, spec: &SandboxSpec) -> String {
        self.known().bind(sandbox_id, node_id.to_owned(), spec, self.clock.now())
    }

    /// The node said that it has not got the sandbox.
    pub(crate) fn unbind(&self, sandbox_id: &str, node_id: &str) {
        let mut known = self.known();
        if known.placements.get(sandbox_id).is_some_and(|placed| placed.node_id == node_id) {
            known.placements.remove(sandbox_id);
            self.room.notify_one();
        }
        if let Some(entry) = known.nodes.get_mut(node_id)
            && let Some(gone) = entry.sandboxes.remove(sandbox_id)
        {
            self.tell(&Sandbox { state: State::Deleted.into(), ..gone });
        }
    }

    /// The node that a sandbox is on, or on its way to.
    pub(crate) fn node_of(&self, sandbox_id: &str) -> Option<String> {
        self.known().node_of(sandbox_id)
    }

    /// The way to the agent of a node.
    pub(crate) fn link(&self, node_id: &str) -> Option<Link> {
        self.known().nodes.get(node_id).map(|entry| entry.link.clone())
    }

    /// The nodes that answer.
    pub(crate) fn healthy_nodes(&self) -> Vec<String> {
        let known = self.known();
        let healthy = known.nodes.iter().filter(|(_, entry)| !entry.lost && self.is_healthy(entry));
        healthy.map(|(id, _)| id.clone()).collect()
    }

    /// The ids of all nodes.
    pub(crate) fn node_ids(&self) -> Vec<String> {
        self.known().nodes.keys().cloned().collect()
    }

    /// The nodes, ordered by id.
    pub(crate) fn statuses(&self) -> Vec<NodeStatus> {
        self.known().nodes.values().map(|entry| self.status(entry)).collect()
    }

    fn status(&self, entry: &Entry) -> NodeStatus {
        NodeStatus {
            node: Some(entry.node.clone()),
            healthy: self.is_healthy(entry),
            last_seen_at: Some(timestamp(entry.last_seen)),
            lost: entry.lost,
        }
    }

    /// The sandboxes of the nodes that are followed or lost, ordered by id and node, and the other nodes. An
    /// id may be on two nodes, when two schedulers did not know of each other in time.
    pub(crate) fn sandboxes(&self) -> (BTreeMap<Place, Sandbox>, Vec<String>) {
        let (mut sandboxes, mut unreachable) = (BTreeMap::new(), Vec::new());
        for (id, entry) in &self.known().nodes {
            if entry.lost || (entry.followed && self.is_healthy(entry)) {
                let placed = |(sandbox_id, sandbox): (&String, &Sandbox)| {
                    ((sandbox_id.clone(), id.clone()), sandbox.clone())
                };
                sandboxes.extend(entry.sandboxes.iter().map(placed));
            } else {
                unreachable.push(id.clone());
            }
        }
        (sandboxes, unreachable)
    }

    /// What is known now of every sandbox, and every change after.
    pub(crate) fn watch(&self) -> (Vec<Sandbox>, broadcast::Receiver<Sandbox>) {
        let known = self.known();
        let existing = known.nodes.values().flat_map(|entry| entry.sandboxes.values().cloned()).collect();
        (existing, self.changes.subscribe())
    }

    /// Waits until there is a healthy node, for `node_wait` at most.
    pub(crate) async fn wait_for_node(&self) {
        let healthy = || self.known().nodes.values().any(|entry| self.is_healthy(entry));
        let wait = async {
            loop {
                let reported = self.reported.notified();
                if healthy() {
                    return;
                }
                reported.await;
            }
        };
        // Without one, what follows says so.
        let _ = tokio::time::timeout(self.config.node_wait.0, wait).await;
    }
}

impl Known {
    fn bind(
        &mut self,
        sandbox_id: &str,
        node_id: String,
        spec: &SandboxSpec,
        placed_at: DateTime<Utc>,
    ) -> String {
        if let Some(node_id) = self.node_of(sandbox_id) {
            return node_id;
        }
        let placement = Placement { node_id: node_id.clone(), spec: spec.clone(), placed_at };
        self.placements.insert(sandbox_id.to_owned(), placement);
        node_id
    }

    fn node_of(&self, sandbox_id: &str) -> Option<String> {
        if let Some(placed) = self.placements.get(sandbox_id) {
            return Some(placed.node_id.clone());
        }
        let mut nodes = self.nodes.iter();
        nodes.find(|(_, entry)| entry.sandboxes.contains_key(sandbox_id)).map(|(id, _)| id.clone())
    }
}
