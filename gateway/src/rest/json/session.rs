//! Sessions in JSON.

use std::collections::HashMap;

use sandmesh_proto::{
    executor::{Isolation, Resources},
    session as pb,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Mistakes,
    dependency::{Dependency, InstallStatus, InstalledDependency, install_status},
    filled,
    quantity::{self, Cpu},
    time,
};
use crate::{
    error::{ApiError, Edge},
    extract::IdempotencyKey,
};

/// What to create. Everything left out comes from the template.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = CreateSession)]
pub(crate) struct CreateSession {
    /// Its id; left out: one is made.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    id: Option<String>,
    /// The template.
    #[schema(required = true, nullable = false, min_length = 1, max_length = 64, example = "python-basic")]
    template_id: Option<String>,
    /// The lifetime in seconds.
    #[schema(minimum = 1, maximum = 3600, example = 300)]
    timeout: Option<u32>,
    /// Ends after this many seconds without use; left out or 0: only at the end of its lifetime.
    idle_timeout: Option<u32>,
    /// Cores, such as `"1"` or `"0.5"`.
    cpu: Option<Cpu>,
    /// Memory, as a number with `Ki`, `Mi` or `Gi`.
    #[schema(pattern = r"^\d+(Ki|Mi|Gi)$", example = "512Mi")]
    memory: Option<String>,
    /// Size of the workspace, as a number with `Ki`, `Mi` or `Gi`.
    #[schema(pattern = r"^\d+(Ki|Mi|Gi)$", example = "1Gi")]
    disk: Option<String>,
    /// The three limits in one object; the flat fields win.
    resources: Option<ResourceRequest>,
    /// Environment of every execution.
    env_vars: Option<HashMap<String, String>>,
    /// Packages to install.
    #[schema(max_items = 50)]
    dependencies: Option<Vec<Dependency>>,
    /// The installer's time limit in seconds; left out: 300.
    #[schema(minimum = 30, maximum = 1800)]
    install_timeout: Option<u32>,
    /// False keeps the session when its dependencies cannot be installed; left out: true.
    fail_on_dependency_error: Option<bool>,
    /// The index that packages are installed from.
    python_package_index_url: Option<String>,
    /// What the network can reach; `none` is the only policy.
    #[expect(dead_code, reason = "that it can be read is all there is to know: it has one value")]
    network: Option<Network>,
    /// Free labels.
    labels: Option<HashMap<String, String>>,
    /// Makes the request idempotent: a repeat returns the first session.
    #[schema(min_length = 1, max_length = 128)]
    request_id: Option<String>,
}

/// Limits of a session.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct ResourceRequest {
    /// Cores, such as `"1"` or `"0.5"`.
    cpu: Option<Cpu>,
    /// Memory, as a number with `Ki`, `Mi` or `Gi`.
    #[schema(pattern = r"^\d+(Ki|Mi|Gi)$", example = "512Mi")]
    memory: Option<String>,
    /// Size of the workspace, as a number with `Ki`, `Mi` or `Gi`.
    #[schema(pattern = r"^\d+(Ki|Mi|Gi)$", example = "1Gi")]
    disk: Option<String>,
}

/// What the network of a session can reach.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Network {
    /// Nothing.
    None,
}

impl CreateSession {
    /// The message for the session role.
    pub(crate) fn into_request(self, key: IdempotencyKey) -> Result<pb::CreateSessionRequest, ApiError> {
        let resources = self.resources()?;
        let mut mistakes = Mistakes::default();
        mistakes.required("template_id", self.template_id.as_ref());
        mistakes.not_empty("id", self.id.as_ref());
        mistakes.not_empty("request_id", self.request_id.as_ref());
        mistakes.check()?;
        let dependencies = self.dependencies.unwrap_or_default().into_iter().map(Into::into);
        Ok(pb::CreateSessionRequest {
            session_id: self.id.unwrap_or_default(),
            template_id: self.template_id.unwrap_or_default(),
            resources: Some(resources),
            timeout_seconds: self.timeout,
            idle_timeout_seconds: self.idle_timeout,
            env: self.env_vars.unwrap_or_default(),
            labels: self.labels.unwrap_or_default(),
            dependencies: dependencies.collect(),
            install_timeout_seconds: self.install_timeout,
            fail_on_dependency_error: self.fail_on_dependency_error,
            python_package_index_url: self.python_package_index_url.unwrap_or_default(),
            request_id: self.request_id.unwrap_or(key.0),
        })
    }

    /// The limits, zero where the template decides.
    fn resources(&self) -> Result<Resources, ApiError> {
        let nested = self.resources.as_ref();
        let memory = self.memory.as_ref().or_else(|| nested?.memory.as_ref());
        let disk = self.disk.as_ref().or_else(|| nested?.disk.as_ref());
        let mut mistakes = Mistakes::default();
        let resources = Resources {
            cpu_millis: cpu_of(self.cpu.as_ref().or_else(|| nested?.cpu.as_ref()), &mut mistakes),
            memory_bytes: size_of("memory", memory, &mut mistakes)?,
            disk_bytes: size_of("disk", disk, &mut mistakes)?,
            max_processes: 0,
        };
        mistakes.check().map(|()| resources)
    }
}

