//! What can go wrong in the session role, as a caller may know it.

use std::time::Duration;

use sandmesh_mesh::{Fault, FieldViolation, database::is_unavailable};
use sea_orm::DbErr;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::validate::FilePath;

/// What the scheduler, and then this role, call the place in the queue for room in the details of an error.
pub(crate) const QUEUE_POSITION: &str = "queue_position";

/// An error of the session role.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no such session.
    #[error("session `{0}` not found")]
    SessionNotFound(String),
    /// The id is taken.
    #[error("session `{0}` exists already")]
    SessionExists(String),
    /// The session takes no executions.
    #[error("session `{id}` is {state}")]
    SessionNotActive {
        /// The session.
        id: String,
        /// Its state.
        state: &'static str,
    },
    /// The template does not exist, or takes no new sessions.
    #[error("template `{id}` {problem}")]
    TemplateNotFound {
        /// The template.
        id: String,
        /// What is the matter with it.
        problem: &'static str,
    },
    /// There are as many sessions as there may be.
    #[error("there are {0} active sessions, which is the most there may be")]
    QuotaExceeded(u32),
    /// No node has room.
    #[error("no node has room for the session: {reason}")]
    NoCapacity {
        /// What the scheduler said.
        reason: String,
        /// When to try again.
        retry_after: Duration,
        /// Which of those it was who wait for room, if the scheduler said.
        queue_position: Option<String>,
    },
    /// Packages are being installed into the session already.
    #[error("packages are being installed into session `{0}` already")]
    InstallRunning(String),
    /// There is no such execution.
    #[error("execution `{0}` not found")]
    ExecutionNotFound(String),
    /// The id is taken by an execution of another session.
    #[error("execution `{0}` exists already in another session")]
    ExecutionExists(String),
    /// It ended before.
    #[error("execution `{id}` is {state}")]
    ExecutionEnded {
        /// The execution.
        id: String,
        /// Its state.
        state: &'static str,
    },
    /// It takes no input.
    #[error("execution `{id}` is {state}, not running")]
    ExecutionNotRunning {
        /// The execution.
        id: String,
        /// Its state.
        state: &'static str,
    },
    /// The session has as many active executions as it may have.
    #[error("session `{id}` has {limit} executions that have not ended, which is the most it may have")]
    TooManyExecutions {
        /// The session.
        id: String,
        /// The limit.
        limit: u32,
    },
    /// The bytes from this offset on are not kept.
    #[error("execution `{id}`: {problem}")]
    CursorExpired {
        /// The execution.
        id: String,
        /// Which bytes are not kept.
        problem: String,
    },
    /// A path is not one below a workspace.
    #[error("`{field}` {problem}")]
    InvalidPath {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Something stands in the way at a path of a workspace, or there is no room.
    #[error("{message}")]
    File {
        /// The gRPC code.
        code: Code,
        /// What clients switch on.
        reason: &'static str,
        /// What is the matter with which path.
        message: String,
    },
    /// The content of a file is not in the object store.
    #[error("the content of `{0}` was not kept: the files of its session were more than the limit")]
    FileNotKept(String),
    /// An execution made no such file, or its content is not kept.
    #[error("execution `{id}` has no artifact `{path}` whose content is kept")]
    ArtifactNotFound {
        /// The execution.
        id: String,
        /// The path below the workspace.
        path: String,
    },
    /// The first byte that is wanted is beyond the end of a file.
    #[error("`{path}` has {size} bytes")]
    OutOfRange {
        /// The path.
        path: String,
        /// How long the file is.
        size: u64,
    },
    /// What was uploaded is not what its caller meant to.
    #[error("`{path}` arrived with the checksum sha256:{found}, which is not the one that was given")]
    ChecksumMismatch {
        /// The path.
        path: String,
        /// The checksum of what arrived.
        found: String,
    },
    /// The caller went away in the middle.
    #[error("the upload ended without its frame `end`; nothing of it was kept")]
    UploadBroken,
    /// The object store hands out nothing itself.
    #[error("the object store of this server is a directory, which makes no URLs; read the file instead")]
    PresigningNotSupported,
    /// Fields of the request are wrong.
    #[error("{}", describe(.0))]
    Invalid(Vec<FieldViolation>),
    /// The page token is not one of ours.
    #[error("the page token was not made by this service")]
    PageToken,
    /// Another role, or this one while it stops, does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// The object store does not answer, or refuses.
    #[error("the object store does not take or give what is needed now")]
    ObjectStore(anyhow::Error),
    /// Something that should not happen; logged, not told.
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

fn describe(violations: &[FieldViolation]) -> String {
    let fields: Vec<&str> = violations.iter().map(|violation| violation.description.as_str()).collect();
    fields.join("; ")
}

impl Error {
    /// One field is wrong.
    pub(crate) fn field(field: &str, kind: &'static str, description: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldViolation::new(field, kind, description)])
    }
}

/// What sandboxes say of files, as far as callers are told.
const FILE_REASONS: [&str; 9] = [
    "FILE_NOT_FOUND",
    "FILE_EXISTS",
    "NOT_A_FILE",
    "NOT_A_DIRECTORY",
    "DIRECTORY_NOT_EMPTY",
    "FILE_ACCESS_DENIED",
    "INVALID_MOVE",
    "DISK_LIMIT",
    "OUT_OF_RANGE",
];

impl Error {
    /// Something is the matter with a path.
    pub(crate) fn file(path: &FilePath, code: Code, reason: &'static str, what: &str) -> Self {
        Self::File { code, reason, message: format!("`{}` {what}", path.as_str()) }
    }

    /// What a sandbox refused to do with a file.
    pub(crate) fn of_sandbox(status: Status) -> Self {
        let details = status.get_error_details();
        let told = details.error_info().map(|info| info.reason.as_str());
        let reason = FILE_REASONS.into_iter().find(|reason| Some(*reason) == told);
        match (reason, status.code()) {
            (Some(reason), code) => Self::File { code, reason, message: status.message().to_owned() },
            (None, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled) => {
                Self::Unavailable("the sandbox of the session does not answer".to_owned())
            }
            (None, _) => Self::Internal(anyhow::Error::new(status).context("files of a sandbox")),
        }
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        if is_unavailable(&error) {
            tracing::warn!(%error, "database of the session role");
            return Self::Unavailable(
                "the database of the session role does not answer or is busy".to_owned(),
            );
        }
        Self::Internal(anyhow::Error::new(error).context("database of the session role"))
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        // Its errors tell most of their causes, each of them, and not always the last one.
        let (told, root) = (error.to_string(), root_cause(&error));
        let told = if told.contains(&root) { told } else { format!("{told}: {root}") };
        tracing::warn!(error = told, "object store failed");
        Self::ObjectStore(anyhow::Error::msg(told))
    }
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Internal(anyhow::Error::new(error).context("spool of an execution's output"))
    }
}

