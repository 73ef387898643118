//! `AgentService` on the wire: parse, call, encode.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use sandmesh_mesh::{FieldViolation, MAX_MESSAGE_BYTES, page_size, page_token, status};
use sandmesh_proto::agent::{
    ClaimSandboxRequest, ClaimSandboxResponse, CreateSandboxRequest, CreateSandboxResponse,
    DeleteSandboxRequest, DeleteSandboxResponse, DrainNodeRequest, DrainNodeResponse, GetNodeRequest,
    GetNodeResponse, GetSandboxRequest, GetSandboxResponse, InstallFailure, InstallPackagesRequest,
    InstallPackagesResponse, ListSandboxesRequest, ListSandboxesResponse, Node, ReadSandboxLogRequest,
    ReadSandboxLogResponse, ResumeNodeRequest, ResumeNodeResponse, Sandbox, SandboxSpec,
    WatchSandboxesRequest, WatchSandboxesResponse,
    agent_service_server::{AgentService, AgentServiceServer},
    install_packages_response::Outcome,
};
use tonic::{Request, Response, Status};

use crate::{
    Error,
    convert::{known_id, layer_pb, node_pb, package_set, sandbox_id, sandbox_pb, spec},
    packages::LayerKey,
    sandbox::{self, Spec},
    service::{Given, Service},
};

/// How many sandboxes a page has.
const PAGE: u32 = 1000;

/// How much of a log is read when the caller does not say, and at most, in bytes.
const LOG_TAIL: u32 = 64 << 10;
const LOG_TAIL_MOST: u32 = 1 << 20;

/// The service on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Grpc(Arc<Service>);

