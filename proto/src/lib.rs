//! The generated messages, clients and servers of every service of the mesh.
//!
//! The source of truth, with a comment on every message, field and rpc, are the `.proto` files in
//! this directory; this crate only gives them Rust names. It holds no logic.

#![allow(missing_docs, missing_debug_implementations, unreachable_pub)]
#![allow(clippy::all, clippy::too_many_lines, clippy::restriction, clippy::pedantic)]

/// The encoded `FileDescriptorSet` of every file here, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sandmesh.bin"));

macro_rules! packages {
    ($($name:ident => $package:literal),* $(,)?) => {
        $(pub mod $name {
            pub mod v1 {
                tonic::include_proto!($package);
            }
        })*
    };
}

/// The packages, at the paths that the generated code expects.
pub mod sandmesh {
    packages! {
        agent => "sandmesh.agent.v1",
        executor => "sandmesh.executor.v1",
        health => "sandmesh.health.v1",
        scheduler => "sandmesh.scheduler.v1",
        session => "sandmesh.session.v1",
        statesync => "sandmesh.statesync.v1",
        template => "sandmesh.template.v1",
    }
}

pub use sandmesh::{
    agent::v1 as agent, executor::v1 as executor, health::v1 as health, scheduler::v1 as scheduler,
    session::v1 as session, statesync::v1 as statesync, template::v1 as template,
};
