//! Warm sandboxes, those that no session has: which can be claimed, which are there, and which may go.

use std::collections::BTreeMap;

use sandmesh_mesh::datetime;
use sandmesh_proto::agent::{Sandbox, SandboxSpec, sandbox::State};

use super::{Entry, Known, Place, Registry};
use crate::{
    placement::{self, Promised, Wanted},
    pool::{Condition, Warm},
    view,
};

/// How many sandboxes of a template sessions have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Used {
    /// That were warm.
    pub(crate) claimed: u32,
    /// That were made for them.
    pub(crate) cold: u32,
}

impl Registry {
    /// Takes a sandbox for whoever wants this, as far as is known: nobody else of this process gets it. The one
    /// that has waited longest on the best node.
    pub(crate) fn take_warm(&self, spec: &SandboxSpec) -> Option<Place> {
        let (now, wanted) = (self.clock.now(), view::wanted(spec));
        let mut known = self.known();
        let fits = |entry: &&Entry| {
            self.is_healthy(entry)
                && !entry.lost
                && !entry.node.draining
                && placement::has_labels(&wanted, |key| entry.node.labels.get(key))
        };
        let free = known.nodes.values().filter(fits).flat_map(|entry| {
            let free = entry.sandboxes.values().filter(|sandbox| can_become(sandbox, spec));
            free.map(|sandbox| (entry.sandboxes.len(), sandbox))
        });
        let taken = |sandbox: &Sandbox| known.claiming.contains_key(&place(sandbox));
        let best = free
            .filter(|(_, sandbox)| !taken(sandbox))
            .min_by_key(|(load, sandbox)| (*load, made_at(sandbox), place(sandbox)));
        let best = best.map(|(_, sandbox)| place(sandbox))?;
        known.claiming.insert(best.clone(), now);
        Some(best)
    }

    /// Nobody of this process claims a warm sandbox for a while: it is not ready yet.
    pub(crate) fn keep_from_claims(&self, place: &Place) {
        self.known().claiming.insert(place.clone(), self.clock.now());
    }

    /// It may be claimed again.
    pub(crate) fn give_to_claims(&self, place: &Place) {
        self.known().claiming.remove(place);
    }

    /// The warm sandboxes of a template, of which `spec` says what they are to be. Those on a node that is silent
    /// are not counted, and those on one that drains are of no use.
    pub(crate) fn warm(&self, template_id: &str, spec: &SandboxSpec, crowded: u64) -> Vec<Warm> {
        let known = self.known();
        let mut all = Vec::new();
        for entry in known.nodes.values().filter(|entry| !entry.lost && self.is_healthy(entry)) {
            let stressed = placement::percent(&view::of(entry, std::iter::empty(), true)) >= crowded;
            for sandbox in entry.sandboxes.values().filter(|sandbox| is_warm_of(sandbox, template_id)) {
                let condition = match sandbox.state() {
                    State::Creating => Condition::Starting,
                    State::Running => Condition::Ready,
                    _ => Condition::Dead,
                };
                let alike = sandbox.spec.as_ref().is_some_and(|has| is_like(has, spec));
                let current = alike && !entry.node.draining;
                let made_at = made_at(sandbox).unwrap_or_else(|| self.clock.now());
                all.push(Warm { place: place(sandbox), condition, current, made_at, stressed });
            }
        }
        all
    }

    /// The templates that have warm sandboxes.
    pub(crate) fn warm_templates(&self) -> Vec<String> {
        let known = self.known();
        let all = known.nodes.values().filter(|entry| !entry.lost).flat_map(|entry| entry.sandboxes.values());
        let specs = all.filter_map(|sandbox| sandbox.spec.as_ref());
        let mut templates: Vec<_> =
            specs.filter(|spec| spec.session_id.is_empty()).map(|spec| spec.template_id.clone()).collect();
        templates.sort();
        templates.dedup();
        templates
    }

