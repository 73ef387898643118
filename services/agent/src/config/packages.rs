//! The settings of the installation of packages: `[agent.packages]`.

use std::time::Duration;

use sandmesh_mesh::{ByteSize, ConfigError, HumanDuration};
use serde::{Deserialize, Serialize};

use super::invalid;
use crate::{layers::Keep, proxy::Host};

/// The most hosts, and the most installers at once.
const HOSTS_MAX: usize = 100;
const CONCURRENT_MAX: u32 = 64;

/// How packages are installed on this node, and how much of them is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Packages {
    /// The hosts that installers reach: `HOST` or `HOST:PORT` by TLS, `http://HOST:PORT` in plain HTTP.
    pub hosts: Vec<String>,
    /// What all layers of packages together may take of the disk before those are removed that nobody uses.
    pub cache_size: ByteSize,
    /// How long a layer of packages is kept that nobody uses.
    pub cache_age: HumanDuration,
    /// Installers at once; others wait.
    pub max_concurrent: u32,
    /// CPU of an installer in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory of an installer.
    pub memory: ByteSize,
    /// What an installer may take of the disk, with what it unpacks and builds.
    pub disk: ByteSize,
    /// Processes and threads of an installer.
    pub max_processes: u32,
}

impl Default for Packages {
    fn default() -> Self {
        Self {
            hosts: ["pypi.org", "files.pythonhosted.org", "registry.npmjs.org"].map(str::to_owned).into(),
            cache_size: ByteSize(10 << 30),
            cache_age: HumanDuration(Duration::from_secs(7 * 24 * 3600)),
            max_concurrent: 2,
            cpu_millis: 2000,
            memory: ByteSize(2 << 30),
            disk: ByteSize(4 << 30),
            max_processes: 256,
        }
    }
}

impl Packages {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.hosts()?;
        if !(1..=CONCURRENT_MAX).contains(&self.max_concurrent) {
            return Err(invalid("packages.max_concurrent", format!("must be 1 to {CONCURRENT_MAX}")));
        }
        let least = [
            ("cpu_millis", u64::from(self.cpu_millis), 10),
            ("memory", self.memory.0, 64 << 20),
            ("disk", self.disk.0, 64 << 20),
            ("max_processes", u64::from(self.max_processes), 32),
        ];
        match least.into_iter().find(|(_, value, least)| value < least) {
            Some((setting, _, least)) => {
                Err(invalid(&format!("packages.{setting}"), format!("must be at least {least}")))
            }
            None => Ok(()),
        }
    }

    /// The hosts, read.
    ///
    /// # Errors
    /// Names the setting when one is none.
    pub(crate) fn hosts(&self) -> Result<Vec<Host>, ConfigError> {
        if self.hosts.len() > HOSTS_MAX {
            return Err(invalid("packages.hosts", format!("must be at most {HOSTS_MAX}")));
        }
        let read = |host: &String| {
            host.parse().map_err(|problem| invalid("packages.hosts", format!("`{host}` {problem}")))
        };
        self.hosts.iter().map(read).collect()
    }

    /// How much is kept.
    pub(crate) fn keep(&self) -> Keep {
        Keep { bytes: self.cache_size.0, unused: self.cache_age.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_none_is_reported_with_its_setting() {
        Packages::default().validate().unwrap();
        let wrong = Packages { hosts: vec!["https://pypi.org/simple".into()], ..Packages::default() };
        let error = wrong.validate().unwrap_err().to_string();
        assert!(error.contains("`agent.packages.hosts`") && error.contains("pypi.org/simple"), "{error}");
        let small = Packages { memory: ByteSize(1), ..Packages::default() };
        assert!(small.validate().unwrap_err().to_string().contains("`agent.packages.memory`"));
    }
}
