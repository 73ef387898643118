//! The container of a sandbox, as the engine is told: all of its walls are here. Pure.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, ResourcesUlimits,
};

use sha2::{Digest, Sha256};

use super::seccomp;
use crate::sandbox::{Resources, SandboxId, Spec};

/// Where a container has what it was given: the tools, and a directory of its own.
pub(super) const TOOLS: &str = "/run/sandmesh/tools";
pub(super) const OWN: &str = "/run/sandmesh/own";
/// Where it has the layers of packages.
pub(super) const LAYERS: &str = "/run/sandmesh/layers";
pub(super) const WORKSPACE: &str = "/workspace";
/// The program, and where it waits to be admitted.
pub(super) const EXECUTOR: &str = "sandmesh-executor";
pub(super) const ENTRY: &str = "entry.sock";

/// Labels: whose sandbox a container is. They are what is left when a directory is lost.
pub(super) const LABEL_OWNER: &str = "io.sandmesh.owner";
pub(super) const LABEL_SANDBOX: &str = "io.sandmesh.sandbox";

/// Processes of a container beyond those of its executions: the executor, jails, parents, and two for each
/// execution.
const PROCESSES: u32 = 64;
const PROCESSES_EACH: u32 = 2;
/// A whole core for the executor and its warm parents, as processes have it.
const OWN_CPU_MILLIS: u32 = 1000;
/// In microseconds.
const CPU_PERIOD: i64 = 100_000;
/// The temporary directory of the executor, in which bubblewrap begins to build; user code has its own.
const TMP_OPTIONS: &str = "rw,nosuid,nodev,noexec,size=16m,mode=1777";

/// What is the same for all containers of an agent.
#[derive(Debug, Clone)]
pub(super) struct Walls {
    /// The data directory, by which its containers are known.
    pub(super) owner: String,
    pub(super) node_id: String,
    /// As the engine takes it: a path, or a slice where systemd drives the control groups.
    pub(super) cgroup_parent: String,
    /// The AppArmor profile, where there is AppArmor.
    pub(super) apparmor: Option<String>,
    pub(super) memory_overhead: u64,
}

/// Directories of this machine that the container is to have.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) tools: PathBuf,
    pub(super) own: PathBuf,
    pub(super) workspace: PathBuf,
    pub(super) layers: Option<PathBuf>,
    /// A single file: who is trusted to sign, for an installer.
    pub(super) authorities: Option<PathBuf>,
}

/// The container of one sandbox.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) id: &'a SandboxId,
    pub(super) image: &'a str,
    pub(super) uid: u32,
    pub(super) resources: &'a Resources,
    pub(super) at_once: u32,
    pub(super) places: &'a Places,
    /// The arguments of the executor.
    pub(super) command: Vec<String>,
    /// What the labels tell besides.
    pub(super) spec: Option<&'a Spec>,
}

/// The name of the container of a sandbox, which no agent of another data directory has.
pub(super) fn name(owner: &str, id: &SandboxId) -> String {
    let owner = Sha256::digest(owner);
    let digits: String = owner.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("sandmesh-{id}-{digits}")
}

/// The label by which the containers of an agent are found.
pub(super) fn owner_label(owner: &str) -> String {
    format!("{LABEL_OWNER}={owner}")
}

/// The arguments of the executor that tell where things are in a container.
pub(super) fn place_args(id: &SandboxId) -> Vec<String> {
    let words =
        [("--dir", OWN.to_owned()), ("--workspace", WORKSPACE.to_owned()), ("--sandbox-id", id.to_string())];
    words.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).chain(entry_args()).collect()
}

/// The arguments of whatever runs in a container as its first process.
pub(super) fn entry_args() -> [String; 4] {
    ["--bubblewrap".to_owned(), TOOLS.to_owned(), "--entry".to_owned(), format!("{OWN}/{ENTRY}")]
}

/// What the engine is to make.
pub(super) fn body(plan: &Plan<'_>, walls: &Walls) -> ContainerCreateBody {
    let Plan { image, uid, command, .. } = plan;
    ContainerCreateBody {
        image: Some((*image).to_owned()),
        entrypoint: Some(vec![format!("{TOOLS}/{EXECUTOR}")]),
        cmd: Some(command.clone()),
        user: Some(format!("{uid}:{uid}")),
        hostname: Some("sandbox".to_owned()),
        working_dir: Some("/".to_owned()),
        network_disabled: Some(true),
        // What an image would have run from time to time.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        stop_signal: Some("SIGTERM".to_owned()),
        labels: Some(labels(plan, walls)),
        host_config: Some(host_config(plan, walls)),
        ..Default::default()
    }
}

fn labels(plan: &Plan<'_>, walls: &Walls) -> HashMap<String, String> {
    let mut labels = HashMap::from([
        (LABEL_OWNER.to_owned(), walls.owner.clone()),
        (LABEL_SANDBOX.to_owned(), plan.id.to_string()),
        ("io.sandmesh.node".to_owned(), walls.node_id.clone()),
    ]);
    if let Some(spec) = plan.spec {
        labels.insert("io.sandmesh.session".to_owned(), spec.session_id.clone());
        labels.insert("io.sandmesh.template".to_owned(), spec.template_id.clone());
    }
    labels
}