fn cpu_of(cpu: Option<&Cpu>, mistakes: &mut Mistakes) -> u32 {
    let Some(Cpu(text)) = cpu else { return 0 };
    match quantity::cpu_millis(text) {
        Some(0) => mistakes.add("cpu", "greater_than", "must be greater than 0"),
        Some(millis) => return millis,
        None => {
            let problem = "must be a number of cores such as `1`, `0.5` or `500m`";
            mistakes.add("cpu", "string_pattern_mismatch", problem);
        }
    }
    0
}

fn size_of(field: &str, size: Option<&String>, mistakes: &mut Mistakes) -> Result<u64, ApiError> {
    let Some(text) = size else { return Ok(0) };
    match quantity::bytes(text) {
        Some(0) => mistakes.add(field, "greater_than", "must be greater than 0"),
        Some(bytes) => return Ok(bytes),
        None => {
            let problem = format!("`{text}` is not a number with Ki, Mi or Gi, such as `512Mi`");
            return Err(Edge::InvalidParameter { field: field.to_owned(), problem }.into());
        }
    }
    Ok(0)
}

/// The state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SessionStatus {
    /// Its sandbox is being made.
    Creating,
    /// It takes executions.
    Running,
    /// It ended after its work was done.
    Completed,
    /// Its sandbox could not be made, or died.
    Failed,
    /// It reached the end of its lifetime.
    Timeout,
    /// Somebody ended it.
    Terminated,
}

impl SessionStatus {
    /// The state on the wire.
    pub(crate) fn wire(self) -> pb::session::State {
        use pb::session::State;
        match self {
            Self::Creating => State::Creating,
            Self::Running => State::Running,
            Self::Completed => State::Completed,
            Self::Failed => State::Failed,
            Self::Timeout => State::Timeout,
            Self::Terminated => State::Terminated,
        }
    }

    fn of(state: pb::session::State) -> Result<Self, ApiError> {
        use pb::session::State;
        Ok(match state {
            State::Creating => Self::Creating,
            State::Running => Self::Running,
            State::Completed => Self::Completed,
            State::Failed => Self::Failed,
            State::Timeout => Self::Timeout,
            State::Terminated => Self::Terminated,
            State::Unspecified => return Err(Edge::Internal("a session without a state".into()).into()),
        })
    }
}

/// A lease on one sandbox, with a workspace, a lifetime and an idle timeout.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Session {
    /// Its id.
    #[schema(example = "sess_20260102_0a1b2c3d")]
    pub(crate) id: String,
    /// The template it was created from.
    template_id: String,
    /// Its state.
    status: SessionStatus,
    /// Why it is in this state.
    #[schema(required = true)]
    status_reason: Option<String>,
    /// Its limits.
    resource_limit: ResourceLimit,
    /// The isolation its sandbox really has; null until it runs.
    #[schema(required = true)]
    effective_isolation: Option<EffectiveIsolation>,
    /// Where the workspace is, as user code sees it.
    workspace_path: String,
    /// What made its sandbox: `process`, `docker`, `containerd` or `kubernetes`.
    #[schema(required = true)]
    runtime_type: Option<String>,
    /// The language runtime, from the template.
    #[schema(example = "python3.11")]
    language_runtime: String,
    /// The node its sandbox is on.
    #[schema(required = true)]
    runtime_node: Option<String>,
    /// Its container; null where the sandbox is none.
    #[schema(required = true)]
    container_id: Option<String>,
    /// Its pod; null where the sandbox is none.
    #[schema(required = true)]
    pod_name: Option<String>,
    /// Environment of every execution; values are hidden.
    env_vars: HashMap<String, String>,
    /// Its lifetime in seconds.
    timeout: u32,
    /// Ends after this many seconds without use; null: only at the end of its lifetime.
    #[schema(required = true)]
    idle_timeout: Option<u32>,
    /// When it will end by itself.
    #[schema(required = true, format = DateTime)]
    expires_at: Option<String>,
    /// The index that packages are installed from; null for the default.
    #[schema(required = true)]
    python_package_index_url: Option<String>,
    /// The dependencies that were asked for.
    requested_dependencies: Vec<Dependency>,
    /// What is installed.
    installed_dependencies: Vec<InstalledDependency>,
    /// How far the installation is; null when nothing was asked for.
    #[schema(required = true)]
    dependency_install_status: Option<InstallStatus>,
    /// The installer's message, when it failed.
    #[schema(required = true)]
    dependency_install_error: Option<String>,
    /// When the installation started.
    #[schema(required = true, format = DateTime)]
    dependency_install_started_at: Option<String>,
    /// When the installation ended.
    #[schema(required = true, format = DateTime)]
    dependency_install_completed_at: Option<String>,
    /// Its labels.
    labels: HashMap<String, String>,
    /// Whether its sandbox was warm or was made for it; null until it has one.
    #[schema(required = true)]
    start_type: Option<StartType>,
    /// How often its sandbox was lost and made anew.
    recovery_count: u32,
    /// When it was created.
    #[schema(required = true, format = DateTime)]
    created_at: Option<String>,
    /// When it was changed last.
    #[schema(required = true, format = DateTime)]
    updated_at: Option<String>,
    /// When it was used last.
    #[schema(required = true, format = DateTime)]
    last_activity_at: Option<String>,
    /// When it ended; null while it has not.
    #[schema(required = true, format = DateTime)]
    completed_at: Option<String>,
}

