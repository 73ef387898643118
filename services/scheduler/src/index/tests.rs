//! The index and a look at every node give the same answers, with more nodes than are few.

use proptest::prelude::*;

use super::*;
use crate::placement::{Language, Wanted, choose, choose_warm, could_run, fits_without};

/// So many that the tree has several levels, and that what a third of them has is had by many.
const NODES: usize = 300;

/// A change of one node.
#[derive(Debug, Clone)]
enum Change {
    Facts(Facts),
    Load(Load),
    Template(usize, bool),
    Warm(usize, bool),
    Gone,
}

fn share(most: u64) -> impl Strategy<Value = Share> {
    (prop::option::weighted(0.8, 0..most), 0..most).prop_map(|(limit, used)| Share { limit, used })
}

fn facts() -> impl Strategy<Value = Facts> {
    let names = |count: usize| prop::collection::btree_set(0..count, 0..3);
    let places = (0_usize..3, 0_usize..40);
    (0_i32..3, names(4), names(3), places).prop_map(|(languages, images, sets, (zone, rack))| Facts {
        languages: (1..=languages).map(Language).collect(),
        images: images.into_iter().map(|n| format!("image-{n}")).collect(),
        package_sets: sets.into_iter().map(|n| format!("set-{n}")).collect(),
        labels: [("zone".to_owned(), zone.to_string()), ("rack".to_owned(), rack.to_string())].into(),
    })
}

prop_compose! {
    fn load()(
        healthy in prop::bool::weighted(0.9),
        draining in prop::bool::weighted(0.1),
        sandboxes in share(12),
        cpu_millis in share(2000),
        memory_bytes in share(1000),
        spare in (0_u64..3, 0_u64..900, 0_u64..400),
    ) -> Load {
        let spare = Promised { sandboxes: spare.0, cpu_millis: spare.1, memory_bytes: spare.2 };
        Load { healthy, draining, sandboxes, cpu_millis, memory_bytes, spare }
    }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => facts().prop_map(Change::Facts),
        6 => load().prop_map(Change::Load),
        3 => (0_usize..3, any::<bool>()).prop_map(|(template, has)| Change::Template(template, has)),
        3 => (0_usize..3, any::<bool>()).prop_map(|(template, has)| Change::Warm(template, has)),
        1 => Just(Change::Gone),
    ]
}

prop_compose! {
    fn wanted()(
        cpu_millis in 0_u64..1500,
        memory_bytes in 0_u64..700,
        language in 0_i32..3,
        image in 0_usize..5,
        packages in prop::option::of(0_usize..4),
        template in 0_usize..4,
        zone in prop::option::of(0_usize..4),
        rack in prop::option::weighted(0.2, 0_usize..41),
    ) -> Wanted {
        let label = |key: &str, value: Option<usize>| value.map(|value| (key.to_owned(), value.to_string()));
        Wanted {
            cpu_millis,
            memory_bytes,
            language: Language(language),
            node_labels: [label("zone", zone), label("rack", rack)].into_iter().flatten().collect(),
            image: format!("image-{image}"),
            packages: packages.map(|n| format!("set-{n}")).unwrap_or_default(),
            template_id: format!("template-{template}"),
        }
    }
}

fn id(n: usize) -> String {
    format!("node-{n}")
}

fn happen(index: &mut Index, n: usize, change: &Change) {
    let (id, template) = (id(n), |n: &usize| format!("template-{n}"));
    match change {
        Change::Facts(facts) => index.describe(&id, facts),
        Change::Load(load) => index.set(&id, load),
        Change::Template(n, has) => index.set_template(&id, &template(n), *has),
        Change::Warm(n, has) => index.set_warm(&id, &template(n), *has),
        Change::Gone => index.remove(&id),
    }
}

