//! The plan, rule by rule and by property.

use proptest::prelude::*;

use super::*;

const GRACE: Duration = Duration::from_secs(30);

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn session(phase: Phase) -> Session {
    let (session_id, sandbox_id, node_id) = ("s".to_owned(), "b".to_owned(), "n".to_owned());
    Session { session_id, sandbox_id, node_id, phase, can_recover: false }
}

fn sandbox(condition: Condition, age_seconds: i64) -> Sandbox {
    Sandbox {
        sandbox_id: "b".to_owned(),
        session_id: "s".to_owned(),
        node_id: "n".to_owned(),
        condition,
        reason: String::new(),
        node_lost: false,
        created_at: Some(now() - TimeDelta::seconds(age_seconds)),
    }
}

fn desired(sessions: &[Session]) -> Desired {
    Desired { sessions: sessions.to_vec(), fates: BTreeMap::new() }
}

fn fate(fate: Fate) -> Desired {
    Desired { sessions: Vec::new(), fates: BTreeMap::from([("s".to_owned(), fate)]) }
}

fn observed(sandboxes: &[Sandbox]) -> Observed {
    let nodes = BTreeSet::from(["n".to_owned()]);
    Observed { sandboxes: sandboxes.to_vec(), nodes, ..Observed::default() }
}

fn planned(desired: &Desired, observed: &Observed) -> Plan {
    plan(desired, observed, now(), GRACE)
}

fn is_removed(desired: &Desired, sandbox: Sandbox) -> bool {
    !planned(desired, &observed(&[sandbox])).actions.is_empty()
}

#[test]
fn a_running_session_with_a_running_sandbox_is_healthy() {
    let plan = planned(&desired(&[session(Phase::Running)]), &observed(&[sandbox(Condition::Running, 99)]));
    assert_eq!(plan, Plan { checked: 1, healthy: 1, ..Plan::default() });
}

