//! The role as the mesh sees it: made, started, asked and stopped.

use std::{pin::Pin, time::Duration};

use futures::{Stream, stream};
use sandmesh_mesh::{CancellationToken, MeshConfig, Node};
use sandmesh_proto::{
    agent::{self as pb, agent_service_client::AgentServiceClient},
    scheduler::{
        self as scheduler_pb, RegisterNodeRequest, RegisterNodeResponse,
        scheduler_service_server::{SchedulerService, SchedulerServiceServer},
    },
};
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::runtime::{
    contract::{Bench, id, spec},
    process::tests::ProcessBench,
};

/// A scheduler on the wire that passes on what is reported to it.
#[derive(Debug, Clone)]
struct FakeScheduler(mpsc::Sender<pb::Node>);

#[tonic::async_trait]
impl SchedulerService for FakeScheduler {
    type WatchSandboxesStream =
        Pin<Box<dyn Stream<Item = Result<scheduler_pb::WatchSandboxesResponse, Status>> + Send>>;

    async fn register_node(
        &self,
        request: Request<RegisterNodeRequest>,
    ) -> Result<Response<RegisterNodeResponse>, Status> {
        self.0.send(request.into_inner().node.unwrap()).await.unwrap();
        Ok(Response::new(RegisterNodeResponse { heartbeat_interval_ms: 100 }))
    }

    async fn create_sandbox(
        &self,
        _: Request<scheduler_pb::CreateSandboxRequest>,
    ) -> Result<Response<scheduler_pb::CreateSandboxResponse>, Status> {
        Err(Status::unimplemented("not asked by an agent"))
    }

    async fn delete_sandbox(
        &self,
        _: Request<scheduler_pb::DeleteSandboxRequest>,
    ) -> Result<Response<scheduler_pb::DeleteSandboxResponse>, Status> {
        Err(Status::unimplemented("not asked by an agent"))
    }

    async fn get_sandbox(
        &self,
        _: Request<scheduler_pb::GetSandboxRequest>,
    ) -> Result<Response<scheduler_pb::GetSandboxResponse>, Status> {
        Err(Status::unimplemented("not asked by an agent"))
    }

    async fn install_packages(
        &self,
        _: Request<scheduler_pb::InstallPackagesRequest>,
    ) -> Result<Response<scheduler_pb::InstallPackagesResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn list_sandboxes(
        &self,
        _: Request<scheduler_pb::ListSandboxesRequest>,
    ) -> Result<Response<scheduler_pb::ListSandboxesResponse>, Status> {
        Err(Status::unimplemented("not asked by an agent"))
    }

    async fn watch_sandboxes(
        &self,
        _: Request<scheduler_pb::WatchSandboxesRequest>,
    ) -> Result<Response<Self::WatchSandboxesStream>, Status> {
        Ok(Response::new(Box::pin(stream::empty())))
    }

    async fn list_nodes(
        &self,
        _: Request<scheduler_pb::ListNodesRequest>,
    ) -> Result<Response<scheduler_pb::ListNodesResponse>, Status> {
        Err(Status::unimplemented("not asked by an agent"))
    }
}

impl Role for FakeScheduler {
    fn name(&self) -> RoleName {
        RoleName::Scheduler
    }
    fn register(self: Arc<Self>, server: &mut ServerBuilder) {
        server.add(SchedulerServiceServer::new(Self::clone(&self)));
    }
    fn start(self: Arc<Self>, _: &Tasks) {}
    fn probe(&self) -> BoxFuture<'_, Vec<Probe>> {
        async { Vec::new() }.boxed()
    }
}

/// A process of the mesh with an agent and a scheduler that only listens.
struct Running {
    agent: AgentServiceClient<sandmesh_mesh::Link>,
    role: Arc<dyn Role>,
    reported: mpsc::Receiver<pb::Node>,
    stop: CancellationToken,
    ended: Tasks,
}

impl Running {
    async fn start(bench: &ProcessBench) -> anyhow::Result<Self> {
        let config = MeshConfig {
            data_dir: bench.data_dir().to_owned(),
            roles: vec![RoleName::Scheduler, RoleName::Agent],
            ..MeshConfig::default()
        };
        let mut node = Node::bind(&config).await?;
        let (reports, reported) = mpsc::channel(64);
        let role =
            create(&Config { node_id: "bench".to_owned(), ..bench.config().clone() }, node.mesh()).await?;
        node.add(Arc::new(FakeScheduler(reports)));
        node.add(Arc::clone(&role));
        let agent = AgentServiceClient::new(node.mesh().link(RoleName::Agent)?);
        let (stop, ended) = (CancellationToken::new(), Tasks::new());
        let stopped = stop.clone().cancelled_owned();
        ended.spawn("node", async move { node.run(stopped).await.unwrap() });
        Ok(Self { agent, role, reported, stop, ended })
    }

