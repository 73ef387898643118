//! An execution as it is printed.

use std::time::Duration;

use sandmesh_mesh::duration_from;
use sandmesh_proto::{
    executor::{Cause, ExecutionMetrics, Language, UserError},
    session::{Artifact, Execution},
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{some, time, word};
use crate::cli::table::Fields;

/// An execution.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct ExecutionView {
    pub(in crate::cli) id: String,
    session_id: String,
    pub(in crate::cli) status: String,
    cause: Option<String>,
    cause_detail: Option<String>,
    code: String,
    pub(in crate::cli) language: Option<String>,
    timeout: u32,
    exit_code: Option<i32>,
    signal: Option<i32>,
    pub(in crate::cli) stdout: String,
    pub(in crate::cli) stderr: String,
    stdout_truncated: bool,
    stderr_truncated: bool,
    return_value: Option<Box<RawValue>>,
    error: Option<ErrorView>,
    metrics: Option<Metrics>,
    artifacts: Vec<ArtifactView>,
    retry_count: u32,
    max_retries: u32,
    pub(in crate::cli) created_at: Option<String>,
    started_at: Option<String>,
    completed_at: Option<String>,
    execution_time: Option<f64>,
}

#[derive(Debug, Serialize)]
struct ErrorView {
    #[serde(rename = "type")]
    class: String,
    message: String,
    traceback: String,
}

#[derive(Debug, Serialize)]
struct Metrics {
    duration_ms: f64,
    cpu_time_ms: f64,
    peak_memory_mb: f64,
    io_read_bytes: u64,
    io_write_bytes: u64,
    queue_ms: f64,
    start_ms: f64,
}

#[derive(Debug, Serialize)]
struct ArtifactView {
    path: String,
    size: u64,
    mime_type: String,
    checksum: String,
    created_at: Option<String>,
}

impl From<Execution> for ExecutionView {
    fn from(execution: Execution) -> Self {
        Self {
            status: word(execution.state().as_str_name(), "STATE_"),
            cause: cause(execution.cause()),
            language: language(execution.language()),
            id: execution.execution_id,
            session_id: execution.session_id,
            cause_detail: some(execution.cause_detail),
            code: execution.code,
            timeout: execution.timeout_seconds,
            exit_code: execution.exit_code,
            signal: execution.signal,
            stdout: String::from_utf8_lossy(&execution.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&execution.stderr).into_owned(),
            stdout_truncated: execution.stdout_truncated,
            stderr_truncated: execution.stderr_truncated,
            return_value: execution.return_value_json.and_then(|json| RawValue::from_string(json).ok()),
            error: execution.error.map(ErrorView::from),
            execution_time: execution.metrics.as_ref().and_then(seconds),
            metrics: execution.metrics.as_ref().map(Metrics::from),
            artifacts: execution.artifacts.into_iter().map(ArtifactView::from).collect(),
            retry_count: execution.retry_count,
            max_retries: execution.max_retries,
            created_at: time(execution.created_at.as_ref()),
            started_at: time(execution.started_at.as_ref()),
            completed_at: time(execution.completed_at.as_ref()),
        }
    }
}

fn cause(cause: Cause) -> Option<String> {
    (cause != Cause::Unspecified).then(|| word(cause.as_str_name(), "CAUSE_"))
}

fn language(language: Language) -> Option<String> {
    (language != Language::Unspecified).then(|| word(language.as_str_name(), "LANGUAGE_"))
}

fn seconds(metrics: &ExecutionMetrics) -> Option<f64> {
    metrics.duration.as_ref().map(|duration| duration_from(duration).as_secs_f64())
}

