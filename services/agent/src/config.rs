//! The settings of the agent: `[agent]` in the configuration.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

mod containerd;
mod docker;
mod packages;

pub use self::{
    containerd::Containerd,
    docker::{Docker, Pull},
    packages::Packages,
};
use sandmesh_mesh::{ByteSize, ConfigError, HumanDuration};
use serde::{Deserialize, Serialize};

/// The settings of the agent. The default runs sandboxes as jailed processes of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The stable id of this node; empty means the host's name.
    pub node_id: String,
    /// The driver that makes sandboxes.
    pub runtime: RuntimeKind,
    /// The `sandmesh-executor` program; empty means the one beside the running program.
    pub executor: PathBuf,
    /// How many sandboxes this node takes.
    pub max_sandboxes: u32,
    /// What this node hands out.
    pub capacity: Capacity,
    /// The first of the uids that sandboxes get of their own, when the agent runs as root.
    pub uid_base: u32,
    /// How many such uids there are.
    pub uid_count: u32,
    /// The cgroup, at the root of the hierarchy, that sandboxes are made in.
    pub cgroup_parent: String,
    /// The isolation that must be had.
    pub isolation: IsolationPolicy,
    /// A group whose members may dial executors, by its gid; unset means that only the agent's own user may.
    /// It is for a session and a health-probe role that run as another user, and is all that they can do.
    pub socket_group: Option<u32>,
    /// How many executions may run at once in a sandbox whose spec does not say.
    pub max_concurrent_executions: u32,
    /// How many executions may wait in a sandbox.
    pub max_queued: u32,
    /// How much of each output stream is kept.
    pub max_output: ByteSize,
    /// While less of the disk is free, executions that hide what they use of it are ended.
    pub disk_reserve: ByteSize,
    /// The Python interpreter; unset means the first in PATH.
    pub python: Option<PathBuf>,
    /// The Node.js interpreter; unset means the first in PATH.
    pub node: Option<PathBuf>,
    /// The shell; unset means the first in PATH.
    pub shell: Option<PathBuf>,
    /// What becomes of the sandboxes when the agent stops.
    pub on_shutdown: OnShutdown,
    /// How long a new sandbox may take until its executor answers.
    pub start_timeout: HumanDuration,
    /// How often the agent reports to the scheduler.
    pub heartbeat_interval: HumanDuration,
    /// Where other processes dial this agent, `https://HOST:PORT` on a machine that joined; empty when the
    /// scheduler runs in the same process, or finds it at the address that this machine dials it from.
    pub advertise: String,
    /// Labels of this node, for placement, besides `name`, `runtime` and `isolation`, which each node has.
    pub labels: BTreeMap<String, String>,
    /// The installation of packages.
    pub packages: Packages,
    /// The Docker runtime.
    pub docker: Docker,
    /// The containerd runtime.
    pub containerd: Containerd,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_id: String::new(),
            runtime: RuntimeKind::Process,
            executor: PathBuf::new(),
            max_sandboxes: 200,
            capacity: Capacity::default(),
            uid_base: 200_000,
            uid_count: 10_000,
            cgroup_parent: "sandmesh".to_owned(),
            isolation: IsolationPolicy::default(),
            socket_group: None,
            max_concurrent_executions: 16,
            max_queued: 256,
            max_output: ByteSize(16 << 20),
            disk_reserve: ByteSize(1 << 30),
            python: None,
            node: None,
            shell: None,
            on_shutdown: OnShutdown::Keep,
            start_timeout: HumanDuration(Duration::from_secs(10)),
            heartbeat_interval: HumanDuration(Duration::from_secs(2)),
            advertise: String::new(),
            labels: BTreeMap::new(),
            packages: Packages::default(),
            docker: Docker::default(),
            containerd: Containerd::default(),
        }
    }
}

/// The drivers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// Jailed processes of this machine.
    Process,
    /// Containers of a Docker engine on this machine.
    Docker,
    /// Containers of a containerd on this machine.
    Containerd,
}

/// What a node hands out. A sandbox's limits are ceilings and not reservations, so more may be promised
/// than there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capacity {
    /// CPU in thousandths of a core, of all sandboxes together; unset means that CPU is shared and not
    /// counted.
    pub cpu_millis: Option<u32>,
    /// Memory of all sandboxes together; unset means the host's times `memory_overcommit`.
    pub memory: Option<ByteSize>,
    /// How many times the host's memory is promised while `memory` is unset.
    pub memory_overcommit: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { cpu_millis: None, memory: None, memory_overcommit: 4 }
    }
}

/// Whether a layer of isolation must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// The agent does not start without it.
    Required,
    /// It is not used. Weaker: every session tells that it is off.
    Off,
}

impl Layer {
    /// The word, as the executor takes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Off => "off",
        }
    }
}

/// Whether cgroups must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cgroups {
    /// The agent does not start without them.
    Required,
    /// They are used where they can be had; every session tells what enforces its limits.
    Optional,
    /// They are not used: limits are rlimits of each process.
    Off,
}

