use std::{fs, process::Command};

use rustix::process::{Pid, kill_process};
use sandmesh_mesh::SystemClock;
use tempfile::TempDir;

use super::*;
use crate::runtime::{
    contract::{Bench, contract_suite, id, spec},
    life,
};

#[path = "../../../testing/engine.rs"]
mod engine_for_tests;

use engine_for_tests::{BUSYBOX, TestEngine, static_executor};

/// A data directory, a cgroup parent of its own, and an engine.
pub(crate) struct DockerBench {
    dir: TempDir,
    config: Config,
    engine: TestEngine,
}

impl DockerBench {
    pub(crate) fn new() -> Self {
        Self::on(TestEngine::shared(BUSYBOX))
    }

    fn on(engine: TestEngine) -> Self {
        let dir = tempfile::Builder::new().prefix("smd-test-").tempdir().unwrap();
        let built = std::env::current_exe().unwrap();
        let config = Config {
            executor: static_executor(built.ancestors().nth(3).unwrap()),
            cgroup_parent: dir.path().file_name().unwrap().to_str().unwrap().to_owned(),
            docker: crate::config::Docker {
                socket: engine.socket(),
                image: BUSYBOX.to_owned(),
                ..Default::default()
            },
            ..Config::default()
        };
        Self { dir, config, engine }
    }

    fn docker_runtime(&self) -> DockerRuntime {
        DockerRuntime::new(&self.config, self.dir.path(), "test", Arc::new(SystemClock)).unwrap()
    }

    fn sandbox_dir(&self, id: &SandboxId) -> PathBuf {
        self.dir.path().join("sandboxes").join(id.as_str())
    }

    fn containers(&self) -> Vec<String> {
        self.engine.containers(LABEL_OWNER, &self.dir.path().display().to_string())
    }

    fn container_of(&self, id: &SandboxId) -> Vec<String> {
        let of_it = self.engine.containers(LABEL_SANDBOX, id.as_str());
        self.containers().into_iter().filter(|container| of_it.contains(container)).collect()
    }
}

impl Drop for DockerBench {
    fn drop(&mut self) {
        for container in self.containers() {
            self.engine.docker(&["rm", "--force", "--volumes", &container]);
        }
        for group in groups(&self.config.cgroup_parent) {
            let _ = fs::remove_dir(group);
        }
    }
}

#[async_trait]
impl Bench for DockerBench {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.docker_runtime())
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
        // What is not of a container that is there is left of one that was.
        let known = self.containers();
        let is_known = |group: &PathBuf| known.iter().any(|container| group.ends_with(container));
        let below = groups(&self.config.cgroup_parent).into_iter().flat_map(|parent| dirs_in(&parent));
        let left: Vec<PathBuf> = below.filter(|group| !is_known(group)).collect();
        traces.extend(left.iter().map(|group| group.display().to_string()));
        traces.extend(dir.exists().then(|| dir.display().to_string()));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        traces.extend(mounts.lines().filter(|line| line.contains(id.as_str())).map(str::to_owned));
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

contract_suite!(DockerBench::new());

fn order(n: u32) -> Order {
    Order { id: id(n), spec: spec(), created_at: SystemClock.now(), layer: None }
}

fn order_of(n: u32, image: &str) -> Order {
    Order { spec: Spec { image: image.to_owned(), ..spec() }, ..order(n) }
}

#[tokio::test]
async fn a_container_is_what_it_is_to_be() {
    let bench = DockerBench::new();
    let facts = bench.docker_runtime().create(&order(1)).await.unwrap();
    let isolation = &facts.isolation;
    let words =
        [&isolation.sandbox, &isolation.jail, &isolation.seccomp, &isolation.network, &isolation.user];
    assert_eq!(words, ["container", "bubblewrap", "strict", "none", "dedicated"]);
    assert!(isolation.limits.starts_with("cgroup-v"), "{isolation:?}");
    assert_eq!(isolation.interpreters, "warm");
    let pid = Record::load(&bench.sandbox_dir(&id(1))).unwrap().process.unwrap().pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")?.split('\t').next()).unwrap();
    assert!(uid.parse::<u32>().unwrap() >= bench.config.uid_base, "{uid}");
}

