//! The generated messages, clients and servers of every service of the mesh.
//!
//! The source of truth, with a comment on every message, field and rpc, are the `.proto` files in
//! this directory; this crate only gives them Rust names. It holds no logic.

#![allow(missing_docs, missing_debug_implementations, unreachable_pub)]
#![allow(clippy::all, clippy::too_many_lines, clippy::restriction, clippy::pedantic)]

use std::{collections::HashSet, sync::LazyLock};

use prost::Message;

/// The encoded `FileDescriptorSet` of every file here, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sandmesh.bin"));

/// Whether a call of this path (`/package.Service/Method`) answers with a stream.
pub fn is_server_streaming(path: &str) -> bool {
    static PATHS: LazyLock<HashSet<String>> = LazyLock::new(streaming_paths);
    PATHS.contains(path)
}

/// Whether a call of this path (`/package.Service/Method`) is made with a stream.
pub fn is_client_streaming(path: &str) -> bool {
    static PATHS: LazyLock<HashSet<String>> = LazyLock::new(|| paths(|method| method.client_streaming()));
    PATHS.contains(path)
}

/// Whether a call of this path (`/package.Service/Method`) has one answer and changes nothing, so that it may
/// be made again.
pub fn is_read(path: &str) -> bool {
    use prost_types::method_options::IdempotencyLevel::NoSideEffects;
    static PATHS: LazyLock<HashSet<String>> = LazyLock::new(|| {
        paths(|method| {
            let level = method.options.as_ref().map(prost_types::MethodOptions::idempotency_level);
            level == Some(NoSideEffects) && !method.server_streaming() && !method.client_streaming()
        })
    });
    PATHS.contains(path)
}

/// Whether there is a call of this path (`/package.Service/Method`).
pub fn is_method(path: &str) -> bool {
    static PATHS: LazyLock<HashSet<String>> = LazyLock::new(|| paths(|_| true));
    PATHS.contains(path)
}

fn streaming_paths() -> HashSet<String> {
    paths(|method| method.server_streaming())
}

fn paths(wanted: impl Fn(&prost_types::MethodDescriptorProto) -> bool) -> HashSet<String> {
    let files = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut paths = HashSet::new();
    for file in files.file {
        for service in &file.service {
            let wanted = service.method.iter().filter(|method| wanted(method));
            paths.extend(wanted.map(|m| format!("/{}.{}/{}", file.package(), service.name(), m.name())));
        }
    }
    paths
}

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

#[cfg(test)]
mod tests {
    #[test]
    fn streaming_calls_are_known_by_their_path() {
        assert!(super::is_server_streaming("/sandmesh.session.v1.SessionService/Execute"));
        assert!(super::is_server_streaming("/sandmesh.scheduler.v1.SchedulerService/WatchSandboxes"));
        assert!(!super::is_server_streaming("/sandmesh.session.v1.SessionService/GetSession"));
        assert!(super::is_client_streaming("/sandmesh.session.v1.FileService/UploadFile"));
        assert!(!super::is_client_streaming("/sandmesh.session.v1.SessionService/Execute"));
    }

    #[test]
    fn reads_are_known_by_their_path() {
        assert!(super::is_read("/sandmesh.session.v1.SessionService/GetSession"));
        assert!(super::is_read("/sandmesh.scheduler.v1.NodeService/ListNodes"));
        for path in ["CreateSession", "Execute", "AttachExecution", "CancelExecution", "Nothing"] {
            assert!(!super::is_read(&format!("/sandmesh.session.v1.SessionService/{path}")), "{path}");
        }
    }

    #[test]
    fn only_calls_of_the_contract_are_methods() {
        assert!(super::is_method("/sandmesh.session.v1.SessionService/GetSession"));
        assert!(!super::is_method("/sandmesh.session.v1.SessionService/Nothing"));
    }
}
