//! `StateSyncService` on the wire. Decides nothing.

use std::sync::Arc;

use sandmesh_mesh::{status, timestamp};
use sandmesh_proto::statesync::{
    ReconcileRequest, ReconcileResponse, state_sync_service_server::StateSyncService,
};
use tonic::{Request, Response, Status};

use crate::service::{Reconciler, Report};

/// The gRPC side of the state-sync role.
#[derive(Debug)]
pub(crate) struct Grpc(pub(crate) Arc<Reconciler>);

#[tonic::async_trait]
impl StateSyncService for Grpc {
    async fn reconcile(&self, _: Request<ReconcileRequest>) -> Result<Response<ReconcileResponse>, Status> {
        let report = self.0.reconcile().await.map_err(status)?;
        Ok(Response::new(report.into()))
    }
}

impl From<Report> for ReconcileResponse {
    fn from(report: Report) -> Self {
        Self {
            checked: report.checked,
            healthy: report.healthy,
            unhealthy: report.unhealthy,
            recovered: report.recovered,
            failed: report.failed,
            orphans_removed: report.orphans_removed,
            errors: report.errors,
            completed_at: Some(timestamp(report.completed_at)),
        }
    }
}
