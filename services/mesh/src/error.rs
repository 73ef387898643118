//! From a role's error to a gRPC status: one place, one shape.
//!
//! Every status carries `google.rpc.ErrorInfo` with a reason to switch on; bad fields travel in
//! `google.rpc.BadRequest`, and the kind of each as `violation.<field>` in the info's metadata.

use std::{collections::HashMap, error::Error, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of every `ErrorInfo` of the mesh.
pub const DOMAIN: &str = "sandmesh";

// An error travels in HTTP headers, and clients take some 16 KiB of these. It is three times as long there
// where it is not ASCII. A request with more mistakes than fit is told the first of them.
const MAX_MESSAGE: usize = 768;
const MAX_VIOLATIONS: usize = 24;
const MAX_FIELD: usize = 64;
const MAX_DESCRIPTION: usize = 160;

/// One field of a request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The path of the field in the message, for example `spec.timeout_seconds`.
    pub field: String,
    /// What kind of mistake it is, for example `greater_than_equal`.
    pub kind: &'static str,
    /// What is wrong and what would be right, lowercase.
    pub description: String,
}

impl FieldViolation {
    /// Names a field and what is wrong with it.
    pub fn new(field: impl Into<String>, kind: &'static str, description: impl Into<String>) -> Self {
        Self { field: field.into(), kind, description: description.into() }
    }
}

/// The error of a role, as far as a caller may know it.
pub trait Fault: Error {
    /// The gRPC code. The message of an `Internal` error is logged and not sent.
    fn code(&self) -> Code;

    /// The reason, for example `SESSION_NOT_FOUND`: what clients switch on.
    fn reason(&self) -> &'static str;

    /// The fields that are wrong.
    fn violations(&self) -> Vec<FieldViolation> {
        Vec::new()
    }

    /// More for the caller to switch on.
    fn metadata(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// When to try again.
    fn retry_after(&self) -> Option<Duration> {
        None
    }
}

/// Makes the status of an error; logs it when it is internal.
#[expect(clippy::needless_pass_by_value, reason = "reads well in map_err")]
pub fn status(fault: impl Fault) -> Status {
    let message = if fault.code() == Code::Internal {
        tracing::error!(error = chain(&fault), reason = fault.reason(), "internal error");
        "internal error".to_owned()
    } else {
        fault.to_string()
    };
    Status::with_error_details(fault.code(), cut(&message, MAX_MESSAGE), details(&fault))
}

fn details(fault: &impl Fault) -> ErrorDetails {
    let mut metadata: HashMap<String, String> = fault.metadata().into_iter().collect();
    let mut details = ErrorDetails::new();
    for violation in fault.violations().into_iter().take(MAX_VIOLATIONS) {
        let field = cut(&violation.field, MAX_FIELD);
        metadata.insert(format!("violation.{field}"), violation.kind.to_owned());
        details.add_bad_request_violation(field, cut(&violation.description, MAX_DESCRIPTION));
    }
    details.set_error_info(fault.reason(), DOMAIN, metadata);
    if let Some(delay) = fault.retry_after() {
        details.set_retry_info(Some(delay));
    }
    details
}

/// The text, or its beginning when it is longer than `most` bytes.
fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    format!("{}...", &text[..text.floor_char_boundary(most)])
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The reason that a status carries; `None` when it is not one of ours.
#[must_use]
pub fn reason_of(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the password is hunter2")]
    struct Broken(Code);

    impl Fault for Broken {
        fn code(&self) -> Code {
            self.0
        }
        fn reason(&self) -> &'static str {
            "BROKEN"
        }
        fn violations(&self) -> Vec<FieldViolation> {
            vec![FieldViolation::new("a.b", "missing", "`a.b` is required")]
        }
    }

    #[test]
    fn a_status_carries_reason_and_fields() {
        let status = status(Broken(Code::InvalidArgument));
        assert_eq!(reason_of(&status).as_deref(), Some("BROKEN"));
        let bad = status.get_details_bad_request().unwrap();
        assert_eq!(bad.field_violations[0].field, "a.b");
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.metadata["violation.a.b"], "missing");
    }

    #[test]
    fn an_error_fits_into_headers_however_long_its_parts_are() {
        #[derive(Debug, thiserror::Error)]
        #[error("{}", "\u{e9}".repeat(100_000))]
        struct Long;
        impl Fault for Long {
            fn code(&self) -> Code {
                Code::InvalidArgument
            }
            fn reason(&self) -> &'static str {
                "LONG"
            }
            fn violations(&self) -> Vec<FieldViolation> {
                let field = |n: u32| format!("{n}{}", "f".repeat(10_000));
                (0..1000).map(|n| FieldViolation::new(field(n), "value_error", "d".repeat(10_000))).collect()
            }
        }
        let headers = status(Long).into_http::<()>().into_parts().0.headers;
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        assert!(bytes < 16 * 1024, "{bytes}");
    }

    #[test]
    fn an_internal_error_does_not_show_its_text() {
        assert!(!status(Broken(Code::Internal)).message().contains("hunter2"));
    }
}
