//! The servers that all tests of this machine share.
//!
//! Each test is a process of its own, and so is the one that stops a server: `users.lock` is held shared by
//! every test that uses it, `start.lock` by whoever starts or stops it.

use std::{
    fs::{self, File, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

use super::{Kind, program};

/// The servers that this process uses, with the lock that says so.
static USED: Mutex<Vec<(Kind, u16, File)>> = Mutex::new(Vec::new());

/// Stops a server that nobody has used for half a minute: directory, pid, signal.
const WATCH: &str = r#"
cd "$1" || exit 1
idle=0
runs() { tr '\0' ' ' <"/proc/$2/cmdline" 2>/dev/null | grep -qF "$1/data"; }
while runs "$1" "$2"; do
  sleep 2
  if flock -n users.lock true; then idle=$((idle + 1)); else idle=0; fi
  [ "$idle" -ge 15 ] || continue
  exec 8>start.lock 9>users.lock
  if flock -n 8 && flock -n 9; then
    kill -"$3" "$2"
    while runs "$1" "$2"; do sleep 0.2; done
    rm -rf data tmp port log init.sql password
    exit 0
  fi
  exec 8>&- 9>&-
  idle=0
done
"#;

/// The port of the server of a kind, which runs then, and until this process has ended.
pub(super) fn port(kind: Kind) -> u16 {
    let mut used = USED.lock().unwrap();
    if let Some((_, port, _)) = used.iter().find(|(known, ..)| *known == kind) {
        return *port;
    }
    let directory = home(kind);
    let user = lock_file(&directory, "users.lock");
    user.lock_shared().unwrap();
    let starter = lock_file(&directory, "start.lock");
    starter.lock().unwrap();
    let port = match noted(&directory) {
        // On a busy machine it may take its time to answer: another in its place would take its data away.
        Some((port, pid)) if runs(pid, &directory) => {
            program::wait_until_it_answers(kind, port, &directory);
            port
        }
        _ => start(kind, &directory),
    };
    used.push((kind, port, user));
    port
}

/// The port and the pid of the server that was started last.
fn noted(directory: &Path) -> Option<(u16, u32)> {
    let noted = fs::read_to_string(directory.join("port")).ok()?;
    let (port, pid) = noted.split_once(' ')?;
    Some((port.parse().ok()?, pid.parse().ok()?))
}

/// Whether a process is the server of a directory, and not another one that has its pid by now.
fn runs(pid: u32, directory: &Path) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(&*directory.join("data").to_string_lossy())
}

#[expect(clippy::zombie_processes, reason = "they outlive this process, and are not its to wait for")]
fn start(kind: Kind, directory: &Path) -> u16 {
    program::prepare(kind, directory);
    let port = crate::testing::free_port();
    let server = program::start(kind, directory, port, false);
    program::wait_until_it_answers(kind, port, directory);
    fs::write(directory.join("port"), format!("{port} {}", server.id())).unwrap();
    let signal = if kind == Kind::Postgres { "INT" } else { "TERM" };
    let mut watch = Command::new("sh");
    watch.args(["-c", WATCH, "watch"]).arg(directory).args([&server.id().to_string(), signal]);
    watch.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().unwrap();
    port
}

/// Where a server of all tests has its data. Nobody else can put anything there.
fn home(kind: Kind) -> PathBuf {
    let own = rustix::process::geteuid().as_raw();
    let root = std::env::temp_dir().join(format!("sandmesh-databases-{own}"));
    let directory = root.join(format!("{kind:?}").to_lowercase());
    for directory in [&root, &directory] {
        let _ = fs::create_dir(directory);
        let found = fs::symlink_metadata(directory).unwrap();
        assert!(found.is_dir() && found.uid() == own, "{} is somebody else's", directory.display());
        fs::set_permissions(directory, Permissions::from_mode(0o711)).unwrap();
    }
    directory
}

fn lock_file(directory: &Path, name: &str) -> File {
    File::options().create(true).append(true).open(directory.join(name)).unwrap()
}
