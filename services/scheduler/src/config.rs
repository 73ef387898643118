//! The settings of the scheduler: `[scheduler]` in the configuration.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use sandmesh_mesh::{ConfigError, HumanDuration};
use serde::{Deserialize, Serialize};

/// The settings of the scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often nodes are asked to report.
    pub heartbeat_interval: HumanDuration,
    /// After how long without a report nothing is placed on a node.
    pub heartbeat_timeout: HumanDuration,
    /// After how long without a report a node is lost: its sandboxes count as dead, and are removed when it
    /// comes back.
    pub node_lost_after: HumanDuration,
    /// After how long without a report a node is forgotten.
    pub forget_after: HumanDuration,
    /// How long a creation waits for a healthy node while there is none, as at the start of the mesh.
    pub node_wait: HumanDuration,
    /// How long a node may take to create a sandbox.
    pub create_timeout: HumanDuration,
    /// How long a node may take to answer any other call.
    pub call_timeout: HumanDuration,
    /// How many nodes there may be.
    pub max_nodes: u32,
    /// Who waits for room.
    pub queue: Queue,
    /// Warm sandboxes.
    pub pools: Pools,
    /// Machines that join.
    pub join: Join,
}

/// The settings of machines that join: `[scheduler.join]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Join {
    /// Where machines join, over TLS; unset: none may.
    pub listen: Option<SocketAddr>,
    /// The certificate of the authority, and its key, in PEM; unset: made in `authority` in `mesh.data_dir`.
    pub certificate: Option<PathBuf>,
    /// See `certificate`: both or none.
    pub key: Option<PathBuf>,
    /// How long a token works, unless who asks for it says otherwise.
    pub token_valid_for: HumanDuration,
    /// How long a certificate does; it is renewed when half of that is over.
    pub certificate_valid_for: HumanDuration,
}

impl Default for Join {
    fn default() -> Self {
        let hours = |hours: u64| HumanDuration(Duration::from_secs(hours * 3600));
        Self {
            listen: None,
            certificate: None,
            key: None,
            token_valid_for: hours(24),
            certificate_valid_for: hours(30 * 24),
        }
    }
}

impl Join {
    /// How long a token may work.
    pub(crate) const TOKEN_VALID_FOR: RangeInclusive<Duration> =
        Duration::from_secs(60)..=Duration::from_secs(30 * 86_400);

    /// Where the certificate and the key of the authority are.
    pub(crate) fn files(&self, data_dir: &Path) -> (PathBuf, PathBuf) {
        let own = |name: &str| data_dir.join("authority").join(name);
        let (certificate, key) = (self.certificate.clone(), self.key.clone());
        (certificate.unwrap_or_else(|| own("cert.pem")), key.unwrap_or_else(|| own("key.pem")))
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |setting: &str, problem: &str| {
            Err(ConfigError::invalid(format!("scheduler.join.{setting}"), problem))
        };
        if self.certificate.is_some() != self.key.is_some() {
            return invalid("key", "give both `certificate` and `key`, or neither");
        }
        if !Self::TOKEN_VALID_FOR.contains(&self.token_valid_for.0) {
            return invalid("token_valid_for", "must be from 1m to 30days");
        }
        if self.certificate_valid_for.0 < Duration::from_secs(60) {
            return invalid("certificate_valid_for", "must be at least 1m");
        }
        if self.certificate_valid_for.0 > Duration::from_secs(366 * 86_400) {
            return invalid("certificate_valid_for", "must be at most a year");
        }
        Ok(())
    }
}

/// The settings of those who wait for room: `[scheduler.queue]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// How many creations may wait; others are refused at once.
    pub max_waiting: u32,
    /// How long one waits.
    pub max_wait: HumanDuration,
}

impl Default for Queue {
    fn default() -> Self {
        Self { max_waiting: 1000, max_wait: HumanDuration(Duration::from_secs(1)) }
    }
}

/// The settings of warm sandboxes: `[scheduler.pools]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pools {
    /// How often it is looked which templates have warm sandboxes, and what these are to be.
    pub refresh_interval: HumanDuration,
    /// How long a warm sandbox waits for a session at most; then another takes its place.
    pub lifetime: HumanDuration,
    /// How many are made at once.
    pub starts_at_once: u32,
    /// Up to how much of a node is given to warm sandboxes, in percent: the rest is for what is asked for.
    pub fill_percent: u32,
}

impl Default for Pools {
    fn default() -> Self {
        let seconds = |seconds| HumanDuration(Duration::from_secs(seconds));
        Self { refresh_interval: seconds(5), lifetime: seconds(3600), starts_at_once: 2, fill_percent: 75 }
    }
}

impl Pools {
    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |setting: &str, problem: &str| {
            Err(ConfigError::invalid(format!("scheduler.pools.{setting}"), problem))
        };
        if self.refresh_interval.0 < Duration::from_millis(100) {
            return invalid("refresh_interval", "must be at least 100ms");
        }
        if self.lifetime.0 < Duration::from_secs(60) {
            return invalid("lifetime", "must be at least 60s");
        }
        if !(1..=1000).contains(&self.starts_at_once) {
            return invalid("starts_at_once", "must be from 1 to 1000");
        }
        if self.fill_percent > 100 {
            return invalid("fill_percent", "must be at most 100");
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        let seconds = |seconds| HumanDuration(Duration::from_secs(seconds));
        Self {
            heartbeat_interval: seconds(2),
            heartbeat_timeout: seconds(5),
            node_lost_after: seconds(60),
            forget_after: seconds(3600),
            node_wait: seconds(2),
            create_timeout: seconds(20),
            call_timeout: seconds(10),
            max_nodes: 1000,
            queue: Queue::default(),
            pools: Pools::default(),
            join: Join::default(),
        }
    }
}

impl Config {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Names the first setting that cannot be used, and what would be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid =
            |setting: &str, problem: &str| ConfigError::invalid(format!("scheduler.{setting}"), problem);
        for (setting, value) in [
            ("heartbeat_interval", self.heartbeat_interval),
            ("create_timeout", self.create_timeout),
            ("call_timeout", self.call_timeout),
        ] {
            if value.0 < Duration::from_millis(100) {
                return Err(invalid(setting, "must be at least 100ms"));
            }
        }
        if self.heartbeat_timeout.0 < self.heartbeat_interval.0 * 2 {
            return Err(invalid(
                "heartbeat_timeout",
                "must be at least twice `scheduler.heartbeat_interval`",
            ));
        }
        if self.node_lost_after.0 < self.heartbeat_timeout.0 {
            return Err(invalid("node_lost_after", "must be at least `scheduler.heartbeat_timeout`"));
        }
        if self.forget_after.0 < self.node_lost_after.0 {
            return Err(invalid("forget_after", "must be at least `scheduler.node_lost_after`"));
        }
        if self.max_nodes == 0 {
            return Err(invalid("max_nodes", "must be at least 1"));
        }
        if self.queue.max_wait.0 > Duration::from_secs(20) {
            return Err(invalid("queue.max_wait", "must be at most 20s"));
        }
        self.pools.validate()?;
        self.join.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_shorter_than_two_reports_is_refused_by_name() {
        Config::default().validate().unwrap();
        let hasty = Config { heartbeat_timeout: HumanDuration(Duration::from_secs(3)), ..Config::default() };
        assert!(hasty.validate().unwrap_err().to_string().contains("`scheduler.heartbeat_timeout`"));
    }
}
