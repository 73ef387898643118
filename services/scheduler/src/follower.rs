//! Following the sandboxes of one node: the watch that the scheduler holds open at its agent, and opens
//! again whenever it ends.

use std::{sync::Arc, time::Duration};

use sandmesh_mesh::{CancellationToken, Link, MAX_MESSAGE_BYTES, is_elsewhere};
use sandmesh_proto::agent::{
    ListSandboxesRequest, Sandbox, WatchSandboxesRequest, agent_service_client::AgentServiceClient,
};
use tonic::{Request, Status};

use crate::registry::{MAX_SANDBOXES, Registry};

/// How soon a watch that ended is opened again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The client of an agent, with the limits of the mesh.
pub(crate) fn agent(link: Link) -> AgentServiceClient<Link> {
    AgentServiceClient::new(link)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// What a node tells of a sandbox, which is its own. One that joined from another machine does not say where its
/// executors are: they are reached through it.
pub(crate) fn located(link: &Link, node_id: &str, mut sandbox: Sandbox) -> Sandbox {
    if is_elsewhere(link.target()) {
        node_id.clone_into(&mut sandbox.node_id);
        if !sandbox.endpoint.is_empty() {
            sandbox.endpoint = format!("{}/{}", link.target(), sandbox.sandbox_id);
        }
    }
    sandbox
}

/// Follows a node until `stop`.
pub(crate) struct Follower {
    pub(crate) registry: Arc<Registry>,
    pub(crate) node_id: String,
    pub(crate) link: Link,
    pub(crate) call_timeout: Duration,
    pub(crate) stop: CancellationToken,
}

impl Follower {
    pub(crate) async fn run(self) {
        let mut pause = PAUSES.0;
        loop {
            let mut opened = false;
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                ended = self.follow(&mut opened) => self.note_end(ended, opened),
            }
            self.registry.closed(&self.node_id);
            pause = if opened { PAUSES.0 } else { (pause * 2).min(PAUSES.1) };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One watch, from its opening to its end.
    async fn follow(&self, opened: &mut bool) -> Result<(), Status> {
        let mut agent = agent(self.link.clone());
        let open = agent.watch_sandboxes(WatchSandboxesRequest {});
        let open = tokio::time::timeout(self.call_timeout, open).await;
        let mut changes =
            open.map_err(|_| Status::deadline_exceeded("the watch did not open"))??.into_inner();
        // Listed after the watch was opened: no change is missed between the two.
        let sandboxes = self.list(&mut agent).await?;
        self.registry.opened(&self.node_id, sandboxes);
        *opened = true;
        while let Some(change) = changes.message().await? {
            if let Some(sandbox) = change.sandbox {
                self.registry.changed(&self.node_id, self.located(sandbox));
            }
        }
        Ok(())
    }

    async fn list(&self, agent: &mut AgentServiceClient<Link>) -> Result<Vec<Sandbox>, Status> {
        let (mut sandboxes, mut page_token) = (Vec::new(), String::new());
        loop {
            let mut request =
                Request::new(ListSandboxesRequest { page_size: 0, page_token: page_token.clone() });
            request.set_timeout(self.call_timeout);
            let page = agent.list_sandboxes(request).await?.into_inner();
            sandboxes.extend(page.sandboxes.into_iter().map(|sandbox| self.located(sandbox)));
            if sandboxes.len() > MAX_SANDBOXES
                || (page.next_page_token == page_token && !page_token.is_empty())
            {
                return Err(Status::out_of_range("the node lists more sandboxes than one can have"));
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(sandboxes);
            }
        }
    }

    fn located(&self, sandbox: Sandbox) -> Sandbox {
        located(&self.link, &self.node_id, sandbox)
    }

    fn note_end(&self, ended: Result<(), Status>, opened: bool) {
        match ended {
            Err(error) if opened => {
                tracing::warn!(node.id = self.node_id, error = error.message(), "watch of a node broke");
            }
            Err(error) => {
                tracing::debug!(
                    node.id = self.node_id,
                    error = error.message(),
                    "watch of a node did not open"
                );
            }
            Ok(()) => tracing::debug!(node.id = self.node_id, "watch of a node ended"),
        }
    }
}