impl Cgroups {
    /// The word, as the executor takes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Optional => "optional",
            Self::Off => "off",
        }
    }
}

/// Where the process of an execution comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpreters {
    /// It is forked from a warm parent of its session, into namespaces of its own. Starts in about a
    /// millisecond; the executions of one session share their layout of memory (ASLR), their hash seed
    /// and their network namespace, in which there is no network.
    Warm,
    /// It is a fresh interpreter in a jail of its own. Starts in tens of milliseconds.
    Fresh,
}

impl Interpreters {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Fresh => "fresh",
        }
    }
}

/// The isolation that must be had. Nothing is weakened without being asked for here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IsolationPolicy {
    /// Bubblewrap around each execution.
    pub jail: Layer,
    /// The system call filter on user code.
    pub seccomp: Layer,
    /// Limits of memory, CPU and processes for the sandbox as a whole.
    pub cgroups: Cgroups,
    /// Whether executions are forked from warm interpreters.
    pub interpreters: Interpreters,
    /// Whether the warm Pythons of all sandboxes of this node that are processes start from one snapshot. They are warm
    /// sooner and take less memory then, and have the layout of their memory and the hash seed in common.
    pub snapshots: bool,
}

impl Default for IsolationPolicy {
    fn default() -> Self {
        Self {
            jail: Layer::Required,
            seccomp: Layer::Required,
            cgroups: Cgroups::Required,
            interpreters: Interpreters::Warm,
            snapshots: true,
        }
    }
}

/// What becomes of the sandboxes when the agent stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnShutdown {
    /// They run on, and are adopted at the next start.
    Keep,
    /// They are destroyed.
    Destroy,
}

/// The longest path of a unix socket, in bytes, without the closing zero.
const SOCKET_PATH_MAX: usize = 107;
/// The most executions at once that an executor takes.
pub(crate) const EXECUTIONS_MAX: u32 = 1024;
/// The most waiting executions that an executor takes.
const QUEUED_MAX: u32 = 4096;
/// The least that an executor in a container and its warm parents need.
const OVERHEAD_LEAST: u64 = 32 << 20;
/// The longest name of a node, as of a host.
const NODE_ID_MAX: usize = 63;
/// The labels that a node tells of itself: its id, its runtime, and the outer layer of isolation.
pub(crate) const OWN_LABELS: [&str; 3] = ["name", "runtime", "isolation"];
/// The most labels of a node.
const LABELS_MAX: usize = 64;

impl Config {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Names the first setting that cannot be used, and what would be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_identity()?;
        self.validate_limits()?;
        self.validate_capacity()?;
        self.packages.validate()?;
        self.docker.validate()?;
        self.containerd.validate()?;
        if self.start_timeout.0 < Duration::from_millis(100) {
            return Err(invalid("start_timeout", "must be at least 100ms"));
        }
        if self.heartbeat_interval.0 < Duration::from_millis(100) {
            return Err(invalid("heartbeat_interval", "must be at least 100ms"));
        }
        Ok(())
    }

    fn validate_identity(&self) -> Result<(), ConfigError> {
        if !self.node_id.is_empty() && sanitised(&self.node_id) != self.node_id {
            let problem =
                format!("must be 1 to {NODE_ID_MAX} of a-z, 0-9, `-` and `.`; empty means the host's name");
            return Err(invalid("node_id", problem));
        }
        let parent_ok = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let parent = &self.cgroup_parent;
        if parent.is_empty() || parent.starts_with('.') || !parent.chars().all(parent_ok) {
            return Err(invalid("cgroup_parent", "must be one name of letters, digits, `-`, `_` and `.`"));
        }
        let dialable = ["http://", "https://", "unix:/"].iter().any(|form| self.advertise.starts_with(form));
        if !self.advertise.is_empty() && !dialable {
            let problem =
                "must be an address such as `http://10.0.0.2:8001` or `unix:/run/sandmesh/agent.sock`";
            return Err(invalid("advertise", problem));
        }
        if self.labels.len() > LABELS_MAX {
            return Err(invalid("labels", format!("must be at most {LABELS_MAX}")));
        }
        if let Some(own) = OWN_LABELS.into_iter().find(|own| self.labels.contains_key(*own)) {
            return Err(invalid("labels", format!("must not have `{own}`: each node tells its own")));
        }
        Ok(())
    }

    fn validate_limits(&self) -> Result<(), ConfigError> {
        let positive = [
            ("max_sandboxes", u64::from(self.max_sandboxes)),
            ("max_concurrent_executions", u64::from(self.max_concurrent_executions)),
            ("max_output", self.max_output.0),
        ];
        for (setting, value) in positive {
            if value == 0 {
                return Err(invalid(setting, "must be at least 1"));
            }
        }
        if self.max_concurrent_executions > EXECUTIONS_MAX {
            return Err(invalid("max_concurrent_executions", format!("must be at most {EXECUTIONS_MAX}")));
        }
        if self.max_queued > QUEUED_MAX {
            return Err(invalid("max_queued", format!("must be at most {QUEUED_MAX}")));
        }
        if self.uid_base < 1000 {
            return Err(invalid("uid_base", "must be at least 1000: lower uids belong to the system"));
        }
        if self.uid_count < self.max_sandboxes {
            let problem = format!("must be at least `agent.max_sandboxes`, which is {}", self.max_sandboxes);
            return Err(invalid("uid_count", problem));
        }
        if self.uid_base.checked_add(self.uid_count).is_none_or(|end| end > i32::MAX.unsigned_abs()) {
            return Err(invalid("uid_count", "`agent.uid_base` and this together pass the last uid"));
        }
        Ok(())
    }

    fn validate_capacity(&self) -> Result<(), ConfigError> {
        if self.capacity.cpu_millis == Some(0) {
            return Err(invalid("capacity.cpu_millis", "must be at least 1; leave it out to share the CPU"));
        }
        if self.capacity.memory == Some(ByteSize(0)) {
            return Err(invalid("capacity.memory", "must be more than 0; leave it out to take the host's"));
        }
        let factor = self.capacity.memory_overcommit;
        if !(1..=100).contains(&factor) {
            return Err(invalid("capacity.memory_overcommit", "must be 1 to 100"));
        }
        Ok(())
    }

    /// Checks that the sockets of sandboxes below `data_dir` can be bound, as the system limits their paths.
    ///
    /// # Errors
    /// Names `--data-dir` and the limit.
    pub fn validate_data_dir(data_dir: &Path) -> Result<(), ConfigError> {
        let longest = data_dir.join("sandboxes/sbx_0123456789abcdef/executor.sock");
        let over = longest.as_os_str().len().saturating_sub(SOCKET_PATH_MAX);
        if over == 0 {
            return Ok(());
        }
        let problem = format!(
            "`{}` is {over} bytes too long: a socket such as `{}` may have {SOCKET_PATH_MAX} bytes; give a \
             shorter `--data-dir`",
            data_dir.display(),
            longest.display(),
        );
        Err(ConfigError::invalid("mesh.data_dir", problem))
    }
}

