//! Every setting of the platform in one tree: a section for the mesh and one for each role.

use std::path::{Path, PathBuf};

use directories::ProjectDirs;
use sandmesh_mesh::{ConfigError, MeshConfig, config};
use serde::{Deserialize, Serialize};

/// The configuration of a node. The default runs every role in one process and needs no file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The node itself.
    pub mesh: MeshConfig,
    /// REST, gRPC-web and gRPC for clients.
    pub gateway: sandmesh_gateway::Config,
    /// Sessions and executions.
    pub session: sandmesh_session::Config,
    /// Templates.
    pub template: sandmesh_template::Config,
    /// Nodes and placement.
    pub scheduler: sandmesh_scheduler::Config,
    /// The runtime of this node.
    pub agent: sandmesh_agent::Config,
    /// Probes.
    pub health_probe: sandmesh_health_probe::Config,
    /// Reconciling.
    pub state_sync: sandmesh_state_sync::Config,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mesh: MeshConfig { data_dir: default_data_dir(), ..MeshConfig::default() },
            gateway: sandmesh_gateway::Config::default(),
            session: sandmesh_session::Config::default(),
            template: sandmesh_template::Config::default(),
            scheduler: sandmesh_scheduler::Config::default(),
            agent: sandmesh_agent::Config::default(),
            health_probe: sandmesh_health_probe::Config::default(),
            state_sync: sandmesh_state_sync::Config::default(),
        }
    }
}

/// A directory under the user's data home; empty (and refused later, by name) for a user without one.
fn default_data_dir() -> PathBuf {
    ProjectDirs::from("", "", "sandmesh").map(|dirs| dirs.data_dir().to_owned()).unwrap_or_default()
}

impl Settings {
    /// Reads the settings: defaults < `file` < environment < `flags`, and checks them.
    ///
    /// # Errors
    /// Names the setting that cannot be used.
    pub fn load(file: Option<&Path>, flags: serde_json::Value) -> Result<Self, ConfigError> {
        let settings: Self = config::load(file, flags)?;
        settings.validate()?;
        Ok(settings)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        self.mesh.validate()?;
        self.gateway.validate()?;
        self.session.validate()?;
        self.template.validate()?;
        self.scheduler.validate()?;
        self.agent.validate()?;
        self.health_probe.validate()?;
        self.state_sync.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_survive_a_dump() {
        let dump = config::dump(&Settings::default()).unwrap();
        let read: Settings = toml::from_str(&dump).unwrap();
        assert_eq!(config::dump(&read).unwrap(), dump);
    }
}
