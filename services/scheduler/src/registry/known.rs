//! What is known, and the sums and orders of it by which decisions are made without a look at all of it. Each
//! change of the one is a change of the other, and they are made here.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use sandmesh_mesh::{CancellationToken, Link, datetime, is_elsewhere};
use sandmesh_proto::agent::{Node, Sandbox, SandboxSpec, sandbox::State};

use super::{Place, Used};
use crate::{
    index::{Index, Load},
    placement::{Promised, Share},
    pool::Profile,
    shelf::{Kind, Shelf, Waiting},
    tally::{Sum, Tally},
    view,
};

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Since when.
    pub(super) as_of: DateTime<Utc>,
    pub(super) nodes: BTreeMap<String, Entry>,
    /// Where sandboxes were sent of which their node has told nothing yet.
    pub(super) placements: HashMap<String, Placement>,
    /// The same by when.
    placed: BTreeSet<(DateTime<Utc>, String)>,
    /// Warm sandboxes that somebody is about to have, and since when.
    pub(super) claiming: HashMap<Place, DateTime<Utc>>,
    /// The same by when.
    claimed: BTreeSet<(DateTime<Utc>, Place)>,
    /// Every sandbox, ordered by id and node.
    pub(super) places: BTreeSet<Place>,
    /// The nodes that reported lately, by when they did last.
    pub(super) fresh: BTreeSet<(DateTime<Utc>, String)>,
    /// The others.
    pub(super) silent: BTreeSet<(DateTime<Utc>, String)>,
    pub(super) profiles: BTreeMap<Profile, OfProfile>,
    pub(super) index: Index,
    pub(super) shelf: Shelf,
    /// There may be room that was not there before.
    more_room: bool,
}

/// A sandbox that was sent to a node.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) node_id: String,
    pub(super) spec: SandboxSpec,
    placed_at: DateTime<Utc>,
}

/// The sandboxes of a profile.
#[derive(Debug, Default)]
pub(super) struct OfProfile {
    /// Those that sessions have.
    pub(super) used: Used,
    /// Those that no session has, in whatever state, and what they are.
    pub(super) warm: BTreeMap<Place, Kind>,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As it reported last.
    pub(super) node: Node,
    /// Its sandboxes, by id.
    pub(super) sandboxes: BTreeMap<String, Sandbox>,
    /// Whether `sandboxes` is all of them, and up to date.
    pub(super) followed: bool,
    /// It reported to this process; one that did not is known of from before.
    pub(super) reported: bool,
    /// It was silent for so long that its sandboxes count as dead, until it reports again.
    pub(super) lost: bool,
    /// It reported lately.
    pub(super) healthy: bool,
    pub(super) last_seen: DateTime<Utc>,
    pub(super) link: Link,
    pub(super) follower: CancellationToken,
    /// What its sandboxes come to.
    tally: Tally,
    /// What those come to that are on their way to it.
    coming: Sum,
    /// What its warm sandboxes come to that nobody is about to have.
    spare: Sum,
    /// What it gives, as the index knows.
    load: Option<Load>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.follower.cancel();
    }
}

impl Entry {
    /// One without sandboxes that was heard of last at that time.
    pub(super) fn new(node: Node, link: Link, follower: CancellationToken, last_seen: DateTime<Utc>) -> Self {
        Self {
            node,
            sandboxes: BTreeMap::new(),
            followed: false,
            reported: false,
            lost: false,
            healthy: false,
            last_seen,
            link,
            follower,
            tally: Tally::default(),
            coming: Sum::default(),
            spare: Sum::default(),
            load: None,
        }
    }

    /// The same of one that reports itself.
    pub(super) fn reporting(mut self) -> Self {
        self.reported = true;
        self
    }

    /// Whether it reports and can be reached. One on another machine that reports may be out of reach from here: the
    /// watch tells.
    pub(super) fn is_usable(&self) -> bool {
        self.healthy && (self.followed || !is_elsewhere(&self.node.endpoint))
    }

