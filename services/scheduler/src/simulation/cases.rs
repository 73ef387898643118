//! How long a decision takes in a registry of many nodes and sandboxes: the usual case, and those that mislead a
//! search.

use std::{hint::black_box, sync::Arc, time::Instant};

use chrono::DateTime;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sandmesh_mesh::{CancellationToken, Link, ManualClock, timestamp};
use sandmesh_proto::{
    agent::{Node, Sandbox, SandboxSpec, sandbox::State},
    executor::{Language, Resources},
};

use crate::{Config, registry::Registry, view};

const GIB: u64 = 1 << 30;

/// How many images, templates and zones there are.
const IMAGES: u32 = 40;
const TEMPLATES: u32 = 20;
const ZONES: u32 = 3;

/// When all this is.
const NOW: i64 = 2_000_000_000;

/// Decisions of one kind.
#[derive(Debug, Clone)]
pub struct Case {
    /// To choose it with.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// How long each took, in microseconds, ascending.
    pub micros: Vec<f64>,
}

/// What is asked for, and what the nodes are like then.
struct Asked {
    name: &'static str,
    what: &'static str,
    /// Makes what is unlike the usual of a node, by its number.
    node: fn(u32, &mut Node),
    /// How many sandboxes a node has.
    sandboxes: fn(u32) -> u32,
    /// What is unlike the usual of what is wanted.
    wanted: fn(&mut SandboxSpec),
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Somewhere with room; then it is told that it is there.
    Placed,
    /// Nowhere, and it is found out which warm one would make room, and why nobody takes it.
    Refused,
    /// One that is warm is taken; then it is told that it is the session's.
    Claimed,
}

/// The usual sandboxes of a node: ten of its sixteen.
const USUAL: fn(u32) -> u32 = |_| 10;
/// As many as it takes.
const FULL: fn(u32) -> u32 = |_| 16;

const CASES: [Asked; 9] = [
    Asked {
        name: "placement",
        what: "placement, 10 sandboxes for each node",
        node: |_, _| {},
        sandboxes: USUAL,
        wanted: |_| {},
        how: How::Placed,
    },
    Asked {
        name: "placement-claim",
        what: "the same where one that is warm is claimed",
        node: |_, _| {},
        sandboxes: USUAL,
        wanted: |_| {},
        how: How::Claimed,
    },
    Asked {
        name: "placement-full",
        what: "the same where everything is full, with the refusal",
        node: |_, _| {},
        sandboxes: FULL,
        wanted: |_| {},
        how: How::Refused,
    },
    Asked {
        name: "placement-label",
        what: "the same with a label that two nodes have",
        node: |n, node| {
            drop((n % 5000 == 77).then(|| node.labels.insert("gpu".to_owned(), "yes".to_owned())))
        },
        sandboxes: USUAL,
        wanted: |spec| drop(spec.labels.insert("node/gpu".to_owned(), "yes".to_owned())),
        how: How::Placed,
    },
    Asked {
        name: "placement-zone",
        what: "the same with a label that a third has, all full but one",
        node: |_, _| {},
        sandboxes: |n| if n.is_multiple_of(ZONES) && n != 6000 { 16 } else { 8 },
        wanted: |spec| drop(spec.labels.insert("node/zone".to_owned(), "0".to_owned())),
        how: How::Placed,
    },
    Asked {
        name: "placement-nowhere",
        what: "the same with an image that no node has",
        node: |_, _| {},
        sandboxes: USUAL,
        wanted: |spec| spec.image = "elsewhere".to_owned(),
        how: How::Placed,
    },
    Asked {
        name: "placement-everywhere",
        what: "the same with an image that every node has",
        node: |_, node| node.images.push("everywhere".to_owned()),
        sandboxes: USUAL,
        wanted: |spec| spec.image = "everywhere".to_owned(),
        how: How::Placed,
    },
    Asked {
        name: "placement-large",
        what: "the same with a sandbox that fits on two nodes",
        node: |n, node| {
            if n % 5000 == 77 {
                node.capacity = Some(Resources { cpu_millis: 64_000, memory_bytes: 512 * GIB, ..size(0) });
            }
        },
        sandboxes: USUAL,
        wanted: |spec| {
            spec.resources = Some(Resources { cpu_millis: 12_000, memory_bytes: 100 * GIB, ..size(0) })
        },
        how: How::Placed,
    },
    Asked {
        name: "placement-apart",
        what: "the same where half has the image and the other half the room",
        node: |n, node| {
            node.images.push("apart".to_owned());
            if n.is_multiple_of(2) {
                node.images.pop();
                node.capacity = Some(Resources { cpu_millis: 64_000, memory_bytes: 512 * GIB, ..size(0) });
            }
        },
        sandboxes: USUAL,
        wanted: |spec| {
            spec.image = "apart".to_owned();
            spec.resources = Some(Resources { cpu_millis: 12_000, memory_bytes: 100 * GIB, ..size(0) });
        },
        how: How::Placed,
    },
];

