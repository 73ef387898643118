//! What was measured last of every sandbox, node and dependency, for who reads it and who follows it.
//!
//! In memory only, and bounded by what there is. Who measures puts it here; nothing is decided here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use sandmesh_proto::health::{
    Condition, DependencyHealth, NodeHealth, SandboxHealth, WatchHealthResponse,
    watch_health_response::Subject,
};
use tokio::sync::broadcast;

/// How many measurements a slow follower may be behind.
const BACKLOG: usize = 4096;

/// The measurements; see the module.
#[derive(Debug)]
pub(crate) struct Board {
    last: Mutex<Last>,
    changes: broadcast::Sender<WatchHealthResponse>,
}

#[derive(Debug, Default)]
struct Last {
    sandboxes: BTreeMap<String, SandboxHealth>,
    nodes: BTreeMap<String, NodeHealth>,
    dependencies: BTreeMap<String, DependencyHealth>,
}

impl Default for Board {
    fn default() -> Self {
        Self { last: Mutex::default(), changes: broadcast::channel(BACKLOG).0 }
    }
}

impl Board {
    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, subject: Subject) {
        // An error means that nobody follows.
        let _ = self.changes.send(event(subject));
    }

    /// A sandbox was measured.
    pub(crate) fn sandbox(&self, health: SandboxHealth) {
        let mut last = self.last();
        last.sandboxes.insert(health.sandbox_id.clone(), health.clone());
        // While it is held: who begins to follow gets it once, in the first events or as a change.
        self.tell(Subject::Sandbox(health));
    }

    /// A sandbox is not there any more.
    pub(crate) fn sandbox_gone(&self, sandbox_id: &str, node_id: &str) {
        let mut last = self.last();
        // That of the same id on another node stays.
        let there = last.sandboxes.get(sandbox_id).is_some_and(|health| health.node_id == node_id);
        if let Some(health) = there.then(|| last.sandboxes.remove(sandbox_id)).flatten() {
            self.tell(Subject::Sandbox(SandboxHealth { condition: Condition::Gone.into(), ..health }));
        }
    }

    /// Nothing is known of any sandbox.
    pub(crate) fn forget_sandboxes(&self) {
        let mut last = self.last();
        for health in std::mem::take(&mut last.sandboxes).into_values() {
            self.tell(Subject::Sandbox(SandboxHealth { condition: Condition::Gone.into(), ..health }));
        }
    }

    /// These are the nodes; others that were known are gone.
    pub(crate) fn nodes(&self, nodes: Vec<NodeHealth>) {
        let mut last = self.last();
        let there: BTreeSet<_> = nodes.iter().map(|node| node.node_id.clone()).collect();
        for (id, health) in std::mem::take(&mut last.nodes) {
            if !there.contains(&id) {
                self.tell(Subject::Node(NodeHealth { condition: Condition::Gone.into(), ..health }));
            }
        }
        for health in nodes {
            last.nodes.insert(health.node_id.clone(), health.clone());
            self.tell(Subject::Node(health));
        }
    }

    /// These are the dependencies; others that were known are gone.
    pub(crate) fn dependencies(&self, dependencies: Vec<DependencyHealth>) {
        let name = |health: &DependencyHealth| health.probe.clone().unwrap_or_default().name;
        let mut last = self.last();
        let there: BTreeSet<_> = dependencies.iter().map(name).collect();
        for (id, health) in std::mem::take(&mut last.dependencies) {
            if !there.contains(&id) {
                let condition = Condition::Gone.into();
                self.tell(Subject::Dependency(DependencyHealth { condition, ..health }));
            }
        }
        for health in dependencies {
            last.dependencies.insert(name(&health), health.clone());
            self.tell(Subject::Dependency(health));
        }
    }

    /// At most `limit` sandboxes, of `ids` if there are any, from after `after`; and whether there are more.
    pub(crate) fn list_sandboxes(
        &self,
        ids: &BTreeSet<String>,
        after: &str,
        limit: usize,
    ) -> (Vec<SandboxHealth>, bool) {
        let last = self.last();
        let wanted = |id: &str| id > after && (ids.is_empty() || ids.contains(id));
        let mut rest = last.sandboxes.iter().filter(|(id, _)| wanted(id));
        let page = rest.by_ref().take(limit).map(|(_, health)| health.clone()).collect();
        (page, rest.next().is_some())
    }

    /// The nodes, ordered by id.
    pub(crate) fn list_nodes(&self) -> Vec<NodeHealth> {
        self.last().nodes.values().cloned().collect()
    }

    /// What is known of everything, and every measurement from now on.
    pub(crate) fn watch(&self) -> (Vec<WatchHealthResponse>, broadcast::Receiver<WatchHealthResponse>) {
        let last = self.last();
        let sandboxes = last.sandboxes.values().cloned().map(Subject::Sandbox);
        let nodes = last.nodes.values().cloned().map(Subject::Node);
        let dependencies = last.dependencies.values().cloned().map(Subject::Dependency);
        let known = dependencies.chain(nodes).chain(sandboxes).map(event).collect();
        (known, self.changes.subscribe())
    }
}

