//! Real engines of containers for tests: one of each kind that all tests of this machine share, and one of its own
//! for a test that kills it.
//!
//! Whoever needs a shared one first starts it, in a directory of its own, on a socket there, without a
//! network. It is stopped, and all it had is removed, when no test has used it for half a minute. What is missing
//! fails a test, and is never skipped.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

#[path = "host.rs"]
mod host;
#[path = "images.rs"]
pub(crate) mod images;

use self::host::{home, kill, lock_file};
#[allow(unused_imports, reason = "not every test that has this file needs it")]
pub(crate) use self::host::{program, static_executor};

/// An image with nothing but a shell and the usual commands, linked statically: no C library, no loader.
pub(crate) const BUSYBOX: &str = "sandmesh-test/busybox:1";

/// An image of Debian with Python, pip, Node.js and bash.
#[allow(dead_code, reason = "not every test that has this file needs it")]
pub(crate) const PYTHON: &str = "sandmesh-test/python:1";

/// How long an engine may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many seconds a client of an engine may take; importing an image is the longest that they do.
const ANSWER: &str = "120";

/// How long an engine may take to end.
const END: Duration = Duration::from_secs(30);

/// Where programs are for engines, whatever a test has.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Stops an engine that nobody has used for half a minute: directory of all, name, pid.
const WATCH: &str = r#"
cd "$1" || exit 1
idle=0
while kill -0 "$3" 2>/dev/null; do
  sleep 2
  if flock -n "$2.users.lock" true; then idle=$((idle + 1)); else idle=0; fi
  [ "$idle" -ge 15 ] || continue
  exec 8>"$2.start.lock" 9>"$2.users.lock"
  if flock -n 8 && flock -n 9; then
    kill "$3"
    while kill -0 "$3" 2>/dev/null; do sleep 0.2; done
    awk -v dir="$PWD/$2/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
      while read -r mount; do umount -l "$mount"; done
    rm -rf "$2"
    if [ ! -e docker ] && [ ! -e containerd ]; then flock -n images.users.lock rm -rf images; fi
    exit 0
  fi
  exec 8>&- 9>&-
  idle=0
done
"#;

/// The locks by which this process says that it uses shared engines.
static USED: Mutex<Vec<(Kind, File)>> = Mutex::new(Vec::new());

/// What makes the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "not every test that has this file needs it")]
pub(crate) enum Kind {
    /// A Docker engine.
    Docker,
    /// A containerd without anything above it.
    Containerd,
}

impl Kind {
    /// The word for it in the configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
        }
    }
}

/// An engine.
#[derive(Debug)]
pub(crate) struct TestEngine {
    kind: Kind,
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
    /// The engine of a kind that all tests share, with this image.
    pub(crate) fn shared(kind: Kind, image: &str) -> Self {
        let engine = Self { kind, dir: home().join(kind.name()), own: None };
        let mut used = USED.lock().unwrap();
        if !used.iter().any(|(known, _)| *known == kind) {
            let user = lock_file(&home(), &format!("{}.users.lock", kind.name()));
            user.lock_shared().unwrap();
            used.push((kind, user));
        }
        let starter = lock_file(&home(), &format!("{}.start.lock", kind.name()));
        starter.lock().unwrap();
        if !engine.answers() {
            engine.start_for_all();
        }
        engine.have(image);
        drop(starter);
        engine
    }

