//! Executions in JSON.

use std::collections::HashMap;

use sandmesh_mesh::duration_from;
use sandmesh_proto::{
    executor::{Cause, ExecutionMetrics, Language as WireLanguage, Mode as WireMode, UserError},
    session as pb,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{Mistakes, filled, time};
use crate::{
    error::{ApiError, Edge},
    extract::IdempotencyKey,
};

/// What to run.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = Execute)]
pub(crate) struct Execute {
    /// The source text; up to 1 MiB.
    #[schema(
        required = true,
        nullable = false,
        min_length = 1,
        example = "def handler(event):\n    return {\"result\": \"hello world\"}"
    )]
    code: Option<String>,
    /// The language.
    #[schema(required = true, nullable = false)]
    #[serde(default, deserialize_with = "super::word")]
    language: Option<Language>,
    /// The time limit in seconds; left out: 30.
    #[schema(minimum = 1, maximum = 3600)]
    timeout: Option<u32>,
    /// What the handler is called with: any JSON object, up to 6 MiB.
    #[schema(value_type = Option<Object>)]
    event: Option<Box<RawValue>>,
    /// Environment of this execution; wins over the session's.
    env_vars: Option<HashMap<String, String>>,
    /// The standard input.
    stdin: Option<String>,
    /// Its id; left out: one is made. A repeat returns the first run.
    #[schema(min_length = 1, max_length = 64)]
    execution_id: Option<String>,
    /// Makes the request idempotent in its session: a repeat returns the first run.
    #[schema(min_length = 1, max_length = 128)]
    request_id: Option<String>,
    /// The function to call; left out: `handler`.
    #[schema(min_length = 1)]
    entrypoint: Option<String>,
    /// How the code is entered.
    #[serde(default, deserialize_with = "super::word")]
    mode: Option<Mode>,
    /// How often it is started again when it is lost with its sandbox or node; left out: 0. Never after an end
    /// of its own or at a limit.
    #[schema(minimum = 0, maximum = 10)]
    max_retries: Option<u32>,
    /// With `execute-sync`: as the query parameter, which wins.
    pub(super) sync_timeout: Option<i64>,
    /// With `execute-sync`: accepted for existing clients; nothing polls.
    pub(super) poll_interval: Option<f64>,
}

/// The language of the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Language {
    /// CPython.
    Python,
    /// Node.js.
    Javascript,
    /// bash, or sh.
    Shell,
}

/// How the code is entered.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Call a function with the event; its return value is the result. Default for Python and JavaScript.
    Handler,
    /// Run top to bottom; the exit code decides.
    Script,
}

impl Execute {
    /// The message for the session role.
    pub(crate) fn into_request(
        self,
        session_id: String,
        key: IdempotencyKey,
    ) -> Result<pb::StartExecutionRequest, ApiError> {
        self.check()?;
        let spec = pb::ExecutionSpec {
            code: self.code.unwrap_or_default(),
            language: self.language.map_or(0, |language| language.wire().into()),
            timeout_seconds: self.timeout,
            event_json: self.event.map(|event| event.get().to_owned()).unwrap_or_default(),
            env: self.env_vars.unwrap_or_default(),
            stdin: self.stdin.unwrap_or_default().into(),
            entrypoint: self.entrypoint.unwrap_or_default(),
            mode: match self.mode {
                None => WireMode::Unspecified.into(),
                Some(Mode::Handler) => WireMode::Handler.into(),
                Some(Mode::Script) => WireMode::Script.into(),
            },
            max_retries: self.max_retries.unwrap_or_default(),
            ..pb::ExecutionSpec::default()
        };
        Ok(pb::StartExecutionRequest {
            session_id,
            spec: Some(spec),
            execution_id: self.execution_id.unwrap_or_default(),
            request_id: self.request_id.unwrap_or(key.0),
        })
    }

    fn check(&self) -> Result<(), ApiError> {
        let mut mistakes = Mistakes::default();
        mistakes.required("code", self.code.as_ref());
        mistakes.required("language", self.language.as_ref());
        mistakes.not_empty("code", self.code.as_ref());
        mistakes.not_empty("execution_id", self.execution_id.as_ref());
        mistakes.not_empty("request_id", self.request_id.as_ref());
        mistakes.not_empty("entrypoint", self.entrypoint.as_ref());
        if self.event.as_ref().is_some_and(|event| !event.get().trim_start().starts_with('{')) {
            mistakes.add("event", "dict_type", "must be an object");
        }
        mistakes.check()
    }
}

/// The state of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ExecutionStatus {
    /// Accepted and durable, not started.
    Pending,
    /// Its process runs.
    Running,
    /// It ended with exit code 0.
    Completed,
    /// It ended with an error, or could not be started.
    Failed,
    /// It reached its time limit.
    Timeout,
    /// Its sandbox was lost, or a limit killed it.
    Crashed,
    /// Somebody cancelled it.
    Cancelled,
}