/// The service with the limits of the mesh.
pub(crate) fn server(service: Arc<Service>) -> AgentServiceServer<Grpc> {
    AgentServiceServer::new(Grpc(service))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// The node as it is now, for whoever asks and for the scheduler.
pub(crate) async fn node(service: &Service) -> Node {
    node_pb(service.identity(), service.load().await, service.runtime_name())
}

impl Grpc {
    fn encode(&self, sandbox: &sandbox::Sandbox) -> Sandbox {
        self.encode_with(sandbox, true)
    }

    fn encode_with(&self, sandbox: &sandbox::Sandbox, whole: bool) -> Sandbox {
        let layer = self.0.layer_of(sandbox).map(|layer| layer_pb(&layer, whole));
        sandbox_pb(sandbox, &self.0.identity().node_id, self.0.runtime_name(), layer)
    }

    /// A sandbox for whom it was made. Of packages that are not those, nothing is told.
    fn encode_new(&self, sandbox: &sandbox::Sandbox, asked: Option<&LayerKey>) -> Sandbox {
        let mut sent = self.encode(sandbox);
        sent.layer = sent.layer.filter(|_| sandbox.facts.layer.as_ref() == asked);
        sent
    }

    /// The spec, with the key of the packages that it names.
    async fn spec(&self, sent: Option<SandboxSpec>) -> Result<Spec, Error> {
        let packages = sent.as_ref().and_then(|spec| spec.packages.clone());
        let mut spec = spec(sent)?;
        if let Some(packages) = packages {
            spec.packages = self.0.layer_key(&spec, &package_set(packages)?).await?;
        }
        Ok(spec)
    }
}

#[tonic::async_trait]
impl AgentService for Grpc {
    type ReadSandboxLogStream = Pin<Box<dyn Stream<Item = Result<ReadSandboxLogResponse, Status>> + Send>>;
    type WatchSandboxesStream = Pin<Box<dyn Stream<Item = Result<WatchSandboxesResponse, Status>> + Send>>;

    async fn create_sandbox(
        &self,
        request: Request<CreateSandboxRequest>,
    ) -> Result<Response<CreateSandboxResponse>, Status> {
        let CreateSandboxRequest { sandbox_id: id, spec: sent, progress_wanted } = request.into_inner();
        let (id, spec) = (sandbox_id(&id).map_err(status)?, self.spec(sent).await.map_err(status)?);
        let asked = spec.packages.clone();
        let sandbox = match progress_wanted {
            true => self.0.create_some_way(id, spec).await,
            false => self.0.create(id, spec).await,
        };
        let sandbox = sandbox.map_err(status)?;
        let sandbox = Some(self.encode_new(&sandbox, asked.as_ref()));
        Ok(Response::new(CreateSandboxResponse { sandbox }))
    }

    async fn claim_sandbox(
        &self,
        request: Request<ClaimSandboxRequest>,
    ) -> Result<Response<ClaimSandboxResponse>, Status> {
        let ClaimSandboxRequest { warm_id, sandbox_id: id, spec: sent } = request.into_inner();
        let (warm, id) = (known_id(&warm_id).map_err(status)?, sandbox_id(&id).map_err(status)?);
        let spec = self.spec(sent).await.map_err(status)?;
        let asked = spec.packages.clone();
        let sandbox = self.0.claim(&warm, id, spec).await.map_err(status)?;
        let sandbox = Some(self.encode_new(&sandbox, asked.as_ref()));
        Ok(Response::new(ClaimSandboxResponse { sandbox }))
    }

    async fn delete_sandbox(
        &self,
        request: Request<DeleteSandboxRequest>,
    ) -> Result<Response<DeleteSandboxResponse>, Status> {
        let id = sandbox_id(&request.into_inner().sandbox_id).map_err(status)?;
        self.0.delete(&id).await.map_err(status)?;
        Ok(Response::new(DeleteSandboxResponse {}))
    }

    async fn get_sandbox(
        &self,
        request: Request<GetSandboxRequest>,
    ) -> Result<Response<GetSandboxResponse>, Status> {
        let id = known_id(&request.into_inner().sandbox_id).map_err(status)?;
        let sandbox = self.0.get(&id).map_err(status)?;
        Ok(Response::new(GetSandboxResponse { sandbox: Some(self.encode(&sandbox)) }))
    }

    async fn list_sandboxes(
        &self,
        request: Request<ListSandboxesRequest>,
    ) -> Result<Response<ListSandboxesResponse>, Status> {
        let ListSandboxesRequest { page_size: asked, page_token } = request.into_inner();
        let after = cursor(&page_token).map_err(status)?;
        let (page, more) = self.0.list(after.as_ref(), page_size(asked, PAGE, PAGE) as usize);
        let last = page.last().filter(|_| more);
        let next_page_token = last.map(|last| page_token::encode(&[last.id.as_str()])).unwrap_or_default();
        let sandboxes = page.iter().map(|sandbox| self.encode_with(sandbox, false)).collect();
        Ok(Response::new(ListSandboxesResponse { sandboxes, next_page_token }))
    }

    async fn watch_sandboxes(
        &self,
        _: Request<WatchSandboxesRequest>,
    ) -> Result<Response<Self::WatchSandboxesStream>, Status> {
        let this = self.clone();
        let changes = self.0.watch().map(move |change| match change {
            Ok(sandbox) => Ok(WatchSandboxesResponse { sandbox: Some(this.encode_with(&sandbox, false)) }),
            Err(error) => Err(status(error)),
        });
        Ok(Response::new(Box::pin(changes)))
    }

    async fn install_packages(
        &self,
        request: Request<InstallPackagesRequest>,
    ) -> Result<Response<InstallPackagesResponse>, Status> {
        let InstallPackagesRequest { sandbox_id: id, packages, timeout } = request.into_inner();
        let (id, limit) = (sandbox_id(&id).map_err(status)?, install_limit(timeout).map_err(status)?);
        let set = package_set(packages.unwrap_or_default()).map_err(status)?;
        let given = self.0.install_packages(&id, set, limit).await;
        given.map_or_else(failure, |given| Ok(installed(&given))).map(Response::new).map_err(status)
    }

    async fn get_node(&self, _: Request<GetNodeRequest>) -> Result<Response<GetNodeResponse>, Status> {
        Ok(Response::new(GetNodeResponse { node: Some(node(&self.0).await) }))
    }

    async fn drain_node(&self, _: Request<DrainNodeRequest>) -> Result<Response<DrainNodeResponse>, Status> {
        self.0.set_draining(true).map_err(status)?;
        Ok(Response::new(DrainNodeResponse { node: Some(node(&self.0).await) }))
    }

    async fn resume_node(
        &self,
        _: Request<ResumeNodeRequest>,
    ) -> Result<Response<ResumeNodeResponse>, Status> {
        self.0.set_draining(false).map_err(status)?;
        Ok(Response::new(ResumeNodeResponse { node: Some(node(&self.0).await) }))
    }

    async fn read_sandbox_log(
        &self,
        request: Request<ReadSandboxLogRequest>,
    ) -> Result<Response<Self::ReadSandboxLogStream>, Status> {
        let ReadSandboxLogRequest { sandbox_id: id, tail_bytes, follow } = request.into_inner();
        let id = known_id(&id).map_err(status)?;
        let tail = page_size(tail_bytes, LOG_TAIL, LOG_TAIL_MOST);
        let parts = self.0.read_log(&id, tail.into(), follow).map_err(status)?;
        let parts = parts.map(|part| match part {
            Ok(data) => Ok(ReadSandboxLogResponse { data: data.into() }),
            Err(error) => Err(status(error)),
        });
        Ok(Response::new(Box::pin(parts)))
    }
}

/// The longest that an installation may take.
const INSTALL_MAX: Duration = Duration::from_secs(3600);

fn install_limit(sent: Option<prost_types::Duration>) -> Result<Duration, Error> {
    let limit = sent.and_then(|limit| Duration::try_from(limit).ok());
    limit.filter(|limit| !limit.is_zero() && *limit <= INSTALL_MAX).ok_or_else(|| {
        let problem = format!("must be more than nothing and at most {INSTALL_MAX:?}");
        Error::Invalid(vec![FieldViolation::new("timeout", "value_error", problem)])
    })
}

fn installed(given: &Given) -> InstallPackagesResponse {
    let outcome = Some(Outcome::Layer(layer_pb(&given.layer, true)));
    InstallPackagesResponse { outcome, reused: given.reused }
}

/// That an installation failed is an answer.
fn failure(error: Error) -> Result<InstallPackagesResponse, Error> {
    let Error::InstallFailed { message, timed_out } = error else { return Err(error) };
    let outcome = Some(Outcome::Failure(InstallFailure { message, timed_out }));
    Ok(InstallPackagesResponse { outcome, reused: false })
}

fn cursor(token: &str) -> Result<Option<sandbox::SandboxId>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    match page_token::decode(token).map_err(|_| Error::PageToken)?.as_slice() {
        [id] => id.parse().map(Some).map_err(|_| Error::PageToken),
        _ => Err(Error::PageToken),
    }
}
