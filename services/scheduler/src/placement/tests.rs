use proptest::prelude::*;

use super::*;

fn wanted() -> Wanted {
    Wanted {
        cpu_millis: 500,
        memory_bytes: 100,
        language: Language(1),
        node_labels: BTreeMap::new(),
        image: "python:3.11".to_owned(),
        packages: "numpy".to_owned(),
        template_id: "python-basic".to_owned(),
    }
}

fn node(id: &str) -> NodeView {
    NodeView {
        id: id.to_owned(),
        healthy: true,
        draining: false,
        sandboxes: Share { limit: Some(10), used: 0 },
        cpu_millis: Share { limit: None, used: 0 },
        memory_bytes: Share { limit: Some(1000), used: 0 },
        languages: vec![Language(1)],
        images: Vec::new(),
        package_sets: Vec::new(),
        labels: BTreeMap::new(),
        templates: BTreeSet::new(),
        warm: BTreeSet::new(),
    }
}

fn best(nodes: &[NodeView]) -> String {
    choose(&wanted(), nodes).candidates[0].clone()
}

#[test]
fn warm_beats_image_beats_packages_beat_template_beats_room() {
    let template = || BTreeSet::from(["python-basic".to_owned()]);
    let room = node("a-room");
    let affine =
        NodeView { templates: template(), sandboxes: Share { limit: Some(10), used: 7 }, ..node("b-affine") };
    let busy = |node| NodeView { sandboxes: Share { limit: Some(10), used: 8 }, ..node };
    let packages = busy(NodeView { package_sets: vec!["numpy".to_owned()], ..node("c-packages") });
    let image = busy(NodeView { images: vec!["python:3.11".to_owned()], ..node("d-image") });
    let warm = busy(NodeView { warm: template(), ..node("e-warm") });
    let nodes = [room, affine, packages, image, warm];
    let best_first = ["e-warm", "d-image", "c-packages", "b-affine", "a-room"];
    assert_eq!(choose(&wanted(), &nodes).candidates, best_first);
}

#[test]
fn a_crowded_node_does_not_draw_more_of_its_template() {
    let crowded = NodeView {
        templates: BTreeSet::from(["python-basic".to_owned()]),
        sandboxes: Share { limit: Some(10), used: 8 },
        ..node("a")
    };
    assert_eq!(best(&[crowded, node("b")]), "b");
}

#[test]
fn the_emptier_node_is_better_and_a_tie_goes_by_id() {
    let fuller = NodeView { memory_bytes: Share { limit: Some(1000), used: 500 }, ..node("a") };
    assert_eq!(best(&[fuller, node("c"), node("b")]), "b");
}

#[test]
fn a_refusal_says_why_and_whether_waiting_helps() {
    let mut picky = wanted();
    picky.node_labels.insert("zone".to_owned(), "eu".to_owned());
    let europe = NodeView { labels: BTreeMap::from([("zone".to_owned(), "eu".to_owned())]), ..node("eu") };
    let silent = NodeView { healthy: false, ..europe.clone() };
    let choice = choose(&picky, &[node("us"), europe, NodeView { id: "eu-silent".to_owned(), ..silent }]);
    assert_eq!(choice.candidates, ["eu"]);
    let refusals: Vec<(&str, bool)> =
        choice.refusals.iter().map(|refusal| (refusal.node_id.as_str(), refusal.may_change)).collect();
    assert_eq!(refusals, [("eu-silent", true), ("us", false)]);
    assert!(choice.refusals[1].why.contains("`zone`"));
}

fn share(most: u64) -> impl Strategy<Value = Share> {
    (proptest::option::of(0..most), 0..most).prop_map(|(limit, used)| Share { limit, used })
}

prop_compose! {
    fn any_node(id: usize)(
        flags in any::<[bool; 5]>(),
        sandboxes in share(10),
        cpu_millis in share(2000),
        memory_bytes in share(1000),
        languages in proptest::collection::vec((0..3i32).prop_map(Language), 0..3),
    ) -> NodeView {
        let has = |flag: bool, what: &str| flag.then(|| what.to_owned());
        NodeView {
            healthy: flags[0],
            draining: flags[1],
            sandboxes,
            cpu_millis,
            memory_bytes,
            languages,
            images: has(flags[2], "python:3.11").into_iter().collect(),
            templates: has(flags[3], "python-basic").into_iter().collect(),
            package_sets: has(flags[4], "numpy").into_iter().collect(),
            ..node(&format!("node-{id}"))
        }
    }
}

fn any_nodes() -> impl Strategy<Value = Vec<NodeView>> {
    (any_node(0), any_node(1), any_node(2), any_node(3), 0..5usize).prop_map(|(a, b, c, d, count)| {
        let mut nodes = vec![a, b, c, d];
        nodes.truncate(count);
        nodes
    })
}

proptest! {
    #[test]
    fn every_node_is_either_a_candidate_or_refused(nodes in any_nodes()) {
        let choice = choose(&wanted(), &nodes);
        let mut told: Vec<&str> = choice.candidates.iter().map(String::as_str).collect();
        told.extend(choice.refusals.iter().map(|refusal| refusal.node_id.as_str()));
        told.sort_unstable();
        let ids: Vec<&str> = nodes.iter().map(|node| node.id.as_str()).collect();
        prop_assert_eq!(told, ids);
    }

    #[test]
    fn the_order_of_the_nodes_does_not_matter(nodes in any_nodes(), turn in 0..4usize) {
        let mut turned = nodes.clone();
        if !turned.is_empty() {
            let by = turn % turned.len();
            turned.rotate_left(by);
        }
        prop_assert_eq!(choose(&wanted(), &nodes), choose(&wanted(), &turned));
    }

    #[test]
    fn placing_until_no_node_is_left_never_passes_a_limit(mut nodes in any_nodes()) {
        // Only what is there may be over already; placing must not add to it.
        for round in 0..100 {
            let Some(id) = choose(&wanted(), &nodes).candidates.first().cloned() else { break };
            let chosen = nodes.iter_mut().find(|node| node.id == id).unwrap();
            prop_assert!(chosen.healthy && !chosen.draining && chosen.languages.contains(&Language(1)));
            chosen.sandboxes.used += 1;
            chosen.cpu_millis.used += wanted().cpu_millis;
            chosen.memory_bytes.used += wanted().memory_bytes;
            for share in [chosen.sandboxes, chosen.cpu_millis, chosen.memory_bytes] {
                prop_assert!(share.limit.is_none_or(|limit| share.used <= limit), "round {round}: {share:?}");
            }
        }
    }

    #[test]
    fn a_node_that_could_never_run_it_is_never_said_to_be_busy(nodes in any_nodes()) {
        for refusal in choose(&wanted(), &nodes).refusals {
            let node = nodes.iter().find(|node| node.id == refusal.node_id).unwrap();
            let large = |share: Share, want: u64| share.limit.is_some_and(|limit| limit < want);
            let never = !node.languages.contains(&Language(1))
                || large(node.memory_bytes, 100)
                || large(node.cpu_millis, 500);
            prop_assert_eq!(refusal.may_change, !never);
        }
    }
}