    /// Whether it can be told which sandboxes it has.
    pub(super) fn is_told(&self) -> bool {
        self.lost || (self.followed && self.healthy)
    }

    /// What is promised without what is on its way. Where its sandboxes are not followed its own report must do.
    pub(super) fn promised(&self) -> Promised {
        match self.followed {
            true => self.tally.promised(),
            false => view::reported(&self.node),
        }
    }

    fn load(&self) -> Load {
        let (here, coming) = (self.promised(), self.coming.promised());
        let promised = Promised {
            sandboxes: here.sandboxes.saturating_add(coming.sandboxes),
            cpu_millis: here.cpu_millis.saturating_add(coming.cpu_millis),
            memory_bytes: here.memory_bytes.saturating_add(coming.memory_bytes),
        };
        let [sandboxes, cpu_millis, memory_bytes] = view::shares(&self.node, promised);
        Load {
            healthy: self.is_usable(),
            draining: self.node.draining,
            sandboxes,
            cpu_millis,
            memory_bytes,
            spare: self.spare.promised(),
        }
    }
}

impl Known {
    /// Whether there may be room that was not there when this was asked last.
    pub(super) fn take_more_room(&mut self) -> bool {
        std::mem::take(&mut self.more_room)
    }

    /// Adds a node that is not known.
    pub(super) fn add(&mut self, mut entry: Entry) {
        let id = entry.node.node_id.clone();
        let coming = self.placements.values().filter(|placed| placed.node_id == id);
        coming.map(|placed| view::size(&placed.spec)).for_each(|(cpu, memory)| entry.coming.add(cpu, memory));
        self.silent.insert((entry.last_seen, id.clone()));
        self.nodes.insert(id.clone(), entry);
        self.describe(&id);
    }

    /// A node said something now.
    pub(super) fn hear(&mut self, node_id: &str) {
        let Some(entry) = self.nodes.get_mut(node_id) else { return };
        let before = (entry.last_seen, node_id.to_owned());
        self.silent.remove(&before);
        self.fresh.remove(&before);
        (entry.last_seen, entry.healthy) = (self.as_of, true);
        self.fresh.insert((self.as_of, before.1));
    }

    /// Nodes that were heard of last before that time are not healthy.
    pub(super) fn silence(&mut self, since: DateTime<Utc>) {
        while let Some((seen, id)) = self.fresh.first().filter(|(seen, _)| *seen < since).cloned() {
            self.fresh.remove(&(seen, id.clone()));
            if let Some(entry) = self.nodes.get_mut(&id) {
                entry.healthy = false;
            }
            self.refresh(&id);
            self.silent.insert((seen, id));
        }
    }

    /// Forgets the nodes that were heard of last before that time.
    pub(super) fn forget(&mut self, since: DateTime<Utc>) {
        while let Some((seen, id)) = self.silent.first().filter(|(seen, _)| *seen < since).cloned() {
            self.silent.remove(&(seen, id.clone()));
            let ids = self.nodes.get(&id).map(|entry| entry.sandboxes.keys().cloned().collect::<Vec<_>>());
            for sandbox_id in ids.unwrap_or_default() {
                self.swap(&id, &sandbox_id, None);
            }
            self.nodes.remove(&id);
            self.index.remove(&id);
            self.shelf.remove_node(&id);
        }
    }

    /// Has decisions know what a node says of itself.
    pub(super) fn describe(&mut self, node_id: &str) {
        let Some(entry) = self.nodes.get(node_id) else { return };
        self.index.describe(node_id, &view::facts(&entry.node));
        self.more_room = true;
        self.refresh(node_id);
    }

    /// Has decisions know what a node has to give.
    pub(super) fn refresh(&mut self, node_id: &str) {
        let Some(entry) = self.nodes.get_mut(node_id) else { return };
        let load = entry.load();
        let before = entry.load.replace(load);
        self.more_room |= before.is_none_or(|before| gives_more(&load, &before));
        if before != Some(load) {
            self.index.set(node_id, &load);
        }
        let gives = entry.is_usable() && !entry.lost && !entry.node.draining;
        self.shelf.set_node(node_id, entry.sandboxes.len() as u64, gives);
    }

