//! How something is, from a row of measurements: with thresholds in both directions, so that one that
//! answers now and then does not flap.
//!
//! Pure: values in, values out. Who is asked, and how, is in [`crate::sandboxes`] and [`crate::watch`].

/// How something is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Condition {
    /// It answers well.
    #[default]
    Healthy,
    /// It answers late, or has failed for a short while.
    Degraded,
    /// It does not answer, or says that it cannot work.
    Unhealthy,
}

/// What one measurement found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It answered well and in time.
    Good,
    /// It answered well, and late.
    Slow,
    /// It did not answer, or not well.
    Bad,
}

/// How many measurements in a row change something; each at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thresholds {
    /// Bad or slow ones that make it degraded.
    pub(crate) degraded_after: u32,
    /// Bad ones that make it unhealthy.
    pub(crate) unhealthy_after: u32,
    /// Good ones that make it healthy again; answers, though slow, that make it degraded and no worse.
    pub(crate) healthy_after: u32,
}

/// What is remembered of the measurements of one thing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Track {
    condition: Condition,
    /// So many in a row, to the last, were bad; bad or slow; good; good or slow.
    bad: u32,
    poor: u32,
    good: u32,
    answered: u32,
}

impl Track {
    /// How it is.
    pub(crate) fn condition(self) -> Condition {
        self.condition
    }

    /// Failures in a row.
    pub(crate) fn failures(self) -> u32 {
        self.bad
    }

    /// What is remembered after one measurement more.
    #[must_use]
    pub(crate) fn observe(self, found: Found, thresholds: Thresholds) -> Self {
        let count = |counts: bool, before: u32| if counts { before.saturating_add(1) } else { 0 };
        let mut next = Self {
            condition: self.condition,
            bad: count(found == Found::Bad, self.bad),
            poor: count(found != Found::Good, self.poor),
            good: count(found == Found::Good, self.good),
            answered: count(found != Found::Bad, self.answered),
        };
        next.condition = next.judge(thresholds);
        next
    }

    fn judge(self, thresholds: Thresholds) -> Condition {
        let Thresholds { degraded_after, unhealthy_after, healthy_after } = thresholds;
        match self.condition {
            _ if self.bad >= unhealthy_after.max(1) => Condition::Unhealthy,
            _ if self.good >= healthy_after.max(1) => Condition::Healthy,
            Condition::Unhealthy if self.answered >= healthy_after.max(1) => Condition::Degraded,
            Condition::Healthy if self.poor >= degraded_after.max(1) => Condition::Degraded,
            same => same,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { degraded_after: 2, unhealthy_after: 3, healthy_after: 2 };

    fn after(found: &[Found], thresholds: Thresholds) -> Condition {
        found.iter().fold(Track::default(), |track, found| track.observe(*found, thresholds)).condition()
    }

    #[test]
    fn what_fails_is_degraded_then_unhealthy_and_well_again_after_some_good_answers() {
        use Found::{Bad, Good};
        let steps = [
            (Bad, Condition::Healthy),
            (Bad, Condition::Degraded),
            (Bad, Condition::Unhealthy),
            (Good, Condition::Unhealthy),
            (Good, Condition::Healthy),
        ];
        let mut track = Track::default();
        for (found, expected) in steps {
            track = track.observe(found, THRESHOLDS);
            assert_eq!(track.condition(), expected, "{track:?}");
        }
    }

    #[test]
    fn what_is_only_slow_is_never_unhealthy() {
        assert_eq!(after(&[Found::Slow; 50], THRESHOLDS), Condition::Degraded);
        let back = [Found::Bad, Found::Bad, Found::Bad, Found::Slow, Found::Slow];
        assert_eq!(after(&back, THRESHOLDS), Condition::Degraded, "it answers again, late");
    }

    fn any_found() -> impl Strategy<Value = Found> {
        select(vec![Found::Good, Found::Slow, Found::Bad])
    }

    fn any_thresholds(least: u32) -> impl Strategy<Value = Thresholds> {
        (least..5, 0u32..4, least..5).prop_map(|(degraded_after, more, healthy_after)| Thresholds {
            degraded_after,
            unhealthy_after: degraded_after + more,
            healthy_after,
        })
    }

    fn tail(found: &[Found], counts: impl Fn(Found) -> bool) -> usize {
        found.iter().rev().take_while(|found| counts(**found)).count()
    }

    proptest! {
        #[test]
        fn alternating_measurements_change_nothing(
            before in vec(any_found(), 0..20), pairs in 1usize..20, thresholds in any_thresholds(2),
        ) {
            let mut track = before.iter().fold(Track::default(), |track, f| track.observe(*f, thresholds));
            // What was begun before may end with the first.
            track = track.observe(Found::Good, thresholds).observe(Found::Bad, thresholds);
            let settled = track.condition();
            for _ in 0..pairs {
                track = track.observe(Found::Good, thresholds);
                prop_assert_eq!(track.condition(), settled);
                track = track.observe(Found::Bad, thresholds);
                prop_assert_eq!(track.condition(), settled);
            }
        }

        #[test]
        fn every_change_has_as_many_measurements_in_a_row_behind_it(
            found in vec(any_found(), 0..40), thresholds in any_thresholds(1),
        ) {
            let mut track = Track::default();
            for end in 0..found.len() {
                let before = track.condition();
                track = track.observe(found[end], thresholds);
                let seen = &found[..=end];
                let enough = match (before, track.condition()) {
                    (before, now) if before == now => true,
                    (_, Condition::Unhealthy) => {
                        tail(seen, |f| f == Found::Bad) >= thresholds.unhealthy_after as usize
                    }
                    (Condition::Healthy, Condition::Degraded) => {
                        tail(seen, |f| f != Found::Good) >= thresholds.degraded_after as usize
                    }
                    (_, Condition::Degraded) => {
                        tail(seen, |f| f != Found::Bad) >= thresholds.healthy_after as usize
                    }
                    (_, Condition::Healthy) => {
                        tail(seen, |f| f == Found::Good) >= thresholds.healthy_after as usize
                    }
                };
                prop_assert!(enough, "{:?} -> {:?} after {:?}", before, track.condition(), seen);
            }
        }

        #[test]
        fn enough_in_a_row_settles_it_whatever_was_before(
            before in vec(any_found(), 0..20), thresholds in any_thresholds(1),
        ) {
            let settled = |found, times: u32| {
                let mut all = before.clone();
                all.extend(vec![found; times as usize]);
                after(&all, thresholds)
            };
            prop_assert_eq!(settled(Found::Bad, thresholds.unhealthy_after), Condition::Unhealthy);
            prop_assert_eq!(settled(Found::Good, thresholds.healthy_after), Condition::Healthy);
        }
    }
}
