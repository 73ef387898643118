//! Where a sandbox may go, without a look at every node: what `placement.rs` says of all of them, kept up with
//! each change of one.
//!
//! Pure, as that is, and its answers are the same, which tests see to. What is looked for has needs (a language,
//! labels, room) and likes (a warm sandbox, the image, the packages, the template's other sandboxes), and of equals
//! the emptiest is best. Where few nodes have something these are looked at one by one; among many, `tree.rs` leads to the best.

mod features;
mod query;
mod tree;

use std::collections::{BTreeMap, BTreeSet};

use self::{
    features::{Bits, Feature, Features, Id, Slot},
    tree::{Most, Room, Tree},
};
use crate::placement::{self, NodeView, Promised, Share};

/// What a node says of itself that sandboxes do not change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The languages it can run.
    pub(crate) languages: Vec<placement::Language>,
    /// The images that are present.
    pub(crate) images: Vec<String>,
    /// The sets of packages that are installed, by their fingerprints.
    pub(crate) package_sets: Vec<String>,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
}

/// What a node has to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Whether it reported lately.
    pub(crate) healthy: bool,
    /// Whether it takes no new sandboxes.
    pub(crate) draining: bool,
    /// Sandboxes.
    pub(crate) sandboxes: Share,
    /// Thousandths of a core.
    pub(crate) cpu_millis: Share,
    /// Bytes of memory.
    pub(crate) memory_bytes: Share,
    /// What of this its warm sandboxes have that nobody is about to have.
    pub(crate) spare: Promised,
}

/// One node.
#[derive(Debug)]
struct Node {
    view: NodeView,
    spare: Promised,
    /// What it has, ascending.
    features: Vec<Id>,
    bits: Bits,
    /// Where it is among all, by its id.
    position: usize,
}

/// The nodes, so that the best is found at once.
#[derive(Debug, Default)]
pub(crate) struct Index {
    slots: Vec<Option<Node>>,
    unused: Vec<Slot>,
    by_id: BTreeMap<String, Slot>,
    features: Features,
    /// Those that take no sandboxes.
    closed: BTreeSet<Slot>,
    /// The nodes by their positions.
    order: Vec<Slot>,
    tree: Tree,
    /// There is a node that has no position yet.
    stale: bool,
}

impl Index {
    /// A node is like this. One that is new gives nothing until it is [`Self::set`].
    pub(crate) fn describe(&mut self, id: &str, facts: &Facts) {
        let slot = self.by_id.get(id).copied().unwrap_or_else(|| self.add(id));
        let Some(node) = &mut self.slots[slot as usize] else { return };
        let new = features_of(facts);
        let old = features_of(&Facts {
            languages: std::mem::replace(&mut node.view.languages, facts.languages.clone()),
            images: std::mem::replace(&mut node.view.images, facts.images.clone()),
            package_sets: std::mem::replace(&mut node.view.package_sets, facts.package_sets.clone()),
            labels: std::mem::replace(&mut node.view.labels, facts.labels.clone()),
        });
        old.difference(&new).for_each(|feature| self.lose(slot, feature));
        new.difference(&old).for_each(|feature| self.gain(slot, feature.clone()));
        // Once for all: a node may tell of thousands.
        self.mark(&[slot]);
    }

    fn add(&mut self, id: &str) -> Slot {
        let slot = self.unused.pop().unwrap_or_else(|| {
            self.slots.push(None);
            Slot::try_from(self.slots.len() - 1).unwrap_or(Slot::MAX)
        });
        let nothing = Share { limit: Some(0), used: 0 };
        let view = NodeView {
            id: id.to_owned(),
            healthy: false,
            draining: false,
            sandboxes: nothing,
            cpu_millis: nothing,
            memory_bytes: nothing,
            languages: Vec::new(),
            images: Vec::new(),
            package_sets: Vec::new(),
            labels: BTreeMap::new(),
            templates: BTreeSet::new(),
            warm: BTreeSet::new(),
        };
        let spare = Promised::default();
        self.slots[slot as usize] =
            Some(Node { view, spare, features: Vec::new(), bits: Bits::NONE, position: 0 });
        self.by_id.insert(id.to_owned(), slot);
        self.stale = true;
        slot
    }

    /// A node has so much to give now.
    pub(crate) fn set(&mut self, id: &str, load: &Load) {
        let Some(&slot) = self.by_id.get(id) else { return };
        let Some(node) = &mut self.slots[slot as usize] else { return };
        (node.view.healthy, node.view.draining, node.spare) = (load.healthy, load.draining, load.spare);
        node.view.sandboxes = load.sandboxes;
        node.view.cpu_millis = load.cpu_millis;
        node.view.memory_bytes = load.memory_bytes;
        self.note(slot);
    }

    /// Whether a node has running sandboxes of a template.
    pub(crate) fn set_template(&mut self, id: &str, template_id: &str, has: bool) {
        let Some(&slot) = self.by_id.get(id) else { return };
        let Some(node) = &mut self.slots[slot as usize] else { return };
        turn(&mut node.view.templates, template_id, has);
        self.turn(slot, Feature::Template(template_id.to_owned()), has);
    }

    /// Whether a node has running sandboxes of a template that no session has.
    pub(crate) fn set_warm(&mut self, id: &str, template_id: &str, has: bool) {
        let Some(&slot) = self.by_id.get(id) else { return };
        let Some(node) = &mut self.slots[slot as usize] else { return };
        turn(&mut node.view.warm, template_id, has);
        self.turn(slot, Feature::Warm(template_id.to_owned()), has);
    }

