//! Nodes and sandboxes as they are printed.

use std::collections::BTreeMap;

use sandmesh_proto::{
    agent::Sandbox,
    scheduler::{CreateJoinTokenResponse, NodeStatus},
};
use serde::Serialize;

use super::{size, some, time, word};

/// A node.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct NodeView {
    id: String,
    status: &'static str,
    draining: bool,
    runtime: String,
    sandboxes: u32,
    max_sandboxes: u32,
    memory_bytes: u64,
    memory_allocated_bytes: u64,
    labels: BTreeMap<String, String>,
    last_seen_at: Option<String>,
}

impl From<NodeStatus> for NodeView {
    fn from(wire: NodeStatus) -> Self {
        let node = wire.node.unwrap_or_default();
        let status = match (wire.lost, wire.healthy) {
            (true, _) => "lost",
            (false, true) => "healthy",
            (false, false) => "silent",
        };
        Self {
            id: node.node_id,
            status,
            draining: node.draining,
            runtime: node.runtime,
            sandboxes: node.sandboxes,
            max_sandboxes: node.max_sandboxes,
            memory_bytes: node.capacity.unwrap_or_default().memory_bytes,
            memory_allocated_bytes: node.allocated.unwrap_or_default().memory_bytes,
            labels: node.labels.into_iter().collect(),
            last_seen_at: time(wire.last_seen_at.as_ref()),
        }
    }
}

impl NodeView {
    /// For people, a cell each.
    pub(in crate::cli) fn row(&self) -> [String; 6] {
        let status =
            if self.draining { format!("{}, draining", self.status) } else { self.status.to_owned() };
        [
            self.id.clone(),
            status,
            self.runtime.clone(),
            format!("{} of {}", self.sandboxes, self.max_sandboxes),
            format!("{} of {}", size(self.memory_allocated_bytes), size(self.memory_bytes)),
            self.last_seen_at.clone().unwrap_or_default(),
        ]
    }
}

/// A token to join with.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct JoinTokenView {
    pub(in crate::cli) token: String,
    pub(in crate::cli) expires_at: Option<String>,
    pub(in crate::cli) listen: String,
}

impl From<&CreateJoinTokenResponse> for JoinTokenView {
    fn from(wire: &CreateJoinTokenResponse) -> Self {
        let CreateJoinTokenResponse { token, expires_at, listen } = wire.clone();
        Self { token, expires_at: time(expires_at.as_ref()), listen }
    }
}

/// A sandbox.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct SandboxView {
    id: String,
    session_id: Option<String>,
    template_id: String,
    node_id: String,
    status: String,
    status_reason: Option<String>,
    restart_count: u32,
    created_at: Option<String>,
}

impl From<Sandbox> for SandboxView {
    fn from(sandbox: Sandbox) -> Self {
        let status = word(sandbox.state().as_str_name(), "STATE_");
        let spec = sandbox.spec.unwrap_or_default();
        Self {
            id: sandbox.sandbox_id,
            session_id: some(spec.session_id),
            template_id: spec.template_id,
            node_id: sandbox.node_id,
            status,
            status_reason: some(sandbox.reason),
            restart_count: spec.restarts,
            created_at: time(sandbox.created_at.as_ref()),
        }
    }
}

impl SandboxView {
    /// For people, a cell each.
    pub(in crate::cli) fn row(&self) -> [String; 6] {
        let or_dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        [
            self.id.clone(),
            or_dash(&self.session_id),
            self.node_id.clone(),
            self.status.clone(),
            self.restart_count.to_string(),
            or_dash(&self.created_at),
        ]
    }
}
