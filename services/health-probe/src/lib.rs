//! Role: the health of the mesh, measured when asked for, and a watch on every sandbox.
//!
//! It owns no state that outlives it. It tells the session role about sandboxes that are lost, and
//! leaves it to that role what becomes of the session. `ARCHITECTURE.md` shows where the role stands.

pub mod config;
mod grpc;
mod probe;
mod sandboxes;
mod service;

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use sandmesh_mesh::{Mesh, Probe, Role, RoleName, ServerBuilder, Tasks};
use sandmesh_proto::health::health_probe_service_server::HealthProbeServiceServer;

pub use config::Config;
use grpc::Grpc;
use sandboxes::Sandboxes;
use service::Health;

/// The health-probe role.
#[derive(Debug)]
struct HealthProbeRole {
    health: Arc<Health>,
    sandboxes: Arc<Sandboxes>,
}

/// Makes the role; nothing is asked or followed before it is started.
///
/// # Errors
/// When a setting cannot be used, or a role that it probes has no link.
pub async fn create(config: &Config, mesh: &Mesh) -> anyhow::Result<Arc<dyn Role>> {
    config.validate()?;
    let health = Arc::new(Health::new(mesh, config.probe_timeout.0)?);
    let (scheduler, sessions) = (mesh.link(RoleName::Scheduler)?, mesh.link(RoleName::Session)?);
    let sandboxes = Arc::new(Sandboxes::new(scheduler, sessions, config.clone()));
    Ok(Arc::new(HealthProbeRole { health, sandboxes }))
}

impl Role for HealthProbeRole {
    fn name(&self) -> RoleName {
        RoleName::HealthProbe
    }

    fn register(self: Arc<Self>, server: &mut ServerBuilder) {
        server.add(HealthProbeServiceServer::new(Grpc(Arc::clone(&self.health))));
    }

    fn start(self: Arc<Self>, tasks: &Tasks) {
        Arc::clone(&self.sandboxes).start(tasks);
    }

    fn probe(&self) -> BoxFuture<'_, Vec<Probe>> {
        async { vec![self.sandboxes.probe()] }.boxed()
    }
}

#[cfg(test)]
mod tests;
