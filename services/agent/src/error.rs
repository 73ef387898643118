//! What can go wrong in the agent, and what a caller is told.

use std::{sync::Arc, time::Duration};

use sandmesh_mesh::{Fault, FieldViolation};
use tonic::Code;

use crate::sandbox::SandboxId;

/// An error of the agent. Cheap to clone, as several callers may wait for one outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    /// Fields of the request are wrong.
    #[error("invalid request: {}", describe(.0))]
    Invalid(Vec<FieldViolation>),
    /// A page token that this service did not make.
    #[error("the page token was not made by this service")]
    PageToken,
    /// The id is not known here.
    #[error("sandbox `{0}` not found")]
    NotFound(String),
    /// The id is taken by a sandbox with another spec.
    #[error("sandbox `{0}` exists with another spec")]
    Exists(SandboxId),
    /// The id is taken by a sandbox that died.
    #[error("sandbox `{0}` exists and is dead: {1}")]
    Dead(SandboxId, String),
    /// The node takes no more.
    #[error("node `{node}` is full: {what}")]
    Full {
        /// The node.
        node: String,
        /// What there is no more of, and how much there is.
        what: String,
    },
    /// The node cannot run this, now or later.
    #[error("node `{node}` cannot run sandbox `{id}`: {why}")]
    Unsupported {
        /// The node.
        node: String,
        /// The sandbox.
        id: SandboxId,
        /// What is missing.
        why: String,
    },
    /// The sandbox did not start. Nothing is left of it.
    #[error("sandbox `{id}` did not start: {why}")]
    StartFailed {
        /// The sandbox.
        id: SandboxId,
        /// What it said, with the end of its log.
        why: String,
    },
    /// The image of a sandbox cannot be had. Nothing is left of the sandbox.
    #[error("image `{image}` cannot be had: {problem}")]
    NoImage {
        /// The image.
        image: String,
        /// Why not.
        problem: ImageProblem,
    },
    /// A warm sandbox could not be given to a session, and is of no more use.
    #[error("warm sandbox `{id}` cannot be claimed: {why}")]
    NotClaimed {
        /// The warm sandbox.
        id: SandboxId,
        /// What it said.
        why: String,
    },
    /// The sandbox could not be destroyed; to try again is right.
    #[error("sandbox `{id}` could not be destroyed: {why}")]
    DestroyFailed {
        /// The sandbox.
        id: SandboxId,
        /// What went wrong.
        why: String,
    },
    /// An installation failed; nothing is left of it.
    #[error("{message}")]
    InstallFailed {
        /// How it ended, and what the installer said.
        message: String,
        /// It was stopped at its time limit.
        timed_out: bool,
    },
    /// Packages cannot be installed on this node.
    #[error("node `{node}` cannot install packages: {why}")]
    NoInstaller {
        /// The node.
        node: String,
        /// What is missing.
        why: String,
    },
    /// A sandbox could not be shown other packages; to try again is right.
    #[error("sandbox `{id}` cannot be shown its packages: {why}")]
    NotMounted {
        /// The sandbox.
        id: SandboxId,
        /// What went wrong.
        why: String,
    },
    /// The agent ends: another one, or this one after its start, can.
    #[error("the agent of node `{0}` is shutting down")]
    Stopping(String),
    /// A watcher was too slow and missed changes.
    #[error("the watch fell behind by {0} changes; list again")]
    WatchLagged(u64),
    /// Nobody's fault but ours.
    #[error(transparent)]
    Internal(#[from] Arc<anyhow::Error>),
}

