//! `/nodes`: the machines that host sandboxes, and whether they take new ones.

use http::StatusCode;
use sandmesh_proto::scheduler::{
    DrainNodeRequest, GetNodeRequest, NodeServiceListNodesRequest, RemoveNodeRequest, ResumeNodeRequest,
};

use super::{
    NoContent,
    json::node::{CreateJoinToken, JoinToken, Node, Nodes},
    sent,
};
use crate::{
    app::Call,
    error::ApiError,
    extract::{Id, Json},
};

/// Lists the nodes, ordered by id.
#[utoipa::path(
    get, path = "/api/v1/nodes", tag = "operators", operation_id = "list_nodes",
    responses((status = 200, description = "The nodes.", body = Nodes))
)]
pub(crate) async fn list(call: Call) -> Result<Json<Nodes>, ApiError> {
    let reply = call.nodes().list_nodes(call.unary(NodeServiceListNodesRequest {})).await?.into_inner();
    Ok(Json(reply.nodes.into()))
}

/// Reads a node.
#[utoipa::path(
    get, path = "/api/v1/nodes/{id}", tag = "operators", operation_id = "get_node",
    params(("id" = String, Path, description = "The id of the node.")),
    responses((status = 200, description = "The node.", body = Node))
)]
pub(crate) async fn get(call: Call, Id(node_id): Id) -> Result<Json<Node>, ApiError> {
    let reply = call.nodes().get_node(call.unary(GetNodeRequest { node_id })).await?.into_inner();
    Ok(Json(sent(reply.node, "node")?.into()))
}

/// Has a node take no new sandboxes, until it is resumed; those it has stay. Idempotent.
#[utoipa::path(
    post, path = "/api/v1/nodes/{id}/drain", tag = "operators", operation_id = "drain_node",
    params(("id" = String, Path, description = "The id of the node.")),
    responses((status = 200, description = "The node, draining.", body = Node))
)]
pub(crate) async fn drain(call: Call, Id(node_id): Id) -> Result<Json<Node>, ApiError> {
    let reply = call.nodes().drain_node(call.unary(DrainNodeRequest { node_id })).await?.into_inner();
    Ok(Json(sent(reply.node, "node")?.into()))
}

/// Has a node take new sandboxes again. Idempotent.
#[utoipa::path(
    post, path = "/api/v1/nodes/{id}/resume", tag = "operators", operation_id = "resume_node",
    params(("id" = String, Path, description = "The id of the node.")),
    responses((status = 200, description = "The node.", body = Node))
)]
pub(crate) async fn resume(call: Call, Id(node_id): Id) -> Result<Json<Node>, ApiError> {
    let reply = call.nodes().resume_node(call.unary(ResumeNodeRequest { node_id })).await?.into_inner();
    Ok(Json(sent(reply.node, "node")?.into()))
}

/// Takes a node that joined, or is lost, out of the mesh: its sessions go on elsewhere at once, and its machine does
/// not come back without a token. Idempotent while the node is known.
#[utoipa::path(
    delete, path = "/api/v1/nodes/{id}", tag = "operators", operation_id = "remove_node",
    params(("id" = String, Path, description = "The id of the node.")),
    responses((status = 204, description = "The node is none any more."))
)]
pub(crate) async fn remove(call: Call, Id(node_id): Id) -> Result<NoContent, ApiError> {
    call.nodes().remove_node(call.unary(RemoveNodeRequest { node_id, only_here: false })).await?;
    Ok(NoContent)
}

/// Makes a token with which machines join as nodes: `sandmesh serve --roles agent --join ADDRESS`.
#[utoipa::path(
    post, path = "/api/v1/nodes/join-tokens", tag = "operators", operation_id = "create_join_token",
    request_body = CreateJoinToken,
    responses((status = 201, description = "The token.", body = JoinToken))
)]
pub(crate) async fn create_join_token(
    call: Call,
    Json(body): Json<CreateJoinToken>,
) -> Result<(StatusCode, Json<JoinToken>), ApiError> {
    let reply = call.nodes().create_join_token(call.unary(body.into())).await?.into_inner();
    Ok((StatusCode::CREATED, Json(reply.into())))
}
