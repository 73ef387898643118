//! What the container of a sandbox is to be, whichever engine makes it. Pure.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::sandbox::{Resources, SandboxId, Spec};

/// Where a container has what it was given: the tools, and a directory of its own.
pub(in crate::runtime) const TOOLS: &str = "/run/sandmesh/tools";
pub(in crate::runtime) const OWN: &str = "/run/sandmesh/own";
/// Where it has the layers of packages.
pub(in crate::runtime) const LAYERS: &str = "/run/sandmesh/layers";
const WORKSPACE: &str = "/workspace";
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// The program, and where it waits to be admitted.
pub(in crate::runtime) const EXECUTOR: &str = "sandmesh-executor";
pub(in crate::runtime) const ENTRY: &str = "entry.sock";
/// What its host is called.
pub(in crate::runtime) const HOSTNAME: &str = "sandbox";

/// Labels: whose sandbox a container is. They are what is left when a directory is lost.
pub(in crate::runtime) const LABEL_OWNER: &str = "io.sandmesh.owner";
pub(in crate::runtime) const LABEL_SANDBOX: &str = "io.sandmesh.sandbox";

/// Processes of a container beyond those of its executions: the executor, jails, parents, and two for each
/// execution.
const PROCESSES: u32 = 64;
const PROCESSES_EACH: u32 = 2;
/// A whole core for the executor and its warm parents, as processes have it.
const OWN_CPU_MILLIS: u32 = 1000;
/// In microseconds.
pub(in crate::runtime) const CPU_PERIOD: i64 = 100_000;
/// The temporary directory of the executor, in which bubblewrap begins to build; user code has its own.
pub(in crate::runtime) const TMP_OPTIONS: [&str; 6] =
    ["rw", "nosuid", "nodev", "noexec", "size=16m", "mode=1777"];

/// What is the same for all containers of an agent.
#[derive(Debug, Clone)]
pub(in crate::runtime) struct Walls {
    /// The data directory, by which its containers are known.
    pub(in crate::runtime) owner: String,
    pub(in crate::runtime) node_id: String,
    /// As the engine takes it.
    pub(in crate::runtime) cgroup_parent: String,
    /// The AppArmor profile, where one must be named.
    pub(in crate::runtime) apparmor: Option<String>,
    pub(in crate::runtime) memory_overhead: u64,
}

/// Directories of this machine that the container is to have.
#[derive(Debug, Clone)]
pub(in crate::runtime) struct Places {
    pub(in crate::runtime) tools: PathBuf,
    pub(in crate::runtime) own: PathBuf,
    pub(in crate::runtime) workspace: PathBuf,
    pub(in crate::runtime) layers: Option<PathBuf>,
    /// A single file: who is trusted to sign, for an installer.
    pub(in crate::runtime) authorities: Option<PathBuf>,
}

/// A directory or a file of this machine in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime) struct Bind<'a> {
    pub(in crate::runtime) source: &'a Path,
    pub(in crate::runtime) target: &'static str,
    pub(in crate::runtime) read_only: bool,
}

impl Places {
    /// Where each of them is in the container.
    pub(in crate::runtime) fn binds(&self) -> Vec<Bind<'_>> {
        let mut binds = vec![
            Bind { source: &self.tools, target: TOOLS, read_only: true },
            Bind { source: &self.own, target: OWN, read_only: false },
            Bind { source: &self.workspace, target: WORKSPACE, read_only: false },
        ];
        let more = [(&self.layers, LAYERS), (&self.authorities, AUTHORITIES)];
        let there = more.into_iter().filter_map(|(source, target)| Some((source.as_ref()?, target)));
        binds.extend(there.map(|(source, target)| Bind { source, target, read_only: true }));
        binds
    }
}

/// The container of one sandbox.
#[derive(Debug)]
pub(in crate::runtime) struct Plan<'a> {
    pub(in crate::runtime) id: &'a SandboxId,
    pub(in crate::runtime) image: &'a str,
    pub(in crate::runtime) uid: u32,
    pub(in crate::runtime) resources: &'a Resources,
    pub(in crate::runtime) at_once: u32,
    pub(in crate::runtime) places: &'a Places,
    /// The arguments of the executor.
    pub(in crate::runtime) command: Vec<String>,
    /// What the labels tell besides.
    pub(in crate::runtime) spec: Option<&'a Spec>,
}

