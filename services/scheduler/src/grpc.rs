//! `SchedulerService` on the wire: parse, call, encode.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use sandmesh_mesh::{FieldViolation, MAX_MESSAGE_BYTES, page_size, page_token, tls::Peer};
use sandmesh_proto::agent::Sandbox;
use sandmesh_proto::scheduler::{
    CreateSandboxRequest, CreateSandboxResponse, DeleteSandboxRequest, DeleteSandboxResponse,
    GetSandboxRequest, GetSandboxResponse, InstallPackagesRequest, InstallPackagesResponse, ListNodesRequest,
    ListNodesResponse, ListSandboxesRequest, ListSandboxesResponse, RegisterNodeRequest,
    RegisterNodeResponse, WatchSandboxesRequest, WatchSandboxesResponse,
    scheduler_service_server::{SchedulerService, SchedulerServiceServer},
};
use tonic::{Request, Response, Status};

use crate::{Error, registry::Place, service::Service};

/// How many sandboxes a page has.
const PAGE: u32 = 1000;

/// The service on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Grpc(Arc<Service>);

/// The service with the limits of the mesh.
pub(crate) fn server(service: Arc<Service>) -> SchedulerServiceServer<Grpc> {
    SchedulerServiceServer::new(Grpc(service))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl SchedulerService for Grpc {
    type WatchSandboxesStream = Pin<Box<dyn Stream<Item = Result<WatchSandboxesResponse, Status>> + Send>>;

    async fn create_sandbox(
        &self,
        request: Request<CreateSandboxRequest>,
    ) -> Result<Response<CreateSandboxResponse>, Status> {
        let CreateSandboxRequest { sandbox_id, spec, may_exist, progress_wanted } = request.into_inner();
        let id = required("sandbox_id", Some(sandbox_id).filter(|id| !id.is_empty()))?;
        let spec = required("spec", spec)?;
        let created = match progress_wanted {
            true => self.0.create_some_way(&id, &spec, may_exist).await,
            false => self.0.create(&id, &spec, may_exist).await,
        };
        let sandbox = created.map_err(Error::into_status)?;
        Ok(Response::new(CreateSandboxResponse { sandbox: Some(sandbox) }))
    }

    async fn delete_sandbox(
        &self,
        request: Request<DeleteSandboxRequest>,
    ) -> Result<Response<DeleteSandboxResponse>, Status> {
        let DeleteSandboxRequest { sandbox_id, node_id, only_there } = request.into_inner();
        self.0.delete(&sandbox_id, &node_id, only_there).await.map_err(Error::into_status)?;
        Ok(Response::new(DeleteSandboxResponse {}))
    }

    async fn get_sandbox(
        &self,
        request: Request<GetSandboxRequest>,
    ) -> Result<Response<GetSandboxResponse>, Status> {
        let GetSandboxRequest { sandbox_id, node_id } = request.into_inner();
        let sandbox = self.0.get(&sandbox_id, &node_id).await.map_err(Error::into_status)?;
        Ok(Response::new(GetSandboxResponse { sandbox: Some(sandbox) }))
    }

    async fn install_packages(
        &self,
        request: Request<InstallPackagesRequest>,
    ) -> Result<Response<InstallPackagesResponse>, Status> {
        let InstallPackagesRequest { request, node_id } = request.into_inner();
        let request = required("request", request)?;
        let response = self.0.install(request, &node_id).await.map_err(Error::into_status)?;
        Ok(Response::new(InstallPackagesResponse { response: Some(response) }))
    }

    async fn list_sandboxes(
        &self,
        request: Request<ListSandboxesRequest>,
    ) -> Result<Response<ListSandboxesResponse>, Status> {
        let ListSandboxesRequest { page_size: asked, page_token } = request.into_inner();
        let after = cursor(&page_token)?;
        let limit = page_size(asked, PAGE, PAGE) as usize;
        let (sandboxes, more, unreachable_nodes) = self.0.list(&after, limit).map_err(Error::into_status)?;
        let next_page_token = next_page(&sandboxes, more);
        Ok(Response::new(ListSandboxesResponse { sandboxes, next_page_token, unreachable_nodes }))
    }

    async fn watch_sandboxes(
        &self,
        _: Request<WatchSandboxesRequest>,
    ) -> Result<Response<Self::WatchSandboxesStream>, Status> {
        let changes = self.0.watch().map(|change| match change {
            Ok(sandbox) => Ok(WatchSandboxesResponse { sandbox: Some(sandbox) }),
            Err(error) => Err(error.into_status()),
        });
        Ok(Response::new(Box::pin(changes)))
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        Ok(Response::new(ListNodesResponse { nodes: self.0.nodes() }))
    }

    async fn register_node(
        &self,
        request: Request<RegisterNodeRequest>,
    ) -> Result<Response<RegisterNodeResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let node = required("node", request.into_inner().node)?;
        self.0.check_speaker(peer.as_ref(), &node).map_err(Error::into_status)?;
        let again = self.0.register(node).map_err(Error::into_status)?;
        let heartbeat_interval_ms = u32::try_from(again.as_millis()).unwrap_or(u32::MAX);
        Ok(Response::new(RegisterNodeResponse { heartbeat_interval_ms }))
    }
}

pub(crate) fn required<T>(field: &str, value: Option<T>) -> Result<T, Status> {
    let missing = || FieldViolation::new(field, "missing", format!("`{field}` is required"));
    value.ok_or_else(|| Error::Invalid(missing()).into_status())
}

/// The token of the page after these sandboxes, if there are `more`.
pub(crate) fn next_page(sandboxes: &[Sandbox], more: bool) -> String {
    let last = sandboxes.last().filter(|_| more);
    last.map(|last| page_token::encode(&[&last.sandbox_id, &last.node_id])).unwrap_or_default()
}

pub(crate) fn cursor(token: &str) -> Result<Place, Status> {
    if token.is_empty() {
        return Ok(Place::default());
    }
    match page_token::decode(token).unwrap_or_default().as_slice() {
        [id, node_id] => Ok((id.clone(), node_id.clone())),
        _ => Err(Error::PageToken.into_status()),
    }
}
