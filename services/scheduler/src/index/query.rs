//! What is asked of the index.

use std::cmp::Reverse;

use super::{
    Index,
    features::{Bits, Feature, Id, Slot},
    tree::{Found, Most, Room},
};
use crate::placement::{self, CROWDED_PERCENT, NodeView, Refusal, Refusals, Score, Wanted};

/// So many nodes are named when all refuse.
const NAMED: usize = 16;

/// Of every node a smaller share is promised.
const ANY_PERCENT: u8 = 101;

/// What is liked: a warm sandbox, the image, the packages, the template's other sandboxes; `None` where it is all the
/// same.
type Likes = [Option<Feature>; 4];

/// What is liked of a node.
#[derive(Debug, Clone, Copy)]
struct Like {
    id: Id,
    /// `None`: few nodes have it, and these are looked at anyway.
    bits: Option<Bits>,
}

/// What is looked for, in numbers.
#[derive(Debug)]
struct Query<'a> {
    wanted: &'a Wanted,
    /// What a node must have.
    needs: Vec<Id>,
    needed: Bits,
    /// See [`Likes`]; `None` also where no node has it.
    likes: [Option<Like>; 4],
    /// A smaller share than this, in percent, is to be promised.
    below: u8,
    avoid: Vec<Slot>,
}

impl Index {
    /// The best node for a sandbox, but for those to `avoid`.
    pub(crate) fn best(&mut self, wanted: &Wanted, avoid: &[String]) -> Option<&str> {
        let template = wanted.template_id.clone();
        let likes = [
            Some(Feature::Warm(template.clone())),
            Some(Feature::Image(wanted.image.clone())),
            packages_of(wanted),
            Some(Feature::Template(template)),
        ];
        let query = self.query(wanted, likes, avoid)?;
        self.find(&query)
    }

    /// The best node for a warm sandbox, but for those to `avoid`: less than `crowded` percent of it are promised.
    pub(crate) fn best_for_warm(&mut self, wanted: &Wanted, crowded: u64, avoid: &[String]) -> Option<&str> {
        let likes = [None, Some(Feature::Image(wanted.image.clone())), packages_of(wanted), None];
        let below = u8::try_from(crowded).unwrap_or(ANY_PERCENT).min(ANY_PERCENT);
        let query = Query { below, ..self.query(wanted, likes, avoid)? };
        self.find(&query)
    }

    /// Whether a node could run it, now or when others are gone, but for those to `avoid`.
    pub(crate) fn could_run(&mut self, wanted: &Wanted, avoid: &[String]) -> bool {
        let Some(query) = self.query(wanted, Likes::default(), avoid) else { return false };
        self.first(&query, |most| query.could_run(most)).is_some()
    }

    /// The first node with room for it without those of its warm sandboxes that nobody is about to have.
    pub(crate) fn roomy_without_warm(&mut self, wanted: &Wanted) -> Option<&str> {
        let query = self.query(wanted, Likes::default(), &[])?;
        self.first(&query, |most| query.could_run(most) && query.fits(&most.without_warm))
    }

    /// The nodes that have the labels that are asked for, when they are few; `None`: there are many, or no label is
    /// asked for.
    pub(crate) fn few_with_labels(&self, wanted: &Wanted) -> Option<Vec<&str>> {
        let labels = wanted.node_labels.iter();
        let ids = labels.map(|(key, value)| self.features.id(&Feature::Label(key.clone(), value.clone())));
        let Some(ids) = ids.collect::<Option<Vec<Id>>>() else { return Some(Vec::new()) };
        let nodes = self.few(&ids)?.filter_map(|slot| self.node(*slot));
        let nodes = nodes.filter(|node| ids.iter().all(|id| node.has(*id)));
        Some(nodes.map(|node| node.view.id.as_str()).collect())
    }

