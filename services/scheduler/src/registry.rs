//! The nodes and their sandboxes in memory, as last reported, and what is on its way to them.
//!
//! It is rebuilt from what the agents report, so it may be behind; whoever must be sure asks the node.
//! No I/O: `follower.rs` feeds it and `service.rs` asks it. `known.rs` is what is known, with the sums and orders by
//! which decisions (`choice.rs`, `warm.rs`) are made.

mod choice;
mod known;
mod warm;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
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

use self::known::{Entry, Known};
use crate::{Config, Error};

/// More sandboxes than a node has.
pub(crate) const MAX_SANDBOXES: usize = 100_000;
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

/// The id of a sandbox, and its node.
pub(crate) type Place = (String, String);

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

    /// What is known as of now: nodes that are silent are not healthy any more.
    fn known(&self) -> MutexGuard<'_, Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_of = self.clock.now();
        let since = before(known.as_of, self.config.heartbeat_timeout.0);
        known.silence(since);
        known
    }

    /// Has those who wait look, if there may be more room now.
    fn tell_room(&self, known: &mut Known) {
        if known.take_more_room() {
            self.room.notify_one();
        }
    }

    /// Takes a report. `Some` when the node is new or has moved: its sandboxes are then to be followed until
    /// the token is cancelled.
    ///
    /// # Errors
    /// `TooManyNodes`.
    pub(crate) fn report(&self, node: Node, link: Link) -> Result<Option<CancellationToken>, Error> {
        let mut known = self.known();
        self.sweep(&mut known);
        let id = node.node_id.clone();
        let is_full = known.nodes.len() >= self.config.max_nodes as usize;
        let follow = match known.nodes.get_mut(&id) {
            Some(entry) => {
                let alike = has_same_facts(&entry.node, &node);
                // One that was lost is followed anew: what it has is not what is known here.
                let same = entry.node.endpoint == node.endpoint && entry.reported && !entry.lost;
                entry.node = node;
                let follow = (!same).then(|| self.follow_anew(entry, link));
                if !alike {
                    known.describe(&id);
                }
                follow
            }
            None if is_full => return Err(Error::TooManyNodes(self.config.max_nodes)),
            None => {
                let follower = self.stopped.child_token();
                let entry = Entry::new(node, link, follower.clone(), known.as_of);
                known.add(Entry::reporting(entry));
                Some(follower)
            }
        };
        known.hear(&id);
        known.refresh(&id);
        self.tell_room(&mut known);
        drop(known);
        self.reported.notify_waiters();
        Ok(follow)
    }

    /// A node that has moved or comes back. What was known of its sandboxes stays until it tells.
    fn follow_anew(&self, entry: &mut Entry, link: Link) -> CancellationToken {
        entry.follower.cancel();
        entry.follower = self.stopped.child_token();
        (entry.followed, entry.reported, entry.lost, entry.link) = (false, true, false, link);
        entry.follower.clone()
    }

    /// Knows of a node from before: it counts as late until it reports, and as lost if it does not.
    pub(crate) fn remember(&self, node: Node, link: Link) {
        let mut known = self.known();
        let last_seen = before(known.as_of, self.config.heartbeat_timeout.0) - TimeDelta::milliseconds(1);
        if !known.nodes.contains_key(&node.node_id) {
            known.add(Entry::new(node, link, self.stopped.child_token(), last_seen));
        }
    }

    /// Where each node is reached, by its id; those that were forgotten are not among them.
    pub(crate) fn places(&self) -> BTreeMap<String, String> {
        let mut known = self.known();
        self.sweep(&mut known);
        known.nodes.iter().map(|(id, entry)| (id.clone(), entry.node.endpoint.clone())).collect()
    }

    fn sweep(&self, known: &mut Known) {
        let now = known.as_of;
        known.forget(before(now, self.config.forget_after.0));
        known.forget_placed(before(now, PLACEMENT_MEMORY));
        known.forget_claimed(before(now, CLAIM_MEMORY));
        self.tell_room(known);
    }

    /// The sandboxes of a node, all of them: it is followed from now on.
    pub(crate) fn opened(&self, node_id: &str, sandboxes: Vec<Sandbox>) {
        let mut known = self.known();
        let Some(entry) = known.nodes.get_mut(node_id).filter(|entry| !entry.lost) else { return };
        entry.followed = true;
        let mut gone: BTreeSet<String> = entry.sandboxes.keys().cloned().collect();
        for sandbox in sandboxes {
            let id = sandbox.sandbox_id.clone();
            known.unplace(&id);
            gone.remove(&id);
            if known.sandbox(node_id, &id) != Some(&sandbox) {
                self.tell(&sandbox);
                known.swap(node_id, &id, Some(sandbox));
            }
        }
        for id in gone {
            if let Some(gone) = known.swap(node_id, &id, None) {
                self.tell(&Sandbox { state: State::Deleted.into(), ..gone });
            }
        }
        known.refresh(node_id);
        self.tell_room(&mut known);
    }

    /// A change that a node tells of.
    pub(crate) fn changed(&self, node_id: &str, sandbox: Sandbox) {
        let mut known = self.known();
        if known.nodes.get(node_id).is_none_or(|entry| entry.lost) {
            return;
        }
        let id = sandbox.sandbox_id.clone();
        let has = known.nodes.get(node_id).map_or(0, |entry| entry.sandboxes.len());
        if has >= MAX_SANDBOXES && known.sandbox(node_id, &id).is_none() {
            tracing::warn!(node.id = node_id, "the node tells of more sandboxes than one can have");
            return;
        }
        known.unplace(&id);
        if known.sandbox(node_id, &id) != Some(&sandbox) {
            self.tell(&sandbox);
            let is_gone = sandbox.state() == State::Deleted;
            known.swap(node_id, &id, Some(sandbox).filter(|_| !is_gone));
            if is_gone {
                known.unclaim(&(id, node_id.to_owned()));
            }
        }
        known.refresh(node_id);
        self.tell_room(&mut known);
    }

    /// Declares the nodes lost that were silent for too long, and tells that their sandboxes are dead.
    /// Returns their ids.
    pub(crate) fn declare_lost(&self) -> Vec<String> {
        let mut known = self.known();
        let since = before(known.as_of, self.config.node_lost_after.0);
        let silent = known.silent.iter().take_while(|(seen, _)| *seen < since);
        let is_known = |id: &&String| known.nodes.get(*id).is_some_and(|entry| !entry.lost);
        let mut lost: Vec<String> = silent.map(|(_, id)| id).filter(is_known).cloned().collect();
        lost.sort();
        for id in &lost {
            self.lose(&mut known, id);
        }
        lost
    }

    fn lose(&self, known: &mut Known, node_id: &str) {
        let Some(entry) = known.nodes.get_mut(node_id) else { return };
        (entry.lost, entry.followed) = (true, false);
        let sandboxes: Vec<Sandbox> = entry.sandboxes.values().cloned().collect();
        for sandbox in sandboxes {
            let reason = format!("node `{node_id}` is lost");
            let dead = Sandbox { state: State::Dead.into(), reason, node_lost: true, ..sandbox };
            self.tell(&dead);
            let id = dead.sandbox_id.clone();
            known.swap(node_id, &id, Some(dead));
        }
        known.refresh(node_id);
    }

    /// Has a node lost at once.
    pub(crate) fn give_up(&self, node_id: &str) {
        let mut known = self.known();
        if known.nodes.get(node_id).is_some_and(|entry| !entry.lost) {
            self.lose(&mut known, node_id);
        }
    }

    /// Whether a node is known that is not lost.
    pub(crate) fn is_present(&self, node_id: &str) -> bool {
        self.known().nodes.get(node_id).is_some_and(|entry| !entry.lost)
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
        let id = node.node_id.clone();
        let entry = known.nodes.get_mut(&id)?;
        entry.node = Node { endpoint: std::mem::take(&mut entry.node.endpoint), ..node };
        known.describe(&id);
        self.tell_room(&mut known);
        known.nodes.get(&id).map(status)
    }

    /// A node is not followed any more; what is known of its sandboxes may be old.
    pub(crate) fn closed(&self, node_id: &str) {
        let mut known = self.known();
        if let Some(entry) = known.nodes.get_mut(node_id) {
            entry.followed = false;
        }
        known.refresh(node_id);
    }

    fn tell(&self, sandbox: &Sandbox) {
        // An error means that nobody watches.
        let _ = self.changes.send(sandbox.clone());
    }

    /// Remembers that a sandbox goes to a node, unless it went to one already; returns the one that it is.
    pub(crate) fn bind(&self, sandbox_id: &str, node_id: &str, spec: &SandboxSpec) -> String {
        self.known().bind(sandbox_id, node_id, spec)
    }

    /// The node said that it has not got the sandbox.
    pub(crate) fn unbind(&self, sandbox_id: &str, node_id: &str) {
        let mut known = self.known();
        if known.placements.get(sandbox_id).is_some_and(|placed| placed.node_id == node_id) {
            known.unplace(sandbox_id);
        }
        if let Some(gone) = known.swap(node_id, sandbox_id, None) {
            self.tell(&Sandbox { state: State::Deleted.into(), ..gone });
            known.refresh(node_id);
        }
        self.tell_room(&mut known);
    }

    /// The node that a sandbox is on, or on its way to.
    pub(crate) fn node_of(&self, sandbox_id: &str) -> Option<String> {
        self.known().node_of(sandbox_id).map(str::to_owned)
    }

    /// The way to the agent of a node.
    pub(crate) fn link(&self, node_id: &str) -> Option<Link> {
        self.known().nodes.get(node_id).map(|entry| entry.link.clone())
    }

    /// The nodes that answer.
    pub(crate) fn healthy_nodes(&self) -> Vec<String> {
        let known = self.known();
        let healthy = known.nodes.iter().filter(|(_, entry)| !entry.lost && entry.is_usable());
        healthy.map(|(id, _)| id.clone()).collect()
    }

    /// How many nodes report.
    pub(crate) fn count_reporting(&self) -> usize {
        self.known().fresh.len()
    }

    /// The ids of all nodes.
    pub(crate) fn node_ids(&self) -> Vec<String> {
        self.known().nodes.keys().cloned().collect()
    }

    /// Whether there is any node.
    pub(crate) fn has_nodes(&self) -> bool {
        !self.known().nodes.is_empty()
    }

    /// The nodes, ordered by id.
    pub(crate) fn statuses(&self) -> Vec<NodeStatus> {
        self.known().nodes.values().map(status).collect()
    }

    /// One node.
    pub(crate) fn status(&self, node_id: &str) -> Option<NodeStatus> {
        self.known().nodes.get(node_id).map(status)
    }

    /// Of the sandboxes of the nodes that are followed or lost those that `takes` takes, at most so many, ordered by
    /// id and node, from after a place; and whether there are more. An id may be on two nodes, when two
    /// schedulers did not know of each other in time.
    pub(crate) fn sandboxes(
        &self,
        after: &Place,
        limit: usize,
        takes: impl Fn(&Sandbox) -> bool,
    ) -> (Vec<Sandbox>, bool) {
        let known = self.known();
        let places = known.places.range((Bound::Excluded(after), Bound::Unbounded));
        let mut told = places.filter_map(|place| known.told(place)).filter(|sandbox| takes(sandbox));
        let page = told.by_ref().take(limit).cloned().collect();
        (page, told.next().is_some())
    }

    /// How many sandboxes `takes` takes.
    pub(crate) fn count(&self, takes: impl Fn(&Sandbox) -> bool) -> u64 {
        let known = self.known();
        let told = known.nodes.values().filter(|entry| entry.is_told());
        told.flat_map(|entry| entry.sandboxes.values()).filter(|sandbox| takes(sandbox)).count() as u64
    }

    /// The nodes whose sandboxes are not told: neither followed nor lost.
    pub(crate) fn unreachable(&self) -> Vec<String> {
        let known = self.known();
        let untold = known.nodes.iter().filter(|(_, entry)| !entry.is_told());
        untold.map(|(id, _)| id.clone()).collect()
    }

    /// What is known now of every sandbox, and every change after.
    pub(crate) fn watch(&self) -> (Vec<Sandbox>, broadcast::Receiver<Sandbox>) {
        let known = self.known();
        let existing = known.nodes.values().flat_map(|entry| entry.sandboxes.values().cloned()).collect();
        (existing, self.changes.subscribe())
    }

    /// Waits until there is a healthy node, for `node_wait` at most.
    pub(crate) async fn wait_for_node(&self) {
        let wait = async {
            loop {
                let reported = self.reported.notified();
                if !self.known().fresh.is_empty() {
                    return;
                }
                reported.await;
            }
        };
        // Without one, what follows says so.
        let _ = tokio::time::timeout(self.config.node_wait.0, wait).await;
    }
}

/// So long before.
fn before(time: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    let by = TimeDelta::from_std(by).unwrap_or(TimeDelta::MAX);
    time.checked_sub_signed(by).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// Whether all is the same that sandboxes do not change.
fn has_same_facts(a: &Node, b: &Node) -> bool {
    a.languages == b.languages
        && a.images == b.images
        && a.package_sets == b.package_sets
        && a.labels == b.labels
}

fn status(entry: &Entry) -> NodeStatus {
    NodeStatus {
        node: Some(entry.node.clone()),
        healthy: entry.is_usable(),
        last_seen_at: Some(timestamp(entry.last_seen)),
        lost: entry.lost,
    }
}

#[cfg(test)]
mod scan;
#[cfg(test)]
mod tests;
