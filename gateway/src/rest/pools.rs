//! `/pools`: warm sandboxes of templates, made ahead of demand.

use sandmesh_proto::scheduler::{GetPoolRequest, ListPoolsRequest};

use super::{
    json::pool::{Pool, Pools, SetPool},
    sent,
};
use crate::{
    app::Call,
    error::ApiError,
    extract::{Id, Json},
};

/// Lists the pools, ordered by template.
#[utoipa::path(
    get, path = "/api/v1/pools", tag = "operators", operation_id = "list_pools",
    responses((status = 200, description = "The pools.", body = Pools))
)]
pub(crate) async fn list(call: Call) -> Result<Json<Pools>, ApiError> {
    let reply = call.pools().list_pools(call.unary(ListPoolsRequest {})).await?.into_inner();
    Ok(Json(reply.pools.into()))
}

/// Reads the pool of a template; one without has a maximum of 0.
#[utoipa::path(
    get, path = "/api/v1/pools/{template_id}", tag = "operators", operation_id = "get_pool",
    params(("template_id" = String, Path, description = "The id of the template.")),
    responses((status = 200, description = "The pool.", body = Pool))
)]
pub(crate) async fn get(call: Call, Id(template_id): Id) -> Result<Json<Pool>, ApiError> {
    let reply = call.pools().get_pool(call.unary(GetPoolRequest { template_id })).await?.into_inner();
    Ok(Json(sent(reply.pool, "pool")?.into()))
}

/// Sets how many sandboxes of a template are warm; a maximum of 0 without profiles ends its pool. What is left out
/// is 0, or none. It changes the template, too. Idempotent.
#[utoipa::path(
    put, path = "/api/v1/pools/{template_id}", tag = "operators", operation_id = "set_pool",
    params(("template_id" = String, Path, description = "The id of the template.")),
    request_body = SetPool,
    responses((status = 200, description = "The pool, as it is to be.", body = Pool))
)]
pub(crate) async fn set(
    call: Call,
    Id(template_id): Id,
    Json(body): Json<SetPool>,
) -> Result<Json<Pool>, ApiError> {
    let request = body.into_request(template_id)?;
    let reply = call.pools().set_pool(call.unary(request)).await;
    let reply = reply.map_err(|refused| ApiError::from(refused).only("pool"))?.into_inner();
    Ok(Json(sent(reply.pool, "pool")?.into()))
}