    /// The nodes that have the packages that are wanted, when they are few, or none are wanted; `None`: there are
    /// many.
    pub(crate) fn few_with_packages(&self, wanted: &Wanted) -> Option<Vec<&str>> {
        let id = packages_of(wanted).and_then(|feature| self.features.id(&feature));
        let Some(id) = id else { return Some(Vec::new()) };
        let nodes = self.features.few(id)?.iter().filter_map(|slot| self.node(*slot));
        Some(nodes.map(|node| node.view.id.as_str()).collect())
    }

    /// Whether a node has the packages that are wanted.
    pub(crate) fn has_packages(&self, id: &str, wanted: &Wanted) -> bool {
        let node = self.by_id.get(id).and_then(|slot| self.node(*slot));
        node.is_some_and(|node| node.view.package_sets.contains(&wanted.packages))
    }

    /// Whether a node has the labels that are asked for.
    pub(crate) fn has_labels(&self, id: &str, wanted: &Wanted) -> bool {
        let node = self.by_id.get(id).and_then(|slot| self.node(*slot));
        node.is_some_and(|node| placement::has_labels(wanted, |key| node.view.labels.get(key)))
    }

    /// Why nobody takes it, but for those that were `asked`: of some nodes, and how many more there are. To be
    /// asked when there is none that takes it; who would is too `crowded` then.
    pub(crate) fn refusals(&mut self, wanted: &Wanted, asked: &[Refusal], crowded: Option<u64>) -> Refusals {
        let asked: Vec<String> = asked.iter().map(|refusal| refusal.node_id.clone()).collect();
        let why = |view: &NodeView| {
            let crowded_out = || Some(placement::crowded_out(view.id.clone(), crowded?));
            placement::refusal(wanted, view).or_else(crowded_out)
        };
        let others = self.by_id.iter().filter(|(id, _)| !asked.contains(id));
        let views = others.filter_map(|(_, slot)| Some(&self.node(*slot)?.view));
        let named: Vec<Refusal> = views.take(NAMED).filter_map(why).collect();
        let told = named.len() + asked.iter().filter(|id| self.by_id.contains_key(*id)).count();
        let others = self.by_id.len().saturating_sub(told);
        let others_may_change = others > 0 && self.may_change(wanted, &asked);
        Refusals { named, others, others_may_change }
    }

    /// Whether a node may take it some time, be it one that is silent or drains now.
    pub(super) fn may_change(&mut self, wanted: &Wanted, asked: &[String]) -> bool {
        self.could_run(wanted, asked) || {
            let mut closed = self.closed.iter().filter_map(|slot| Some(&self.node(*slot)?.view));
            closed.any(|view| placement::may_change(wanted, view) && !asked.contains(&view.id))
        }
    }