fn host_config(plan: &Plan<'_>, walls: &Walls) -> HostConfig {
    let Resources { cpu_millis, memory_bytes, max_processes, .. } = *plan.resources;
    let memory = signed(memory_bytes.saturating_add(walls.memory_overhead));
    let processes = max_processes.saturating_add(PROCESSES + PROCESSES_EACH * plan.at_once);
    HostConfig {
        network_mode: Some("none".to_owned()),
        ipc_mode: Some("private".to_owned()),
        readonly_rootfs: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        privileged: Some(false),
        security_opt: Some(security(walls)),
        // A jail has a /proc of its own, which the kernel allows only where none of it is hidden. What is
        // hidden otherwise is root's, which nobody in here is.
        masked_paths: Some(Vec::new()),
        readonly_paths: Some(Vec::new()),
        memory: Some(memory),
        // Together with swap: there is none.
        memory_swap: Some(memory),
        // Not in the engine's own unit, of which it allows no more than the machine has.
        cpu_period: Some(CPU_PERIOD),
        cpu_quota: Some(i64::from(cpu_millis.saturating_add(OWN_CPU_MILLIS)) * CPU_PERIOD / 1000),
        pids_limit: Some(processes.into()),
        // Open files are limited in the jail, and here as the engine is: it may not raise that.
        ulimits: Some(vec![ulimit("core", 0)]),
        cgroup_parent: Some(walls.cgroup_parent.clone()),
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), TMP_OPTIONS.to_owned())])),
        mounts: Some(mounts(plan.places)),
        init: Some(false),
        log_config: Some(log_config()),
        ..Default::default()
    }
}

fn security(walls: &Walls) -> Vec<String> {
    let profile = walls.apparmor.as_ref().map(|profile| format!("apparmor={profile}"));
    let always = ["no-new-privileges".to_owned(), format!("seccomp={}", seccomp::profile())];
    always.into_iter().chain(profile).collect()
}

fn mounts(places: &Places) -> Vec<Mount> {
    const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
    let mut mounts = vec![
        bind(&places.tools, TOOLS, true),
        bind(&places.own, OWN, false),
        bind(&places.workspace, WORKSPACE, false),
    ];
    mounts.extend(places.layers.iter().map(|layers| bind(layers, LAYERS, true)));
    mounts.extend(places.authorities.iter().map(|file| bind(file, AUTHORITIES, true)));
    mounts
}

fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.display().to_string()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Default::default()
    }
}

fn ulimit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) }
}

/// Only what it says before it has a log, and that is little.
fn log_config() -> HostConfigLogConfig {
    let config =
        [("max-size", "64k"), ("max-file", "1")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    HostConfigLogConfig { typ: Some("json-file".to_owned()), config: Some(config.into()) }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::contract::{id, spec};

    fn made(apparmor: Option<&str>) -> ContainerCreateBody {
        let walls = Walls {
            owner: "/data".to_owned(),
            node_id: "node".to_owned(),
            cgroup_parent: "/sandmesh".to_owned(),
            apparmor: apparmor.map(str::to_owned),
            memory_overhead: 128 << 20,
        };
        let places = Places {
            tools: "/data/tools/x".into(),
            own: "/data/sandboxes/s/own".into(),
            workspace: "/data/sandboxes/s/workspace".into(),
            layers: Some("/data/layers".into()),
            authorities: None,
        };
        let (id, spec) = (id(1), spec());
        let plan = Plan {
            id: &id,
            image: "python:3",
            uid: 200_001,
            resources: &spec.resources,
            at_once: 2,
            places: &places,
            command: place_args(&id),
            spec: Some(&spec),
        };
        body(&plan, &walls)
    }

    #[test]
    fn a_container_has_no_network_no_right_and_nothing_to_write_to_but_its_own() {
        let body = made(None);
        let host = body.host_config.unwrap();
        assert_eq!((host.network_mode.as_deref(), body.network_disabled), (Some("none"), Some(true)));
        assert_eq!((host.readonly_rootfs, host.privileged, host.cap_add), (Some(true), Some(false), None));
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(body.user.as_deref(), Some("200001:200001"));
        let options = host.security_opt.unwrap();
        assert!(options.contains(&"no-new-privileges".to_owned()));
        assert!(options.iter().any(|option| option.starts_with("seccomp={")));
        let writable: Vec<_> =
            host.mounts.unwrap().into_iter().filter(|mount| mount.read_only != Some(true)).collect();
        let targets: Vec<_> = writable.iter().filter_map(|mount| mount.target.as_deref()).collect();
        assert_eq!(targets, [OWN, WORKSPACE]);
    }

    #[test]
    fn a_container_is_a_little_larger_than_the_limits_of_its_executions() {
        let (limits, host) = (spec().resources, made(None).host_config.unwrap());
        assert_eq!(host.memory, Some((128 << 20) + (128 << 20)));
        assert_eq!(host.memory, host.memory_swap, "no swap");
        assert_eq!((host.cpu_period, host.cpu_quota), (Some(100_000), Some(200_000)));
        assert_eq!(host.pids_limit, Some(i64::from(limits.max_processes) + 68));
    }

    #[test]
    fn a_profile_is_named_only_where_there_is_apparmor() {
        let named = |body: ContainerCreateBody| {
            let options = body.host_config.unwrap().security_opt.unwrap();
            options.into_iter().find(|option| option.starts_with("apparmor="))
        };
        assert_eq!(named(made(None)), None);
        assert_eq!(named(made(Some("unconfined"))).as_deref(), Some("apparmor=unconfined"));
    }

    #[test]
    fn labels_tell_whose_it_is() {
        let labels = made(None).labels.unwrap();
        assert_eq!(labels[LABEL_SANDBOX], id(1).as_str());
        assert_eq!(labels[LABEL_OWNER], "/data");
        assert_eq!(labels["io.sandmesh.session"], spec().session_id);
    }
}
