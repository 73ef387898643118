//! What operators do with nodes and look at: draining, sandboxes in pages, and the logs of executors.

use futures::{Stream, StreamExt};
use sandmesh_mesh::RoleName;
use sandmesh_proto::{
    agent::{DrainNodeRequest, Node, ReadSandboxLogRequest, ResumeNodeRequest, Sandbox},
    scheduler::{NodeStatus, RemoveNodeRequest, node_service_client::NodeServiceClient},
};
use tonic::{Code, Request, Status};

use super::{Service, told};
use crate::{Error, follower::agent, registry::Place};

/// Which sandboxes are listed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    /// Only those on this node; empty: on all.
    pub(crate) node_id: String,
    /// Only those of this session; empty: of all.
    pub(crate) session_id: String,
}

/// Which part of a list is wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    /// Only what comes after this.
    pub(crate) after: Place,
    /// Skip this many.
    pub(crate) offset: usize,
    /// At most this many.
    pub(crate) limit: usize,
}

/// A page of sandboxes, ordered by id and node.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) sandboxes: Vec<Sandbox>,
    /// Whether there are more.
    pub(crate) more: bool,
    /// How many match in all.
    pub(crate) total: u64,
    /// The nodes whose sandboxes are missing.
    pub(crate) unreachable: Vec<String>,
}

impl Filter {
    fn takes(&self, sandbox: &Sandbox) -> bool {
        let session_id = sandbox.spec.as_ref().map(|spec| spec.session_id.as_str()).unwrap_or_default();
        (self.node_id.is_empty() || self.node_id == sandbox.node_id)
            && (self.session_id.is_empty() || self.session_id == session_id)
    }
}

impl Service {
    /// One node.
    ///
    /// # Errors
    /// `NodeNotFound`.
    pub(crate) fn node(&self, node_id: &str) -> Result<NodeStatus, Error> {
        self.registry.status(node_id).ok_or_else(|| Error::NodeNotFound(node_id.to_owned()))
    }

    /// Has a node take no new sandboxes, or take some again. The node itself remembers it.
    ///
    /// # Errors
    /// `NodeNotFound`, `NodeUnavailable`, or what the node says.
    pub(crate) async fn set_draining(&self, node_id: &str, draining: bool) -> Result<NodeStatus, Error> {
        let link = self.registry.link(node_id).ok_or_else(|| Error::NodeNotFound(node_id.to_owned()))?;
        let limit = self.config.call_timeout.0;
        let node = if draining {
            let mut request = Request::new(DrainNodeRequest {});
            request.set_timeout(limit);
            agent(link).drain_node(request).await.map(|answer| answer.into_inner().node)
        } else {
            let mut request = Request::new(ResumeNodeRequest {});
            request.set_timeout(limit);
            agent(link).resume_node(request).await.map(|answer| answer.into_inner().node)
        };
        let node = node.map_err(|error| told(node_id, error))?;
        tracing::info!(node.id = node_id, draining, "draining of a node was decided");
        // Not at its next report: what is placed from now on obeys. A node speaks of itself.
        let node = node.map(|node| Node { node_id: node_id.to_owned(), ..node });
        let status = node.and_then(|node| self.registry.told(node));
        status.ok_or_else(|| Error::NodeNotFound(node_id.to_owned()))
    }

    /// Takes a node that joined, or is lost, out of the mesh, in every process of the scheduler unless `only_here`.
    ///
    /// # Errors
    /// `NodeNotFound`, `NodePresent`, `Notes`, `NodeUnavailable` (another process of the scheduler).
    pub(crate) async fn remove_node(&self, node_id: &str, only_here: bool) -> Result<(), Error> {
        let was_member = self.members.remove(node_id, self.mesh.clock().now())?;
        let status = self.node(node_id);
        match &status {
            Ok(status) if !status.lost && !was_member => return Err(Error::NodePresent(node_id.to_owned())),
            Err(_) if !was_member => return status.map(drop),
            _ => {}
        }
        tracing::warn!(node.id = node_id, "a node was removed");
        self.registry.give_up(node_id);
        if only_here {
            return Ok(());
        }
        let links = self.mesh.links(RoleName::Scheduler).unwrap_or_default();
        for link in links.into_iter().filter(|link| !link.is_here()) {
            let mut request =
                Request::new(RemoveNodeRequest { node_id: node_id.to_owned(), only_here: true });
            request.set_timeout(self.config.call_timeout.0);
            match NodeServiceClient::new(link).remove_node(request).await {
                Err(status) if status.code() != Code::NotFound => return Err(told(node_id, status)),
                _ => {}
            }
        }
        Ok(())
    }

    /// A page of the sandboxes that are known.
    pub(crate) fn list_for_operators(&self, filter: &Filter, page: &Page) -> Listed {
        let takes = |sandbox: &Sandbox| filter.takes(sandbox);
        // What is skipped is read, too: an offset counts in pages that people turn.
        let (mut sandboxes, more) =
            self.registry.sandboxes(&page.after, page.offset.saturating_add(page.limit), takes);
        sandboxes.drain(..page.offset.min(sandboxes.len()));
        let (total, unreachable) = (self.registry.count(takes), self.registry.unreachable());
        Listed { sandboxes, more, total, unreachable }
    }

    /// The end of the log of a sandbox's executor, and what is added, if `follow`.
    ///
    /// # Errors
    /// `NotFound`, `NodeUnavailable`, or what the node says.
    pub(crate) async fn read_log(
        &self,
        id: &str,
        tail_bytes: u32,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<bytes::Bytes, Status>> + Send + 'static, Error> {
        let node_id = self.get(id, "").await?.node_id;
        let link = self.link(&node_id).map_err(|error| told(&node_id, error))?;
        let request = ReadSandboxLogRequest { sandbox_id: id.to_owned(), tail_bytes, follow };
        let parts = agent(link).read_sandbox_log(request).await.map_err(|error| told(&node_id, error))?;
        let stopped = self.mesh.tasks().token().cancelled_owned();
        Ok(parts.into_inner().map(|part| part.map(|part| part.data)).take_until(stopped))
    }
}
