//! The settings of the containerd runtime: `[agent.containerd]`.

use std::path::PathBuf;

use sandmesh_mesh::{ByteSize, ConfigError};
use serde::{Deserialize, Serialize};

use super::{invalid, validate_container};

/// The longest name of a namespace, as containerd has it.
const LONGEST_NAME: usize = 76;

/// How containers are made on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Containerd {
    /// The socket of containerd.
    pub socket: PathBuf,
    /// The namespace that containers are made in, and that images are taken from.
    pub namespace: String,
    /// What makes the file systems of containers, and has unpacked the images.
    pub snapshotter: String,
    /// The image of a sandbox whose template names none; empty means that a template must.
    pub image: String,
    /// Memory of a container beyond that of its executions, for the executor and its warm interpreters.
    pub memory_overhead: ByteSize,
}

impl Default for Containerd {
    fn default() -> Self {
        Self {
            socket: "/run/containerd/containerd.sock".into(),
            namespace: "sandmesh".to_owned(),
            snapshotter: "overlayfs".to_owned(),
            image: String::new(),
            memory_overhead: ByteSize(128 << 20),
        }
    }
}

impl Containerd {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        validate_container("containerd", &self.socket, self.memory_overhead)?;
        for (setting, name) in [("namespace", &self.namespace), ("snapshotter", &self.snapshotter)] {
            if !is_identifier(name) {
                let problem = "must be letters and digits, with single `-`, `_` and `.` between them";
                return Err(invalid(&format!("containerd.{setting}"), problem));
            }
        }
        Ok(())
    }
}

/// Whether containerd takes it as the name of something.
fn is_identifier(name: &str) -> bool {
    let is_word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric());
    name.len() <= LONGEST_NAME && name.split(['-', '_', '.']).all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_reported_with_its_setting() {
        Containerd::default().validate().unwrap();
        let problem = |own: Containerd| own.validate().unwrap_err().to_string();
        let relative = Containerd { socket: "containerd.sock".into(), ..Containerd::default() };
        assert!(problem(relative).contains("`agent.containerd.socket`"));
        let little = Containerd { memory_overhead: ByteSize(1), ..Containerd::default() };
        assert!(problem(little).contains("`agent.containerd.memory_overhead`"));
        for name in ["", "-a", "a..b", "a/b", "a\"b"] {
            let odd = Containerd { namespace: name.to_owned(), ..Containerd::default() };
            assert!(problem(odd).contains("`agent.containerd.namespace`"), "{name}");
        }
        let none = Containerd { snapshotter: String::new(), ..Containerd::default() };
        assert!(problem(none).contains("`agent.containerd.snapshotter`"));
    }
}
