//! The one table from gRPC status to HTTP status, and the one JSON error body.
//!
//! Everything that can go wrong is a gRPC status first: what a role answers, and what the edge itself
//! refuses ([`Edge`]). No other module names an HTTP error status. The request id is not known here; the
//! middleware in `request.rs` writes the body when the response leaves.

mod fields;
mod solutions;

use std::{collections::HashMap, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use sandmesh_mesh::{Fault, status};
use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use utoipa::ToSchema;

use fields::Loc;
pub(crate) use fields::Violation;

/// The body of every error.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// What clients switch on, for example `Sandbox.SessionNotFound`: the reason of the gRPC error.
    #[schema(example = "Sandbox.SessionNotFound")]
    pub(crate) error_code: String,
    /// What failed on what.
    #[schema(example = "session `sess_20260102_0a1b2c3d` not found")]
    pub(crate) description: String,
    /// With status 422 the fields that are wrong, otherwise a text that may be empty.
    pub(crate) detail: Detail,
    /// What to do about it.
    pub(crate) solution: String,
    /// The id of the request, to find it in logs.
    pub(crate) request_id: String,
    /// The execution that goes on although the request ended; only with status 408.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) execution_id: Option<String>,
    /// Where in the queue for room the request was when it gave up; only with `Sandbox.NoCapacity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) queue_position: Option<u64>,
}

/// More about an error.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Detail {
    /// In words.
    Text(String),
    /// The fields that are wrong.
    Fields(Vec<Violation>),
}

/// An error on its way to a REST client.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: Box<ErrorBody>,
    retry_after: Option<u64>,
}

impl ApiError {
    /// Fields of a request are wrong, found at the edge.
    pub(crate) fn invalid(violations: Vec<Violation>) -> Self {
        Self::new(Code::InvalidArgument, "INVALID_ARGUMENT", summary(&violations), Detail::Fields(violations))
    }

    /// One field of a request is wrong, found at the edge.
    pub(crate) fn field(violation: Violation) -> Self {
        Self::invalid(vec![violation])
    }

    /// No byte of a range is there.
    pub(crate) fn range_not_satisfiable(size: u64) -> Self {
        let description = format!("the range begins after the end of the file, which has {size} bytes");
        Self::new(Code::OutOfRange, "OUT_OF_RANGE", description, Detail::Text(String::new()))
    }

    /// With the fields below one of the body as the body itself: the request is for that alone.
    pub(crate) fn only(mut self, field: &str) -> Self {
        if let Detail::Fields(violations) = &mut self.body.detail {
            for violation in violations.iter_mut().filter(|one| one.loc.get(1) == Some(&Loc::from(field))) {
                violation.loc.remove(1);
            }
            self.body.description = summary(violations);
        }
        self
    }

    /// The body, with the id of the request that failed.
    pub(crate) fn body(&self, request_id: &str) -> ErrorBody {
        ErrorBody { request_id: request_id.to_owned(), ..ErrorBody::clone(&self.body) }
    }

    fn new(code: Code, reason: &str, description: String, detail: Detail) -> Self {
        let body = ErrorBody {
            error_code: error_code(reason),
            description: fields::brief(description),
            solution: solutions::solution(code, reason).to_owned(),
            request_id: String::new(),
            execution_id: None,
            queue_position: None,
            detail,
        };
        let status = http_status(code, reason, matches!(body.detail, Detail::Fields(_)));
        Self { status, body: Box::new(body), retry_after: None }
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let code = status.code();
        let (reason, description) = told(&status, &details);
        let metadata = details.error_info().map(|info| info.metadata.clone()).unwrap_or_default();
        let detail = match fields::violations(&details, &metadata) {
            violations if violations.is_empty() || code != Code::InvalidArgument => text(&metadata),
            violations => Detail::Fields(violations),
        };
        let description = match &detail {
            Detail::Fields(violations) => summary(violations),
            Detail::Text(_) => description,
        };
        let mut error = Self::new(code, &reason, description, detail);
        error.body.execution_id = metadata.get("execution_id").cloned();
        error.body.queue_position = metadata.get("queue_position").and_then(|position| position.parse().ok());
        let delay = details.retry_info().and_then(|info| info.retry_delay);
        error.retry_after = retry_after(error.status, delay);
        error
    }
}

