//! Compiles the `.proto` files without protoc.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 14] = [
    "sandmesh/agent/v1/agent_service.proto",
    "sandmesh/executor/v1/execution.proto",
    "sandmesh/executor/v1/executor_service.proto",
    "sandmesh/executor/v1/isolation.proto",
    "sandmesh/health/v1/health_service.proto",
    "sandmesh/scheduler/v1/join_service.proto",
    "sandmesh/scheduler/v1/scheduler_service.proto",
    "sandmesh/session/v1/dependency_service.proto",
    "sandmesh/session/v1/file_service.proto",
    "sandmesh/session/v1/lease_service.proto",
    "sandmesh/session/v1/sandbox_spec_service.proto",
    "sandmesh/session/v1/session_service.proto",
    "sandmesh/statesync/v1/state_sync_service.proto",
    "sandmesh/template/v1/template_service.proto",
];

#[expect(clippy::disallowed_methods, reason = "how cargo tells a build script where to write")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=sandmesh");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("sandmesh.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
