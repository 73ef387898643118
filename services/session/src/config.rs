//! The settings of the session role.

mod object_store;

use std::{path::Path, path::PathBuf, time::Duration};

use sandmesh_mesh::{ByteSize, ConfigError, DatabaseUrl, HumanDuration, PoolSettings};
use serde::{Deserialize, Serialize};

pub use self::object_store::ObjectStoreConfig;
pub use crate::index::Packages;

/// The settings of the session role, in section `session`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The database, as `sqlite://PATH`, `mysql://USER:PASSWORD@HOST/DATABASE` (MariaDB, too) or
    /// `postgres://USER:PASSWORD@HOST/DATABASE`; empty: `session.db` in the data directory. It is a secret.
    pub database_url: DatabaseUrl,
    /// How many connections to a database server there may be.
    pub max_connections: u32,
    /// How long it may take to get a connection to a database server.
    pub database_connect_timeout: HumanDuration,
    /// How long a connection to a database server is kept that nobody uses.
    pub database_idle_timeout: HumanDuration,
    /// How long a database server may take over a statement.
    pub database_statement_timeout: HumanDuration,
    /// Where other processes of this role dial this one; empty: as `mesh.listen` says.
    pub advertise: String,
    /// The directory that files and large output is kept in; empty: `objects` in the data directory.
    pub object_dir: PathBuf,
    /// A bucket that they are kept in instead.
    pub object_store: ObjectStoreConfig,
    /// How long `CreateSession` waits for the sandbox before it answers that the session is being created.
    pub create_wait: HumanDuration,
    /// How long the creation of a sandbox may take in all, but for the time in which its image is pulled; then the
    /// session fails.
    pub creating_timeout: HumanDuration,
    /// How long `TerminateSession` waits for the sandbox to be gone; the removal goes on after that.
    pub terminate_wait: HumanDuration,
    /// How often the sandbox of a session is made anew after it was lost; then the loss ends the session.
    pub max_recoveries: u32,
    /// How many sessions there may be that have not ended.
    pub max_sessions: u32,
    /// How many executions of one session may be pending or running.
    pub max_executions_per_session: u32,
    /// The most CPU a session may ask for, in thousandths of a core.
    pub max_cpu_millis: u32,
    /// The most memory a session may ask for.
    pub max_memory: ByteSize,
    /// The largest workspace a session may ask for.
    pub max_disk: ByteSize,
    /// The most processes and threads a session may ask for.
    pub max_processes: u32,
    /// How many processes and threads a session gets whose template does not say.
    pub default_processes: u32,
    /// How many executions of a session run at once, the others wait; 0: what the node allows.
    pub max_concurrent_executions: u32,
    /// Code, input, output and return values up to this size are kept in the database, larger ones in the
    /// object store.
    pub inline_limit: ByteSize,
    /// How much output is recorded for each stream of an execution. The executor has a limit of its own,
    /// `agent.max_output`, usually smaller; this one guards against an executor that ignores it.
    pub max_output: ByteSize,
    /// How much content of files is kept for a session in all, with what its executions made and replaced.
    pub max_stored: ByteSize,
    /// How long a session is kept after its end, with its executions, their output and its files.
    pub retention: HumanDuration,
    /// How often lifetimes, idle times and retention are checked.
    pub sweep_interval: HumanDuration,
    /// The longest pause between two attempts to reach a sandbox or the scheduler.
    pub retry_max: HumanDuration,
    /// Where packages come from.
    pub packages: Packages,
}