    async fn report(&mut self) -> Option<pb::Node> {
        tokio::time::timeout(Duration::from_secs(5), self.reported.recv()).await.unwrap()
    }

    async fn create(
        &mut self,
        sandbox_id: &str,
        spec: Option<pb::SandboxSpec>,
    ) -> Result<pb::Sandbox, Status> {
        let request =
            pb::CreateSandboxRequest { sandbox_id: sandbox_id.to_owned(), spec, ..Default::default() };
        Ok(self.agent.create_sandbox(request).await?.into_inner().sandbox.unwrap())
    }

    async fn list(&mut self, page_size: u32, page_token: &str) -> Result<pb::ListSandboxesResponse, Status> {
        let request = pb::ListSandboxesRequest { page_size, page_token: page_token.to_owned() };
        Ok(self.agent.list_sandboxes(request).await?.into_inner())
    }
}

#[tokio::test]
async fn a_node_reports_what_it_is_again_and_again_and_at_its_end() {
    let bench = ProcessBench::new();
    let mut node = Running::start(&bench).await.unwrap();
    let first = node.report().await.unwrap();
    assert_eq!((first.node_id.as_str(), first.runtime.as_str(), first.sandboxes), ("bench", "process", 0));
    assert!(first.max_sandboxes >= 100 && first.capacity.unwrap().memory_bytes > 0);
    assert!(!first.languages.is_empty() && !first.draining);
    node.create(id(1).as_str(), Some(convert::spec_pb(&spec()))).await.unwrap();
    while node.report().await.unwrap().allocated.unwrap().memory_bytes != spec().resources.memory_bytes {}
    node.stop.cancel();
    assert_eq!(node.ended.shut_down(Duration::from_secs(5)).await, 0);
    let mut last = None;
    while let Some(report) = node.report().await {
        last = Some(report);
    }
    assert!(last.unwrap().draining, "the last report says that nothing more is to come here");
}

#[tokio::test]
async fn the_rpcs_of_an_agent_do_as_its_contract_says() {
    let bench = ProcessBench::new();
    let mut node = Running::start(&bench).await.unwrap();
    while node.report().await.is_none() {}
    let sent = convert::spec_pb(&spec());
    for n in 1..=3 {
        let sandbox = node.create(id(n).as_str(), Some(sent.clone())).await.unwrap();
        assert_eq!((sandbox.node_id.as_str(), sandbox.workspace_path.as_str()), ("bench", "/workspace"));
        assert_eq!(sandbox.spec.as_ref(), Some(&sent));
    }
    let page = node.list(2, "").await.unwrap();
    let rest = node.list(2, &page.next_page_token).await.unwrap();
    assert_eq!((page.sandboxes.len(), rest.sandboxes.len(), rest.next_page_token.as_str()), (2, 1, ""));
    for (status, reason) in [
        (node.list(0, "made up").await.unwrap_err(), "PAGE_TOKEN_INVALID"),
        (node.create("../../etc", Some(sent)).await.unwrap_err(), "INVALID_ARGUMENT"),
        (node.create(id(4).as_str(), None).await.unwrap_err(), "INVALID_ARGUMENT"),
    ] {
        assert_eq!(
            (status.code(), sandmesh_mesh::reason_of(&status).unwrap().as_str()),
            (Code::InvalidArgument, reason)
        );
    }
    let gone = pb::GetSandboxRequest { sandbox_id: id(9).to_string() };
    assert_eq!(node.agent.get_sandbox(gone).await.unwrap_err().code(), Code::NotFound);
    let described = node.agent.get_node(pb::GetNodeRequest {}).await.unwrap().into_inner().node.unwrap();
    assert_eq!(described.sandboxes, 3);
    let probes = node.role.probe().await;
    assert_eq!((probes[0].name.as_str(), probes[0].healthy), ("node/bench", true));
    assert!(probes[0].latency_us > 0);
}

#[tokio::test]
async fn a_node_that_cannot_isolate_as_configured_does_not_start_and_says_why() {
    let mut bench = ProcessBench::new();
    bench.answer_checks_with(
        r#"{"ok":false,"problems":[
            {"what":"bubblewrap","missing":"no `bwrap` in PATH","fix":"apt-get install bubblewrap"},
            {"what":"cgroups","missing":"no memory controller","fix":"boot with cgroup_enable=memory"}]}"#,
    );
    let error = Running::start(&bench).await.map(|_| ()).unwrap_err().to_string();
    for part in ["apt-get install bubblewrap", "agent.isolation.jail", "cgroup_enable=memory"] {
        assert!(error.contains(part), "{error}");
    }
}