fn event(subject: Subject) -> WatchHealthResponse {
    WatchHealthResponse { subject: Some(subject) }
}

#[cfg(test)]
mod tests {
    use sandmesh_proto::health::Probe;

    use super::*;

    fn sandbox(id: &str) -> SandboxHealth {
        let condition = Condition::Healthy.into();
        SandboxHealth { sandbox_id: id.to_owned(), condition, ..SandboxHealth::default() }
    }

    fn node(id: &str) -> NodeHealth {
        NodeHealth { node_id: id.to_owned(), ..NodeHealth::default() }
    }

    fn dependency(name: &str) -> DependencyHealth {
        let probe = Probe { name: name.to_owned(), ..Probe::default() };
        DependencyHealth { probe: Some(probe), condition: Condition::Healthy.into() }
    }

    #[test]
    fn a_follower_sees_what_is_known_and_then_every_measurement_and_every_departure() {
        let board = Board::default();
        board.sandbox(sandbox("a"));
        board.nodes(vec![node("n")]);
        board.dependencies(vec![dependency("object_store")]);
        let (known, mut changes) = board.watch();
        assert_eq!(known.len(), 3);
        board.sandbox(sandbox("b"));
        board.sandbox_gone("a", "another");
        board.sandbox_gone("a", "");
        board.sandbox_gone("a", "");
        board.nodes(vec![]);
        board.dependencies(vec![]);
        let mut conditions = Vec::new();
        while let Ok(WatchHealthResponse { subject: Some(subject) }) = changes.try_recv() {
            conditions.push(match subject {
                Subject::Sandbox(health) => health.condition(),
                Subject::Node(health) => health.condition(),
                Subject::Dependency(health) => health.condition(),
            });
        }
        assert_eq!(conditions, [Condition::Healthy, Condition::Gone, Condition::Gone, Condition::Gone]);
        assert_eq!(board.watch().0.len(), 1);
    }

    #[test]
    fn sandboxes_come_in_pages_or_by_their_ids() {
        let board = Board::default();
        ["c", "a", "b"].into_iter().for_each(|id| board.sandbox(sandbox(id)));
        let ids = |found: (Vec<SandboxHealth>, bool)| {
            (found.0.into_iter().map(|health| health.sandbox_id).collect::<String>(), found.1)
        };
        let none = BTreeSet::new();
        assert_eq!(ids(board.list_sandboxes(&none, "", 2)), ("ab".to_owned(), true));
        assert_eq!(ids(board.list_sandboxes(&none, "b", 2)), ("c".to_owned(), false));
        let some = BTreeSet::from(["b".to_owned(), "x".to_owned()]);
        assert_eq!(ids(board.list_sandboxes(&some, "", 2)), ("b".to_owned(), false));
    }
}
