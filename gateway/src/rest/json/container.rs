//! Sandboxes in JSON, under the name that existing clients know them by.

use sandmesh_proto::{
    agent::{Sandbox, sandbox::State},
    executor::ResourceUsage,
    health::{Condition, SandboxHealth},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Paging, filled,
    session::{EffectiveIsolation, ResourceLimit},
    time,
};

/// How many lines of a log are read when the client does not say, and at most.
const LINES: (i64, i64) = (100, 10_000);

/// Which sandboxes are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListContainers {
    /// Only those on this node.
    pub(crate) node_id: Option<String>,
    /// Only those of this session.
    pub(crate) session_id: Option<String>,
    /// How many at most; clamped to 1..200.
    #[param(default = 50)]
    limit: Option<i64>,
    /// Skip this many.
    #[param(default = 0)]
    offset: Option<u32>,
    /// `next_page_token` of the page before.
    page_token: Option<String>,
}

impl ListContainers {
    /// Which part of the list is wanted.
    pub(crate) fn paging(&self) -> Paging {
        Paging::new(self.limit, self.offset, self.page_token.as_deref())
    }
}

/// Which part of a log is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogOptions {
    /// How many of the last lines; clamped to 1..10000, and to the last MiB.
    #[param(default = 100)]
    tail: Option<i64>,
    /// True: as plain text, that goes on with what is added.
    #[param(default = false)]
    pub(crate) follow: Option<bool>,
}

impl LogOptions {
    /// How many lines.
    pub(crate) fn lines(&self) -> usize {
        usize::try_from(self.tail.unwrap_or(LINES.0).clamp(1, LINES.1)).unwrap_or(1)
    }
}

/// Where the last `lines` lines of a text begin.
pub(crate) fn last_lines(text: &[u8], lines: usize) -> usize {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut breaks = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    breaks.nth(lines.saturating_sub(1)).map_or(0, |(index, _)| index + 1)
}

/// The end of a log.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Log {
    /// The sandbox.
    container_id: String,
    /// The lines; bytes that are not UTF-8 are shown as U+FFFD.
    logs: String,
}

impl Log {
    /// A log of these bytes.
    pub(crate) fn new(container_id: String, text: &[u8]) -> Self {
        Self { container_id, logs: String::from_utf8_lossy(text).into_owned() }
    }
}

/// The state of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ContainerStatus {
    /// Being made.
    Creating,
    /// Its executor answers.
    Running,
    /// It died by itself, or its node is lost.
    Dead,
    /// It is destroyed.
    Deleted,
}

/// A sandbox: the isolated running thing behind a session.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Container {
    /// Its id.
    id: String,
    /// The session that has it; null for a warm one.
    #[schema(required = true)]
    session_id: Option<String>,
    /// The template it comes from.
    template_id: String,
    /// The node it is on.
    node_id: String,
    /// Its state.
    status: ContainerStatus,
    /// Why it is dead.
    #[schema(required = true)]
    status_reason: Option<String>,
    /// The image; runtimes without images ignore it.
    image_url: String,
    /// What made it: `process`, `docker`, `containerd` or `kubernetes`.
    runtime_type: String,
    /// The language runtime that its executor found.
    language_runtime: String,
    /// Its limits.
    resource_limit: ResourceLimit,
    /// The isolation it really has.
    #[schema(required = true)]
    effective_isolation: Option<EffectiveIsolation>,
    /// How many sandboxes its session had before this one.
    restart_count: u32,
    /// When it was created.
    #[schema(required = true, format = DateTime)]
    created_at: Option<String>,
    /// How it is, as measured last; null when nothing is known.
    #[schema(required = true)]
    health: Option<ContainerHealth>,
    /// What it uses, as measured last; null when it was not.
    #[schema(required = true)]
    usage: Option<Usage>,
}

/// How a sandbox is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ContainerHealth {
    /// `healthy`, `degraded` or `unhealthy`.
    status: &'static str,
    /// Why it is not healthy.
    #[schema(required = true)]
    reason: Option<String>,
    /// How long its executor took to answer, in milliseconds; null when it did not.
    #[schema(required = true)]
    latency_ms: Option<f64>,
    /// Failures in a row.
    failures: u32,
    /// Seconds since its executor started.
    uptime: f64,
    /// Executions running in it.
    running: u32,
    /// Executions waiting in it.
    queued: u32,
    /// When it was measured.
    #[schema(required = true, format = DateTime)]
    measured_at: Option<String>,
}

/// What a sandbox uses.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// CPU time since it started, in milliseconds.
    cpu_time_ms: f64,
    /// Memory in use, in bytes.
    memory_bytes: u64,
    /// The highest memory seen, in bytes.
    peak_memory_bytes: u64,
    /// Processes and threads.
    processes: u32,
}

impl Container {
    /// A sandbox, and what is known of its health.
    pub(crate) fn new(sandbox: Sandbox, health: Option<SandboxHealth>) -> Self {
        let status = match sandbox.state() {
            State::Unspecified | State::Creating => ContainerStatus::Creating,
            State::Running => ContainerStatus::Running,
            State::Dead => ContainerStatus::Dead,
            State::Deleted => ContainerStatus::Deleted,
        };
        let spec = sandbox.spec.unwrap_or_default();
        Self {
            id: sandbox.sandbox_id,
            session_id: filled(spec.session_id),
            template_id: spec.template_id,
            node_id: sandbox.node_id,
            status,
            status_reason: filled(sandbox.reason),
            image_url: spec.image,
            runtime_type: sandbox.runtime,
            language_runtime: sandbox.language_runtime,
            resource_limit: spec.resources.unwrap_or_default().into(),
            effective_isolation: sandbox.isolation.map(EffectiveIsolation::from),
            restart_count: spec.restarts,
            created_at: time(sandbox.created_at.as_ref()),
            usage: health.as_ref().and_then(|health| health.usage).map(Usage::from),
            health: health.map(ContainerHealth::from),
        }
    }
}

impl From<SandboxHealth> for ContainerHealth {
    fn from(health: SandboxHealth) -> Self {
        let status = match health.condition() {
            Condition::Healthy => "healthy",
            Condition::Degraded => "degraded",
            Condition::Unhealthy | Condition::Gone | Condition::Unspecified => "unhealthy",
        };
        Self {
            status,
            latency_ms: (health.latency_us > 0).then_some(health.latency_us as f64 / 1000.0),
            failures: health.failures,
            uptime: health.uptime_ms as f64 / 1000.0,
            running: health.running,
            queued: health.queued,
            measured_at: time(health.measured_at.as_ref()),
            reason: filled(health.reason),
        }
    }
}

impl From<ResourceUsage> for Usage {
    fn from(usage: ResourceUsage) -> Self {
        Self {
            cpu_time_ms: usage.cpu_time_ns as f64 / 1_000_000.0,
            memory_bytes: usage.memory_bytes,
            peak_memory_bytes: usage.peak_memory_bytes,
            processes: usage.processes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_those_and_no_more() {
        for (text, lines, expected) in [
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 9, "a\nb\n"),
            ("", 1, ""),
            ("\n\n\n", 2, "\n\n"),
        ] {
            assert_eq!(&text[last_lines(text.as_bytes(), lines)..], expected, "{text:?} {lines}");
        }
    }

    #[test]
    fn how_many_lines_is_clamped() {
        let lines = |tail| LogOptions { tail, follow: None }.lines();
        assert_eq!((lines(None), lines(Some(0)), lines(Some(-5)), lines(Some(1 << 40))), (100, 1, 1, 10_000));
    }
}