impl From<Edge> for ApiError {
    fn from(edge: Edge) -> Self {
        status(edge).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// The table. A reason wins over its code.
fn http_status(code: Code, reason: &str, has_fields: bool) -> StatusCode {
    match (code, reason) {
        (_, "METHOD_NOT_ALLOWED") => StatusCode::METHOD_NOT_ALLOWED,
        (_, "SYNC_TIMEOUT" | "BODY_TIMEOUT") => StatusCode::REQUEST_TIMEOUT,
        (_, "CURSOR_EXPIRED") => StatusCode::GONE,
        (_, "PAYLOAD_TOO_LARGE" | "DISK_LIMIT") => StatusCode::PAYLOAD_TOO_LARGE,
        (_, "UNSUPPORTED_MEDIA_TYPE") => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        (_, "NO_CAPACITY") => StatusCode::SERVICE_UNAVAILABLE,
        (_, "OUT_OF_RANGE") => StatusCode::RANGE_NOT_SATISFIABLE,
        (_, "INVALID_PATH") => StatusCode::BAD_REQUEST,
        (Code::FailedPrecondition, "TEMPLATE_NOT_FOUND") => StatusCode::BAD_REQUEST,
        (Code::InvalidArgument, _) if has_fields => StatusCode::UNPROCESSABLE_ENTITY,
        (Code::InvalidArgument | Code::OutOfRange, _) => StatusCode::BAD_REQUEST,
        (Code::Unauthenticated, _) => StatusCode::UNAUTHORIZED,
        (Code::PermissionDenied, _) => StatusCode::FORBIDDEN,
        (Code::NotFound, _) => StatusCode::NOT_FOUND,
        (Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted, _) => StatusCode::CONFLICT,
        (Code::ResourceExhausted, _) => StatusCode::TOO_MANY_REQUESTS,
        (Code::Unimplemented, _) => StatusCode::NOT_IMPLEMENTED,
        (Code::Unavailable | Code::Cancelled, _) => StatusCode::SERVICE_UNAVAILABLE,
        (Code::DeadlineExceeded, _) => StatusCode::GATEWAY_TIMEOUT,
        (Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss, _) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The reason and message of a status, as far as a client may know them: what did not come from a role
/// with a reason (a broken connection, a decoder) may name addresses, so it is logged and not told.
fn told(status: &Status, details: &ErrorDetails) -> (String, String) {
    match details.error_info() {
        Some(info) if status.code() != Code::Internal => (info.reason.clone(), status.message().to_owned()),
        info => {
            tracing::warn!(code = ?status.code(), message = status.message(), "a call failed");
            let (reason, message) = solutions::generic(status.code());
            (info.map_or_else(|| reason.to_owned(), |info| info.reason.clone()), message.to_owned())
        }
    }
}

/// `SESSION_NOT_FOUND` is `Sandbox.SessionNotFound`.
fn error_code(reason: &str) -> String {
    let mut code = String::from("Sandbox.");
    for word in reason.split('_') {
        let mut letters = word.chars();
        code.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        code.extend(letters.map(|letter| letter.to_ascii_lowercase()));
    }
    code
}

fn summary(violations: &[Violation]) -> String {
    let text: Vec<String> = violations.iter().map(Violation::to_string).collect();
    text.join("; ")
}

/// What the reason says besides, in the order of its names.
fn text(metadata: &HashMap<String, String>) -> Detail {
    let known =
        |name: &str| ["execution_id", "queue_position"].contains(&name) || name.starts_with("violation.");
    let mut parts: Vec<String> = metadata
        .iter()
        .filter(|(name, _)| !known(name))
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    parts.sort_unstable();
    Detail::Text(parts.join(", "))
}

/// Seconds to wait, rounded up; a client that should come back is always told when.
fn retry_after(status: StatusCode, delay: Option<Duration>) -> Option<u64> {
    let comes_back = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let delay = delay.or_else(|| comes_back.then_some(Duration::from_secs(1)))?;
    u64::try_from(delay.as_millis().div_ceil(1000).max(1)).ok()
}

/// What the edge itself refuses.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Edge {
    /// There is nothing at this path.
    #[error("there is nothing at `{0}`")]
    RouteNotFound(String),
    /// There is no rpc of this name, or it is not for clients.
    #[error("there is no rpc `{0}`")]
    UnknownRpc(String),
    /// The path exists for other methods.
    #[error("`{path}` does not take {method}")]
    MethodNotAllowed {
        /// The method of the request.
        method: String,
        /// The path of the request.
        path: String,
    },
    /// The body is larger than the limit, in bytes.
    #[error("the request body is larger than {0} bytes")]
    PayloadTooLarge(u64),
    /// The body took too long to arrive.
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    /// The bodies that are in work take all the memory there is for them.
    #[error("the gateway is busy with other request bodies")]
    Busy,
    /// A role that sessions need does not serve.
    #[error("a part of the service that sessions need does not serve")]
    NotReady,
    /// The connection broke while the body arrived.
    #[error("the request body could not be read")]
    BodyUnreadable,
    /// The body is not declared as JSON. A web page of another origin can send other types without being
    /// asked for permission, so they are not taken.
    #[error("the request body must be declared as `content-type: application/json`")]
    UnsupportedMediaType,
    /// No key, or a wrong one.
    #[error("a valid API key is required")]
    Unauthenticated,
    /// A keyless gateway is asked for by a name that is not this machine's.
    #[error("this gateway has no API keys and answers to local names only, not to `{0}`")]
    HostNotAllowed(String),
    /// A web page of another origin calls.
    #[error("web pages of `{0}` may not call this gateway")]
    OriginNotAllowed(String),
    /// A quantity is not written as the API writes quantities.
    #[error("`{field}`: {problem}")]
    InvalidParameter {
        /// The field, as the client knows it.
        field: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The form of an upload cannot be read.
    #[error("{0}")]
    InvalidForm(String),
    /// A path segment is not UTF-8.
    #[error("the path is not valid UTF-8")]
    InvalidPath,
    /// A synchronous execution did not end in time; it goes on.
    #[error("execution `{execution_id}` did not end within {seconds} s; it goes on")]
    SyncTimeout {
        /// The execution.
        execution_id: String,
        /// How long was waited.
        seconds: u32,
    },
    /// Something that cannot be; the text is logged and not sent.
    #[error("{0}")]
    Internal(String),
}

impl Fault for Edge {
    fn code(&self) -> Code {
        match self {
            Self::RouteNotFound(_) => Code::NotFound,
            Self::UnknownRpc(_) | Self::MethodNotAllowed { .. } => Code::Unimplemented,
            Self::PayloadTooLarge(_) => Code::ResourceExhausted,
            Self::BodyTimeout | Self::SyncTimeout { .. } => Code::DeadlineExceeded,
            Self::Busy | Self::NotReady => Code::Unavailable,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::HostNotAllowed(_) | Self::OriginNotAllowed(_) => Code::PermissionDenied,
            Self::BodyUnreadable
            | Self::UnsupportedMediaType
            | Self::InvalidParameter { .. }
            | Self::InvalidForm(_)
            | Self::InvalidPath => Code::InvalidArgument,
            Self::Internal(_) => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::RouteNotFound(_) => "ROUTE_NOT_FOUND",
            Self::UnknownRpc(_) => "UNIMPLEMENTED",
            Self::MethodNotAllowed { .. } => "METHOD_NOT_ALLOWED",
            Self::PayloadTooLarge(_) => "PAYLOAD_TOO_LARGE",
            Self::BodyTimeout => "BODY_TIMEOUT",
            Self::Busy => "BUSY",
            Self::NotReady => "NOT_READY",
            Self::BodyUnreadable => "BODY_UNREADABLE",
            Self::UnsupportedMediaType => "UNSUPPORTED_MEDIA_TYPE",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::HostNotAllowed(_) => "HOST_NOT_ALLOWED",
            Self::OriginNotAllowed(_) => "ORIGIN_NOT_ALLOWED",
            Self::InvalidParameter { .. } => "INVALID_PARAMETER",
            Self::InvalidForm(_) => "INVALID_FORM",
            Self::InvalidPath => "INVALID_PATH",
            Self::SyncTimeout { .. } => "SYNC_TIMEOUT",
            Self::Internal(_) => "INTERNAL",
        }
    }

    fn metadata(&self) -> Vec<(String, String)> {
        match self {
            Self::SyncTimeout { execution_id, .. } => vec![("execution_id".into(), execution_id.clone())],
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
