//! The answers of the registry by a look at everything that is known: slow, and plain enough to be seen to be
//! right. Tests compare.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use sandmesh_proto::agent::{Sandbox, SandboxSpec, sandbox::State};

use super::{
    Known, Place, Registry, Used,
    known::{Entry, made_at},
};
use crate::{
    placement::{self, Language, NodeView, Promised, Share, Wanted},
    pool::{Condition, Profile, Warm},
};

impl Registry {
    fn is_healthy(&self, known: &Known, entry: &Entry) -> bool {
        let timeout = TimeDelta::from_std(self.config.heartbeat_timeout.0).unwrap();
        known.as_of - entry.last_seen <= timeout
    }

    /// Every node, ordered by id.
    pub(super) fn scan_views(&self) -> Vec<NodeView> {
        let known = self.known();
        let view = |entry: &Entry| {
            let coming = known.placements.values().filter(|placed| placed.node_id == entry.node.node_id);
            view(entry, coming.map(|placed| &placed.spec), self.is_healthy(&known, entry))
        };
        known.nodes.values().map(view).collect()
    }

    pub(super) fn scan_node_of(&self, id: &str) -> Option<String> {
        let known = self.known();
        if let Some(placed) = known.placements.get(id) {
            return Some(placed.node_id.clone());
        }
        let mut nodes = known.nodes.iter();
        nodes.find(|(_, entry)| entry.sandboxes.contains_key(id)).map(|(id, _)| id.clone())
    }

    /// Which warm sandbox is taken next.
    pub(super) fn scan_take_warm(&self, spec: &SandboxSpec) -> Option<Place> {
        let (known, wanted) = (self.known(), crate::view::wanted(spec));
        let fits = |entry: &&Entry| {
            self.is_healthy(&known, entry)
                && !entry.lost
                && !entry.node.draining
                && placement::has_labels(&wanted, |key| entry.node.labels.get(key))
        };
        let free = known.nodes.values().filter(fits).flat_map(|entry| {
            let free = entry.sandboxes.values().filter(|sandbox| can_become(sandbox, spec));
            free.map(|sandbox| (entry.sandboxes.len(), sandbox))
        });
        let taken = |sandbox: &Sandbox| known.claiming.contains_key(&place(sandbox));
        let has_packages =
            |sandbox: &Sandbox| known.nodes[&sandbox.node_id].node.package_sets.contains(&wanted.packages);
        let best = free
            .filter(|(_, sandbox)| !taken(sandbox))
            .min_by_key(|(load, sandbox)| (!has_packages(sandbox), *load, made_at(sandbox), place(sandbox)));
        best.map(|(_, sandbox)| place(sandbox))
    }

    /// Which warm sandbox is given up next.
    pub(super) fn scan_give_up(&self, wanted: &Wanted) -> Option<Place> {
        let views = self.scan_views();
        let known = self.known();
        let longest = views.iter().find_map(|node| {
            let free: Vec<&Sandbox> = free_on(&known, &node.id).collect();
            let helps = placement::fits_without(wanted, node, promised(&free));
            free.into_iter().filter(|_| helps).min_by_key(|sandbox| (made_at(sandbox), place(sandbox)))
        });
        longest.map(place)
    }

    /// Ordered by place.
    pub(super) fn scan_warm(&self, profile: &Profile, spec: &SandboxSpec, crowded: u64) -> Vec<Warm> {
        let known = self.known();
        let mut all = Vec::new();
        for entry in known.nodes.values().filter(|entry| !entry.lost && self.is_healthy(&known, entry)) {
            let stressed = placement::percent(&view(entry, std::iter::empty(), true)) >= crowded;
            for sandbox in entry.sandboxes.values().filter(|sandbox| is_warm_of(sandbox, profile)) {
                let condition = match sandbox.state() {
                    State::Creating => Condition::Starting,
                    State::Running => Condition::Ready,
                    _ => Condition::Dead,
                };
                let alike = sandbox.spec.as_ref().is_some_and(|has| is_like(has, spec));
                let current = alike && !entry.node.draining;
                let made_at = made_at(sandbox).unwrap_or(known.as_of);
                all.push(Warm { place: place(sandbox), condition, current, made_at, stressed });
            }
        }
        all.sort_by(|a, b| a.place.cmp(&b.place));
        all
    }

