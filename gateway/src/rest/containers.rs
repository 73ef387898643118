//! `/containers`: the sandboxes as operators see them, with what they use and the logs of their executors.
//!
//! The scheduler says which there are, the health-probe role how they are. Without the latter the list is
//! there all the same, and says nothing about usage.

use std::collections::HashMap;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use http::header;
use sandmesh_proto::{
    health::{ListSandboxHealthRequest, SandboxHealth},
    scheduler::{GetNodeSandboxRequest, ListNodeSandboxesRequest, ReadSandboxLogRequest},
};

use super::{
    json::{
        Page,
        container::{Container, ListContainers, Log, LogOptions, last_lines},
    },
    sent,
};
use crate::{
    app::Call,
    error::ApiError,
    extract::{Id, Json, Query},
};

/// The most bytes of a log that are asked for.
const LOG_BYTES: u32 = 1 << 20;

/// Lists the sandboxes of every node, ordered by id.
#[utoipa::path(
    get, path = "/api/v1/containers", tag = "operators", operation_id = "list_containers",
    params(ListContainers),
    responses((status = 200, description = "A page of sandboxes.", body = Page<Container>))
)]
pub(crate) async fn list(
    call: Call,
    Query(query): Query<ListContainers>,
) -> Result<Json<Page<Container>>, ApiError> {
    let paging = query.paging();
    let request = ListNodeSandboxesRequest {
        node_id: query.node_id.unwrap_or_default(),
        session_id: query.session_id.unwrap_or_default(),
        page_size: paging.limit,
        page_token: paging.token.clone(),
        offset: paging.offset,
    };
    let reply = call.nodes().list_node_sandboxes(call.unary(request)).await?.into_inner();
    let mut health = health_of(&call, reply.sandboxes.iter().map(|s| s.sandbox_id.clone()).collect()).await;
    let items = reply.sandboxes.into_iter().map(|sandbox| {
        let health = health.remove(&sandbox.sandbox_id);
        Container::new(sandbox, health)
    });
    Ok(Json(paging.page(items.collect(), reply.total, reply.next_page_token)))
}

/// Reads a sandbox.
#[utoipa::path(
    get, path = "/api/v1/containers/{id}", tag = "operators", operation_id = "get_container",
    params(("id" = String, Path, description = "The id of the sandbox.")),
    responses((status = 200, description = "The sandbox.", body = Container))
)]
pub(crate) async fn get(call: Call, Id(sandbox_id): Id) -> Result<Json<Container>, ApiError> {
    let request = GetNodeSandboxRequest { sandbox_id: sandbox_id.clone() };
    let reply = call.nodes().get_node_sandbox(call.unary(request)).await?.into_inner();
    let health = health_of(&call, vec![sandbox_id.clone()]).await.remove(&sandbox_id);
    Ok(Json(Container::new(sent(reply.sandbox, "sandbox")?, health)))
}

/// Reads the end of the log of a sandbox's executor; with `follow=true` as a stream of text that goes on until
/// the sandbox is gone. No code and no output of users is in it.
#[utoipa::path(
    get, path = "/api/v1/containers/{id}/logs", tag = "operators", operation_id = "get_container_logs",
    params(("id" = String, Path, description = "The id of the sandbox."), LogOptions),
    responses((status = 200, description = "The log.", body = Log))
)]
pub(crate) async fn logs(
    call: Call,
    Id(sandbox_id): Id,
    Query(options): Query<LogOptions>,
) -> Result<Response, ApiError> {
    let follow = options.follow.unwrap_or(false);
    let request = ReadSandboxLogRequest { sandbox_id: sandbox_id.clone(), tail_bytes: LOG_BYTES, follow };
    let message = if follow { call.stream(request) } else { call.unary(request) };
    let mut parts = call.nodes().read_sandbox_log(message).await?.into_inner();
    let lines = options.lines();
    if follow {
        let (mut parts, mut first) = (parts, true);
        let text = async_stream::stream! {
            while let Some(part) = parts.next().await {
                let Ok(part) = part else { break };
                let skip = if std::mem::take(&mut first) { last_lines(&part.data, lines) } else { 0 };
                yield Ok::<_, std::convert::Infallible>(part.data.slice(skip..));
            }
        };
        let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
        return Ok((kind, Body::from_stream(text)).into_response());
    }
    let mut text = Vec::new();
    while let Some(part) = parts.message().await? {
        text.extend_from_slice(&part.data);
    }
    Ok(Json(Log::new(sandbox_id, &text[last_lines(&text, lines)..])).into_response())
}

/// What is known of the health of sandboxes; nothing when it cannot be asked.
async fn health_of(call: &Call, sandbox_ids: Vec<String>) -> HashMap<String, SandboxHealth> {
    if sandbox_ids.is_empty() {
        return HashMap::new();
    }
    let request = ListSandboxHealthRequest { sandbox_ids, ..ListSandboxHealthRequest::default() };
    match call.health().list_sandbox_health(call.unary(request)).await {
        Ok(reply) => reply.into_inner().sandboxes.into_iter().map(|h| (h.sandbox_id.clone(), h)).collect(),
        Err(status) => {
            tracing::warn!(code = ?status.code(), message = status.message(), "health of sandboxes not read");
            HashMap::new()
        }
    }
}
