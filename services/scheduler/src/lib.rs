//! The role `scheduler`: knows the nodes, and places sandboxes on them.
//!
//! It is asked when a sandbox is made or destroyed, and is off the path of executions. What it knows is in
//! memory, rebuilt from what the agents report; the agents are the authority on what they have and take.
//! Parts: `placement.rs` (pure choice), `index.rs` (the same without a look at every node, pure), `tally.rs` and
//! `shelf.rs` (what a node has, and which warm sandbox is given next, pure), `pool.rs` (how many are warm, pure),
//! `queue.rs` (who waits for room), `registry.rs` (what is known), `memory.rs` (what of it a start finds again),
//! `view.rs` (from the registry to placement), `follower.rs` (the watch held at each node), `service.rs` (what is
//! done), `pools.rs` (what is kept warm), `join.rs` and `members.rs` (machines that join), `grpc.rs`,
//! `node_service.rs` and `pool_service.rs` (the wire), `simulation.rs` (a day of many nodes, in minutes).

pub mod config;
mod error;
mod follower;
mod grpc;
mod index;
mod join;
mod members;
mod memory;
mod node_service;
mod placement;
mod pool;
mod pool_service;
mod pools;
mod queue;
mod registry;
mod service;
mod shelf;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod tally;
mod view;

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use sandmesh_mesh::{Mesh, Probe, Role, RoleName, ServerBuilder, Tasks};

pub use self::config::Config;
use self::{error::Error, join::Entrance, pools::Pools, service::Service};

/// The role.
#[derive(Debug)]
struct Scheduler {
    service: Arc<Service>,
    pools: Arc<Pools>,
    entrance: Entrance,
}

/// Makes the role. It knows no node yet.
///
/// # Errors
/// When a setting cannot be used, or there is no way to the session or the template role.
#[expect(clippy::unused_async, reason = "the signature is that of every role")]
pub async fn create(config: &Config, mesh: &Mesh) -> anyhow::Result<Arc<dyn Role>> {
    config.validate()?;
    let service = Arc::new(Service::new(config.clone(), mesh.clone())?);
    let pools = Pools::new(Arc::clone(&service), mesh, &config.pools)?;
    let entrance = Entrance::new(&config.join, Arc::clone(&service), mesh)?;
    Ok(Arc::new(Scheduler { service, pools: Arc::new(pools), entrance }))
}

impl Role for Scheduler {
    fn name(&self) -> RoleName {
        RoleName::Scheduler
    }

    fn register(self: Arc<Self>, server: &mut ServerBuilder) {
        server.add(grpc::server(Arc::clone(&self.service)));
        server.add(node_service::server(Arc::clone(&self.service), self.entrance.clone()));
        self.entrance.register(server);
        server.add(pool_service::server(Arc::clone(&self.pools)));
    }

    fn start(self: Arc<Self>, tasks: &Tasks) {
        tasks.spawn("watch nodes", Arc::clone(&self.service).watch_nodes());
        tasks.spawn("serve those who wait", Arc::clone(&self.service).serve_queue());
        tasks.spawn("lease of pools", Arc::clone(&self.pools).keep_lease());
        tasks.spawn("demand for pools", Arc::clone(&self.pools).follow_demand());
        tasks.spawn("keep pools", Arc::clone(&self.pools).run());
    }

    fn probe(&self) -> BoxFuture<'_, Vec<Probe>> {
        let nodes = self.service.nodes();
        let healthy = nodes.iter().filter(|node| node.healthy).count();
        let probe = Probe {
            name: "nodes".to_owned(),
            healthy: healthy > 0,
            message: format!("{healthy} of {} healthy", nodes.len()),
            latency_us: 0,
            // It serves without: a node may register any time.
            essential: false,
        };
        async { vec![probe] }.boxed()
    }
}
