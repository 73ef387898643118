//! Why something could not be done with a file, and the gRPC status it becomes.

use std::io;

use tonic::{Code, Status};

use super::beneath::RelPath;
use crate::status::status;

/// Why a call was refused.
#[derive(Debug)]
pub(super) enum Error {
    /// A field is wrong: which, and how.
    Invalid { field: &'static str, problem: String },
    /// Something stands in the way at this path.
    Refused { reason: Reason, path: String },
    /// The first byte that is wanted is beyond the end of the file.
    OutOfRange { path: String, size: u64 },
    /// There would be more than the disk limit.
    DiskLimit(u64),
    /// The operating system failed.
    Io { path: String, source: io::Error },
}

/// What stands in the way.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reason {
    NotFound,
    Exists,
    NotAFile,
    NotADirectory,
    NotEmpty,
    Denied,
    IntoItself,
}

impl Reason {
    fn words(self) -> (Code, &'static str, &'static str) {
        match self {
            Self::NotFound => (Code::NotFound, "FILE_NOT_FOUND", "not found"),
            Self::Exists => (Code::AlreadyExists, "FILE_EXISTS", "exists already"),
            Self::NotAFile => (Code::FailedPrecondition, "NOT_A_FILE", "is not a file"),
            Self::NotADirectory => (
                Code::FailedPrecondition,
                "NOT_A_DIRECTORY",
                "leads through something that is not a directory",
            ),
            Self::NotEmpty => {
                (Code::FailedPrecondition, "DIRECTORY_NOT_EMPTY", "is a directory with something in it")
            }
            Self::Denied => (Code::FailedPrecondition, "FILE_ACCESS_DENIED", "is closed to its owner"),
            Self::IntoItself => (Code::FailedPrecondition, "INVALID_MOVE", "would be moved into itself"),
        }
    }
}

impl Error {
    pub(super) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid { field, problem: problem.into() }
    }

    pub(super) fn refused(reason: Reason, path: &RelPath) -> Self {
        Self::Refused { reason, path: path.shown() }
    }

    /// What an error of a system call on a path means.
    pub(super) fn of(path: &RelPath, source: io::Error) -> Self {
        let reason = match source.raw_os_error() {
            Some(libc::ENOENT) => Reason::NotFound,
            Some(libc::EEXIST) => Reason::Exists,
            Some(libc::ENOTEMPTY) => Reason::NotEmpty,
            // Of a path with a link in it, too: links are not followed.
            Some(libc::ENOTDIR | libc::ELOOP | libc::EXDEV) => Reason::NotADirectory,
            // Where there is nobody behind a FIFO or a socket.
            Some(libc::EISDIR | libc::ENXIO | libc::ENODEV) => Reason::NotAFile,
            Some(libc::EACCES | libc::EPERM) => Reason::Denied,
            Some(libc::ENAMETOOLONG) => return Self::invalid("path", "is too long"),
            _ => return Self::Io { path: path.shown(), source },
        };
        Self::refused(reason, path)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid { field, problem } => {
                let message = format!("{field}: {problem}");
                status(Code::InvalidArgument, "INVALID_ARGUMENT", message, Some((field, &problem)))
            }
            Error::Refused { reason, path } => {
                let (code, reason, what) = reason.words();
                status(code, reason, format!("`{path}` {what}"), None)
            }
            Error::OutOfRange { path, size } => {
                status(Code::OutOfRange, "OUT_OF_RANGE", format!("`{path}` has {size} bytes"), None)
            }
            Error::DiskLimit(limit) => {
                let message = format!("the workspace would be larger than its limit of {limit} bytes");
                status(Code::ResourceExhausted, "DISK_LIMIT", message, None)
            }
            Error::Io { path, source } if source.kind() == io::ErrorKind::StorageFull => {
                let message = format!("`{path}` cannot be written: the disk of the node is full");
                status(Code::ResourceExhausted, "DISK_LIMIT", message, None)
            }
            Error::Io { path, source } => {
                tracing::error!(error = %source, "file operation failed");
                status(Code::Internal, "INTERNAL", format!("`{path}` cannot be used"), None)
            }
        }
    }
}
