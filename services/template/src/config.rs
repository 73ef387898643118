//! The settings of the template role.

use std::{path::Path, time::Duration};

use sandmesh_mesh::{ConfigError, HumanDuration};
use serde::{Deserialize, Serialize};

use crate::store::Target;

/// The settings of the template role.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The database, as `sqlite:PATH`. Empty: `template.db` in the data directory.
    pub database_url: String,
    /// At most this many connections to the database, [1..64].
    pub max_connections: u32,
    /// How long a write waits for another one to finish, [1ms..60s].
    pub busy_timeout: HumanDuration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            database_url: String::new(),
            max_connections: 4,
            busy_timeout: HumanDuration(Duration::from_secs(5)),
        }
    }
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !self.database_url.is_empty() && !self.database_url.starts_with("sqlite:") {
            let scheme = self.database_url.split(':').next().unwrap_or_default();
            let problem = format!("`{scheme}` is not a database this role can use; give `sqlite:PATH`");
            return Err(ConfigError::invalid("template.database_url", problem));
        }
        if !(1..=64).contains(&self.max_connections) {
            return Err(ConfigError::invalid("template.max_connections", "must be from 1 to 64"));
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(60)).contains(&self.busy_timeout.0) {
            return Err(ConfigError::invalid("template.busy_timeout", "must be from 1ms to 60s"));
        }
        Ok(())
    }

    /// How the database is reached.
    pub(crate) fn target(&self, data_dir: &Path) -> Target {
        let in_memory = self.database_url.contains(":memory:") || self.database_url.contains("mode=memory");
        Target {
            url: self.database_url.clone(),
            default_path: data_dir.join("template.db"),
            // Every connection to a database in memory would open a database of its own.
            max_connections: if in_memory { 1 } else { self.max_connections },
            busy_timeout: self.busy_timeout.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_url(url: &str) -> Config {
        Config { database_url: url.to_owned(), ..Config::default() }
    }

    #[test]
    fn the_default_is_valid() {
        Config::default().validate().unwrap();
        with_url("sqlite:/var/lib/sandmesh/template.db").validate().unwrap();
    }

    #[test]
    fn a_database_of_another_kind_is_refused_by_name_and_without_its_password() {
        let error = with_url("postgres://me:secret@db/templates").validate().unwrap_err().to_string();
        assert!(error.contains("template.database_url") && error.contains("`postgres`"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn no_connections_are_refused() {
        assert!(Config { max_connections: 0, ..Config::default() }.validate().is_err());
    }
}
