//! A session as it is printed.

use std::collections::BTreeMap;

use sandmesh_proto::{
    executor::{Isolation, Resources},
    session::{Dependency, InstalledDependency, Session, dependency_installation::State as InstallState},
};
use serde::Serialize;

use super::{cores, size, some, time, word};
use crate::cli::table::Fields;

/// A session.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct SessionView {
    pub(in crate::cli) id: String,
    pub(in crate::cli) template_id: String,
    pub(in crate::cli) status: String,
    status_reason: Option<String>,
    resource_limit: Option<ResourceLimit>,
    effective_isolation: Option<IsolationView>,
    workspace_path: Option<String>,
    pub(in crate::cli) runtime_type: Option<String>,
    language_runtime: Option<String>,
    runtime_node: Option<String>,
    container_id: Option<String>,
    pod_name: Option<String>,
    env_vars: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    recovery_count: u32,
    timeout: u32,
    idle_timeout: Option<u32>,
    pub(in crate::cli) expires_at: Option<String>,
    python_package_index_url: Option<String>,
    requested_dependencies: Vec<DependencyView>,
    installed_dependencies: Vec<InstalledView>,
    dependency_install_status: Option<String>,
    dependency_install_error: Option<String>,
    dependency_install_started_at: Option<String>,
    dependency_install_completed_at: Option<String>,
    pub(in crate::cli) created_at: Option<String>,
    updated_at: Option<String>,
    last_activity_at: Option<String>,
    completed_at: Option<String>,
}

#[derive(Debug, Serialize)]
struct ResourceLimit {
    cpu: String,
    memory: String,
    disk: String,
    max_processes: u32,
}

#[derive(Debug, Serialize)]
struct IsolationView {
    sandbox: String,
    jail: String,
    seccomp: String,
    network: String,
    user: String,
    limits: String,
    interpreters: String,
}

#[derive(Debug, Serialize)]
struct DependencyView {
    name: String,
    version: Option<String>,
}

#[derive(Debug, Serialize)]
struct InstalledView {
    name: String,
    version: String,
    install_location: Option<String>,
    install_time: Option<String>,
    is_from_template: bool,
}

impl From<Session> for SessionView {
    fn from(session: Session) -> Self {
        let status = word(session.state().as_str_name(), "STATE_");
        let installation = session.dependency_installation.unwrap_or_default();
        let sandbox = some(session.sandbox_id);
        let in_container = matches!(session.runtime_type.as_str(), "docker" | "containerd");
        let in_pod = session.runtime_type == "kubernetes";
        Self {
            status,
            id: session.session_id,
            template_id: session.template_id,
            status_reason: some(session.status_reason),
            resource_limit: session.resources.map(ResourceLimit::from),
            effective_isolation: session.effective_isolation.map(IsolationView::from),
            workspace_path: some(session.workspace_path),
            runtime_type: some(session.runtime_type),
            language_runtime: some(session.language_runtime),
            runtime_node: some(session.node_id),
            container_id: sandbox.clone().filter(|_| in_container),
            pod_name: sandbox.filter(|_| in_pod),
            env_vars: session.env.into_iter().collect(),
            labels: session.labels.into_iter().collect(),
            recovery_count: session.recoveries,
            timeout: session.timeout_seconds,
            idle_timeout: Some(session.idle_timeout_seconds).filter(|seconds| *seconds > 0),
            expires_at: time(session.expires_at.as_ref()),
            python_package_index_url: some(session.python_package_index_url),
            requested_dependencies: session
                .requested_dependencies
                .into_iter()
                .map(DependencyView::from)
                .collect(),
            dependency_install_status: install_status(installation.state()),
            installed_dependencies: installation.installed.into_iter().map(InstalledView::from).collect(),
            dependency_install_error: some(installation.error),
            dependency_install_started_at: time(installation.started_at.as_ref()),
            dependency_install_completed_at: time(installation.completed_at.as_ref()),
            created_at: time(session.created_at.as_ref()),
            updated_at: time(session.updated_at.as_ref()),
            last_activity_at: time(session.last_activity_at.as_ref()),
            completed_at: time(session.completed_at.as_ref()),
        }
    }
}

fn install_status(state: InstallState) -> Option<String> {
    (state != InstallState::Unspecified).then(|| word(state.as_str_name(), "STATE_"))
}

impl From<Resources> for ResourceLimit {
    fn from(resources: Resources) -> Self {
        Self {
            cpu: cores(resources.cpu_millis),
            memory: size(resources.memory_bytes),
            disk: size(resources.disk_bytes),
            max_processes: resources.max_processes,
        }
    }
}

impl From<Isolation> for IsolationView {
    fn from(isolation: Isolation) -> Self {
        Self {
            sandbox: isolation.sandbox,
            jail: isolation.jail,
            seccomp: isolation.seccomp,
            network: isolation.network,
            user: isolation.user,
            limits: isolation.limits,
            interpreters: isolation.interpreters,
        }
    }
}

impl From<Dependency> for DependencyView {
    fn from(dependency: Dependency) -> Self {
        Self { name: dependency.name, version: some(dependency.version) }
    }
}

impl From<InstalledDependency> for InstalledView {
    fn from(installed: InstalledDependency) -> Self {
        Self {
            name: installed.name,
            version: installed.version,
            install_location: some(installed.install_location),
            install_time: time(installed.installed_at.as_ref()),
            is_from_template: installed.is_from_template,
        }
    }
}

impl SessionView {
    /// For people, a line each.
    pub(in crate::cli) fn fields(&self) -> Fields {
        let or_empty = |value: &Option<String>| value.clone().unwrap_or_default();
        let resources = self.resource_limit.as_ref().map(ResourceLimit::text).unwrap_or_default();
        let isolation = self.effective_isolation.as_ref().map(IsolationView::text).unwrap_or_default();
        Fields::default()
            .with("id", &*self.id)
            .with("template", &*self.template_id)
            .with("status", &*self.status)
            .with("reason", or_empty(&self.status_reason))
            .with("language", or_empty(&self.language_runtime))
            .with("runtime", or_empty(&self.runtime_type))
            .with("node", or_empty(&self.runtime_node))
            .with("resources", resources)
            .with("isolation", isolation)
            .with("workspace", or_empty(&self.workspace_path))
            .with("env", self.env_vars.keys().cloned().collect::<Vec<_>>().join(", "))
            .with("labels", pairs(&self.labels))
            .with("timeout", format!("{} s", self.timeout))
            .with("idle timeout", self.idle_timeout.map(|seconds| format!("{seconds} s")).unwrap_or_default())
            .with("created", or_empty(&self.created_at))
            .with("expires", or_empty(&self.expires_at))
            .with("ended", or_empty(&self.completed_at))
    }
}

fn pairs(pairs: &BTreeMap<String, String>) -> String {
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}

impl ResourceLimit {
    fn text(&self) -> String {
        let Self { cpu, memory, disk, max_processes } = self;
        format!("cpu {cpu}, memory {memory}, disk {disk}, processes {max_processes}")
    }
}

impl IsolationView {
    fn text(&self) -> String {
        let Self { sandbox, jail, seccomp, network, user, limits, interpreters } = self;
        format!(
            "sandbox {sandbox}, jail {jail}, seccomp {seccomp}, network {network}, user {user}, limits {limits}, \
             interpreters {interpreters}"
        )
    }
}
