//! Between the wire and what is stored.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sandmesh_mesh::{datetime, duration_from, duration_pb, timestamp};
use sandmesh_proto::{
    executor,
    session::{self as pb, session::StartType},
};

use crate::{
    dependencies::{Dependency, InstallState, Installed},
    index::masked,
    lifecycle::{Cause, ExecutionState, SessionState},
    service::FileEntry,
    store::{Instant, execution, session},
    values::{Artifact, Isolation, Language, Metrics, Mode, Resources, UserError},
    workspace::Kind,
};

/// What is shown instead of a value that may be a secret.
const REDACTED: &str = "***";

/// An execution with what of it is not in its row.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) row: execution::Model,
    pub(crate) code: String,
    pub(crate) stdout: Bytes,
    pub(crate) stderr: Bytes,
    pub(crate) return_value: Option<String>,
}

pub(crate) fn session(row: session::Model, max_recoveries: u32) -> pb::Session {
    let recoveries = row.recovered();
    let state = session_state(row.state).into();
    let dependency_installation = installation(&row);
    let requested = row.packages.as_ref().map(|packages| packages.shown().to_vec()).unwrap_or_default();
    pb::Session {
        session_id: row.id,
        template_id: row.template_id,
        state,
        status_reason: row.status_reason,
        resources: Some(resources(row.resources)),
        effective_isolation: row.isolation.map(isolation),
        workspace_path: row.workspace_path,
        runtime_type: row.runtime_type,
        language_runtime: row.language_runtime,
        node_id: row.node_id,
        sandbox_id: row.sandbox_id,
        env: row.env.0.into_keys().map(|name| (name, REDACTED.to_owned())).collect(),
        timeout_seconds: unsigned(row.timeout_seconds),
        idle_timeout_seconds: unsigned(row.idle_timeout_seconds),
        labels: row.labels.0.into_iter().collect(),
        requested_dependencies: requested.into_iter().map(dependency).collect(),
        dependency_installation,
        expires_at: Some(time(row.expires_at)),
        created_at: Some(time(row.created_at)),
        updated_at: Some(time(row.updated_at)),
        last_activity_at: Some(time(row.last_activity_at)),
        completed_at: row.completed_at.map(time),
        python_package_index_url: masked(&row.python_package_index_url),
        recoveries,
        start_type: match row.warm_start {
            None => StartType::Unspecified,
            Some(false) => StartType::Cold,
            Some(true) => StartType::Warm,
        }
        .into(),
        releasing: row.state.is_final() && !row.sandbox_removed,
        recoveries_left: max_recoveries.saturating_sub(recoveries),
    }
}

/// An artifact, as a caller sees it.
pub(crate) fn artifact(artifact: Artifact) -> pb::Artifact {
    let created_at = DateTime::from_timestamp_micros(artifact.created_at_us).map(timestamp);
    pb::Artifact {
        mime_type: mime_type(&artifact.path),
        path: artifact.path,
        size_bytes: artifact.size,
        checksum: artifact.checksum.map(|digits| format!("sha256:{digits}")).unwrap_or_default(),
        created_at,
    }
}

/// A file, as a caller sees it.
pub(crate) fn file(file: FileEntry) -> pb::File {
    let FileEntry { path, entry } = file;
    let (seconds, nanos) = entry.modified_at;
    pb::File {
        mime_type: if entry.kind == Kind::File { mime_type(&path) } else { String::new() },
        path,
        size_bytes: entry.size,
        modified_at: Some(prost_types::Timestamp { seconds, nanos }),
        etag: format!("{:016x}", entry.version),
        is_directory: entry.kind == Kind::Directory,
        link_target: entry
            .target
            .map(|target| String::from_utf8_lossy(target.bytes()).into_owned())
            .unwrap_or_default(),
    }
}

fn mime_type(path: &str) -> String {
    mime_guess::from_path(path).first_or_octet_stream().to_string()
}

fn dependency(dependency: Dependency) -> pb::Dependency {
    pb::Dependency { name: dependency.name, version: dependency.version }
}

/// How far the installation of packages is; `None` when there never was anything to install.
fn installation(row: &session::Model) -> Option<pb::DependencyInstallation> {
    use pb::dependency_installation::State;
    let state = match row.install_state? {
        InstallState::Pending => State::Pending,
        InstallState::Installing => State::Installing,
        InstallState::Completed => State::Completed,
        InstallState::Failed => State::Failed,
    };
    let language = Language::of_runtime(&row.language_runtime).unwrap_or(Language::Shell);
    let from_template =
        |name: &str| row.packages.as_ref().is_some_and(|packages| packages.is_from_template(name, language));
    let package = |installed: &Installed, one: &Dependency| pb::InstalledDependency {
        name: one.name.clone(),
        version: one.version.clone(),
        install_location: installed.location.clone(),
        installed_at: Some(time(Instant::from_micros(installed.installed_at))),
        is_from_template: from_template(&one.name),
    };
    let installed = row.installed.iter();
    Some(pb::DependencyInstallation {
        state: state.into(),
        error: row.install_error.clone().unwrap_or_default(),
        installed: installed.flat_map(|all| all.packages.iter().map(|one| package(all, one))).collect(),
        started_at: row.install_started_at.map(time),
        completed_at: row.install_completed_at.map(time),
    })
}