/// The name of each kind of decision, and what it is.
pub fn kinds() -> impl Iterator<Item = (&'static str, &'static str)> {
    CASES.iter().map(|asked| (asked.name, asked.what))
}

/// Measures so many decisions of each kind whose name `wants` takes, in a registry of so many nodes with ten
/// sandboxes each, or sixteen where it is full. What is placed goes again in between.
#[must_use]
pub fn cases(nodes: u32, samples: u32, wants: impl Fn(&str) -> bool) -> Vec<Case> {
    let wanted = CASES.iter().filter(|asked| wants(asked.name));
    wanted.map(|asked| Fleet::new(asked, nodes).measure(asked, samples)).collect()
}

struct Fleet {
    registry: Registry,
    random: StdRng,
    /// How many sandboxes there were so far.
    made: u32,
}

impl Fleet {
    fn new(asked: &Asked, nodes: u32) -> Self {
        let now = DateTime::from_timestamp(NOW, 0).unwrap_or_default();
        let config = Config { max_nodes: nodes, ..Config::default() };
        let registry = Registry::new(config, Arc::new(ManualClock::new(now)), CancellationToken::new());
        let link = Link::local(tonic::service::Routes::default().into_axum_router());
        let mut fleet = Self { registry, random: StdRng::seed_from_u64(1), made: 0 };
        for n in 0..nodes {
            let mut node = fleet.node(n);
            (asked.node)(n, &mut node);
            let node_id = node.node_id.clone();
            let _ = fleet.registry.report(node, link.clone());
            let sandboxes = (0..(asked.sandboxes)(n)).map(|_| fleet.sandbox(&node_id)).collect();
            fleet.registry.opened(&node_id, sandboxes);
        }
        fleet
    }

    /// Most have some of the images; every hostname is another.
    fn node(&mut self, n: u32) -> Node {
        let node_id = format!("node-{n:05}");
        let images = (0..12).map(|_| image(self.random.random_range(0..IMAGES))).collect();
        let labels = [("zone", (n % ZONES).to_string()), ("host", node_id.clone())];
        Node {
            node_id,
            max_sandboxes: 16,
            capacity: Some(Resources { cpu_millis: 32_000, memory_bytes: 64 * GIB, ..size(0) }),
            languages: vec![Language::Python.into(), Language::Javascript.into(), Language::Shell.into()],
            images,
            labels: labels.map(|(key, value)| (key.to_owned(), value)).into(),
            ..Node::default()
        }
    }

    /// One in twenty is warm.
    fn sandbox(&mut self, node_id: &str) -> Sandbox {
        self.made += 1;
        let mut spec = self.spec();
        if self.random.random_ratio(1, 20) {
            spec.session_id.clear();
        }
        let created_at = DateTime::from_timestamp(NOW - self.random.random_range(0..3600), 0).map(timestamp);
        let (sandbox_id, node_id) = (self.id(), node_id.to_owned());
        Sandbox {
            sandbox_id,
            node_id,
            created_at,
            spec: Some(spec),
            state: State::Running.into(),
            ..Sandbox::default()
        }
    }

