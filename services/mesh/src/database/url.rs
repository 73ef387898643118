//! The URL of a database. It may hold a password, and is shown without.

use std::fmt;

use sea_orm::{
    DbBackend,
    sqlx::{mysql::MySqlConnectOptions, postgres::PgConnectOptions},
};
use serde::{Deserialize, Serialize, Serializer};

use crate::ConfigError;

/// What may stand behind the `?`.
const PARAMETERS: [&str; 15] = [
    "application_name",
    "host",
    "socket",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslca",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Where a database is: `sqlite://PATH`, `mysql://USER:PASSWORD@HOST/DATABASE` for MariaDB and MySQL, or
/// `postgres://USER:PASSWORD@HOST/DATABASE`. Printed and serialised without what may be secret in it.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// From a URL, whatever it is.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// True when none was given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The whole URL; do not print it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Which kind of database that is.
    #[must_use]
    pub fn backend(&self) -> Option<DbBackend> {
        match self.0.split_once(':')?.0 {
            "sqlite" => Some(DbBackend::Sqlite),
            "mysql" | "mariadb" => Some(DbBackend::MySql),
            "postgres" | "postgresql" => Some(DbBackend::Postgres),
            _ => None,
        }
    }

    /// Checks the value of a setting; none is well.
    ///
    /// # Errors
    /// Names the setting and what is wrong with it, without the URL.
    pub fn check(&self, setting: &str) -> Result<(), ConfigError> {
        let invalid = |problem: &str| Err(ConfigError::invalid(setting, problem));
        let name = match self.backend() {
            _ if self.is_empty() => return Ok(()),
            None => {
                return invalid(
                    "give `sqlite://PATH`, `mysql://USER:PASSWORD@HOST/DATABASE` (for MariaDB, too) or \
                     `postgres://USER:PASSWORD@HOST/DATABASE`",
                );
            }
            Some(DbBackend::Sqlite) => return Ok(()),
            Some(_) if !self.knows_parameters() => {
                let problem =
                    format!("has a parameter that is not known; those are {}", PARAMETERS.join(", "));
                return invalid(&problem);
            }
            Some(DbBackend::MySql) => {
                self.0.parse::<MySqlConnectOptions>().map(|o| o.get_database().map(str::to_owned))
            }
            Some(_) => self.0.parse::<PgConnectOptions>().map(|o| o.get_database().map(str::to_owned)),
        };
        match name {
            Ok(Some(_)) => Ok(()),
            Ok(None) => invalid("names no database; add it, as in `postgres://USER@HOST/DATABASE`"),
            Err(_) => invalid("is not a URL; write special characters of a password as in `%2F` for `/`"),
        }
    }

    /// The server and its database, of a URL that was checked.
    fn place(&self) -> Option<String> {
        let (host, port, name) = if self.backend() == Some(DbBackend::MySql) {
            let options: MySqlConnectOptions = self.0.parse().ok()?;
            (options.get_host().to_owned(), options.get_port(), options.get_database()?.to_owned())
        } else {
            let options: PgConnectOptions = self.0.parse().ok()?;
            (options.get_host().to_owned(), options.get_port(), options.get_database()?.to_owned())
        };
        Some(format!("***@{host}:{port}/{name}"))
    }

    /// The driver prints parameters that it does not know, with their values.
    fn knows_parameters(&self) -> bool {
        let parameters = self.0.split_once('?').map_or("", |(_, parameters)| parameters);
        let mut names = parameters.split('&').filter_map(|parameter| parameter.split('=').next());
        names.all(|name| name.is_empty() || PARAMETERS.contains(&name))
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.backend() {
            None if self.is_empty() => Ok(()),
            None => f.write_str("***"),
            Some(DbBackend::Sqlite) => f.write_str(&self.0),
            Some(_) => {
                let scheme = self.0.split(':').next().unwrap_or_default();
                let place = self.check("").ok().and_then(|()| self.place());
                write!(f, "{scheme}://{}", place.as_deref().unwrap_or("***"))
            }
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn password_is_shown_nowhere(more in "[ -~]{0,20}", query in "([ -~]{0,20})?(&password=hunter2)?") {
            for scheme in ["mysql", "mariadb", "postgres", "postgresql", "oracle"] {
                let url = DatabaseUrl::new(format!("{scheme}://me:hunter2{more}@db.example/x?{query}"));
                let error = url.check("session.database_url").map_err(|error| error.to_string());
                let shown = format!("{url} {url:?} {} {error:?}", serde_json::to_string(&url).unwrap());
                prop_assert!(!shown.contains("hunter2"), "{}", shown);
            }
        }
    }

    #[test]
    fn what_is_shown_tells_where_the_database_is() {
        let url = DatabaseUrl::new("mysql://me:hunter2@db.example/x?ssl-mode=REQUIRED");
        assert_eq!(url.to_string(), "mysql://***@db.example:3306/x");
    }

    #[test]
    fn url_that_cannot_be_used_is_refused_with_the_setting_and_without_the_password() {
        for url in [
            "oracle://me:hunter2@db/x",
            "postgres://me:hunter2@db",
            "mysql://me:hunter2@db/",
            "postgres://me:hunter2/2@db/x",
            "postgres://me:hunter2@db/x?pasword=hunter2",
            "hunter2",
        ] {
            let error = DatabaseUrl::new(url).check("session.database_url").unwrap_err().to_string();
            assert!(error.contains("session.database_url"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn every_kind_of_database_is_known_by_its_scheme() {
        for (url, backend) in [
            ("sqlite://x.db", DbBackend::Sqlite),
            ("sqlite::memory:", DbBackend::Sqlite),
            ("mysql://me:pw@db/x", DbBackend::MySql),
            ("mariadb://me:pw@db:3307/x?ssl-mode=REQUIRED", DbBackend::MySql),
            ("postgres://me:p%2Fw@db/x?sslmode=require", DbBackend::Postgres),
            ("postgresql://db/x", DbBackend::Postgres),
        ] {
            let url = DatabaseUrl::new(url);
            url.check("x").unwrap();
            assert_eq!(url.backend(), Some(backend));
        }
    }
}
