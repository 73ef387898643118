//! Role: templates, the named environments that sessions are created from.
//!
//! It owns the template tables. Sessions keep what they read of a template: a change touches the
//! sessions to come, never those that are. `ARCHITECTURE.md` shows where the role stands in the mesh.

pub mod config;
mod grpc;
mod migration;
mod service;
mod store;
mod validate;

use std::sync::Arc;

use anyhow::Context;
use futures::{FutureExt, future::BoxFuture};
use sandmesh_mesh::{
    Clock, MAX_MESSAGE_BYTES, Mesh, Probe, Role, RoleName, ServerBuilder, Tasks, database::patiently,
};
use sandmesh_proto::template::template_service_server::TemplateServiceServer;

pub use config::Config;
use grpc::Grpc;
use service::Templates;
use store::Store;
use validate::Spec;

/// The template role.
#[derive(Debug)]
struct TemplateRole {
    templates: Arc<Templates>,
}

/// Opens the role's database, which gets the first templates when it is new.
///
/// # Errors
/// When the database cannot be opened, or no link to the session role is configured.
pub async fn create(config: &Config, mesh: &Mesh) -> anyhow::Result<Arc<dyn Role>> {
    config.validate()?;
    let sessions = mesh.link(RoleName::Session)?;
    let target = config.target(mesh.data_dir());
    let open = async || {
        let store = Store::open(&target).await.context("cannot open the template database")?;
        plant(&store, mesh.clock().as_ref()).await.context("cannot write the first templates")?;
        Ok(store)
    };
    let store = patiently(open).await?;
    Ok(Arc::new(TemplateRole { templates: Arc::new(Templates::new(store, mesh.clock(), sessions)) }))
}

/// The images of the templates that a new database starts with.
#[must_use]
pub fn first_images() -> Vec<String> {
    validate::seeds().into_iter().map(|seed| seed.image_url).collect()
}

/// Puts the first templates into a new database.
async fn plant(store: &Store, clock: &dyn Clock) -> anyhow::Result<()> {
    let specs = validate::seeds().into_iter().map(Spec::check).collect::<Result<Vec<_>, _>>();
    let specs = specs.map_err(service::Error::Invalid)?;
    let planted = store.seed(&specs, clock.now()).await?;
    if planted > 0 {
        tracing::info!(templates = planted, "a new database got the first templates");
    }
    Ok(())
}

impl Role for TemplateRole {
    fn name(&self) -> RoleName {
        RoleName::Template
    }

    fn register(self: Arc<Self>, server: &mut ServerBuilder) {
        let service = TemplateServiceServer::new(Grpc(Arc::clone(&self.templates)))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        server.add(service);
    }

    fn start(self: Arc<Self>, _: &Tasks) {}

    fn probe(&self) -> BoxFuture<'_, Vec<Probe>> {
        self.templates.probe().map(|probe| vec![probe]).boxed()
    }
}

#[cfg(test)]
mod tests;
