//! Role: makes the sandboxes that exist match the sessions that should have one.
//!
//! It owns no state that outlives it: what the session role and the scheduler tell is the truth, looked
//! at again in every pass. It removes sandboxes and reports lost ones, and never changes a session
//! itself. `ARCHITECTURE.md` shows where the role stands in the mesh.

pub mod config;
mod grpc;
mod observe;
mod reconcile;
mod service;

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use sandmesh_mesh::{Mesh, Probe, Role, RoleName, ServerBuilder, Tasks};
use sandmesh_proto::statesync::state_sync_service_server::StateSyncServiceServer;

pub use config::Config;
use grpc::Grpc;
use service::Reconciler;

/// The state-sync role.
#[derive(Debug)]
struct StateSyncRole {
    reconciler: Arc<Reconciler>,
}

/// Makes the role; nothing is compared before it is started.
///
/// # Errors
/// When a setting cannot be used, or no link to the session role or the scheduler is configured.
pub async fn create(config: &Config, mesh: &Mesh) -> anyhow::Result<Arc<dyn Role>> {
    config.validate()?;
    let (sessions, scheduler) = (mesh.link(RoleName::Session)?, mesh.link(RoleName::Scheduler)?);
    let tasks = mesh.tasks().clone();
    let reconciler = Reconciler::new(sessions, scheduler, mesh.clock(), tasks, config.clone());
    Ok(Arc::new(StateSyncRole { reconciler: Arc::new(reconciler) }))
}

impl Role for StateSyncRole {
    fn name(&self) -> RoleName {
        RoleName::StateSync
    }

    fn register(self: Arc<Self>, server: &mut ServerBuilder) {
        server.add(StateSyncServiceServer::new(Grpc(Arc::clone(&self.reconciler))));
    }

    fn start(self: Arc<Self>, tasks: &Tasks) {
        tasks.spawn("lease to reconcile", Arc::clone(&self.reconciler).keep_lease());
        tasks.spawn("reconcile loop", Arc::clone(&self.reconciler).run());
    }

    fn probe(&self) -> BoxFuture<'_, Vec<Probe>> {
        // It depends on other roles only, which are probed themselves.
        async { Vec::new() }.boxed()
    }
}

#[cfg(test)]
mod tests;
