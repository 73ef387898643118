//! The states of sessions and executions, and which events lead from one to the next.
//!
//! Pure functions of values and `now`: no database, no wire, no clock. The store turns the answers into
//! guarded updates ([`session_sources`], [`execution_sources`]), so the rules are written here only.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// The state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SessionState {
    /// Its sandbox is being made.
    Creating,
    /// It takes executions.
    Running,
    /// It ended after it was idle for as long as it may be.
    Completed,
    /// Its sandbox could not be made, or died.
    Failed,
    /// It reached the end of its lifetime.
    Timeout,
    /// Somebody ended it.
    Terminated,
}

/// The state of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ExecutionState {
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
    /// Somebody cancelled it, or its session ended.
    Cancelled,
}

/// The first and the longest pause before an execution is started again.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Why an execution ended, where it is not simply that its process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// The wall-clock limit was reached.
    Timeout,
    /// Somebody cancelled it.
    Cancelled,
    /// The memory limit was reached.
    Oom,
    /// The limit of processes was reached.
    PidsLimit,
    /// More output than is kept was written, and the policy is to kill.
    OutputLimit,
    /// The disk limit was reached.
    DiskLimit,
    /// The executor or its sandbox died.
    ExecutorLost,
    /// The node died or was cut off.
    NodeLost,
    /// The session was ended or reached its lifetime.
    SessionEnded,
}

/// What can happen to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SessionEvent {
    /// Its sandbox runs.
    SandboxReady,
    /// Its sandbox could not be made, or not in time.
    CreationFailed,
    /// Its sandbox died, and it gets no other.
    SandboxLost,
    /// Its sandbox died, and it gets another.
    SandboxReplaced,
    /// It reached the end of its lifetime.
    LifetimeReached,
    /// It was not used for as long as it may be idle.
    IdleReached,
    /// Somebody ended it.
    Ended,
}

/// What can happen to an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ExecutionEvent {
    /// Its process exists.
    Started,
    /// Its process ended: by `cause`, or by itself, well or not.
    Exited {
        /// Why, where it did not simply end.
        cause: Option<Cause>,
        /// It exited with code 0 and the runner told of no error.
        success: bool,
    },
    /// It could not be started.
    StartFailed,
    /// It was cancelled before it started, or its session ended.
    Cancelled,
    /// Its sandbox died.
    SandboxLost,
    /// Its sandbox died, and it is started again.
    Retried,
}

impl SessionState {
    /// Every state.
    pub(crate) const ALL: [Self; 6] =
        [Self::Creating, Self::Running, Self::Completed, Self::Failed, Self::Timeout, Self::Terminated];

    /// The word for it, as it is stored and shown.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Terminated => "terminated",
        }
    }

    /// True when nothing leads out of it.
    pub(crate) fn is_final(self) -> bool {
        !matches!(self, Self::Creating | Self::Running)
    }
}

impl ExecutionState {
    /// Every state.
    pub(crate) const ALL: [Self; 7] = [
        Self::Pending,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Timeout,
        Self::Crashed,
        Self::Cancelled,
    ];

    /// The states that are not final.
    pub(crate) const ACTIVE: [Self; 2] = [Self::Pending, Self::Running];

    /// The word for it, as it is stored and shown.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Crashed => "crashed",
            Self::Cancelled => "cancelled",
        }
    }

    /// True when nothing leads out of it.
    pub(crate) fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

impl Cause {
    /// Every cause.
    pub(crate) const ALL: [Self; 9] = [
        Self::Timeout,
        Self::Cancelled,
        Self::Oom,
        Self::PidsLimit,
        Self::OutputLimit,
        Self::DiskLimit,
        Self::ExecutorLost,
        Self::NodeLost,
        Self::SessionEnded,
    ];

    /// The word for it, as it is stored and shown.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Oom => "oom",
            Self::PidsLimit => "pids_limit",
            Self::OutputLimit => "output_limit",
            Self::DiskLimit => "disk_limit",
            Self::ExecutorLost => "executor_lost",
            Self::NodeLost => "node_lost",
            Self::SessionEnded => "session_ended",
        }
    }

    /// Whether it is the fault of the machinery, and not of what ran or of who ended it.
    pub(crate) fn is_infrastructure(self) -> bool {
        matches!(self, Self::ExecutorLost | Self::NodeLost)
    }

    /// The final state of an execution that ended by this cause.
    pub(crate) fn state(self) -> ExecutionState {
        match self {
            Self::Timeout => ExecutionState::Timeout,
            Self::Cancelled | Self::SessionEnded => ExecutionState::Cancelled,
            Self::Oom
            | Self::PidsLimit
            | Self::OutputLimit
            | Self::DiskLimit
            | Self::ExecutorLost
            | Self::NodeLost => ExecutionState::Crashed,
        }
    }
}

