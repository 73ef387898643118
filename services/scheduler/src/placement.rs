//! Which nodes a sandbox may go to, best first. Pure: a function of what is wanted and what is known.
//!
//! `choose` and its like look at every node: they say what is right, and tests compare with it what `index.rs` finds
//! without that. Where nothing fits, why is told from here.
//!
//! What is known may be old, so the first choice may refuse; the agent's own admission is the last
//! authority, and the rest of the candidates are there for that.

#[cfg(test)]
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A language by its number on the wire; placement only compares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Language(pub(crate) i32);

/// What a sandbox needs and would like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Thousandths of a core.
    pub(crate) cpu_millis: u64,
    /// Bytes of memory.
    pub(crate) memory_bytes: u64,
    /// The language whose interpreter must be there.
    pub(crate) language: Language,
    /// The labels that the node must have.
    pub(crate) node_labels: BTreeMap<String, String>,
    /// The image that would better be there already.
    pub(crate) image: String,
    /// The set of packages that would better be there already, by its fingerprint; empty: none.
    pub(crate) packages: String,
    /// The template whose sandboxes would better be there already.
    pub(crate) template_id: String,
}

/// How much there is of something, and how much of it is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// In all; `None` means that it is not counted.
    pub(crate) limit: Option<u64>,
    /// Promised.
    pub(crate) used: u64,
}

impl Share {
    fn fits(self, more: u64) -> bool {
        self.limit.is_none_or(|limit| self.used.saturating_add(more) <= limit)
    }

    fn could_fit(self, more: u64) -> bool {
        self.limit.is_none_or(|limit| more <= limit)
    }

    /// How much more fits, and one: zero is more than fits when too much is promised.
    pub(crate) fn room(self) -> u64 {
        let Some(limit) = self.limit else { return u64::MAX };
        limit.saturating_add(1).saturating_sub(self.used)
    }

    /// Without so much of what is promised.
    pub(crate) fn less(self, gone: u64) -> Self {
        Self { used: self.used.saturating_sub(gone), ..self }
    }
}

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeView {
    /// Its id.
    pub(crate) id: String,
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
    /// The languages it can run.
    pub(crate) languages: Vec<Language>,
    /// The images that are present.
    pub(crate) images: Vec<String>,
    /// The sets of packages that are installed, by their fingerprints.
    pub(crate) package_sets: Vec<String>,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// The templates of which it has sandboxes.
    pub(crate) templates: BTreeSet<String>,
    /// The templates of which it has sandboxes that no session has claimed.
    pub(crate) warm: BTreeSet<String>,
}

/// What is promised to some sandboxes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Promised {
    /// How many they are.
    pub(crate) sandboxes: u64,
    /// Thousandths of a core.
    pub(crate) cpu_millis: u64,
    /// Bytes of memory.
    pub(crate) memory_bytes: u64,
}

/// Why a node is not a candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The node.
    pub(crate) node_id: String,
    /// Why, for a person.
    pub(crate) why: String,
    /// False when no waiting changes it.
    pub(crate) may_change: bool,
}

/// Why no node is a candidate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Refusals {
    /// What some nodes say.
    pub(crate) named: Vec<Refusal>,
    /// How many more refuse.
    pub(crate) others: usize,
    /// False when no waiting changes any of these others.
    pub(crate) others_may_change: bool,
}

impl Refusals {
    /// What these say, and nobody else was asked.
    pub(crate) fn of(named: Vec<Refusal>) -> Self {
        Self { named, ..Self::default() }
    }
}

/// How good a node is, the weightiest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    /// It has a warm sandbox of the template, whatever the limits of that: who asks for one that is alike gets it
    /// before this matters, and for all others its image and packages are there.
    pub(crate) warm: bool,
    /// It has the image.
    pub(crate) image: bool,
    /// It has the packages.
    pub(crate) packages: bool,
    /// It has other sandboxes of the template, and is not crowded.
    pub(crate) affinity: bool,
    /// How much of it is free, in percent: of what it has least of.
    pub(crate) free_percent: u8,
}

/// Where a sandbox may go.
#[cfg(test)]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The ids of the nodes, best first.
    pub(crate) candidates: Vec<String>,
    /// The other nodes.
    pub(crate) refusals: Vec<Refusal>,
}

/// Above this share of its sandboxes, in percent, a node no longer draws those of the same template: else
/// one node would fill while others idle.
pub(crate) const CROWDED_PERCENT: u64 = 75;

/// Filters and orders the nodes. The same input gives the same answer, whatever the order of `nodes`.
#[cfg(test)]
pub(crate) fn choose(wanted: &Wanted, nodes: &[NodeView]) -> Choice {
    let mut choice = Choice::default();
    let mut fitting = Vec::new();
    for node in nodes {
        match refusal(wanted, node) {
            Some(refusal) => choice.refusals.push(refusal),
            None => fitting.push(node),
        }
    }
    fitting.sort_by_cached_key(|node| (Reverse(score(wanted, node)), node.id.clone()));
    choice.candidates = fitting.into_iter().map(|node| node.id.clone()).collect();
    choice.refusals.sort_by(|a, b| a.node_id.cmp(&b.node_id));
    choice
}