impl Default for Config {
    fn default() -> Self {
        let seconds = |seconds| HumanDuration(Duration::from_secs(seconds));
        Self {
            database_url: DatabaseUrl::default(),
            max_connections: 16,
            database_connect_timeout: seconds(3),
            database_idle_timeout: seconds(600),
            database_statement_timeout: seconds(5),
            advertise: String::new(),
            object_dir: PathBuf::new(),
            object_store: ObjectStoreConfig::default(),
            create_wait: seconds(2),
            creating_timeout: seconds(60),
            terminate_wait: seconds(10),
            max_recoveries: 3,
            max_sessions: 1000,
            max_executions_per_session: 256,
            max_cpu_millis: 4000,
            max_memory: ByteSize(8 << 30),
            max_disk: ByteSize(50 << 30),
            max_processes: 1024,
            default_processes: 128,
            max_concurrent_executions: 0,
            inline_limit: ByteSize(32 << 10),
            max_output: ByteSize(64 << 20),
            max_stored: ByteSize(10 << 30),
            retention: seconds(24 * 3600),
            sweep_interval: HumanDuration(Duration::from_millis(500)),
            retry_max: HumanDuration(Duration::from_millis(400)),
            packages: Packages::default(),
        }
    }
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.database_url.check("session.database_url")?;
        self.pool().validate("session")?;
        self.validate_places()?;
        self.object_store.validate()?;
        self.packages.validate()?;
        self.validate_counts()?;
        self.validate_sizes()?;
        self.validate_durations()
    }

    fn validate_places(&self) -> Result<(), ConfigError> {
        if !self.object_dir.as_os_str().is_empty() && !self.object_dir.is_absolute() {
            return Err(ConfigError::invalid("session.object_dir", "give an absolute path"));
        }
        if !self.object_dir.as_os_str().is_empty() && self.object_store.bucket().is_some() {
            let problem = "give this or `session.object_store.url`, not both";
            return Err(ConfigError::invalid("session.object_dir", problem));
        }
        let dialable = ["http://", "unix:/"].iter().any(|form| self.advertise.starts_with(form));
        if !self.advertise.is_empty() && !dialable {
            let problem =
                "must be an address such as `http://10.0.0.2:8001` or `unix:/run/sandmesh/session.sock`";
            return Err(ConfigError::invalid("session.advertise", problem));
        }
        Ok(())
    }

    fn validate_counts(&self) -> Result<(), ConfigError> {
        let counts = [
            ("max_sessions", self.max_sessions),
            ("max_executions_per_session", self.max_executions_per_session),
            ("max_cpu_millis", self.max_cpu_millis),
            ("max_processes", self.max_processes),
            ("default_processes", self.default_processes),
        ];
        if self.max_recoveries > 1000 {
            return Err(ConfigError::invalid("session.max_recoveries", "must be at most 1000"));
        }
        match counts.into_iter().find(|(_, count)| *count == 0) {
            Some((name, _)) => Err(ConfigError::invalid(format!("session.{name}"), "must be at least 1")),
            None if self.default_processes > self.max_processes => {
                let problem = "must not be more than `session.max_processes`";
                Err(ConfigError::invalid("session.default_processes", problem))
            }
            None => Ok(()),
        }
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("max_memory", self.max_memory, 16 << 20, u64::MAX),
            ("max_disk", self.max_disk, 1 << 20, u64::MAX),
            // The shortest TEXT column among the databases holds 64 KiB.
            ("inline_limit", self.inline_limit, 1 << 10, 63 << 10),
            ("max_output", self.max_output, 1 << 10, 1 << 40),
            ("max_stored", self.max_stored, 1 << 20, 1 << 50),
        ];
        for (name, size, least, most) in sizes {
            if size.0 < least || size.0 > most {
                let problem = format!("must be from {} to {}", ByteSize(least), ByteSize(most));
                return Err(ConfigError::invalid(format!("session.{name}"), problem));
            }
        }
        Ok(())
    }

    fn validate_durations(&self) -> Result<(), ConfigError> {
        let (hour, week) = (Duration::from_secs(3600), Duration::from_secs(7 * 24 * 3600));
        let durations = [
            ("create_wait", self.create_wait, Duration::ZERO, hour),
            ("creating_timeout", self.creating_timeout, Duration::from_secs(1), hour),
            ("terminate_wait", self.terminate_wait, Duration::ZERO, hour),
            ("retention", self.retention, Duration::ZERO, week * 520),
            ("sweep_interval", self.sweep_interval, Duration::from_millis(10), Duration::from_secs(60)),
            ("retry_max", self.retry_max, Duration::from_millis(10), Duration::from_secs(1)),
        ];
        for (name, value, least, most) in durations {
            if value.0 < least || value.0 > most {
                let problem = format!("must be from {} to {}", HumanDuration(least), HumanDuration(most));
                return Err(ConfigError::invalid(format!("session.{name}"), problem));
            }
        }
        Ok(())
    }

    /// The database, with the default filled in.
    pub(crate) fn database(&self, data_dir: &Path) -> DatabaseUrl {
        if self.database_url.is_empty() {
            DatabaseUrl::new(format!("sqlite://{}", data_dir.join("session.db").display()))
        } else {
            self.database_url.clone()
        }
    }

    /// How connections to a database server are pooled.
    pub(crate) fn pool(&self) -> PoolSettings {
        PoolSettings {
            max_connections: self.max_connections,
            connect_timeout: self.database_connect_timeout.0,
            idle_timeout: self.database_idle_timeout.0,
            statement_timeout: self.database_statement_timeout.0,
        }
    }

    /// The directory of the object store, with the default filled in.
    pub(crate) fn objects(&self, data_dir: &Path) -> PathBuf {
        if self.object_dir.as_os_str().is_empty() {
            data_dir.join("objects")
        } else {
            self.object_dir.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: &Config) -> String {
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_can_be_used() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn unknown_database_is_refused_without_showing_its_password() {
        let config =
            Config { database_url: DatabaseUrl::new("oracle://me:hunter2@db/x"), ..Config::default() };
        let error = refused(&config);
        assert!(error.contains("session.database_url") && error.contains("postgres://"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn a_setting_out_of_range_is_named() {
        assert!(refused(&Config { max_sessions: 0, ..Config::default() }).contains("session.max_sessions"));
        let config = Config { sweep_interval: HumanDuration(Duration::ZERO), ..Config::default() };
        assert!(refused(&config).contains("session.sweep_interval"));
        let config = Config { inline_limit: ByteSize(1), ..Config::default() };
        assert!(refused(&config).contains("session.inline_limit"));
        let config = Config { default_processes: 5000, ..Config::default() };
        assert!(refused(&config).contains("session.default_processes"));
        let config = Config { max_connections: 1, ..Config::default() };
        assert!(refused(&config).contains("session.max_connections"));
    }
}
