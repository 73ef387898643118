//! The executor's errors and the gRPC status each becomes.

use sandmesh_proto::executor as pb;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Whose reasons these are.
const DOMAIN: &str = "sandmesh";

/// Why a call was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Error {
    /// A frame is malformed: which field, and how.
    Invalid { field: String, problem: String },
    /// No execution has this id.
    NotFound(String),
    /// The offset cannot be replayed.
    CursorExpired { stream: &'static str, offset: u64 },
    /// No room for another execution.
    Full(String),
    /// It still runs.
    StillRunning(String),
    /// It ran, and its result was taken.
    Acknowledged(String),
    /// The executor is about to end.
    Draining,
    /// There is no such layer of packages on this node.
    NoLayer,
    /// There is no jail that could show a layer of packages.
    NoJail,
    /// A layer of packages could not be shown.
    NotMounted(String),
    /// Something of another user may be left.
    NotClean(&'static str),
    /// Somebody else has it.
    Claimed,
    /// The executor failed.
    Internal(String),
}

impl Error {
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    fn code(&self) -> (Code, &'static str) {
        match self {
            Self::Invalid { .. } => (Code::InvalidArgument, "INVALID_ARGUMENT"),
            Self::NotFound(_) => (Code::NotFound, "EXECUTION_NOT_FOUND"),
            Self::CursorExpired { .. } => (Code::OutOfRange, "CURSOR_EXPIRED"),
            Self::Full(_) => (Code::ResourceExhausted, "TOO_MANY_EXECUTIONS"),
            Self::StillRunning(_) => (Code::FailedPrecondition, "EXECUTION_STILL_RUNNING"),
            Self::Acknowledged(_) => (Code::FailedPrecondition, "EXECUTION_ACKNOWLEDGED"),
            Self::Draining => (Code::Unavailable, "UNAVAILABLE"),
            Self::NoLayer => (Code::NotFound, "LAYER_NOT_FOUND"),
            Self::NoJail => (Code::FailedPrecondition, "NO_JAIL"),
            Self::NotMounted(_) => (Code::Unavailable, "LAYER_NOT_MOUNTED"),
            Self::NotClean(_) => (Code::FailedPrecondition, "NOT_CLEAN"),
            Self::Claimed => (Code::FailedPrecondition, "ALREADY_CLAIMED"),
            Self::Internal(_) => (Code::Internal, "INTERNAL"),
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Invalid { field, problem } => format!("{field}: {problem}"),
            Self::NotFound(id) => format!("execution `{id}` not found"),
            Self::CursorExpired { stream, offset } => {
                format!("{stream} has no byte {offset} to continue from")
            }
            Self::Full(what) | Self::Internal(what) => what.clone(),
            Self::NoLayer => "the node has no such layer of packages".to_owned(),
            Self::NoJail => "packages are only shown in a jail, and this sandbox has none".to_owned(),
            Self::NotMounted(why) => format!("the packages cannot be shown: {why}"),
            Self::NotClean(why) => format!("the sandbox is not clean: {why}"),
            Self::Claimed => "the sandbox was claimed for somebody else".to_owned(),
            Self::StillRunning(id) => format!("execution `{id}` still runs"),
            Self::Acknowledged(id) => format!("execution `{id}` has run, and its result was acknowledged"),
            Self::Draining => "the sandbox is about to end".to_owned(),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (code, reason) = error.code();
        let violation = match &error {
            Error::Invalid { field, problem } => Some((field.as_str(), problem.as_str())),
            _ => None,
        };
        status(code, reason, error.message(), violation)
    }
}

/// A status with its reason, and the field that is wrong and how.
pub(crate) fn status(code: Code, reason: &str, message: String, violation: Option<(&str, &str)>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, std::collections::HashMap::new());
    if let Some((field, problem)) = violation {
        details.add_bad_request_violation(field, problem);
    }
    Status::with_error_details(code, message, details)
}

/// Why an execution could not be started.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) kind: pb::FailureKind,
    pub(crate) errno_name: String,
    pub(crate) stage: String,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: pb::FailureKind, stage: &str, message: impl Into<String>) -> Self {
        Self { kind, errno_name: String::new(), stage: stage.to_owned(), message: message.into() }
    }

    /// One that a system call is to blame for; the errno tells its kind.
    pub(crate) fn from_errno(errno: i32, stage: &str, message: &str) -> Self {
        use nix::errno::Errno;
        let errno = Errno::from_raw(errno);
        let kind = match errno {
            Errno::ENOENT | Errno::ENOTDIR if stage == "exec" => pb::FailureKind::NotFound,
            Errno::EACCES | Errno::ENOEXEC if stage == "exec" => pb::FailureKind::PermissionDenied,
            Errno::E2BIG | Errno::ENOMEM | Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE | Errno::ENOSPC => {
                pb::FailureKind::ResourceExhausted
            }
            _ if stage == "exec" => pb::FailureKind::Internal,
            _ => pb::FailureKind::Isolation,
        };
        let message = format!("{message}: {}", errno.desc().to_lowercase());
        Self { kind, errno_name: format!("{errno:?}"), stage: stage.to_owned(), message }
    }
}

impl From<Failure> for pb::ExecutionFailed {
    fn from(failure: Failure) -> Self {
        let Failure { kind, errno_name, stage, message } = failure;
        Self { kind: kind.into(), errno_name, stage, message }
    }
}
