use proptest::prelude::*;

use super::*;

const LIFETIME: Duration = Duration::from_secs(3600);

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(2_000_000_000 + seconds, 0).unwrap()
}

fn warm(n: usize, condition: Condition, age: i64) -> Warm {
    let place = (format!("sbx_{n:016x}"), "node".to_owned());
    Warm { place, condition, current: true, made_at: at(-age), stressed: false }
}

fn removed(plan: &Plan) -> Vec<&str> {
    plan.remove.iter().map(|(id, _)| &id[id.len() - 1..]).collect()
}

#[test]
fn a_target_lies_between_min_and_max_and_grows_with_demand() {
    let settings = Settings { min: 2, max: 10, buffer: 1 };
    let lead = Duration::from_secs(2);
    let targets = [0.0, 0.4, 1.0, 3.0, 1e12, f64::NAN].map(|rate| settings.target(rate, lead));
    assert_eq!(targets, [2, 2, 3, 7, 10, 2]);
    assert_eq!(Settings::default().target(100.0, lead), 0, "without a pool nothing is warm");
    assert_eq!(Settings { min: 0, max: 10, buffer: 4 }.target(0.0, lead), 4, "the buffer needs no demand");
}

#[test]
fn a_pool_goes_back_to_its_minimum_when_nobody_asks_any_more() {
    let (settings, lead) = (Settings { min: 0, max: 10, buffer: 0 }, Duration::from_secs(2));
    let mut demand = Demand::none(at(0));
    demand.note(at(0));
    let target = |second| settings.target(demand.per_second(at(second)), lead);
    assert_eq!((target(0), target(300)), (1, 0));
}

#[test]
fn demand_is_a_rate_that_fades() {
    let mut demand = Demand::none(at(0));
    for second in 0..300 {
        demand.note(at(second));
        demand.note(at(second));
    }
    let now = demand.per_second(at(300));
    assert!((1.8..2.2).contains(&now), "{now}");
    assert!((demand.per_second(at(330)) - now / 2.0).abs() < 0.01);
    assert!(demand.per_second(at(3600)) < 1e-6);
    demand.note(at(-1000));
    assert!(demand.per_second(at(300)) >= now, "a clock that went back loses nothing");
}

#[test]
fn the_dead_and_those_of_an_older_template_go_and_are_replaced() {
    let outdated = Warm { current: false, ..warm(2, Condition::Ready, 10) };
    let there = [warm(1, Condition::Dead, 10), outdated, warm(3, Condition::Ready, 10)];
    let plan = plan(3, &there, LIFETIME, at(0));
    assert_eq!((plan.start, removed(&plan)), (2, vec!["1", "2"]));
}

#[test]
fn the_surplus_goes_from_stressed_nodes_first_and_then_by_idle_time() {
    let stressed = Warm { stressed: true, ..warm(2, Condition::Ready, 5) };
    let there = [
        warm(1, Condition::Ready, 30),
        stressed,
        warm(3, Condition::Ready, 20),
        warm(4, Condition::Starting, 1),
    ];
    let plan = plan(1, &there, LIFETIME, at(0));
    assert_eq!((plan.start, removed(&plan)), (0, vec!["2", "1"]));
}

#[test]
fn an_old_one_serves_until_another_is_there() {
    let old = warm(1, Condition::Ready, 3000);
    let alone = plan(1, std::slice::from_ref(&old), LIFETIME, at(0));
    assert_eq!((alone.start, removed(&alone)), (1, vec![]));
    let starting = plan(1, &[old.clone(), warm(2, Condition::Starting, 0)], LIFETIME, at(0));
    assert_eq!((starting.start, removed(&starting)), (0, vec![]));
    let replaced = plan(1, &[old, warm(2, Condition::Ready, 0)], LIFETIME, at(0));
    assert_eq!((replaced.start, removed(&replaced)), (0, vec!["1"]));
}

