//! A real Docker engine for tests: one that all tests of this machine share, and one of its own for a test that
//! kills it.
//!
//! Whoever needs the shared one first starts it, in a directory of its own, on a socket there, without a
//! network. It is stopped, and all it had is removed, when no test has used it for half a minute. Images are
//! made of Debian packages: no registry is asked. What is missing fails a test, and is never skipped.

use std::{
    fs::{self, File, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

/// An image with nothing but a shell and the usual commands, linked statically: no C library, no loader.
pub(crate) const BUSYBOX: &str = "sandmesh-test/busybox:1";

/// An image of Debian with Python, pip, Node.js and bash.
#[allow(dead_code, reason = "not every test that has this file needs it")]
pub(crate) const PYTHON: &str = "sandmesh-test/python:1";

/// How long an engine may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stops an engine that nobody has used for half a minute: directory, pid.
const WATCH: &str = r#"
cd "$1" || exit 1
idle=0
while kill -0 "$2" 2>/dev/null; do
  sleep 2
  if flock -n users.lock true; then idle=$((idle + 1)); else idle=0; fi
  [ "$idle" -ge 15 ] || continue
  exec 8>start.lock 9>users.lock
  if flock -n 8 && flock -n 9; then
    kill "$2"
    while kill -0 "$2" 2>/dev/null; do sleep 0.2; done
    while umount -R -l data 2>/dev/null; do :; done
    rm -rf data exec images log docker.sock docker.pid
    exit 0
  fi
  exec 8>&- 9>&-
  idle=0
done
"#;

/// The lock by which this process says that it uses the shared engine.
static USED: Mutex<Option<File>> = Mutex::new(None);

/// An engine.
#[derive(Debug)]
pub(crate) struct TestEngine {
    dir: PathBuf,
    /// It is this test's own.
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    process: Child,
    live_restore: bool,
    _dir: tempfile::TempDir,
}

impl TestEngine {
    /// The engine that all tests share, with this image.
    pub(crate) fn shared(image: &str) -> Self {
        let engine = Self { dir: home(), own: None };
        let mut used = USED.lock().unwrap();
        if used.is_none() {
            let user = lock_file(&engine.dir, "users.lock");
            user.lock_shared().unwrap();
            *used = Some(user);
        }
        let starter = lock_file(&engine.dir, "start.lock");
        starter.lock().unwrap();
        if !engine.answers() {
            engine.start_for_all();
        }
        engine.have(image);
        drop(starter);
        engine
    }

    /// One for this test, which may kill it; whether its containers are to survive that.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn own(image: &str, live_restore: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("smd-").tempdir().unwrap();
        let process = start(dir.path(), live_restore);
        let engine = Self { dir: dir.path().to_owned(), own: Some(Own { process, live_restore, _dir: dir }) };
        engine.wait_until_it_answers();
        engine.have(image);
        engine
    }

    /// One that somebody else in this process has.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn at(socket: &Path) -> Self {
        Self { dir: socket.parent().unwrap().to_owned(), own: None }
    }

    /// Where it is reached.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    /// `kill -9` of an engine of this test's own, and what it started to manage containers.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn kill(&mut self) {
        let process = &mut self.own.as_mut().expect("not the one of all tests").process;
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Starts an engine again that was killed.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn start_again(&mut self) {
        let own = self.own.as_mut().expect("not the one of all tests");
        // What it managed containers with ended with it. Where nobody reaps that, it looks alive.
        for left in ["docker.pid", "exec/containerd/containerd.pid"] {
            let _ = fs::remove_file(self.dir.join(left));
        }
        own.process = start(&self.dir, own.live_restore);
        self.wait_until_it_answers();
    }

    /// Runs `docker` with these arguments.
    pub(crate) fn docker(&self, args: &[&str]) -> Output {
        let mut docker = Command::new(program("docker"));
        docker.env("DOCKER_HOST", format!("unix://{}", self.socket().display())).args(args);
        docker.stdin(Stdio::null()).output().unwrap()
    }

    /// What `docker` says with these arguments.
    pub(crate) fn said(&self, args: &[&str]) -> String {
        let output = self.docker(args);
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The containers with a label that have this value.
    pub(crate) fn containers(&self, label: &str, value: &str) -> Vec<String> {
        let filter = format!("label={label}={value}");
        let ids = self.said(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]);
        ids.lines().map(str::to_owned).collect()
    }

    fn answers(&self) -> bool {
        self.socket().exists() && self.docker(&["version"]).status.success()
    }

    fn wait_until_it_answers(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.answers() {
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the Docker engine does not start: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[expect(clippy::zombie_processes, reason = "they outlive this process, and are not its to wait for")]
    fn start_for_all(&self) {
        for left in ["data", "exec", "docker.pid"] {
            // One that did not end well.
            let path = self.dir.join(left);
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
        let engine = start(&self.dir, false);
        self.wait_until_it_answers();
        let mut watch = Command::new("sh");
        watch.args(["-c", WATCH, "watch"]).arg(&self.dir).arg(engine.id().to_string());
        watch
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
    }

    /// Makes an image if it is not there.
    fn have(&self, image: &str) {
        if self.docker(&["image", "inspect", image]).status.success() {
            return;
        }
        let archive = archive(image);
        self.said(&["import", &archive.display().to_string(), image]);
    }
}

impl Drop for TestEngine {
    fn drop(&mut self) {
        if let Some(own) = &mut self.own {
            // In order, so that it takes along what it started.
            let pid = rustix::process::Pid::from_child(&own.process);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = own.process.wait();
            // One that was killed left its own mounts.
            let data = self.dir.join("data");
            let unmount =
                || Command::new("umount").args(["-R", "-l"]).arg(&data).stderr(Stdio::null()).status();
            while unmount().is_ok_and(|done| done.success()) {}
        }
    }
}

/// Starts an engine in a directory.
fn start(dir: &Path, live_restore: bool) -> Child {
    let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let mut engine = Command::new(program("dockerd"));
    let place = |name: &str| dir.join(name).display().to_string();
    engine.args(["--host", &format!("unix://{}", place("docker.sock"))]);
    engine.args([
        "--data-root",
        &place("data"),
        "--exec-root",
        &place("exec"),
        "--pidfile",
        &place("docker.pid"),
    ]);
    // Sandboxes have no network, and so no engine touches that of the machine.
    engine.args(["--bridge=none", "--iptables=false", "--ip-masq=false", "--log-level=warn"]);
    engine.arg(format!("--live-restore={live_restore}"));
    engine.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    // Signals for the test's group are not for it.
    engine.process_group(0).spawn().unwrap()
}

/// A program that Debian may have put where nobody looks for it.
fn program(name: &str) -> PathBuf {
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("`{name}` is missing: `deploy/test --setup-only` installs docker.io, iptables and mmdebstrap")
    })
}

/// The files of an image, as an archive. They are made once, whatever engines there are.
fn archive(image: &str) -> PathBuf {
    let dir = home().join("images");
    let _ = fs::create_dir(&dir);
    let maker = lock_file(&home(), "images.lock");
    maker.lock().unwrap();
    let name = image.rsplit('/').next().unwrap().split(':').next().unwrap();
    let path = dir.join(format!("{name}.tar"));
    if !path.exists() {
        let new = dir.join(format!("{name}.new.tar"));
        match image {
            BUSYBOX => make_busybox(&new),
            _ => make_python(&new),
        }
        fs::rename(new, &path).unwrap();
    }
    path
}

/// Debian packages without their scripts: enough to run what is in them.
fn debian(packages: &str, to: &Path) {
    let mut make = Command::new(program("mmdebstrap"));
    make.args(["--quiet", "--variant=extract", "--mode=root"]);
    make.args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\""]);
    make.arg(format!("--include={packages}")).arg("bookworm").arg(to);
    run(&mut make);
}

