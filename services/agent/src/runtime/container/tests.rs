//! What holds for containers of every engine, over real ones; and the bed of all tests of containers.

use std::{fs, process::Command};

use rustix::process::{Pid, kill_process};
use sandmesh_mesh::SystemClock;
use tempfile::TempDir;

use super::{plan::LABEL_SANDBOX, *};
use crate::{
    config::RuntimeKind,
    runtime::{
        containerd,
        contract::{Bench, id, order, spec},
        docker, life,
        record::Record,
    },
};

#[path = "../../../testing/engine.rs"]
pub(crate) mod engine_for_tests;

use engine_for_tests::static_executor;
pub(crate) use engine_for_tests::{BUSYBOX, Kind, TestEngine};

/// Makes a test of each rule for an engine of a kind, and of each of the contract.
macro_rules! container_suite {
    ($kind:expr) => {
        $crate::runtime::contract::contract_suite!($crate::runtime::container::tests::ContainerBench::new($kind));

        $crate::runtime::container::tests::container_suite!(@tests $kind, [
            a_container_is_what_it_is_to_be
            a_failed_start_tells_what_was_said_and_leaves_nothing
            an_image_without_the_interpreter_is_told_and_leaves_nothing
            what_a_creation_left_that_did_not_end_is_found_as_such
            a_container_that_somebody_removes_is_seen_with_its_cause
            a_sandbox_can_be_ended_while_no_engine_is_there_and_is_cleared_when_it_is_back
            what_a_failed_creation_left_while_no_engine_was_there_is_cleared_when_it_is_back
            memory_that_runs_out_in_a_container_is_the_cause_of_its_death
            nothing_of_the_agents_environment_reaches_an_executor
            orphans_of_a_container_are_reaped_by_its_first_process
            a_container_that_is_left_over_is_replaced_and_one_of_somebody_else_is_not
            images_are_listed_as_templates_name_them
        ]);
    };
    (@tests $kind:expr, [$($rule:ident)*]) => {
        $(
            #[tokio::test]
            async fn $rule() {
                $crate::runtime::container::tests::$rule($kind).await;
            }
        )*
    };
}
pub(crate) use container_suite;

/// A data directory, a cgroup parent of its own, and an engine.
pub(crate) struct ContainerBench {
    pub(crate) dir: TempDir,
    pub(crate) config: Config,
    pub(crate) engine: TestEngine,
}

impl ContainerBench {
    pub(crate) fn new(kind: Kind) -> Self {
        Self::on(TestEngine::shared(kind, BUSYBOX))
    }

    pub(crate) fn on(engine: TestEngine) -> Self {
        let dir = tempfile::Builder::new().prefix("smd-test-").tempdir().unwrap();
        let built = std::env::current_exe().unwrap();
        let (socket, image) = (engine.socket(), BUSYBOX.to_owned());
        let mut config = Config {
            executor: static_executor(built.ancestors().nth(3).unwrap()),
            cgroup_parent: dir.path().file_name().unwrap().to_str().unwrap().to_owned(),
            ..Config::default()
        };
        match engine.kind() {
            Kind::Docker => {
                config.runtime = RuntimeKind::Docker;
                (config.docker.socket, config.docker.image) = (socket, image);
            }
            Kind::Containerd => {
                config.runtime = RuntimeKind::Containerd;
                (config.containerd.socket, config.containerd.image) = (socket, image);
            }
        }
        Self { dir, config, engine }
    }

    pub(crate) fn made(&self) -> ContainerRuntime {
        let make = match self.engine.kind() {
            Kind::Docker => docker::runtime,
            Kind::Containerd => containerd::runtime,
        };
        make(&self.config, self.dir.path(), "test", Arc::new(SystemClock)).unwrap()
    }

    fn owner(&self) -> String {
        self.dir.path().display().to_string()
    }

    /// What the container of a sandbox is called.
    pub(crate) fn name(&self, n: u32) -> String {
        name(&self.owner(), &id(n))
    }

