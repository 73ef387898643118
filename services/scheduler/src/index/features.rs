//! What nodes have and sandboxes ask for, by number: which nodes have it, and how the tree tells that some may.
//!
//! What few nodes have is looked up: they are looked at one by one. What many have gets a bit, by which whole
//! parts of the tree can be passed over. There are not bits enough for everything that few have, as the name of
//! a host, and there need not be.

use std::collections::{BTreeSet, HashMap};

use crate::placement::Language;

/// So many nodes are few.
const FEW: usize = 64;

/// How many bits there are; two things may share one.
const BITS: usize = 256;

/// Something that a node has or has not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Feature {
    /// The interpreter of a language.
    Language(Language),
    /// A label with this value.
    Label(String, String),
    /// An image.
    Image(String),
    /// A set of packages, by its fingerprint.
    Packages(String),
    /// Running sandboxes of a template.
    Template(String),
    /// Running sandboxes of a template that no session has.
    Warm(String),
}

/// The number of something that a node has.
pub(super) type Id = u32;

/// The number of a node.
pub(super) type Slot = u32;

/// A set of bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bits([u64; BITS / 64]);

impl Bits {
    /// Not one.
    pub(super) const NONE: Self = Self([0; BITS / 64]);

    /// What is in one or the other.
    pub(super) fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] | other.0[at]))
    }

    /// Whether all that is in the other is in this.
    pub(super) fn has(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(own, other)| own & other == *other)
    }

    fn with(mut self, bit: u8) -> Self {
        self.0[usize::from(bit / 64)] |= 1 << (bit % 64);
        self
    }
}

/// What is known of one thing.
#[derive(Debug, Default)]
struct Known {
    nodes: BTreeSet<Slot>,
    /// `None` while few have it.
    bit: Option<u8>,
}

/// Everything that some node has.
#[derive(Debug)]
pub(super) struct Features {
    ids: HashMap<Feature, Id>,
    known: Vec<Known>,
    unused: Vec<Id>,
    /// How many things use each bit.
    bits: [u32; BITS],
}

impl Default for Features {
    fn default() -> Self {
        Self { ids: HashMap::new(), known: Vec::new(), unused: Vec::new(), bits: [0; BITS] }
    }
}

impl Features {
    /// Its number; `None` when no node has it.
    pub(super) fn id(&self, feature: &Feature) -> Option<Id> {
        self.ids.get(feature).copied()
    }

    /// The nodes that have it, when they are few; `None`: there are many.
    pub(super) fn few(&self, id: Id) -> Option<&BTreeSet<Slot>> {
        let known = &self.known[id as usize];
        known.bit.is_none().then_some(&known.nodes)
    }

    /// The bits of these; those that few nodes have have none.
    pub(super) fn bits(&self, ids: &[Id]) -> Bits {
        let bits = ids.iter().filter_map(|id| self.known[*id as usize].bit);
        bits.fold(Bits::default(), Bits::with)
    }

    /// A node has it from now on. When it has become one of many, those that have it are told: their bits are
    /// others now.
    pub(super) fn add(&mut self, feature: Feature, slot: Slot) -> (Id, Vec<Slot>) {
        let id = self.id(&feature).unwrap_or_else(|| self.number(feature));
        let known = &mut self.known[id as usize];
        known.nodes.insert(slot);
        if known.bit.is_some() || known.nodes.len() <= FEW {
            return (id, Vec::new());
        }
        let (bit, users) = least_used(&mut self.bits);
        *users += 1;
        known.bit = Some(bit);
        (id, known.nodes.iter().copied().collect())
    }

    fn number(&mut self, feature: Feature) -> Id {
        let id = self.unused.pop().unwrap_or_else(|| {
            self.known.push(Known::default());
            Id::try_from(self.known.len() - 1).unwrap_or(Id::MAX)
        });
        self.ids.insert(feature, id);
        id
    }

    /// A node has it no more. When few are left that have it, they are told.
    pub(super) fn remove(&mut self, feature: &Feature, slot: Slot) -> Option<(Id, Vec<Slot>)> {
        let id = self.id(feature)?;
        let known = &mut self.known[id as usize];
        known.nodes.remove(&slot);
        let mut changed = Vec::new();
        // Not at once, so that one who comes and goes does not have it change each time.
        if known.nodes.len() <= FEW / 2
            && let Some(bit) = known.bit.take()
        {
            self.bits[usize::from(bit)] -= 1;
            changed.extend(&known.nodes);
        }
        if known.nodes.is_empty() {
            self.ids.remove(feature);
            self.unused.push(id);
        }
        Some((id, changed))
    }
}

fn least_used(bits: &mut [u32; BITS]) -> (u8, &mut u32) {
    let least = (0_u8..=u8::MAX).min_by_key(|bit| bits[usize::from(*bit)]).unwrap_or_default();
    (least, &mut bits[usize::from(least)])
}
