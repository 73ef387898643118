//! The engine of containerd: containers through its API, by a unix socket, in a namespace of our own.
//!
//! A container is there before its snapshot and its task, and goes after them. So whatever is left of one that
//! came or went halfway hangs on a container with our label, by which it is found; and containerd itself clears
//! away a snapshot that no container has. What runs is held by a shim, which outlives containerd.

mod api;
mod client;
mod image;
mod name;
mod seccomp;
mod shim;
mod spec;

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    path::Path,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use prost_types::Any;
use sandmesh_mesh::Clock;
use serde_json::Value;
use tokio::{
    sync::watch::Sender,
    time::{Instant, sleep},
};

use self::{
    api::containerd::{
        events::TaskOom,
        services::{
            containers::v1::{
                Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest,
                ListContainersRequest, container::Runtime as Shim,
            },
            events::v1::SubscribeRequest,
            snapshots::v1::{
                MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
            },
            tasks::v1::{CreateTaskRequest, DeleteTaskRequest, GetRequest, KillRequest, StartRequest},
        },
        types::Envelope,
        v1::types::Status,
    },
    client::{Client, TITLE},
    image::{Image, Images},
    seccomp::{Machine, version},
    spec::Setting,
};
use super::{
    Problems,
    container::{
        ContainerRuntime, Settings,
        engine::{Ended, Engine, Refusal, State, Survey, Trouble, absent},
        plan::{LABEL_OWNER, Plan, Walls},
        seccomp::profile,
        watch::Notes,
    },
};
use crate::{Config, error::ImageProblem};

/// The shim that holds containers of namespaces and control groups.
const SHIM: &str = "io.containerd.runc.v2";
/// Of what kind the spec of a container is.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// The oldest version that is known to do.
const OLDEST: (u32, u32) = (1, 6);
/// What a container writes before it has a log.
const SAID: &str = "said.log";
/// How much of that is read.
const MOST_SAID: u64 = 4 << 10;
/// How soon it is tried again to remove a task that has not ended yet.
const PAUSE: Duration = Duration::from_millis(10);
const SIGKILL: u32 = 9;

/// A runtime for sandboxes below `data_dir`, which are containers of the containerd that is configured. Asks
/// nobody and changes nothing on the machine.
///
/// # Errors
/// When the executor program is missing, naming the setting.
pub(crate) fn runtime(
    config: &Config,
    data_dir: &Path,
    node_id: &str,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<ContainerRuntime> {
    let own = &config.containerd;
    let settings = Settings { image: own.image.clone(), memory_overhead: own.memory_overhead.0 };
    ContainerRuntime::new(config, (engine(config)?, settings), data_dir, node_id, clock)
}

/// The engine that is configured. Nothing is asked yet.
///
/// # Errors
/// When the namespace cannot be the name of one.
pub(in crate::runtime) fn engine(config: &Config) -> anyhow::Result<Arc<dyn Engine>> {
    Ok(Arc::new(Containerd::of(config)?))
}

/// How an image is brought that is not there.
pub(in crate::runtime) fn advice(config: &Config) -> String {
    let own = &config.containerd;
    format!(
        "bring it there with `ctr --namespace {0} images pull --snapshotter {1} NAME` or `ctr --namespace {0} images \
         import --snapshotter {1} FILE`",
        own.namespace, own.snapshotter
    )
}

/// A containerd.
#[derive(Debug)]
struct Containerd {
    client: Arc<Client>,
    images: Images,
    namespace: String,
    snapshotter: String,
    /// The cgroup that containers are made in.
    cgroup_parent: String,
    seccomp: Value,
}

impl Containerd {
    fn of(config: &Config) -> anyhow::Result<Self> {
        let own = &config.containerd;
        let client = Arc::new(Client::at(own.socket.clone(), &own.namespace)?);
        Ok(Self {
            images: Images::of(Arc::clone(&client), &own.snapshotter, advice(config)),
            client,
            namespace: own.namespace.clone(),
            snapshotter: own.snapshotter.clone(),
            cgroup_parent: config.cgroup_parent.clone(),
            seccomp: filter()?,
        })
    }

    /// The file system of a container: a layer of its own on those of its image.
    async fn prepare(&self, name: &str, image: Image) -> Result<(), Trouble> {
        let request = || PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: name.to_owned(),
            parent: image.chain.clone(),
            ..Default::default()
        };
        let mut snapshots = self.client.snapshots();
        match self.client.answer(snapshots.prepare(request())).await {
            // Left over from a container that somebody else removed.
            Err(trouble) if trouble.is_conflict() => {
                self.remove_snapshot(name).await?;
                self.client.answer(snapshots.prepare(request())).await.map(drop)
            }
            prepared => prepared.map(drop),
        }
    }

    async fn remove_snapshot(&self, name: &str) -> Result<(), Trouble> {
        let request = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: name.to_owned() };
        let mut snapshots = self.client.snapshots();
        absent(self.client.answer(snapshots.remove(request)).await).map(drop)
    }

    /// Kills what runs, and removes it once it has ended. False when containerd knows of nothing that runs.
    async fn remove_task(&self, name: &str, within: Duration) -> Result<bool, Trouble> {
        let deadline = Instant::now() + within;
        let mut tasks = self.client.tasks();
        loop {
            let delete = DeleteTaskRequest { container_id: name.to_owned() };
            match absent(self.client.answer(tasks.delete(delete)).await) {
                Ok(found) => return Ok(found.is_some()),
                Err(Trouble::Refused { .. }) if Instant::now() < deadline => {
                    let kill = KillRequest {
                        container_id: name.to_owned(),
                        signal: SIGKILL,
                        all: true,
                        ..Default::default()
                    };
                    // One that has ended meanwhile is not there to be killed.
                    let _ = self.client.answer(tasks.kill(kill)).await;
                    sleep(PAUSE).await;
                }
                Err(trouble) => return Err(trouble),
            }
        }
    }

    async fn container(&self, name: &str) -> Result<Option<Container>, Trouble> {
        let mut containers = self.client.containers();
        let get = containers.get(GetContainerRequest { id: name.to_owned() });
        Ok(absent(self.client.answer(get).await)?.and_then(|found| found.container))
    }
}

