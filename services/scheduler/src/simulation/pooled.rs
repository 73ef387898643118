//! The pools of a simulation: what they are, and who waits for what they refill. What they do is said by
//! `pools/one.rs`, as it is for the pools of a server.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};

use super::demand::{POOLED, TEMPLATES};
use crate::{
    config,
    pool::{Condition, Settings},
    pools::one::{Pool, ToDo},
    registry::Registry,
    view,
};

/// All pools.
#[derive(Debug)]
pub(super) struct Pools {
    config: config::Pools,
    /// In the order of the templates.
    pools: Vec<Pool>,
    /// When those were claimed that were not replaced yet, for each pool.
    claims: Vec<VecDeque<u64>>,
    /// How many are made now.
    starts: u32,
    turn: usize,
}

/// What is to be done for one pool.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) template: usize,
    pub(super) to_do: ToDo,
}

impl Pools {
    /// Pools for so many nodes.
    pub(super) fn new(nodes: u32, config: config::Pools, now: DateTime<Utc>) -> Self {
        let pool = |n: usize| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a part of the nodes"
            )]
            let share = |percent: f64| (f64::from(nodes) * percent / 100.0).ceil() as u32;
            let part = TEMPLATES[n].percent / 30.0;
            let settings = Settings { min: share(part), max: share(20.0 * part), buffer: share(part) };
            let mut pool = Pool::new(now);
            pool.is_to_be(settings, TEMPLATES[n].spec(), now);
            pool
        };
        let pools = (0..POOLED).map(pool).collect();
        Self { config, pools, claims: vec![VecDeque::new(); POOLED], starts: 0, turn: 0 }
    }

    /// A session of a template is asked for.
    pub(super) fn note(&mut self, template: usize, now: DateTime<Utc>) {
        if let Some(pool) = self.pools.get_mut(template) {
            pool.demand.note(now);
        }
    }

    /// A warm one was claimed.
    pub(super) fn claimed(&mut self, template: usize, at: u64) {
        if let Some(claims) = self.claims.get_mut(template) {
            claims.push_back(at);
        }
    }

    pub(super) fn pool(&mut self, template: usize) -> Option<&mut Pool> {
        self.pools.get_mut(template)
    }

    /// One look at all, each time beginning with another.
    pub(super) fn look(&mut self, registry: &Registry, now: DateTime<Utc>) -> Vec<Work> {
        self.turn = (self.turn + 1) % POOLED;
        let mut all = Vec::new();
        for step in 0..POOLED {
            let template = (self.turn + step) % POOLED;
            let pool = &mut self.pools[template];
            let profile = view::profile(&TEMPLATES[template].spec());
            let mut to_do = pool.look((&profile, registry), &self.config, now);
            to_do.start = to_do.start.min(self.config.starts_at_once.saturating_sub(self.starts));
            self.starts += to_do.start;
            all.push(Work { template, to_do });
        }
        all
    }

    /// One that was being made is not any more. Returns how long ago the claim was that it makes up for, if it
    /// was made.
    pub(super) fn started(
        &mut self,
        template: usize,
        id: &str,
        took: Result<u64, String>,
        now: (u64, DateTime<Utc>),
    ) -> Option<u64> {
        self.starts = self.starts.saturating_sub(1);
        let pool = self.pools.get_mut(template)?;
        pool.starting.remove(id);
        match took {
            Ok(took) => {
                pool.made(std::time::Duration::from_micros(took));
                Some(now.0 - self.claims.get_mut(template)?.pop_front()?)
            }
            Err(why) => {
                pool.backoff.no_room(why, now.1);
                None
            }
        }
    }

    /// How many are ready or being made of those that are as they are to be.
    pub(super) fn count(&self, registry: &Registry) -> Vec<(Settings, u32)> {
        let count = |(n, pool): (usize, &Pool)| {
            let seen = pool.seen(&view::profile(&TEMPLATES[n].spec()), registry, &self.config);
            let live = seen.iter().filter(|one| one.current && one.condition != Condition::Dead);
            (pool.settings, u32::try_from(live.count()).unwrap_or(u32::MAX))
        };
        self.pools.iter().enumerate().map(count).collect()
    }
}
