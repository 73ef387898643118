//! When to try again what failed, for each session: twice as late each time, up to a limit.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The first and the longest pause.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What failed, and when to try it again. Holds an entry for each session as long as it fails.
#[derive(Debug, Default)]
pub(crate) struct Retries(Mutex<HashMap<String, Retry>>);

#[derive(Debug)]
struct Retry {
    at: Instant,
    pause: Duration,
}

impl Retries {
    /// Whether it is time to try, again or for the first time.
    pub(crate) fn is_due(&self, id: &str, now: Instant) -> bool {
        self.lock().get(id).is_none_or(|retry| now >= retry.at)
    }

    /// How many wait to be tried again.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// It failed. Returns how long to leave it alone.
    pub(crate) fn failed(&self, id: &str, now: Instant) -> Duration {
        let mut retries = self.lock();
        let pause = retries.get(id).map_or(PAUSES.0, |retry| (retry.pause * 2).min(PAUSES.1));
        retries.insert(id.to_owned(), Retry { at: now + pause, pause });
        pause
    }

    /// It succeeded, or there is nothing to be done any more.
    pub(crate) fn done(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Retry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_less_and_less_often_and_at_least_once_a_minute() {
        let (retries, now) = (Retries::default(), Instant::now());
        assert!(retries.is_due("a", now));
        let pauses: Vec<u64> = (0..9).map(|_| retries.failed("a", now).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(!retries.is_due("a", now) && retries.is_due("b", now));
        assert!(retries.is_due("a", now + PAUSES.1));
        retries.done("a");
        assert_eq!((retries.failed("a", now).as_secs(), retries.count()), (1, 1));
    }
}