fn make_python(to: &Path) {
    debian(
        "bash,dash,coreutils,grep,sed,findutils,mawk,procps,util-linux,python3,python3-pip,nodejs,base-files,ca-certificates",
        to,
    );
}

fn make_busybox(to: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let packages = dir.path().join("packages.tar");
    debian("busybox-static", &packages);
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(&packages).arg("-C").arg(&root).arg("--wildcards").args(["*/busybox"]);
    run(&mut unpack);
    let found = ["usr/bin/busybox", "bin/busybox"].map(|place| root.join(place));
    let busybox = found.into_iter().find(|path| path.is_file()).expect("busybox is in its package");
    let bin = dir.path().join("image/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy(busybox, bin.join("busybox")).unwrap();
    for command in
        ["sh", "cat", "sleep", "echo", "ls", "id", "dd", "head", "true", "mkdir", "sort", "wc", "ps"]
    {
        std::os::unix::fs::symlink("busybox", bin.join(command)).unwrap();
    }
    let mut pack = Command::new("tar");
    pack.arg("-cf").arg(to).arg("-C").arg(dir.path().join("image")).args(["--owner=0", "--group=0", "."]);
    run(&mut pack);
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Where the engine of all tests has its data. Nobody else can put anything there.
fn home() -> PathBuf {
    let own = rustix::process::geteuid().as_raw();
    let directory = std::env::temp_dir().join(format!("smd-all-{own}"));
    let _ = fs::create_dir(&directory);
    let found = fs::symlink_metadata(&directory).unwrap();
    assert!(found.is_dir() && found.uid() == own, "{} is somebody else's", directory.display());
    fs::set_permissions(&directory, Permissions::from_mode(0o711)).unwrap();
    directory
}

fn lock_file(directory: &Path, name: &str) -> File {
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
