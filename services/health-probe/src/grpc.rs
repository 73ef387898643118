//! `HealthProbeService` on the wire. Decides nothing.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, stream};
use sandmesh_mesh::{CancellationToken, page_size, page_token, status, timestamp};
use sandmesh_proto::health::{
    CheckHealthRequest, CheckHealthResponse, ListNodeHealthRequest, ListNodeHealthResponse,
    ListSandboxHealthRequest, ListSandboxHealthResponse, WatchHealthRequest, WatchHealthResponse,
    check_health_response, health_probe_service_server::HealthProbeService,
};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
use tonic::{Request, Response, Status};

use crate::{
    board::Board,
    error::Error,
    probe::Overall,
    service::{Health, Report},
};

/// How many sandboxes a page has when the caller does not say, and at most.
const PAGE: (u32, u32) = (200, 1000);

/// The gRPC side of the health-probe role.
#[derive(Debug)]
pub(crate) struct Grpc {
    pub(crate) health: Arc<Health>,
    pub(crate) board: Arc<Board>,
    /// Cancelled when the process stops.
    pub(crate) stopped: CancellationToken,
}

#[tonic::async_trait]
impl HealthProbeService for Grpc {
    type WatchHealthStream = Pin<Box<dyn Stream<Item = Result<WatchHealthResponse, Status>> + Send>>;

    async fn check_health(
        &self,
        _: Request<CheckHealthRequest>,
    ) -> Result<Response<CheckHealthResponse>, Status> {
        Ok(Response::new(self.health.check().await.into()))
    }

    async fn list_sandbox_health(
        &self,
        request: Request<ListSandboxHealthRequest>,
    ) -> Result<Response<ListSandboxHealthResponse>, Status> {
        let asked = request.into_inner();
        if asked.sandbox_ids.len() > PAGE.1 as usize {
            return Err(status(Error::TooManyIds(PAGE.1)));
        }
        let (after, limit) =
            (cursor(&asked.page_token)?, page_size(asked.page_size, PAGE.0, PAGE.1) as usize);
        let ids = asked.sandbox_ids.into_iter().collect();
        let (sandboxes, more) = self.board.list_sandboxes(&ids, &after, limit);
        let last = sandboxes.last().filter(|_| more);
        let next_page_token = last.map(|last| page_token::encode(&[&last.sandbox_id])).unwrap_or_default();
        Ok(Response::new(ListSandboxHealthResponse { sandboxes, next_page_token }))
    }

    async fn list_node_health(
        &self,
        _: Request<ListNodeHealthRequest>,
    ) -> Result<Response<ListNodeHealthResponse>, Status> {
        Ok(Response::new(ListNodeHealthResponse { nodes: self.board.list_nodes() }))
    }

    async fn watch_health(
        &self,
        _: Request<WatchHealthRequest>,
    ) -> Result<Response<Self::WatchHealthStream>, Status> {
        let (known, changes) = self.board.watch();
        let changes = BroadcastStream::new(changes).map(|change| {
            change.map_err(|BroadcastStreamRecvError::Lagged(missed)| status(Error::WatchLagged(missed)))
        });
        let stopped = self.stopped.clone().cancelled_owned();
        let events = stream::iter(known.into_iter().map(Ok)).chain(changes).take_until(stopped);
        Ok(Response::new(Box::pin(events)))
    }
}

fn cursor(token: &str) -> Result<String, Status> {
    if token.is_empty() {
        return Ok(String::new());
    }
    match page_token::decode(token).unwrap_or_default().as_slice() {
        [id] => Ok(id.clone()),
        _ => Err(status(Error::PageToken)),
    }
}

impl From<Overall> for check_health_response::Status {
    fn from(overall: Overall) -> Self {
        match overall {
            Overall::Healthy => Self::Healthy,
            Overall::Degraded => Self::Degraded,
            Overall::Unhealthy => Self::Unhealthy,
        }
    }
}

impl From<Report> for CheckHealthResponse {
    fn from(report: Report) -> Self {
        Self {
            status: check_health_response::Status::from(report.overall).into(),
            probes: report.probes,
            measured_at: Some(timestamp(report.measured_at)),
            version: report.version.to_owned(),
            uptime_seconds: report.uptime.as_secs_f64(),
        }
    }
}