#[test]
fn a_dead_sandbox_is_reported_with_its_reason() {
    let dead = Sandbox { reason: "out of memory".to_owned(), ..sandbox(Condition::Dead, 1) };
    let plan = planned(&desired(&[session(Phase::Running)]), &observed(&[dead]));
    assert_eq!((plan.unhealthy, plan.actions.len()), (1, 1));
    let reported = |action: &Action| match action {
        Action::End(Lost { how: How::Dead { reason }, .. }) => reason.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(reported(&plan.actions[0]), "out of memory");
}

#[test]
fn a_session_that_can_recover_does_and_another_one_ends() {
    for (can_recover, sandboxes) in [
        (true, vec![]),
        (false, vec![]),
        (true, vec![sandbox(Condition::Dead, 1)]),
        (false, vec![sandbox(Condition::Dead, 1)]),
    ] {
        let session = Session { can_recover, ..session(Phase::Running) };
        let plan = planned(&desired(&[session]), &observed(&sandboxes));
        assert_eq!(matches!(plan.actions[..], [Action::Recover(_)]), can_recover, "{plan:?}");
        assert_eq!(matches!(plan.actions[..], [Action::End(_)]), !can_recover, "{plan:?}");
    }
}

#[test]
fn what_was_on_a_lost_node_is_lost_with_it() {
    let lost_nodes = BTreeSet::from(["n".to_owned()]);
    let gone = Observed { nodes: BTreeSet::new(), lost_nodes, ..observed(&[]) };
    let plan = planned(&desired(&[session(Phase::Running)]), &gone);
    assert!(matches!(&plan.actions[..], [Action::End(lost)] if lost.node_lost), "{plan:?}");
    let dead = Sandbox { node_lost: true, ..sandbox(Condition::Dead, 1) };
    let plan = planned(&desired(&[session(Phase::Running)]), &Observed { sandboxes: vec![dead], ..gone });
    assert!(matches!(&plan.actions[..], [Action::End(lost)] if lost.node_lost), "{plan:?}");
}

#[test]
fn a_session_that_waits_for_another_sandbox_does_not_keep_the_one_it_lost() {
    let waits = Session { sandbox_id: "b2".to_owned(), ..session(Phase::Creating) };
    let removed =
        |age| planned(&desired(std::slice::from_ref(&waits)), &observed(&[sandbox(Condition::Running, age)]));
    assert_eq!(removed(5).actions, []);
    assert!(
        matches!(&removed(31).actions[..], [Action::RemoveOrphan { sandbox_id, .. }] if sandbox_id == "b")
    );
}

#[test]
fn an_absent_sandbox_is_reported_only_when_its_node_answers() {
    let running = desired(&[session(Phase::Running)]);
    let plan = planned(&running, &observed(&[]));
    assert!(matches!(plan.actions[..], [Action::End(Lost { how: How::Absent, .. })]));

    let silent = Observed { nodes: BTreeSet::from(["other".to_owned()]), ..observed(&[]) };
    let plan = planned(&running, &silent);
    assert_eq!((plan.unhealthy, plan.undecided.len(), plan.actions.len()), (0, 1, 0));
}

#[test]
fn a_scheduler_that_knows_no_node_yet_loses_no_session() {
    let placed = session(Phase::Running);
    let unplaced = Session { node_id: String::new(), ..session(Phase::Running) };
    for session in [placed, unplaced] {
        assert_eq!(planned(&desired(&[session]), &Observed::default()).actions, []);
    }
}

#[test]
fn a_sandbox_that_is_not_settled_is_left_alone() {
    let plan = planned(&desired(&[session(Phase::Running)]), &observed(&[sandbox(Condition::Unsettled, 99)]));
    assert_eq!((plan.healthy, plan.unhealthy, plan.undecided.len(), plan.actions.len()), (0, 0, 1, 0));
}

#[test]
fn a_session_that_is_being_created_keeps_every_sandbox_made_for_it() {
    let creating = Session { sandbox_id: String::new(), ..session(Phase::Creating) };
    for condition in [Condition::Unsettled, Condition::Running, Condition::Dead] {
        let plan = planned(&desired(std::slice::from_ref(&creating)), &observed(&[sandbox(condition, 9999)]));
        assert_eq!((plan.checked, plan.actions.len()), (1, 0));
    }
}

#[test]
fn the_sandbox_of_an_ended_session_is_removed_at_once() {
    assert!(is_removed(&fate(Fate::Ended), sandbox(Condition::Running, 0)));
    assert!(is_removed(&fate(Fate::Ended), sandbox(Condition::Dead, 0)));
}

#[test]
fn the_sandbox_of_a_session_whose_files_are_being_saved_stays() {
    assert!(!is_removed(&fate(Fate::Releasing), sandbox(Condition::Running, 9999)));
    assert!(!is_removed(&fate(Fate::Releasing), sandbox(Condition::Dead, 9999)));
}

#[test]
fn the_sandbox_of_a_forgotten_session_is_removed_after_the_grace() {
    assert!(!is_removed(&fate(Fate::Forgotten), sandbox(Condition::Running, 30)));
    assert!(is_removed(&fate(Fate::Forgotten), sandbox(Condition::Running, 31)));
    assert!(!is_removed(&fate(Fate::Forgotten), sandbox(Condition::Running, -3600)));
    let ageless = Sandbox { created_at: None, ..sandbox(Condition::Running, 99) };
    assert!(!is_removed(&fate(Fate::Forgotten), ageless));
}

#[test]
fn a_session_that_was_not_asked_about_or_is_new_keeps_its_sandbox() {
    assert!(!is_removed(&fate(Fate::Lives), sandbox(Condition::Running, 9999)));
    assert!(!is_removed(&Desired::default(), sandbox(Condition::Running, 9999)));
}

#[test]
fn a_second_sandbox_of_a_running_session_is_removed_after_the_grace() {
    let second = |age| Sandbox { sandbox_id: "b2".to_owned(), ..sandbox(Condition::Running, age) };
    let plan = |age| {
        let observed = observed(&[sandbox(Condition::Running, 99), second(age)]);
        planned(&desired(&[session(Phase::Running)]), &observed).actions
    };
    assert_eq!(plan(5), []);
    assert!(matches!(&plan(31)[..], [Action::RemoveOrphan { sandbox_id, .. }] if sandbox_id == "b2"));
}

#[test]
fn sandbox_of_the_same_id_on_another_node_is_removed_there_and_only_there() {
    let other = |age, condition| Sandbox { node_id: "n2".to_owned(), ..sandbox(condition, age) };
    let nodes = BTreeSet::from(["n".to_owned(), "n2".to_owned()]);
    let plan = |sandboxes: &[Sandbox]| {
        planned(
            &desired(&[session(Phase::Running)]),
            &Observed { nodes: nodes.clone(), ..observed(sandboxes) },
        )
    };
    let own = sandbox(Condition::Running, 99);
    assert_eq!(plan(&[own.clone(), other(5, Condition::Running)]).actions, []);
    for condition in [Condition::Running, Condition::Dead] {
        let plan = plan(&[other(31, condition), own.clone()]);
        let removed = Action::RemoveOrphan { sandbox_id: "b".to_owned(), node_id: "n2".to_owned() };
        assert_eq!((plan.healthy, plan.actions), (1, vec![removed]));
    }
    let alone = plan(&[other(5, Condition::Running)]);
    assert!(matches!(&alone.actions[..], [Action::End(Lost { how: How::Absent, .. })]), "{alone:?}");
}

#[test]
fn a_warm_sandbox_is_its_pools_unless_it_is_dead() {
    let warm = |condition| Sandbox { session_id: String::new(), ..sandbox(condition, 9999) };
    assert!(!is_removed(&Desired::default(), warm(Condition::Running)));
    assert!(!is_removed(&Desired::default(), warm(Condition::Unsettled)));
    assert!(is_removed(&Desired::default(), warm(Condition::Dead)));
}

/// Does what the plan says to a world in which every call goes well. A session that recovers waits for a
/// sandbox that is not there yet, and does not recover a second time.
fn apply(desired: &mut Desired, observed: &mut Observed, plan: &Plan) {
    for action in &plan.actions {
        match action {
            Action::Recover(lost) => {
                let session =
                    desired.sessions.iter_mut().find(|session| session.session_id == lost.session_id);
                let session = session.unwrap();
                (session.phase, session.can_recover) = (Phase::Creating, false);
                session.sandbox_id = format!("next of {}", lost.session_id);
            }
            Action::End(lost) => {
                desired.sessions.retain(|session| session.session_id != lost.session_id);
                desired.fates.insert(lost.session_id.clone(), Fate::Ended);
            }
            Action::RemoveOrphan { .. } => {}
        }
        let gone = match action {
            Action::Recover(Lost { sandbox_id, node_id, how: How::Dead { .. }, .. })
            | Action::End(Lost { sandbox_id, node_id, how: How::Dead { .. }, .. })
            | Action::RemoveOrphan { sandbox_id, node_id } => (sandbox_id, node_id),
            Action::Recover(_) | Action::End(_) => continue,
        };
        observed.sandboxes.retain(|sandbox| (&sandbox.sandbox_id, &sandbox.node_id) != gone);
    }
}

/// The sandboxes that sessions wait for come up.
fn create(desired: &mut Desired, observed: &mut Observed) {
    for session in desired.sessions.iter_mut().filter(|session| session.phase == Phase::Creating) {
        if session.sandbox_id.is_empty() || observed.nodes.is_empty() {
            continue;
        }
        (session.phase, session.node_id) = (Phase::Running, observed.nodes.first().unwrap().clone());
        observed.sandboxes.retain(|sandbox| {
            (&sandbox.sandbox_id, &sandbox.node_id) != (&session.sandbox_id, &session.node_id)
        });
        observed.sandboxes.push(Sandbox {
            sandbox_id: session.sandbox_id.clone(),
            session_id: session.session_id.clone(),
            node_id: session.node_id.clone(),
            ..sandbox(Condition::Running, 0)
        });
    }
}

fn any_name(prefix: &'static str) -> impl Strategy<Value = String> {
    (0u8..4).prop_map(move |number| if number == 0 { String::new() } else { format!("{prefix}{number}") })
}

prop_compose! {
    fn any_session()(
        session_id in "s[1-5]", sandbox_id in any_name("b"), node_id in any_name("n"), running: bool,
        can_recover: bool,
    ) -> Session {
        let phase = if running { Phase::Running } else { Phase::Creating };
        Session { session_id, sandbox_id, node_id, phase, can_recover }
    }
}

prop_compose! {
    fn any_sandbox()(
        sandbox_id in "b[1-6]", session_id in any_name("s"), node_id in any_name("n"),
        condition in proptest::sample::select(vec![Condition::Unsettled, Condition::Running, Condition::Dead]),
        age in proptest::option::of(-10i64..100), node_lost: bool,
    ) -> Sandbox {
        let created_at = age.map(|age| now() - TimeDelta::seconds(age));
        Sandbox { sandbox_id, session_id, node_id, condition, reason: String::new(), node_lost, created_at }
    }
}

prop_compose! {
    fn any_world()(
        sessions in proptest::collection::vec(any_session(), 0..6),
        fates in proptest::collection::btree_map(
            "s[1-5]", proptest::sample::select(vec![Fate::Ended, Fate::Releasing, Fate::Forgotten, Fate::Lives]), 0..4),
        sandboxes in proptest::collection::vec(any_sandbox(), 0..8),
        nodes in proptest::collection::btree_set("n[1-3]", 0..3),
        lost_nodes in proptest::collection::btree_set("n[4-5]", 0..2),
        some_unreachable: bool,
    ) -> (Desired, Observed) {
        let by_id = |sessions: Vec<Session>| {
            let map: BTreeMap<_, _> = sessions.into_iter().map(|s| (s.session_id.clone(), s)).collect();
            map.into_values().collect::<Vec<_>>()
        };
        // An id may be on several nodes.
        let place = |b: &Sandbox| (b.sandbox_id.clone(), b.node_id.clone());
        let sandboxes: BTreeMap<_, _> = sandboxes.into_iter().map(|b| (place(&b), b)).collect();
        (
            Desired { sessions: by_id(sessions), fates },
            Observed { sandboxes: sandboxes.into_values().collect(), nodes, lost_nodes, some_unreachable },
        )
    }
}

proptest! {
    #[test]
    fn the_same_world_gives_the_same_plan((desired, observed) in any_world()) {
        prop_assert_eq!(planned(&desired, &observed), planned(&desired, &observed));
    }

    #[test]
    fn the_order_of_the_lists_does_not_matter((desired, observed) in any_world()) {
        let (mut turned, mut seen) = (desired.clone(), observed.clone());
        turned.sessions.reverse();
        seen.sandboxes.reverse();
        let sorted = |mut plan: Plan| { plan.actions.sort(); plan.actions };
        prop_assert_eq!(sorted(planned(&desired, &observed)), sorted(planned(&turned, &seen)));
    }

    #[test]
    fn once_the_plan_is_done_little_is_left_to_do((mut desired, mut observed) in any_world()) {
        // A session that ends or recovers may leave one more sandbox without an owner: two passes settle any
        // world.
        for _ in 0..2 {
            let plan = planned(&desired, &observed);
            apply(&mut desired, &mut observed, &plan);
        }
        prop_assert_eq!(planned(&desired, &observed).actions, vec![]);
    }

    #[test]
    fn a_world_in_which_lost_sandboxes_come_back_settles_too((mut desired, mut observed) in any_world()) {
        for _ in 0..4 {
            let plan = planned(&desired, &observed);
            apply(&mut desired, &mut observed, &plan);
            create(&mut desired, &mut observed);
        }
        let plan = planned(&desired, &observed);
        prop_assert_eq!(&plan.actions, &vec![]);
        let recovered = desired.sessions.iter().filter(|session| session.sandbox_id.starts_with("next of "));
        prop_assert!(recovered.filter(|session| session.phase == Phase::Running).count() <= plan.healthy as usize);
    }

    #[test]
    fn the_sandbox_of_a_session_that_is_well_or_being_created_is_never_touched((desired, observed) in any_world()) {
        let plan = planned(&desired, &observed);
        for session in &desired.sessions {
            let is_its = |sandbox: &&Sandbox| {
                sandbox.sandbox_id == session.sandbox_id
                    && (session.node_id.is_empty() || sandbox.node_id == session.node_id)
            };
            let sandbox = observed.sandboxes.iter().find(is_its);
            let well = sandbox.is_some_and(|sandbox| sandbox.condition == Condition::Running);
            let creating = session.phase == Phase::Creating;
            if well || creating {
                let touched = plan.actions.iter().any(|action| match action {
                    Action::Recover(lost) | Action::End(lost) => lost.session_id == session.session_id,
                    Action::RemoveOrphan { sandbox_id, node_id } => {
                        sandbox_id == &session.sandbox_id
                            && (creating || sandbox.is_some_and(|sandbox| &sandbox.node_id == node_id))
                    }
                });
                prop_assert!(!touched, "{:?} {:?}", session, plan);
            }
        }
    }

    #[test]
    fn nothing_is_absent_on_a_node_that_does_not_answer((desired, observed) in any_world()) {
        let silent = Observed { nodes: BTreeSet::new(), lost_nodes: BTreeSet::new(), ..observed };
        let plan = planned(&desired, &silent);
        let absent = plan.actions.iter().any(|action| match action {
            Action::Recover(lost) | Action::End(lost) => lost.how == How::Absent,
            Action::RemoveOrphan { .. } => false,
        });
        prop_assert!(!absent, "{:?}", plan);
    }

    #[test]
    fn every_session_and_sandbox_is_acted_upon_once_at_most((desired, observed) in any_world()) {
        let plan = planned(&desired, &observed);
        let mut sessions = BTreeSet::new();
        let mut sandboxes = BTreeSet::new();
        for action in &plan.actions {
            match action {
                Action::Recover(lost) | Action::End(lost) => prop_assert!(sessions.insert(&lost.session_id)),
                Action::RemoveOrphan { sandbox_id, node_id } => {
                    prop_assert!(sandboxes.insert((sandbox_id, node_id)));
                }
            }
        }
        prop_assert!(plan.healthy + plan.unhealthy <= plan.checked);
    }
}
