use std::{
    collections::HashSet,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Command,
};

use sandmesh_mesh::SystemClock;
use tempfile::TempDir;
use tokio::time::sleep;

use super::*;
use crate::{
    config::Cgroups,
    runtime::contract::{Bench, contract_suite, id, order},
};

/// Where the executor is built: `cargo build -p sandmesh-executor`.
fn executor() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let built = deps.ancestors().nth(2).unwrap().join("sandmesh-executor");
    assert!(built.is_file(), "`{}` is missing: cargo build -p sandmesh-executor", built.display());
    built
}

/// A data directory, and a cgroup parent of its own.
pub(crate) struct ProcessBench {
    dir: TempDir,
    config: Config,
}

impl ProcessBench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("sandmesh-test-").tempdir().unwrap();
        let config = Config {
            executor: executor(),
            cgroup_parent: dir.path().file_name().unwrap().to_str().unwrap().to_owned(),
            isolation: crate::config::IsolationPolicy { cgroups: Cgroups::Optional, ..Default::default() },
            ..Config::default()
        };
        Self { dir, config }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Puts a program in the place of the executor that answers a check with `answer`.
    pub(crate) fn answer_checks_with(&mut self, answer: &str) {
        self.replace_executor(&format!("#!/bin/sh\n[ \"$1\" = check ] || exit 0\necho '{answer}'\nexit 1\n"));
    }

    fn replace_executor(&mut self, script: &str) {
        self.config.executor = self.dir.path().join("stand-in");
        fs::write(&self.config.executor, script).unwrap();
        fs::set_permissions(&self.config.executor, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn process_runtime(&self) -> ProcessRuntime {
        ProcessRuntime::new(&self.config, self.dir.path(), Arc::new(SystemClock)).unwrap()
    }

    fn sandbox_dir(&self, id: &SandboxId) -> PathBuf {
        self.dir.path().join("sandboxes").join(id.as_str())
    }
}

impl Drop for ProcessBench {
    fn drop(&mut self) {
        for id in ids_in(&self.dir.path().join("sandboxes")).unwrap() {
            let mut destroy = Command::new(&self.config.executor);
            destroy.arg("destroy").arg("--dir").arg(self.sandbox_dir(&id));
            destroy.args(["--sandbox-id", id.as_str(), "--cgroup-parent", &self.config.cgroup_parent]);
            destroy.status().unwrap();
        }
        for group in groups(&self.config.cgroup_parent) {
            let _ = fs::remove_dir(group);
        }
    }
}

#[async_trait]
impl Bench for ProcessBench {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.process_runtime())
    }

    fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    async fn kill(&self, id: &SandboxId) {
        let pid = Record::load(&self.sandbox_dir(id)).unwrap().process.unwrap().pid;
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        for _ in 0..1000 {
            if life::start_time(pid).is_none() {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
        panic!("process {pid} does not die");
    }

    fn traces(&self, id: &SandboxId) -> Vec<String> {
        let dir = self.sandbox_dir(id);
        let mut traces = processes_of(&dir, &format!("/{}/{id}", self.config.cgroup_parent));
        traces.extend(dir.exists().then(|| dir.display().to_string()));
        let groups = groups(id.as_str()).into_iter().filter(|group| {
            group
                .parent()
                .and_then(Path::file_name)
                .is_some_and(|name| name == self.config.cgroup_parent.as_str())
        });
        traces.extend(groups.map(|group| group.display().to_string()));
        traces
    }
}

/// The processes that have a path below `dir` on their command line, or are in `group`.
fn processes_of(dir: &Path, group: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let line = read("cmdline").replace('\0', " ");
        if line.contains(&*dir.to_string_lossy()) || read("cgroup").contains(group) {
            found.push(format!("process {}: {line}", entry.file_name().display()));
        }
    }
    found
}

/// The cgroups of a name, in every hierarchy.
fn groups(name: &str) -> Vec<PathBuf> {
    let mut groups = Vec::new();
    let mut places = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(place) = places.pop() {
        let entries = fs::read_dir(&place).into_iter().flatten().flatten();
        places.extend(entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
        if place.file_name().is_some_and(|last| last == name) {
            groups.push(place);
        }
    }
    groups
}

contract_suite!(ProcessBench::new());

#[tokio::test]
async fn a_failed_start_tells_the_end_of_the_log_and_leaves_nothing() {
    let mut bench = ProcessBench::new();
    bench.config.python = Some("/nonexistent/python3".into());
    let error = bench.process_runtime().create(&order(1)).await.unwrap_err().to_string();
    assert!(error.contains("exited with status") && error.contains("/nonexistent/python3"), "{error}");
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

/// Whether a user whose only group this is can connect to a socket.
fn can_dial(socket: &Path, group: u32) -> bool {
    let dial = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        "65534",
        "--regid",
        &group.to_string(),
        "--clear-groups",
        "/usr/bin/python3",
        "-c",
        dial,
    ]);
    command.arg(socket).output().unwrap().status.success()
}

