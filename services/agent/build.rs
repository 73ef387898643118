//! Compiles the API of containerd without protoc.

use std::error::Error;

const FILES: [&str; 8] = [
    "events/task.proto",
    "services/containers/v1/containers.proto",
    "services/content/v1/content.proto",
    "services/events/v1/events.proto",
    "services/images/v1/images.proto",
    "services/snapshots/v1/snapshots.proto",
    "services/tasks/v1/tasks.proto",
    "services/version/v1/version.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=containerd");
    let descriptors = protox::compile(FILES, ["containerd"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .include_file("containerd.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
