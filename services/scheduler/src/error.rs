//! What can go wrong in the scheduler, and what a caller is told.

use std::time::Duration;

use sandmesh_mesh::{Fault, FieldViolation};
use tonic::{Code, Status};

use crate::placement::Refusals;

/// So many nodes are named that refuse.
const NAMED: usize = 16;

/// When a caller that found no room is to try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The latest that it is told to.
const RETRY_AFTER_MOST: Duration = Duration::from_secs(30);

/// Behind so many others it is to try a [`RETRY_AFTER`] later.
const SERVED_PER_RETRY: usize = 20;

/// An error of the scheduler.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    /// Fields of the request are wrong.
    #[error("invalid request: {}", .0.description)]
    Invalid(FieldViolation),
    /// A page token that this service did not make.
    #[error("the page token was not made by this service")]
    PageToken,
    /// No node has it.
    #[error("sandbox `{0}` not found")]
    NotFound(String),
    /// There is no such node.
    #[error("node `{0}` not found")]
    NodeNotFound(String),
    /// Every node that could run it is full or away.
    #[error("no node has room for sandbox `{id}`: {}", full(.refusals, *.before))]
    NoCapacity {
        /// The sandbox.
        id: String,
        /// What the nodes said.
        refusals: Refusals,
        /// How many others wait for room who came before.
        before: usize,
    },
    /// No node can run it, now or later.
    #[error("no node can run sandbox `{id}`: {}", list(.refusals))]
    NoSuitableNode {
        /// The sandbox.
        id: String,
        /// What the nodes said.
        refusals: Refusals,
    },
    /// Nothing is known yet, so nothing can be said.
    #[error("no node has registered yet")]
    NoNodes,
    /// A node that matters cannot be asked.
    #[error("node `{node_id}` cannot be asked: {why}")]
    NodeUnavailable {
        /// The node.
        node_id: String,
        /// What happened.
        why: String,
    },
    /// There are as many nodes as the scheduler takes.
    #[error("there are {0} nodes already, as `scheduler.max_nodes` allows")]
    TooManyNodes(u32),
    /// Machines are not to join.
    #[error("machines cannot join: setting `scheduler.join.listen` does not say where")]
    JoinDisabled,
    /// A token that does not work.
    #[error("the token is not of this mesh, or too old: make another with `sandmesh nodes token`")]
    JoinToken,
    /// A machine wants to be a node that is there.
    #[error(
        "there is a node `{0}`: give this machine another name in `agent.node_id`, or wait until that node is lost"
    )]
    NodeExists(String),
    /// A machine that was a node.
    #[error(
        "node `{0}` was removed from the mesh: join again with a token, without the `identity.json` of before"
    )]
    NodeRemoved(String),
    /// A node that is there and did not join.
    #[error("node `{0}` is there and did not join: stop its agent, and remove it when it is lost")]
    NodePresent(String),
    /// What is to be remembered cannot be.
    #[error("who is a node cannot be noted: {0}")]
    Notes(String),
    /// A node speaks for another.
    #[error("only node `{0}` itself may say this")]
    NotThatNode(String),
    /// A watcher was too slow and missed changes.
    #[error("the watch fell behind by {0} changes; list again")]
    WatchLagged(u64),
    /// What the node answered is the caller's to know.
    #[error("{}", .0.message())]
    Node(Box<Status>),
}

/// What some nodes say, and how many more there are: an error has to fit into a header.
fn list(refusals: &Refusals) -> String {
    if is_nobody(refusals) {
        return "no node has registered yet".to_owned();
    }
    let named = refusals.named.iter().take(NAMED);
    let mut texts: Vec<String> =
        named.map(|refusal| format!("`{}`: {}", refusal.node_id, refusal.why)).collect();
    let others = refusals.others + refusals.named.len().saturating_sub(NAMED);
    if others > 0 {
        texts.push(format!("{others} more nodes refuse"));
    }
    texts.join("; ")
}

fn is_nobody(refusals: &Refusals) -> bool {
    refusals.named.is_empty() && refusals.others == 0
}

fn full(refusals: &Refusals, before: usize) -> String {
    match (is_nobody(refusals), before) {
        (_, 0) => list(refusals),
        (true, before) => format!("{before} others wait for it"),
        (false, before) => format!("{}; {before} others wait for it", list(refusals)),
    }
}

impl Error {
    /// Every node that was asked refused. Where there was none, or one that may change its mind, to wait may
    /// help.
    pub(crate) fn refused(id: &str, refusals: Refusals) -> Self {
        let id = id.to_owned();
        let may_change =
            refusals.others_may_change || refusals.named.iter().any(|refusal| refusal.may_change);
        match is_nobody(&refusals) || may_change {
            true => Self::NoCapacity { id, refusals, before: 0 },
            false => Self::NoSuitableNode { id, refusals },
        }
    }

