//! The gateway: REST, gRPC-web and gRPC for clients, on one port.
//!
//! It owns the edge and nothing behind it: keys, request ids, the REST contract, its error body and its
//! document. A REST handler reads a request, calls a role through a generated client, and writes the
//! answer; gRPC and gRPC-web pass through as they are. What may be done and what is valid is decided by
//! the roles, and only what REST alone has (texts such as `512Mi`, positions in a JSON body) here.

mod app;
mod auth;
pub mod config;
mod error;
mod extract;
mod metrics;
mod openapi;
mod proxy;
mod request;
mod rest;

use std::{fmt, net::SocketAddr, sync::Arc};

use axum::Router;
use futures::future::BoxFuture;
use sandmesh_mesh::{Mesh, Probe, Role, RoleName, ServerBuilder, Tasks};

pub use config::Config;

use crate::app::App;

/// The role.
struct Gateway {
    listen: SocketAddr,
    router: Router,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// Makes the role. Nothing is bound before it is registered.
///
/// # Errors
/// When a setting cannot be used, or a role that clients need can neither be found here nor elsewhere.
#[expect(clippy::unused_async, reason = "every role is made in the same way")]
pub async fn create(config: &Config, mesh: &Mesh) -> anyhow::Result<Arc<dyn Role>> {
    Ok(Arc::new(Gateway { listen: config.listen, router: router(config, mesh)? }))
}

/// Everything that clients can reach, as one router.
///
/// # Errors
/// As [`create`].
pub fn router(config: &Config, mesh: &Mesh) -> anyhow::Result<Router> {
    config.validate()?;
    let app = App::new(config, mesh)?;
    app::router(&app)
}

impl Role for Gateway {
    fn name(&self) -> RoleName {
        RoleName::Gateway
    }

    fn register(self: Arc<Self>, server: &mut ServerBuilder) {
        server.set_public(self.listen, self.router.clone());
    }

    fn start(self: Arc<Self>, _: &Tasks) {}

    fn probe(&self) -> BoxFuture<'_, Vec<Probe>> {
        // It has no dependencies but the other roles, which are probed themselves.
        Box::pin(async { Vec::new() })
    }
}

#[cfg(test)]
mod tests;