#[tokio::test]
async fn a_failed_start_tells_what_was_said_and_leaves_nothing() {
    let mut bench = DockerBench::new();
    bench.config.python = Some("/nonexistent/python3".into());
    let error = bench.docker_runtime().create(&order(1)).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/python3") && error.contains(BUSYBOX), "{error}");
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

#[tokio::test]
async fn an_image_without_the_interpreter_is_told_and_leaves_nothing() {
    let bench = DockerBench::new();
    let mut order = order(1);
    order.spec.language = Language::Python;
    let error = bench.docker_runtime().create(&order).await.unwrap_err().to_string();
    assert!(error.contains("no interpreter for python"), "{error}");
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_told_by_its_kind() {
    let mut bench = DockerBench::new();
    let problem = |error: Error| match error {
        Error::NoImage { problem, .. } => problem,
        error => panic!("{error}"),
    };
    // Nobody listens there.
    let unreachable = order_of(1, "127.0.0.1:1/nobody/nothing:1");
    let told = problem(bench.docker_runtime().create(&unreachable).await.unwrap_err());
    assert!(matches!(told, ImageProblem::Unreachable(_)), "{told:?}");
    let told =
        problem(bench.docker_runtime().create(&order_of(1, "../../containers/json")).await.unwrap_err());
    assert!(matches!(told, ImageProblem::Invalid), "{told:?}");
    bench.config.docker.pull = crate::config::Pull::Never;
    let told = problem(bench.docker_runtime().create(&unreachable).await.unwrap_err());
    assert!(matches!(told, ImageProblem::Absent), "{told:?}");
    bench.config.docker.image = String::new();
    let told = problem(bench.docker_runtime().create(&order(1)).await.unwrap_err());
    assert!(matches!(told, ImageProblem::Unnamed), "{told:?}");
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

#[tokio::test]
async fn an_image_that_is_pulled_by_several_is_asked_for_once() {
    let bench = DockerBench::new();
    let (address, asked) = registry_that_knows_nothing().await;
    let image = format!("{address}/some/image:1");
    let runtime = Arc::new(bench.docker_runtime());
    let creates = (1..=4).map(|n| {
        let (runtime, order) = (Arc::clone(&runtime), order_of(n, &image));
        async move { runtime.create(&order).await.unwrap_err() }
    });
    for error in futures::future::join_all(creates).await {
        let Error::NoImage { problem: ImageProblem::NotFound(_), .. } = error else { panic!("{error:?}") };
    }
    let manifests = asked.lock().unwrap().iter().filter(|line| line.contains("/manifests/1")).count();
    assert!((1..=2).contains(&manifests), "asked {manifests} times: {:?}", asked.lock().unwrap());
}

/// A registry that answers every question about a manifest after a while with that there is none.
async fn registry_that_knows_nothing() -> (String, Arc<Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let serve = async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..read]).into_owned();
            let line = text.lines().next().unwrap_or_default().to_owned();
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            let (status, body) =
                if line.contains("/manifests/") { ("404 Not Found", body) } else { ("200 OK", "{}") };
            seen.lock().unwrap().push(line);
            if status.starts_with("404") {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    };
    #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
    drop(tokio::spawn(serve));
    (address, asked)
}

#[tokio::test]
async fn a_container_that_is_left_over_is_replaced_and_one_of_somebody_else_is_not() {
    let bench = DockerBench::new();
    let runtime = bench.docker_runtime();
    let name = name(&runtime.owner(), &id(1));
    let label = format!("{LABEL_OWNER}={}", bench.dir.path().display());
    let make = |args: &[&str]| {
        let common = ["create", "--name", &name, "--network", "none"];
        bench.engine.said(&[&common, args, &[BUSYBOX, "true"]].concat())
    };
    let left_over = make(&["--label", &label]);
    runtime.create(&order(1)).await.unwrap();
    assert!(!bench.container_of(&id(1)).contains(&left_over));
    runtime.delete(&id(1)).await.unwrap();
    let elses = make(&[]);
    let error = runtime.create(&order(1)).await.unwrap_err().to_string();
    assert!(error.contains("not of this agent"), "{error}");
    assert!(bench.engine.docker(&["inspect", &elses]).status.success(), "it is somebody else's");
    bench.engine.said(&["rm", &elses]);
}

#[tokio::test]
async fn what_a_creation_left_that_did_not_end_is_found_as_such() {
    let bench = DockerBench::new();
    let runtime = bench.docker_runtime();
    for n in [1, 2] {
        runtime.create(&order(n)).await.unwrap();
    }
    // As if the agent had ended before it wrote what the sandbox got, and as if a directory were lost.
    let dir = bench.sandbox_dir(&id(1));
    Record { facts: None, ..Record::load(&dir).unwrap() }.save(&dir).unwrap();
    fs::remove_dir_all(bench.sandbox_dir(&id(2))).unwrap();
    fs::create_dir(bench.sandbox_dir(&id(3))).unwrap();
    let next = bench.docker_runtime();
    let found = next.adopt().await.unwrap();
    assert_eq!(found.len(), 3);
    for found in found {
        let Found::HalfMade(id) = found else { panic!("{found:?} is whole") };
        next.delete(&id).await.unwrap();
        assert_eq!(bench.traces(&id), [""; 0]);
    }
    assert!(next.adopt().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_container_that_somebody_removes_is_seen_with_its_cause() {
    let bench = DockerBench::new();
    let runtime = bench.docker_runtime();
    runtime.create(&order(1)).await.unwrap();
    let container = bench.container_of(&id(1)).remove(0);
    bench.engine.said(&["rm", "--force", &container]);
    let reason = tokio::time::timeout(Duration::from_secs(2), runtime.wait(&id(1))).await.unwrap();
    assert!(reason.contains("removed") || reason.contains("signal 9"), "{reason}");
    runtime.delete(&id(1)).await.unwrap();
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

#[tokio::test]
async fn sandboxes_survive_an_engine_that_restores_and_are_reported_by_one_that_does_not() {
    for live_restore in [true, false] {
        let mut bench = DockerBench::on(TestEngine::own(BUSYBOX, live_restore));
        let runtime = Arc::new(bench.docker_runtime());
        let stopped = sandmesh_mesh::CancellationToken::new();
        let follow = Arc::clone(&runtime.watch).follow(owner_label(&runtime.owner()), stopped.clone());
        #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
        let following = tokio::spawn(follow);
        let facts = runtime.create(&order(1)).await.unwrap();
        bench.engine.kill();
        assert!(runtime.check().await.is_err(), "nobody is there");
        assert!(answered(&bench.sandbox_dir(&id(1)), &id(1), Duration::from_secs(5), None).await.is_ok());
        let refused = runtime.create(&order(2)).await.unwrap_err().to_string();
        assert!(refused.contains("cannot be reached"), "{refused}");
        bench.engine.start_again();
        let waited = tokio::time::timeout(Duration::from_secs(5), runtime.wait(&id(1))).await;
        if live_restore {
            assert!(waited.is_err(), "{waited:?}");
            assert!(answered(&bench.sandbox_dir(&id(1)), &id(1), Duration::from_secs(5), None).await.is_ok());
        } else {
            let reason = waited.unwrap();
            assert!(reason.contains("engine was lost"), "{reason}");
        }
        runtime.create(&order(2)).await.unwrap();
        for n in [1, 2] {
            runtime.delete(&id(n)).await.unwrap();
            assert_eq!(bench.traces(&id(n)), [""; 0], "{facts:?}");
        }
        stopped.cancel();
        following.await.unwrap();
    }
}

#[tokio::test]
async fn a_sandbox_can_be_ended_while_no_engine_is_there_and_is_cleared_when_it_is_back() {
    let mut bench = DockerBench::on(TestEngine::own(BUSYBOX, true));
    let runtime = bench.docker_runtime();
    runtime.create(&order(1)).await.unwrap();
    let pid = Record::load(&bench.sandbox_dir(&id(1))).unwrap().process.unwrap().pid;
    bench.engine.kill();
    let error = runtime.delete(&id(1)).await.unwrap_err();
    assert!(matches!(error, Error::DestroyFailed { .. }), "{error}");
    assert!(life::start_time(pid).is_none(), "its processes are gone all the same");
    bench.engine.start_again();
    runtime.delete(&id(1)).await.unwrap();
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

#[tokio::test]
async fn nothing_of_the_agents_environment_reaches_an_executor() {
    let bench = DockerBench::new();
    bench.docker_runtime().create(&order(1)).await.unwrap();
    let pid = Record::load(&bench.sandbox_dir(&id(1))).unwrap().process.unwrap().pid;
    let environ = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let names: Vec<&str> = environ.split('\0').filter_map(|pair| pair.split('=').next()).collect();
    assert!(names.iter().all(|name| ["", "PATH", "HOSTNAME", "HOME"].contains(name)), "{names:?}");
}

#[tokio::test]
async fn orphans_of_a_container_are_reaped_by_its_first_process() {
    let bench = DockerBench::new();
    bench.docker_runtime().create(&order(1)).await.unwrap();
    let pid = Record::load(&bench.sandbox_dir(&id(1))).unwrap().process.unwrap().pid;
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
