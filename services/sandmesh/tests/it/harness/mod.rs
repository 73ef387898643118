//! Starts the real program on a directory, a port and a cgroup of its own, in one process or in several,
//! and leaves nothing behind.

pub(crate) mod api;
#[path = "../../../../session/testing/bucket.rs"]
pub(crate) mod bucket;
#[path = "../../../../agent/testing/engine.rs"]
pub(crate) mod engine;
pub(crate) mod events;
mod grpc;
mod index;
pub(crate) mod leftovers;
pub(crate) mod machines;
pub(crate) mod process;
pub(crate) mod registry;
pub(crate) mod tools;
pub(crate) mod twofold;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use sandmesh_mesh::{
    DatabaseUrl,
    database::testing::{Kind, TestDatabase},
};
use tempfile::TempDir;

pub(crate) use api::{Api, Reply};
pub(crate) use bucket::Bucket;
pub(crate) use engine::TestEngine;
pub(crate) use events::Events;
pub(crate) use grpc::{Grpc, code_spec, follow, refused, violates};
pub(crate) use index::Index;
use process::{Launch, Process};
pub(crate) use registry::Registry;
pub(crate) use sandmesh_mesh::testing::free_port;

/// How long a start or an orderly stop may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The credential of a mesh of several processes.
pub(crate) const TOKEN: &str = "a-credential-of-this-test-only";

/// A setting that the processes of the server see in their environment, and user code must not.
pub(crate) const HOST_SECRET: (&str, &str) = ("HOST_SECRET", "do-not-show-this-to-user-code");

/// How the roles are spread over processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wiring {
    /// All roles in one process.
    Embedded,
    /// Roles in five processes, on unix sockets and on TCP with a credential.
    Split,
}

/// The processes of the split wiring: a name, its roles, and whether it listens on TCP.
const SPLIT: [(&str, &[&str], bool); 5] = [
    ("control", &["template", "scheduler"], true),
    ("agent", &["agent"], true),
    ("session", &["session"], false),
    ("watch", &["health-probe", "state-sync"], false),
    ("gateway", &["gateway"], false),
];

/// A running server. It is stopped, and what it left is removed, when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) api: Api,
    pub(crate) port: u16,
    pub(crate) processes: Vec<Process>,
    cgroup_parent: String,
    dir: TempDir,
    _database: Option<TestDatabase>,
    /// The engine of its containers.
    engine: Option<Arc<TestEngine>>,
}

tokio::task_local! {
    /// The kind of database that the servers of a test use; SQLite where it does not say.
    pub(crate) static ON: Kind;
    /// The engine that makes the sandboxes of a test's servers; they are processes where there is none.
    pub(crate) static IN_CONTAINERS: Arc<TestEngine>;
}

/// The label of a container that names the data directory of its agent.
const OWNER: &str = "io.sandmesh.owner";

/// The settings by which sandboxes are containers.
pub(crate) fn settings_for(engine: &TestEngine) -> Vec<(String, String)> {
    let target = Path::new(process::SANDMESH).ancestors().nth(2).unwrap();
    let (kind, socket) = (engine.kind().name(), engine.socket().display().to_string());
    vec![
        ("SANDMESH_AGENT__RUNTIME".to_owned(), kind.to_owned()),
        (format!("SANDMESH_AGENT__{}__SOCKET", kind.to_uppercase()), socket),
        ("SANDMESH_AGENT__EXECUTOR".to_owned(), engine::static_executor(target).display().to_string()),
    ]
}

/// The database of a new server; `None` for the file in its directory.
async fn database() -> Option<TestDatabase> {
    match ON.try_with(|kind| *kind) {
        Ok(kind) if kind != Kind::Sqlite => Some(TestDatabase::create(kind).await),
        _ => None,
    }
}

