//! What is attacked: the address of a deployment, and what of it can be seen from here.

use std::path::PathBuf;

use sandmesh_mesh::Secret;

/// A deployment.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its gateway, `http://HOST:PORT`.
    pub url: String,
    /// The key that lets the suite in.
    pub api_key: Option<Secret>,
    /// The template of the sessions that are attacked.
    pub template: String,
    /// What is on this machine; without it, what only the host can see is not looked at.
    pub local: Option<Local>,
    /// The `sandmesh` program, for the cases about how a server starts.
    pub program: Option<PathBuf>,
}

/// The parts of a deployment that are on this machine.
#[derive(Debug, Clone)]
pub struct Local {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its server processes, if they are known.
    pub pids: Vec<u32>,
    /// Where its processes log, if that is known.
    pub logs: Vec<PathBuf>,
    /// Values in the environment or the configuration of its processes that nobody may see.
    pub secrets: Vec<String>,
}
