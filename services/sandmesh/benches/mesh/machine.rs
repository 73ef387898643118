//! What the figures were taken on.

use std::{fs, path::Path, process::Command};

use serde::Serialize;

/// The machine, its interpreters, and how busy it was.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory: String,
    kernel: String,
    python: String,
    node: String,
    bubblewrap: String,
    sandmesh: &'static str,
    load_before: String,
    load_after: String,
}

impl Machine {
    /// Reads what there is; what cannot be read is empty.
    pub(crate) fn read(python: &Path, node: &Path) -> Self {
        Self {
            cpu: line("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory: line("/proc/meminfo", "MemTotal"),
            kernel: read("/proc/sys/kernel/osrelease"),
            python: version(python),
            node: version(node),
            bubblewrap: version(Path::new("/usr/bin/bwrap")),
            sandmesh: env!("CARGO_PKG_VERSION"),
            load_before: load(),
            load_after: String::new(),
        }
    }

    /// Adds how busy the machine is now.
    pub(crate) fn done(self) -> Self {
        Self { load_after: load(), ..self }
    }

    /// One line about it.
    pub(crate) fn line(&self) -> String {
        format!(
            "{} x {}, {}, Linux {}; {}, node {}, {}, sandmesh {}; load (1 min) {} before, {} after",
            self.cores,
            self.cpu,
            self.memory,
            self.kernel,
            self.python,
            self.node,
            self.bubblewrap,
            self.sandmesh,
            self.load_before,
            self.load_after,
        )
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The value of the first `name: value` line of a file.
fn line(path: &str, name: &str) -> String {
    let text = read(path);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
    value.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn load() -> String {
    read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned()
}
