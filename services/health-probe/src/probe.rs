//! What the findings mean: the state of the whole from its parts, and when a silent sandbox counts as lost.
//!
//! Pure: values in, values out. Who is asked, and how, is in [`crate::service`] and [`crate::sandboxes`].

/// The state of the whole mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Overall {
    /// Everything answers well.
    Healthy,
    /// Something does not, and sessions can still be created and run.
    Degraded,
    /// Sessions cannot be created or run.
    Unhealthy,
}

/// What no session can be created or run without. Nodes are another matter: one of several may fail.
const ESSENTIAL: [&str; 6] =
    ["database/session", "database/template", "nodes", "role/scheduler", "role/session", "role/template"];

/// The state of the whole from the names of what was probed and whether each was well.
///
/// - Something essential is not well, or nodes were probed and none of them is: unhealthy.
/// - Anything else is not well: degraded.
pub(crate) fn combine(probes: &[(&str, bool)]) -> Overall {
    let is_node = |name: &str| name.starts_with("node/");
    let nodes = || probes.iter().filter(|(name, _)| is_node(name));
    let essential_down = probes.iter().any(|(name, healthy)| !healthy && ESSENTIAL.contains(name));
    let nodes_down = nodes().next().is_some() && nodes().all(|(_, healthy)| !healthy);
    if essential_down || nodes_down {
        Overall::Unhealthy
    } else if probes.iter().any(|(_, healthy)| !healthy) {
        Overall::Degraded
    } else {
        Overall::Healthy
    }
}

/// Whether an executor still answers, as seen from here.
///
/// Only one that has answered before can be lost: one that never did may simply be out of reach from
/// this machine, and its own node watches it anyway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Liveness {
    answered: bool,
    failures: u32,
}

impl Liveness {
    /// Takes what one probe found; true when the executor counts as lost after `limit` failures in a row.
    #[must_use]
    pub(crate) fn observe(&mut self, answered: bool, limit: u32) -> bool {
        if answered {
            *self = Self { answered: true, failures: 0 };
        } else if self.answered {
            self.failures = self.failures.saturating_add(1);
        }
        self.failures >= limit.max(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn everything_well_is_healthy() {
        assert_eq!(
            combine(&[("role/session", true), ("node/a", true), ("object_store", true)]),
            Overall::Healthy
        );
    }

    #[test]
    fn something_essential_down_is_unhealthy() {
        for name in ESSENTIAL {
            assert_eq!(combine(&[(name, false), ("role/agent", true)]), Overall::Unhealthy, "{name}");
        }
    }

    #[test]
    fn something_else_down_is_degraded() {
        for name in ["role/state-sync", "role/health-probe", "role/agent", "object_store", "watch/sandboxes"]
        {
            assert_eq!(combine(&[(name, false), ("role/session", true)]), Overall::Degraded, "{name}");
        }
    }

    #[test]
    fn one_node_of_two_down_is_degraded_and_all_down_is_unhealthy() {
        assert_eq!(combine(&[("node/a", false), ("node/b", true)]), Overall::Degraded);
        assert_eq!(combine(&[("node/a", false), ("node/b", false)]), Overall::Unhealthy);
    }

    #[test]
    fn an_executor_that_never_answered_is_never_lost() {
        let mut liveness = Liveness::default();
        assert!((0..100).all(|_| !liveness.observe(false, 3)));
    }

    #[test]
    fn an_answer_forgives_the_failures_before() {
        let mut liveness = Liveness::default();
        for answered in [true, false, false, true, false, false] {
            assert!(!liveness.observe(answered, 3));
        }
        assert!(liveness.observe(false, 3));
    }

    fn any_probes() -> impl Strategy<Value = Vec<(&'static str, bool)>> {
        let names = [&ESSENTIAL[..], &["node/a", "node/b", "object_store", "role/agent"]].concat();
        proptest::collection::vec((proptest::sample::select(names), any::<bool>()), 0..8)
    }

    proptest! {
        #[test]
        fn a_failing_probe_more_never_makes_the_whole_look_better(probes in any_probes(), index in 0usize..8) {
            let mut worse = probes.clone();
            if let Some(probe) = worse.get_mut(index) {
                probe.1 = false;
            }
            prop_assert!(combine(&worse) >= combine(&probes));
        }

        #[test]
        fn the_order_of_the_probes_does_not_matter(probes in any_probes()) {
            let mut reversed = probes.clone();
            reversed.reverse();
            prop_assert_eq!(combine(&reversed), combine(&probes));
        }

        #[test]
        fn lost_means_that_many_failures_in_a_row_after_an_answer(
            answers in proptest::collection::vec(any::<bool>(), 0..20), limit in 1u32..5,
        ) {
            let mut liveness = Liveness::default();
            for (index, answered) in answers.iter().enumerate() {
                let lost = liveness.observe(*answered, limit);
                let tail = answers[..=index].iter().rev().take_while(|answered| !**answered).count();
                let answered_before = answers[..=index].contains(&true);
                prop_assert_eq!(lost, answered_before && tail >= limit as usize);
            }
        }
    }
}
