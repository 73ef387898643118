//! Why a command failed, as the user reads it and as the exit code says it.

use std::{error::Error, io};

use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::table::plain;

/// The exit code for a request that is wrong.
const WRONG: u8 = 2;
/// The exit code for a failure of sandmesh, not of the user's code.
pub(super) const INFRASTRUCTURE: u8 = 125;
/// The exit code after Ctrl-C.
pub(super) const INTERRUPTED: u8 = 130;
/// The exit code when nobody reads the standard output any more: 128 + SIGPIPE.
const BROKEN_PIPE: u8 = 141;

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The request is wrong and was not sent.
    Usage(String),
    /// The server answered with an error.
    Refused(Box<Status>),
    /// The server cannot be reached; why.
    Unreachable(String),
    /// Something else that is not the user's fault; what, and what to do.
    Broken(String, Option<String>),
    /// Ctrl-C.
    Interrupted,
    /// Nobody reads the standard output any more.
    BrokenPipe,
    /// Several things failed, each by itself.
    Several(Vec<Failure>),
}

impl Failure {
    /// The request is wrong.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// Something broke.
    pub(super) fn broken(message: impl Into<String>) -> Self {
        Self::Broken(message.into(), None)
    }

    /// The standard output cannot be written.
    pub(super) fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::broken(format!("cannot write the standard output: {error}")),
        }
    }

    /// No failure, one, or several.
    pub(super) fn all(mut failures: Vec<Self>) -> Result<(), Self> {
        match failures.len() {
            0 => Ok(()),
            1 => failures.pop().map_or(Ok(()), Err),
            _ => Err(Self::Several(failures)),
        }
    }

    /// The exit code of the program.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => WRONG,
            Self::Refused(status) if status.code() == Code::InvalidArgument => WRONG,
            Self::Refused(_) | Self::Unreachable(_) | Self::Broken(..) => INFRASTRUCTURE,
            Self::Interrupted => INTERRUPTED,
            Self::BrokenPipe => BROKEN_PIPE,
            Self::Several(failures) => failures.iter().map(Self::exit_code).max().unwrap_or(INFRASTRUCTURE),
        }
    }

    /// What the user reads: one line for the error, and one for what to do about it. `url` is where the
    /// server was looked for.
    pub(super) fn lines(&self, url: &str) -> Vec<String> {
        let (message, hint) = match self {
            Self::Usage(message) => (message.clone(), None),
            Self::Refused(status) => (refusal(status), remedy(status, url)),
            Self::Unreachable(cause) => (
                format!("cannot reach {url}: {cause}"),
                Some("is `sandmesh serve` running? set SANDMESH_URL".to_owned()),
            ),
            Self::Broken(message, hint) => (message.clone(), hint.clone()),
            Self::Interrupted => ("interrupted".to_owned(), None),
            Self::BrokenPipe => return Vec::new(),
            Self::Several(failures) => {
                return failures.iter().flat_map(|failure| failure.lines(url)).collect();
            }
        };
        let error = format!("error: {}", plain(&message));
        std::iter::once(error).chain(hint.map(|hint| format!("hint: {}", plain(&hint)))).collect()
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if status.code() == Code::Unavailable && reason(&status).is_none() {
            return Self::Unreachable(root_cause(&status));
        }
        Self::Refused(Box::new(status))
    }
}

/// The server's reason, for example `SESSION_NOT_FOUND`; `None` when the status is not the server's.
pub(super) fn reason(status: &Status) -> Option<String> {
    sandmesh_mesh::reason_of(status).filter(|reason| !reason.is_empty())
}

/// Whether the same call may do better in a moment: the connection broke, or the server is starting.
pub(super) fn is_transient(status: &Status) -> bool {
    let of_transport =
        matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled | Code::DeadlineExceeded);
    status.code() == Code::Unavailable || (of_transport && reason(status).is_none())
}

