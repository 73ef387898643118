//! What every role of the mesh needs, and nothing about sandboxes.
//!
//! A [`Role`] is a group of gRPC services with its background tasks. A [`Node`] is one process that
//! runs any number of roles. A [`Link`] is how one role calls another: the same type whether that role
//! runs in this process or in another. `ARCHITECTURE.md` shows how they fit together.

mod answer;
pub mod clock;
pub mod config;
pub mod database;
pub mod error;
mod lease;
pub mod link;
mod listener;
mod node;
pub mod page_token;
mod readiness;
mod role;
mod server;
mod tasks;
mod telemetry;
#[cfg(any(test, feature = "test-servers"))]
pub mod testing;
mod time;
pub mod tls;
mod values;

pub use clock::{Clock, ManualClock, SystemClock};
pub use config::{ConfigError, LogFormat, MeshConfig};
pub use database::{Database, DatabaseUrl, PoolSettings};
pub use error::{Fault, FieldViolation, reason_of, status};
pub use lease::Lease;
pub use link::{
    Link, LinkError, SANDBOX_HEADER, TOKEN_HEADER, forget_not_sent, is_elsewhere, not_sent, was_not_sent,
};
pub use node::{Mesh, MeshBuilder, Node};
pub use role::{Role, RoleName};
pub use server::{NodeCalls, ServerBuilder, grpc_router, public_reflection, traced};
pub use tasks::Tasks;
pub use telemetry::Telemetry;
pub use time::{datetime, duration_from, duration_pb, timestamp};
pub use values::{ByteSize, HumanDuration, Secret};

pub use sandmesh_proto::health::Probe;
pub use tokio_util::sync::CancellationToken;

/// The largest gRPC message that the mesh sends or takes, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// The version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Clamps a requested page size: zero means `default`, more than `max` means `max`.
#[must_use]
pub fn page_size(requested: u32, default: u32, max: u32) -> u32 {
    if requested == 0 { default } else { requested.min(max) }
}
