//! The other roles, played: what they have, what they answer, and what they were told.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{Router, extract::Request as HttpRequest, routing::post};
use sandmesh_mesh::Link;
use sandmesh_proto::{
    agent::{Node, Sandbox},
    scheduler::{
        DeleteSandboxRequest, DeleteSandboxResponse, GetSandboxRequest, GetSandboxResponse, ListNodesRequest,
        ListNodesResponse, ListSandboxesRequest, ListSandboxesResponse, NodeStatus,
    },
    session::{
        GetSessionRequest, GetSessionResponse, HoldLeaseRequest, HoldLeaseResponse, ListSessionsRequest,
        ListSessionsResponse, ReleaseLeaseRequest, ReleaseLeaseResponse, ReportSandboxLostRequest,
        ReportSandboxLostResponse, Session, session::State,
    },
};
use tonic::{Request, Response, Status, server::Grpc as Codec};
use tonic_prost::ProstCodec;

/// Small, so that every list has several pages.
const PAGE: usize = 2;

/// The sessions and sandboxes that there are, and what of it cannot be asked.
#[derive(Default)]
pub(super) struct World {
    pub(super) sessions: Vec<Session>,
    pub(super) sandboxes: Vec<Sandbox>,
    /// Sandboxes that their node has and the list does not (yet).
    pub(super) unlisted: BTreeSet<String>,
    pub(super) nodes: Vec<&'static str>,
    pub(super) unreachable: Vec<&'static str>,
    /// The calls that fail, by the name of the method; a `#` after it spares the first page.
    pub(super) failing: BTreeSet<&'static str>,
    /// The calls that were made and change something.
    pub(super) done: Vec<String>,
    pub(super) passes: usize,
    /// Who has the lease; empty: who asks gets it.
    pub(super) holder: String,
    /// How many items a page has; 0: a few, so that every list has several pages.
    pub(super) page: usize,
}

pub(super) type Shared = Arc<Mutex<World>>;

pub(super) fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn fails(&self, method: &'static str) -> Result<(), Status> {
        if self.failing.contains(method) { Err(Status::unavailable("down")) } else { Ok(()) }
    }

    fn list_sessions(&mut self, request: &ListSessionsRequest) -> Result<ListSessionsResponse, Status> {
        self.fails("ListSessions")?;
        let matching = self.sessions.iter().filter(|session| session.state == request.state);
        let all: Vec<Session> = matching.cloned().collect();
        let (sessions, next_page_token) = page(&all, &request.page_token, self.page);
        Ok(ListSessionsResponse { sessions, next_page_token, total: 0 })
    }

    fn get_session(&mut self, request: &GetSessionRequest) -> Result<GetSessionResponse, Status> {
        self.fails("GetSession")?;
        let session = self.sessions.iter().find(|session| session.session_id == request.session_id);
        let session = session.cloned().ok_or_else(|| Status::not_found("no such session"))?;
        Ok(GetSessionResponse { session: Some(session) })
    }

    fn report_lost(
        &mut self,
        request: &ReportSandboxLostRequest,
    ) -> Result<ReportSandboxLostResponse, Status> {
        self.fails("ReportSandboxLost")?;
        self.done.push(format!("lost {} {}: {}", request.session_id, request.sandbox_id, request.reason));
        let session = self.sessions.iter_mut().find(|session| session.session_id == request.session_id);
        let session = session.ok_or_else(|| Status::not_found("no such session"))?;
        let applied = session.state() == State::Running;
        let recovering = applied && session.recoveries_left > 0;
        if recovering {
            session.recoveries_left -= 1;
            session.sandbox_id = format!("{}+", session.sandbox_id);
        }
        session.set_state(if recovering { State::Creating } else { State::Failed });
        Ok(ReportSandboxLostResponse { applied, recovering })
    }

    fn list_sandboxes(&mut self, request: &ListSandboxesRequest) -> Result<ListSandboxesResponse, Status> {
        self.fails("ListSandboxes")?;
        self.passes += usize::from(request.page_token.is_empty());
        if !request.page_token.is_empty() {
            self.fails("ListSandboxes#")?;
        }
        let listed = self.sandboxes.iter().filter(|sandbox| !self.unlisted.contains(&sandbox.sandbox_id));
        let (sandboxes, next_page_token) =
            page(&listed.cloned().collect::<Vec<_>>(), &request.page_token, self.page);
        let unreachable_nodes = self.unreachable.iter().map(|&node| node.to_owned()).collect();
        Ok(ListSandboxesResponse { sandboxes, next_page_token, unreachable_nodes })
    }

    fn get_sandbox(&mut self, request: &GetSandboxRequest) -> Result<GetSandboxResponse, Status> {
        self.fails("GetSandbox")?;
        let sandbox = self.sandboxes.iter().find(|sandbox| sandbox.sandbox_id == request.sandbox_id);
        let sandbox = sandbox.cloned().ok_or_else(|| Status::not_found("no such sandbox"))?;
        Ok(GetSandboxResponse { sandbox: Some(sandbox) })
    }

    fn delete_sandbox(&mut self, request: &DeleteSandboxRequest) -> Result<DeleteSandboxResponse, Status> {
        self.fails("DeleteSandbox")?;
        self.done.push(format!("delete {}", request.sandbox_id));
        self.sandboxes.retain(|sandbox| sandbox.sandbox_id != request.sandbox_id);
        Ok(DeleteSandboxResponse {})
    }

    fn hold_lease(&mut self, request: &HoldLeaseRequest) -> Result<HoldLeaseResponse, Status> {
        self.fails("HoldLease")?;
        if self.holder.is_empty() {
            self.holder.clone_from(&request.holder);
        }
        let held = self.holder == request.holder;
        Ok(HoldLeaseResponse { held, holder: self.holder.clone(), token: 1 })
    }

    fn release_lease(&mut self, request: &ReleaseLeaseRequest) -> Result<ReleaseLeaseResponse, Status> {
        self.done.push(format!("release {}", request.name));
        Ok(ReleaseLeaseResponse {})
    }

    fn list_nodes(&mut self, _: &ListNodesRequest) -> Result<ListNodesResponse, Status> {
        self.fails("ListNodes")?;
        let node = |id: &&str| NodeStatus {
            node: Some(Node { node_id: (*id).to_owned(), ..Node::default() }),
            healthy: true,
            ..NodeStatus::default()
        };
        Ok(ListNodesResponse { nodes: self.nodes.iter().map(node).collect() })
    }
}

