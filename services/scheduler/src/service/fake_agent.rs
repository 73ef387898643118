//! A node on the wire, as far as the scheduler can tell: an agent that keeps its sandboxes in memory, and
//! can be told to fail as real ones do.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use sandmesh_mesh::{CancellationToken, Fault, Tasks};
use sandmesh_proto::{
    agent::{
        ClaimSandboxRequest, ClaimSandboxResponse, CreateSandboxRequest, CreateSandboxResponse,
        DeleteSandboxRequest, DeleteSandboxResponse, DrainNodeRequest, DrainNodeResponse, GetNodeRequest,
        GetNodeResponse, GetSandboxRequest, GetSandboxResponse, InstallPackagesRequest,
        InstallPackagesResponse, Layer, ListSandboxesRequest, ListSandboxesResponse, Node,
        ReadSandboxLogRequest, ReadSandboxLogResponse, ResumeNodeRequest, ResumeNodeResponse, Sandbox,
        WatchSandboxesRequest, WatchSandboxesResponse,
        agent_service_server::{AgentService, AgentServiceServer},
        install_packages_response::Outcome,
        sandbox::State,
    },
    executor::Language,
};
use tokio::{net::UnixListener, sync::broadcast};
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tonic::{Code, Request, Response, Status, transport::Server};

/// What a node says that cannot have an image.
#[derive(Debug, thiserror::Error)]
#[error("the image cannot be had")]
struct NoImage;

impl Fault for NoImage {
    fn code(&self) -> Code {
        Code::FailedPrecondition
    }

    fn reason(&self) -> &'static str {
        "IMAGE_NOT_FOUND"
    }
}

#[derive(Debug, Clone)]
pub(super) struct FakeAgent(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: String,
    socket: PathBuf,
    max_sandboxes: u32,
    sandboxes: Mutex<BTreeMap<String, Sandbox>>,
    changes: broadcast::Sender<Sandbox>,
    /// How many answers to creations still are to be lost after the sandbox was made.
    lose: AtomicU32,
    creations: AtomicU32,
    /// How many times it still tells of progress before it fails.
    slow: AtomicU32,
    draining: AtomicBool,
    /// Cancelled while it is down.
    down: Mutex<CancellationToken>,
}

impl FakeAgent {
    pub(super) fn new(dir: &std::path::Path, id: &str, max_sandboxes: u32) -> Self {
        Self(Arc::new(Inner {
            id: id.to_owned(),
            socket: dir.join(format!("{id}.sock")),
            max_sandboxes,
            sandboxes: Mutex::default(),
            changes: broadcast::channel(64).0,
            lose: AtomicU32::new(0),
            creations: AtomicU32::new(0),
            slow: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            down: Mutex::default(),
        }))
    }

    /// Serves until the token is cancelled; then it answers nothing more and its streams end.
    pub(super) fn serve(&self, tasks: &Tasks) -> CancellationToken {
        let _ = std::fs::remove_file(&self.0.socket);
        let incoming = UnixListenerStream::new(UnixListener::bind(&self.0.socket).unwrap());
        let down = CancellationToken::new();
        *self.0.down.lock().unwrap() = down.clone();
        let server = Server::builder()
            .add_service(AgentServiceServer::new(self.clone()))
            .serve_with_incoming_shutdown(incoming, down.clone().cancelled_owned());
        tasks.spawn("fake agent", async move { server.await.unwrap() });
        down
    }

    fn up(&self) -> Result<(), Status> {
        let down = self.0.down.lock().unwrap().is_cancelled();
        if down { Err(Status::unavailable("connection lost")) } else { Ok(()) }
    }

    pub(super) fn node(&self) -> Node {
        Node {
            node_id: self.0.id.clone(),
            runtime: "fake".to_owned(),
            max_sandboxes: self.0.max_sandboxes,
            languages: vec![Language::Python.into()],
            endpoint: format!("unix:{}", self.0.socket.display()),
            draining: self.0.draining.load(Ordering::SeqCst),
            ..Node::default()
        }
    }

    pub(super) fn ids(&self) -> Vec<String> {
        self.0.sandboxes.lock().unwrap().keys().cloned().collect()
    }

    pub(super) fn creations(&self) -> u32 {
        self.0.creations.load(Ordering::SeqCst)
    }