    /// A node has this sandbox instead of what it had of that id; returns what that was. The node is to be
    /// refreshed afterwards.
    pub(super) fn swap(&mut self, node_id: &str, id: &str, new: Option<Sandbox>) -> Option<Sandbox> {
        let place = (id.to_owned(), node_id.to_owned());
        let Self { nodes, claiming, index, shelf, profiles, places, .. } = self;
        let entry = nodes.get_mut(node_id)?;
        let old = entry.sandboxes.remove(id);
        match (&old, &new) {
            (None, Some(_)) => drop(places.insert(place.clone())),
            (Some(_), None) => drop(places.remove(&place)),
            _ => {}
        }
        let of = |sandbox: &Option<Sandbox>| Some(sandbox.as_ref()?.spec.as_ref()?.template_id.clone());
        let touched: BTreeSet<String> = [of(&old), of(&new)].into_iter().flatten().collect();
        let before: Vec<_> = touched.iter().map(|template_id| entry.tally.has(template_id)).collect();
        old.iter().for_each(|old| entry.tally.remove(&view::counted(old)));
        new.iter().for_each(|new| entry.tally.add(&view::counted(new)));
        for (template_id, before) in touched.iter().zip(before) {
            let after = entry.tally.has(template_id);
            if after.any != before.any {
                index.set_template(node_id, template_id, after.any);
            }
            if after.warm != before.warm {
                index.set_warm(node_id, template_id, after.warm);
            }
        }
        let is_claimed = claiming.contains_key(&place);
        for (sandbox, is_there) in old.iter().map(|old| (old, false)).chain(new.iter().map(|new| (new, true)))
        {
            count(profiles, &place, sandbox, is_there);
            if !is_claimed {
                offer(shelf, entry, sandbox, is_there);
            }
        }
        if let Some(new) = new {
            entry.sandboxes.insert(id.to_owned(), new);
        }
        old
    }

    /// A sandbox is on its way to a node.
    pub(super) fn place(&mut self, id: &str, node_id: &str, spec: &SandboxSpec) {
        self.unplace(id);
        let placed_at = self.as_of;
        let placement = Placement { node_id: node_id.to_owned(), spec: spec.clone(), placed_at };
        self.placements.insert(id.to_owned(), placement);
        self.placed.insert((placed_at, id.to_owned()));
        if let Some(entry) = self.nodes.get_mut(node_id) {
            let (cpu_millis, memory_bytes) = view::size(spec);
            entry.coming.add(cpu_millis, memory_bytes);
        }
        self.refresh(node_id);
    }

    /// It is there, or is not coming.
    pub(super) fn unplace(&mut self, id: &str) {
        let Some(Placement { node_id, spec, placed_at }) = self.placements.remove(id) else { return };
        self.placed.remove(&(placed_at, id.to_owned()));
        if let Some(entry) = self.nodes.get_mut(&node_id) {
            let (cpu_millis, memory_bytes) = view::size(&spec);
            entry.coming.remove(cpu_millis, memory_bytes);
        }
        self.refresh(&node_id);
    }

    /// Forgets what was sent before that time.
    pub(super) fn forget_placed(&mut self, since: DateTime<Utc>) {
        while let Some((_, id)) = self.placed.first().filter(|(at, _)| *at < since).cloned() {
            self.unplace(&id);
        }
    }

    /// Somebody is about to have a warm sandbox.
    pub(super) fn claim(&mut self, place: &Place) {
        self.unclaim(place);
        self.offer(place, false);
        self.claiming.insert(place.clone(), self.as_of);
        self.claimed.insert((self.as_of, place.clone()));
    }

    /// Nobody is any more.
    pub(super) fn unclaim(&mut self, place: &Place) {
        if let Some(since) = self.claiming.remove(place) {
            self.claimed.remove(&(since, place.clone()));
            self.offer(place, true);
        }
    }

    /// Forgets who was about to have some since before that time.
    pub(super) fn forget_claimed(&mut self, since: DateTime<Utc>) {
        while let Some((_, place)) = self.claimed.first().filter(|(at, _)| *at < since).cloned() {
            self.unclaim(&place);
        }
    }