fn root_cause(status: &Status) -> String {
    let mut cause: Option<&(dyn Error + 'static)> = status.source();
    while let Some(next) = cause.and_then(Error::source) {
        cause = Some(next);
    }
    match cause {
        Some(cause) => cause.to_string().to_lowercase(),
        None => status.message().to_owned(),
    }
}

/// The message, the reason and the fields that are wrong, in one line; what the message says already is
/// not said again.
fn refusal(status: &Status) -> String {
    let message = match status.message() {
        "" => status.code().description().to_lowercase(),
        message => message.to_owned(),
    };
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    let fields: Vec<String> = violations
        .iter()
        .filter(|violation| !message.contains(&violation.description))
        .map(|violation| format!("{}: {}", violation.field, violation.description))
        .collect();
    let reason = reason(status).map(|reason| format!(" ({reason})")).unwrap_or_default();
    let separator = if fields.is_empty() { "" } else { ": " };
    format!("{message}{reason}{separator}{}", fields.join("; "))
}

fn remedy(status: &Status, url: &str) -> Option<String> {
    let known = match reason(status).as_deref() {
        Some("TEMPLATE_NOT_FOUND") => "see `sandmesh template list`",
        Some("SESSION_NOT_FOUND" | "SESSION_NOT_ACTIVE") => "see `sandmesh session list`",
        Some(_) if status.code() == Code::Unauthenticated => "set SANDMESH_API_KEY",
        Some(_) => return None,
        None if status.code() == Code::Unauthenticated => "set SANDMESH_API_KEY",
        None => return Some(format!("is {url} the gateway of a `sandmesh serve`?")),
    };
    Some(known.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn refused(code: Code, reason: &str, fields: &[(&str, &str)]) -> Failure {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, "sandmesh", HashMap::<String, String>::new());
        for (field, description) in fields {
            details.add_bad_request_violation(*field, *description);
        }
        Status::with_error_details(code, "no good", details).into()
    }

    #[test]
    fn a_refusal_is_one_line_with_reason_and_fields() {
        let fields = [("spec.timeout_seconds", "must be at most 3600"), ("spec.code", "is required")];
        let failure = refused(Code::InvalidArgument, "INVALID_ARGUMENT", &fields);
        assert_eq!(
            failure.lines("http://x"),
            ["error: no good (INVALID_ARGUMENT): spec.timeout_seconds: must be at most 3600; \
              spec.code: is required"]
        );
        assert_eq!(failure.exit_code(), 2);
    }

    #[test]
    fn a_field_that_the_message_names_is_not_named_twice() {
        let failure = refused(Code::InvalidArgument, "INVALID_ARGUMENT", &[("spec", "no good")]);
        assert_eq!(failure.lines("http://x"), ["error: no good (INVALID_ARGUMENT)"]);
    }

    #[test]
    fn a_known_reason_brings_its_hint() {
        let failure = refused(Code::NotFound, "SESSION_NOT_FOUND", &[]);
        assert_eq!(failure.lines("http://x")[1], "hint: see `sandmesh session list`");
        assert_eq!(failure.exit_code(), 125);
    }

    #[test]
    fn an_unavailable_without_reason_means_unreachable() {
        let lines = Failure::from(Status::unavailable("tcp connect error")).lines("http://x:1");
        assert_eq!(lines[0], "error: cannot reach http://x:1: tcp connect error");
        assert!(lines[1].contains("SANDMESH_URL"));
        let overloaded = refused(Code::Unavailable, "NO_CAPACITY", &[]);
        assert!(overloaded.lines("http://x:1")[0].contains("NO_CAPACITY"));
    }

    #[test]
    fn an_answer_of_the_server_is_not_asked_for_twice() {
        assert!(is_transient(&Status::unknown("h2 protocol error")));
        assert!(is_transient(&Status::unavailable("gone")));
        assert!(!is_transient(&Status::not_found("no")));
        let Failure::Refused(internal) = refused(Code::Internal, "INTERNAL", &[]) else {
            panic!("not refused")
        };
        assert!(!is_transient(&internal));
    }

    #[test]
    fn an_error_cannot_drive_the_terminal() {
        let failure = Failure::broken("evil \u{1b}[2J\nline");
        assert_eq!(failure.lines("http://x"), ["error: evil \\u{1b}[2J\\nline"]);
    }
}