fn page<T: Clone>(all: &[T], token: &str, size: usize) -> (Vec<T>, String) {
    let start: usize = token.parse().unwrap_or(0);
    let size = if size == 0 { PAGE } else { size };
    let items: Vec<T> = all.iter().skip(start).take(size).cloned().collect();
    let next = start + items.len();
    (items, if next < all.len() { next.to_string() } else { String::new() })
}

/// Serves one method, on the world.
fn serve<Q, R>(
    router: Router,
    path: &str,
    world: &Shared,
    answer: fn(&mut World, &Q) -> Result<R, Status>,
) -> Router
where
    Q: prost::Message + Default + 'static,
    R: prost::Message + Default + 'static,
{
    let world = Arc::clone(world);
    let method = tower::service_fn(move |request: Request<Q>| {
        std::future::ready(answer(&mut lock(&world), request.get_ref()).map(Response::new))
    });
    let handler = move |request: HttpRequest| {
        let method = method.clone();
        async move { Codec::new(ProstCodec::default()).unary(method, request).await }
    };
    router.route(path, post(handler))
}

pub(super) fn others(world: &Shared) -> Link {
    let (session, event) =
        ("/sandmesh.session.v1.SessionService", "/sandmesh.session.v1.SessionEventService");
    let scheduler = "/sandmesh.scheduler.v1.SchedulerService";
    let router = Router::new();
    let router = serve(router, &format!("{session}/ListSessions"), world, World::list_sessions);
    let router = serve(router, &format!("{session}/GetSession"), world, World::get_session);
    let router = serve(router, &format!("{event}/ReportSandboxLost"), world, World::report_lost);
    let lease = "/sandmesh.session.v1.LeaseService";
    let router = serve(router, &format!("{lease}/HoldLease"), world, World::hold_lease);
    let router = serve(router, &format!("{lease}/ReleaseLease"), world, World::release_lease);
    let router = serve(router, &format!("{scheduler}/ListSandboxes"), world, World::list_sandboxes);
    let router = serve(router, &format!("{scheduler}/GetSandbox"), world, World::get_sandbox);
    let router = serve(router, &format!("{scheduler}/DeleteSandbox"), world, World::delete_sandbox);
    let router = serve(router, &format!("{scheduler}/ListNodes"), world, World::list_nodes);
    Link::local(router)
}
