//! How often and how long to wait before a broken stream is opened again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3);
const ATTEMPTS: u32 = 13;

/// Delays that double up to a bound, with jitter, for half a minute in all; progress starts them anew.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// How long to wait before the next attempt; `None` when it is time to give up.
    pub(super) fn next(&mut self) -> Option<Duration> {
        if self.attempts >= ATTEMPTS {
            return None;
        }
        let delay = FIRST.saturating_mul(1 << self.attempts.min(16)).min(LONGEST);
        self.attempts += 1;
        // Between half and all of it: clients that lost one server do not come back in one moment.
        Some(delay.mul_f64(rand::random_range(0.5..=1.0)))
    }

    /// Something arrived.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// How many attempts were made since the last progress.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_up_after_a_bounded_time() {
        let mut backoff = Backoff::default();
        let delays: Vec<Duration> = std::iter::from_fn(|| backoff.next()).collect();
        assert_eq!(delays.len(), ATTEMPTS as usize);
        assert!(delays.iter().all(|delay| *delay <= LONGEST));
        let total: Duration = delays.iter().sum();
        assert!(total > Duration::from_secs(10) && total < Duration::from_secs(31), "{total:?}");
    }

    #[test]
    fn progress_starts_it_anew() {
        let mut backoff = Backoff::default();
        while backoff.next().is_some() {}
        backoff.reset();
        assert!(backoff.next().is_some_and(|delay| delay <= FIRST));
    }
}
