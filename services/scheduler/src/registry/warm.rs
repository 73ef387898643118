//! Warm sandboxes, those that no session has: which can be claimed, which are there, and which may go.

use std::collections::BTreeMap;

use sandmesh_proto::agent::{Sandbox, SandboxSpec, sandbox::State};

use super::{
    Place, Registry,
    known::{Entry, Known, made_at},
};
use crate::{
    placement::{self, Wanted},
    pool::{Condition, Profile, Warm},
    shelf::Kind,
    view,
};

/// Of so many nodes that have what is wanted one is chosen for its packages; else these are installed.
const FURNISHED: usize = 256;

/// How many sandboxes of a profile sessions have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Used {
    /// That were warm.
    pub(crate) claimed: u32,
    /// That were made for them.
    pub(crate) cold: u32,
}

impl Used {
    /// Counts one, or one that was counted is gone.
    pub(super) fn count(&mut self, was_warm: bool, is_there: bool) {
        let count = if was_warm { &mut self.claimed } else { &mut self.cold };
        *count = if is_there { count.saturating_add(1) } else { count.saturating_sub(1) };
    }

    /// These and those.
    pub(crate) fn and(self, others: Self) -> Self {
        Self {
            claimed: self.claimed.saturating_add(others.claimed),
            cold: self.cold.saturating_add(others.cold),
        }
    }
}

impl Registry {
    /// Takes a sandbox for whoever wants this, as far as is known: nobody else of this process gets it. The one
    /// that has waited longest on the best node.
    pub(crate) fn take_warm(&self, spec: &SandboxSpec) -> Option<Place> {
        let (kind, wanted) = (view::kind(spec), view::wanted(spec));
        let mut known = self.known();
        let best = known.best_warm(&kind, &wanted)?;
        known.claim(&best);
        Some(best)
    }

    /// Nobody of this process claims a warm sandbox for a while: it is not ready yet.
    pub(crate) fn keep_from_claims(&self, place: &Place) {
        self.known().claim(place);
    }

    /// It may be claimed again.
    pub(crate) fn give_to_claims(&self, place: &Place) {
        self.known().unclaim(place);
    }

    /// The warm sandboxes of a profile, of which `spec` says what they are to be. Those on a node that is silent
    /// are not counted, and those on one that drains are of no use.
    pub(crate) fn warm(&self, profile: &Profile, spec: &SandboxSpec, crowded: u64) -> Vec<Warm> {
        let known = self.known();
        let Some(of) = known.profiles.get(profile) else { return Vec::new() };
        let kind = view::kind(spec);
        let there = of.warm.iter().filter_map(|(place, own)| {
            let entry = known.nodes.get(&place.1).filter(|entry| !entry.lost && entry.is_usable())?;
            let sandbox = entry.sandboxes.get(&place.0)?;
            Some(Warm {
                place: place.clone(),
                condition: condition(sandbox),
                current: *own == kind && !entry.node.draining,
                made_at: made_at(sandbox).unwrap_or(known.as_of),
                stressed: is_stressed(entry, crowded),
            })
        });
        there.collect()
    }

    /// The profiles that have warm sandboxes.
    pub(crate) fn warm_profiles(&self) -> Vec<Profile> {
        let known = self.known();
        let is_lost = |place: &Place| known.nodes.get(&place.1).is_none_or(|entry| entry.lost);
        let there = known.profiles.iter().filter(|(_, of)| of.warm.keys().any(|place| !is_lost(place)));
        there.map(|(profile, _)| profile.clone()).collect()
    }

    /// How many sandboxes sessions have, by profile.
    pub(crate) fn used(&self) -> BTreeMap<Profile, Used> {
        let known = self.known();
        let used = known.profiles.iter().filter(|(_, of)| of.used != Used::default());
        used.map(|(profile, of)| (profile.clone(), of.used)).collect()
    }

    /// A warm sandbox that may go, as its place is wanted: the one that has waited longest on a node where there
    /// is room without those that are warm. Nobody of this process claims it any more.
    pub(crate) fn give_up_warm(&self, wanted: &Wanted) -> Option<Place> {
        let mut known = self.known();
        let node_id = known.index.roomy_without_warm(wanted)?.to_owned();
        let longest = (known.shelf.longest_on(&node_id)?.to_owned(), node_id);
        known.claim(&longest);
        Some(longest)
    }
}

impl Known {
    /// The warm sandbox that is given next to whoever wants this: best one beside the packages.
    fn best_warm(&self, kind: &Kind, wanted: &Wanted) -> Option<Place> {
        let furnished = match self.index.few_with_packages(wanted) {
            Some(few) => {
                let suitable = few.into_iter().filter(|node_id| self.index.has_labels(node_id, wanted));
                self.shelf.best_of(kind, suitable)
            }
            None => self.shelf.best(kind, FURNISHED, |node_id| {
                self.index.has_packages(node_id, wanted) && self.index.has_labels(node_id, wanted)
            }),
        };
        furnished.or_else(|| self.best_warm_anywhere(kind, wanted))
    }

    fn best_warm_anywhere(&self, kind: &Kind, wanted: &Wanted) -> Option<Place> {
        if wanted.node_labels.is_empty() {
            return self.shelf.best(kind, 1, |_| true);
        }
        match self.index.few_with_labels(wanted) {
            Some(few) => self.shelf.best_of(kind, few.into_iter()),
            None => self.shelf.best(kind, usize::MAX, |node_id| self.index.has_labels(node_id, wanted)),
        }
    }
}

fn condition(sandbox: &Sandbox) -> Condition {
    match sandbox.state() {
        State::Creating => Condition::Starting,
        State::Running => Condition::Ready,
        _ => Condition::Dead,
    }
}

/// Whether so much of a node is promised, in percent, without what is on its way.
fn is_stressed(entry: &Entry, crowded: u64) -> bool {
    let shares = view::shares(&entry.node, entry.promised());
    shares.into_iter().map(placement::percent_used).max().unwrap_or_default() >= crowded
}
