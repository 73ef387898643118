//! An index of packages on the loopback, with packages that are made for the tests; see `index.py`.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

/// A running index. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Index {
    dir: TempDir,
    child: Child,
    settings: Vec<(String, String)>,
}

impl Index {
    /// Starts it. What builds hostile packages is to attack `target`, a port of this machine.
    pub(crate) fn start(target: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/harness/index.py");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "/usr/bin/python3", program])
            .arg(dir.path())
            .arg(target.to_string());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().unwrap();
        let own = format!("http://127.0.0.1:{port}");
        let settings = [
            ("SANDMESH_SESSION__PACKAGES__PYTHON_INDEX", format!("{own}/simple")),
            ("SANDMESH_SESSION__PACKAGES__NPM_REGISTRY", format!("{own}/npm")),
            ("SANDMESH_AGENT__PACKAGES__HOSTS", format!("[\"{own}\"]")),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value)).into();
        Self { dir, child, settings }
    }

    /// What a server needs to install from here, and some more.
    pub(crate) fn settings<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let own = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        own.chain(more.iter().copied()).collect()
    }

    /// How often something was asked for whose path begins so.
    pub(crate) fn asked(&self, path: &str) -> usize {
        let requests = fs::read_to_string(self.dir.path().join("requests")).unwrap_or_default();
        requests.lines().filter(|line| line.starts_with(path)).count()
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
