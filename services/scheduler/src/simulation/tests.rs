//! A small simulation, as a test of everything together: what must hold, and nothing of time.

use super::*;

fn options(nodes: u32, hours: f64, sandboxes: u32, seed: u64) -> Options {
    Options { nodes, hours, sandboxes, seed }
}

#[test]
fn in_an_hour_of_two_hundred_nodes_nobody_is_forgotten_and_no_node_has_too_much() {
    let outcome = run(&options(200, 1.0, 1800, 1));
    assert_eq!(outcome.broken(), [""; 0], "{outcome:?}");
    assert!(outcome.warm > 0 && outcome.cold > 0 && outcome.ended > 0, "{}", outcome.markdown());
}

#[test]
fn where_twice_as_many_come_as_there_is_room_for_they_wait_and_are_refused_and_nothing_breaks() {
    let outcome = run(&options(40, 2.0, 2000, 2));
    assert_eq!(outcome.broken(), [""; 0], "{outcome:?}");
    assert!(outcome.refused > 0, "{}", outcome.markdown());
}

#[test]
fn the_same_seed_gives_the_same_day() {
    let counts = |seed| {
        let outcome = run(&options(50, 0.5, 400, seed));
        (outcome.arrived, outcome.warm, outcome.cold, outcome.refused, outcome.ended, outcome.lost)
    };
    assert_eq!(counts(7), counts(7));
    assert_ne!(counts(7), counts(8));
}

#[test]
fn decisions_are_measured_in_every_case() {
    for case in cases(200, 3, |_| true) {
        assert_eq!(case.micros.len(), 3, "{}", case.name);
    }
}
