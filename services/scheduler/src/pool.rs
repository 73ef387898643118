//! How many sandboxes of a profile are to be warm, which are to go, and when a start is tried again.
//!
//! Pure: values and times in, decisions out. `pools.rs` sees what there is and carries them out.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};

use crate::registry::Place;

/// After this, a request counts half as much for the demand that is expected.
const HALF_LIFE_SECONDS: f64 = 30.0;

/// So many are as good as none.
const SELDOM: f64 = 0.02;

/// How soon a start that failed is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// For how long nothing is made for pools while much is made for sessions.
const STANDS_BACK: Duration = Duration::from_secs(3);

/// What sessions were given this long ago is no part of a burst any more.
pub(crate) const BURST: Duration = Duration::from_millis(50);

/// How soon it is looked again for room where there was none.
const NO_ROOM: Duration = Duration::from_secs(5);

/// The limits of a sandbox; in what is asked for, zero is the template's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Limits {
    /// Thousandths of a core.
    pub(crate) cpu_millis: u32,
    /// Bytes of memory.
    pub(crate) memory_bytes: u64,
    /// Bytes of workspace.
    pub(crate) disk_bytes: u64,
    /// Processes and threads.
    pub(crate) max_processes: u32,
}

impl Limits {
    /// With what is zero taken from `others`.
    pub(crate) fn or(self, others: Self) -> Self {
        fn or<T: Default + PartialEq>(given: T, other: T) -> T {
            if given == T::default() { other } else { given }
        }
        Self {
            cpu_millis: or(self.cpu_millis, others.cpu_millis),
            memory_bytes: or(self.memory_bytes, others.memory_bytes),
            disk_bytes: or(self.disk_bytes, others.disk_bytes),
            max_processes: or(self.max_processes, others.max_processes),
        }
    }
}

/// Whose pool a sandbox is of, whatever else becomes of its template: each pair of template and limits has its
/// own, so that nothing of one pool counts for another.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Profile {
    /// The template.
    pub(crate) template_id: String,
    /// The limits.
    pub(crate) limits: Limits,
}

impl Profile {
    /// What a map has of one template.
    pub(crate) fn of_template<'a, T>(
        map: &'a BTreeMap<Self, T>,
        template_id: &'a str,
    ) -> impl Iterator<Item = (&'a Self, &'a T)> {
        let first = Self { template_id: template_id.to_owned(), limits: Limits::default() };
        map.range(first..).take_while(move |(profile, _)| profile.template_id == template_id)
    }
}

/// How many are to be warm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// At least.
    pub(crate) min: u32,
    /// At most.
    pub(crate) max: u32,
    /// Beyond what is expected to be asked for while one is made.
    pub(crate) buffer: u32,
}

impl Settings {
    /// How many, when so many are asked for in a second and one takes so long to make.
    pub(crate) fn target(self, per_second: f64, lead: Duration) -> u32 {
        let expected = per_second * lead.as_secs_f64();
        // What is asked for once in a while is not expected.
        let expected = if expected < SELDOM { 0.0 } else { expected.ceil() };
        let expected = expected.clamp(0.0, f64::from(self.max));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped above")]
        let expected = expected as u32;
        self.buffer.saturating_add(expected).max(self.min).min(self.max)
    }
}

/// How many are asked for, lately.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Demand {
    per_second: f64,
    noted_at: DateTime<Utc>,
}

impl Demand {
    /// None so far.
    pub(crate) fn none(now: DateTime<Utc>) -> Self {
        Self { per_second: 0.0, noted_at: now }
    }

    /// One is asked for now.
    pub(crate) fn note(&mut self, now: DateTime<Utc>) {
        let rate = self.per_second(now) + std::f64::consts::LN_2 / HALF_LIFE_SECONDS;
        *self = Self { per_second: rate, noted_at: now.max(self.noted_at) };
    }

    /// The rate as it counts now.
    pub(crate) fn per_second(&self, now: DateTime<Utc>) -> f64 {
        let since = (now - self.noted_at).to_std().unwrap_or_default();
        self.per_second * (-since.as_secs_f64() / HALF_LIFE_SECONDS).exp2()
    }
}

/// How far a warm sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It is being made.
    Starting,
    /// It can be claimed.
    Ready,
    /// It died.
    Dead,
}