    pub(super) fn scan_warm_profiles(&self) -> Vec<Profile> {
        let known = self.known();
        let all = known.nodes.values().filter(|entry| !entry.lost).flat_map(|entry| entry.sandboxes.values());
        let specs = all.filter_map(|sandbox| sandbox.spec.as_ref());
        let mut profiles: Vec<_> =
            specs.filter(|spec| spec.session_id.is_empty()).map(crate::view::profile).collect();
        profiles.sort();
        profiles.dedup();
        profiles
    }

    pub(super) fn scan_used(&self) -> BTreeMap<Profile, Used> {
        let known = self.known();
        let mut used: BTreeMap<Profile, Used> = BTreeMap::new();
        for sandbox in known.nodes.values().flat_map(|entry| entry.sandboxes.values()) {
            let live = matches!(sandbox.state(), State::Creating | State::Running);
            let Some(spec) = sandbox.spec.as_ref().filter(|spec| live && !spec.session_id.is_empty()) else {
                continue;
            };
            let used = used.entry(crate::view::profile(spec)).or_default();
            match sandbox.claimed {
                true => used.claimed += 1,
                false => used.cold += 1,
            }
        }
        used
    }
}

/// A node with what is `coming` to it. Where its sandboxes are not followed its own report must do.
fn view<'a>(entry: &Entry, coming: impl Iterator<Item = &'a SandboxSpec>, healthy: bool) -> NodeView {
    let node = &entry.node;
    let here: Vec<&Sandbox> = entry.sandboxes.values().collect();
    let live = here.iter().filter(|one| matches!(one.state(), State::Creating | State::Running));
    let mut used = match entry.followed {
        // A dead sandbox takes a place until it is deleted, and nothing else.
        true => Promised { sandboxes: here.len() as u64, ..promised(&live.copied().collect::<Vec<_>>()) },
        false => crate::view::reported(node),
    };
    for spec in coming {
        let resources = spec.resources.unwrap_or_default();
        used.sandboxes += 1;
        used.cpu_millis += u64::from(resources.cpu_millis);
        used.memory_bytes += resources.memory_bytes;
    }
    let capacity = node.capacity.unwrap_or_default();
    let limited = |limit: u64, used: u64| Share { limit: (limit > 0).then_some(limit), used };
    let running = here.iter().filter(|one| one.state() == State::Running);
    let specs: Vec<&SandboxSpec> = running.filter_map(|one| one.spec.as_ref()).collect();
    NodeView {
        id: node.node_id.clone(),
        healthy,
        draining: node.draining,
        sandboxes: Share { limit: Some(node.max_sandboxes.into()), used: used.sandboxes },
        cpu_millis: limited(capacity.cpu_millis.into(), used.cpu_millis),
        memory_bytes: limited(capacity.memory_bytes, used.memory_bytes),
        languages: node.languages.iter().copied().map(Language).collect(),
        images: node.images.clone(),
        package_sets: node.package_sets.clone(),
        labels: node.labels.clone().into_iter().collect(),
        templates: specs.iter().map(|spec| spec.template_id.clone()).collect(),
        warm: specs
            .iter()
            .filter(|spec| spec.session_id.is_empty())
            .map(|spec| spec.template_id.clone())
            .collect(),
    }
}

/// The warm sandboxes of a node that nobody is about to have.
fn free_on<'a>(known: &'a Known, node_id: &str) -> impl Iterator<Item = &'a Sandbox> {
    let sandboxes = known.nodes.get(node_id).into_iter().flat_map(|entry| entry.sandboxes.values());
    sandboxes.filter(|sandbox| {
        let unclaimed = sandbox.spec.as_ref().is_some_and(|spec| spec.session_id.is_empty());
        unclaimed && sandbox.state() == State::Running && !known.claiming.contains_key(&place(sandbox))
    })
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

fn is_warm_of(sandbox: &Sandbox, profile: &Profile) -> bool {
    let spec = sandbox.spec.as_ref();
    spec.is_some_and(|spec| {
        let limits = crate::view::limits(spec.resources.unwrap_or_default());
        spec.session_id.is_empty() && spec.template_id == profile.template_id && limits == profile.limits
    })
}

fn can_become(sandbox: &Sandbox, wanted: &SandboxSpec) -> bool {
    let has = sandbox.spec.as_ref().filter(|has| has.session_id.is_empty());
    sandbox.state() == State::Running && has.is_some_and(|has| is_like(has, wanted))
}

/// Whether one is what the other is, but for whom it is for and until when.
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
