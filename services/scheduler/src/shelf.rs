//! Warm sandboxes that can be given away, in the order in which they are: of those that are alike, the one that
//! has waited longest on the node that has the fewest sandboxes. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use chrono::{DateTime, Utc};

/// What sandboxes have in common of which one can be given for another.
pub(crate) type Kind = Arc<[u8]>;

/// One sandbox: when it was made, if that is known, and its id. The first has waited longest.
pub(crate) type Waiting = (Option<DateTime<Utc>>, String);

/// The first of a kind on a node: how many sandboxes the node has, which it is, and the node.
type Front = (u64, Waiting, Arc<str>);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    nodes: HashMap<Arc<str>, OnNode>,
    /// Of each kind the first of each node that gives some, in the order in which they are given.
    fronts: HashMap<Kind, BTreeSet<Front>>,
}

#[derive(Debug, Default)]
struct OnNode {
    /// How many sandboxes it has.
    sandboxes: u64,
    /// Whether its warm sandboxes are given away.
    gives: bool,
    kinds: BTreeMap<Kind, BTreeSet<Waiting>>,
}

impl OnNode {
    fn front(&self, node: &Arc<str>, kind: &Kind) -> Option<Front> {
        let first = self.kinds.get(kind)?.first().filter(|_| self.gives)?;
        Some((self.sandboxes, first.clone(), Arc::clone(node)))
    }
}

impl Shelf {
    /// A node has so many sandboxes, and gives its warm ones away or does not.
    pub(crate) fn set_node(&mut self, node_id: &str, sandboxes: u64, gives: bool) {
        let Some((node, on)) = self.nodes.get_key_value(node_id) else {
            self.nodes.insert(node_id.into(), OnNode { sandboxes, gives, kinds: BTreeMap::new() });
            return;
        };
        if (on.sandboxes, on.gives) == (sandboxes, gives) {
            return;
        }
        let (node, kinds) = (Arc::clone(node), on.kinds.keys().cloned().collect::<Vec<_>>());
        for kind in &kinds {
            self.take_front(&node, kind);
        }
        if let Some(on) = self.nodes.get_mut(node_id) {
            (on.sandboxes, on.gives) = (sandboxes, gives);
        }
        for kind in &kinds {
            self.set_front(&node, kind);
        }
    }

    /// A sandbox can be given away, should its node give any.
    pub(crate) fn put(&mut self, node_id: &str, kind: &Kind, one: Waiting) {
        self.with(node_id, kind, |waiting| waiting.insert(one));
    }

    /// It cannot any more.
    pub(crate) fn take(&mut self, node_id: &str, kind: &Kind, one: &Waiting) {
        self.with(node_id, kind, |waiting| waiting.remove(one));
    }

    /// There is no such node any more.
    pub(crate) fn remove_node(&mut self, node_id: &str) {
        self.set_node(node_id, 0, false);
        self.nodes.remove(node_id);
    }

    /// The one to give of a kind, where a node that has one `may` give it, of so many that are asked: its id and its
    /// node.
    pub(crate) fn best(
        &self,
        kind: &Kind,
        asked: usize,
        may: impl Fn(&str) -> bool,
    ) -> Option<(String, String)> {
        let mut fronts = self.fronts.get(kind)?.iter().take(asked);
        let (_, (_, id), node) = fronts.find(|(_, _, node)| may(node))?;
        Some((id.clone(), node.as_ref().to_owned()))
    }

    /// The same, where only these nodes may give it.
    pub(crate) fn best_of<'a>(
        &'a self,
        kind: &Kind,
        nodes: impl Iterator<Item = &'a str>,
    ) -> Option<(String, String)> {
        let fronts = nodes.filter_map(|node_id| {
            let (node, on) = self.nodes.get_key_value(node_id)?;
            on.front(node, kind)
        });
        fronts.min().map(|(_, (_, id), node)| (id, node.as_ref().to_owned()))
    }

    /// The one of a node that has waited longest, whatever it is.
    pub(crate) fn longest_on(&self, node_id: &str) -> Option<&str> {
        let firsts = self.nodes.get(node_id)?.kinds.values().filter_map(BTreeSet::first);
        firsts.min().map(|(_, id)| id.as_str())
    }

    fn with(&mut self, node_id: &str, kind: &Kind, change: impl FnOnce(&mut BTreeSet<Waiting>) -> bool) {
        if !self.nodes.contains_key(node_id) {
            self.set_node(node_id, 0, false);
        }
        let Some((node, _)) = self.nodes.get_key_value(node_id) else { return };
        let node = Arc::clone(node);
        self.take_front(&node, kind);
        if let Some(on) = self.nodes.get_mut(node_id) {
            let waiting = on.kinds.entry(Arc::clone(kind)).or_default();
            change(waiting);
            if waiting.is_empty() {
                on.kinds.remove(kind);
            }
        }
        self.set_front(&node, kind);
    }

    fn take_front(&mut self, node: &Arc<str>, kind: &Kind) {
        let Some(front) = self.nodes.get(node).and_then(|on| on.front(node, kind)) else { return };
        let Some(fronts) = self.fronts.get_mut(kind) else { return };
        fronts.remove(&front);
        if fronts.is_empty() {
            self.fronts.remove(kind);
        }
    }

    fn set_front(&mut self, node: &Arc<str>, kind: &Kind) {
        if let Some(front) = self.nodes.get(node).and_then(|on| on.front(node, kind)) {
            self.fronts.entry(Arc::clone(kind)).or_default().insert(front);
        }
    }
}
