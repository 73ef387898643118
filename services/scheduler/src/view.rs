//! From what is known of a node to what placement looks at.

use sandmesh_proto::{
    agent::{Sandbox, SandboxSpec, sandbox::State},
    executor::Resources,
};

use crate::{
    placement::{Language, NodeView, Share, Wanted},
    registry::Entry,
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
        template_id: spec.template_id.clone(),
    }
}

/// A node with what is `coming` to it. Where its sandboxes are not followed its own report must do.
pub(crate) fn of<'a>(
    entry: &Entry,
    coming: impl Iterator<Item = &'a SandboxSpec>,
    healthy: bool,
) -> NodeView {
    let node = &entry.node;
    let mut used = match entry.followed {
        true => Used::of(entry),
        false => Used::reported(entry),
    };
    for spec in coming {
        used.sandboxes += 1;
        used.add(spec.resources.as_ref());
    }
    let capacity = node.capacity.unwrap_or_default();
    let limited = |limit: u64, used: u64| Share { limit: (limit > 0).then_some(limit), used };
    NodeView {
        id: node.node_id.clone(),
        healthy,
        draining: node.draining,
        sandboxes: Share { limit: Some(node.max_sandboxes.into()), used: used.sandboxes },
        cpu_millis: limited(capacity.cpu_millis.into(), used.cpu_millis),
        memory_bytes: limited(capacity.memory_bytes, used.memory_bytes),
        languages: node.languages.iter().copied().map(Language).collect(),
        images: node.images.clone(),
        labels: node.labels.clone().into_iter().collect(),
        templates: specs(entry).map(|spec| spec.template_id.clone()).collect(),
        warm: specs(entry)
            .filter(|spec| spec.session_id.is_empty())
            .map(|spec| spec.template_id.clone())
            .collect(),
    }
}

/// The specs of the sandboxes that run.
fn specs(entry: &Entry) -> impl Iterator<Item = &SandboxSpec> {
    let running = entry.sandboxes.values().filter(|sandbox| sandbox.state() == State::Running);
    running.filter_map(|sandbox| sandbox.spec.as_ref())
}

#[derive(Default)]
struct Used {
    sandboxes: u64,
    cpu_millis: u64,
    memory_bytes: u64,
}

impl Used {
    /// A dead sandbox takes a place until it is deleted, and nothing else.
    fn of(entry: &Entry) -> Self {
        let mut used = Self { sandboxes: entry.sandboxes.len() as u64, ..Self::default() };
        let live = |sandbox: &&Sandbox| matches!(sandbox.state(), State::Creating | State::Running);
        for sandbox in entry.sandboxes.values().filter(live) {
            used.add(sandbox.spec.as_ref().and_then(|spec| spec.resources.as_ref()));
        }
        used
    }

    fn reported(entry: &Entry) -> Self {
        let mut used = Self { sandboxes: entry.node.sandboxes.into(), ..Self::default() };
        used.add(entry.node.allocated.as_ref());
        used
    }

    fn add(&mut self, resources: Option<&Resources>) {
        let resources = resources.copied().unwrap_or_default();
        self.cpu_millis += u64::from(resources.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(resources.memory_bytes);
    }
}
