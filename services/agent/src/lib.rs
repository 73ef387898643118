//! The role `agent`: drives the runtime of one node and owns the sandboxes there.
//!
//! It has no database: what runs on the node is the truth, and is found again after a restart. It does
//! not choose nodes (the scheduler does) and does not run code (the executor in each sandbox does).
//! Parts: `service.rs` (what is done), `ledger.rs` (who is there, admission), `runtime.rs` (the port to
//! what makes sandboxes), `grpc.rs` (the wire), `register.rs` (reports to the scheduler), `forward.rs` (the
//! way to executors from another machine); and for packages `layers.rs` (what is installed) and `proxy.rs` (the
//! way out of an installer).

pub mod config;
mod convert;
mod drain;
mod error;
mod forward;
mod grpc;
mod layers;
mod ledger;
mod packages;
mod proxy;
mod register;
mod runtime;
mod sandbox;
mod service;

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context, bail};
use futures::{FutureExt, future::BoxFuture};
use sandmesh_mesh::{Link, Mesh, Probe, Role, RoleName, ServerBuilder, Tasks};
use sandmesh_proto::executor::{
    executor_service_server::ExecutorServiceServer, workspace_service_server::WorkspaceServiceServer,
};

pub use self::{
    config::Config,
    runtime::inspect::{Inspection, inspect},
};
use self::{
    config::{OWN_LABELS, RuntimeKind},
    drain::Drain,
    error::Error,
    forward::Forward,
    layers::Layers,
    ledger::Limits,
    register::Scheduler,
    runtime::{Runtime, containerd, docker, process::ProcessRuntime},
    sandbox::SandboxId,
    service::{Identity, Installs, Service},
};

/// The role.
#[derive(Debug)]
struct Agent {
    config: Config,
    service: Arc<Service>,
    schedulers: Vec<Scheduler>,
    /// Whether executors are reached through this agent, as it is on another machine.
    forwards: bool,
    /// What a creation left that did not come to its end, until it is cleared away at the start.
    half_made: Mutex<Vec<SandboxId>>,
}

/// Checks that this machine can give the isolation that is configured, finds the sandboxes of an agent
/// before this one, and makes the role.
///
/// # Errors
/// When something is missing, with all that is, how to get it, and which setting does without.
pub async fn create(config: &Config, mesh: &Mesh) -> anyhow::Result<Arc<dyn Role>> {
    config.validate()?;
    let schedulers = schedulers(config, mesh)?;
    let node_id = node_id(config)?;
    let runtime: Arc<dyn Runtime> = match config.runtime {
        RuntimeKind::Process => Arc::new(ProcessRuntime::new(config, mesh.data_dir(), mesh.clock())?),
        RuntimeKind::Docker => Arc::new(docker::runtime(config, mesh.data_dir(), &node_id, mesh.clock())?),
        RuntimeKind::Containerd => {
            Arc::new(containerd::runtime(config, mesh.data_dir(), &node_id, mesh.clock())?)
        }
    };
    let ability = match runtime.check().await {
        Ok(ability) => ability,
        Err(problems) => bail!(
            "runtime `{}` cannot give the isolation that is configured on node `{node_id}`:\n  - {}",
            runtime.name(),
            problems.0.join("\n  - ")
        ),
    };
    for warning in &ability.warnings {
        tracing::info!(warning, "this host could be better");
    }
    let labels = labels(config, &node_id, (runtime.name(), &ability.isolation.sandbox));
    let identity = Identity { node_id, labels, limits: limits(config)?, ability };
    let drain = Drain::load(mesh.data_dir());
    let layers = Layers::new(mesh.data_dir(), config.packages.keep());
    layers.load().context("the layers of packages cannot be read")?;
    let installs = Installs::new(layers, config.packages.max_concurrent);
    let service =
        Arc::new(Service::new(identity, runtime, (drain, installs), mesh.clock(), mesh.tasks().clone()));
    let half_made = Mutex::new(service.adopt().await?);
    let forwards = mesh.has_joined();
    Ok(Arc::new(Agent { config: config.clone(), service, schedulers, forwards, half_made }))
}