    /// What was asked for in numbers; `None` when no node has all that it needs.
    fn query<'a>(&mut self, wanted: &'a Wanted, likes: Likes, avoid: &[String]) -> Option<Query<'a>> {
        self.settle();
        let labels = wanted.node_labels.iter();
        let labels = labels.map(|(key, value)| Feature::Label(key.clone(), value.clone()));
        let needs = std::iter::once(Feature::Language(wanted.language)).chain(labels);
        let needs: Vec<Id> = needs.map(|feature| self.features.id(&feature)).collect::<Option<_>>()?;
        let like = |feature: Option<Feature>| {
            let id = self.features.id(&feature?)?;
            Some(Like { id, bits: self.features.few(id).is_none().then(|| self.features.bits(&[id])) })
        };
        Some(Query {
            wanted,
            needed: self.features.bits(&needs),
            needs,
            likes: likes.map(like),
            below: ANY_PERCENT,
            avoid: avoid.iter().filter_map(|id| self.by_id.get(id).copied()).collect(),
        })
    }

    fn find(&self, query: &Query<'_>) -> Option<&str> {
        let exact = |position: usize| self.score(query, position);
        let found = match self.few(&query.needs) {
            Some(few) => self.best_of(query, few),
            None => {
                let liked = query.likes.iter().flatten();
                let liked = liked.filter_map(|like| self.best_of(query, self.features.few(like.id)?.iter()));
                self.tree.best(liked.max(), |most| query.bound(most), exact)
            }
        };
        found.map(|(_, Reverse(position))| self.id_at(position))
    }

    /// The nodes that have what the fewest have of these, when they are few.
    fn few(&self, ids: &[Id]) -> Option<impl Iterator<Item = &Slot>> {
        ids.iter().filter_map(|id| self.features.few(*id)).min_by_key(|few| few.len()).map(|few| few.iter())
    }

    fn best_of<'a>(&self, query: &Query<'_>, slots: impl Iterator<Item = &'a Slot>) -> Option<Found> {
        let positions = slots.filter_map(|slot| Some(self.node(*slot)?.position));
        let found = positions.filter_map(|position| {
            query.bound(self.tree.node(position))?;
            Some((self.score(query, position)?, Reverse(position)))
        });
        found.max()
    }

    /// How good a node is that has room; `None` when it does not have what is needed.
    fn score(&self, query: &Query<'_>, position: usize) -> Option<Score> {
        let slot = self.order[position];
        let node = self.node(slot)?;
        if query.avoid.contains(&slot) || !query.needs.iter().all(|id| node.has(*id)) {
            return None;
        }
        let most = self.tree.node(position);
        Some(query.score(most, |like| node.has(like.id)))
    }

    /// The first node of which this holds that has what is needed.
    fn first(&self, query: &Query<'_>, holds: impl Fn(&Most) -> bool) -> Option<&str> {
        let exact = |position: usize| {
            let slot = self.order[position];
            let node = self.node(slot);
            let has = node.is_some_and(|node| query.needs.iter().all(|id| node.has(*id)));
            has && !query.avoid.contains(&slot)
        };
        let first = match self.few(&query.needs) {
            Some(few) => {
                let positions = few.filter_map(|slot| Some(self.node(*slot)?.position));
                positions.filter(|at| holds(self.tree.node(*at)) && exact(*at)).min()
            }
            None => self.tree.first(|most| most.all.has(&query.needed) && holds(most), exact),
        };
        first.map(|position| self.id_at(position))
    }

    fn id_at(&self, position: usize) -> &str {
        self.node(self.order[position]).map(|node| node.view.id.as_str()).unwrap_or_default()
    }

    /// Every node as it is, ordered by id.
    #[cfg(test)]
    pub(crate) fn views(&self) -> Vec<NodeView> {
        self.by_id.values().filter_map(|slot| Some(self.node(*slot)?.view.clone())).collect()
    }
}

impl Query<'_> {
    /// Whether so much room is enough.
    fn fits(&self, room: &Room) -> bool {
        is_less([1, self.wanted.cpu_millis, self.wanted.memory_bytes], room)
    }

    fn could_run(&self, most: &Most) -> bool {
        is_less([self.wanted.cpu_millis, self.wanted.memory_bytes], &most.capacity)
    }

    /// How good one of some nodes may be at best; `None` when none of them can be taken.
    fn bound(&self, most: &Most) -> Option<Score> {
        let may = self.fits(&most.room) && most.promised < self.below && most.with_room.has(&self.needed);
        may.then(|| self.score(most, |like| like.bits.is_some_and(|bits| most.with_room.has(&bits))))
    }

    fn score(&self, most: &Most, has: impl Fn(&Like) -> bool) -> Score {
        let [warm, image, packages, template] =
            self.likes.each_ref().map(|like| like.as_ref().is_some_and(&has));
        Score {
            warm,
            image,
            packages,
            affinity: template && u64::from(most.crowd) < CROWDED_PERCENT,
            free_percent: 100 - most.promised.min(100),
        }
    }
}

fn packages_of(wanted: &Wanted) -> Option<Feature> {
    (!wanted.packages.is_empty()).then(|| Feature::Packages(wanted.packages.clone()))
}

/// Whether each is less than the most; what is not counted is more than anything.
fn is_less<const N: usize>(these: [u64; N], most: &[u64; N]) -> bool {
    these.into_iter().zip(most).all(|(this, most)| this.min(u64::MAX - 1) < *most)
}