    /// The next `count` answers to creations are lost on their way.
    pub(super) fn lose_answers(&self, count: u32) {
        self.0.lose.store(count, Ordering::SeqCst);
    }

    /// The next creation tells of progress so often, and then fails.
    pub(super) fn fail_after(&self, answers: u32) {
        self.0.slow.store(answers, Ordering::SeqCst);
    }

    /// Says how far it is with one that fails in the end; `None` where all goes well.
    fn answer_slowly(&self, sandbox_id: &str, progress_wanted: bool) -> Option<Result<Sandbox, Status>> {
        let left = self.0.slow.load(Ordering::SeqCst);
        if left == 0 || !progress_wanted {
            return None;
        }
        self.0.slow.store(left - 1, Ordering::SeqCst);
        let sandbox = Sandbox {
            sandbox_id: sandbox_id.to_owned(),
            node_id: self.0.id.clone(),
            state: State::Creating.into(),
            ..Sandbox::default()
        };
        Some(if left > 1 { Ok(sandbox) } else { Err(sandmesh_mesh::status(NoImage)) })
    }

    /// Makes a sandbox that no watcher is told of.
    pub(super) fn create_sandbox_directly(&self, id: &str) {
        self.0.sandboxes.lock().unwrap().insert(id.to_owned(), Sandbox::default());
    }

    /// A sandbox is gone of which no watcher is told.
    pub(super) fn lose_silently(&self, id: &str) {
        self.0.sandboxes.lock().unwrap().remove(id);
    }

    pub(super) fn kill(&self, id: &str) {
        let mut sandboxes = self.0.sandboxes.lock().unwrap();
        let sandbox = sandboxes.get_mut(id).unwrap();
        (sandbox.state, sandbox.reason) = (State::Dead.into(), "killed".to_owned());
        let _ = self.0.changes.send(sandbox.clone());
    }
}

#[tonic::async_trait]
impl AgentService for FakeAgent {
    type ReadSandboxLogStream = Pin<Box<dyn Stream<Item = Result<ReadSandboxLogResponse, Status>> + Send>>;
    type WatchSandboxesStream = Pin<Box<dyn Stream<Item = Result<WatchSandboxesResponse, Status>> + Send>>;

