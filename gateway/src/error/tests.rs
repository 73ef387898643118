use super::*;

#[derive(Debug, thiserror::Error)]
#[error("it is so")]
struct Fails(Code, &'static str, Vec<sandmesh_mesh::FieldViolation>);

impl Fault for Fails {
    fn code(&self) -> Code {
        self.0
    }
    fn reason(&self) -> &'static str {
        self.1
    }
    fn violations(&self) -> Vec<sandmesh_mesh::FieldViolation> {
        self.2.clone()
    }
}

fn answer(code: Code, reason: &'static str) -> ApiError {
    status(Fails(code, reason, Vec::new())).into()
}

#[test]
fn each_code_and_reason_has_its_http_status() {
    for (code, reason, expected) in [
        (Code::NotFound, "SESSION_NOT_FOUND", 404),
        (Code::AlreadyExists, "SESSION_EXISTS", 409),
        (Code::FailedPrecondition, "SESSION_NOT_ACTIVE", 409),
        (Code::FailedPrecondition, "TEMPLATE_IN_USE", 409),
        (Code::FailedPrecondition, "TEMPLATE_NOT_FOUND", 400),
        (Code::NotFound, "TEMPLATE_NOT_FOUND", 404),
        (Code::InvalidArgument, "PAGE_TOKEN_INVALID", 400),
        (Code::OutOfRange, "CURSOR_EXPIRED", 410),
        (Code::ResourceExhausted, "QUOTA_EXCEEDED", 429),
        (Code::ResourceExhausted, "NO_CAPACITY", 503),
        (Code::Unavailable, "NODE_UNAVAILABLE", 503),
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", 504),
        (Code::Unimplemented, "UNIMPLEMENTED", 501),
        (Code::Unauthenticated, "UNAUTHENTICATED", 401),
        (Code::Internal, "INTERNAL", 500),
    ] {
        assert_eq!(answer(code, reason).status.as_u16(), expected, "{code:?} {reason}");
    }
}

#[test]
fn the_reason_becomes_the_error_code() {
    let error = answer(Code::NotFound, "SESSION_NOT_FOUND");
    assert_eq!(error.body.error_code, "Sandbox.SessionNotFound");
    assert_eq!(error.body.description, "it is so");
    assert_eq!(error.body("req-1").request_id, "req-1");
}

#[test]
fn wrong_fields_are_listed_with_status_422() {
    let violation = sandmesh_mesh::FieldViolation::new("spec.timeout_seconds", "less_than_equal", "too long");
    let error: ApiError = status(Fails(Code::InvalidArgument, "INVALID_ARGUMENT", vec![violation])).into();
    assert_eq!(error.status.as_u16(), 422);
    let expected = Violation::new(&["body", "timeout"], "less_than_equal", "too long");
    assert_eq!(error.body.detail, Detail::Fields(vec![expected]));
    assert_eq!(error.body.description, "body.timeout: too long");
}

#[test]
fn an_internal_error_tells_nothing() {
    let error: ApiError = Edge::Internal("password is hunter2".into()).into();
    let body = serde_json::to_string(&error.body("r")).unwrap();
    assert!(!body.contains("hunter2"), "{body}");
    assert_eq!(error.status.as_u16(), 500);
}

#[test]
fn a_status_without_a_reason_does_not_show_its_message() {
    let error: ApiError = Status::unavailable("tcp connect error: 10.0.0.7:9000").into();
    assert_eq!(error.status.as_u16(), 503);
    assert_eq!(error.body.error_code, "Sandbox.Unavailable");
    assert!(!error.body.description.contains("10.0.0.7"));
}

#[test]
fn a_client_that_should_come_back_is_told_when() {
    assert_eq!(answer(Code::ResourceExhausted, "TOO_MANY_EXECUTIONS").retry_after, Some(1));
    assert_eq!(answer(Code::NotFound, "SESSION_NOT_FOUND").retry_after, None);
    let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(2300)));
    let status = Status::with_error_details(Code::Unavailable, "later", details);
    assert_eq!(ApiError::from(status).retry_after, Some(3));
}

#[test]
fn a_timeout_of_a_synchronous_run_names_the_execution() {
    let error: ApiError = Edge::SyncTimeout { execution_id: "exec_1".into(), seconds: 10 }.into();
    assert_eq!(error.status.as_u16(), 408);
    assert_eq!(error.body.execution_id.as_deref(), Some("exec_1"));
    assert_eq!(error.body.detail, Detail::Text(String::new()));
}