/// Why an image cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ImageProblem {
    /// The template names none, and neither does the node.
    #[error("the template names no image, and the node has none for this case: set `agent.{0}.image`")]
    Unnamed(&'static str),
    /// It cannot be the name of one.
    #[error("this is not the name of an image, such as `registry.example/python:3.12`")]
    Invalid,
    /// It is not there, and is not pulled: why, and what to do.
    #[error("it is not on the node, {0}")]
    Absent(String),
    /// Its registry does not have it.
    #[error("its registry does not have it: {0}")]
    NotFound(String),
    /// Its registry does not give it.
    #[error(
        "it does not exist, or its registry does not give it without a login (pull it on the node then): {0}"
    )]
    Denied(String),
    /// There is no room for it.
    #[error("the node's disk has no room for it: {0}")]
    NoSpace(String),
    /// It took too long.
    #[error("it was not there within {}s (`agent.docker.pull_timeout`)", .0.as_secs())]
    TimedOut(Duration),
    /// Its registry cannot be reached.
    #[error("its registry cannot be reached from the node: {0}")]
    Unreachable(String),
    /// The engine did not do it.
    #[error("{0}")]
    Engine(String),
}

impl ImageProblem {
    fn reason(&self) -> &'static str {
        match self {
            Self::Unnamed(_) | Self::Invalid => "IMAGE_INVALID",
            Self::Absent(_) | Self::NotFound(_) => "IMAGE_NOT_FOUND",
            Self::Denied(_) => "IMAGE_DENIED",
            Self::NoSpace(_) => "IMAGE_NO_SPACE",
            Self::TimedOut(_) => "IMAGE_TIMEOUT",
            Self::Unreachable(_) => "REGISTRY_UNREACHABLE",
            Self::Engine(_) => "IMAGE_FAILED",
        }
    }
}

impl Error {
    /// An unexpected error, whose text is logged and not sent.
    pub(crate) fn internal(error: impl Into<anyhow::Error>) -> Self {
        Self::Internal(Arc::new(error.into()))
    }

    /// An installation failed by itself.
    pub(crate) fn install_failed(message: impl Into<String>) -> Self {
        Self::InstallFailed { message: message.into(), timed_out: false }
    }
}

fn describe(violations: &[FieldViolation]) -> String {
    let texts: Vec<&str> = violations.iter().map(|v| v.description.as_str()).collect();
    texts.join("; ")
}

impl Fault for Error {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) | Self::PageToken => Code::InvalidArgument,
            Self::NotFound(_) => Code::NotFound,
            Self::Exists(_) | Self::Dead(..) => Code::AlreadyExists,
            Self::Full { .. } => Code::ResourceExhausted,
            Self::Unsupported { .. }
            | Self::StartFailed { .. }
            | Self::NotClaimed { .. }
            | Self::NoImage { .. }
            | Self::InstallFailed { .. }
            | Self::NoInstaller { .. } => Code::FailedPrecondition,
            Self::DestroyFailed { .. } | Self::NotMounted { .. } | Self::Stopping(_) => Code::Unavailable,
            Self::WatchLagged(_) => Code::Aborted,
            Self::Internal(_) => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_ARGUMENT",
            Self::PageToken => "PAGE_TOKEN_INVALID",
            Self::NotFound(_) => "SANDBOX_NOT_FOUND",
            Self::Exists(_) => "SANDBOX_EXISTS",
            Self::Dead(..) => "SANDBOX_DEAD",
            Self::Full { .. } => "NO_CAPACITY",
            Self::Unsupported { .. } => "NODE_UNSUITABLE",
            Self::StartFailed { .. } => "SANDBOX_START_FAILED",
            Self::NotClaimed { .. } => "SANDBOX_NOT_CLAIMED",
            Self::NoImage { problem, .. } => problem.reason(),
            Self::InstallFailed { .. } => "INSTALL_FAILED",
            Self::NoInstaller { .. } => "NO_INSTALLER",
            Self::DestroyFailed { .. } | Self::NotMounted { .. } | Self::Stopping(_) => "UNAVAILABLE",
            Self::WatchLagged(_) => "WATCH_LAGGED",
            Self::Internal(_) => "INTERNAL",
        }
    }

    fn violations(&self) -> Vec<FieldViolation> {
        match self {
            Self::Invalid(violations) => violations.clone(),
            Self::PageToken => {
                vec![FieldViolation::new(
                    "page_token",
                    "value_error",
                    "the page token was not made by this service",
                )]
            }
            _ => Vec::new(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        matches!(self, Self::Full { .. }).then_some(Duration::from_secs(1))
    }
}
