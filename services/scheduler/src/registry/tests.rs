//! Whatever happens, the registry answers what a look at everything answers.

use chrono::DateTime;
use futures::FutureExt;
use proptest::prelude::*;
use sandmesh_mesh::{HumanDuration, ManualClock, timestamp};
use sandmesh_proto::{agent::PackageSet, executor::Resources};

use super::*;
use crate::{
    placement::{self, Wanted},
    view,
};

const NODES: usize = 6;
const SANDBOXES: usize = 14;
const TEMPLATES: [&str; 3] = ["", "t", "u"];
const IMAGES: [&str; 3] = ["", "python", "node"];
const CROWDED: u64 = 75;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Event {
    Report { node: usize, says: Says },
    Opened { node: usize, has: Vec<(usize, Kind)> },
    Changed { node: usize, sandbox: usize, kind: Kind },
    Closed(usize),
    Bind { sandbox: usize, node: usize, kind: Kind },
    Reserve { sandbox: usize, kind: Kind },
    ReserveForWarm { sandbox: usize, kind: Kind },
    Unbind { sandbox: usize, node: usize },
    TakeWarm(Kind),
    GiveUp(Kind),
    Keep { sandbox: usize, node: usize },
    Give { sandbox: usize, node: usize },
    Told { node: usize, says: Says },
    Lose,
    Sweep,
    Wait(u64),
}

/// What a node says of itself.
#[derive(Debug, Clone)]
struct Says {
    max_sandboxes: u32,
    capacity: Option<(u32, u64)>,
    handed_out: u32,
    languages: usize,
    packages: usize,
    image: usize,
    zone: usize,
    draining: bool,
    moved: bool,
}

/// What a sandbox is, and how it is doing.
#[derive(Debug, Clone, Copy)]
struct Kind {
    template: usize,
    size: u32,
    language: i32,
    packages: usize,
    zone: usize,
    is_warm: bool,
    state: State,
    age: i64,
}

prop_compose! {
    fn says()(
        max_sandboxes in 0_u32..6,
        capacity in prop::option::of((0_u32..800, 0_u64..80)),
        handed_out in 0_u32..4,
        languages in 0_usize..3,
        packages in 0_usize..3,
        image in 0_usize..3,
        zone in 0_usize..3,
        draining in prop::bool::weighted(0.1),
        moved in prop::bool::weighted(0.1),
    ) -> Says {
        Says { max_sandboxes, capacity, handed_out, languages, packages, image, zone, draining, moved }
    }
}

