//! The machine that hosts the sandboxes, as its administrator sees it: processes, control groups, files.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tempfile::TempDir;

use super::{target::Local, verdict::Evidence};

/// How deep below the root of a hierarchy control groups are looked for.
const DEPTH: usize = 8;

/// A deployment's part of this machine.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) local: Local,
}

/// What the machine has of one sandbox.
#[derive(Debug, Clone)]
pub(super) struct Sandbox {
    pub(super) dir: PathBuf,
    /// The uid of its workspace, which its code has on the host.
    pub(super) uid: u32,
    /// The executor when this was looked up.
    pub(super) executor: Option<u32>,
}

/// A process of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) name: String,
    pub(super) state: String,
    pub(super) uids: Vec<u32>,
    pub(super) capabilities: String,
    pub(super) no_new_privs: bool,
    pub(super) seccomp: bool,
}

impl Host {
    pub(super) fn open(local: &Local) -> anyhow::Result<Self> {
        let dir = &local.data_dir;
        fs::read_dir(dir).with_context(|| format!("cannot read the data directory {}", dir.display()))?;
        Ok(Self { local: local.clone() })
    }

    /// What the machine has of a sandbox that runs.
    pub(super) fn sandbox(&self, sandbox_id: &str) -> anyhow::Result<Sandbox> {
        let dir = self.sandbox_dir(sandbox_id);
        let workspace = dir.join("workspace");
        let meta = fs::metadata(&workspace).with_context(|| format!("cannot see {}", workspace.display()))?;
        let mut sandbox = Sandbox { dir, uid: meta.uid(), executor: None };
        sandbox.executor = sandbox.executor_pid();
        Ok(sandbox)
    }

    /// Where a sandbox is or was. One that was warm is where it was made, under another id.
    pub(super) fn sandbox_dir(&self, sandbox_id: &str) -> PathBuf {
        let root = self.local.data_dir.join("sandboxes");
        let own = root.join(sandbox_id);
        if own.exists() {
            return own;
        }
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).find(|dir| is_claimed_as(dir, sandbox_id)).unwrap_or(own)
    }
}

/// Whether the sandbox in a directory was warm and is known by this id now.
fn is_claimed_as(dir: &Path, sandbox_id: &str) -> bool {
    let record = fs::read(dir.join("sandbox.json")).unwrap_or_default();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
    record["claimed_as"] == sandbox_id
}

impl Sandbox {
    /// The executor as it is now.
    pub(super) fn executor_pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.dir.join("executor.pid")).ok()?;
        let pid = text.split_whitespace().next()?.parse().ok()?;
        fs::exists(format!("/proc/{pid}")).unwrap_or(false).then_some(pid)
    }

    pub(super) fn workspace(&self) -> PathBuf {
        self.dir.join("workspace")
    }

    /// The control groups of its executions, in every hierarchy: beside that of its executor, whatever the
    /// runtime calls what both are in.
    pub(super) fn run_groups(&self) -> Vec<PathBuf> {
        let pid = self.executor_pid().unwrap_or_default();
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let places = own.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?.strip_suffix("/executor")?);
            let hierarchy = controllers.strip_prefix("name=").unwrap_or(controllers);
            Some(Path::new("/sys/fs/cgroup").join(hierarchy).join(path.trim_start_matches('/')).join("runs"))
        });
        places.filter(|dir| dir.is_dir()).collect()
    }

    /// The memory that the executor itself has, in KiB.
    pub(super) fn executor_memory(&self) -> Option<u64> {
        memory_of(self.executor_pid()?)
    }
}

/// The resident memory of a process in KiB.
pub(super) fn memory_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    field(&status, "VmRSS:")?.split_whitespace().next()?.parse().ok()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn process(pid: u32) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let get = |name| field(&status, name).unwrap_or_default().to_owned();
    Some(Process {
        pid,
        parent: get("PPid:").parse().unwrap_or_default(),
        name: get("Name:"),
        state: get("State:"),
        uids: get("Uid:").split_whitespace().filter_map(|uid| uid.parse().ok()).collect(),
        capabilities: get("CapEff:"),
        no_new_privs: get("NoNewPrivs:") == "1",
        seccomp: get("Seccomp:") == "2",
    })
}