/// The limits of a container as a whole: a little above those of its executions, which hold inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime) struct Bounds {
    /// In bytes, and no swap.
    pub(in crate::runtime) memory: i64,
    /// In microseconds of each [`CPU_PERIOD`].
    pub(in crate::runtime) cpu_quota: i64,
    pub(in crate::runtime) processes: i64,
}

impl Plan<'_> {
    pub(in crate::runtime) fn bounds(&self, walls: &Walls) -> Bounds {
        let Resources { cpu_millis, memory_bytes, max_processes, .. } = *self.resources;
        let memory = memory_bytes.saturating_add(walls.memory_overhead);
        let processes = max_processes.saturating_add(PROCESSES + PROCESSES_EACH * self.at_once);
        Bounds {
            memory: i64::try_from(memory).unwrap_or(i64::MAX),
            cpu_quota: i64::from(cpu_millis.saturating_add(OWN_CPU_MILLIS)) * CPU_PERIOD / 1000,
            processes: processes.into(),
        }
    }

    /// What tells whose it is.
    pub(in crate::runtime) fn labels(&self, walls: &Walls) -> HashMap<String, String> {
        let mut labels = HashMap::from([
            (LABEL_OWNER.to_owned(), walls.owner.clone()),
            (LABEL_SANDBOX.to_owned(), self.id.to_string()),
            ("io.sandmesh.node".to_owned(), walls.node_id.clone()),
        ]);
        if let Some(spec) = self.spec {
            labels.insert("io.sandmesh.session".to_owned(), spec.session_id.clone());
            labels.insert("io.sandmesh.template".to_owned(), spec.template_id.clone());
        }
        labels
    }
}

/// The name of the container of a sandbox, which no agent of another data directory has.
pub(in crate::runtime) fn name(owner: &str, id: &SandboxId) -> String {
    let owner = Sha256::digest(owner);
    let digits: String = owner.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("sandmesh-{id}-{digits}")
}

/// The arguments of the executor that tell where things are in a container.
pub(in crate::runtime) fn place_args(id: &SandboxId) -> Vec<String> {
    let words =
        [("--dir", OWN.to_owned()), ("--workspace", WORKSPACE.to_owned()), ("--sandbox-id", id.to_string())];
    words.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).chain(entry_args()).collect()
}

/// The arguments of whatever runs in a container as its first process.
pub(in crate::runtime) fn entry_args() -> [String; 4] {
    ["--bubblewrap".to_owned(), TOOLS.to_owned(), "--entry".to_owned(), format!("{OWN}/{ENTRY}")]
}

#[cfg(test)]
pub(in crate::runtime) mod tests {
    use super::*;
    use crate::runtime::contract::{id, spec};

    /// What `look` sees in a plan of a small sandbox, and its walls.
    pub(in crate::runtime) fn planned<T>(apparmor: Option<&str>, look: impl Fn(&Plan<'_>, &Walls) -> T) -> T {
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
        look(&plan, &walls)
    }

    #[test]
    fn a_container_has_nothing_to_write_to_but_its_own() {
        planned(None, |plan, _| {
            let binds = plan.places.binds();
            let writable: Vec<_> =
                binds.iter().filter(|bind| !bind.read_only).map(|bind| bind.target).collect();
            assert_eq!(writable, [OWN, WORKSPACE]);
            assert_eq!(binds.len(), 4);
        });
    }

    #[test]
    fn a_container_is_a_little_larger_than_the_limits_of_its_executions() {
        let bounds = planned(None, |plan, walls| plan.bounds(walls));
        let limits = spec().resources;
        assert_eq!(bounds.memory, (128 << 20) + (128 << 20));
        assert_eq!(bounds.cpu_quota, 200_000);
        assert_eq!(bounds.processes, i64::from(limits.max_processes) + 68);
    }

    #[test]
    fn labels_tell_whose_it_is() {
        let labels = planned(None, |plan, walls| plan.labels(walls));
        assert_eq!(labels[LABEL_SANDBOX], id(1).as_str());
        assert_eq!(labels[LABEL_OWNER], "/data");
        assert_eq!(labels["io.sandmesh.session"], spec().session_id);
    }
}