pub(crate) fn execution(view: View) -> pb::Execution {
    let View { row, code, stdout, stderr, return_value } = view;
    let cut = |kept: i64, shown: &Bytes| u64::try_from(kept).unwrap_or(0) > shown.len() as u64;
    pb::Execution {
        execution_id: row.id,
        session_id: row.session_id,
        state: execution_state(row.state).into(),
        cause: row.cause.map_or(executor::Cause::Unspecified, cause).into(),
        cause_detail: row.cause_detail,
        code,
        language: row.language.map_or(executor::Language::Unspecified, language).into(),
        mode: row.mode.map_or(executor::Mode::Unspecified, mode).into(),
        timeout_seconds: unsigned(row.timeout_seconds),
        exit_code: row.exit_code,
        signal: row.signal,
        stdout_truncated: row.stdout_truncated || cut(row.stdout_kept, &stdout),
        stderr_truncated: row.stderr_truncated || cut(row.stderr_kept, &stderr),
        stdout,
        stderr,
        return_value_json: return_value,
        error: row.error.map(user_error),
        metrics: row.metrics.map(metrics),
        artifacts: row.artifacts.unwrap_or_default().0.into_iter().map(artifact).collect(),
        retry_count: unsigned(row.retry_count),
        created_at: Some(time(row.created_at)),
        started_at: row.started_at.map(time),
        completed_at: row.completed_at.map(time),
        max_retries: unsigned(row.max_retries),
    }
}

/// The end of an execution whose output was streamed before.
pub(crate) fn result(view: View) -> pb::Execution {
    let (out, err) = (view.row.stdout_truncated, view.row.stderr_truncated);
    let mut result = execution(View { stdout: Bytes::new(), stderr: Bytes::new(), ..view });
    (result.stdout_truncated, result.stderr_truncated) = (out, err);
    result
}

/// The first event of a stream that is replayed; `None` when the execution never started.
pub(crate) fn started(row: &execution::Model) -> Option<executor::ExecutionStarted> {
    let metrics = row.metrics.unwrap_or_default();
    row.started_at.map(|started_at| executor::ExecutionStarted {
        started_at: Some(time(started_at)),
        queued: Some(micros(metrics.queued_us)),
        startup: Some(micros(metrics.startup_us)),
    })
}

pub(crate) fn metrics_from(metrics: &executor::ExecutionMetrics) -> Metrics {
    let us = |duration: &Option<prost_types::Duration>| {
        let us = duration.as_ref().map_or(0, |duration| duration_from(duration).as_micros());
        u64::try_from(us).unwrap_or(u64::MAX)
    };
    Metrics {
        duration_us: us(&metrics.duration),
        cpu_time_us: us(&metrics.cpu_time),
        peak_memory_bytes: metrics.peak_memory_bytes,
        io_read_bytes: metrics.io_read_bytes,
        io_write_bytes: metrics.io_write_bytes,
        queued_us: us(&metrics.queued),
        startup_us: us(&metrics.startup),
    }
}

fn metrics(metrics: Metrics) -> executor::ExecutionMetrics {
    executor::ExecutionMetrics {
        duration: Some(micros(metrics.duration_us)),
        cpu_time: Some(micros(metrics.cpu_time_us)),
        peak_memory_bytes: metrics.peak_memory_bytes,
        io_read_bytes: metrics.io_read_bytes,
        io_write_bytes: metrics.io_write_bytes,
        queued: Some(micros(metrics.queued_us)),
        startup: Some(micros(metrics.startup_us)),
    }
}

pub(crate) fn resources(resources: Resources) -> executor::Resources {
    executor::Resources {
        cpu_millis: resources.cpu_millis,
        memory_bytes: resources.memory_bytes,
        disk_bytes: resources.disk_bytes,
        max_processes: resources.max_processes,
    }
}

pub(crate) fn isolation_from(isolation: executor::Isolation) -> Isolation {
    Isolation {
        sandbox: isolation.sandbox,
        jail: isolation.jail,
        seccomp: isolation.seccomp,
        network: isolation.network,
        user: isolation.user,
        limits: isolation.limits,
        interpreters: isolation.interpreters,
    }
}

