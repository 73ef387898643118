//! Pools of connections to database servers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sea_orm::{
    ConnAcquireErr, DatabaseConnection, DbBackend, DbErr, RuntimeErr, SqlxMySqlConnector,
    SqlxPostgresConnector,
    sqlx::{
        self, ConnectOptions, Connection, Executor,
        mysql::MySqlConnectOptions,
        pool::{PoolConnectionMetadata, PoolOptions},
        postgres::PgConnectOptions,
    },
};

use super::DatabaseUrl;
use crate::{ConfigError, HumanDuration};

/// After this long without use a connection is tried before it is used.
const TRIED_AFTER: Duration = Duration::from_secs(1);

/// How long a connection may take to answer that it is there.
const PING_LIMIT: Duration = Duration::from_secs(1);

/// A pool of connections to a database server.
#[derive(Debug, Clone, Copy)]
pub struct PoolSettings {
    /// The most connections.
    pub max_connections: u32,
    /// How long it may take to get one.
    pub connect_timeout: Duration,
    /// How long one is kept that nobody uses.
    pub idle_timeout: Duration,
    /// How long a statement may take.
    pub statement_timeout: Duration,
}

impl PoolSettings {
    /// Checks the settings of a role.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn validate(&self, section: &str) -> Result<(), ConfigError> {
        // One holds the lock of migrations while another migrates.
        if !(2..=1000).contains(&self.max_connections) {
            return Err(ConfigError::invalid(format!("{section}.max_connections"), "must be from 2 to 1000"));
        }
        let (least, hour) = (Duration::from_millis(100), Duration::from_secs(3600));
        for (name, value, most) in [
            ("database_connect_timeout", self.connect_timeout, hour / 60),
            ("database_idle_timeout", self.idle_timeout, hour * 24),
            ("database_statement_timeout", self.statement_timeout, hour),
        ] {
            if value < least || value > most {
                let problem = format!("must be from {} to {}", HumanDuration(least), HumanDuration(most));
                return Err(ConfigError::invalid(format!("{section}.{name}"), problem));
            }
        }
        Ok(())
    }
}

pub(super) async fn connect(
    url: &DatabaseUrl,
    settings: &PoolSettings,
    stalled: &Arc<AtomicBool>,
) -> Result<DatabaseConnection, DbErr> {
    match url.backend() {
        Some(DbBackend::MySql) => {
            let options: MySqlConnectOptions = url.expose().parse().map_err(failed)?;
            let options = options.charset("utf8mb4").disable_statement_logging();
            let pool = pool_options::<sqlx::MySql>(settings, stalled).after_connect(|connection, _| {
                Box::pin(async move {
                    // As Postgres has it: what a statement reads is what was committed before it.
                    let level = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
                    connection.execute(level).await.map(drop)
                })
            });
            let pool = pool.connect_with(options).await.map_err(failed)?;
            Ok(SqlxMySqlConnector::from_sqlx_mysql_pool(pool))
        }
        Some(DbBackend::Postgres) => {
            let options: PgConnectOptions = url.expose().parse().map_err(failed)?;
            // The level is the server's default and may be another there.
            let options = options.options([("default_transaction_isolation", "read committed")]);
            let pool = pool_options::<sqlx::Postgres>(settings, stalled);
            let pool = pool.connect_with(options.disable_statement_logging()).await.map_err(failed)?;
            Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
        }
        _ => Err(DbErr::Conn(RuntimeErr::Internal(format!("`{url}` is no database server")))),
    }
}

fn pool_options<D: sqlx::Database>(settings: &PoolSettings, stalled: &Arc<AtomicBool>) -> PoolOptions<D> {
    let stalled = Arc::clone(stalled);
    PoolOptions::new()
        .max_connections(settings.max_connections)
        .acquire_timeout(settings.connect_timeout)
        .idle_timeout(settings.idle_timeout)
        .test_before_acquire(false)
        .before_acquire(|connection, metadata: PoolConnectionMetadata| {
            Box::pin(async move {
                let trusted = metadata.idle_for < TRIED_AFTER;
                Ok(trusted || answers::<D>(connection).await)
            })
        })
        .after_release(move |connection, _| {
            let suspect = stalled.load(Ordering::Relaxed);
            Box::pin(async move {
                if suspect && !answers::<D>(connection).await {
                    // Closed, not waited for: a server that hangs would keep every place of the pool.
                    return Err(sqlx::Error::PoolTimedOut);
                }
                Ok(true)
            })
        })
}

async fn answers<D: sqlx::Database>(connection: &mut D::Connection) -> bool {
    tokio::time::timeout(PING_LIMIT, connection.ping()).await.is_ok_and(|answer| answer.is_ok())
}

fn failed(error: sqlx::Error) -> DbErr {
    match error {
        sqlx::Error::PoolTimedOut => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
        error => DbErr::Conn(RuntimeErr::SqlxError(error.into())),
    }
}
