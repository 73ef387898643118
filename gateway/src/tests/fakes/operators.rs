//! What operators ask: one node with one sandbox, and a health-probe role that knows it.

use futures::{StreamExt, stream, stream::BoxStream};
use sandmesh_mesh::{FieldViolation, status};
use sandmesh_proto::{
    agent::{Node, Sandbox, SandboxSpec, sandbox::State},
    executor::ResourceUsage,
    health::{
        CheckHealthRequest, CheckHealthResponse, Condition, ListNodeHealthRequest, ListNodeHealthResponse,
        ListSandboxHealthRequest, ListSandboxHealthResponse, Probe, SandboxHealth, WatchHealthRequest,
        WatchHealthResponse, health_probe_service_server::HealthProbeService,
    },
    scheduler::{
        CreateJoinTokenRequest, CreateJoinTokenResponse, DrainNodeRequest, DrainNodeResponse, GetNodeRequest,
        GetNodeResponse, GetNodeSandboxRequest, GetNodeSandboxResponse, GetPoolRequest, GetPoolResponse,
        ListNodeSandboxesRequest, ListNodeSandboxesResponse, ListPoolsRequest, ListPoolsResponse,
        NodeServiceListNodesRequest, NodeServiceListNodesResponse, NodeStatus, Pool, ProfileStatus,
        ReadSandboxLogRequest, ReadSandboxLogResponse, RemoveNodeRequest, RemoveNodeResponse,
        ResumeNodeRequest, ResumeNodeResponse, SetPoolRequest, SetPoolResponse,
        node_service_server::NodeService, pool_service_server::PoolService,
    },
    template::PoolSettings,
};
use tonic::{Code, Request, Response, Status};

use super::{Fakes, Refused, Reply, refuse};

fn sandbox() -> Sandbox {
    let spec = SandboxSpec { session_id: "s1".into(), restarts: 2, ..SandboxSpec::default() };
    Sandbox {
        sandbox_id: "sbx_1".into(),
        spec: Some(spec),
        state: State::Running.into(),
        node_id: "n1".into(),
        ..Sandbox::default()
    }
}

fn node(draining: bool) -> NodeStatus {
    let node = Node { node_id: "n1".into(), languages: vec![1, 3], draining, ..Node::default() };
    NodeStatus { node: Some(node), healthy: true, ..NodeStatus::default() }
}

fn known<T>(id: &str, reply: T) -> Reply<T> {
    match id {
        "unknown" => refuse(Code::NotFound, "NODE_NOT_FOUND", "node `unknown` not found"),
        _ => Ok(Response::new(reply)),
    }
}

#[tonic::async_trait]
impl HealthProbeService for Fakes {
    type WatchHealthStream = BoxStream<'static, Result<WatchHealthResponse, Status>>;

    async fn check_health(&self, request: Request<CheckHealthRequest>) -> Reply<CheckHealthResponse> {
        self.note(request);
        let probe = |name: &str, healthy| Probe { name: name.into(), healthy, ..Probe::default() };
        let probes =
            vec![probe("database/session", true), probe("nodes", false), probe("role/session", true)];
        Ok(Response::new(CheckHealthResponse { status: 2, probes, ..CheckHealthResponse::default() }))
    }

    async fn list_sandbox_health(
        &self,
        request: Request<ListSandboxHealthRequest>,
    ) -> Reply<ListSandboxHealthResponse> {
        let asked = self.note(request).sandbox_ids;
        let usage =
            Some(ResourceUsage { memory_bytes: 7, cpu_time_ns: 1_500_000, ..ResourceUsage::default() });
        let health = |sandbox_id| SandboxHealth {
            sandbox_id,
            condition: Condition::Degraded.into(),
            latency_us: 1500,
            usage,
            ..SandboxHealth::default()
        };
        let sandboxes = asked.into_iter().filter(|id| id == "sbx_1").map(health).collect();
        Ok(Response::new(ListSandboxHealthResponse { sandboxes, next_page_token: String::new() }))
    }

    async fn list_node_health(&self, _: Request<ListNodeHealthRequest>) -> Reply<ListNodeHealthResponse> {
        Ok(Response::new(ListNodeHealthResponse::default()))
    }

    async fn watch_health(&self, _: Request<WatchHealthRequest>) -> Reply<Self::WatchHealthStream> {
        Ok(Response::new(stream::once(async { Ok(WatchHealthResponse::default()) }).boxed()))
    }
}

#[tonic::async_trait]
impl NodeService for Fakes {
    type ReadSandboxLogStream = BoxStream<'static, Result<ReadSandboxLogResponse, Status>>;

    async fn list_nodes(
        &self,
        _: Request<NodeServiceListNodesRequest>,
    ) -> Reply<NodeServiceListNodesResponse> {
        Ok(Response::new(NodeServiceListNodesResponse { nodes: vec![node(false)] }))
    }

    async fn get_node(&self, request: Request<GetNodeRequest>) -> Reply<GetNodeResponse> {
        known(&self.note(request).node_id, GetNodeResponse { node: Some(node(false)) })
    }

    async fn drain_node(&self, request: Request<DrainNodeRequest>) -> Reply<DrainNodeResponse> {
        known(&self.note(request).node_id, DrainNodeResponse { node: Some(node(true)) })
    }