#[async_trait]
impl Engine for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn title(&self) -> &'static str {
        TITLE
    }

    /// Their shims hold them.
    fn takes_containers_along(&self) -> bool {
        false
    }

    async fn survey(&self) -> Result<Survey, Problems> {
        let advice = "start it, or name its socket in setting `agent.containerd.socket`";
        let problem = |text: String| Problems(vec![text]);
        let unreachable = |trouble: Trouble| problem(format!("{trouble}; {advice}"));
        let mut server = self.client.version();
        let found = self.client.answer(server.version(())).await.map_err(unreachable)?.version;
        if version(found.trim_start_matches('v')) < OLDEST {
            return Err(problem(format!(
                "containerd 1.6 or newer is missing: this is {found}; install a newer one"
            )));
        }
        let mut snapshots = self.client.snapshots();
        let stat = StatSnapshotRequest { snapshotter: self.snapshotter.clone(), key: "sandmesh".to_owned() };
        if let Err(trouble) = absent(self.client.answer(snapshots.stat(stat)).await) {
            return Err(problem(format!(
                "snapshotter `{}` is missing in containerd ({trouble}); name one that `ctr plugins ls` shows as ok in \
                 setting `agent.containerd.snapshotter`",
                self.snapshotter
            )));
        }
        let cgroup_parent = format!("/{}", self.cgroup_parent);
        let about = vec![
            ("engine", format!("containerd {}", found.trim_start_matches('v'))),
            ("its namespace", self.namespace.clone()),
            ("its snapshotter", self.snapshotter.clone()),
        ];
        Ok(Survey { cgroup_parent, apparmor: None, warnings: warnings(), about })
    }

    async fn ping(&self) -> Result<(), Trouble> {
        let mut server = self.client.version();
        self.client.answer(server.version(())).await.map(drop)
    }

    async fn listen(&self, _: &str, notes: &Notes) -> Trouble {
        let filter = format!(r#"topic=="/tasks/oom",namespace=="{}""#, self.namespace);
        // It answers when it has something to tell, so there is no time limit.
        let subscribed = self.client.events().subscribe(SubscribeRequest { filters: vec![filter] }).await;
        let mut told = match subscribed {
            Ok(told) => told.into_inner(),
            Err(status) => return self.client.trouble(&status),
        };
        loop {
            match told.message().await {
                Ok(Some(envelope)) => note(&envelope, notes),
                Ok(None) => return self.client.away("it closed the connection".to_owned()),
                Err(status) => return self.client.trouble(&status),
            }
        }
    }

    async fn images(&self) -> Result<Vec<String>, Trouble> {
        self.images.list().await
    }

    async fn image_id(&self, image: &str) -> Result<Option<String>, Trouble> {
        Ok(self.images.find(image).await?.map(|image| image.id))
    }

    async fn have_image(&self, image: &str, _: &Sender<String>) -> Result<String, ImageProblem> {
        Ok(self.images.have(image).await?.id)
    }

    async fn empty_image(&self) -> Result<String, Trouble> {
        Ok(Image::empty().id)
    }

    async fn create(&self, name: &str, plan: &Plan<'_>, walls: &Walls) -> Result<String, Trouble> {
        let image = self.images.by_id(plan.image).await?;
        let setting = Setting { name, env: &image.env, seccomp: &self.seccomp, counts_swap: counts_swap() };
        let spec = spec::spec(plan, walls, &setting).to_string();
        let container = Container {
            id: name.to_owned(),
            labels: plan.labels(walls),
            image: image.id.clone(),
            runtime: Some(Shim { name: SHIM.to_owned(), options: None }),
            spec: Some(Any { type_url: SPEC_TYPE.to_owned(), value: spec.into_bytes() }),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: name.to_owned(),
            ..Default::default()
        };
        let mut containers = self.client.containers();
        let create = containers.create(CreateContainerRequest { container: Some(container) });
        self.client.answer(create).await?;
        self.prepare(name, image).await?;
        Ok(name.to_owned())
    }

    async fn start(&self, container: &str, dir: &Path) -> Result<(), Trouble> {
        let key = container.to_owned();
        let mut snapshots = self.client.snapshots();
        let mounts = MountsRequest { snapshotter: self.snapshotter.clone(), key };
        let rootfs = self.client.answer(snapshots.mounts(mounts)).await?.mounts;
        // A file and not a pipe, as nobody may be there to read. Both are named: the shim of 1.6 wants that.
        let said = file_url(&dir.join(SAID));
        let container_id = container.to_owned();
        let create = CreateTaskRequest {
            container_id: container_id.clone(),
            rootfs,
            stdout: said.clone(),
            stderr: said,
            ..Default::default()
        };
        let mut tasks = self.client.tasks();
        self.client.answer(tasks.create(create)).await?;
        let start = StartRequest { container_id, ..Default::default() };
        self.client.answer(tasks.start(start)).await.map(drop)
    }

    async fn state(&self, container: &str) -> Result<Option<State>, Trouble> {
        let mut tasks = self.client.tasks();
        let get = tasks.get(GetRequest { container_id: container.to_owned(), ..Default::default() });
        let found = absent(self.client.answer(get).await)?.and_then(|found| found.process);
        let Some(process) = found else {
            let removed = Ended { error: "its task was removed".to_owned(), ..Default::default() };
            return Ok(self.container(container).await?.map(|_| State::Ended(removed)));
        };
        Ok(Some(match process.status() {
            Status::Stopped => {
                State::Ended(Ended { code: Some(process.exit_status.into()), ..Default::default() })
            }
            _ => State::Running,
        }))
    }

    async fn labels(&self, container: &str) -> Result<Option<HashMap<String, String>>, Trouble> {
        Ok(self.container(container).await?.map(|found| found.labels))
    }

    async fn containers(&self, owner: &str) -> Result<Vec<HashMap<String, String>>, Trouble> {
        let owner = Value::from(owner);
        let filters = vec![format!(r#"labels."{LABEL_OWNER}"=={owner}"#)];
        let mut containers = self.client.containers();
        let list = containers.list_stream(ListContainersRequest { filters });
        let mut found = self.client.answer(list).await?;
        let mut labels = Vec::new();
        while let Some(message) = found.message().await.map_err(|status| self.client.trouble(&status))? {
            labels.extend(message.container.map(|container| container.labels));
        }
        Ok(labels)
    }

    async fn remove(&self, container: &str, within: Duration) -> Result<(), Trouble> {
        if !self.remove_task(container, within).await? {
            shim::end(&self.namespace, container);
        }
        self.remove_snapshot(container).await?;
        let mut containers = self.client.containers();
        let delete = containers.delete(DeleteContainerRequest { id: container.to_owned() });
        absent(self.client.answer(delete).await).map(drop)
    }

    async fn said(&self, _: &str, dir: &Path) -> Result<Vec<u8>, Trouble> {
        let mut said = Vec::new();
        let read = File::open(dir.join(SAID)).and_then(|file| file.take(MOST_SAID).read_to_end(&mut said));
        match read {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let message = format!("what it said cannot be read: {error}");
                Err(Trouble::Refused { engine: TITLE, kind: Refusal::Other, message })
            }
            _ => Ok(said),
        }
    }
}

/// The filter of all containers on this machine.
fn filter() -> anyhow::Result<Value> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let machine = Machine { processor: std::env::consts::ARCH, kernel: version(&kernel) };
    seccomp::oci(profile(), machine).ok_or_else(|| anyhow::anyhow!("the seccomp profile is no profile"))
}

/// Whether swap is counted, so that it can be limited. With control groups of version 2 it is.
fn counts_swap() -> bool {
    let version_1 = Path::new("/sys/fs/cgroup/memory");
    !version_1.is_dir() || version_1.join("memory.memsw.limit_in_bytes").exists()
}

/// What works and could be better.
fn warnings() -> Vec<String> {
    let swap = "the kernel does not count swap, so that containers may use it beyond their memory; start it with \
                swapaccount=1";
    if counts_swap() { Vec::new() } else { vec![swap.to_owned()] }
}

fn note(envelope: &Envelope, notes: &Notes) {
    let told = envelope.event.as_ref().map(|event| <TaskOom as prost::Message>::decode(&*event.value));
    if let Some(Ok(TaskOom { container_id })) = told {
        notes.note(container_id, |note| note.oom = Some(Instant::now()));
    }
}

/// A path as the shim takes it.
fn file_url(path: &Path) -> String {
    let mut url = "file://".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => url.push(char::from(*byte)),
            letter if letter.is_ascii_alphanumeric() => url.push(char::from(*letter)),
            other => url.push_str(&format!("%{other:02X}")),
        }
    }
    url
}

#[cfg(test)]
pub(crate) mod tests;
