//! The settings of the health-probe role.

use std::time::Duration;

use sandmesh_mesh::{ConfigError, HumanDuration};
use serde::{Deserialize, Serialize};

/// The settings of the health-probe role.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long a role may take to tell how it is, [10ms..60s].
    pub probe_timeout: HumanDuration,
    /// How often the executor of each running sandbox is asked whether it is there, [100ms..1h].
    pub sandbox_probe_interval: HumanDuration,
    /// How long an executor may take to answer, [10ms..60s]. Long, as user code may keep its machine busy.
    pub sandbox_probe_timeout: HumanDuration,
    /// How often in a row an executor that has answered before may fail to until its sandbox counts as
    /// lost, [1..100].
    pub sandbox_probe_failures: u32,
    /// At most this many executors are asked at once, [1..1024].
    pub max_concurrent_probes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            probe_timeout: HumanDuration(Duration::from_secs(1)),
            sandbox_probe_interval: HumanDuration(Duration::from_secs(2)),
            sandbox_probe_timeout: HumanDuration(Duration::from_secs(5)),
            sandbox_probe_failures: 3,
            max_concurrent_probes: 16,
        }
    }
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let timeouts = Duration::from_millis(10)..=Duration::from_secs(60);
        let intervals = Duration::from_millis(100)..=Duration::from_secs(3600);
        if !timeouts.contains(&self.probe_timeout.0) {
            return Err(invalid("probe_timeout", "must be from 10ms to 60s"));
        }
        if !intervals.contains(&self.sandbox_probe_interval.0) {
            return Err(invalid("sandbox_probe_interval", "must be from 100ms to 1h"));
        }
        if !timeouts.contains(&self.sandbox_probe_timeout.0) {
            return Err(invalid("sandbox_probe_timeout", "must be from 10ms to 60s"));
        }
        if !(1..=100).contains(&self.sandbox_probe_failures) {
            return Err(invalid("sandbox_probe_failures", "must be from 1 to 100"));
        }
        if !(1..=1024).contains(&self.max_concurrent_probes) {
            return Err(invalid("max_concurrent_probes", "must be from 1 to 1024"));
        }
        Ok(())
    }
}

fn invalid(setting: &str, problem: &str) -> ConfigError {
    ConfigError::invalid(format!("health_probe.{setting}"), problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn a_setting_that_would_spin_or_never_probe_is_refused_by_name() {
        let zero = HumanDuration(Duration::ZERO);
        let bad = [
            ("probe_timeout", Config { probe_timeout: zero, ..Config::default() }),
            ("sandbox_probe_interval", Config { sandbox_probe_interval: zero, ..Config::default() }),
            ("sandbox_probe_timeout", Config { sandbox_probe_timeout: zero, ..Config::default() }),
            ("sandbox_probe_failures", Config { sandbox_probe_failures: 0, ..Config::default() }),
            ("max_concurrent_probes", Config { max_concurrent_probes: 0, ..Config::default() }),
        ];
        for (setting, config) in bad {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(&format!("health_probe.{setting}")), "{error}");
        }
    }
}
