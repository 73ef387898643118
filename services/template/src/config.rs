//! The settings of the template role.

use std::{path::Path, time::Duration};

use sandmesh_mesh::{ConfigError, DatabaseUrl, HumanDuration, PoolSettings};
use sea_orm::DbBackend;
use serde::{Deserialize, Serialize};

use crate::store::Target;

/// The settings of the template role.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The database, as `sqlite://PATH`, `mysql://USER:PASSWORD@HOST/DATABASE` (MariaDB, too) or
    /// `postgres://USER:PASSWORD@HOST/DATABASE`. Empty: `template.db` in the data directory. It is a secret.
    pub database_url: DatabaseUrl,
    /// At most this many connections to the database, [1..64].
    pub max_connections: u32,
    /// How long a write to a SQLite database waits for another one to finish, [1ms..60s].
    pub busy_timeout: HumanDuration,
    /// How long it may take to get a connection to a database server.
    pub database_connect_timeout: HumanDuration,
    /// How long a connection to a database server is kept that nobody uses.
    pub database_idle_timeout: HumanDuration,
    /// How long a database server may take over a statement.
    pub database_statement_timeout: HumanDuration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            database_url: DatabaseUrl::default(),
            max_connections: 4,
            busy_timeout: HumanDuration(Duration::from_secs(5)),
            database_connect_timeout: HumanDuration(Duration::from_secs(3)),
            database_idle_timeout: HumanDuration(Duration::from_secs(600)),
            database_statement_timeout: HumanDuration(Duration::from_secs(5)),
        }
    }
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.database_url.check("template.database_url")?;
        if !(1..=64).contains(&self.max_connections) {
            return Err(ConfigError::invalid("template.max_connections", "must be from 1 to 64"));
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(60)).contains(&self.busy_timeout.0) {
            return Err(ConfigError::invalid("template.busy_timeout", "must be from 1ms to 60s"));
        }
        // SQLite is content with one connection.
        let connections = self.max_connections.max(if self.is_file() { 2 } else { 0 });
        PoolSettings { max_connections: connections, ..self.pool() }.validate("template")
    }

    /// How the database is reached.
    pub(crate) fn target(&self, data_dir: &Path) -> Target {
        let url = self.database_url.expose();
        let in_memory = self.is_file() && (url.contains(":memory:") || url.contains("mode=memory"));
        // Every connection to a database in memory would open a database of its own.
        let max_connections = if in_memory { 1 } else { self.max_connections };
        Target {
            url: self.database_url.clone(),
            default_path: data_dir.join("template.db"),
            pool: PoolSettings { max_connections, ..self.pool() },
            busy_timeout: self.busy_timeout.0,
        }
    }

    fn is_file(&self) -> bool {
        self.database_url.is_empty() || self.database_url.backend() == Some(DbBackend::Sqlite)
    }

    fn pool(&self) -> PoolSettings {
        PoolSettings {
            max_connections: self.max_connections,
            connect_timeout: self.database_connect_timeout.0,
            idle_timeout: self.database_idle_timeout.0,
            statement_timeout: self.database_statement_timeout.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_url(url: &str) -> Config {
        Config { database_url: DatabaseUrl::new(url), ..Config::default() }
    }

    #[test]
    fn the_default_is_valid() {
        Config::default().validate().unwrap();
        with_url("sqlite:/var/lib/sandmesh/template.db").validate().unwrap();
    }

    #[test]
    fn a_database_of_another_kind_is_refused_without_its_password() {
        let error = with_url("oracle://me:secret@db/templates").validate().unwrap_err().to_string();
        assert!(error.contains("template.database_url") && error.contains("`sqlite://PATH`"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn no_connections_are_refused() {
        assert!(Config { max_connections: 0, ..Config::default() }.validate().is_err());
    }
}
