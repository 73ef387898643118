//! Everything that knows Linux: how a sandbox is built, and how a process gets into its jail.
//!
//! [`house`] builds the sandbox once; [`parent`] is a jail with a warm parent in it; [`process`] is one
//! child of it, in namespaces of its own.

mod bpf;
pub(crate) mod bubblewrap;
pub(crate) mod cgroup;
pub(crate) mod house;
pub(crate) mod interpreters;
pub(crate) mod jail;
pub(crate) mod large_pages;
pub(crate) mod layer;
pub(crate) mod parent;
pub(crate) mod process;
mod run_group;
pub(crate) mod seccomp;

use std::{
    fs::File,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use clap::{Args, ValueEnum};
use nix::sys::resource::{Resource, getrlimit};
use sandmesh_proto::executor as pb;

use self::{
    bubblewrap::Bubblewrap,
    cgroup::{Group, Limits},
    house::Rooms,
    interpreters::Interpreters,
    layer::Layer,
    run_group::RunGroups,
};
use crate::snapshot;

/// Whether a kind of isolation must be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Need {
    /// Not having it is an error.
    Required,
    /// It is used where it can be had.
    Optional,
    /// It is not used.
    Off,
}

/// Whether a layer of isolation is used. There is no "optional": a downgrade is never silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// It is used, and not having it is an error.
    Required,
    /// It is not used, because the operator says so.
    Off,
}

impl Switch {
    pub(crate) fn is_on(self) -> bool {
        self == Self::Required
    }
}

/// Whether a process of the user is forked from a warm parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Startup {
    /// From a parent that all executions of the sandbox share.
    Warm,
    /// Every execution has a jail and an interpreter of its own.
    Fresh,
}

impl Startup {
    /// The word of the API.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Fresh => "fresh",
        }
    }
}

/// How executions are isolated: flags of `serve` and `check`.
#[derive(Debug, Clone, Args)]
pub(crate) struct IsolationOptions {
    /// The user to become; only root can. User code then has this identity on the host.
    #[arg(long)]
    pub(crate) uid: Option<u32>,
    /// The group to become; the uid's number if left out.
    #[arg(long)]
    pub(crate) gid: Option<u32>,
    /// The control group below which sandboxes get theirs, from the root of the hierarchy.
    #[arg(long, default_value = "sandmesh")]
    pub(crate) cgroup_parent: String,
    /// Limits of memory, CPU and processes by control groups.
    #[arg(long, value_enum, default_value = "required")]
    pub(crate) cgroups: Need,
    /// The bubblewrap jail around every execution.
    #[arg(long, value_enum, default_value = "required")]
    pub(crate) jail: Switch,
    /// The system call filter on user code.
    #[arg(long, value_enum, default_value = "required")]
    pub(crate) seccomp: Switch,
    /// Whether executions are forked from warm parents, or each has a jail and an interpreter of its own.
    #[arg(long, value_enum, default_value = "warm")]
    pub(crate) interpreters: Startup,
    /// The Python interpreter, where it is not the system's.
    #[arg(long)]
    pub(crate) python: Option<PathBuf>,
    /// The Node.js interpreter, where it is not the system's.
    #[arg(long)]
    pub(crate) node: Option<PathBuf>,
    /// The shell, where it is not the system's.
    #[arg(long)]
    pub(crate) shell: Option<PathBuf>,
    /// A directory with a bubblewrap that needs nothing of the system around it: its loader `ld.so`, its
    /// libraries in `lib`, and `bwrap`.
    #[arg(long)]
    pub(crate) bubblewrap: Option<PathBuf>,
    /// The sandbox is a container, whose first process this is: a socket to be made, at which it is given its
    /// control groups, its own socket and its log.
    #[arg(long)]
    pub(crate) entry: Option<PathBuf>,
}

/// What is around the jails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outer {
    /// Nothing but a uid and control groups.
    Process,
    /// A container without a network.
    Container,
}

impl Outer {
    /// What the options say.
    pub(crate) fn of(options: &IsolationOptions) -> Self {
        if options.entry.is_some() { Self::Container } else { Self::Process }
    }

    /// The word of the API.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Container => "container",
        }
    }

    /// What enforces limits without control groups of our own, in the word of the API.
    pub(crate) fn limits(self) -> &'static str {
        match self {
            Self::Process => "rlimits",
            Self::Container => "container",
        }
    }

    /// What of the network is reached from here without a jail, in the word of the API.
    pub(crate) fn network(self) -> &'static str {
        match self {
            Self::Process => "host",
            Self::Container => "none",
        }
    }
}

/// A built sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    rooms: Rooms,
    /// The group of the jails and their warm parents.
    parents: Option<Group>,
    /// The groups of executions.
    groups: Option<Arc<RunGroups>>,
    /// How many children were ordered.
    numbers: AtomicU64,
    startup: Startup,
    /// Keep the groups reachable that were handed in.
    _doors: Vec<std::os::fd::OwnedFd>,
    outer: Outer,
    bubblewrap: Bubblewrap,
    limits: Limits,
    disk_bytes: u64,
    disk_reserve_bytes: u64,
    jail: Option<jail::Arguments>,
    seccomp: Option<seccomp::Filters>,
    dedicated_user: bool,
    interpreters: Interpreters,
    /// The packages that a jail shows that is made from now on.
    layer: Mutex<Option<Layer>>,
    /// Whether a Python is warm by way of a snapshot, where there is one.
    shares_snapshots: AtomicBool,
}