    pub(crate) fn sandbox_dir(&self, id: &SandboxId) -> PathBuf {
        self.dir.path().join("sandboxes").join(id.as_str())
    }

    pub(crate) fn pid(&self, n: u32) -> i32 {
        Record::load(&self.sandbox_dir(&id(n))).unwrap().process.unwrap().pid
    }

    fn containers(&self) -> Vec<String> {
        self.engine.containers(LABEL_OWNER, &self.owner())
    }

    pub(crate) fn container_of(&self, id: &SandboxId) -> Vec<String> {
        let of_it = self.engine.containers(LABEL_SANDBOX, id.as_str());
        self.containers().into_iter().filter(|container| of_it.contains(container)).collect()
    }
}

impl Drop for ContainerBench {
    fn drop(&mut self) {
        for container in self.containers() {
            self.engine.remove(&container);
        }
        for group in groups(&self.config.cgroup_parent) {
            let _ = fs::remove_dir(group);
        }
    }
}

#[async_trait]
impl Bench for ContainerBench {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.made())
    }

    fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    fn death_is_seen_within(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn kill(&self, id: &SandboxId) {
        let pid = Record::load(&self.sandbox_dir(id)).unwrap().process.unwrap().pid;
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        for _ in 0..5000 {
            if life::start_time(pid).is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("process {pid} does not die");
    }

    fn traces(&self, id: &SandboxId) -> Vec<String> {
        let dir = self.sandbox_dir(id);
        let mut traces = self.container_of(id);
        traces.extend(self.engine.remnants(&name(&self.owner(), id)));
        // What is not of a container that is there is left of one that was.
        let known = self.containers();
        let is_known = |group: &PathBuf| known.iter().any(|container| group.ends_with(container));
        let below = groups(&self.config.cgroup_parent).into_iter().flat_map(|parent| dirs_in(&parent));
        let left: Vec<PathBuf> = below.filter(|group| !is_known(group)).collect();
        traces.extend(left.iter().map(|group| group.display().to_string()));
        traces.extend(dir.exists().then(|| dir.display().to_string()));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        // Other tests have sandboxes of the same id.
        let words = [dir.display().to_string(), name(&self.owner(), id)];
        let is_of_it = |line: &&str| words.iter().any(|word| line.contains(word));
        traces.extend(mounts.lines().filter(is_of_it).map(str::to_owned));
        traces
    }
}

fn dirs_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The cgroups of a name at the root of every hierarchy.
fn groups(name: &str) -> Vec<PathBuf> {
    let roots = [vec![PathBuf::from("/sys/fs/cgroup")], dirs_in(Path::new("/sys/fs/cgroup"))].concat();
    roots.into_iter().map(|root| root.join(name)).filter(|group| group.is_dir()).collect()
}

pub(crate) fn order_of(n: u32, image: &str) -> Order {
    Order { spec: Spec { image: image.to_owned(), ..spec() }, ..order(n) }
}

pub(crate) async fn a_container_is_what_it_is_to_be(kind: Kind) {
    let bench = ContainerBench::new(kind);
    let facts = bench.made().create(&order(1)).await.unwrap();
    let isolation = &facts.isolation;
    let words =
        [&isolation.sandbox, &isolation.jail, &isolation.seccomp, &isolation.network, &isolation.user];
    assert_eq!(words, ["container", "bubblewrap", "strict", "none", "dedicated"]);
    assert!(isolation.limits.starts_with("cgroup-v"), "{isolation:?}");
    assert_eq!(isolation.interpreters, "warm");
    let pid = bench.pid(1);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")?.split('\t').next()).unwrap();
    assert!(uid.parse::<u32>().unwrap() >= bench.config.uid_base, "{uid}");
}

pub(crate) async fn a_failed_start_tells_what_was_said_and_leaves_nothing(kind: Kind) {
    let mut bench = ContainerBench::new(kind);
    bench.config.python = Some("/nonexistent/python3".into());
    let error = bench.made().create(&order(1)).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/python3") && error.contains(BUSYBOX), "{error}");
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

pub(crate) async fn an_image_without_the_interpreter_is_told_and_leaves_nothing(kind: Kind) {
    let bench = ContainerBench::new(kind);
    let mut order = order(1);
    order.spec.language = Language::Python;
    let error = bench.made().create(&order).await.unwrap_err().to_string();
    assert!(error.contains("no interpreter for python"), "{error}");
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

pub(crate) async fn what_a_creation_left_that_did_not_end_is_found_as_such(kind: Kind) {
    let bench = ContainerBench::new(kind);
    let runtime = bench.made();
    for n in [1, 2] {
        runtime.create(&order(n)).await.unwrap();
    }
    // As if the agent had ended before it wrote what the sandbox got, and as if a directory were lost.
    let dir = bench.sandbox_dir(&id(1));
    Record { facts: None, ..Record::load(&dir).unwrap() }.save(&dir).unwrap();
    fs::remove_dir_all(bench.sandbox_dir(&id(2))).unwrap();
    fs::create_dir(bench.sandbox_dir(&id(3))).unwrap();
    let next = bench.made();
    let found = next.adopt().await.unwrap();
    assert_eq!(found.len(), 3);
    for found in found {
        let Found::HalfMade(id) = found else { panic!("{found:?} is whole") };
        next.delete(&id).await.unwrap();
        assert_eq!(bench.traces(&id), [""; 0]);
    }
    assert!(next.adopt().await.unwrap().is_empty());
}

pub(crate) async fn a_container_that_somebody_removes_is_seen_with_its_cause(kind: Kind) {
    let bench = ContainerBench::new(kind);
    let runtime = bench.made();
    runtime.create(&order(1)).await.unwrap();
    let container = bench.container_of(&id(1)).remove(0);
    bench.engine.remove(&container);
    let reason = tokio::time::timeout(Duration::from_secs(2), runtime.wait(&id(1))).await.unwrap();
    assert!(reason.contains("removed") || reason.contains("signal 9"), "{reason}");
    runtime.delete(&id(1)).await.unwrap();
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

pub(crate) async fn a_sandbox_can_be_ended_while_no_engine_is_there_and_is_cleared_when_it_is_back(
    kind: Kind,
) {
    let mut bench = ContainerBench::on(TestEngine::own(kind, BUSYBOX, true));
    let runtime = bench.made();
    runtime.create(&order(1)).await.unwrap();
    let pid = bench.pid(1);
    bench.engine.kill();
    let error = runtime.delete(&id(1)).await.unwrap_err();
    assert!(matches!(error, Error::DestroyFailed { .. }), "{error}");
    assert!(life::start_time(pid).is_none(), "its processes are gone all the same");
    bench.engine.start_again();
    runtime.delete(&id(1)).await.unwrap();
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

pub(crate) async fn what_a_failed_creation_left_while_no_engine_was_there_is_cleared_when_it_is_back(
    kind: Kind,
) {
    let mut bench = ContainerBench::on(TestEngine::own(kind, BUSYBOX, true));
    let runtime = bench.made();
    for n in [1, 2] {
        runtime.create(&order(n)).await.unwrap();
    }
    bench.engine.kill();
    for n in [1, 2] {
        // As the creation does which does not come to its end.
        runtime.give_up(&id(n)).await;
        assert!(bench.sandbox_dir(&id(n)).exists());
    }
    runtime.tend().await;
    bench.engine.start_again();
    runtime.create(&order(1)).await.unwrap();
    runtime.tend().await;
    assert_eq!(bench.traces(&id(2)), [""; 0]);
    assert_eq!(bench.container_of(&id(1)).len(), 1, "the new one of this id is left alone");
}

pub(crate) async fn memory_that_runs_out_in_a_container_is_the_cause_of_its_death(kind: Kind) {
    let bench = ContainerBench::new(kind);
    let runtime = bench.made();
    let tasks = Tasks::new();
    runtime.start(&tasks);
    runtime.create(&order(1)).await.unwrap();
    // Something beside the executor that takes all the memory of the container, and dies of it.
    let pid = bench.pid(1);
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let fields = own.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>()).collect::<Vec<_>>();
    let version_1 = fields.iter().find(|line| line[1] == "memory");
    let group = match version_1 {
        Some(line) => format!("/sys/fs/cgroup/memory{}", line[2]),
        None => format!("/sys/fs/cgroup{}", fields[0][2]),
    };
    let script = format!("echo $$ > {group}/cgroup.procs && exec tail /dev/zero");
    let taken = Command::new("sh").args(["-c", &script]).status().unwrap();
    assert!(!taken.success(), "{taken}");
    bench.kill(&id(1)).await;
    let reason = tokio::time::timeout(Duration::from_secs(1), runtime.wait(&id(1))).await.unwrap();
    assert!(reason.contains("ran out of memory"), "{reason}");
    runtime.delete(&id(1)).await.unwrap();
    assert_eq!(tasks.shut_down(Duration::from_secs(5)).await, 0);
}

pub(crate) async fn nothing_of_the_agents_environment_reaches_an_executor(kind: Kind) {
    let bench = ContainerBench::new(kind);
    bench.made().create(&order(1)).await.unwrap();
    let pid = bench.pid(1);
    let environ = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let names: Vec<&str> = environ.split('\0').filter_map(|pair| pair.split('=').next()).collect();
    assert!(names.iter().all(|name| ["", "PATH", "HOSTNAME", "HOME"].contains(name)), "{names:?}");
}

pub(crate) async fn orphans_of_a_container_are_reaped_by_its_first_process(kind: Kind) {
    let bench = ContainerBench::new(kind);
    bench.made().create(&order(1)).await.unwrap();
    let pid = bench.pid(1);
    // A process inside whose parent ends at once, as a jail's is that is killed.
    let script = "(sleep 0.1 &) ; exit 0";
    let entered = Command::new("nsenter")
        .args(["--target", &pid.to_string(), "--pid", "--mount", "--", "/bin/sh", "-c", script])
        .status()
        .unwrap();
    assert!(entered.success());
    let zombies = || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let state = |child: &str| fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        children.split_whitespace().filter(|child| state(child).contains(") Z ")).count()
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(zombies(), 0);
}

pub(crate) async fn a_container_that_is_left_over_is_replaced_and_one_of_somebody_else_is_not(kind: Kind) {
    let bench = ContainerBench::new(kind);
    let runtime = bench.made();
    let name = bench.name(1);
    bench.engine.make(BUSYBOX, &name, Some((LABEL_OWNER, &bench.owner())));
    runtime.create(&order(1)).await.unwrap();
    assert_eq!(bench.container_of(&id(1)).len(), 1);
    runtime.delete(&id(1)).await.unwrap();
    bench.engine.make(BUSYBOX, &name, None);
    let error = runtime.create(&order(1)).await.unwrap_err().to_string();
    assert!(error.contains("not of this agent"), "{error}");
    assert!(bench.engine.has(&name), "it is somebody else's");
    bench.engine.remove(&name);
}

pub(crate) async fn images_are_listed_as_templates_name_them(kind: Kind) {
    let bench = ContainerBench::new(kind);
    let runtime = bench.made();
    assert!(runtime.images().await.unwrap().contains(&BUSYBOX.to_owned()));
    let spec = |image: &str| Spec { image: image.to_owned(), ..spec() };
    let there = runtime.interpreter(&spec(BUSYBOX), Language::Shell).await.unwrap().unwrap();
    assert!(there.contains("image sha256:"), "{there}");
    let gone = runtime.interpreter(&spec("nobody/nothing:1"), Language::Shell).await.unwrap();
    assert_eq!(gone, None);
}
