//! Nodes that report: who may, what of, and what comes of it.

use std::{sync::Arc, time::Duration};

use sandmesh_mesh::{FieldViolation, tls::Peer};
use sandmesh_proto::agent::Node;

use super::Service;
use crate::{Error, follower::Follower, join::check_speaker};

/// How many images, sets of packages, labels and languages a node may tell of.
const MOST_FACTS: usize = 4096;

/// The label of a node that is its id.
const NAME: &str = "name";

impl Service {
    /// Whether who reports a node may do so: see [`check_speaker`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn check_speaker(&self, peer: Option<&Peer>, node: &Node) -> Result<(), Error> {
        check_speaker(peer, node, &self.members, self.mesh.clock().now())
    }

    /// Takes the report of a node, and follows its sandboxes when it is new. Returns how soon it is to report
    /// again.
    ///
    /// # Errors
    /// `Invalid`, `TooManyNodes`.
    pub(crate) fn register(&self, mut node: Node) -> Result<Duration, Error> {
        if node.node_id.is_empty() {
            return Err(Error::Invalid(FieldViolation::new(
                "node.node_id",
                "missing",
                "a node id is required",
            )));
        }
        let facts = [node.images.len(), node.package_sets.len(), node.labels.len(), node.languages.len()];
        if facts.into_iter().any(|count| count > MOST_FACTS) {
            let problem =
                format!("must have at most {MOST_FACTS} images, sets of packages, labels and languages");
            return Err(Error::Invalid(FieldViolation::new("node", "value_error", problem)));
        }
        // That is known, whatever it says.
        node.labels.insert(NAME.to_owned(), node.node_id.clone());
        let link = self.dial(&node.endpoint).map_err(|error| {
            Error::Invalid(FieldViolation::new("node.endpoint", "value_error", error.to_string()))
        })?;
        let (node_id, place) = (node.node_id.clone(), node.endpoint.clone());
        if let Some(stop) = self.registry.report(node, link.clone())? {
            tracing::info!(node.id = node_id, endpoint = place, "node registered");
            let registry = Arc::clone(&self.registry);
            let follower =
                Follower { registry, node_id, link, call_timeout: self.config.call_timeout.0, stop };
            self.mesh.tasks().spawn_detached("follow node", follower.run());
            self.memory.keep(self.registry.places());
        }
        Ok(self.config.heartbeat_interval.0)
    }

    /// Declares nodes lost that are silent for too long, until the scheduler stops.
    pub(crate) async fn watch_nodes(self: Arc<Self>) {
        let stopped = self.mesh.tasks().token();
        let pause = || tokio::time::sleep(self.config.heartbeat_interval.0);
        while stopped.run_until_cancelled(pause()).await.is_some() {
            for node_id in self.registry.declare_lost() {
                tracing::warn!(node.id = node_id, silent_for = %self.config.node_lost_after, "node lost");
            }
            self.memory.keep(self.registry.places());
        }
    }
}
