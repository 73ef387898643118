//! Sees the world as [`crate::reconcile::plan`] needs it: asks the session role and the scheduler, whole
//! or not at all.
//!
//! The order matters. Sessions are listed before sandboxes, so a session that is seen had its sandbox
//! before the sandboxes were looked at; CREATING before RUNNING, so a session that moves on in between
//! is seen twice rather than not at all. Nodes come before sandboxes too: the sandboxes of a node that
//! registers in between would be missing. Sessions that sandboxes name and that were not listed are asked
//! about one by one: one that came up in between is found, and is not mistaken for one that is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    future::Future,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use sandmesh_mesh::{Link, MAX_MESSAGE_BYTES, datetime};
use sandmesh_proto::{
    agent::{self, sandbox},
    scheduler::{ListNodesRequest, ListSandboxesRequest, scheduler_service_client::SchedulerServiceClient},
    session::{
        self, GetSessionRequest, ListSessionsRequest, session::State,
        session_service_client::SessionServiceClient,
    },
};
use tonic::{Code, Response, Status};

use crate::{
    Config,
    reconcile::{Condition, Desired, Fate, Observed, Phase, Sandbox, Session},
};

/// How many pages a list may have; more means that the other side does not count them right.
const MAX_PAGES: usize = 10_000;
const SESSIONS_PER_PAGE: u32 = 200;
const SANDBOXES_PER_PAGE: u32 = 1000;

/// Something could not be listed, so the world was not seen.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot list {what}: {}", .source.message())]
pub(crate) struct Unseen {
    /// What was to be listed.
    pub(crate) what: String,
    /// What the other role said.
    #[source]
    pub(crate) source: Box<Status>,
}

fn unseen(what: impl Display) -> impl FnOnce(Status) -> Unseen {
    move |status| Unseen { what: what.to_string(), source: Box::new(status) }
}

/// Asks the other roles.
#[derive(Debug, Clone)]
pub(crate) struct Observer {
    sessions: Link,
    scheduler: Link,
    call_timeout: Duration,
    max_concurrent_calls: usize,
}

impl Observer {
    /// Asks `sessions` and `scheduler`.
    pub(crate) fn new(sessions: Link, scheduler: Link, config: &Config) -> Self {
        let (call_timeout, max_concurrent_calls) = (config.call_timeout.0, config.max_concurrent_calls);
        Self { sessions, scheduler, call_timeout, max_concurrent_calls }
    }

    /// Sees everything.
    ///
    /// # Errors
    /// When anything could not be listed to its end.
    pub(crate) async fn observe(&self) -> Result<(Desired, Observed), Unseen> {
        let mut sessions = BTreeMap::new();
        for (state, phase) in [(State::Creating, Phase::Creating), (State::Running, Phase::Running)] {
            for listed in self.sessions(state).await.map_err(unseen("sessions"))? {
                let session = session(listed, phase);
                sessions.insert(session.session_id.clone(), session);
            }
        }
        let (nodes, lost_nodes) = self.nodes().await.map_err(unseen("nodes"))?;
        let (sandboxes, unreachable) = self.sandboxes().await.map_err(unseen("sandboxes"))?;
        let unknown = sandboxes.iter().map(|sandbox| sandbox.session_id.clone());
        let unknown: BTreeSet<_> =
            unknown.filter(|id| !id.is_empty() && !sessions.contains_key(id)).collect();
        let fates = stream::iter(unknown)
            .map(async |id| Ok((id.clone(), self.fate(&id).await?)))
            .buffer_unordered(self.max_concurrent_calls)
            .try_collect()
            .await?;
        let desired = Desired { sessions: sessions.into_values().collect(), fates };
        let some_unreachable = !unreachable.is_empty();
        let nodes = nodes.difference(&unreachable).cloned().collect();
        Ok((desired, Observed { sandboxes, nodes, lost_nodes, some_unreachable }))
    }