impl ExecutionStatus {
    /// The state on the wire.
    pub(crate) fn wire(self) -> pb::execution::State {
        use pb::execution::State;
        match self {
            Self::Pending => State::Pending,
            Self::Running => State::Running,
            Self::Completed => State::Completed,
            Self::Failed => State::Failed,
            Self::Timeout => State::Timeout,
            Self::Crashed => State::Crashed,
            Self::Cancelled => State::Cancelled,
        }
    }

    /// True when it does not change any more.
    pub(crate) fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }

    fn of(state: pb::execution::State) -> Result<Self, ApiError> {
        use pb::execution::State;
        Ok(match state {
            State::Pending => Self::Pending,
            State::Running => Self::Running,
            State::Completed => Self::Completed,
            State::Failed => Self::Failed,
            State::Timeout => Self::Timeout,
            State::Crashed => Self::Crashed,
            State::Cancelled => Self::Cancelled,
            State::Unspecified => return Err(Edge::Internal("an execution without a state".into()).into()),
        })
    }
}

impl Language {
    fn wire(self) -> WireLanguage {
        match self {
            Self::Python => WireLanguage::Python,
            Self::Javascript => WireLanguage::Javascript,
            Self::Shell => WireLanguage::Shell,
        }
    }

    fn of(language: WireLanguage) -> Option<Self> {
        match language {
            WireLanguage::Unspecified => None,
            WireLanguage::Python => Some(Self::Python),
            WireLanguage::Javascript => Some(Self::Javascript),
            WireLanguage::Shell => Some(Self::Shell),
        }
    }
}

/// An execution that was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Accepted {
    /// Its id.
    #[schema(example = "exec_20260102030405_0a1b2c3d")]
    pub(crate) execution_id: String,
    /// Its session.
    session_id: String,
    /// `pending`, unless the request is a repeat.
    status: ExecutionStatus,
    /// When it was accepted.
    #[schema(required = true, format = DateTime)]
    created_at: Option<String>,
}

impl TryFrom<pb::Execution> for Accepted {
    type Error = ApiError;

    fn try_from(execution: pb::Execution) -> Result<Self, ApiError> {
        Ok(Self {
            status: ExecutionStatus::of(execution.state())?,
            created_at: time(execution.created_at.as_ref()),
            execution_id: execution.execution_id,
            session_id: execution.session_id,
        })
    }
}

/// One run of code in a session.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Execution {
    /// Its id.
    #[schema(example = "exec_20260102030405_0a1b2c3d")]
    id: String,
    /// Its session.
    session_id: String,
    /// Its state.
    pub(crate) status: ExecutionStatus,
    /// Why it ended, where it is not simply that the process ended.
    #[schema(required = true)]
    cause: Option<&'static str>,
    /// More about the cause.
    #[schema(required = true)]
    cause_detail: Option<String>,
    /// The source text.
    code: String,
    /// The language; null for a command.
    #[schema(required = true)]
    language: Option<Language>,
    /// The time limit in seconds.
    timeout: u32,
    /// The exit code; null until it ended by exiting.
    #[schema(required = true)]
    exit_code: Option<i32>,
    /// The signal that ended it.
    #[schema(required = true)]
    signal: Option<i32>,
    /// What is kept of the standard output; bytes that are not UTF-8 are shown as U+FFFD.
    stdout: String,
    /// What is kept of the standard error; bytes that are not UTF-8 are shown as U+FFFD.
    stderr: String,
    /// The standard output was longer than is kept.
    stdout_truncated: bool,
    /// The standard error was longer than is kept.
    stderr_truncated: bool,
    /// What the handler returned: any JSON.
    #[schema(required = true, value_type = Option<serde_json::Value>)]
    return_value: Option<Box<RawValue>>,
    /// The error of the user's code.
    #[schema(required = true)]
    error: Option<CodeError>,
    /// What it used, measured; null until it ended.
    #[schema(required = true)]
    metrics: Option<Metrics>,
    /// New or changed files.
    artifacts: Vec<Artifact>,
    /// How often it was retried after the loss of its sandbox.
    retry_count: u32,
    /// How often it may be retried.
    max_retries: u32,
    /// When it was accepted.
    #[schema(required = true, format = DateTime)]
    created_at: Option<String>,
    /// When its process started.
    #[schema(required = true, format = DateTime)]
    started_at: Option<String>,
    /// When it ended.
    #[schema(required = true, format = DateTime)]
    completed_at: Option<String>,
    /// From start to end in seconds; null until it ended.
    #[schema(required = true)]
    execution_time: Option<f64>,
}

/// An error of the user's code.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CodeError {
    /// Its class.
    #[schema(example = "ValueError")]
    r#type: String,
    /// Its message.
    message: String,
    /// The traceback of the user's frames.
    traceback: String,
}

