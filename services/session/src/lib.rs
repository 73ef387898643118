//! Role `session`: sessions, the executions in them, and their files.
//!
//! It owns the tables `sessions` and `executions` and the objects of their output and files, and is the only
//! one who writes them. It has no sandbox of its own: the scheduler makes and removes them, the executor in each
//! runs the code. What it promises is that every execution it accepted reaches a final state, once,
//! whatever crashes on the way. `ARCHITECTURE.md` shows the way of an execution through the mesh.

pub mod config;
mod content;
mod dependencies;
mod drivers;
mod encode;
mod error;
mod grpc;
mod id;
mod index;
mod lifecycle;
mod live;
mod migration;
mod notify;
mod objects;
mod peers;
mod recent;
mod replica;
mod retries;
mod route;
mod running;
mod service;
mod spool;
mod store;
mod turns;
mod validate;
mod values;
mod workspace;

use std::{future::Future, sync::Arc, time::Instant};

use anyhow::Context;
use futures::future::{BoxFuture, FutureExt};
use sandmesh_mesh::{
    MAX_MESSAGE_BYTES, Mesh, Probe, Role, RoleName, ServerBuilder, Tasks, database::patiently,
};
use sandmesh_proto::session::{
    dependency_service_server::DependencyServiceServer, file_service_server::FileServiceServer,
    lease_service_server::LeaseServiceServer, sandbox_spec_service_server::SandboxSpecServiceServer,
    session_event_service_server::SessionEventServiceServer, session_service_server::SessionServiceServer,
};
use tokio::sync::Semaphore;

pub use self::config::Config;
use self::{
    drivers::Drivers,
    error::Error,
    grpc::Grpc,
    notify::{Locks, Topics},
    objects::Objects,
    peers::Peers,
    replica::{Replica, TERM},
    retries::Retries,
    route::Routed,
    running::RunningSessions,
    service::{Leftovers, PROGRAMS_AT_ONCE, Recorded, Service, Workspaces},
    store::Store,
    turns::Turns,
};

/// The session role.
#[derive(Debug)]
struct Session(Arc<Service>);

/// Makes the session role: opens its database and its object store, and sets nothing in motion.
///
/// # Errors
/// When a setting cannot be used, the database or the object store cannot be opened, or the scheduler or
/// the template role cannot be linked to.
pub async fn create(config: &Config, mesh: &Mesh) -> anyhow::Result<Arc<dyn Role>> {
    Ok(Arc::new(Session(open(config, mesh).await?)))
}

async fn open(config: &Config, mesh: &Mesh) -> anyhow::Result<Arc<Service>> {
    config.validate()?;
    let (store, replica) = patiently(async || store(config, mesh).await).await?;
    Ok(Arc::new(Service {
        store,
        replica,
        objects: Objects::open(config, mesh.data_dir())?.probed_by(&replica::name(mesh)?),
        peers: Peers::new(mesh)?,
        clock: mesh.clock(),
        tasks: mesh.tasks().clone(),
        spool_dir: mesh.data_dir().to_owned(),
        session_changes: Topics::default(),
        drivers: Drivers::default(),
        turns: Turns::default(),
        running: RunningSessions::default(),
        sandboxes: Locks::default(),
        installs: Locks::default(),
        wind_downs: Locks::default(),
        removals: Retries::default(),
        workspaces: Workspaces::default(),
        programs: Arc::new(Semaphore::new(PROGRAMS_AT_ONCE)),
        recorded: Recorded::default(),
        leftovers: Leftovers::default(),
        config: config.clone(),
    }))
}

/// The database, and the place of this process among those that share it.
async fn store(config: &Config, mesh: &Mesh) -> anyhow::Result<(Store, Option<Replica>)> {
    let store = Store::open(&config.database(mesh.data_dir()), &config.pool(), mesh.tasks().clone()).await?;
    if store.is_alone() {
        return Ok((store, None));
    }
    let replica = Replica::on(mesh, &config.advertise)?;
    if replica.endpoint.is_empty() {
        tracing::info!(
            "no other process can share the sessions: `mesh.listen` and `session.advertise` are not set"
        );
    }
    store.register_replica(&replica.id, &replica.endpoint, TERM).await.context("cannot use the database")?;
    Ok((store.owned_by(&replica.id), Some(replica)))
}

impl Role for Session {
    fn name(&self) -> RoleName {
        RoleName::Session
    }

    fn register(self: Arc<Self>, server: &mut ServerBuilder) {
        let grpc = Grpc(Arc::clone(&self.0));
        let sessions = SessionServiceServer::new(grpc.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let files = FileServiceServer::new(grpc.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        server.add(LeaseServiceServer::new(grpc.clone()));
        server.add(SandboxSpecServiceServer::new(grpc.clone()));
        server.add(Routed { inner: sessions, service: Arc::clone(&self.0) });
        server.add(Routed { inner: files, service: Arc::clone(&self.0) });
        server
            .add(Routed { inner: DependencyServiceServer::new(grpc.clone()), service: Arc::clone(&self.0) });
        server.add(Routed { inner: SessionEventServiceServer::new(grpc), service: Arc::clone(&self.0) });
    }

    fn start(self: Arc<Self>, tasks: &Tasks) {
        tasks.spawn("acknowledge leftovers", Arc::clone(&self.0).acknowledge_leftovers());
        tasks.spawn("keep sessions", Arc::clone(&self.0).keep_sessions());
        tasks.spawn("checkpoint database", Arc::clone(&self.0).checkpoint_forever());
        tasks.spawn("sweep sessions", Arc::clone(&self.0).sweep_forever());
    }

    fn probe(&self) -> BoxFuture<'_, Vec<Probe>> {
        async {
            let database = measured("database/session", self.0.store.ping());
            let objects = measured("object_store", self.0.objects.ping());
            let (database, objects) = futures::join!(database, objects);
            // Without the object store only what is large cannot be recorded.
            vec![Probe { essential: true, ..database }, objects]
        }
        .boxed()
    }
}

async fn measured(name: &str, probe: impl Future<Output = Result<(), Error>>) -> Probe {
    let start = Instant::now();
    let result = probe.await;
    let latency_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    // An operator reads this: with the cause, that is.
    let message = result.as_ref().err().map(|error| match error {
        Error::Internal(error) | Error::ObjectStore(error) => format!("{error:#}"),
        error => error.to_string(),
    });
    let (healthy, message) = (result.is_ok(), message.unwrap_or_default());
    Probe { name: name.to_owned(), healthy, message, latency_us, essential: false }
}

#[cfg(test)]
#[path = "../testing/bucket.rs"]
mod testing;
#[cfg(test)]
mod tests;
