//! From what agents tell to what placement looks at.

use std::{collections::HashMap, sync::Arc};

use prost::Message;
use sandmesh_proto::{
    agent::{Node, Sandbox, SandboxSpec, sandbox::State},
    executor::Resources,
};

use crate::{
    index::Facts,
    placement::{Language, Promised, Share, Wanted},
    pool::{Limits, Profile},
    shelf::Kind,
    tally::Counted,
};

/// A label of a sandbox that begins so asks for a label of its node.
const NODE_LABEL: &str = "node/";

/// What a sandbox asks of its node.
pub(crate) fn wanted(spec: &SandboxSpec) -> Wanted {
    let resources = spec.resources.unwrap_or_default();
    let node_label =
        |(key, value): (&String, &String)| Some((key.strip_prefix(NODE_LABEL)?.to_owned(), value.clone()));
    Wanted {
        cpu_millis: resources.cpu_millis.into(),
        memory_bytes: resources.memory_bytes,
        language: Language(spec.language),
        node_labels: spec.labels.iter().filter_map(node_label).collect(),
        image: spec.image.clone(),
        packages: spec.packages.as_ref().map(|set| set.fingerprint.clone()).unwrap_or_default(),
        template_id: spec.template_id.clone(),
    }
}

/// What a node says of itself that sandboxes do not change.
pub(crate) fn facts(node: &Node) -> Facts {
    Facts {
        languages: node.languages.iter().copied().map(Language).collect(),
        images: node.images.clone(),
        package_sets: node.package_sets.iter().filter(|set| !set.is_empty()).cloned().collect(),
        labels: node.labels.clone().into_iter().collect(),
    }
}

/// What counts of a sandbox.
pub(crate) fn counted(sandbox: &Sandbox) -> Counted<'_> {
    let (cpu_millis, memory_bytes) = sandbox.spec.as_ref().map(size).unwrap_or_default();
    let state = sandbox.state();
    let runs = sandbox.spec.as_ref().filter(|_| state == State::Running);
    Counted {
        cpu_millis,
        memory_bytes,
        is_live: matches!(state, State::Creating | State::Running),
        runs: runs.map(|spec| spec.template_id.as_str()),
        is_warm: sandbox.spec.as_ref().is_some_and(is_warm),
    }
}

/// Thousandths of a core and bytes of memory.
pub(crate) fn size(spec: &SandboxSpec) -> (u64, u64) {
    let resources = spec.resources.unwrap_or_default();
    (resources.cpu_millis.into(), resources.memory_bytes)
}

/// Whether no session has it.
pub(crate) fn is_warm(spec: &SandboxSpec) -> bool {
    spec.session_id.is_empty()
}

/// Whose pool it is of, or would be.
pub(crate) fn profile(spec: &SandboxSpec) -> Profile {
    let limits = limits(spec.resources.unwrap_or_default());
    Profile { template_id: spec.template_id.clone(), limits }
}

/// Limits as they are on the wire.
pub(crate) fn limits(resources: Resources) -> Limits {
    let Resources { cpu_millis, memory_bytes, disk_bytes, max_processes } = resources;
    Limits { cpu_millis, memory_bytes, disk_bytes, max_processes }
}

/// The same on the wire.
pub(crate) fn resources(limits: Limits) -> Resources {
    let Limits { cpu_millis, memory_bytes, disk_bytes, max_processes } = limits;
    Resources { cpu_millis, memory_bytes, disk_bytes, max_processes }
}

/// What a node reports to have handed out.
pub(crate) fn reported(node: &Node) -> Promised {
    let allocated = node.allocated.unwrap_or_default();
    Promised {
        sandboxes: node.sandboxes.into(),
        cpu_millis: allocated.cpu_millis.into(),
        memory_bytes: allocated.memory_bytes,
    }
}

/// How much a node has of everything (sandboxes, thousandths of a core, bytes of memory), where so much is
/// promised.
pub(crate) fn shares(node: &Node, promised: Promised) -> [Share; 3] {
    let capacity = node.capacity.unwrap_or_default();
    let limited = |limit: u64, used: u64| Share { limit: (limit > 0).then_some(limit), used };
    [
        Share { limit: Some(node.max_sandboxes.into()), used: promised.sandboxes },
        limited(capacity.cpu_millis.into(), promised.cpu_millis),
        limited(capacity.memory_bytes, promised.memory_bytes),
    ]
}

/// What sandboxes have in common of which one can be given for another: everything but for whom it is and until
/// when. Packages can be shown later, and nodes do not tell them.
pub(crate) fn kind(spec: &SandboxSpec) -> Kind {
    let alike = SandboxSpec {
        labels: HashMap::new(),
        session_id: String::new(),
        expires_at: None,
        restarts: 0,
        packages: None,
        ..spec.clone()
    };
    Arc::from(alike.encode_to_vec())
}
