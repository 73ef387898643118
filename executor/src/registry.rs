//! The executions that an executor knows, and the ids of those that it had.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
};

use crate::execution::Execution;

/// How many ids are remembered of acknowledged executions, in eight bytes each.
const MAX_REMEMBERED: usize = 16_384;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// Those that were not acknowledged.
    pub(crate) executions: HashMap<String, Arc<Execution>>,
    pub(crate) draining: bool,
    acknowledged: Acknowledged,
}

impl Registry {
    /// Forgets all of an execution but that it was there.
    pub(crate) fn forget(&mut self, id: &str) {
        if self.executions.remove(id).is_some() {
            self.acknowledged.note(id, MAX_REMEMBERED);
        }
    }

    /// It was there and is forgotten. Whoever asks for it to be run decided so before it ended: of several
    /// session services one may be slow to hear that another has its result.
    pub(crate) fn was_there(&self, id: &str) -> bool {
        self.acknowledged.has(id)
    }
}

/// The last ids, as hashes: of a million different ids, one is taken for another with a probability of 1e-9.
#[derive(Debug, Default)]
struct Acknowledged {
    keys: RandomState,
    hashes: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Acknowledged {
    fn note(&mut self, id: &str, most: usize) {
        let hash = self.keys.hash_one(id);
        if !self.hashes.insert(hash) {
            return;
        }
        self.order.push_back(hash);
        if self.order.len() > most
            && let Some(oldest) = self.order.pop_front()
        {
            self.hashes.remove(&oldest);
        }
    }

    fn has(&self, id: &str) -> bool {
        !self.hashes.is_empty() && self.hashes.contains(&self.keys.hash_one(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ids_are_remembered_and_no_more_than_that() {
        let mut acknowledged = Acknowledged::default();
        assert!(!acknowledged.has("0"));
        for id in 0..10 {
            acknowledged.note(&id.to_string(), 4);
            acknowledged.note(&id.to_string(), 4);
        }
        let remembered: Vec<_> = (0..10).filter(|id| acknowledged.has(&id.to_string())).collect();
        assert_eq!(remembered, [6, 7, 8, 9]);
        assert_eq!((acknowledged.hashes.len(), acknowledged.order.len()), (4, 4));
    }
}