impl Sandbox {
    /// The packages that a jail shows that is made now.
    pub(crate) fn layer(&self) -> Option<Layer> {
        self.layer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what a jail shows that is made from now on, and gives back what it was.
    pub(crate) fn set_layer(&self, layer: Option<Layer>) -> Option<Layer> {
        std::mem::replace(&mut *self.layer.lock().unwrap_or_else(PoisonError::into_inner), layer)
    }

    /// Whether the node has this layer.
    pub(crate) fn has_layer(&self, layer: &Layer) -> bool {
        self.rooms.layers.as_deref().is_some_and(|layers| layer.files(layers).is_dir())
    }

    /// The interpreters that user code can be run with.
    pub(crate) fn interpreters(&self) -> &Interpreters {
        &self.interpreters
    }

    /// Where output goes that is not kept in memory.
    pub(crate) fn spool(&self) -> &std::path::Path {
        &self.rooms.spool
    }

    /// The workspace as the executor sees it.
    pub(crate) fn workspace(&self) -> &std::path::Path {
        &self.rooms.workspace
    }

    /// The limits of the sandbox.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// The size the workspace may have, in bytes; zero means not limited.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// The free space of the disk below which nothing may be hidden on it.
    pub(crate) fn disk_reserve_bytes(&self) -> u64 {
        self.disk_reserve_bytes
    }

    /// The processes of all executions; none can be told without control groups.
    pub(crate) fn user_processes(&self) -> Vec<nix::unistd::Pid> {
        self.groups.as_ref().map(|groups| groups.all().pids()).unwrap_or_default()
    }

    /// A command that prints the size of the workspace, or a little more than what is enough; `None`
    /// without a jail.
    pub(crate) fn measuring_jail(&self, enough: u64) -> Option<std::process::Command> {
        self.jail.as_ref()?;
        let mut command = self.bubblewrap.command();
        command.args(jail::Arguments::measuring(&self.rooms, self.outer, enough).as_slice()).env_clear();
        Some(command)
    }

    /// Where the code of the child of this number finds things.
    pub(crate) fn scene(&self, number: u64) -> jail::Scene {
        if self.jail.is_some() {
            jail::Scene::inside(self.layer())
        } else {
            jail::Scene::outside(&self.rooms, number)
        }
    }

    /// The snapshot of the Python, if there is one.
    fn snapshot(&self) -> Option<File> {
        if !self.shares_snapshots.load(Ordering::Relaxed) {
            return None;
        }
        let (copies, python) = (self.rooms.copies.as_ref()?, self.interpreters.python.as_ref()?);
        snapshot::find(copies, python, &self.rooms.executor)
    }

    /// Goes without snapshots from now on: one was no good.
    pub(crate) fn forget_snapshots(&self) {
        self.shares_snapshots.store(false, Ordering::Relaxed);
    }

    /// Whether executions are forked from parents that they share.
    pub(crate) fn is_warm(&self) -> bool {
        self.startup == Startup::Warm
    }

    /// Whether there is a jail, in which a parent can make namespaces.
    pub(crate) fn has_jail(&self) -> bool {
        self.jail.is_some()
    }

    /// Removes the groups that no execution is in, but for so many.
    pub(crate) fn keep_groups(&self, most: usize) {
        if let Some(groups) = &self.groups {
            groups.keep(most);
        }
    }

    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The isolation that executions really get.
    pub(crate) fn isolation(&self) -> pb::Isolation {
        pb::Isolation {
            sandbox: self.outer.name().to_owned(),
            jail: if self.jail.is_some() { "bubblewrap" } else { "none" }.to_owned(),
            seccomp: if self.seccomp.is_some() { "strict" } else { "none" }.to_owned(),
            // Without the jail's network namespace nothing stands between user code and the network.
            network: if self.jail.is_some() { "none" } else { self.outer.network() }.to_owned(),
            user: if self.dedicated_user { "dedicated" } else { "service" }.to_owned(),
            limits: self
                .groups
                .as_ref()
                .map_or_else(|| self.outer.limits(), |groups| groups.all().name())
                .to_owned(),
            interpreters: self.startup.name().to_owned(),
        }
    }

    /// What all executions together use.
    pub(crate) fn usage(&self) -> pb::ResourceUsage {
        let usage = self.groups.as_ref().map(|groups| groups.all().usage()).unwrap_or_default();
        pb::ResourceUsage {
            cpu_time_ns: u64::try_from(usage.cpu.as_nanos()).unwrap_or(u64::MAX),
            memory_bytes: usage.memory_bytes,
            peak_memory_bytes: usage.peak_memory_bytes,
            processes: usage.processes,
        }
    }

    fn rlimits(&self) -> Rlimits {
        const OPEN_FILES: u64 = 16_384;
        // The kernel counts descriptors that are on their way for both, so some must be left to ours.
        let ours = getrlimit(Resource::RLIMIT_NOFILE).map_or(OPEN_FILES, |(soft, _)| soft / 2);
        // With control groups these would only blur which limit was hit.
        let without_cgroup = |value: u64| if self.groups.is_none() { value } else { 0 };
        Rlimits {
            open_files: OPEN_FILES.min(ours),
            file_bytes: self.disk_bytes,
            data_bytes: without_cgroup(self.limits.memory_bytes),
            processes: without_cgroup(u64::from(self.limits.max_processes)),
        }
    }
}

/// Limits of each process of the user, besides what the control groups enforce for all; zero means
/// not limited.
#[derive(Debug, Clone, Copy)]
struct Rlimits {
    /// Open files.
    open_files: u64,
    /// The largest file.
    file_bytes: u64,
    /// Private writable memory; only where no control group limits it.
    data_bytes: u64,
    /// Processes; only where no control group limits them.
    processes: u64,
}