    fn offer(&mut self, (id, node_id): &Place, is_free: bool) {
        let Some(entry) = self.nodes.get_mut(node_id) else { return };
        let Some(sandbox) = entry.sandboxes.get(id).cloned() else { return };
        offer(&mut self.shelf, entry, &sandbox, is_free);
        self.refresh(node_id);
    }

    /// A sandbox of a node.
    pub(super) fn sandbox(&self, node_id: &str, id: &str) -> Option<&Sandbox> {
        self.nodes.get(node_id)?.sandboxes.get(id)
    }

    /// The same, where it can be told which the node has.
    pub(super) fn told(&self, (id, node_id): &Place) -> Option<&Sandbox> {
        self.nodes.get(node_id).filter(|entry| entry.is_told())?.sandboxes.get(id)
    }

    /// The node that a sandbox is on, or on its way to.
    pub(super) fn node_of(&self, sandbox_id: &str) -> Option<&str> {
        if let Some(placed) = self.placements.get(sandbox_id) {
            return Some(&placed.node_id);
        }
        let (id, node_id) = self.places.range((sandbox_id.to_owned(), String::new())..).next()?;
        (id == sandbox_id).then_some(node_id)
    }

    /// Has a sandbox go to a node, unless it went to one already; returns the one that it is.
    pub(super) fn bind(&mut self, sandbox_id: &str, node_id: &str, spec: &SandboxSpec) -> String {
        if let Some(node_id) = self.node_of(sandbox_id) {
            return node_id.to_owned();
        }
        self.place(sandbox_id, node_id, spec);
        node_id.to_owned()
    }
}

/// Whether there is more of anything.
fn gives_more(now: &Load, before: &Load) -> bool {
    let opens = |load: &Load| load.healthy && !load.draining;
    let more = |now: Share, before: Share| now.room() > before.room();
    opens(now)
        && (!opens(before)
            || more(now.sandboxes, before.sandboxes)
            || more(now.cpu_millis, before.cpu_millis)
            || more(now.memory_bytes, before.memory_bytes))
}

/// Counts a sandbox for its profile, or does not any more.
fn count(profiles: &mut BTreeMap<Profile, OfProfile>, place: &Place, sandbox: &Sandbox, is_there: bool) {
    let Some(spec) = &sandbox.spec else { return };
    let profile = view::profile(spec);
    let of = profiles.entry(profile.clone()).or_default();
    let live = matches!(sandbox.state(), State::Creating | State::Running);
    match (view::is_warm(spec), is_there) {
        (true, true) => drop(of.warm.insert(place.clone(), view::kind(spec))),
        (true, false) => drop(of.warm.remove(place)),
        (false, _) if live => of.used.count(sandbox.claimed, is_there),
        (false, _) => {}
    }
    if of.warm.is_empty() && of.used == Used::default() {
        profiles.remove(&profile);
    }
}

/// Has a sandbox be one that can be given away, if it is one, or not any more.
fn offer(shelf: &mut Shelf, entry: &mut Entry, sandbox: &Sandbox, is_free: bool) {
    let Some(spec) = sandbox.spec.as_ref().filter(|spec| view::is_warm(spec)) else { return };
    if sandbox.state() != State::Running {
        return;
    }
    let one: Waiting = (made_at(sandbox), sandbox.sandbox_id.clone());
    let (kind, (cpu_millis, memory_bytes)) = (view::kind(spec), view::size(spec));
    if is_free {
        shelf.put(&entry.node.node_id, &kind, one);
        entry.spare.add(cpu_millis, memory_bytes);
    } else {
        shelf.take(&entry.node.node_id, &kind, &one);
        entry.spare.remove(cpu_millis, memory_bytes);
    }
}

/// When a sandbox was made, if that is known.
pub(super) fn made_at(sandbox: &Sandbox) -> Option<DateTime<Utc>> {
    sandbox.created_at.as_ref().and_then(datetime)
}