/// A sandbox that no session has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Warm {
    /// Which.
    pub(crate) place: Place,
    /// How far it is.
    pub(crate) condition: Condition,
    /// Whether it is what a session would get now: else its template has changed.
    pub(crate) current: bool,
    /// When it was made.
    pub(crate) made_at: DateTime<Utc>,
    /// Whether its node has little left.
    pub(crate) stressed: bool,
}

/// What to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// How many to make.
    pub(crate) start: u32,
    /// Which to remove.
    pub(crate) remove: Vec<Place>,
}

/// What makes the sandboxes that are warm those that are to be. One that is old is replaced, and serves until
/// another is there. Those go first that are of no use, then the old, those on nodes with little left, and
/// those that have waited longest.
pub(crate) fn plan(target: u32, warm: &[Warm], lifetime: Duration, now: DateTime<Utc>) -> Plan {
    let (live, useless): (Vec<&Warm>, Vec<&Warm>) =
        warm.iter().partition(|one| one.current && one.condition != Condition::Dead);
    let target = target as usize;
    let is_old = |one: &Warm| (now - one.made_at).to_std().unwrap_or_default() >= lifetime.mul_f64(0.75);
    let fresh = live.iter().filter(|one| !is_old(one)).count();
    let start = u32::try_from(target.saturating_sub(fresh)).unwrap_or(u32::MAX);
    let mut idle: Vec<&Warm> = live.into_iter().filter(|one| one.condition == Condition::Ready).collect();
    let surplus = idle.len().saturating_sub(target);
    if surplus > 0 {
        let order = |one: &Warm| (Reverse(is_old(one)), Reverse(one.stressed), one.made_at);
        idle.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.place.cmp(&b.place)));
    }
    let remove = useless.into_iter().chain(idle.into_iter().take(surplus));
    Plan { start, remove: remove.map(|one| one.place.clone()).collect() }
}

/// Whether one may be made, after others could not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    failures: u32,
    retry_at: Option<DateTime<Utc>>,
    last_error: String,
}

impl Backoff {
    /// One could not be made.
    pub(crate) fn failed(&mut self, why: String, now: DateTime<Utc>) {
        let pause = RETRY.0.saturating_mul(1 << self.failures.min(16)).min(RETRY.1);
        self.failures = self.failures.saturating_add(1);
        self.wait(why, now, pause);
    }

    /// There was no room for one, which is nobody's failure.
    pub(crate) fn no_room(&mut self, why: String, now: DateTime<Utc>) {
        self.wait(why, now, NO_ROOM);
    }

    fn wait(&mut self, why: String, now: DateTime<Utc>, pause: Duration) {
        self.retry_at = Some(now + TimeDelta::from_std(pause).unwrap_or_default());
        self.last_error = why;
    }

    /// How many may be made at once now, of so many: after a failure one, to see.
    pub(crate) fn allows(&self, wanted: u32, now: DateTime<Utc>) -> u32 {
        match self.retry_at {
            Some(at) if now < at => 0,
            Some(_) => wanted.min(1),
            None => wanted,
        }
    }

    /// Why none could be made last, and when it is tried again; empty where nothing is wrong.
    pub(crate) fn told(&self) -> (&str, Option<DateTime<Utc>>) {
        (&self.last_error, self.retry_at)
    }
}

/// Whether pools stand back, as nodes have enough to do with what sessions wait for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StandBack {
    since: Option<DateTime<Utc>>,
    /// When sandboxes were given to sessions, or begun for them: not longer ago than a burst.
    given: Vec<DateTime<Utc>>,
}

impl StandBack {
    /// A session is given a sandbox of a pool, or one is begun for it as that is empty.
    pub(crate) fn given(&mut self, now: DateTime<Utc>) {
        self.forget(now);
        self.given.push(now);
    }

    /// With so many sandboxes being made for sessions on so many nodes, which have enough to do with that if it is
    /// more than one for each, or if more than that were given just now. Not for long: it may be for want of warm
    /// ones that so many are made.
    pub(crate) fn looks(&mut self, being_made: usize, nodes: usize, now: DateTime<Utc>) -> bool {
        self.forget(now);
        if being_made.max(self.given.len()) <= nodes {
            self.since = None;
            return false;
        }
        // A clock that was set back begins anew.
        let since = self.since.filter(|since| *since <= now).unwrap_or(now);
        self.since = Some(since);
        (now - since).to_std().unwrap_or_default() < STANDS_BACK
    }

    fn forget(&mut self, now: DateTime<Utc>) {
        self.given.retain(|given| (now - *given).to_std().is_ok_and(|past| past < BURST));
    }
}

#[cfg(test)]
mod tests;