/// The state that `event` leads to; `None` when it is refused in `state`.
pub(crate) fn next_session(state: SessionState, event: SessionEvent) -> Option<SessionState> {
    use SessionState::{Completed, Creating, Failed, Running, Terminated, Timeout};
    match (state, event) {
        (Creating, SessionEvent::SandboxReady) => Some(Running),
        (Creating, SessionEvent::CreationFailed) | (Running, SessionEvent::SandboxLost) => Some(Failed),
        (Running, SessionEvent::SandboxReplaced) => Some(Creating),
        (Running, SessionEvent::IdleReached) => Some(Completed),
        (Creating | Running, SessionEvent::LifetimeReached) => Some(Timeout),
        (Creating | Running, SessionEvent::Ended) => Some(Terminated),
        _ => None,
    }
}

/// The state that `event` leads to; `None` when it is refused in `state`.
pub(crate) fn next_execution(state: ExecutionState, event: ExecutionEvent) -> Option<ExecutionState> {
    use ExecutionState::{Cancelled, Completed, Crashed, Failed, Pending, Running};
    match (state, event) {
        (Pending, ExecutionEvent::Started) => Some(Running),
        // A short one ends before its start was written: then both are written at once.
        (Pending | Running, ExecutionEvent::Exited { cause: Some(cause), .. }) => Some(cause.state()),
        (Pending | Running, ExecutionEvent::Exited { cause: None, success: true }) => Some(Completed),
        (Pending | Running, ExecutionEvent::Exited { cause: None, success: false })
        | (Pending, ExecutionEvent::StartFailed) => Some(Failed),
        (Pending | Running, ExecutionEvent::Cancelled) => Some(Cancelled),
        (Pending | Running, ExecutionEvent::SandboxLost) => Some(Crashed),
        // The only way back.
        (Pending | Running, ExecutionEvent::Retried) => Some(Pending),
        _ => None,
    }
}

/// What the loss of its sandbox means for a session that lost `recoveries` of them before.
pub(crate) fn after_loss(
    expires_at: DateTime<Utc>,
    recoveries: u32,
    max_recoveries: u32,
    now: DateTime<Utc>,
) -> SessionEvent {
    if now >= expires_at {
        SessionEvent::LifetimeReached
    } else if recoveries < max_recoveries {
        SessionEvent::SandboxReplaced
    } else {
        SessionEvent::SandboxLost
    }
}

/// How long to wait before an execution that ended by `cause` is started again, which happened `retries`
/// times before; `None` when it is not.
pub(crate) fn retry_after(cause: Option<Cause>, retries: u32, max_retries: u32) -> Option<Duration> {
    if !cause?.is_infrastructure() || retries >= max_retries {
        return None;
    }
    Some(RETRY_PAUSES.0.saturating_mul(1 << retries.min(16)).min(RETRY_PAUSES.1))
}

/// The states that `event` leads out of, and the one it leads to. Every event has one target.
pub(crate) fn session_sources(event: SessionEvent) -> (Vec<SessionState>, Option<SessionState>) {
    sources(SessionState::ALL, |state| next_session(state, event))
}

/// The states that `event` leads out of, and the one it leads to. Every event has one target.
pub(crate) fn execution_sources(event: ExecutionEvent) -> (Vec<ExecutionState>, Option<ExecutionState>) {
    sources(ExecutionState::ALL, |state| next_execution(state, event))
}

fn sources<S: Copy>(all: impl IntoIterator<Item = S>, next: impl Fn(S) -> Option<S>) -> (Vec<S>, Option<S>) {
    let from: Vec<S> = all.into_iter().filter(|state| next(*state).is_some()).collect();
    let to = from.first().and_then(|state| next(*state));
    (from, to)
}

/// What decides when a session ends by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionTimes {
    /// Its state.
    pub(crate) state: SessionState,
    /// Since when its sandbox is being made.
    pub(crate) creating_since: DateTime<Utc>,
    /// When its lifetime ends.
    pub(crate) expires_at: DateTime<Utc>,
    /// When it was used last.
    pub(crate) last_activity_at: DateTime<Utc>,
    /// How long it may be idle; `None` means for ever.
    pub(crate) idle_timeout: Option<Duration>,
    /// How many of its executions have not ended: while there is one, it is not idle.
    pub(crate) active_executions: u64,
}

/// What the passing of time has done to a session; `None` when nothing. The end of the lifetime comes
/// before the other limits.
pub(crate) fn due(
    times: &SessionTimes,
    creating_timeout: Duration,
    now: DateTime<Utc>,
) -> Option<SessionEvent> {
    let passed = |since: DateTime<Utc>, limit: Duration| (now - since).to_std().is_ok_and(|age| age >= limit);
    let idle = times.active_executions == 0
        && times.idle_timeout.is_some_and(|limit| passed(times.last_activity_at, limit));
    match times.state {
        SessionState::Creating | SessionState::Running if now >= times.expires_at => {
            Some(SessionEvent::LifetimeReached)
        }
        SessionState::Creating if passed(times.creating_since, creating_timeout) => {
            Some(SessionEvent::CreationFailed)
        }
        SessionState::Running if idle => Some(SessionEvent::IdleReached),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