/// The processes that carry a mark in their name, their command line, or the environment that they began with.
pub(super) fn marked(mark: &str) -> Vec<Process> {
    let has = |process: &Process, file: &str| {
        let text = fs::read(format!("/proc/{}/{file}", process.pid)).unwrap_or_default();
        super::judge::contains(&text, mark.as_bytes())
    };
    let carries =
        |process: &Process| process.name == mark || has(process, "cmdline") || has(process, "environ");
    let own = std::process::id();
    all().into_iter().filter(|process| process.pid != own && carries(process)).collect()
}

/// Every process of the machine.
pub(super) fn all() -> Vec<Process> {
    pids().into_iter().filter_map(process).collect()
}

/// The namespaces of a process, as `user:[4026531837]`.
pub(super) fn namespaces(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/ns")) else { return Vec::new() };
    let read = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
    let mut found: Vec<String> =
        entries.flatten().filter_map(read).map(|link| link.display().to_string()).collect();
    found.sort();
    found.dedup();
    found
}

/// The control groups of a name, in every hierarchy.
pub(super) fn groups_named(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    look_for(Path::new("/sys/fs/cgroup"), name, DEPTH, &mut found);
    found
}

fn look_for(dir: &Path, name: &str, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if entry.file_name().to_str() == Some(name) {
            found.push(entry.path());
        } else if depth > 0 {
            look_for(&entry.path(), name, depth - 1, found);
        }
    }
}

/// Figures of these files in the control group `runs` of a sandbox: the first of the names that is there.
pub(super) fn group_figure(sandbox: &Sandbox, names: &[&str]) -> Option<u64> {
    let groups = sandbox.run_groups();
    let mut files = groups.iter().flat_map(|dir| names.iter().map(|name| dir.join(name)));
    files.find_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
}

/// No process of an attack is left. (Its control group is used again, and may hold one that waits to be the next.)
pub(super) async fn nothing_left(evidence: &mut Evidence, mark: &str) {
    // What ends is there for a moment after its end was told.
    for _ in 0..50 {
        if marked(mark).is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let left = marked(mark);
    let told = left.iter().take(5).map(|process| format!("{} {}", process.pid, process.state));
    let told = if left.is_empty() { "none".to_owned() } else { told.collect::<Vec<_>>().join(", ") };
    evidence.host("processes left on the host", left.is_empty(), told);
}

/// A directory on the host with a file in it that an attack would like to read, change or remove.
#[derive(Debug)]
pub(super) struct Canary {
    dir: TempDir,
    /// What is in the file.
    pub(super) secret: String,
    before: Vec<(u32, u32, i64, i64)>,
}

impl Canary {
    pub(super) fn new() -> anyhow::Result<Self> {
        // The attack has another uid, and is not to be stopped by the mode of the file alone.
        let dir = tempfile::Builder::new().prefix("sandmesh-canary-").tempdir()?;
        let open =
            |path: &Path, mode| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode));
        let secret = format!("canary-{:032x}", rand::random::<u128>());
        fs::create_dir(dir.path().join("inner"))?;
        for file in [dir.path().join("secret"), dir.path().join("inner/secret")] {
            fs::write(&file, &secret)?;
            open(&file, 0o666)?;
        }
        open(dir.path(), 0o777)?;
        open(&dir.path().join("inner"), 0o777)?;
        let mut canary = Self { dir, secret, before: Vec::new() };
        canary.before = canary.state();
        Ok(canary)
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Owner, mode and time of change of everything in it.
    fn state(&self) -> Vec<(u32, u32, i64, i64)> {
        let paths = ["", "secret", "inner", "inner/secret"].map(|name| self.dir.path().join(name));
        let state = |path: &PathBuf| {
            fs::symlink_metadata(path).map(|m| (m.uid(), m.mode(), m.ctime(), m.ctime_nsec()))
        };
        paths.iter().map(|path| state(path).unwrap_or_default()).collect()
    }

    /// Nothing in it was changed, added or removed.
    pub(super) fn check(&self, evidence: &mut Evidence) {
        let same = self.state() == self.before;
        let content = fs::read_to_string(self.dir.path().join("secret")).unwrap_or_default() == self.secret;
        let told = match (same, content) {
            (true, true) => "unchanged",
            (_, false) => "its content is not what it was",
            (false, true) => "owner, mode or entries changed",
        };
        evidence.host("files of the host that links pointed at", same && content, told);
    }
}