impl Fault for Error {
    fn code(&self) -> Code {
        match self {
            Self::SessionNotFound(_) | Self::ExecutionNotFound(_) => Code::NotFound,
            Self::SessionExists(_) | Self::ExecutionExists(_) => Code::AlreadyExists,
            Self::SessionNotActive { .. }
            | Self::TemplateNotFound { .. }
            | Self::InstallRunning(_)
            | Self::ExecutionEnded { .. }
            | Self::ExecutionNotRunning { .. } => Code::FailedPrecondition,
            Self::QuotaExceeded(_) | Self::NoCapacity { .. } | Self::TooManyExecutions { .. } => {
                Code::ResourceExhausted
            }
            Self::CursorExpired { .. } | Self::OutOfRange { .. } => Code::OutOfRange,
            Self::File { code, .. } => *code,
            Self::FileNotKept(_) | Self::ArtifactNotFound { .. } => Code::NotFound,
            Self::PresigningNotSupported => Code::FailedPrecondition,
            Self::Invalid(_) | Self::InvalidPath { .. } | Self::ChecksumMismatch { .. } | Self::PageToken => {
                Code::InvalidArgument
            }
            Self::UploadBroken => Code::Aborted,
            Self::Unavailable(_) | Self::ObjectStore(_) => Code::Unavailable,
            Self::Internal(_) => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::SessionNotFound(_) => "SESSION_NOT_FOUND",
            Self::SessionExists(_) => "SESSION_EXISTS",
            Self::SessionNotActive { .. } => "SESSION_NOT_ACTIVE",
            Self::TemplateNotFound { .. } => "TEMPLATE_NOT_FOUND",
            Self::QuotaExceeded(_) => "QUOTA_EXCEEDED",
            Self::NoCapacity { .. } => "NO_CAPACITY",
            Self::InstallRunning(_) => "INSTALL_RUNNING",
            Self::ExecutionNotFound(_) => "EXECUTION_NOT_FOUND",
            Self::ExecutionExists(_) => "EXECUTION_EXISTS",
            Self::ExecutionEnded { .. } => "EXECUTION_ENDED",
            Self::ExecutionNotRunning { .. } => "EXECUTION_NOT_RUNNING",
            Self::TooManyExecutions { .. } => "TOO_MANY_EXECUTIONS",
            Self::CursorExpired { .. } => "CURSOR_EXPIRED",
            Self::File { reason, .. } => reason,
            Self::FileNotKept(_) => "FILE_NOT_FOUND",
            Self::ArtifactNotFound { .. } => "ARTIFACT_NOT_FOUND",
            Self::OutOfRange { .. } => "OUT_OF_RANGE",
            Self::ChecksumMismatch { .. } => "CHECKSUM_MISMATCH",
            Self::UploadBroken => "UPLOAD_BROKEN",
            Self::PresigningNotSupported => "PRESIGNING_NOT_SUPPORTED",
            Self::InvalidPath { .. } => "INVALID_PATH",
            Self::Invalid(_) => "INVALID_ARGUMENT",
            Self::PageToken => "PAGE_TOKEN_INVALID",
            Self::Unavailable(_) => "UNAVAILABLE",
            Self::ObjectStore(_) => "OBJECT_STORE_UNAVAILABLE",
            Self::Internal(_) => "INTERNAL",
        }
    }

    fn violations(&self) -> Vec<FieldViolation> {
        match self {
            Self::Invalid(violations) => violations.clone(),
            Self::InvalidPath { field, .. } => {
                vec![FieldViolation::new(*field, "value_error", self.to_string())]
            }
            Self::PageToken => vec![FieldViolation::new("page_token", "value_error", self.to_string())],
            _ => Vec::new(),
        }
    }

    fn metadata(&self) -> Vec<(String, String)> {
        match self {
            Self::NoCapacity { queue_position: Some(position), .. } => {
                vec![(QUEUE_POSITION.to_owned(), position.clone())]
            }
            _ => Vec::new(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoCapacity { retry_after, .. } => Some(*retry_after),
            Self::QuotaExceeded(_)
            | Self::TooManyExecutions { .. }
            | Self::Unavailable(_)
            | Self::ObjectStore(_) => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_database_is_a_reason_to_try_again() {
        let error = Error::from(DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::Timeout));
        assert_eq!((error.code(), error.retry_after()), (Code::Unavailable, Some(Duration::from_secs(1))));
    }
}
