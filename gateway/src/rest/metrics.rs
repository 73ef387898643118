//! `/metrics`: what this process counted and what the roles know, for Prometheus.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header;
use sandmesh_proto::{
    scheduler::{ListPoolsRequest, NodeServiceListNodesRequest},
    session::GetStatisticsRequest,
};

use crate::{
    app::Call,
    error::{ApiError, Edge},
    metrics::Learned,
};

/// How long a role may take to tell what it knows.
const LIMIT: Duration = Duration::from_secs(2);

/// The metrics of the service, in the text format of Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "health", operation_id = "metrics",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain"))
)]
pub(crate) async fn get(call: Call) -> Result<Response, ApiError> {
    let learned = learn(&call).await.map_err(broken)?;
    let text = call.app().metrics().text(&learned).map_err(broken)?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is that of `map_err`")]
fn broken(error: anyhow::Error) -> ApiError {
    Edge::Internal(format!("metrics cannot be written: {error:#}")).into()
}

async fn learn(call: &Call) -> anyhow::Result<Learned> {
    let learned = Learned::default();
    let mut client = call.nodes();
    let nodes = client.list_nodes(call.unary(NodeServiceListNodesRequest {}));
    let mut sessions = call.statistics();
    let statistics = sessions.get_statistics(call.unary(GetStatisticsRequest {}));
    let mut pools = call.pools();
    let pools = pools.list_pools(call.unary(ListPoolsRequest {}));
    let (nodes, pools, statistics) = futures::join!(within(nodes), within(pools), within(statistics));
    learned.roles(&[("scheduler", nodes.is_some()), ("session", statistics.is_some())])?;
    if let Some(answer) = statistics {
        learned.statistics(answer)?;
    }
    if let Some(answer) = nodes {
        learned.nodes(&answer.nodes)?;
    }
    if let Some(answer) = pools {
        learned.pools(&answer.pools)?;
    }
    Ok(learned)
}

/// What a role says, if it does in time.
async fn within<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Option<T> {
    tokio::time::timeout(LIMIT, call).await.ok()?.ok().map(tonic::Response::into_inner)
}