/// The schedulers, all of which are to know this node.
fn schedulers(config: &Config, mesh: &Mesh) -> anyhow::Result<Vec<Scheduler>> {
    let advertised = match config.advertise.as_str() {
        "" => mesh.dialable(),
        address => mesh.dialable_at(address),
    };
    let links = mesh.links(RoleName::Scheduler)?;
    if links.iter().all(Link::is_here) {
        let endpoint = config.advertise.clone();
        return Ok(links.into_iter().map(|link| Scheduler { link, endpoint: endpoint.clone() }).collect());
    }
    if advertised.is_empty() {
        bail!(
            "a scheduler in another process cannot reach this agent; say in setting `agent.advertise` or \
             `mesh.listen` where it can, such as `http://10.0.0.2:8001`"
        );
    }
    // To each the same, so that a node is one and the same to all.
    Ok(links.into_iter().map(|link| Scheduler { link, endpoint: advertised.clone() }).collect())
}

/// The id of this node: the one that is configured, or the host's name.
///
/// # Errors
/// When neither is there.
pub fn node_id(config: &Config) -> anyhow::Result<String> {
    if !config.node_id.is_empty() {
        return Ok(config.node_id.clone());
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").context("the host's name cannot be read")?;
    match config::sanitised(&host) {
        name if name.is_empty() => bail!("this host has no name; name the node in setting `agent.node_id`"),
        name => Ok(name),
    }
}

/// The labels of this node: those that it was given, and what each node tells of itself.
fn labels(config: &Config, node_id: &str, (runtime, isolation): (&str, &str)) -> BTreeMap<String, String> {
    let own = OWN_LABELS.into_iter().zip([node_id, runtime, isolation]);
    let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
    config.labels.clone().into_iter().chain(own).collect()
}

fn limits(config: &Config) -> anyhow::Result<Limits> {
    let memory_bytes = match config.capacity.memory {
        Some(memory) => memory.0,
        None => host_memory()?.saturating_mul(config.capacity.memory_overcommit.into()),
    };
    Ok(Limits { max_sandboxes: config.max_sandboxes, cpu_millis: config.capacity.cpu_millis, memory_bytes })
}

/// The memory of this machine in bytes.
fn host_memory() -> anyhow::Result<u64> {
    let advice = "name what this node hands out in setting `agent.capacity.memory`";
    let info = fs::read_to_string("/proc/meminfo").context(advice)?;
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let kib: u64 = total.context(advice)?.trim().parse().context(advice)?;
    Ok(kib * 1024)
}

impl Role for Agent {
    fn name(&self) -> RoleName {
        RoleName::Agent
    }

    fn register(self: Arc<Self>, server: &mut ServerBuilder) {
        server.add(grpc::server(Arc::clone(&self.service)));
        if self.forwards {
            server.add(Forward::<ExecutorServiceServer<()>>::new(Arc::clone(&self.service)));
            server.add(Forward::<WorkspaceServiceServer<()>>::new(Arc::clone(&self.service)));
        }
    }

    fn start(self: Arc<Self>, tasks: &Tasks) {
        let half_made = std::mem::take(&mut *self.half_made.lock().unwrap_or_else(PoisonError::into_inner));
        self.service.start(half_made, self.config.on_shutdown);
        let every = self.config.heartbeat_interval.0;
        for scheduler in self.schedulers.clone() {
            let reports = register::report(Arc::clone(&self.service), scheduler, every, tasks.token());
            tasks.spawn("report node", reports);
        }
    }

    fn probe(&self) -> BoxFuture<'_, Vec<Probe>> {
        async {
            let asked = Instant::now();
            let checked = self.service.check().await;
            let latency_us = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
            vec![Probe {
                name: format!("node/{}", self.service.identity().node_id),
                healthy: checked.is_ok(),
                message: checked.err().map(|problems| problems.to_string()).unwrap_or_default(),
                latency_us,
                essential: true,
            }]
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