fn invalid(setting: &str, problem: impl Into<String>) -> ConfigError {
    ConfigError::invalid(format!("agent.{setting}"), problem)
}

/// Checks what the parts for all engines of containers have.
fn validate_container(part: &str, socket: &Path, memory_overhead: ByteSize) -> Result<(), ConfigError> {
    if !socket.is_absolute() {
        let problem = format!("must be the absolute path of a unix socket, such as /run/{part}.sock");
        return Err(invalid(&format!("{part}.socket"), problem));
    }
    if memory_overhead.0 < OVERHEAD_LEAST {
        return Err(invalid(&format!("{part}.memory_overhead"), "must be at least 32MiB"));
    }
    Ok(())
}

/// A name with only what the id of a node may have: lowercase letters, digits, `-` and `.`.
pub(crate) fn sanitised(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
    let name: String = name.trim().chars().take(NODE_ID_MAX).map(allowed).collect();
    name.trim_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_default_is_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn a_wrong_value_is_reported_with_its_setting() {
        assert!(problem(|c| c.max_sandboxes = 0).contains("`agent.max_sandboxes`"));
        assert!(problem(|c| c.uid_base = 0).contains("`agent.uid_base`"));
        assert!(problem(|c| c.uid_count = 10).contains("`agent.uid_count`"));
        assert!(problem(|c| c.uid_base = u32::MAX - 5).contains("`agent.uid_count`"));
        assert!(problem(|c| c.cgroup_parent = "../up".to_owned()).contains("`agent.cgroup_parent`"));
        assert!(problem(|c| c.node_id = "Node 1".to_owned()).contains("`agent.node_id`"));
        assert!(problem(|c| c.advertise = "10.0.0.1".to_owned()).contains("`agent.advertise`"));
        assert!(problem(|c| c.capacity.memory_overcommit = 0).contains("overcommit`"));
    }

    #[test]
    fn a_data_dir_too_long_for_a_socket_is_reported_with_its_flag() {
        Config::validate_data_dir(Path::new("/var/lib/sandmesh")).unwrap();
        let fits =
            format!("/{}", "d".repeat(107 - "/sandboxes/sbx_0123456789abcdef/executor.sock".len() - 1));
        Config::validate_data_dir(Path::new(&fits)).unwrap();
        let error = Config::validate_data_dir(Path::new(&format!("{fits}d"))).unwrap_err().to_string();
        assert!(error.contains("--data-dir") && error.contains("107") && error.contains("1 bytes too long"));
    }

    #[test]
    fn a_host_name_becomes_a_node_id() {
        assert_eq!(sanitised("My_Laptop.local\n"), "my-laptop.local");
        assert_eq!(sanitised("--"), "");
        assert_eq!(sanitised(&"h".repeat(100)).len(), 63);
    }
}