/// The settings by which both roles that have one use a database.
pub(crate) fn settings_of(url: &DatabaseUrl) -> [(&'static str, &str); 2] {
    [("SANDMESH_SESSION__DATABASE_URL", url.expose()), ("SANDMESH_TEMPLATE__DATABASE_URL", url.expose())]
}

impl Wiring {
    /// Starts a server with the default settings.
    pub(crate) async fn start(self) -> Server {
        self.start_with(&[]).await
    }

    /// Starts a server with some settings, as in `("SANDMESH_AGENT__MAX_SANDBOXES", "2")`.
    pub(crate) async fn start_with(self, settings: &[(&str, &str)]) -> Server {
        let mut server = self.spawn(settings).await;
        server.ready().await;
        server
    }

    /// As `start_with`, but waits only until the server answers at all.
    pub(crate) async fn start_unready(self, settings: &[(&str, &str)]) -> Server {
        let server = self.spawn(settings).await;
        let answers = async || server.api.try_get("/health").await.is_some();
        eventually("the server answers", PATIENCE, answers).await;
        server
    }

    async fn spawn(self, settings: &[(&str, &str)]) -> Server {
        process::executor();
        let database = database().await;
        let url = database.as_ref().map(TestDatabase::url);
        let engine = IN_CONTAINERS.try_with(Arc::clone).ok();
        let in_containers = engine.as_deref().map(settings_for).unwrap_or_default();
        let in_containers: Vec<_> = in_containers.iter().map(|(name, value)| (&**name, &**value)).collect();
        let settings = [&in_containers, settings].concat();
        let settings = [&*settings, url.as_ref().map(settings_of).as_ref().map_or(&[], |own| own)].concat();
        let mut server = Server::empty(database);
        server.engine = engine;
        for launch in server.launches(self, &settings) {
            server.processes.push(launch.spawn());
        }
        server
    }
}

impl Server {
    /// One without processes yet.
    fn empty(database: Option<TestDatabase>) -> Self {
        // Sockets live below it and their paths are short: directly below the system's directory.
        let dir = tempfile::Builder::new().prefix("smt-").tempdir().unwrap();
        let port = free_port();
        let cgroup_parent = format!("smt-{}-{port}", std::process::id());
        let (api, processes) = (Api::new(port), Vec::new());
        Self { api, port, processes, cgroup_parent, dir, _database: database, engine: None }
    }

    fn launches(&self, wiring: Wiring, settings: &[(&str, &str)]) -> Vec<Launch> {
        match wiring {
            Wiring::Embedded => vec![self.launch("sandmesh", &["--listen", &self.address()], settings)],
            Wiring::Split => self.split_launches(settings),
        }
    }

    fn split_launches(&self, settings: &[(&str, &str)]) -> Vec<Launch> {
        let listen = |name: &str, tcp: bool| match tcp {
            true => format!("127.0.0.1:{}", free_port()),
            false => format!("unix:{}", self.data_dir().join(format!("{name}.sock")).display()),
        };
        let listens = SPLIT.map(|(name, _, tcp)| listen(name, tcp));
        let dial = |listen: &str| {
            if listen.starts_with("unix:") { listen.into() } else { format!("http://{listen}") }
        };
        let mut links = Vec::new();
        for ((_, roles, _), listen) in SPLIT.iter().zip(&listens) {
            links.extend(roles.iter().map(|role| format!("{role}={}", dial(listen))));
        }
        let mut launches = Vec::new();
        for ((name, roles, _), listen) in SPLIT.iter().zip(&listens) {
            let roles_flag = roles.join(",");
            let mut args = vec!["--roles", &roles_flag, "--mesh-listen", listen];
            let address = self.address();
            if *name == "gateway" {
                args.extend(["--listen", &address]);
            }
            links.iter().for_each(|link| args.extend(["--link", link]));
            let advertise = dial(listen);
            let mut settings = settings.to_vec();
            settings.push(("SANDMESH_MESH__TOKEN", TOKEN));
            if *name == "agent" {
                settings.push(("SANDMESH_AGENT__ADVERTISE", &advertise));
            }
            launches.push(self.launch(name, &args, &settings));
        }
        launches
    }

    /// One process. Test servers share a machine: each has uids and a cgroup of its own.
    fn launch(&self, name: &str, args: &[&str], settings: &[(&str, &str)]) -> Launch {
        let data_dir = self.data_dir().display().to_string();
        let mut all: Vec<String> = ["serve", "--data-dir", &data_dir].map(str::to_owned).into();
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let uid_base = (300_000 + u32::from(self.port) * 300).to_string();
        let own = [
            ("SANDMESH_AGENT__CGROUP_PARENT", self.cgroup_parent.as_str()),
            ("SANDMESH_AGENT__UID_BASE", &uid_base),
            ("SANDMESH_AGENT__UID_COUNT", "300"),
            ("SANDMESH_AGENT__ON_SHUTDOWN", "destroy"),
            HOST_SECRET,
        ];
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let env = own.iter().chain(settings).map(pair).collect();
        let log = self.dir.path().join(format!("{name}.log"));
        Launch { name: name.into(), args: all, env, log, network: None }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The directory that the server works in.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A directory for the test's own files.
    pub(crate) fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The directories of its nodes, and the cgroups of their sandboxes.
    pub(crate) fn nodes(&self) -> Vec<(PathBuf, String)> {
        let others = self.processes.iter().filter_map(|process| twofold::node_of(&process.launch));
        let mut nodes: Vec<_> =
            [(self.data_dir(), self.cgroup_parent.clone())].into_iter().chain(others).collect();
        nodes.dedup();
        nodes
    }

    /// The cgroup that the sandboxes of this server are made in.
    pub(crate) fn cgroup_parent(&self) -> &str {
        &self.cgroup_parent
    }

    /// Clients of the gRPC services at the public port.
    pub(crate) async fn grpc(&self) -> Grpc {
        Grpc::connect(&format!("http://{}", self.address())).await
    }

    /// Waits until every part of the mesh says that it is well.
    pub(crate) async fn ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(reply) = self.api.try_get("/health/detailed").await
                && reply.status == 200
                && reply.body["status"] == "healthy"
            {
                return;
            }
            let ended: Vec<String> = self.processes.iter_mut().filter_map(ended).collect();
            assert!(ended.is_empty(), "ended at its start:\n{}", ended.join("\n"));
            if Instant::now() > deadline {
                let health = self.api.try_get("/health/detailed").await.map(|reply| reply.body);
                panic!("not healthy within {PATIENCE:?}: {health:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts another process with the roles of one, which has a directory of its own and shares the rest.
    /// Gives the address at which it serves the mesh, and that of the first.
    pub(crate) fn start_replica(&mut self, name: &str) -> (String, String) {
        let first = self.process(name).launch.clone();
        let directory = self.dir.path().join(format!("{name}-2"));
        let address = format!("unix:{}", self.dir.path().join(format!("{name}-2.sock")).display());
        let after = |flag: &str| first.args.iter().position(|arg| arg == flag).unwrap() + 1;
        let (data_dir, listen) = (after("--data-dir"), after("--mesh-listen"));
        let mut replica = Launch { name: format!("{name}-2"), ..first.clone() };
        replica.args[data_dir] = directory.display().to_string();
        replica.args[listen].clone_from(&address);
        replica.log = self.dir.path().join(format!("{name}-2.log"));
        self.processes.push(replica.spawn());
        (address, first.args[listen].clone())
    }

    /// One process of the server, by its name.
    pub(crate) fn process(&mut self, name: &str) -> &mut Process {
        self.processes.iter_mut().find(|process| process.launch.name == name).unwrap()
    }

    /// `kill -9` of every process.
    pub(crate) fn kill(&mut self) {
        self.processes.iter_mut().for_each(Process::kill);
    }

    /// An orderly stop of every process; panics when one does not end, or not well.
    pub(crate) fn stop(&mut self) {
        self.processes.iter().for_each(Process::terminate);
        for process in &mut self.processes {
            let status = process.wait(PATIENCE).expect("ends after SIGTERM");
            assert!(status.success(), "{status}\n{}", process.log_tail(20));
        }
    }

    /// Starts every process that has ended, as it was started before.
    pub(crate) async fn start_again(&mut self) {
        for process in &mut self.processes {
            if process.exited().is_some() {
                *process = process.launch.spawn();
            }
        }
        self.ready().await;
    }

    /// What there is of sandboxes on the machine, in words.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let of_node = |(data_dir, parent): &(PathBuf, String)| leftovers::of(data_dir, parent);
        let containers = self.containers().into_iter().map(|id| format!("container {id}"));
        self.nodes().iter().flat_map(of_node).chain(containers).collect()
    }

    /// What makes its sandboxes.
    pub(crate) fn runtime(&self) -> &'static str {
        self.engine.as_ref().map_or("process", |engine| engine.kind().name())
    }

    /// The containers of its sandboxes.
    pub(crate) fn containers(&self) -> Vec<String> {
        let owner = self.data_dir().display().to_string();
        self.engine.as_ref().map(|engine| engine.containers(OWNER, &owner)).unwrap_or_default()
    }

    /// Waits until nothing is left of sandboxes.
    pub(crate) async fn expect_nothing_left(&self, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left after {at_most:?}:\n{}", left.join("\n"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The executors. What one has forked, and is about to be another program, is none.
    pub(crate) fn executors(&self) -> Vec<i32> {
        let dir = self.dir.path().to_string_lossy();
        let mut all = process::processes_with(&["sandmesh-executor", " serve ", &dir]);
        let forked: Vec<i32> = process::children_of(&all);
        all.retain(|pid| !forked.contains(pid));
        all
    }

    /// The executor of the only sandbox.
    pub(crate) fn only_executor(&self) -> i32 {
        let pids = self.executors();
        assert_eq!(pids.len(), 1, "one executor: {pids:?}");
        pids[0]
    }
}

fn ended(process: &mut Process) -> Option<String> {
    process.exited().map(|status| format!("{status}\n{}", process.log_tail(20)))
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.processes.iter().for_each(|process| eprintln!("{}", process.log_tail(30)));
        }
        self.processes.iter().for_each(Process::terminate);
        for process in &mut self.processes {
            if process.wait(Duration::from_secs(15)).is_none() {
                process.kill();
            }
        }
        for container in self.containers() {
            let engine = self.engine.as_ref().expect("it has the containers");
            engine.remove(&container);
        }
        for (data_dir, parent) in self.nodes() {
            leftovers::remove(&data_dir, &parent);
        }
    }
}

/// Waits until `condition` holds, looking often.
pub(crate) async fn eventually(
    what: &str,
    at_most: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> Duration {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < at_most, "not within {at_most:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}