/// What an execution used.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Metrics {
    /// Wall clock from start to end.
    duration_ms: f64,
    /// User and system CPU time.
    cpu_time_ms: f64,
    /// The highest memory, in MiB.
    peak_memory_mb: f64,
    /// Bytes read from storage.
    io_read_bytes: u64,
    /// Bytes written to storage.
    io_write_bytes: u64,
    /// Wait for a slot.
    queue_ms: f64,
    /// From slot to running process.
    start_ms: f64,
}

/// A file that an execution made or changed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Artifact {
    /// Its path below the workspace.
    path: String,
    /// Its size in bytes.
    size: u64,
    /// Its media type.
    mime_type: String,
    /// `sha256:` and hex digits.
    checksum: String,
    /// When it was found.
    #[schema(required = true, format = DateTime)]
    created_at: Option<String>,
}

impl TryFrom<pb::Execution> for Execution {
    type Error = ApiError;

    fn try_from(execution: pb::Execution) -> Result<Self, ApiError> {
        let status = ExecutionStatus::of(execution.state())?;
        let execution_time = seconds(&execution);
        Ok(Self {
            status,
            cause: cause(execution.cause()),
            language: Language::of(execution.language()),
            id: execution.execution_id,
            session_id: execution.session_id,
            cause_detail: filled(execution.cause_detail),
            code: execution.code,
            timeout: execution.timeout_seconds,
            exit_code: execution.exit_code,
            signal: execution.signal,
            stdout: String::from_utf8_lossy(&execution.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&execution.stderr).into_owned(),
            stdout_truncated: execution.stdout_truncated,
            stderr_truncated: execution.stderr_truncated,
            return_value: execution.return_value_json.map(raw).transpose()?,
            error: execution.error.map(CodeError::from),
            metrics: execution.metrics.as_ref().map(Metrics::from),
            artifacts: execution.artifacts.into_iter().map(Artifact::from).collect(),
            retry_count: execution.retry_count,
            max_retries: execution.max_retries,
            created_at: time(execution.created_at.as_ref()),
            started_at: time(execution.started_at.as_ref()),
            completed_at: time(execution.completed_at.as_ref()),
            execution_time,
        })
    }
}

/// A return value, to be embedded to the letter.
fn raw(json: String) -> Result<Box<RawValue>, ApiError> {
    RawValue::from_string(json)
        .map_err(|error| Edge::Internal(format!("a return value that is not JSON: {error}")).into())
}

fn cause(cause: Cause) -> Option<&'static str> {
    match cause {
        Cause::Unspecified => None,
        Cause::Timeout => Some("timeout"),
        Cause::Cancelled => Some("cancelled"),
        Cause::Oom => Some("oom"),
        Cause::PidsLimit => Some("pids_limit"),
        Cause::OutputLimit => Some("output_limit"),
        Cause::DiskLimit => Some("disk_limit"),
        Cause::ExecutorLost => Some("executor_lost"),
        Cause::NodeLost => Some("node_lost"),
        Cause::SessionEnded => Some("session_ended"),
    }
}

/// How long it ran: as measured beside it, or else by the clock of the record.
fn seconds(execution: &pb::Execution) -> Option<f64> {
    let measured = execution.metrics.as_ref().and_then(|metrics| metrics.duration.as_ref());
    if let Some(duration) = measured {
        return Some(duration_from(duration).as_secs_f64());
    }
    let started = sandmesh_mesh::datetime(execution.started_at.as_ref()?)?;
    let completed = sandmesh_mesh::datetime(execution.completed_at.as_ref()?)?;
    (completed - started).to_std().ok().map(|duration| duration.as_secs_f64())
}

/// Milliseconds to the microsecond.
pub(crate) fn millis(duration: Option<&prost_types::Duration>) -> f64 {
    let micros = duration.map_or(0, |duration| duration_from(duration).as_micros());
    u64::try_from(micros).unwrap_or(u64::MAX) as f64 / 1000.0
}

impl From<&ExecutionMetrics> for Metrics {
    fn from(metrics: &ExecutionMetrics) -> Self {
        Self {
            duration_ms: millis(metrics.duration.as_ref()),
            cpu_time_ms: millis(metrics.cpu_time.as_ref()),
            peak_memory_mb: (metrics.peak_memory_bytes as f64 / 1_048_576.0 * 1000.0).round() / 1000.0,
            io_read_bytes: metrics.io_read_bytes,
            io_write_bytes: metrics.io_write_bytes,
            queue_ms: millis(metrics.queued.as_ref()),
            start_ms: millis(metrics.startup.as_ref()),
        }
    }
}

impl From<UserError> for CodeError {
    fn from(error: UserError) -> Self {
        Self { r#type: error.r#type, message: error.message, traceback: error.traceback }
    }
}

impl From<pb::Artifact> for Artifact {
    fn from(artifact: pb::Artifact) -> Self {
        Self {
            path: artifact.path,
            size: artifact.size_bytes,
            mime_type: artifact.mime_type,
            checksum: artifact.checksum,
            created_at: time(artifact.created_at.as_ref()),
        }
    }
}
