//! The settings of the state-sync role.

use std::time::Duration;

use sandmesh_mesh::{ConfigError, HumanDuration};
use serde::{Deserialize, Serialize};

/// The settings of the state-sync role.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How often sessions and sandboxes are compared, [100ms..1d].
    pub interval: HumanDuration,
    /// How old a sandbox is at least before it is removed because nobody knows its session, [0s..1d]. That
    /// of a session that is known to have ended is removed at once.
    pub orphan_grace: HumanDuration,
    /// How long one call to another role may take, [100ms..10m].
    pub call_timeout: HumanDuration,
    /// At most this many calls are made at once, [1..256].
    pub max_concurrent_calls: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval: HumanDuration(Duration::from_secs(30)),
            orphan_grace: HumanDuration(Duration::from_secs(30)),
            call_timeout: HumanDuration(Duration::from_secs(30)),
            max_concurrent_calls: 8,
        }
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let least = Duration::from_millis(100);
        if !(least..=DAY).contains(&self.interval.0) {
            return Err(invalid("interval", "must be from 100ms to 1d"));
        }
        if self.orphan_grace.0 > DAY {
            return Err(invalid("orphan_grace", "must be at most 1d"));
        }
        if !(least..=Duration::from_secs(600)).contains(&self.call_timeout.0) {
            return Err(invalid("call_timeout", "must be from 100ms to 10m"));
        }
        if !(1..=256).contains(&self.max_concurrent_calls) {
            return Err(invalid("max_concurrent_calls", "must be from 1 to 256"));
        }
        Ok(())
    }
}

fn invalid(setting: &str, problem: &str) -> ConfigError {
    ConfigError::invalid(format!("state_sync.{setting}"), problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn a_setting_that_would_spin_or_never_act_is_refused_by_name() {
        let (zero, week) = (HumanDuration(Duration::ZERO), HumanDuration(DAY * 7));
        let bad = [
            ("interval", Config { interval: zero, ..Config::default() }),
            ("orphan_grace", Config { orphan_grace: week, ..Config::default() }),
            ("call_timeout", Config { call_timeout: zero, ..Config::default() }),
            ("max_concurrent_calls", Config { max_concurrent_calls: 0, ..Config::default() }),
        ];
        for (setting, config) in bad {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(&format!("state_sync.{setting}")), "{error}");
        }
    }
}
