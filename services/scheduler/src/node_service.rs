//! `NodeService` on the wire, for operators: parse, call, encode.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use sandmesh_mesh::{MAX_MESSAGE_BYTES, duration_from, page_size, timestamp};
use sandmesh_proto::scheduler::{
    CreateJoinTokenRequest, CreateJoinTokenResponse, DrainNodeRequest, DrainNodeResponse, GetNodeRequest,
    GetNodeResponse, GetNodeSandboxRequest, GetNodeSandboxResponse, ListNodeSandboxesRequest,
    ListNodeSandboxesResponse, NodeServiceListNodesRequest, NodeServiceListNodesResponse,
    ReadSandboxLogRequest, ReadSandboxLogResponse, RemoveNodeRequest, RemoveNodeResponse, ResumeNodeRequest,
    ResumeNodeResponse,
    node_service_server::{NodeService, NodeServiceServer},
};
use tonic::{Request, Response, Status};

use crate::{
    Error,
    grpc::{cursor, next_page},
    join::Entrance,
    service::{Filter, Page, Service},
};

/// How many sandboxes a page has when the caller does not say, and at most.
const PAGE: (u32, u32) = (50, 200);

/// The service on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Nodes(Arc<Service>, Entrance);

/// The service with the limits of the mesh.
pub(crate) fn server(service: Arc<Service>, entrance: Entrance) -> NodeServiceServer<Nodes> {
    NodeServiceServer::new(Nodes(service, entrance)).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl NodeService for Nodes {
    type ReadSandboxLogStream = Pin<Box<dyn Stream<Item = Result<ReadSandboxLogResponse, Status>> + Send>>;

    async fn list_nodes(
        &self,
        _: Request<NodeServiceListNodesRequest>,
    ) -> Result<Response<NodeServiceListNodesResponse>, Status> {
        Ok(Response::new(NodeServiceListNodesResponse { nodes: self.0.nodes() }))
    }

    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<GetNodeResponse>, Status> {
        let node = self.0.node(&request.get_ref().node_id).map_err(Error::into_status)?;
        Ok(Response::new(GetNodeResponse { node: Some(node) }))
    }

    async fn drain_node(
        &self,
        request: Request<DrainNodeRequest>,
    ) -> Result<Response<DrainNodeResponse>, Status> {
        let node = self.0.set_draining(&request.get_ref().node_id, true).await.map_err(Error::into_status)?;
        Ok(Response::new(DrainNodeResponse { node: Some(node) }))
    }

    async fn resume_node(
        &self,
        request: Request<ResumeNodeRequest>,
    ) -> Result<Response<ResumeNodeResponse>, Status> {
        let node =
            self.0.set_draining(&request.get_ref().node_id, false).await.map_err(Error::into_status)?;
        Ok(Response::new(ResumeNodeResponse { node: Some(node) }))
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        let RemoveNodeRequest { node_id, only_here } = request.into_inner();
        self.0.remove_node(&node_id, only_here).await.map_err(Error::into_status)?;
        Ok(Response::new(RemoveNodeResponse {}))
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        let valid_for = request.into_inner().valid_for.as_ref().map(duration_from);
        let (token, expires_at, listen) = self.1.token(valid_for).map_err(Error::into_status)?;
        Ok(Response::new(CreateJoinTokenResponse {
            token: token.to_string(),
            expires_at: Some(timestamp(expires_at)),
            listen: listen.to_string(),
        }))
    }

    async fn list_node_sandboxes(
        &self,
        request: Request<ListNodeSandboxesRequest>,
    ) -> Result<Response<ListNodeSandboxesResponse>, Status> {
        let asked = request.into_inner();
        let after = cursor(&asked.page_token)?;
        let limit = page_size(asked.page_size, PAGE.0, PAGE.1) as usize;
        let offset = if asked.page_token.is_empty() { asked.offset as usize } else { 0 };
        let filter = Filter { node_id: asked.node_id, session_id: asked.session_id };
        let found = self.0.list_for_operators(&filter, &Page { after, offset, limit });
        Ok(Response::new(ListNodeSandboxesResponse {
            next_page_token: next_page(&found.sandboxes, found.more),
            sandboxes: found.sandboxes,
            total: found.total,
            unreachable_nodes: found.unreachable,
        }))
    }

    async fn get_node_sandbox(
        &self,
        request: Request<GetNodeSandboxRequest>,
    ) -> Result<Response<GetNodeSandboxResponse>, Status> {
        let sandbox = self.0.get(&request.get_ref().sandbox_id, "").await.map_err(Error::into_status)?;
        Ok(Response::new(GetNodeSandboxResponse { sandbox: Some(sandbox) }))
    }

    async fn read_sandbox_log(
        &self,
        request: Request<ReadSandboxLogRequest>,
    ) -> Result<Response<Self::ReadSandboxLogStream>, Status> {
        let ReadSandboxLogRequest { sandbox_id, tail_bytes, follow } = request.into_inner();
        let parts = self.0.read_log(&sandbox_id, tail_bytes, follow).await.map_err(Error::into_status)?;
        let parts = parts.map(|part| part.map(|data| ReadSandboxLogResponse { data }));
        Ok(Response::new(Box::pin(parts)))
    }
}
