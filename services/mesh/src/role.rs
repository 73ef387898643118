//! What a role is.

use std::{fmt, str::FromStr, sync::Arc};

use futures::future::BoxFuture;
use sandmesh_proto::health::Probe;
use serde::{Deserialize, Serialize};

use crate::{ServerBuilder, Tasks};

/// The roles of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleName {
    /// Sessions and executions.
    Session,
    /// Templates.
    Template,
    /// Nodes and placement.
    Scheduler,
    /// The runtime of one node.
    Agent,
    /// Probes of sandboxes, nodes and dependencies.
    HealthProbe,
    /// Reconciling sandboxes with sessions.
    StateSync,
    /// REST, gRPC-web and gRPC for clients.
    Gateway,
}

impl RoleName {
    /// Every role, in the order in which a node starts them.
    pub const ALL: [Self; 7] = [
        Self::Template,
        Self::Scheduler,
        Self::Agent,
        Self::Session,
        Self::HealthProbe,
        Self::StateSync,
        Self::Gateway,
    ];

    /// The name, as in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Template => "template",
            Self::Scheduler => "scheduler",
            Self::Agent => "agent",
            Self::HealthProbe => "health-probe",
            Self::StateSync => "state-sync",
            Self::Gateway => "gateway",
        }
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is not the name of a role.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a role; the roles are session, template, scheduler, agent, health-probe, state-sync, gateway"
)]
pub struct UnknownRole(String);

impl FromStr for RoleName {
    type Err = UnknownRole;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|role| role.as_str() == word).ok_or_else(|| UnknownRole(word.into()))
    }
}

/// A group of gRPC services with its background tasks. Making one may fail and has no side effect beyond
/// opening its store; only [`Role::start`] sets things in motion.
pub trait Role: fmt::Debug + Send + Sync + 'static {
    /// Which role this is.
    fn name(&self) -> RoleName;

    /// Adds its services to the server of the node.
    fn register(self: Arc<Self>, server: &mut ServerBuilder);

    /// Spawns its background tasks.
    fn start(self: Arc<Self>, tasks: &Tasks);

    /// Measures its own dependencies now. While one that it calls essential is not well, its services say
    /// in `grpc.health.v1` that they do not serve.
    fn probe(&self) -> BoxFuture<'_, Vec<Probe>>;
}
