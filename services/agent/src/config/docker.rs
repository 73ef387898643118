//! The settings of the Docker runtime: `[agent.docker]`.

use std::{path::PathBuf, time::Duration};

use sandmesh_mesh::{ByteSize, ConfigError, HumanDuration};
use serde::{Deserialize, Serialize};

use super::{invalid, validate_container};

/// How containers are made on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Docker {
    /// The socket of the engine.
    pub socket: PathBuf,
    /// The image of a sandbox whose template names none; empty means that a template must.
    pub image: String,
    /// Whether an image is pulled that is not there.
    pub pull: Pull,
    /// How long pulling an image may take.
    pub pull_timeout: HumanDuration,
    /// Memory of a container beyond that of its executions, for the executor and its warm interpreters.
    pub memory_overhead: ByteSize,
    /// The AppArmor profile, where the engine uses AppArmor. The engine's own one forbids every mount, and with
    /// that the jail.
    pub apparmor: String,
}

impl Default for Docker {
    fn default() -> Self {
        Self {
            socket: "/var/run/docker.sock".into(),
            image: String::new(),
            pull: Pull::Missing,
            pull_timeout: HumanDuration(Duration::from_secs(600)),
            memory_overhead: ByteSize(128 << 20),
            apparmor: "unconfined".to_owned(),
        }
    }
}

/// Whether images are pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pull {
    /// One that is not there.
    Missing,
    /// None: a sandbox whose image is not there is refused.
    Never,
}

impl Docker {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        validate_container("docker", &self.socket, self.memory_overhead)?;
        if self.pull_timeout.0 < Duration::from_secs(1) {
            return Err(invalid("docker.pull_timeout", "must be at least 1s"));
        }
        let in_a_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.apparmor.is_empty() || !self.apparmor.chars().all(in_a_name) {
            return Err(invalid("docker.apparmor", "must be the name of a profile, or `unconfined`"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_reported_with_its_setting() {
        Docker::default().validate().unwrap();
        let problem = |docker: Docker| docker.validate().unwrap_err().to_string();
        let tcp = Docker { socket: "tcp://10.0.0.1:2375".into(), ..Docker::default() };
        assert!(problem(tcp).contains("`agent.docker.socket`"));
        let little = Docker { memory_overhead: ByteSize(1), ..Docker::default() };
        assert!(problem(little).contains("`agent.docker.memory_overhead`"));
        let odd = Docker { apparmor: "a b".to_owned(), ..Docker::default() };
        assert!(problem(odd).contains("`agent.docker.apparmor`"));
    }
}