    /// How many sandboxes sessions have, by template.
    pub(crate) fn used(&self) -> BTreeMap<String, Used> {
        let known = self.known();
        let mut used: BTreeMap<String, Used> = BTreeMap::new();
        for sandbox in known.nodes.values().flat_map(|entry| entry.sandboxes.values()) {
            let live = matches!(sandbox.state(), State::Creating | State::Running);
            let Some(spec) = sandbox.spec.as_ref().filter(|spec| live && !spec.session_id.is_empty()) else {
                continue;
            };
            let used = used.entry(spec.template_id.clone()).or_default();
            match sandbox.claimed {
                true => used.claimed += 1,
                false => used.cold += 1,
            }
        }
        used
    }

    /// Where a warm sandbox may go, best first: nodes fill up to `crowded` percent with them.
    pub(crate) fn choose_warm(&self, wanted: &Wanted, crowded: u64) -> placement::Choice {
        placement::choose_warm(wanted, &self.views(&self.known()), crowded)
    }

    /// A warm sandbox that may go, as its place is wanted: the one that has waited longest on a node where there
    /// is room without those that are warm. Nobody of this process claims it any more.
    pub(crate) fn give_up_warm(&self, wanted: &Wanted) -> Option<Place> {
        let now = self.clock.now();
        let mut known = self.known();
        let views = self.views(&known);
        let longest = views.iter().find_map(|node| {
            let free: Vec<&Sandbox> = known.free_on(&node.id).collect();
            let helps = placement::fits_without(wanted, node, promised(&free));
            free.into_iter().filter(|_| helps).min_by_key(|sandbox| (made_at(sandbox), place(sandbox)))
        });
        let longest = place(longest?);
        known.claiming.insert(longest.clone(), now);
        Some(longest)
    }
}

impl Known {
    /// The warm sandboxes of a node that nobody is about to have.
    fn free_on(&self, node_id: &str) -> impl Iterator<Item = &Sandbox> {
        let sandboxes = self.nodes.get(node_id).into_iter().flat_map(|entry| entry.sandboxes.values());
        sandboxes.filter(|sandbox| {
            let unclaimed = sandbox.spec.as_ref().is_some_and(|spec| spec.session_id.is_empty());
            unclaimed && sandbox.state() == State::Running && !self.claiming.contains_key(&place(sandbox))
        })
    }
}

/// What is promised to these.
fn promised(sandboxes: &[&Sandbox]) -> Promised {
    let resources = sandboxes.iter().filter_map(|sandbox| sandbox.spec.as_ref()?.resources);
    let none = Promised { sandboxes: sandboxes.len() as u64, ..Promised::default() };
    resources.fold(none, |sum, one| Promised {
        cpu_millis: sum.cpu_millis + u64::from(one.cpu_millis),
        memory_bytes: sum.memory_bytes.saturating_add(one.memory_bytes),
        ..sum
    })
}

fn place(sandbox: &Sandbox) -> Place {
    (sandbox.sandbox_id.clone(), sandbox.node_id.clone())
}

fn made_at(sandbox: &Sandbox) -> Option<chrono::DateTime<chrono::Utc>> {
    sandbox.created_at.as_ref().and_then(datetime)
}

fn is_warm_of(sandbox: &Sandbox, template_id: &str) -> bool {
    let spec = sandbox.spec.as_ref();
    spec.is_some_and(|spec| spec.session_id.is_empty() && spec.template_id == template_id)
}

fn can_become(sandbox: &Sandbox, wanted: &SandboxSpec) -> bool {
    let has = sandbox.spec.as_ref().filter(|has| has.session_id.is_empty());
    sandbox.state() == State::Running && has.is_some_and(|has| is_like(has, wanted))
}

/// Whether one is what the other is, but for whom it is for and until when. Packages can be shown later, and
/// nodes do not tell them.
fn is_like(has: &SandboxSpec, wanted: &SandboxSpec) -> bool {
    let whose = SandboxSpec {
        labels: wanted.labels.clone(),
        session_id: wanted.session_id.clone(),
        expires_at: wanted.expires_at,
        restarts: wanted.restarts,
        packages: wanted.packages.clone(),
        ..has.clone()
    };
    whose == *wanted
}