    /// Of somebody who waited for room behind so many others.
    pub(crate) fn behind(mut self, others: usize) -> Self {
        if let Self::NoCapacity { before, .. } = &mut self {
            *before = others.max(*before);
        }
        self
    }

    /// As it travels. What a node answered goes on unchanged, with its details.
    pub(crate) fn into_status(self) -> Status {
        match self {
            Self::Node(mut status) => {
                // That the node's call was not sent says nothing about the caller's.
                sandmesh_mesh::forget_not_sent(&mut status);
                *status
            }
            other => sandmesh_mesh::status(other),
        }
    }
}

impl Fault for Error {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) | Self::PageToken => Code::InvalidArgument,
            Self::NotFound(_) | Self::NodeNotFound(_) => Code::NotFound,
            Self::NoCapacity { .. } | Self::TooManyNodes(_) => Code::ResourceExhausted,
            Self::NoSuitableNode { .. } => Code::FailedPrecondition,
            Self::NoNodes | Self::NodeUnavailable { .. } => Code::Unavailable,
            Self::JoinDisabled => Code::FailedPrecondition,
            Self::JoinToken => Code::Unauthenticated,
            Self::NodeExists(_) => Code::AlreadyExists,
            Self::NotThatNode(_) | Self::NodeRemoved(_) => Code::PermissionDenied,
            Self::NodePresent(_) => Code::FailedPrecondition,
            Self::Notes(..) => Code::Internal,
            Self::WatchLagged(_) => Code::Aborted,
            Self::Node(status) => status.code(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_ARGUMENT",
            Self::PageToken => "PAGE_TOKEN_INVALID",
            Self::NotFound(_) => "SANDBOX_NOT_FOUND",
            Self::NodeNotFound(_) => "NODE_NOT_FOUND",
            Self::NoCapacity { .. } => "NO_CAPACITY",
            Self::TooManyNodes(_) => "TOO_MANY_NODES",
            Self::NoSuitableNode { .. } => "NODE_UNSUITABLE",
            Self::NoNodes | Self::NodeUnavailable { .. } => "NODE_UNAVAILABLE",
            Self::JoinDisabled => "JOIN_DISABLED",
            Self::JoinToken => "JOIN_TOKEN_INVALID",
            Self::NodeExists(_) => "NODE_ALREADY_EXISTS",
            Self::NotThatNode(_) => "NODE_MISMATCH",
            Self::NodeRemoved(_) => "NODE_REMOVED",
            Self::NodePresent(_) => "NODE_PRESENT",
            Self::Notes(..) => "INTERNAL",
            Self::WatchLagged(_) => "WATCH_LAGGED",
            Self::Node(_) => "INTERNAL",
        }
    }

    fn violations(&self) -> Vec<FieldViolation> {
        match self {
            Self::Invalid(violation) => vec![violation.clone()],
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

    fn metadata(&self) -> Vec<(String, String)> {
        match self {
            Self::NoCapacity { before, .. } => {
                vec![("queue_position".to_owned(), before.saturating_add(1).to_string())]
            }
            _ => Vec::new(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoNodes => Some(RETRY_AFTER),
            // The more wait, the later there is room.
            Self::NoCapacity { before, .. } => {
                let longer = u32::try_from(before / SERVED_PER_RETRY).unwrap_or(u32::MAX);
                Some(RETRY_AFTER.saturating_mul(longer.saturating_add(1)).min(RETRY_AFTER_MOST))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Refusal;

    #[test]
    fn what_thousands_of_nodes_say_fits_into_a_header() {
        let why = "it has less than 107374182400 bytes of memory in all".to_owned();
        let say = |n: usize| Refusal { node_id: format!("node-{n:05}"), why: why.clone(), may_change: false };
        let named = |count| (0..count).map(say).collect();
        for refusals in [
            Refusals::of(named(10_000)),
            Refusals { named: named(16), others: 9984, others_may_change: false },
        ] {
            let told = Error::refused("sbx_0", refusals).to_string();
            assert!(told.len() < 2000 && told.ends_with("; 9984 more nodes refuse"), "{told}");
        }
    }

    #[test]
    fn one_of_many_that_may_change_its_mind_is_worth_waiting_for() {
        let refused = |others_may_change| {
            Error::refused("sbx_0", Refusals { named: Vec::new(), others: 1, others_may_change })
        };
        assert!(matches!(refused(true), Error::NoCapacity { .. }));
        assert!(matches!(refused(false), Error::NoSuitableNode { .. }));
    }
}
