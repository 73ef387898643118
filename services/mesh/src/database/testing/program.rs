//! The programs: where they are, how they are started, and when they answer.

use std::{
    fs::{self, File, Permissions},
    net::TcpStream,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Kind, PATIENCE};

/// Who tests are, for a server.
pub(super) const USER: &str = "sandmesh";

/// Their password.
pub(super) const PASSWORD: &str = "of-tests-only";

/// A directory that the user of a server gets into.
pub(super) fn directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("smdb-").tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).unwrap();
    directory
}

/// The user of a server: none of them runs as root.
fn user(kind: Kind) -> &'static str {
    if kind == Kind::Postgres { "postgres" } else { "mysql" }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program that Debian may have put where nobody looks for it.
fn program(name: &str) -> PathBuf {
    let mut places: Vec<PathBuf> = ["/usr/sbin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from).into();
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    versions.sort();
    places.extend(versions.into_iter().rev());
    let found = places.into_iter().map(|place| place.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("`{name}` is missing: `deploy/test --setup-only` installs mariadb-server and postgresql")
    })
}

/// A command as the user of a server. It becomes the program, so that the pid is the program's.
fn command(kind: Kind, name: &str, directory: &Path, dies_with_us: bool) -> Command {
    let mut command = Command::new("setpriv");
    if is_root() {
        command.args(["--reuid", user(kind), "--regid", user(kind), "--clear-groups"]);
    }
    if dies_with_us {
        command.args(["--pdeathsig", "KILL"]);
    }
    // MariaDB removes all temporary tables that it finds when it starts: those of another server, too.
    command.arg("--").arg(program(name)).env("LC_ALL", "C").env("TMPDIR", directory.join("tmp"));
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// Gives a file to the user of a server.
pub(super) fn give(kind: Kind, file: &Path) {
    if is_root() {
        let (uid, gid) = ids(user(kind));
        chown(file, Some(uid), Some(gid)).unwrap();
    }
}

/// What a server has in its directory as its own.
const OWN: [&str; 2] = ["data", "tmp"];

/// Makes what a server needs in a directory; one that did not end well may have been there.
pub(super) fn prepare(kind: Kind, directory: &Path) {
    for own in OWN.map(|name| directory.join(name)) {
        let _ = fs::remove_dir_all(&own);
        fs::create_dir(&own).unwrap();
        give(kind, &own);
    }
    let data = directory.join("data");
    let log = log_file(directory);
    let mut init = match kind {
        Kind::Sqlite => unreachable!("no server"),
        Kind::MariaDb => {
            let mut init = command(kind, "mariadb-install-db", directory, false);
            let options = ["--no-defaults", "--skip-test-db", "--auth-root-authentication-method=normal"];
            init.args(options).arg(format!("--datadir={}", data.display()));
            let rights = format!(
                "CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';\n\
                 GRANT ALL ON *.* TO '{USER}'@'%';\n"
            );
            fs::write(directory.join("init.sql"), rights).unwrap();
            init
        }
        Kind::Postgres => {
            fs::write(directory.join("password"), PASSWORD).unwrap();
            let mut init = command(kind, "initdb", directory, false);
            init.args(["-U", USER, "-A", "scram-sha-256", "-E", "UTF8", "--no-locale", "--no-sync"]);
            init.arg(format!("--pwfile={}", directory.join("password").display())).arg("-D").arg(&data);
            init
        }
    };
    let done = init.stdout(log.try_clone().unwrap()).stderr(log).status();
    let done = done.expect("setpriv (package util-linux) starts it");
    assert!(done.success(), "{kind:?} cannot be set up: {}", self::log(directory));
}

/// Starts a server in a directory that was prepared.
pub(super) fn start(kind: Kind, directory: &Path, port: u16, dies_with_us: bool) -> Child {
    let data = directory.join("data");
    let mut server = match kind {
        Kind::Sqlite => unreachable!("no server"),
        Kind::MariaDb => {
            let mut server = command(kind, "mariadbd", directory, dies_with_us);
            server.args([
                "--no-defaults",
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
                "--skip-log-bin",
            ]);
            server.args([
                if dies_with_us {
                    "--innodb-flush-log-at-trx-commit=2"
                } else {
                    "--innodb-flush-log-at-trx-commit=0"
                },
                "--innodb-buffer-pool-size=64M",
            ]);
            server.args(["--max-connections=500", "--innodb-flush-method=nosync", "--sync-frm=0"]);
            server.arg(format!("--datadir={}", data.display())).arg(format!("--port={port}"));
            server.arg(format!("--socket={}", data.join("socket").display()));
            server.arg(format!("--init-file={}", directory.join("init.sql").display()));
            server
        }
        Kind::Postgres => {
            let mut server = command(kind, "postgres", directory, dies_with_us);
            server.arg("-D").arg(&data).args(["-p", &port.to_string()]);
            let socket = format!("unix_socket_directories={}", data.display());
            let options = ["listen_addresses=127.0.0.1", &socket, "max_connections=400"];
            let careless = [
                "fsync=off",
                "full_page_writes=off",
                if dies_with_us { "synchronous_commit=on" } else { "synchronous_commit=off" },
            ];
            options.iter().chain(&careless).for_each(|option| {
                server.args(["-c", option]);
            });
            server
        }
    };
    let log = log_file(directory);
    // Signals for the test's group are not for it.
    server.stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
    server.spawn().expect("setpriv (package util-linux) starts it")
}

/// Waits until it takes connections; fails the test when it does not.
pub(super) fn wait_until_it_answers(kind: Kind, port: u16, directory: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while !answers(kind, port) {
        assert!(Instant::now() < deadline, "{kind:?} does not start: {}", log(directory));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether somebody gets in.
pub(super) fn answers(kind: Kind, port: u16) -> bool {
    if TcpStream::connect(("127.0.0.1", port)).is_err() {
        return false;
    }
    let attempt = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let limit = Duration::from_secs(5);
            tokio::time::timeout(limit, super::as_admin(kind, port, "SELECT 1"))
                .await
                .is_ok_and(|r| r.is_ok())
        })
    });
    attempt.join().unwrap_or(false)
}

fn log_file(directory: &Path) -> File {
    File::options().create(true).append(true).open(directory.join("log")).unwrap()
}

/// What the programs wrote.
pub(super) fn log(directory: &Path) -> String {
    fs::read_to_string(directory.join("log")).unwrap_or_default()
}

/// The numbers of a user of the system.
fn ids(user: &str) -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.split(':').next() == Some(user));
    let line = line.unwrap_or_else(|| panic!("no user `{user}`: run `deploy/test --setup-only`"));
    let fields: Vec<&str> = line.split(':').collect();
    (fields[2].parse().unwrap(), fields[3].parse().unwrap())
}
