//! The settings of the health-probe role.

use std::time::Duration;

use sandmesh_mesh::{ConfigError, HumanDuration};
use serde::{Deserialize, Serialize};

use crate::condition::Thresholds;

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
    /// How often roles, databases and the object store are measured for those who follow health, [100ms..1h].
    /// Whoever reads the health of the whole has it measured then.
    pub dependency_probe_interval: HumanDuration,
    /// What answers later than this counts as slow, [1ms..60s].
    pub slow_after: HumanDuration,
    /// After how many bad or slow measurements in a row something is degraded, [1..100].
    pub degraded_after: u32,
    /// After how many bad measurements in a row something is unhealthy, from `degraded_after` to 100.
    pub unhealthy_after: u32,
    /// After how many good measurements in a row it is healthy again, [1..100].
    pub healthy_after: u32,
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
            dependency_probe_interval: HumanDuration(Duration::from_secs(15)),
            slow_after: HumanDuration(Duration::from_secs(1)),
            degraded_after: 2,
            unhealthy_after: 3,
            healthy_after: 2,
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
        self.validate_thresholds()?;
        if !(1..=1024).contains(&self.max_concurrent_probes) {
            return Err(invalid("max_concurrent_probes", "must be from 1 to 1024"));
        }
        Ok(())
    }

    fn validate_thresholds(&self) -> Result<(), ConfigError> {
        let second = Duration::from_secs(1);
        if !(second / 10..=second * 3600).contains(&self.dependency_probe_interval.0) {
            return Err(invalid("dependency_probe_interval", "must be from 100ms to 1h"));
        }
        if !(second / 1000..=second * 60).contains(&self.slow_after.0) {
            return Err(invalid("slow_after", "must be from 1ms to 60s"));
        }
        for (setting, count) in
            [("degraded_after", self.degraded_after), ("healthy_after", self.healthy_after)]
        {
            if !(1..=100).contains(&count) {
                return Err(invalid(setting, "must be from 1 to 100"));
            }
        }
        if !(self.degraded_after..=100).contains(&self.unhealthy_after) {
            return Err(invalid("unhealthy_after", "must be from `health_probe.degraded_after` to 100"));
        }
        Ok(())
    }

    /// How many measurements in a row change how something is.
    pub(crate) fn thresholds(&self) -> Thresholds {
        let Self { degraded_after, unhealthy_after, healthy_after, .. } = *self;
        Thresholds { degraded_after, unhealthy_after, healthy_after }
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
            ("dependency_probe_interval", Config { dependency_probe_interval: zero, ..Config::default() }),
            ("slow_after", Config { slow_after: zero, ..Config::default() }),
            ("degraded_after", Config { degraded_after: 0, ..Config::default() }),
            ("unhealthy_after", Config { unhealthy_after: 1, ..Config::default() }),
            ("healthy_after", Config { healthy_after: 0, ..Config::default() }),
            ("max_concurrent_probes", Config { max_concurrent_probes: 0, ..Config::default() }),
        ];
        for (setting, config) in bad {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(&format!("health_probe.{setting}")), "{error}");
        }
    }
}
