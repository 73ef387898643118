//! A tree over the nodes in the order of their ids: of each part of them it knows the most that any has, so that
//! a search passes over the parts where nobody can be that is better than who was found.

use std::cmp::Reverse;

use super::features::Bits;
use crate::placement::Score;

/// So many nodes are one leaf: looking at each is faster than going down further.
const LEAF: usize = 16;

/// So many leaves are looked at in vain for one that is better than who was found. What a part has and what it has
/// room for may be with different nodes everywhere, and then every part promises what none can give.
const IN_VAIN: usize = 64;

/// How much more may be promised, and one, so that nothing is more than zero and less than that is zero:
/// sandboxes, thousandths of a core, bytes of memory.
pub(super) type Room = [u64; 3];

/// The most that any of some nodes has. Each figure may be that of another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Most {
    /// Room on nodes that take sandboxes.
    pub(super) room: Room,
    /// The same without those that are warm and free, where there are any.
    pub(super) without_warm: Room,
    /// In all, and one: thousandths of a core, bytes of memory.
    pub(super) capacity: [u64; 2],
    /// The least share, in percent, that is promised of one with room.
    pub(super) promised: u8,
    /// The least share of its sandboxes that one with room has.
    pub(super) crowd: u8,
    /// What those with room have.
    pub(super) with_room: Bits,
    /// What any has that takes sandboxes.
    pub(super) all: Bits,
}

impl Most {
    /// Of no node.
    pub(super) const NONE: Self = Self {
        room: [0; 3],
        without_warm: [0; 3],
        capacity: [0; 2],
        promised: u8::MAX,
        crowd: u8::MAX,
        with_room: Bits::NONE,
        all: Bits::NONE,
    };

    fn and(&self, other: &Self) -> Self {
        fn most<const N: usize>(a: &[u64; N], b: &[u64; N]) -> [u64; N] {
            std::array::from_fn(|at| a[at].max(b[at]))
        }
        Self {
            room: most(&self.room, &other.room),
            without_warm: most(&self.without_warm, &other.without_warm),
            capacity: most(&self.capacity, &other.capacity),
            promised: self.promised.min(other.promised),
            crowd: self.crowd.min(other.crowd),
            with_room: self.with_room.or(other.with_room),
            all: self.all.or(other.all),
        }
    }
}

/// The best that was found: how good, and where.
pub(super) type Found = (Score, Reverse<usize>);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Each node.
    nodes: Vec<Most>,
    /// Number 1 is the root, `n` is above `2n` and `2n + 1`, and the second half is the leaves.
    parts: Vec<Most>,
}

impl Tree {
    /// Of these nodes.
    pub(super) fn new(nodes: Vec<Most>) -> Self {
        let leaves = nodes.len().div_ceil(LEAF).next_power_of_two();
        let mut tree = Self { nodes, parts: vec![Most::NONE; 2 * leaves] };
        for leaf in 0..leaves {
            tree.parts[leaves + leaf] = tree.leaf(leaf);
        }
        for part in (1..leaves).rev() {
            tree.parts[part] = tree.parts[2 * part].and(&tree.parts[2 * part + 1]);
        }
        tree
    }

    /// One node is like this now.
    pub(super) fn set(&mut self, position: usize, most: Most) {
        self.nodes[position] = most;
        let mut part = self.leaves() + position / LEAF;
        let mut new = self.leaf(position / LEAF);
        while self.parts[part] != new {
            self.parts[part] = new;
            part /= 2;
            if part == 0 {
                return;
            }
            new = self.parts[2 * part].and(&self.parts[2 * part + 1]);
        }
    }

    /// One node.
    pub(super) fn node(&self, position: usize) -> &Most {
        &self.nodes[position]
    }

    fn leaves(&self) -> usize {
        self.parts.len() / 2
    }

    fn leaf(&self, leaf: usize) -> Most {
        self.positions(leaf).fold(Most::NONE, |most, position| most.and(&self.nodes[position]))
    }

    fn positions(&self, leaf: usize) -> std::ops::Range<usize> {
        leaf * LEAF..((leaf + 1) * LEAF).min(self.nodes.len())
    }

    /// The first node of a part.
    fn first_of(&self, part: usize) -> usize {
        let level = part.ilog2();
        (part - (1 << level)) * (self.leaves() >> level) * LEAF
    }

    /// The best node, and of those that are equally good the first, if it is better than `found`; or a good one, when
    /// it takes too long to find a better. `bound` says how good one of a part could be, `exact` how good one is.
    pub(super) fn best(
        &self,
        mut found: Option<Found>,
        bound: impl Fn(&Most) -> Option<Score>,
        exact: impl Fn(usize) -> Option<Score>,
    ) -> Option<Found> {
        let at = |part: usize| {
            let score = self.parts.get(part).and_then(&bound)?;
            Some(((score, Reverse(self.first_of(part))), part))
        };
        let mut parts: Vec<(Found, usize)> = at(1).into_iter().collect();
        let mut in_vain = 0;
        while let Some((most, part)) = parts.pop().filter(|_| in_vain < IN_VAIN) {
            if found.is_some_and(|found| found >= most) {
                continue;
            }
            if part < self.leaves() {
                // The more promising one comes first, and whoever is found there may spare the other.
                let mut below = [at(2 * part), at(2 * part + 1)];
                below.sort_unstable();
                parts.extend(below.into_iter().flatten());
                continue;
            }
            let before = found;
            for position in self.positions(part - self.leaves()) {
                let may = bound(&self.nodes[position]).map(|score| (score, Reverse(position)));
                if may > found {
                    let is = exact(position).map(|score| (score, Reverse(position)));
                    found = found.max(is);
                }
            }
            in_vain = if before.is_some() && found == before { in_vain + 1 } else { 0 };
        }
        found
    }

    /// The first node of which this holds, where `may` says whether it may of one of a part.
    pub(super) fn first(&self, may: impl Fn(&Most) -> bool, holds: impl Fn(usize) -> bool) -> Option<usize> {
        let mut parts = vec![1];
        while let Some(part) = parts.pop() {
            if !self.parts.get(part).is_some_and(&may) {
                continue;
            }
            if part < self.leaves() {
                parts.extend([2 * part + 1, 2 * part]);
                continue;
            }
            let mut positions = self.positions(part - self.leaves());
            let first = positions.find(|position| may(&self.nodes[*position]) && holds(*position));
            if first.is_some() {
                return first;
            }
        }
        None
    }
}