/// Where a warm sandbox may go: only on nodes of which less than `crowded` percent are promised, so that there
/// is room for what is asked for; those that have the image first, then the packages, and of these the emptiest.
#[cfg(test)]
pub(crate) fn choose_warm(wanted: &Wanted, nodes: &[NodeView], crowded: u64) -> Choice {
    let mut choice = choose(wanted, nodes);
    let node = |id: &String| nodes.iter().find(|node| node.id == *id);
    let (roomy, full): (Vec<String>, Vec<String>) =
        choice.candidates.into_iter().partition(|id| node(id).is_some_and(|node| percent(node) < crowded));
    choice.candidates = roomy;
    choice.candidates.sort_by_cached_key(|id| {
        let has = |node: &NodeView| {
            (node.images.contains(&wanted.image), node.package_sets.contains(&wanted.packages))
        };
        (Reverse(node(id).map(has)), node(id).map(percent), id.clone())
    });
    choice.refusals.extend(full.into_iter().map(|node_id| crowded_out(node_id, crowded)));
    choice
}

/// Why a node takes no more warm sandboxes that takes others.
pub(crate) fn crowded_out(node_id: String, crowded: u64) -> Refusal {
    let why = format!("{crowded} percent of it are promised, the rest is not for warm sandboxes");
    Refusal { node_id, why, may_change: true }
}

/// Whether a sandbox could run on a node if there was room.
#[cfg(test)]
pub(crate) fn could_run(wanted: &Wanted, node: &NodeView) -> bool {
    why_never(wanted, node).is_none() && node.healthy && !node.draining
}

/// Whether there would be room on a node without these sandboxes of it.
#[cfg(test)]
pub(crate) fn fits_without(wanted: &Wanted, node: &NodeView, gone: Promised) -> bool {
    could_run(wanted, node)
        && node.sandboxes.less(gone.sandboxes).fits(1)
        && node.memory_bytes.less(gone.memory_bytes).fits(wanted.memory_bytes)
        && node.cpu_millis.less(gone.cpu_millis).fits(wanted.cpu_millis)
}

/// Whether a node has the labels that are asked for.
pub(crate) fn has_labels<'a>(wanted: &Wanted, label: impl Fn(&str) -> Option<&'a String>) -> bool {
    wanted.node_labels.iter().all(|(key, value)| label(key) == Some(value))
}

/// How much of what a node has is promised, in percent: of what it has least of.
pub(crate) fn percent(node: &NodeView) -> u64 {
    percent_used(node.sandboxes).max(percent_used(node.memory_bytes)).max(percent_used(node.cpu_millis))
}

/// Why a node is not a candidate, if it is not.
pub(crate) fn refusal(wanted: &Wanted, node: &NodeView) -> Option<Refusal> {
    let never = why_never(wanted, node);
    let may_change = never.is_none();
    let why = never.or_else(|| why_not_now(wanted, node).map(str::to_owned))?;
    Some(Refusal { node_id: node.id.clone(), why, may_change })
}

/// Whether a node may be a candidate some time.
pub(crate) fn may_change(wanted: &Wanted, node: &NodeView) -> bool {
    why_never(wanted, node).is_none()
}

/// What no waiting changes.
fn why_never(wanted: &Wanted, node: &NodeView) -> Option<String> {
    if !node.languages.contains(&wanted.language) {
        return Some("it has no interpreter for the language".to_owned());
    }
    if let Some((key, value)) =
        wanted.node_labels.iter().find(|(key, value)| node.labels.get(*key) != Some(value))
    {
        return Some(format!("it has no label `{key}` of value `{value}`"));
    }
    if !node.memory_bytes.could_fit(wanted.memory_bytes) {
        return Some(format!("it has less than {} bytes of memory in all", wanted.memory_bytes));
    }
    if !node.cpu_millis.could_fit(wanted.cpu_millis) {
        return Some(format!("it has less than {} cpu_millis in all", wanted.cpu_millis));
    }
    None
}

/// What may be otherwise soon.
fn why_not_now(wanted: &Wanted, node: &NodeView) -> Option<&'static str> {
    match node {
        _ if !node.healthy => Some("it has not reported for too long, or cannot be reached"),
        _ if node.draining => Some("it takes no new sandboxes"),
        _ if !node.sandboxes.fits(1) => Some("it has as many sandboxes as it takes"),
        _ if !node.memory_bytes.fits(wanted.memory_bytes) => Some("its memory is promised"),
        _ if !node.cpu_millis.fits(wanted.cpu_millis) => Some("its cpu is promised"),
        _ => None,
    }
}

/// What makes one node better than another: a warm sandbox, the image, the packages, the template's other
/// sandboxes, room.
#[cfg(test)]
fn score(wanted: &Wanted, node: &NodeView) -> Score {
    let is_crowded = percent_used(node.sandboxes) >= CROWDED_PERCENT;
    Score {
        warm: node.warm.contains(&wanted.template_id),
        image: node.images.contains(&wanted.image),
        packages: node.package_sets.contains(&wanted.packages),
        affinity: !is_crowded && node.templates.contains(&wanted.template_id),
        free_percent: u8::try_from(100u64.saturating_sub(percent(node))).unwrap_or_default(),
    }
}

/// How much of a share is promised, in percent.
pub(crate) fn percent_used(share: Share) -> u64 {
    match share.limit {
        Some(limit) if limit > 0 => share.used.saturating_mul(100) / limit,
        Some(_) => 100,
        None => 0,
    }
}

#[cfg(test)]
mod tests;
