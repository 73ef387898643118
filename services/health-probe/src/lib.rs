//! Role: the health of the mesh, measured when asked for, and a watch on every sandbox, node and dependency.
//!
//! Parts: `condition.rs` and `probe.rs` (pure: what measurements mean), `service.rs` (the whole, now),
//! `sandboxes.rs` and `watch.rs` (again and again), `board.rs` (what was found last), `grpc.rs` (the wire).
//!
//! It owns no state that outlives it. It tells the session role about sandboxes that are lost, and
//! leaves it to that role what becomes of the session. `ARCHITECTURE.md` shows where the role stands.

mod board;
mod condition;
pub mod config;
mod convert;
mod error;
mod grpc;
mod probe;
mod sandboxes;
mod service;
mod watch;

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use sandmesh_mesh::{CancellationToken, Mesh, Probe, Role, RoleName, ServerBuilder, Tasks};
use sandmesh_proto::health::health_probe_service_server::HealthProbeServiceServer;

use board::Board;
pub use config::Config;
use grpc::Grpc;
use sandboxes::Sandboxes;
use service::Health;
use watch::Watch;

/// The health-probe role.
#[derive(Debug)]
struct HealthProbeRole {
    health: Arc<Health>,
    sandboxes: Arc<Sandboxes>,
    watch: Arc<Watch>,
    board: Arc<Board>,
    stopped: CancellationToken,
}

/// Makes the role; nothing is asked or followed before it is started.
///
/// # Errors
/// When a setting cannot be used, or a role that it probes has no link.
pub async fn create(config: &Config, mesh: &Mesh) -> anyhow::Result<Arc<dyn Role>> {
    config.validate()?;
    let health = Arc::new(Health::new(mesh, config.probe_timeout.0)?);
    let (scheduler, sessions) = (mesh.link(RoleName::Scheduler)?, mesh.link(RoleName::Session)?);
    let board = Arc::new(Board::default());
    let watch = Watch::new(Arc::clone(&health), scheduler.clone(), Arc::clone(&board), config.clone());
    let sandboxes = Sandboxes::new(scheduler, sessions, mesh, Arc::clone(&board), config.clone());
    let (watch, sandboxes) = (Arc::new(watch), Arc::new(sandboxes));
    Ok(Arc::new(HealthProbeRole { health, sandboxes, watch, board, stopped: mesh.tasks().token() }))
}

impl Role for HealthProbeRole {
    fn name(&self) -> RoleName {
        RoleName::HealthProbe
    }

    fn register(self: Arc<Self>, server: &mut ServerBuilder) {
        let (health, board) = (Arc::clone(&self.health), Arc::clone(&self.board));
        let grpc = Grpc { health, board, stopped: self.stopped.clone() };
        server.add(HealthProbeServiceServer::new(grpc));
    }

    fn start(self: Arc<Self>, tasks: &Tasks) {
        Arc::clone(&self.sandboxes).start(tasks);
        Arc::clone(&self.watch).start(tasks);
    }

    fn probe(&self) -> BoxFuture<'_, Vec<Probe>> {
        async { vec![self.sandboxes.probe()] }.boxed()
    }
}

#[cfg(test)]
mod tests;
