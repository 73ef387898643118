//! Everything that knows Linux: how a sandbox is built, and how one process gets into its jail.
//!
//! [`house`] builds the sandbox once; [`Sandbox::spawn`] puts one execution into a fresh jail of it.

pub(crate) mod cgroup;
pub(crate) mod house;
pub(crate) mod interpreters;
pub(crate) mod jail;
pub(crate) mod rlimits;
pub(crate) mod seccomp;
mod spawn;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use sandmesh_proto::executor as pb;

use self::{
    cgroup::{Group, Limits},
    house::Rooms,
    interpreters::Interpreters,
    rlimits::Rlimits,
};

pub(crate) use self::spawn::{BUBBLEWRAP, Process, SpawnError};

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
    /// The Python interpreter, where it is not the system's.
    #[arg(long)]
    pub(crate) python: Option<PathBuf>,
    /// The Node.js interpreter, where it is not the system's.
    #[arg(long)]
    pub(crate) node: Option<PathBuf>,
    /// The shell, where it is not the system's.
    #[arg(long)]
    pub(crate) shell: Option<PathBuf>,
}

/// A built sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    rooms: Rooms,
    /// The group `runs`, below which every execution gets its own.
    cgroup: Option<Group>,
    limits: Limits,
    disk_bytes: u64,
    jail: Option<jail::Arguments>,
    /// The compiled filter.
    seccomp: Option<Vec<u8>>,
    dedicated_user: bool,
    interpreters: Interpreters,
}

impl Sandbox {
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

    /// Where the code of an execution finds things.
    pub(crate) fn scene(&self, execution_id: &str) -> jail::Scene {
        if self.jail.is_some() {
            jail::Scene::inside()
        } else {
            jail::Scene::outside(&self.rooms, execution_id)
        }
    }

    /// The isolation that executions really get.
    pub(crate) fn isolation(&self) -> pb::Isolation {
        pb::Isolation {
            sandbox: "process".to_owned(),
            jail: if self.jail.is_some() { "bubblewrap" } else { "none" }.to_owned(),
            seccomp: if self.seccomp.is_some() { "strict" } else { "none" }.to_owned(),
            // Without the jail's network namespace nothing stands between user code and the network.
            network: if self.jail.is_some() { "none" } else { "host" }.to_owned(),
            user: if self.dedicated_user { "dedicated" } else { "service" }.to_owned(),
            limits: self.cgroup.as_ref().map_or("rlimits", Group::name).to_owned(),
        }
    }

    /// What all executions together use.
    pub(crate) fn usage(&self) -> pb::ResourceUsage {
        let usage = self.cgroup.as_ref().map(Group::usage).unwrap_or_default();
        pb::ResourceUsage {
            cpu_time_ns: u64::try_from(usage.cpu.as_nanos()).unwrap_or(u64::MAX),
            memory_bytes: usage.memory_bytes,
            peak_memory_bytes: usage.peak_memory_bytes,
            processes: usage.processes,
        }
    }

    fn rlimits(&self) -> Rlimits {
        const OPEN_FILES: u64 = 16_384;
        let limit = |value: u64| (value > 0).then_some(value);
        // With control groups these would only blur which limit was hit.
        let without_cgroup = |value: u64| if self.cgroup.is_none() { limit(value) } else { None };
        Rlimits {
            open_files: OPEN_FILES,
            file_bytes: limit(self.disk_bytes),
            data_bytes: without_cgroup(self.limits.memory_bytes),
            processes: without_cgroup(u64::from(self.limits.max_processes)),
        }
    }
}
