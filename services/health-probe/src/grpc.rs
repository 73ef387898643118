//! `HealthProbeService` on the wire. Decides nothing.

use std::sync::Arc;

use sandmesh_mesh::timestamp;
use sandmesh_proto::health::{
    CheckHealthRequest, CheckHealthResponse, check_health_response,
    health_probe_service_server::HealthProbeService,
};
use tonic::{Request, Response, Status};

use crate::{
    probe::Overall,
    service::{Health, Report},
};

/// The gRPC side of the health-probe role.
#[derive(Debug)]
pub(crate) struct Grpc(pub(crate) Arc<Health>);

#[tonic::async_trait]
impl HealthProbeService for Grpc {
    async fn check_health(
        &self,
        _: Request<CheckHealthRequest>,
    ) -> Result<Response<CheckHealthResponse>, Status> {
        Ok(Response::new(self.0.check().await.into()))
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