    /// One for this test, which may kill it; whether a Docker engine's containers are to survive that.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn own(kind: Kind, image: &str, live_restore: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("smd-").tempdir().unwrap();
        let process = start(kind, dir.path(), live_restore);
        let path = dir.path().to_owned();
        let engine = Self { kind, dir: path, own: Some(Own { process, live_restore, _dir: dir }) };
        engine.wait_until_it_answers();
        engine.have(image);
        engine
    }

    /// One that somebody else in this process has.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn of(other: &Self) -> Self {
        Self { kind: other.kind, dir: other.dir.clone(), own: None }
    }

    /// What it is.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it is reached.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(self.kind, &self.dir)
    }

    /// The process of an engine of this test's own.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn pid(&self) -> Option<u32> {
        self.own.as_ref().map(|own| own.process.id())
    }

    /// `kill -9` of an engine of this test's own, and with Docker what it started to manage containers.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn kill(&mut self) {
        let process = &mut self.own.as_mut().expect("not the one of all tests").process;
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// What there is of containers on this machine, whoever made them: in its own lists, mounts, and processes that
    /// hold them.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn left(&self) -> Vec<String> {
        let lists: &[&[&str]] = match self.kind {
            Kind::Docker => &[&["ps", "--all", "--quiet"], &["volume", "ls", "--quiet"]],
            Kind::Containerd => &[&["containers", "list", "--quiet"], &["tasks", "list", "--quiet"]],
        };
        let listed = |list: &&[&str]| {
            let said = self.said(list);
            said.lines().map(|line| format!("{} {line}", list[0])).collect::<Vec<_>>()
        };
        let mut left: Vec<String> = lists.iter().flat_map(listed).collect();
        // Of these, what an image is made of has another name.
        left.extend(self.remnants("sandmesh-"));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        let of_containers = points.filter(|point| {
            let is_of = |name: &str| point.components().any(|part| part.as_os_str() == name);
            point.starts_with(&self.dir) && ["merged", "rootfs", "shm", "netns"].into_iter().any(is_of)
        });
        left.extend(of_containers.map(|point| format!("mount {}", point.display())));
        left.extend(self.shims().into_iter().map(|(pid, id)| format!("shim {pid} of {id}")));
        left
    }

    /// Containers that a Docker engine still holds though it has them in no list any more and nothing runs in them: some
    /// that it makes or ends while it is killed. Nobody can have it clear them away.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn forgotten(&self) -> Vec<String> {
        if self.kind == Kind::Containerd {
            return Vec::new();
        }
        let known = self.said(&["ps", "--all", "--quiet", "--no-trunc"]);
        let holds_nothing = |pid: i32| {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            children.unwrap_or_default().trim().is_empty()
        };
        let shims = self.shims().into_iter();
        shims.filter(|(pid, id)| !known.contains(&**id) && holds_nothing(*pid)).map(|(_, id)| id).collect()
    }

    /// The processes that hold containers, and the ids of these.
    fn shims(&self) -> Vec<(i32, String)> {
        let socket = self.dir.to_string_lossy().into_owned();
        let shim = |entry: fs::DirEntry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let words = fs::read(entry.path().join("cmdline")).ok()?;
            let words = String::from_utf8_lossy(&words).into_owned();
            let is_ours = words.contains("containerd-shim") && words.contains(&socket);
            let id = words.split('\0').skip_while(|word| *word != "-id").nth(1)?;
            is_ours.then(|| (pid, id.to_owned()))
        };
        fs::read_dir("/proc").unwrap().flatten().filter_map(shim).collect()
    }

    /// Starts an engine again that was killed.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn start_again(&mut self) {
        let own = self.own.as_mut().expect("not the one of all tests");
        // What it managed containers with ended with it. Where nobody reaps that, it looks alive.
        for left in ["docker.pid", "exec/containerd/containerd.pid"] {
            let _ = fs::remove_file(self.dir.join(left));
        }
        own.process = start(self.kind, &self.dir, own.live_restore);
        self.wait_until_it_answers();
    }

    /// Runs its own client with these arguments: `docker`, or `ctr` in our namespace.
    pub(crate) fn client(&self, args: &[&str]) -> Output {
        // A client has no limit of its own, and an engine need not answer.
        let mut client = Command::new("timeout");
        client.args(["--kill-after=1", ANSWER]);
        match self.kind {
            Kind::Docker => client
                .arg(program("docker"))
                .env("DOCKER_HOST", format!("unix://{}", self.socket().display())),
            Kind::Containerd => client
                .arg(program("ctr"))
                .arg("--address")
                .arg(self.socket())
                .args(["--namespace", "sandmesh"]),
        };
        client.args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// What its client says with these arguments.
    pub(crate) fn said(&self, args: &[&str]) -> String {
        let output = self.client(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {args:?}: {} {error}", self.kind.name(), output.status);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The containers with a label that have this value.
    pub(crate) fn containers(&self, label: &str, value: &str) -> Vec<String> {
        let ids = match self.kind {
            Kind::Docker => {
                let filter = format!("label={label}={value}");
                self.said(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter])
            }
            Kind::Containerd => {
                self.said(&["containers", "list", "--quiet", &format!("labels.\"{label}\"==\"{value}\"")])
            }
        };
        ids.lines().map(str::to_owned).collect()
    }

    /// Kills and removes a container, by hand.
    pub(crate) fn remove(&self, container: &str) {
        match self.kind {
            Kind::Docker => drop(self.client(&["rm", "--force", "--volumes", container])),
            Kind::Containerd => {
                self.client(&["tasks", "delete", "--force", container]);
                self.client(&["containers", "delete", container]);
            }
        }
    }

    /// Makes a container by hand, perhaps with a label; it does not run.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn make(&self, image: &str, name: &str, label: Option<(&str, &str)>) {
        let label = label.map(|(label, value)| format!("{label}={value}"));
        let label: Vec<&str> = label.iter().flat_map(|label| ["--label", label]).collect();
        let whole = format!("docker.io/{image}");
        match self.kind {
            Kind::Docker => self
                .said(&[&["create", "--name", name, "--network=none"], &*label, &[image, "true"]].concat()),
            Kind::Containerd => {
                self.said(&[&["containers", "create"], &*label, &[&whole, name, "true"]].concat())
            }
        };
    }

    /// Whether there is a container of this name.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn has(&self, name: &str) -> bool {
        let word = match self.kind {
            Kind::Docker => "container",
            Kind::Containerd => "containers",
        };
        let verb = if self.kind == Kind::Docker { "inspect" } else { "info" };
        self.client(&[word, verb, name]).status.success()
    }

    /// What there is of a name besides a container.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn remnants(&self, name: &str) -> Vec<String> {
        if self.kind == Kind::Docker {
            return Vec::new();
        }
        let all = self.said(&["tasks", "list"]) + "\n" + &self.said(&["snapshots", "list"]);
        all.lines().filter(|line| line.contains(name)).map(str::to_owned).collect()
    }

    /// The first process of a container.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn pid_of(&self, container: &str) -> i32 {
        match self.kind {
            Kind::Docker => self.said(&["inspect", "--format", "{{.State.Pid}}", container]).parse().unwrap(),
            Kind::Containerd => {
                let tasks = self.said(&["tasks", "list"]);
                let fields = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
                let task = fields.into_iter().find(|task| task[0] == container);
                task.unwrap_or_else(|| panic!("{container} has no task: {tasks}"))[1].parse().unwrap()
            }
        }
    }

    /// Gives an image another name.
    #[allow(dead_code, reason = "not every test that has this file needs it")]
    pub(crate) fn tag(&self, image: &str, name: &str) {
        match self.kind {
            Kind::Docker => self.said(&["tag", image, name]),
            Kind::Containerd => {
                let (image, name) = (format!("docker.io/{image}"), format!("docker.io/library/{name}"));
                self.said(&["images", "tag", "--force", &image, &name])
            }
        };
    }

    fn answers(&self) -> bool {
        self.socket().exists() && self.client(&["version"]).status.success()
    }

    fn wait_until_it_answers(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.answers() {
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{} does not start: {log}", self.kind.name());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[expect(clippy::zombie_processes, reason = "they outlive this process, and are not its to wait for")]
    fn start_for_all(&self) {
        // Of one that did not end well.
        let _ = fs::remove_dir_all(&self.dir);
        fs::create_dir_all(&self.dir).unwrap();
        let engine = start(self.kind, &self.dir, false);
        self.wait_until_it_answers();
        let mut watch = Command::new("sh");
        watch.args(["-c", WATCH, "watch"]).arg(home()).args([self.kind.name(), &engine.id().to_string()]);
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
        // Nobody removes the archives meanwhile.
        let user = lock_file(&home(), "images.users.lock");
        user.lock_shared().unwrap();
        let path = |path: PathBuf| path.display().to_string();
        match self.kind {
            Kind::Docker if self.client(&["image", "inspect", image]).status.success() => {}
            Kind::Docker => drop(self.said(&["import", &path(images::archive(image)), image])),
            Kind::Containerd => {
                let name = format!("name==docker.io/{image}");
                if self.said(&["images", "list", "--quiet", &name]).is_empty() {
                    self.said(&["images", "import", &path(images::layout(image))]);
                }
            }
        }
    }

    /// What holds the containers of a containerd outlives it.
    fn end_shims(&self) {
        // Nothing that panics: the test may be doing that.
        let tasks = self.client(&["tasks", "list", "--quiet"]).stdout;
        for task in String::from_utf8_lossy(&tasks).lines() {
            self.remove(task);
        }
    }
}

impl Drop for TestEngine {
    fn drop(&mut self) {
        if self.own.is_some() && self.kind == Kind::Containerd && self.answers() {
            self.end_shims();
        }
        if let Some(own) = &mut self.own {
            // In order, so that it takes along what it started.
            let pid = rustix::process::Pid::from_child(&own.process);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let deadline = Instant::now() + END;
            while own.process.try_wait().is_ok_and(|end| end.is_none()) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = own.process.kill();
            let _ = own.process.wait();
            self.shims().into_iter().for_each(|(pid, _)| kill(pid));
            // One that was killed left its own mounts.
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
            for place in places.filter(|place| Path::new(place).starts_with(&self.dir)) {
                let _ = Command::new("umount").args(["-R", "-l", place]).stderr(Stdio::null()).status();
            }
        }
    }
}

fn socket(kind: Kind, dir: &Path) -> PathBuf {
    dir.join(format!("{}.sock", kind.name()))
}

/// Starts an engine in a directory.
fn start(kind: Kind, dir: &Path, live_restore: bool) -> Child {
    let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let mut engine = match kind {
        Kind::Docker => dockerd(dir, live_restore),
        Kind::Containerd => containerd(dir),
    };
    engine.env("PATH", PATH).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    // Signals for the test's group are not for it.
    engine.process_group(0).spawn().unwrap()
}

fn dockerd(dir: &Path, live_restore: bool) -> Command {
    let mut engine = Command::new(program("dockerd"));
    engine.arg(format!("--host=unix://{}", socket(Kind::Docker, dir).display()));
    for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "docker.pid")] {
        engine.arg(flag).arg(dir.join(name));
    }
    // Sandboxes have no network, and so no engine touches that of the machine.
    engine.args(["--bridge=none", "--iptables=false", "--ip-masq=false", "--log-level=warn"]);
    engine.arg(format!("--live-restore={live_restore}"));
    engine
}

fn containerd(dir: &Path) -> Command {
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n\
         address = {:?}\n",
        dir.join("root"),
        dir.join("state"),
        socket(Kind::Containerd, dir),
    );
    let path = dir.join("config.toml");
    fs::write(&path, config).unwrap();
    let mut engine = Command::new(program("containerd"));
    engine.arg("--config").arg(path).args(["--log-level", "warn"]);
    engine
}