#[test]
fn after_failures_one_is_tried_at_a_time_and_ever_more_seldom() {
    let mut backoff = Backoff::default();
    assert_eq!(backoff.allows(4, at(0)), 4);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        backoff.failed("no such image".to_owned(), at(0));
        pauses.push((backoff.told().1.unwrap() - at(0)).num_seconds());
        assert_eq!(backoff.allows(4, at(0)), 0);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    assert_eq!((backoff.allows(4, at(300)), backoff.told().0), (1, "no such image"));
    backoff.no_room("full".to_owned(), at(0));
    assert_eq!(backoff.allows(4, at(5)), 1);
}

prop_compose! {
    fn any_warm()(
        n in 0_usize..1000,
        condition in prop_oneof![Just(Condition::Starting), Just(Condition::Ready), Just(Condition::Dead)],
        age in 0_i64..4000,
        current: bool,
        stressed: bool,
    ) -> Warm {
        Warm { current, stressed, ..warm(n, condition, age) }
    }
}

proptest! {
    /// Whatever there is: once what is planned was done, there are exactly as many as there are to be that
    /// can be used and are not old, or more are still starting; and nothing is left to do but to wait.
    #[test]
    fn what_is_planned_leads_to_the_target(target in 0_u32..20, mut there in prop::collection::vec(any_warm(), 0..30)) {
        there.sort_by(|a, b| a.place.cmp(&b.place));
        there.dedup_by(|a, b| a.place == b.place);
        let first = plan(target, &there, LIFETIME, at(0));
        let usable = |warm: &[Warm]| {
            warm.iter().filter(|one| one.current && one.condition == Condition::Ready).count()
        };
        let before = usable(&there);
        there.retain(|one| !first.remove.contains(&one.place));
        prop_assert!(usable(&there) >= before.min(target as usize), "none is removed that is needed");
        prop_assert!(there.iter().all(|one| one.current && one.condition != Condition::Dead));
        there.extend((0..first.start).map(|n| warm(10_000 + n as usize, Condition::Ready, 0)));
        there.iter_mut().for_each(|one| one.condition = Condition::Ready);
        let second = plan(target, &there, LIFETIME, at(0));
        prop_assert_eq!(second.start, 0);
        there.retain(|one| !second.remove.contains(&one.place));
        prop_assert_eq!(there.len(), target as usize);
        prop_assert_eq!(plan(target, &there, LIFETIME, at(0)), Plan::default());
    }
}

#[test]
fn pools_stand_back_for_sessions_and_not_for_long() {
    let mut stand_back = StandBack::default();
    let at = |seconds: i64| DateTime::from_timestamp(2_000_000_000 + seconds, 0).unwrap();
    assert!(!stand_back.looks(2, 2, at(0)), "each node makes one");
    assert!(stand_back.looks(3, 2, at(1)));
    assert!(stand_back.looks(9, 2, at(3)));
    assert!(!stand_back.looks(9, 2, at(4)), "perhaps for want of warm ones");
    assert!(!stand_back.looks(9, 2, at(60)));
    assert!(!stand_back.looks(0, 2, at(61)));
    assert!(stand_back.looks(3, 2, at(62)), "another burst");
}

#[test]
fn pools_stand_back_for_a_burst_of_claims_and_not_for_one_now_and_then() {
    let mut stand_back = StandBack::default();
    let at = |millis: i64| DateTime::from_timestamp_millis(2_000_000_000_000 + millis).unwrap();
    stand_back.given(at(0));
    assert!(!stand_back.looks(0, 1, at(0)), "one for the one node");
    stand_back.given(at(60));
    assert!(!stand_back.looks(0, 1, at(60)), "the other is no part of it");
    stand_back.given(at(100));
    assert!(stand_back.looks(0, 1, at(100)) && !stand_back.looks(0, 2, at(100)));
    assert!(!stand_back.looks(0, 1, at(150)), "they are done");
    // Where it never ends, pools are filled all the same.
    let steady: Vec<bool> = (0..500)
        .map(|n| {
            let now = at(1000 + n * 10);
            stand_back.given(now);
            stand_back.looks(0, 1, now)
        })
        .collect();
    assert!(steady[1..300].iter().all(|back| *back) && !steady[301..].contains(&true), "{steady:?}");
    // The clock is set back.
    assert!(stand_back.looks(2, 1, at(0)) && !stand_back.looks(2, 1, at(3000)));
}