/// The limits of a session.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ResourceLimit {
    /// Cores.
    #[schema(example = "1")]
    cpu: String,
    /// Memory.
    #[schema(example = "512Mi")]
    memory: String,
    /// Size of the workspace.
    #[schema(example = "1Gi")]
    disk: String,
    /// Processes and threads.
    max_processes: u32,
}

/// The isolation a sandbox really has.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EffectiveIsolation {
    /// The outer layer: `process`, `container` or `pod`.
    sandbox: String,
    /// The inner layer around each execution: `bubblewrap` or `none`.
    jail: String,
    /// The system call filter on user code: `strict` or `none`.
    seccomp: String,
    /// What the network can reach: `none`, or the name of a policy.
    network: String,
    /// Whose identity user code has on the host: `dedicated` or `service`.
    user: String,
    /// What enforces the limits: `cgroup-v1`, `cgroup-v2`, `container` or `rlimits`.
    limits: String,
    /// Where the process of an execution comes from: `warm` (forked from a warm parent of the session) or
    /// `fresh` (a jail and an interpreter of its own).
    interpreters: String,
}

/// Where the sandbox of a session came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StartType {
    /// It was there already, and the session claimed it.
    Warm,
    /// It was made for the session.
    Cold,
}

impl TryFrom<pb::Session> for Session {
    type Error = ApiError;

    fn try_from(session: pb::Session) -> Result<Self, ApiError> {
        let status = SessionStatus::of(session.state())?;
        let is_container = matches!(session.runtime_type.as_str(), "docker" | "containerd");
        let is_pod = session.runtime_type == "kubernetes";
        let sandbox = |applies: bool| filled(session.sandbox_id.clone()).filter(|_| applies);
        let (container_id, pod_name) = (sandbox(is_container), sandbox(is_pod));
        let start_type = match session.start_type() {
            pb::session::StartType::Unspecified => None,
            pb::session::StartType::Cold => Some(StartType::Cold),
            pb::session::StartType::Warm => Some(StartType::Warm),
        };
        let installation = session.dependency_installation.unwrap_or_default();
        Ok(Self {
            id: session.session_id,
            template_id: session.template_id,
            status,
            status_reason: filled(session.status_reason),
            resource_limit: session.resources.unwrap_or_default().into(),
            effective_isolation: session.effective_isolation.map(EffectiveIsolation::from),
            workspace_path: session.workspace_path,
            runtime_type: filled(session.runtime_type),
            language_runtime: session.language_runtime,
            runtime_node: filled(session.node_id),
            container_id,
            pod_name,
            env_vars: session.env,
            timeout: session.timeout_seconds,
            idle_timeout: (session.idle_timeout_seconds > 0).then_some(session.idle_timeout_seconds),
            expires_at: time(session.expires_at.as_ref()),
            python_package_index_url: filled(session.python_package_index_url),
            requested_dependencies: session.requested_dependencies.into_iter().map(Into::into).collect(),
            dependency_install_status: install_status(installation.state()),
            dependency_install_error: filled(installation.error),
            dependency_install_started_at: time(installation.started_at.as_ref()),
            dependency_install_completed_at: time(installation.completed_at.as_ref()),
            installed_dependencies: installation.installed.into_iter().map(Into::into).collect(),
            labels: session.labels,
            start_type,
            recovery_count: session.recoveries,
            created_at: time(session.created_at.as_ref()),
            updated_at: time(session.updated_at.as_ref()),
            last_activity_at: time(session.last_activity_at.as_ref()),
            completed_at: time(session.completed_at.as_ref()),
        })
    }
}

impl From<Resources> for ResourceLimit {
    fn from(resources: Resources) -> Self {
        Self {
            cpu: quantity::cpu_text(resources.cpu_millis),
            memory: quantity::size_text(resources.memory_bytes),
            disk: quantity::size_text(resources.disk_bytes),
            max_processes: resources.max_processes,
        }
    }
}

impl From<Isolation> for EffectiveIsolation {
    fn from(isolation: Isolation) -> Self {
        let Isolation { sandbox, jail, seccomp, network, user, limits, interpreters } = isolation;
        Self { sandbox, jail, seccomp, network, user, limits, interpreters }
    }
}