impl From<UserError> for ErrorView {
    fn from(error: UserError) -> Self {
        Self { class: error.r#type, message: error.message, traceback: error.traceback }
    }
}

impl From<&ExecutionMetrics> for Metrics {
    fn from(metrics: &ExecutionMetrics) -> Self {
        Self {
            duration_ms: millis(metrics.duration.as_ref()),
            cpu_time_ms: millis(metrics.cpu_time.as_ref()),
            peak_memory_mb: mebibytes(metrics.peak_memory_bytes),
            io_read_bytes: metrics.io_read_bytes,
            io_write_bytes: metrics.io_write_bytes,
            queue_ms: millis(metrics.queued.as_ref()),
            start_ms: millis(metrics.startup.as_ref()),
        }
    }
}

/// Milliseconds, to the microsecond.
fn millis(duration: Option<&prost_types::Duration>) -> f64 {
    let seconds = duration.map_or(Duration::ZERO, duration_from).as_secs_f64();
    (seconds * 1e6).round() / 1e3
}

/// Mebibytes, to a thousandth.
#[expect(clippy::cast_precision_loss, reason = "exact far beyond the memory of any machine")]
fn mebibytes(bytes: u64) -> f64 {
    (bytes as f64 / f64::from(1 << 20) * 1e3).round() / 1e3
}

impl From<Artifact> for ArtifactView {
    fn from(artifact: Artifact) -> Self {
        Self {
            path: artifact.path,
            size: artifact.size_bytes,
            mime_type: artifact.mime_type,
            checksum: artifact.checksum,
            created_at: time(artifact.created_at.as_ref()),
        }
    }
}

impl ExecutionView {
    /// The exit code, or the signal, as one word; empty while there is neither.
    pub(in crate::cli) fn exit(&self) -> String {
        match (self.exit_code, self.signal) {
            (Some(code), _) => code.to_string(),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => String::new(),
        }
    }

    /// How long it ran, in milliseconds; empty while that is not known.
    pub(in crate::cli) fn duration(&self) -> String {
        self.metrics.as_ref().map(|metrics| format!("{:.0} ms", metrics.duration_ms)).unwrap_or_default()
    }

    /// For people, a line each; the output is not among them.
    pub(in crate::cli) fn fields(&self) -> Fields {
        let or_empty = |value: &Option<String>| value.clone().unwrap_or_default();
        let error = self.error.as_ref().map(|error| format!("{}: {}", error.class, error.message));
        let memory = self.metrics.as_ref().map(|metrics| format!("{} MiB", metrics.peak_memory_mb));
        let value = self.return_value.as_ref().map(|value| value.get().to_owned());
        Fields::default()
            .with("id", &*self.id)
            .with("session", &*self.session_id)
            .with("status", &*self.status)
            .with("cause", [or_empty(&self.cause), or_empty(&self.cause_detail)].join(" ").trim())
            .with("exit", self.exit())
            .with("error", or_empty(&error))
            .with("language", or_empty(&self.language))
            .with("timeout", format!("{} s", self.timeout))
            .with("duration", self.duration())
            .with("peak memory", or_empty(&memory))
            .with("created", or_empty(&self.created_at))
            .with("started", or_empty(&self.started_at))
            .with("ended", or_empty(&self.completed_at))
            .with("return value", or_empty(&value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_value_is_printed_as_it_came() {
        for json in ["null", "0", "[1.50,123456789012345678901234567890]", r#""""#] {
            let execution = Execution { return_value_json: Some(json.to_owned()), ..Execution::default() };
            let text = serde_json::to_string(&ExecutionView::from(execution)).unwrap();
            assert!(text.contains(&format!("\"return_value\":{json},")), "{text}");
        }
    }

    #[test]
    fn invalid_utf8_is_replaced_and_what_is_unset_is_null() {
        let execution = Execution { stdout: vec![b'a', 0xff].into(), ..Execution::default() };
        let json = serde_json::to_value(ExecutionView::from(execution)).unwrap();
        assert_eq!(json["stdout"], "a\u{fffd}");
        for field in ["exit_code", "signal", "cause", "error", "return_value", "execution_time", "started_at"]
        {
            assert!(json[field].is_null(), "{field}");
        }
    }
}
