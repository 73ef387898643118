//! The nodes of a simulation, as they are, whatever the scheduler knows: each has the last word on what it takes.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, rngs::StdRng};
use sandmesh_proto::{
    agent::{Node, Sandbox, SandboxSpec, sandbox::State},
    executor::{Language, Resources},
};

use crate::view;

pub(super) const GIB: u64 = 1 << 30;

/// A node.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) id: String,
    max_sandboxes: u32,
    capacity: Resources,
    zone: u32,
    pub(super) images: BTreeSet<String>,
    pub(super) draining: bool,
    /// It neither reports nor answers.
    pub(super) is_down: bool,
    pub(super) sandboxes: BTreeMap<String, Sandbox>,
}

impl Agent {
    /// Small ones, middle ones and large ones, and every image with even odds.
    pub(super) fn new(n: u32, images: &[String], random: &mut StdRng) -> Self {
        let size = n % 3;
        let capacity =
            Resources { cpu_millis: 8_000 << size, memory_bytes: (16 * GIB) << size, ..Resources::default() };
        Self {
            id: format!("node-{n:05}"),
            max_sandboxes: 8 + 4 * size,
            capacity,
            zone: random.random_range(0..3),
            images: images.iter().filter(|_| random.random_bool(0.5)).cloned().collect(),
            draining: false,
            is_down: false,
            sandboxes: BTreeMap::new(),
        }
    }

    /// What it reports.
    pub(super) fn node(&self) -> Node {
        let (cpu_millis, memory_bytes) = self.handed_out();
        Node {
            node_id: self.id.clone(),
            max_sandboxes: self.max_sandboxes,
            sandboxes: u32::try_from(self.sandboxes.len()).unwrap_or(u32::MAX),
            capacity: Some(self.capacity),
            allocated: Some(Resources {
                cpu_millis: u32::try_from(cpu_millis).unwrap_or(u32::MAX),
                memory_bytes,
                ..Resources::default()
            }),
            images: self.images.iter().cloned().collect(),
            languages: vec![Language::Python.into(), Language::Javascript.into(), Language::Shell.into()],
            draining: self.draining,
            labels: [("zone".to_owned(), self.zone.to_string())].into(),
            ..Node::default()
        }
    }

    fn handed_out(&self) -> (u64, u64) {
        let specs = self.sandboxes.values().filter_map(|sandbox| sandbox.spec.as_ref());
        specs.map(view::size).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Whether there is room for one more.
    pub(super) fn takes(&self, spec: &SandboxSpec) -> bool {
        let ((cpu, memory), (more_cpu, more_memory)) = (self.handed_out(), view::size(spec));
        !self.is_down
            && !self.draining
            && self.sandboxes.len() < self.max_sandboxes as usize
            && cpu + more_cpu <= u64::from(self.capacity.cpu_millis)
            && memory + more_memory <= self.capacity.memory_bytes
    }

    /// Whether more is on it than it has.
    pub(super) fn is_over(&self) -> bool {
        let (cpu, memory) = self.handed_out();
        self.sandboxes.len() > self.max_sandboxes as usize
            || cpu > u64::from(self.capacity.cpu_millis)
            || memory > self.capacity.memory_bytes
    }

    /// How many it takes.
    pub(super) fn places(&self) -> u32 {
        self.max_sandboxes
    }

    /// Makes a sandbox; returns it as it is told.
    pub(super) fn make(&mut self, id: &str, spec: &SandboxSpec, state: State) -> Sandbox {
        let sandbox = Sandbox {
            sandbox_id: id.to_owned(),
            node_id: self.id.clone(),
            spec: Some(spec.clone()),
            state: state.into(),
            ..Sandbox::default()
        };
        self.sandboxes.insert(id.to_owned(), sandbox.clone());
        sandbox
    }

    /// Removes a sandbox; returns it as that is told.
    pub(super) fn remove(&mut self, id: &str) -> Option<Sandbox> {
        Some(Sandbox { state: State::Deleted.into(), ..self.sandboxes.remove(id)? })
    }
}