    async fn resume_node(&self, request: Request<ResumeNodeRequest>) -> Reply<ResumeNodeResponse> {
        known(&self.note(request).node_id, ResumeNodeResponse { node: Some(node(false)) })
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Reply<RemoveNodeResponse> {
        known(&self.note(request).node_id, RemoveNodeResponse {})
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Reply<CreateJoinTokenResponse> {
        if self.note(request).valid_for.is_some_and(|valid| valid.seconds < 60) {
            let wrong = FieldViolation::new("valid_for", "value_error", "must be from 1 minute to 30 days");
            let message = "fields are wrong".to_owned();
            return Err(status(Refused(Code::InvalidArgument, "INVALID_ARGUMENT", message, vec![wrong])));
        }
        let (token, listen) = ("smj_token".to_owned(), "0.0.0.0:8443".to_owned());
        Ok(Response::new(CreateJoinTokenResponse { token, listen, expires_at: None }))
    }

    async fn list_node_sandboxes(
        &self,
        request: Request<ListNodeSandboxesRequest>,
    ) -> Reply<ListNodeSandboxesResponse> {
        let asked = self.note(request);
        let sandboxes = if asked.session_id.is_empty() { vec![sandbox()] } else { Vec::new() };
        let (total, next_page_token) = (sandboxes.len() as u64, String::new());
        Ok(Response::new(ListNodeSandboxesResponse {
            sandboxes,
            next_page_token,
            total,
            ..Default::default()
        }))
    }

    async fn get_node_sandbox(
        &self,
        request: Request<GetNodeSandboxRequest>,
    ) -> Reply<GetNodeSandboxResponse> {
        match self.note(request).sandbox_id.as_str() {
            "sbx_1" => Ok(Response::new(GetNodeSandboxResponse { sandbox: Some(sandbox()) })),
            id => refuse(Code::NotFound, "SANDBOX_NOT_FOUND", &format!("sandbox `{id}` not found")),
        }
    }

    async fn read_sandbox_log(
        &self,
        request: Request<ReadSandboxLogRequest>,
    ) -> Reply<Self::ReadSandboxLogStream> {
        let asked = self.note(request);
        if asked.sandbox_id == "unknown" {
            return refuse(Code::NotFound, "SANDBOX_NOT_FOUND", "sandbox `unknown` not found");
        }
        let parts = if asked.follow { vec!["one\ntwo\n", "three\n"] } else { vec!["one\ntwo\n"] };
        let part = |data: &str| Ok(ReadSandboxLogResponse { data: data.to_owned().into() });
        Ok(Response::new(stream::iter(parts.into_iter().map(part).collect::<Vec<_>>()).boxed()))
    }
}

fn of_template<T>(id: &str, reply: T) -> Reply<T> {
    match id {
        "unknown" => refuse(Code::NotFound, "TEMPLATE_NOT_FOUND", "template `unknown` not found"),
        _ => Ok(Response::new(reply)),
    }
}

fn pool(template_id: &str, settings: PoolSettings) -> Pool {
    let profiles = settings.profiles.len();
    Pool {
        template_id: template_id.to_owned(),
        settings: Some(settings),
        target: 2,
        warm: 1,
        starting: 1,
        claimed: 4,
        cold: 5,
        last_error: "no such image".to_owned(),
        profiles: vec![ProfileStatus { warm: 3, cold: 6, ..ProfileStatus::default() }; profiles],
        ..Pool::default()
    }
}

#[tonic::async_trait]
impl PoolService for Fakes {
    async fn list_pools(&self, _: Request<ListPoolsRequest>) -> Reply<ListPoolsResponse> {
        let settings = PoolSettings { min: 1, max: 9, ..PoolSettings::default() };
        Ok(Response::new(ListPoolsResponse { pools: vec![pool("python-basic", settings)] }))
    }

    async fn get_pool(&self, request: Request<GetPoolRequest>) -> Reply<GetPoolResponse> {
        let pool = pool(&request.get_ref().template_id, PoolSettings::default());
        of_template(&self.note(request).template_id, GetPoolResponse { pool: Some(pool) })
    }

    async fn set_pool(&self, request: Request<SetPoolRequest>) -> Reply<SetPoolResponse> {
        let SetPoolRequest { template_id, settings } = self.note(request);
        let settings = settings.unwrap();
        if settings.min > settings.max {
            let wrong =
                FieldViolation::new("template.pool.max", "greater_than_equal", "must be at least `pool.min`");
            let message = "fields are wrong".to_owned();
            return Err(status(Refused(Code::InvalidArgument, "INVALID_ARGUMENT", message, vec![wrong])));
        }
        if settings.profiles.len() > 1 {
            let field = "template.pool.profiles.1.resources.memory_bytes";
            let wrong = FieldViolation::new(field, "less_than_equal", "must be at most 1");
            let message = "fields are wrong".to_owned();
            return Err(status(Refused(Code::InvalidArgument, "INVALID_ARGUMENT", message, vec![wrong])));
        }
        of_template(&template_id, SetPoolResponse { pool: Some(pool(&template_id, settings)) })
    }
}
