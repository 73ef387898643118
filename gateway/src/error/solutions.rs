//! What a client can do about each reason, and what is told where no reason came along.

use tonic::Code;

/// What to do about an error.
pub(super) fn solution(code: Code, reason: &str) -> &'static str {
    for_reason(reason).unwrap_or_else(|| for_code(code))
}

fn for_reason(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "SESSION_NOT_FOUND" => "check the id, or create a session with POST /api/v1/sessions",
        "SESSION_EXISTS" => "choose another id, or leave `id` out to have one made",
        "EXECUTION_EXISTS" => "choose another id, or leave `execution_id` out to have one made",
        "INSTALL_RUNNING" => "wait until `dependency_install_status` is completed or failed",
        "SESSION_NOT_ACTIVE" => "create a new session: this one takes no more executions",
        "FILE_NOT_FOUND" => "list the files with GET /api/v1/sessions/{id}/files",
        "ARTIFACT_NOT_FOUND" => "list the artifacts with GET /api/v1/executions/{id}/artifacts",
        "FILE_EXISTS" => "choose another path, or send `overwrite: true` to replace a file",
        "NOT_A_FILE" | "NOT_A_DIRECTORY" => "list the files with `directories=true` to see what is there",
        "DIRECTORY_NOT_EMPTY" => "delete what is in it first",
        "DISK_LIMIT" => "delete files, or create a session with more `disk`",
        "INVALID_PATH" => "give a path below the workspace, such as `data/in.csv`",
        "INVALID_FORM" => "send multipart/form-data with one part named `file`",
        "CHECKSUM_MISMATCH" => "send the file again",
        "OUT_OF_RANGE" => "ask for a range within the size of the file",
        "PRESIGNING_NOT_SUPPORTED" => "read the file without `presigned`",
        "OBJECT_STORE_UNAVAILABLE" => {
            "try again later; GET /api/v1/health/detailed tells how the object store is"
        }
        "TEMPLATE_NOT_FOUND" => "choose a template from GET /api/v1/templates",
        "TEMPLATE_EXISTS" => "choose another id, or change the template with PUT",
        "TEMPLATE_NAME_EXISTS" => "choose another name",
        "TEMPLATE_IN_USE" => "end the sessions that use the template first",
        "EXECUTION_NOT_FOUND" => "check the id; executions are deleted together with their session",
        "EXECUTION_ENDED" => "nothing needs to be cancelled; read the result",
        "EXECUTION_NOT_RUNNING" => "send input only while the execution runs",
        "TOO_MANY_EXECUTIONS" => "wait for executions of this session to end, or use another session",
        "QUOTA_EXCEEDED" => "end sessions that are not needed any more, or ask for a higher quota",
        "NO_CAPACITY" => "try again later, or ask for less cpu, memory or disk",
        "CURSOR_EXPIRED" => "read from the beginning, or read the result of the execution",
        "PAGE_TOKEN_INVALID" => "use `next_page_token` of the page before as it is, or start without one",
        "INVALID_PARAMETER" => "write sizes as a number with Ki, Mi or Gi, such as `512Mi`",
        "PAYLOAD_TOO_LARGE" => "send less in one request",
        "BODY_TIMEOUT" | "BODY_UNREADABLE" | "BUSY" => "send the request again",
        "UNSUPPORTED_MEDIA_TYPE" => "send the header `content-type: application/json`",
        "UNAUTHENTICATED" => "send the header `authorization: Bearer KEY` with a key of this gateway",
        "HOST_NOT_ALLOWED" => "use http://127.0.0.1 or http://localhost, or set gateway.api_keys",
        "ORIGIN_NOT_ALLOWED" => "add the origin to gateway.cors_origins",
        "ROUTE_NOT_FOUND" | "METHOD_NOT_ALLOWED" => "see /docs for the paths and their methods",
        "SYNC_TIMEOUT" => "read the result later with GET /api/v1/executions/{execution_id}",
        "NOT_READY" => "see GET /api/v1/health/detailed for what does not serve",
        "NODE_NOT_FOUND" => "choose a node from GET /api/v1/nodes",
        "NODE_PRESENT" => "stop the agent of that node first",
        "JOIN_DISABLED" => "set `scheduler.join.listen`, as with `sandmesh serve --join-listen 0.0.0.0:8443`",
        "SANDBOX_NOT_FOUND" => "choose a sandbox from GET /api/v1/containers",
        "NODE_UNAVAILABLE" => "try again; create a new session if it goes on",
        _ => return None,
    })
}

fn for_code(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument | Code::OutOfRange => "correct the request; /docs describes every field",
        Code::NotFound => "check the id",
        Code::AlreadyExists => "choose another id",
        Code::FailedPrecondition | Code::Aborted => "read the present state and decide again",
        Code::ResourceExhausted | Code::Unavailable | Code::Cancelled => "try again later",
        Code::DeadlineExceeded => "try again; it may have been done already, so use a request id",
        Code::Unimplemented => "see /docs for what this version can do",
        Code::Unauthenticated | Code::PermissionDenied => "use a key that may do this",
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => {
            "report this with the request id; the log has more under it"
        }
    }
}

/// The reason and message of a status that did not bring any that may be told.
pub(super) fn generic(code: Code) -> (&'static str, &'static str) {
    match code {
        Code::InvalidArgument => ("INVALID_ARGUMENT", "the request is not valid"),
        Code::OutOfRange => ("OUT_OF_RANGE", "the request is out of range"),
        Code::NotFound => ("NOT_FOUND", "not found"),
        Code::AlreadyExists => ("ALREADY_EXISTS", "exists already"),
        Code::FailedPrecondition | Code::Aborted => {
            ("FAILED_PRECONDITION", "not possible in the present state")
        }
        Code::ResourceExhausted => ("RESOURCE_EXHAUSTED", "too much at once"),
        Code::Unavailable | Code::Cancelled => ("UNAVAILABLE", "a part of the service does not answer"),
        Code::DeadlineExceeded => ("DEADLINE_EXCEEDED", "a part of the service did not answer in time"),
        Code::Unimplemented => ("UNIMPLEMENTED", "not implemented"),
        Code::Unauthenticated => ("UNAUTHENTICATED", "a valid API key is required"),
        Code::PermissionDenied => ("PERMISSION_DENIED", "not allowed"),
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => ("INTERNAL", "internal error"),
    }
}
