//! How many spare processes are worth having, from what was asked for lately. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::{isolation::cgroup::Limits, runner::Kind};

/// For how long a peak is remembered.
const WINDOW: Duration = Duration::from_secs(10);

/// After how long without an execution nothing is kept ready but the parent, which makes a child in a
/// millisecond or two.
const IDLE: Duration = Duration::from_secs(60);

/// What was asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Demand {
    /// The most executions at a time, when that was, and when the last one came.
    seen: Option<(usize, Instant, Instant)>,
}

impl Demand {
    /// An execution came, and with it so many ran.
    pub(super) fn note(&mut self, running: usize, now: Instant) {
        let (peak, since) = match self.seen {
            Some((peak, since, _)) if peak > running && now.duration_since(since) <= WINDOW => (peak, since),
            _ => (running.max(1), now),
        };
        self.seen = Some((peak, since, now));
    }

    /// How many spares to have: as many as ran at a time lately, at most `most`.
    pub(super) fn wanted(&self, most: usize, now: Instant) -> usize {
        match self.seen {
            Some((peak, _, last)) if now.duration_since(last) <= IDLE => peak.min(most),
            _ => 0,
        }
    }
}

/// How long nothing runs in between.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rest {
    since: Option<Instant>,
    last: Option<Duration>,
}

impl Rest {
    /// Nothing runs. False if that was so before.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let begins = self.since.is_none();
        self.since.get_or_insert(now);
        begins
    }

    /// Something is asked for.
    pub(super) fn end(&mut self, now: Instant) {
        self.last = self.since.take().map(|since| now.duration_since(since));
    }

    /// Whether the last one was shorter than `limit`. Not where something ran without a pause.
    pub(super) fn was_below(&self, limit: Duration) -> bool {
        self.last.is_some_and(|last| last < limit)
    }
}

/// How many spares there are at most. One costs about 1 MiB and two processes, but a Node.js tens of them and
/// a dozen threads: a small sandbox has better use for these.
pub(super) fn most(kind: Kind, limits: Limits) -> usize {
    const MANY_THREADS: u32 = 64;
    const MUCH_MEMORY: u64 = 256 << 20;
    let is_large = (limits.max_processes == 0 || limits.max_processes >= MANY_THREADS)
        && (limits.memory_bytes == 0 || limits.memory_bytes >= MUCH_MEMORY);
    match kind {
        Kind::Python if is_large => 4,
        Kind::Python => 2,
        Kind::Program => 2,
        Kind::Node => usize::from(is_large),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_is_from_the_last_end_to_the_next_arrival() {
        let (mut rest, start) = (Rest::default(), Instant::now());
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let limit = Duration::from_millis(2);
        assert!(!rest.was_below(limit), "there was none");
        assert!(rest.begin(start));
        assert!(!rest.begin(after(1)), "it goes on");
        rest.end(after(1));
        assert!(rest.was_below(limit));
        assert!(rest.begin(after(10)));
        assert!(rest.was_below(limit), "the last one counts, until this one is over");
        rest.end(after(15));
        assert!(!rest.was_below(limit));
        rest.end(after(16));
        assert!(!rest.was_below(limit), "something ran all the time");
    }

    #[test]
    fn spares_follow_the_recent_peak_and_end_with_the_demand() {
        let (mut demand, start) = (Demand::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(demand.wanted(4, start), 0, "nobody asked");
        demand.note(0, start);
        assert_eq!(demand.wanted(4, start), 1);
        demand.note(3, after(1));
        demand.note(1, after(2));
        assert_eq!(demand.wanted(4, after(2)), 3, "the peak is remembered");
        assert_eq!(demand.wanted(2, after(2)), 2, "within the limit");
        demand.note(1, after(12));
        assert_eq!(demand.wanted(4, after(12)), 1, "the peak is forgotten");
        assert_eq!(demand.wanted(4, after(12 + 61)), 0, "nobody asks any more");
    }
}