#[tokio::test]
async fn members_of_the_group_that_is_set_dial_executors_and_see_nothing_else() {
    const MEMBER: u32 = 64_123;
    let mut bench = ProcessBench::new();
    fs::set_permissions(bench.dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let dir = bench.sandbox_dir(&id(1));
    let socket = dir.join("executor.sock");
    bench.process_runtime().create(&order(1)).await.unwrap();
    assert!(!can_dial(&socket, MEMBER), "nobody may who is not told");
    bench.config.socket_group = Some(MEMBER);
    // The next agent opens what it takes over, too.
    bench.process_runtime().adopt().await.unwrap();
    assert!(can_dial(&socket, MEMBER));
    assert!(!can_dial(&socket, MEMBER + 1));
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    for private in ["sandbox.json", "executor.log"] {
        assert_eq!(mode(&dir.join(private)), 0o600, "{private}");
    }
    assert_eq!((mode(&dir), mode(&dir.join("workspace"))), (0o710, 0o700));
}

#[tokio::test]
async fn an_executor_that_never_answers_is_given_up_and_leaves_nothing() {
    let mut bench = ProcessBench::new();
    let real = executor();
    bench.replace_executor(&format!(
        "#!/bin/sh\n[ \"$1\" = serve ] && exec sleep 60\nexec {} \"$@\"\n",
        real.display()
    ));
    bench.config.start_timeout = sandmesh_mesh::HumanDuration(Duration::from_millis(200));
    let error = bench.process_runtime().create(&order(1)).await.unwrap_err().to_string();
    assert!(error.contains("did not answer within 200ms"), "{error}");
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

#[tokio::test]
async fn what_a_creation_left_that_did_not_end_is_found_as_such() {
    let bench = ProcessBench::new();
    bench.process_runtime().create(&order(1)).await.unwrap();
    // As if the agent had ended before it wrote what the sandbox got.
    let dir = bench.sandbox_dir(&id(1));
    Record { facts: None, ..Record::load(&dir).unwrap() }.save(&dir).unwrap();
    DirBuilder::new().create(bench.sandbox_dir(&id(2))).unwrap();
    let next = bench.process_runtime();
    let found = next.adopt().await.unwrap();
    let half_made = found.into_iter().map(|found| match found {
        Found::HalfMade(id) => id,
        Found::Whole(sandbox) => panic!("{sandbox:?} is whole"),
    });
    for id in half_made.collect::<HashSet<_>>() {
        next.delete(&id).await.unwrap();
        assert_eq!(bench.traces(&id), [""; 0]);
    }
    assert!(next.adopt().await.unwrap().is_empty());
}

#[tokio::test]
async fn each_sandbox_has_a_uid_of_its_own_that_cannot_reach_its_record() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let bench = ProcessBench::new();
    let runtime = bench.process_runtime();
    let mut owners = HashSet::new();
    for n in 1..=3 {
        let facts = runtime.create(&order(n)).await.unwrap();
        assert_eq!(facts.isolation.user, "dedicated");
        let dir = bench.sandbox_dir(&id(n));
        let (record, place) = (fs::metadata(dir.join("sandbox.json")).unwrap(), fs::metadata(&dir).unwrap());
        assert_eq!(
            (record.uid(), record.mode() & 0o777, place.uid(), place.mode() & 0o777),
            (0, 0o600, 0, 0o700)
        );
        owners.insert(fs::metadata(dir.join("workspace")).unwrap().uid());
    }
    assert_eq!(owners.len(), 3);
    // The next agent knows which are taken.
    let next = bench.process_runtime();
    next.adopt().await.unwrap();
    next.create(&order(4)).await.unwrap();
    let owner = fs::metadata(bench.sandbox_dir(&id(4)).join("workspace")).unwrap().uid();
    assert!(owners.insert(owner), "uid {owner} is held already");
}

#[tokio::test]
async fn nothing_of_the_agents_environment_reaches_an_executor() {
    let bench = ProcessBench::new();
    bench.process_runtime().create(&order(1)).await.unwrap();
    let pid = Record::load(&bench.sandbox_dir(&id(1))).unwrap().process.unwrap().pid;
    let environ = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let names: Vec<&str> = environ.split('\0').filter_map(|pair| pair.split('=').next()).collect();
    assert!(names.iter().all(|name| ["", "PATH"].contains(name)), "{names:?}");
}

#[tokio::test]
async fn an_executor_that_died_is_reaped() {
    let bench = ProcessBench::new();
    let runtime = bench.process_runtime();
    runtime.create(&order(1)).await.unwrap();
    let pid = Record::load(&bench.sandbox_dir(&id(1))).unwrap().process.unwrap().pid;
    let id = id(1);
    let (waited, ()) = tokio::join!(runtime.wait(&id), bench.kill(&id));
    assert!(waited.contains("signal 9"), "{waited}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it is a zombie");
}
