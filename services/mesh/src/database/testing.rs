//! Real database servers for tests: one of each kind for all tests that run, and a database for each test.
//!
//! Whoever needs a server first starts it, on a port of loopback and in a directory of its own. It is
//! stopped, and all it had is removed, when no test has used it for half a minute. A test that stops a
//! server in the middle starts one for itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

mod program;
mod shared;

use std::{
    process::Child,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, Statement};
use tempfile::TempDir;

use self::program::{PASSWORD, USER};
use super::DatabaseUrl;
use crate::testing::free_port;

/// How long a server may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The databases that a role runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    Sqlite,
    /// A MariaDB server.
    MariaDb,
    /// A PostgreSQL server.
    Postgres,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sqlite, Self::MariaDb, Self::Postgres];

    fn url(self, port: u16, database: &str) -> DatabaseUrl {
        let scheme = match self {
            Self::Sqlite => unreachable!("no server"),
            Self::MariaDb => "mysql",
            Self::Postgres => "postgres",
        };
        DatabaseUrl::new(format!("{scheme}://{USER}:{PASSWORD}@127.0.0.1:{port}/{database}"))
    }

    fn first_database(self) -> &'static str {
        if self == Self::Postgres { "postgres" } else { "mysql" }
    }
}

/// An empty database of one test. Another test removes it when the process of this one has ended.
#[derive(Debug)]
pub struct TestDatabase {
    kind: Kind,
    name: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory(TempDir),
    Server(u16),
}

impl TestDatabase {
    /// Makes one, and has the server of its kind started if it is not there.
    pub async fn create(kind: Kind) -> Self {
        if kind == Kind::Sqlite {
            let place = Place::Directory(tempfile::tempdir().unwrap());
            return Self { kind, name: "test.db".to_owned(), place };
        }
        let port = tokio::task::spawn_blocking(move || shared::port(kind)).await.unwrap();
        Self::create_at(kind, port).await
    }

    async fn create_at(kind: Kind, port: u16) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t_{}_{count}_{:08x}", std::process::id(), rand::random::<u32>());
        as_admin(kind, port, &format!("CREATE DATABASE {name}")).await.unwrap();
        // Those of tests that have ended: what a test drops itself waits for what the test has not closed.
        for (left, _) in databases(kind, port).await.iter().filter(|(_, pid)| !is_alive(*pid)).take(4) {
            // Another test may be at it.
            let _ = as_admin(kind, port, &format!("DROP DATABASE IF EXISTS {left}")).await;
        }
        Self { kind, name, place: Place::Server(port) }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> DatabaseUrl {
        match &self.place {
            Place::Directory(directory) => {
                DatabaseUrl::new(format!("sqlite://{}", directory.path().join(&self.name).display()))
            }
            Place::Server(port) => self.kind.url(*port, &self.name),
        }
    }
}

/// The databases of tests, each with the process that made it.
async fn databases(kind: Kind, port: u16) -> Vec<(String, u32)> {
    let sql = match kind {
        Kind::Postgres => "SELECT datname AS name FROM pg_database WHERE datname LIKE 't\\_%'",
        _ => "SELECT schema_name AS name FROM information_schema.schemata WHERE schema_name LIKE 't\\_%'",
    };
    let admin = admin(kind, port).await.unwrap();
    let statement = Statement::from_string(admin.get_database_backend(), sql);
    let rows = admin.query_all_raw(statement).await.unwrap();
    let names = rows.iter().map(|row| row.try_get::<String>("", "name").unwrap());
    names.filter_map(|name| Some((name.clone(), name.split('_').nth(1)?.parse().ok()?))).collect()
}

fn is_alive(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

async fn admin(kind: Kind, port: u16) -> Result<DatabaseConnection, sea_orm::DbErr> {
    let mut options = ConnectOptions::new(kind.url(port, kind.first_database()).expose());
    options.max_connections(1).sqlx_logging(false).acquire_timeout(Duration::from_secs(20));
    Database::connect(options).await
}

async fn as_admin(kind: Kind, port: u16, sql: &str) -> Result<(), sea_orm::DbErr> {
    let admin = admin(kind, port).await?;
    admin.execute_unprepared(sql).await?;
    admin.close().await
}

/// A server of one test, which may stop it. It ends with the test.
pub struct OwnServer {
    kind: Kind,
    port: u16,
    directory: TempDir,
    process: Child,
}

impl OwnServer {
    /// Starts one.
    #[must_use]
    pub fn start(kind: Kind) -> Self {
        let directory = program::directory();
        program::prepare(kind, directory.path());
        let port = free_port();
        let process = program::start(kind, directory.path(), port, true);
        program::wait_until_it_answers(kind, port, directory.path());
        Self { kind, port, directory, process }
    }

    /// A database on it.
    pub async fn database(&self) -> TestDatabase {
        TestDatabase::create_at(self.kind, self.port).await
    }

    /// Has it hang: connections stay, and nothing is answered.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        self.signal_children(Signal::STOP);
    }

    /// Has it go on.
    pub fn thaw(&self) {
        self.signal_children(Signal::CONT);
        self.signal(Signal::CONT);
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.process.wait().unwrap();
    }

    /// Starts it again after [`OwnServer::kill`], on the same port with what it had.
    pub fn start_again(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.process = program::start(self.kind, self.directory.path(), self.port, true);
            let answers = || program::answers(self.kind, self.port);
            while Instant::now() < deadline && self.process.try_wait().unwrap().is_none() {
                if answers() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            // What the killed one left may have been in its way.
            assert!(Instant::now() < deadline, "it does not start: {}", program::log(self.directory.path()));
        }
    }

    fn signal(&self, signal: Signal) {
        kill(self.process.id(), signal);
    }

    /// Postgres has a process for each connection.
    fn signal_children(&self, signal: Signal) {
        let own = self.process.id().to_string();
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
            if parent == Some(own.as_str()) {
                kill(pid, signal);
            }
        }
    }
}

fn kill(pid: u32, signal: Signal) {
    // One that has ended is no error.
    let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal);
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.thaw();
        self.signal(Signal::KILL);
        let _ = self.process.wait();
    }
}

/// Makes three tests of each body: `sqlite::NAME`, `mariadb::NAME` and `postgres::NAME`.
#[macro_export]
macro_rules! on_every_database {
    ($($body:ident),+ $(,)?) => {
        $crate::on_databases!(sqlite: Sqlite, $($body),+);
        $crate::on_databases!(mariadb: MariaDb, $($body),+);
        $crate::on_databases!(postgres: Postgres, $($body),+);
    };
}

/// Makes a test of each body on one kind of database.
#[macro_export]
macro_rules! on_databases {
    ($module:ident: $kind:ident, $($body:ident),+ $(,)?) => {
        mod $module {
            $(#[tokio::test]
            async fn $body() {
                super::$body($crate::database::testing::Kind::$kind).await;
            })+
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_starts_leaves_the_temporary_tables_of_another_alone() {
        let first = OwnServer::start(Kind::MariaDb);
        let admin = admin(Kind::MariaDb, first.port).await.unwrap();
        let statement = Statement::from_string(admin.get_database_backend(), "SELECT @@tmpdir AS place");
        let row = admin.query_one_raw(statement).await.unwrap().unwrap();
        let place: String = row.try_get("", "place").unwrap();
        let table = std::path::Path::new(&place).join("#sql-temptable-1-1-1.MAI");
        std::fs::write(&table, "").unwrap();
        program::give(Kind::MariaDb, &table);
        let _second = OwnServer::start(Kind::MariaDb);
        assert!(table.exists(), "{} is gone", table.display());
    }
}