    /// There is no such node any more.
    pub(crate) fn remove(&mut self, id: &str) {
        let Some(slot) = self.by_id.remove(id) else { return };
        let Some(node) = self.slots[slot as usize].take() else { return };
        let NodeView { languages, images, package_sets, labels, templates, warm, .. } = node.view;
        let mut features = features_of(&Facts { languages, images, package_sets, labels });
        features.extend(templates.into_iter().map(Feature::Template));
        features.extend(warm.into_iter().map(Feature::Warm));
        for feature in features {
            let changed = self.features.remove(&feature, slot).map(|(_, changed)| changed);
            self.mark(&changed.unwrap_or_default());
        }
        self.closed.remove(&slot);
        self.unused.push(slot);
        // Its place in the order stays until that is made anew; nobody is there, and so nobody is found there.
        if !self.stale {
            self.tree.set(node.position, Most::NONE);
        }
    }

    fn turn(&mut self, slot: Slot, feature: Feature, has: bool) {
        match has {
            true => self.gain(slot, feature),
            false => self.lose(slot, &feature),
        }
        self.mark(&[slot]);
    }

    /// To be marked afterwards.
    fn gain(&mut self, slot: Slot, feature: Feature) {
        let (id, changed) = self.features.add(feature, slot);
        if let Some(node) = &mut self.slots[slot as usize]
            && let Err(at) = node.features.binary_search(&id)
        {
            node.features.insert(at, id);
        }
        self.mark(&changed);
    }

    /// To be marked afterwards.
    fn lose(&mut self, slot: Slot, feature: &Feature) {
        let Some((id, changed)) = self.features.remove(feature, slot) else { return };
        if let Some(node) = &mut self.slots[slot as usize]
            && let Ok(at) = node.features.binary_search(&id)
        {
            node.features.remove(at);
        }
        self.mark(&changed);
    }

    /// The bits of these are others now.
    fn mark(&mut self, slots: &[Slot]) {
        for &slot in slots {
            if let Some(node) = &mut self.slots[slot as usize] {
                node.bits = self.features.bits(&node.features);
            }
            self.note(slot);
        }
    }

    /// Has the tree know a node as it is now.
    fn note(&mut self, slot: Slot) {
        let Some(node) = &self.slots[slot as usize] else { return };
        match node.is_open() {
            true => self.closed.remove(&slot),
            false => self.closed.insert(slot),
        };
        if !self.stale {
            self.tree.set(node.position, node.most());
        }
    }

    /// Gives every node a position, if there are some without.
    fn settle(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        self.order = self.by_id.values().copied().collect();
        for (position, slot) in self.order.iter().enumerate() {
            if let Some(node) = &mut self.slots[*slot as usize] {
                node.position = position;
            }
        }
        let most = |slot: &Slot| self.node(*slot).map_or(Most::NONE, Node::most);
        self.tree = Tree::new(self.order.iter().map(most).collect());
    }

    fn node(&self, slot: Slot) -> Option<&Node> {
        self.slots.get(slot as usize)?.as_ref()
    }
}

impl Node {
    fn is_open(&self) -> bool {
        self.view.healthy && !self.view.draining
    }

    fn has(&self, id: Id) -> bool {
        self.features.binary_search(&id).is_ok()
    }

    /// What it has, for the tree.
    fn most(&self) -> Most {
        let view = &self.view;
        if !self.is_open() {
            return Most::NONE;
        }
        let shares = [view.sandboxes, view.cpu_millis, view.memory_bytes];
        let room = shares.map(Share::room);
        // A share that is over takes nothing, however little; and every sandbox takes one place.
        let has_room = room[0] > 1 && room[1] > 0 && room[2] > 0;
        Most {
            room: if has_room { room } else { [0; 3] },
            without_warm: self.without_warm(shares),
            capacity: [view.cpu_millis, view.memory_bytes].map(|share| share.less(u64::MAX).room()),
            promised: if has_room { percent(placement::percent(view)) } else { u8::MAX },
            crowd: if has_room { percent(placement::percent_used(view.sandboxes)) } else { u8::MAX },
            with_room: if has_room { self.bits } else { Bits::NONE },
            all: self.bits,
        }
    }

    fn without_warm(&self, [sandboxes, cpu_millis, memory_bytes]: [Share; 3]) -> Room {
        let spare = self.spare;
        if spare.sandboxes == 0 {
            return [0; 3];
        }
        let left = [
            sandboxes.less(spare.sandboxes),
            cpu_millis.less(spare.cpu_millis),
            memory_bytes.less(spare.memory_bytes),
        ];
        left.map(Share::room)
    }
}

/// More than all is as good as all.
fn percent(percent: u64) -> u8 {
    u8::try_from(percent).unwrap_or(100).min(100)
}

fn features_of(facts: &Facts) -> BTreeSet<Feature> {
    let languages = facts.languages.iter().map(|language| Feature::Language(*language));
    let images = facts.images.iter().map(|image| Feature::Image(image.clone()));
    let packages = facts.package_sets.iter().map(|set| Feature::Packages(set.clone()));
    let labels = facts.labels.iter().map(|(key, value)| Feature::Label(key.clone(), value.clone()));
    languages.chain(images).chain(packages).chain(labels).collect()
}

fn turn(set: &mut BTreeSet<String>, member: &str, has: bool) {
    match has {
        true => set.insert(member.to_owned()),
        false => set.remove(member),
    };
}

#[cfg(test)]
mod tests;