prop_compose! {
    fn kind()(
        template in 0_usize..3,
        size in 0_u32..4,
        language in prop::sample::select(vec![1, 1, 1, 2]),
        packages in 0_usize..3,
        zone in prop::sample::select(vec![0_usize, 0, 0, 1, 2]),
        is_warm in any::<bool>(),
        state in prop::sample::select(vec![
            State::Creating, State::Running, State::Running, State::Running, State::Dead, State::Deleted,
        ]),
        age in 0_i64..3,
    ) -> Kind {
        Kind { template, size, language, packages, zone, is_warm, state, age }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let (node, sandbox) = (0..NODES, 0..SANDBOXES);
    prop_oneof![
        4 => (node.clone(), says()).prop_map(|(node, says)| Event::Report { node, says }),
        2 => (node.clone(), prop::collection::vec((sandbox.clone(), kind()), 0..5))
            .prop_map(|(node, has)| Event::Opened { node, has }),
        6 => (node.clone(), sandbox.clone(), kind())
            .prop_map(|(node, sandbox, kind)| Event::Changed { node, sandbox, kind }),
        1 => node.clone().prop_map(Event::Closed),
        2 => (sandbox.clone(), node.clone(), kind())
            .prop_map(|(sandbox, node, kind)| Event::Bind { sandbox, node, kind }),
        3 => (sandbox.clone(), kind()).prop_map(|(sandbox, kind)| Event::Reserve { sandbox, kind }),
        2 => (sandbox.clone(), kind()).prop_map(|(sandbox, kind)| Event::ReserveForWarm { sandbox, kind }),
        2 => (sandbox.clone(), node.clone()).prop_map(|(sandbox, node)| Event::Unbind { sandbox, node }),
        2 => kind().prop_map(Event::TakeWarm),
        1 => kind().prop_map(Event::GiveUp),
        1 => (sandbox.clone(), node.clone()).prop_map(|(sandbox, node)| Event::Keep { sandbox, node }),
        1 => (sandbox, node.clone()).prop_map(|(sandbox, node)| Event::Give { sandbox, node }),
        1 => (node, says()).prop_map(|(node, says)| Event::Told { node, says }),
        1 => Just(Event::Lose),
        1 => Just(Event::Sweep),
        2 => prop::sample::select(vec![1_u64, 3, 6, 61, 700, 4000]).prop_map(Event::Wait),
    ]
}

/// A registry, and what happens to it.
struct Bench {
    clock: ManualClock,
    registry: Registry,
    /// To it nothing is sent.
    link: Link,
}

fn node_id(n: usize) -> String {
    format!("node-{n}")
}

fn sandbox_id(n: usize) -> String {
    format!("sbx_{n:016x}")
}

fn label(zone: usize) -> Option<(String, String)> {
    (zone > 0).then(|| ("zone".to_owned(), zone.to_string()))
}

fn packages(set: usize) -> Option<String> {
    (set > 0).then(|| format!("set-{set}"))
}

impl Says {
    fn node(&self, n: usize) -> Node {
        let resources =
            |cpu_millis, memory_bytes| Resources { cpu_millis, memory_bytes, ..Resources::default() };
        Node {
            node_id: node_id(n),
            max_sandboxes: self.max_sandboxes,
            sandboxes: self.handed_out,
            capacity: self.capacity.map(|(cpu_millis, memory)| resources(cpu_millis, memory)),
            allocated: Some(resources(self.handed_out * 100, u64::from(self.handed_out) * 10)),
            languages: [1, 2][..self.languages.min(2)].to_vec(),
            images: (self.image > 0).then(|| IMAGES[self.image].to_owned()).into_iter().collect(),
            labels: label(self.zone).into_iter().collect(),
            package_sets: packages(self.packages).into_iter().collect(),
            draining: self.draining,
            endpoint: if self.moved { "http://127.0.0.1:2".to_owned() } else { String::new() },
            ..Node::default()
        }
    }
}

impl Kind {
    fn spec(&self) -> SandboxSpec {
        let (cpu_millis, memory_bytes) = (self.size * 100, u64::from(self.size) * 10);
        let labels = label(self.zone).filter(|_| !self.is_warm);
        SandboxSpec {
            image: IMAGES[self.template].to_owned(),
            template_id: TEMPLATES[self.template].to_owned(),
            resources: Some(Resources { cpu_millis, memory_bytes, ..Resources::default() }),
            language: self.language,
            session_id: if self.is_warm { String::new() } else { "s".to_owned() },
            labels: labels.into_iter().map(|(key, value)| (format!("node/{key}"), value)).collect(),
            packages: packages(self.packages)
                .map(|fingerprint| PackageSet { fingerprint, ..PackageSet::default() }),
            ..SandboxSpec::default()
        }
    }

    /// As a session wants it.
    fn wanted(self) -> SandboxSpec {
        Self { is_warm: false, ..self }.spec()
    }

    fn sandbox(&self, n: usize, node: usize) -> Sandbox {
        Sandbox {
            sandbox_id: sandbox_id(n),
            node_id: node_id(node),
            spec: Some(self.spec()),
            state: self.state.into(),
            created_at: (self.age > 0)
                .then(|| timestamp(DateTime::from_timestamp(2_000_000_000 - self.age, 0).unwrap())),
            claimed: !self.is_warm && self.age == 1,
            ..Sandbox::default()
        }
    }
}

impl Bench {
    fn new() -> Self {
        let clock = ManualClock::new(DateTime::from_timestamp(2_000_000_000, 0).unwrap());
        let config = Config { forget_after: HumanDuration(Duration::from_secs(3600)), ..Config::default() };
        let registry = Registry::new(config, Arc::new(clock.clone()), CancellationToken::new());
        Self { clock, registry, link: Link::local(tonic::service::Routes::default().into_axum_router()) }
    }

    fn happen(&self, event: &Event) {
        let registry = &self.registry;
        match event {
            Event::Report { node, says } => {
                drop(registry.report(says.node(*node), self.link.clone()).unwrap())
            }
            Event::Opened { node, has } => {
                let listed = has.iter().filter(|(_, kind)| kind.state != State::Deleted);
                registry.opened(&node_id(*node), listed.map(|(n, kind)| kind.sandbox(*n, *node)).collect());
            }
            Event::Changed { node, sandbox, kind } => {
                registry.changed(&node_id(*node), kind.sandbox(*sandbox, *node));
            }
            Event::Closed(node) => registry.closed(&node_id(*node)),
            Event::Bind { sandbox, node, kind } => {
                registry.bind(&sandbox_id(*sandbox), &node_id(*node), &kind.spec());
            }
            Event::Reserve { sandbox, kind } => self.reserve(*sandbox, *kind),
            Event::ReserveForWarm { sandbox, kind } => self.reserve_for_warm(*sandbox, *kind),
            Event::Unbind { sandbox, node } => registry.unbind(&sandbox_id(*sandbox), &node_id(*node)),
            Event::TakeWarm(kind) => {
                let expected = registry.scan_take_warm(&kind.wanted());
                assert_eq!(registry.take_warm(&kind.wanted()), expected);
            }
            Event::GiveUp(kind) => {
                let wanted = view::wanted(&kind.wanted());
                let expected = registry.scan_give_up(&wanted);
                assert_eq!(registry.give_up_warm(&wanted), expected);
            }
            Event::Keep { sandbox, node } => {
                registry.keep_from_claims(&(sandbox_id(*sandbox), node_id(*node)));
            }
            Event::Give { sandbox, node } => registry.give_to_claims(&(sandbox_id(*sandbox), node_id(*node))),
            Event::Told { node, says } => drop(registry.told(says.node(*node))),
            Event::Lose => drop(registry.declare_lost()),
            Event::Sweep => drop(registry.places()),
            Event::Wait(seconds) => self.clock.advance(Duration::from_secs(*seconds)),
        }
    }

    /// Reserves, and sees that it is where it is best and that nothing is promised twice.
    fn reserve(&self, sandbox: usize, kind: Kind) {
        let (id, spec) = (sandbox_id(sandbox), kind.spec());
        let wanted = view::wanted(&spec);
        let expected = placement::choose(&wanted, &self.registry.scan_views()).candidates.into_iter().next();
        let before = self.registry.scan_node_of(&id);
        let reserved = self.registry.reserve(&id, &spec, (&wanted, &[]));
        assert_eq!(reserved.is_some(), expected.is_some());
        assert_eq!(reserved, expected.and_then(|expected| before.clone().or(Some(expected))));
        self.see_that_it_fits(reserved.filter(|_| before.is_none()));
    }

    fn reserve_for_warm(&self, sandbox: usize, kind: Kind) {
        let (id, spec) = (sandbox_id(sandbox), kind.spec());
        let wanted = view::wanted(&spec);
        let choice = placement::choose_warm(&wanted, &self.registry.scan_views(), CROWDED);
        let expected = choice.candidates.into_iter().next();
        let is_new = self.registry.scan_node_of(&id).is_none();
        let reserved = self.registry.reserve_for_warm(&id, &spec, (&wanted, CROWDED, &[]));
        assert_eq!(reserved, expected.filter(|_| is_new));
        self.see_that_it_fits(reserved);
    }

    fn see_that_it_fits(&self, node_id: Option<String>) {
        let Some(node_id) = node_id else { return };
        let views = self.registry.scan_views();
        let view = views.iter().find(|view| view.id == node_id).unwrap();
        for share in [view.sandboxes, view.cpu_millis, view.memory_bytes] {
            assert!(share.limit.is_none_or(|limit| share.used <= limit), "{share:?} on {node_id}");
        }
    }

    /// Everything that can be asked is answered as a look at everything answers it.
    fn compare(&self, kind: Kind) {
        let registry = &self.registry;
        let views = registry.scan_views();
        assert_eq!(registry.known().index.views(), views);
        let spec = kind.wanted();
        let wanted = view::wanted(&spec);
        self.compare_choice(&wanted, &views);
        self.compare_refusals(&wanted, &views);
        assert_eq!(registry.used(), registry.scan_used());
        assert_eq!(registry.warm_profiles(), registry.scan_warm_profiles());
        let profile = view::profile(&spec);
        let warm = registry.warm(&profile, &spec, CROWDED);
        assert_eq!(warm, registry.scan_warm(&profile, &spec, CROWDED));
        for n in 0..SANDBOXES {
            assert_eq!(registry.node_of(&sandbox_id(n)), registry.scan_node_of(&sandbox_id(n)));
        }
    }

    fn compare_choice(&self, wanted: &Wanted, views: &[placement::NodeView]) {
        let mut known = self.registry.known();
        let mut avoid = Vec::new();
        for expected in placement::choose(wanted, views).candidates {
            assert_eq!(known.index.best(wanted, &avoid), Some(expected.as_str()), "but for {avoid:?}");
            avoid.push(expected);
        }
        assert_eq!(known.index.best(wanted, &avoid), None);
        let could_run = views.iter().filter(|view| placement::could_run(wanted, view));
        assert_eq!(known.index.could_run(wanted, &[]), could_run.count() > 0);
    }

    /// Where nobody takes it, each node says why, and whether that changes.
    fn compare_refusals(&self, wanted: &Wanted, views: &[placement::NodeView]) {
        let choice = placement::choose(wanted, views);
        if !choice.candidates.is_empty() {
            return;
        }
        let refusals = self.registry.refusals(wanted, Vec::new(), None);
        assert_eq!((&refusals.named, refusals.others), (&choice.refusals, 0));
        let (error, may_change) = (Error::refused("id", refusals), |one: &placement::Refusal| one.may_change);
        let is_never = !choice.refusals.is_empty() && !choice.refusals.iter().any(may_change);
        assert_eq!(matches!(error, Error::NoSuitableNode { .. }), is_never);
    }
}

#[test]
fn who_waits_looks_when_there_is_more_room_and_not_at_each_report() {
    let bench = Bench::new();
    let says = Says {
        max_sandboxes: 1,
        capacity: None,
        handed_out: 0,
        languages: 1,
        packages: 0,
        image: 0,
        zone: 0,
        draining: false,
        moved: false,
    };
    let report = |says: &Says| drop(bench.registry.report(says.node(0), bench.link.clone()).unwrap());
    let is_told = || bench.registry.room().notified().now_or_never().is_some();
    report(&says);
    assert!(is_told(), "there is a node");
    bench.registry.opened("node-0", Vec::new());
    is_told();
    report(&says);
    assert!(!is_told(), "nothing is new");
    bench.clock.advance(Duration::from_secs(6));
    report(&says);
    assert!(is_told(), "it was silent, and is there again");
    report(&Says { draining: true, ..says.clone() });
    assert!(!is_told(), "it takes no more");
    report(&Says { max_sandboxes: 2, ..says });
    assert!(is_told(), "it takes more");
}

#[test]
fn a_clock_that_was_ahead_for_a_moment_keeps_no_node_healthy() {
    let start = DateTime::from_timestamp(2_000_000_000, 0).unwrap();
    let clock = Arc::new(Moved(Mutex::new(start)));
    let registry = Registry::new(Config::default(), Arc::<Moved>::clone(&clock), CancellationToken::new());
    let link = Link::local(tonic::service::Routes::default().into_axum_router());
    let node = || Node { node_id: "a".to_owned(), ..Node::default() };
    *clock.0.lock().unwrap() = start + TimeDelta::days(1);
    drop(registry.report(node(), link.clone()).unwrap());
    *clock.0.lock().unwrap() = start;
    drop(registry.report(node(), link).unwrap());
    assert_eq!(registry.healthy_nodes(), ["a"]);
    *clock.0.lock().unwrap() = start + TimeDelta::minutes(1);
    assert_eq!(registry.healthy_nodes(), [""; 0]);
}

/// A clock that can go back.
#[derive(Debug)]
struct Moved(Mutex<DateTime<Utc>>);

impl Clock for Moved {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock().unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is reported, sent, told, claimed, lost, forgotten, and however time goes.
    #[test]
    fn the_registry_answers_what_a_look_at_everything_answers(
        events in prop::collection::vec((event(), kind()), 1..60),
    ) {
        let bench = Bench::new();
        for (event, asked) in &events {
            bench.happen(event);
            bench.compare(*asked);
        }
    }
}
