//! The outcome of a run that came to its end: the terminal frame from what was seen and measured.

use std::time::Duration;

use sandmesh_proto::executor::{self as pb, execute_response::Frame, execution_exited::Status};

use crate::{
    execution::{Execution, Stop},
    isolation::cgroup::{LimitHits, Limits, Usage},
    run::duration,
    runner::Returned,
    status::Failure,
    supervise::{Exit, Life},
    workspace::Changes,
};

/// How a shell exits whose last command wrote beyond its limit.
const FILE_TOO_LARGE: i32 = 128 + libc::SIGXFSZ;

/// What the executor measured of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// From the control group; `None` without one.
    pub(crate) usage: Option<(Usage, LimitHits)>,
    /// The limits of the sandbox.
    pub(crate) limits: Limits,
    /// The wait for a slot.
    pub(crate) queued: Duration,
}

/// A run that came to its end.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) life: Life,
    pub(crate) measured: Measured,
    pub(crate) returned: Returned,
    pub(crate) execution: &'a Execution,
}

impl Ended<'_> {
    /// The terminal frame.
    pub(crate) fn into_frame(self, changes: Changes) -> Frame {
        if self.life.started.is_none() {
            return Frame::Failed(self.failure().into());
        }
        let metrics = self.metrics();
        let exit = self.life.exited;
        let status = match exit {
            Some(Exit { code: Some(code), .. }) => Status::ExitCode(code),
            Some(Exit { signal: Some(signal), .. }) => Status::Signal(signal),
            _ => Status::Signal(libc::SIGKILL),
        };
        let (cause, cause_detail) = self.cause(status);
        // What a killed process left in the pipe may be half a value.
        let by_itself = matches!(status, Status::ExitCode(_));
        let returned = if by_itself { self.returned } else { Returned::default() };
        let (stdout, stderr) = (&self.execution.stdout, &self.execution.stderr);
        Frame::Exited(pb::ExecutionExited {
            status: Some(status),
            cause: cause.into(),
            cause_detail,
            return_value_json: returned.value,
            error: returned.error,
            metrics: Some(metrics),
            stdout_bytes: stdout.total(),
            stderr_bytes: stderr.total(),
            stdout_truncated: stdout.is_truncated(),
            stderr_truncated: stderr.is_truncated(),
            ended_at: Some(self.life.ended_at.into()),
            changed_files: changes.files,
            changed_files_incomplete: changes.incomplete,
            workspace_changed: changes.any,
        })
    }

    /// Why the user's process was never there.
    fn failure(&self) -> Failure {
        const STAGE: &str = "spawn_jail";
        if self.life.stopped.is_some() {
            return Failure::new(pb::FailureKind::Cancelled, STAGE, "it was cancelled before it was started");
        }
        if self.measured.usage.is_some_and(|(_, hits)| hits.oom_kills > 0) {
            let limit = mebibytes(self.measured.limits.memory_bytes);
            let message = format!("the memory limit of {limit} does not suffice to start");
            return Failure::new(pb::FailureKind::ResourceExhausted, STAGE, message);
        }
        if let Some(failed) = &self.life.failed {
            return failed.clone();
        }
        let complaint = self.life.complaint.trim();
        let why = if complaint.is_empty() { "it ended without a word" } else { complaint };
        Failure::new(pb::FailureKind::Isolation, STAGE, format!("cannot build the jail: {why}"))
    }

    /// Why it ended, where that is not simply that it did.
    fn cause(&self, status: Status) -> (pb::Cause, String) {
        let Measured { usage, limits, .. } = self.measured;
        let (usage, hits) = usage.unwrap_or_default();
        match (status, self.life.stopped) {
            (Status::ExitCode(0), _) => (pb::Cause::Unspecified, String::new()),
            (Status::Signal(_), Some(stop)) => stopped(stop),
            _ if hits.oom_kills > 0 => {
                let (limit, peak) = (mebibytes(limits.memory_bytes), mebibytes(usage.peak_memory_bytes));
                (pb::Cause::Oom, format!("limit {limit}, peak {peak}"))
            }
            _ if hits.refused_forks > 0 => (
                pb::Cause::PidsLimit,
                format!("limit {} processes, {} refused", limits.max_processes, hits.refused_forks),
            ),
            // A shell tells the signal that ended its last command as 128 and its number.
            (Status::Signal(libc::SIGXFSZ) | Status::ExitCode(FILE_TOO_LARGE), _) => {
                (pb::Cause::DiskLimit, "a file grew beyond the disk limit".to_owned())
            }
            _ if self.life.exited.is_none() => {
                (pb::Cause::ExecutorLost, "the jail was killed from outside".to_owned())
            }
            _ => (pb::Cause::Unspecified, String::new()),
        }
    }

    fn metrics(&self) -> pb::ExecutionMetrics {
        let child = self.life.exited.map(|exit| exit.usage).unwrap_or_default();
        let cgroup = self.measured.usage.map(|(usage, _)| usage);
        let started = self.life.started;
        let (startup, lived) =
            started.map(|at| (at.startup, self.life.ended - at.instant)).unwrap_or_default();
        pb::ExecutionMetrics {
            duration: duration(lived),
            cpu_time: duration(cgroup.map_or_else(|| Duration::from_micros(child.cpu_us), |usage| usage.cpu)),
            peak_memory_bytes: cgroup.map_or(child.peak_rss_bytes, |usage| usage.peak_memory_bytes),
            io_read_bytes: child.read_bytes,
            io_write_bytes: child.write_bytes,
            queued: duration(self.measured.queued),
            startup: duration(startup),
        }
    }
}

fn stopped(stop: Stop) -> (pb::Cause, String) {
    match stop {
        Stop::Timeout => (pb::Cause::Timeout, String::new()),
        Stop::Cancelled => (pb::Cause::Cancelled, String::new()),
        Stop::SessionEnded => (pb::Cause::SessionEnded, String::new()),
        Stop::DiskLimit => (pb::Cause::DiskLimit, "more of the disk was used than the limit".to_owned()),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