    /// All sessions in a state.
    async fn sessions(&self, state: State) -> Result<Vec<session::Session>, Status> {
        let client =
            SessionServiceClient::new(self.sessions.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut sessions = Vec::new();
        let mut page_token = String::new();
        for _ in 0..MAX_PAGES {
            let request = ListSessionsRequest {
                state: state.into(),
                page_size: SESSIONS_PER_PAGE,
                page_token: page_token.clone(),
                ..ListSessionsRequest::default()
            };
            let page = self.call(client.clone().list_sessions(request)).await?;
            sessions.extend(page.sessions);
            if page.next_page_token.is_empty() {
                return Ok(sessions);
            }
            page_token = page.next_page_token;
        }
        Err(endless())
    }

    /// All sandboxes, and the nodes that could not be asked.
    async fn sandboxes(&self) -> Result<(Vec<Sandbox>, BTreeSet<String>), Status> {
        let client =
            SchedulerServiceClient::new(self.scheduler.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (mut sandboxes, mut unreachable) = (Vec::new(), BTreeSet::new());
        let mut page_token = String::new();
        for _ in 0..MAX_PAGES {
            let request =
                ListSandboxesRequest { page_size: SANDBOXES_PER_PAGE, page_token: page_token.clone() };
            let page = self.call(client.clone().list_sandboxes(request)).await?;
            sandboxes.extend(page.sandboxes.into_iter().filter_map(existing));
            unreachable.extend(page.unreachable_nodes);
            if page.next_page_token.is_empty() {
                return Ok((sandboxes, unreachable));
            }
            page_token = page.next_page_token;
        }
        Err(endless())
    }

    /// The nodes that are well, and those that are lost.
    async fn nodes(&self) -> Result<(BTreeSet<String>, BTreeSet<String>), Status> {
        let mut client = SchedulerServiceClient::new(self.scheduler.clone());
        let (mut healthy, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for status in self.call(client.list_nodes(ListNodesRequest {})).await?.nodes {
            let id = status.node.unwrap_or_default().node_id;
            match (status.lost, status.healthy) {
                (true, _) => drop(lost.insert(id)),
                (false, true) => drop(healthy.insert(id)),
                (false, false) => {}
            }
        }
        Ok((healthy, lost))
    }

    /// What became of a session that was not listed.
    async fn fate(&self, session_id: &str) -> Result<Fate, Unseen> {
        let mut client = SessionServiceClient::new(self.sessions.clone());
        let request = GetSessionRequest { session_id: session_id.to_owned() };
        match self.call(client.get_session(request)).await {
            Ok(found) => Ok(found.session.map_or(Fate::Lives, |session| match session.state() {
                State::Unspecified | State::Creating | State::Running => Fate::Lives,
                _ if session.releasing => Fate::Releasing,
                State::Completed | State::Failed | State::Timeout | State::Terminated => Fate::Ended,
            })),
            Err(status) if status.code() == Code::NotFound => Ok(Fate::Forgotten),
            Err(status) => Err(unseen(format!("session `{session_id}`"))(status)),
        }
    }

    /// Makes a call, for a bounded time.
    pub(crate) async fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        match tokio::time::timeout(self.call_timeout, call).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!("no answer within {:?}", self.call_timeout))),
        }
    }
}

fn endless() -> Status {
    Status::internal(format!("the list has more than {MAX_PAGES} pages"))
}

fn session(listed: session::Session, phase: Phase) -> Session {
    let session::Session { session_id, sandbox_id, node_id, recoveries_left, .. } = listed;
    Session { session_id, sandbox_id, node_id, phase, can_recover: recoveries_left > 0 }
}

/// A sandbox that exists; `None` for one that is destroyed.
fn existing(listed: agent::Sandbox) -> Option<Sandbox> {
    let condition = match listed.state() {
        sandbox::State::Unspecified | sandbox::State::Creating => Condition::Unsettled,
        sandbox::State::Running => Condition::Running,
        sandbox::State::Dead => Condition::Dead,
        sandbox::State::Deleted => return None,
    };
    Some(Sandbox {
        sandbox_id: listed.sandbox_id,
        session_id: listed.spec.unwrap_or_default().session_id,
        node_id: listed.node_id,
        condition,
        reason: listed.reason,
        node_lost: listed.node_lost,
        created_at: listed.created_at.as_ref().and_then(datetime),
    })
}
