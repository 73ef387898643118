//! `/health`: is the process up, can it do its work, is everything behind it well, and reconcile now.

use sandmesh_proto::{health::CheckHealthRequest, statesync::ReconcileRequest};

use super::json::health::{Detailed, Health, Synced};
use crate::{
    app::Call,
    error::{ApiError, Edge},
    extract::Json,
    proxy::Readiness,
};

/// Answers while the process serves. Looks at nothing else: see `/health/detailed`.
#[utoipa::path(
    get, path = "/api/v1/health", tag = "health", operation_id = "health", security(()),
    responses((status = 200, description = "The process serves.", body = Health))
)]
pub(crate) async fn get(call: Call) -> Json<Health> {
    Json(Health::up(call.app()))
}

/// Measures every role, database, object store and node now.
#[utoipa::path(
    get, path = "/api/v1/health/detailed", tag = "health", operation_id = "health_detailed",
    responses((status = 200, description = "What was measured; `status` tells the worst.", body = Detailed))
)]
pub(crate) async fn detailed(call: Call) -> Json<Detailed> {
    let measured = call.health().check_health(call.unary(CheckHealthRequest {})).await;
    Json(Detailed::of(call.app(), measured.map(tonic::Response::into_inner)))
}

/// Answers 200 while sessions can be created and run, and 503 while a role that this needs does not serve.
/// Measured now; for load balancers.
#[utoipa::path(
    get, path = "/api/v1/health/ready", tag = "health", operation_id = "health_ready", security(()),
    responses((status = 200, description = "Sessions can be created and run.", body = Health))
)]
pub(crate) async fn ready(call: Call) -> Result<Json<Health>, ApiError> {
    if Readiness::of(call.app()).is_ready().await {
        Ok(Json(Health::up(call.app())))
    } else {
        Err(Edge::NotReady.into())
    }
}

/// Makes the sandboxes that exist match the sessions that should have one, now.
#[utoipa::path(
    post, path = "/api/v1/health/sync", tag = "health", operation_id = "health_sync",
    responses((status = 200, description = "What was done.", body = Synced))
)]
pub(crate) async fn sync(call: Call) -> Result<Json<Synced>, ApiError> {
    let reply = call.state_sync().reconcile(call.unary(ReconcileRequest {})).await?.into_inner();
    Ok(Json(reply.into()))
}