    fn id(&self) -> String {
        format!("sbx_{:016x}", u64::from(self.made).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn spec(&mut self) -> SandboxSpec {
        let template = self.random.random_range(0..TEMPLATES);
        SandboxSpec {
            image: image(template),
            resources: Some(size(template % 3)),
            language: Language::Python.into(),
            session_id: "ses_0000000000000000".to_owned(),
            template_id: format!("template-{template}"),
            ..SandboxSpec::default()
        }
    }

    fn measure(mut self, asked: &Asked, samples: u32) -> Case {
        let decide = |fleet: &mut Self| {
            fleet.made += 1;
            let mut spec = fleet.spec();
            (asked.wanted)(&mut spec);
            match asked.how {
                How::Placed => fleet.place(&spec),
                How::Refused => fleet.refuse(&spec),
                How::Claimed => fleet.claim(&spec),
            }
        };
        // The first has the tree made.
        decide(&mut self);
        let mut micros: Vec<f64> = (0..samples).map(|_| decide(&mut self)).collect();
        micros.sort_by(f64::total_cmp);
        Case { name: asked.name, what: asked.what, micros }
    }

    fn place(&mut self, spec: &SandboxSpec) -> f64 {
        let id = self.id();
        let sandbox = Sandbox { sandbox_id: id.clone(), spec: Some(spec.clone()), ..Sandbox::default() };
        let began = Instant::now();
        let wanted = view::wanted(spec);
        let node_id = self.registry.reserve(&id, spec, (&wanted, &[])).unwrap_or_default();
        let there = Sandbox { node_id: node_id.clone(), state: State::Running.into(), ..sandbox };
        self.registry.changed(&node_id, there.clone());
        let took = micros(began);
        self.registry.changed(&node_id, Sandbox { state: State::Deleted.into(), ..there });
        took
    }

    fn refuse(&mut self, spec: &SandboxSpec) -> f64 {
        let id = self.id();
        let began = Instant::now();
        let wanted = view::wanted(spec);
        black_box(self.registry.reserve(&id, spec, (&wanted, &[])));
        let given_up = self.registry.give_up_warm(&wanted);
        black_box(self.registry.could_run(&wanted, &[]));
        black_box(self.registry.refusals(&wanted, Vec::new(), None));
        let took = micros(began);
        given_up.iter().for_each(|place| self.registry.give_to_claims(place));
        took
    }

    /// Another is warm in its place afterwards.
    fn claim(&mut self, spec: &SandboxSpec) -> f64 {
        let id = self.id();
        let sandbox = Sandbox { sandbox_id: id.clone(), spec: Some(spec.clone()), ..Sandbox::default() };
        let began = Instant::now();
        let Some((warm_id, node_id)) = self.registry.take_warm(spec) else { return micros(began) };
        self.registry.bind(&id, &node_id, spec);
        let running = |sandbox| Sandbox { node_id: node_id.clone(), state: State::Running.into(), ..sandbox };
        let there = running(sandbox);
        let gone = Sandbox { sandbox_id: warm_id, state: State::Deleted.into(), ..there.clone() };
        self.registry.changed(&node_id, there.clone());
        self.registry.changed(&node_id, gone);
        let took = micros(began);
        self.registry.changed(&node_id, Sandbox { state: State::Deleted.into(), ..there.clone() });
        self.made += 1;
        let warm = SandboxSpec { session_id: String::new(), ..spec.clone() };
        self.registry.changed(&node_id, Sandbox { sandbox_id: self.id(), spec: Some(warm), ..there });
        took
    }
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

fn image(n: u32) -> String {
    format!("registry.example/images/template-{n}:1")
}

/// Small, middle, large.
fn size(n: u32) -> Resources {
    let cpu_millis = 500 << n;
    Resources { cpu_millis, memory_bytes: (GIB / 2) << n, disk_bytes: GIB, max_processes: 100 }
}