fn compare(index: &mut Index, wanted: &Wanted) {
    let views = index.views();
    let mut avoid = Vec::new();
    for expected in choose(wanted, &views).candidates.into_iter().take(5) {
        assert_eq!(index.best(wanted, &avoid), Some(expected.as_str()), "{wanted:?} but for {avoid:?}");
        avoid.push(expected);
    }
    let expected = choose_warm(wanted, &views, 75).candidates.into_iter().next();
    assert_eq!(index.best_for_warm(wanted, 75, &[]).map(str::to_owned), expected);
    let asked = |view: &NodeView| avoid.contains(&view.id);
    let could = views.iter().any(|view| could_run(wanted, view) && !asked(view));
    assert_eq!(index.could_run(wanted, &avoid), could);
    let spare = |view: &NodeView| index.by_id.get(&view.id).and_then(|slot| Some(index.node(*slot)?.spare));
    let helps = |view: &&NodeView| {
        spare(view).is_some_and(|spare| spare.sandboxes > 0 && fits_without(wanted, view, spare))
    };
    let expected = views.iter().find(helps).map(|view| view.id.clone());
    assert_eq!(index.roomy_without_warm(wanted).map(str::to_owned), expected);
    let may_change = views.iter().any(|view| placement::may_change(wanted, view));
    assert_eq!(index.may_change(wanted, &[]), may_change);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Nodes that come, change and go, and what is asked meanwhile.
    #[test]
    fn the_index_answers_what_a_look_at_every_node_answers(
        nodes in prop::collection::vec((facts(), load(), 0_usize..3, any::<bool>()), NODES),
        changes in prop::collection::vec((0..NODES + 5, change(), wanted()), 0..40),
    ) {
        let mut index = Index::default();
        for (n, (facts, load, template, warm)) in nodes.iter().enumerate() {
            index.describe(&id(n), facts);
            index.set(&id(n), load);
            index.set_template(&id(n), &format!("template-{template}"), true);
            index.set_warm(&id(n), &format!("template-{template}"), *warm);
        }
        for (n, change, wanted) in &changes {
            happen(&mut index, *n, change);
            compare(&mut index, wanted);
        }
    }
}

#[test]
fn what_many_have_and_then_few_is_found_all_the_same() {
    let mut index = Index::default();
    let open = Share { limit: Some(10), used: 0 };
    let load = Load {
        healthy: true,
        draining: false,
        sandboxes: open,
        cpu_millis: Share { limit: None, used: 0 },
        memory_bytes: Share { limit: None, used: 0 },
        spare: Promised::default(),
    };
    let facts = |image: bool| Facts {
        languages: vec![Language(1)],
        images: image.then(|| "image".to_owned()).into_iter().collect(),
        package_sets: Vec::new(),
        labels: BTreeMap::new(),
    };
    let wanted = Wanted {
        cpu_millis: 1,
        memory_bytes: 1,
        language: Language(1),
        node_labels: BTreeMap::new(),
        image: "image".to_owned(),
        packages: String::new(),
        template_id: "template".to_owned(),
    };
    for n in 0..NODES {
        index.describe(&id(n), &facts(n >= 100));
        index.set(&id(n), &load);
    }
    assert_eq!(index.best(&wanted, &[]), Some("node-100"));
    for n in 100..NODES - 1 {
        index.describe(&id(n), &facts(false));
    }
    assert_eq!(index.best(&wanted, &[]), Some("node-299"));
    index.set("node-299", &Load { sandboxes: Share { limit: Some(10), used: 10 }, ..load });
    assert_eq!(index.best(&wanted, &[]), Some("node-0"), "without the image anywhere the first is the best");
}

/// Every part of the tree promises a node with the image and the room, and none has both.
#[test]
fn where_the_image_and_the_room_are_apart_a_node_with_room_is_found() {
    let mut index = Index::default();
    for n in 0..NODES * 10 {
        let has_image = n % 2 == 0;
        let facts = Facts {
            languages: vec![Language(1)],
            images: has_image.then(|| "image".to_owned()).into_iter().collect(),
            ..Facts::default()
        };
        let memory = Share { limit: Some(if has_image { 10 } else { 1000 }), used: 5 };
        let unlimited = Share { limit: None, used: 0 };
        index.describe(&id(n), &facts);
        index.set(
            &id(n),
            &Load {
                healthy: true,
                draining: false,
                sandboxes: Share { limit: Some(10), used: 0 },
                cpu_millis: unlimited,
                memory_bytes: memory,
                spare: Promised::default(),
            },
        );
    }
    let wanted = Wanted {
        cpu_millis: 1,
        memory_bytes: 100,
        language: Language(1),
        node_labels: BTreeMap::new(),
        image: "image".to_owned(),
        packages: String::new(),
        template_id: "template".to_owned(),
    };
    let found = index.best(&wanted, &[]).map(str::to_owned);
    let candidates = choose(&wanted, &index.views()).candidates;
    assert!(found.is_some_and(|found| candidates.contains(&found)));
}
