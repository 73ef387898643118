use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn line(name: &str) -> Line {
    Line { tenant: name.to_owned(), template_id: "t".to_owned() }
}

/// Who is served when there is room for so many.
fn serve(lines: &mut Lines<&'static str>, mut room: usize) -> Vec<&'static str> {
    lines.serve(|_| {
        let has = room > 0;
        room = room.saturating_sub(1);
        has
    })
}

#[test]
fn lines_take_turns_however_many_stand_in_one() {
    let mut lines = Lines::new(10);
    for (whose, who) in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("c", "c2")] {
        lines.join(line(whose), who).unwrap();
    }
    assert_eq!(serve(&mut lines, 1), ["a1"]);
    assert_eq!(serve(&mut lines, 2), ["b1", "c1"], "the line that was served comes last");
    assert_eq!(serve(&mut lines, 9), ["a2", "c2", "a3"]);
    assert_eq!(lines.len(), 0);
}

#[test]
fn one_that_cannot_be_served_keeps_its_place_and_holds_up_nobody() {
    let mut lines = Lines::new(10);
    for (whose, who) in [("a", "large"), ("a", "small"), ("b", "large")] {
        lines.join(line(whose), who).unwrap();
    }
    assert_eq!(lines.serve(|who| *who == "small"), ["small"]);
    assert_eq!(serve(&mut lines, 9), ["large", "large"]);
}

#[test]
fn no_more_wait_than_may_and_one_who_leaves_makes_a_place() {
    let mut lines = Lines::new(2);
    lines.join(line("a"), "one").unwrap();
    lines.join(line("a"), "two").unwrap();
    assert_eq!(lines.join(line("a"), "three"), Err("three"));
    assert_eq!(lines.leave(|who| *who == "two"), Some(1), "one was before it");
    assert_eq!(lines.leave(|who| *who == "two"), None);
    lines.join(line("b"), "three").unwrap();
}

#[test]
fn when_as_many_wait_as_may_the_longest_line_gives_way_to_others() {
    let mut lines = Lines::new(3);
    for who in ["a1", "a2", "a3"] {
        lines.join(line("a"), who).unwrap();
    }
    assert_eq!(lines.join(line("a"), "a4"), Err("a4"));
    lines.join(line("b"), "b1").unwrap();
    assert_eq!(lines.join(line("b"), "b2"), Err("b2"), "the lines are of one length then");
    assert_eq!(serve(&mut lines, 9), ["a1", "b1", "a2"]);
}

#[tokio::test]
async fn a_place_that_is_given_up_is_not_served_and_what_it_got_is_dropped() {
    let queue: Queue<u32, Arc<()>> = Queue::new(2);
    let (mut first, second) = (queue.join(line("a"), 1).unwrap(), queue.join(line("a"), 2).unwrap());
    drop(second);
    assert_eq!(queue.len(), 1);
    let thing = Arc::new(());
    queue.serve(|wants| (*wants == 1).then(|| Arc::clone(&thing)));
    assert_eq!((first.granted().await.is_some(), queue.len()), (true, 0));
    let late = queue.join(line("a"), 3).unwrap();
    queue.serve(|_| Some(Arc::clone(&thing)));
    drop(late);
    assert_eq!(Arc::strong_count(&thing), 1, "nobody took it");
}

proptest! {
    /// Whoever stands in whichever line: all are served once, each line in its order, and between two of one
    /// line no other line that waits is left out.
    #[test]
    fn service_is_fair(arrivals in prop::collection::vec(0_usize..5, 0..60), rooms in prop::collection::vec(1_usize..4, 60)) {
        let mut lines = Lines::new(100);
        let mut numbers = [0_usize; 5];
        for whose in &arrivals {
            lines.join(line(&whose.to_string()), (*whose, numbers[*whose])).unwrap();
            numbers[*whose] += 1;
        }
        let mut served = Vec::new();
        for room in rooms {
            let mut room = room;
            served.extend(lines.serve(|_| {
                let has = room > 0;
                room = room.saturating_sub(1);
                has
            }));
        }
        prop_assert_eq!(served.len(), arrivals.len());
        let mut next: BTreeMap<usize, usize> = BTreeMap::new();
        for (whose, number) in &served {
            let expected = next.entry(*whose).or_default();
            prop_assert_eq!(*number, *expected);
            *expected += 1;
            // Nobody is more than one turn ahead of another who still waits.
            let done = |other: usize| next.get(&other).copied().unwrap_or_default();
            for (other, all) in numbers.iter().enumerate() {
                prop_assert!(done(other) == *all || done(*whose) <= done(other) + 1);
            }
        }
    }
}
