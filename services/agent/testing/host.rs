//! What of this machine engines and their tests are run with.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// `kill -9`; a process that is gone is no error.
pub(super) fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A program that Debian may have put where nobody looks for it.
pub(crate) fn program(name: &str) -> PathBuf {
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("`{name}` is missing: `deploy/test --setup-only` installs docker.io, iptables and mmdebstrap")
    })
}

/// Where the engines of all tests have their data. Nobody else can put anything there.
pub(super) fn home() -> PathBuf {
    let own = rustix::process::geteuid().as_raw();
    let directory = std::env::temp_dir().join(format!("smd-all-{own}"));
    let _ = fs::create_dir(&directory);
    let found = fs::symlink_metadata(&directory).unwrap();
    assert!(found.is_dir() && found.uid() == own, "{} is somebody else's", directory.display());
    fs::set_permissions(&directory, Permissions::from_mode(0o711)).unwrap();
    directory
}

/// A file to be locked, made if it is not there.
pub(super) fn lock_file(directory: &Path, name: &str) -> File {
    File::options().create(true).append(true).open(directory.join(name)).unwrap()
}

/// The executor that is linked statically, from below the directory of all that is built.
pub(crate) fn static_executor(target: &Path) -> PathBuf {
    let places = fs::read_dir(target).unwrap().flatten();
    let mut found = places.map(|place| place.path().join("debug/sandmesh-executor"));
    let found = found.find(|path| path.is_file() && path.to_string_lossy().contains("-linux-"));
    found.unwrap_or_else(|| {
        panic!(
            "a static executor is missing: RUSTFLAGS=\"-C target-feature=+crt-static\" cargo build -p \
             sandmesh-executor --target TRIPLE (`just test` and `deploy/test` do)"
        )
    })
}
