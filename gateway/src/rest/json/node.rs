//! Nodes in JSON.

use std::collections::BTreeMap;

use sandmesh_proto::{
    executor::{Language as WireLanguage, Resources},
    scheduler::{CreateJoinTokenRequest, CreateJoinTokenResponse, NodeStatus as Wire},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{filled, quantity, session::EffectiveIsolation, time};

/// The nodes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Nodes {
    /// Ordered by id.
    items: Vec<Node>,
    /// How many there are.
    total: u64,
}

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NodeHealth {
    /// It reports, and can be reached.
    Healthy,
    /// It has not reported for a while, or cannot be reached: nothing is placed on it.
    Silent,
    /// It has not reported for so long that its sandboxes count as dead.
    Lost,
}

/// A machine that hosts sandboxes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Node {
    /// Its id.
    pub(crate) id: String,
    /// How it is.
    status: NodeHealth,
    /// True while it takes no new sandboxes.
    draining: bool,
    /// What makes its sandboxes.
    runtime: String,
    /// How many sandboxes it has.
    sandboxes: u32,
    /// How many it takes.
    max_sandboxes: u32,
    /// What it can hand out in all; null is not counted, as it is shared.
    capacity: Amounts,
    /// What it has handed out.
    allocated: Amounts,
    /// The images that are present.
    images: Vec<String>,
    /// The languages that it can run.
    languages: Vec<String>,
    /// The isolation it gives.
    #[schema(required = true)]
    isolation: Option<EffectiveIsolation>,
    /// Its labels.
    labels: BTreeMap<String, String>,
    /// When it reported last.
    #[schema(required = true, format = DateTime)]
    last_seen_at: Option<String>,
}

/// Amounts of what a node has.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Amounts {
    /// Cores.
    #[schema(required = true, example = "4")]
    cpu: Option<String>,
    /// Memory.
    #[schema(required = true, example = "16Gi")]
    memory: Option<String>,
}

/// For how long machines may join.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct CreateJoinToken {
    /// Seconds, 60 to 2592000; left out: as the scheduler is configured.
    #[schema(example = 3600, nullable = false)]
    valid_for: Option<u32>,
}

/// A token that machines join with as nodes, as often as they like until it expires.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JoinToken {
    /// The token. A secret: whoever has it can have sandboxes placed on a machine of theirs.
    token: String,
    /// Until when it works.
    #[schema(required = true, format = DateTime)]
    expires_at: Option<String>,
    /// Where machines join, as the scheduler listens; they may know it by another name.
    listen: String,
}

impl From<CreateJoinToken> for CreateJoinTokenRequest {
    fn from(body: CreateJoinToken) -> Self {
        let seconds = |seconds| prost_types::Duration { seconds: i64::from(seconds), nanos: 0 };
        Self { valid_for: body.valid_for.map(seconds) }
    }
}

impl From<CreateJoinTokenResponse> for JoinToken {
    fn from(made: CreateJoinTokenResponse) -> Self {
        let expires_at = time(made.expires_at.as_ref());
        Self { token: made.token, expires_at, listen: made.listen }
    }
}

impl From<Vec<Wire>> for Nodes {
    fn from(nodes: Vec<Wire>) -> Self {
        let items: Vec<Node> = nodes.into_iter().map(Node::from).collect();
        Self { total: items.len() as u64, items }
    }
}

impl From<Wire> for Node {
    fn from(wire: Wire) -> Self {
        let node = wire.node.unwrap_or_default();
        let status = match (wire.lost, wire.healthy) {
            (true, _) => NodeHealth::Lost,
            (false, true) => NodeHealth::Healthy,
            (false, false) => NodeHealth::Silent,
        };
        Self {
            status,
            draining: node.draining,
            languages: node.languages().map(language).collect(),
            id: node.node_id,
            runtime: node.runtime,
            sandboxes: node.sandboxes,
            max_sandboxes: node.max_sandboxes,
            capacity: Amounts::counted(node.capacity.unwrap_or_default()),
            allocated: Amounts::all(node.allocated.unwrap_or_default()),
            images: node.images,
            isolation: node.isolation.map(EffectiveIsolation::from),
            labels: node.labels.into_iter().collect(),
            last_seen_at: time(wire.last_seen_at.as_ref()),
        }
    }
}

impl Amounts {
    fn all(resources: Resources) -> Self {
        let (cpu, memory) = (resources.cpu_millis, resources.memory_bytes);
        Self { cpu: Some(quantity::cpu_text(cpu)), memory: Some(quantity::size_text(memory)) }
    }

    fn counted(resources: Resources) -> Self {
        let all = Self::all(resources);
        Self {
            cpu: all.cpu.filter(|_| resources.cpu_millis > 0),
            memory: all.memory.filter(|_| resources.memory_bytes > 0),
        }
    }
}

fn language(language: WireLanguage) -> String {
    let word = language.as_str_name().trim_start_matches("LANGUAGE_").to_lowercase();
    filled(word).unwrap_or_default()
}
