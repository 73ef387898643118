//! Programs of other people that tests use as clients. `just setup-tests` installs them; tests do not.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The project.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// A program from `.venv/bin` of the project, or from PATH.
fn find(name: &str) -> PathBuf {
    let own = root().join(".venv/bin").join(name);
    if own.is_file() { own } else { PathBuf::from(name) }
}

/// `grpcurl`.
pub(crate) fn grpcurl() -> Command {
    let path = find("grpcurl");
    let found = Command::new(&path).arg("-version").output().is_ok_and(|output| output.status.success());
    assert!(found, "grpcurl is missing: run `just setup-tests`");
    Command::new(path)
}

/// A Python that has grpcio and grpcio-tools.
pub(crate) fn python() -> Command {
    let path = find("python3");
    let imports = Command::new(&path).args(["-c", "import grpc, grpc_tools.protoc"]).output();
    let found = imports.is_ok_and(|output| output.status.success());
    assert!(found, "python packages grpcio and grpcio-tools are missing: run `just setup-tests`");
    Command::new(path)
}

/// Runs a command that must succeed; gives what it wrote.
#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let Output { status, stdout, stderr } = &output;
    let text = String::from_utf8_lossy(stdout).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{text}\n{}", String::from_utf8_lossy(stderr));
    text
}