fn isolation(isolation: Isolation) -> executor::Isolation {
    executor::Isolation {
        sandbox: isolation.sandbox,
        jail: isolation.jail,
        seccomp: isolation.seccomp,
        network: isolation.network,
        user: isolation.user,
        limits: isolation.limits,
        interpreters: isolation.interpreters,
    }
}

fn user_error(error: UserError) -> executor::UserError {
    executor::UserError { r#type: error.class, message: error.message, traceback: error.traceback }
}

pub(crate) fn language(language: Language) -> executor::Language {
    match language {
        Language::Python => executor::Language::Python,
        Language::JavaScript => executor::Language::Javascript,
        Language::Shell => executor::Language::Shell,
    }
}

pub(crate) fn language_from(language: executor::Language) -> Option<Language> {
    match language {
        executor::Language::Unspecified => None,
        executor::Language::Python => Some(Language::Python),
        executor::Language::Javascript => Some(Language::JavaScript),
        executor::Language::Shell => Some(Language::Shell),
    }
}

pub(crate) fn mode(mode: Mode) -> executor::Mode {
    match mode {
        Mode::Handler => executor::Mode::Handler,
        Mode::Script => executor::Mode::Script,
    }
}

fn cause(cause: Cause) -> executor::Cause {
    match cause {
        Cause::Timeout => executor::Cause::Timeout,
        Cause::Cancelled => executor::Cause::Cancelled,
        Cause::Oom => executor::Cause::Oom,
        Cause::PidsLimit => executor::Cause::PidsLimit,
        Cause::OutputLimit => executor::Cause::OutputLimit,
        Cause::DiskLimit => executor::Cause::DiskLimit,
        Cause::ExecutorLost => executor::Cause::ExecutorLost,
        Cause::NodeLost => executor::Cause::NodeLost,
        Cause::SessionEnded => executor::Cause::SessionEnded,
    }
}

pub(crate) fn cause_from(cause: executor::Cause) -> Option<Cause> {
    match cause {
        executor::Cause::Unspecified => None,
        executor::Cause::Timeout => Some(Cause::Timeout),
        executor::Cause::Cancelled => Some(Cause::Cancelled),
        executor::Cause::Oom => Some(Cause::Oom),
        executor::Cause::PidsLimit => Some(Cause::PidsLimit),
        executor::Cause::OutputLimit => Some(Cause::OutputLimit),
        executor::Cause::DiskLimit => Some(Cause::DiskLimit),
        executor::Cause::ExecutorLost => Some(Cause::ExecutorLost),
        executor::Cause::NodeLost => Some(Cause::NodeLost),
        executor::Cause::SessionEnded => Some(Cause::SessionEnded),
    }
}

pub(crate) fn session_state(state: SessionState) -> pb::session::State {
    match state {
        SessionState::Creating => pb::session::State::Creating,
        SessionState::Running => pb::session::State::Running,
        SessionState::Completed => pb::session::State::Completed,
        SessionState::Failed => pb::session::State::Failed,
        SessionState::Timeout => pb::session::State::Timeout,
        SessionState::Terminated => pb::session::State::Terminated,
    }
}

pub(crate) fn session_state_from(state: pb::session::State) -> Option<SessionState> {
    SessionState::ALL.into_iter().find(|ours| session_state(*ours) == state)
}

fn execution_state(state: ExecutionState) -> pb::execution::State {
    match state {
        ExecutionState::Pending => pb::execution::State::Pending,
        ExecutionState::Running => pb::execution::State::Running,
        ExecutionState::Completed => pb::execution::State::Completed,
        ExecutionState::Failed => pb::execution::State::Failed,
        ExecutionState::Timeout => pb::execution::State::Timeout,
        ExecutionState::Crashed => pb::execution::State::Crashed,
        ExecutionState::Cancelled => pb::execution::State::Cancelled,
    }
}

pub(crate) fn execution_state_from(state: pb::execution::State) -> Option<ExecutionState> {
    ExecutionState::ALL.into_iter().find(|ours| execution_state(*ours) == state)
}

/// A time of the wire; `now` where it is missing or no date can hold it.
pub(crate) fn time_from(time: Option<&prost_types::Timestamp>, now: DateTime<Utc>) -> DateTime<Utc> {
    time.and_then(datetime).unwrap_or(now)
}

pub(crate) fn pairs(pairs: &std::collections::BTreeMap<String, String>) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn time(instant: Instant) -> prost_types::Timestamp {
    timestamp(instant.utc())
}

fn micros(micros: u64) -> prost_types::Duration {
    duration_pb(Duration::from_micros(micros))
}

fn unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}