    async fn create_sandbox(
        &self,
        request: Request<CreateSandboxRequest>,
    ) -> Result<Response<CreateSandboxResponse>, Status> {
        self.up()?;
        let CreateSandboxRequest { sandbox_id, spec, progress_wanted } = request.into_inner();
        if let Some(answer) = self.answer_slowly(&sandbox_id, progress_wanted) {
            return answer.map(|sandbox| Response::new(CreateSandboxResponse { sandbox: Some(sandbox) }));
        }
        // Long enough for callers to meet.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let sandbox = {
            let mut sandboxes = self.0.sandboxes.lock().unwrap();
            if !sandboxes.contains_key(&sandbox_id) && sandboxes.len() >= self.0.max_sandboxes as usize {
                return Err(Status::resource_exhausted("full"));
            }
            let made = sandboxes.entry(sandbox_id.clone()).or_insert_with(|| {
                self.0.creations.fetch_add(1, Ordering::SeqCst);
                let node_id = self.0.id.clone();
                Sandbox { sandbox_id, spec, node_id, state: State::Running.into(), ..Sandbox::default() }
            });
            made.clone()
        };
        let lost = self.0.lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if lost.is_ok() {
            return Err(Status::unavailable("the answer was lost"));
        }
        let _ = self.0.changes.send(sandbox.clone());
        Ok(Response::new(CreateSandboxResponse { sandbox: Some(sandbox) }))
    }

    async fn claim_sandbox(
        &self,
        request: Request<ClaimSandboxRequest>,
    ) -> Result<Response<ClaimSandboxResponse>, Status> {
        self.up()?;
        let ClaimSandboxRequest { warm_id, sandbox_id, spec } = request.into_inner();
        let claimed = {
            let mut sandboxes = self.0.sandboxes.lock().unwrap();
            let warm = sandboxes.remove(&warm_id).ok_or_else(|| Status::not_found("not here"))?;
            let _ = self.0.changes.send(Sandbox { state: State::Deleted.into(), ..warm.clone() });
            let claimed = Sandbox { sandbox_id: sandbox_id.clone(), spec, claimed: true, ..warm };
            sandboxes.insert(sandbox_id, claimed.clone());
            claimed
        };
        let lost = self.0.lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        let _ = self.0.changes.send(claimed.clone());
        match lost {
            Ok(_) => Err(Status::unavailable("the answer was lost")),
            Err(_) => Ok(Response::new(ClaimSandboxResponse { sandbox: Some(claimed) })),
        }
    }

    async fn delete_sandbox(
        &self,
        request: Request<DeleteSandboxRequest>,
    ) -> Result<Response<DeleteSandboxResponse>, Status> {
        self.up()?;
        let gone = self.0.sandboxes.lock().unwrap().remove(&request.into_inner().sandbox_id);
        if let Some(gone) = gone {
            let _ = self.0.changes.send(Sandbox { state: State::Deleted.into(), ..gone });
        }
        Ok(Response::new(DeleteSandboxResponse {}))
    }

    async fn get_sandbox(
        &self,
        request: Request<GetSandboxRequest>,
    ) -> Result<Response<GetSandboxResponse>, Status> {
        self.up()?;
        let sandbox = self.0.sandboxes.lock().unwrap().get(&request.into_inner().sandbox_id).cloned();
        let sandbox = sandbox.ok_or_else(|| Status::not_found("not here"))?;
        Ok(Response::new(GetSandboxResponse { sandbox: Some(sandbox) }))
    }

    async fn install_packages(
        &self,
        request: Request<InstallPackagesRequest>,
    ) -> Result<Response<InstallPackagesResponse>, Status> {
        self.up()?;
        let request = request.into_inner();
        if !self.0.sandboxes.lock().unwrap().contains_key(&request.sandbox_id) {
            return Err(Status::not_found("not here"));
        }
        let installed = request.packages.unwrap_or_default().packages;
        let layer = Layer { key: self.0.id.clone(), installed, ..Layer::default() };
        Ok(Response::new(InstallPackagesResponse { outcome: Some(Outcome::Layer(layer)), reused: false }))
    }

    async fn list_sandboxes(
        &self,
        _: Request<ListSandboxesRequest>,
    ) -> Result<Response<ListSandboxesResponse>, Status> {
        self.up()?;
        let sandboxes = self.0.sandboxes.lock().unwrap().values().cloned().collect();
        Ok(Response::new(ListSandboxesResponse { sandboxes, ..Default::default() }))
    }

    async fn watch_sandboxes(
        &self,
        _: Request<WatchSandboxesRequest>,
    ) -> Result<Response<Self::WatchSandboxesStream>, Status> {
        self.up()?;
        let down = self.0.down.lock().unwrap().clone().cancelled_owned();
        let sandboxes = self.0.sandboxes.lock().unwrap();
        let existing: Vec<Sandbox> = sandboxes.values().cloned().collect();
        let changes = BroadcastStream::new(self.0.changes.subscribe()).map(Result::unwrap);
        let frame = |sandbox| Ok(WatchSandboxesResponse { sandbox: Some(sandbox) });
        Ok(Response::new(Box::pin(stream::iter(existing).chain(changes).map(frame).take_until(down))))
    }

    async fn get_node(&self, _: Request<GetNodeRequest>) -> Result<Response<GetNodeResponse>, Status> {
        Ok(Response::new(GetNodeResponse { node: Some(self.node()) }))
    }

    async fn drain_node(&self, _: Request<DrainNodeRequest>) -> Result<Response<DrainNodeResponse>, Status> {
        self.up()?;
        self.0.draining.store(true, Ordering::SeqCst);
        Ok(Response::new(DrainNodeResponse { node: Some(self.node()) }))
    }

    async fn resume_node(
        &self,
        _: Request<ResumeNodeRequest>,
    ) -> Result<Response<ResumeNodeResponse>, Status> {
        self.up()?;
        self.0.draining.store(false, Ordering::SeqCst);
        Ok(Response::new(ResumeNodeResponse { node: Some(self.node()) }))
    }

    async fn read_sandbox_log(
        &self,
        request: Request<ReadSandboxLogRequest>,
    ) -> Result<Response<Self::ReadSandboxLogStream>, Status> {
        self.up()?;
        let ReadSandboxLogRequest { sandbox_id, .. } = request.into_inner();
        let lines = ["log of ".to_owned(), sandbox_id];
        let parts = lines.map(|line| Ok(ReadSandboxLogResponse { data: line.into() }));
        Ok(Response::new(Box::pin(stream::iter(parts))))
    }
}
