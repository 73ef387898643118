//! `/sessions`: create, list, get, terminate, delete.

use sandmesh_proto::session::{
    DeleteSessionRequest, GetSessionRequest, ListSessionsRequest, TerminateSessionRequest,
};

use super::{
    Created, NoContent,
    json::{
        ListSessions, Page,
        session::{CreateSession, Session},
    },
    sent,
};
use crate::{
    app::Call,
    error::ApiError,
    extract::{Id, IdempotencyKey, Json, Query},
};

/// Creates a session: a lease on one sandbox. It is `creating` or `running` when this answers. Repeating
/// a `request_id` (or `Idempotency-Key`) returns the first session.
#[utoipa::path(
    post, path = "/api/v1/sessions", tag = "sessions", operation_id = "create_session",
    params(("Idempotency-Key" = Option<String>, Header, description = "Stands for `request_id`.")),
    request_body = CreateSession,
    responses(
        (status = 201, description = "The session.", body = Session),
        (status = 400, description = "The template does not exist, or a size has an unknown unit."),
        (status = 409, description = "The id exists."),
        (status = 429, description = "A quota is reached."),
    )
)]
pub(crate) async fn create(
    call: Call,
    key: IdempotencyKey,
    Json(body): Json<CreateSession>,
) -> Result<Created<Session>, ApiError> {
    let request = call.unary(body.into_request(key)?);
    let reply = call.sessions().create_session(request).await?.into_inner();
    let session = Session::try_from(sent(reply.session, "session")?)?;
    let location = format!("/api/v1/sessions/{}", session.id);
    Ok(Created(session, location))
}

/// Lists sessions, newest first.
#[utoipa::path(
    get, path = "/api/v1/sessions", tag = "sessions", operation_id = "list_sessions",
    params(ListSessions),
    responses((status = 200, description = "A page of sessions.", body = Page<Session>))
)]
pub(crate) async fn list(
    call: Call,
    Query(query): Query<ListSessions>,
) -> Result<Json<Page<Session>>, ApiError> {
    let (paging, labels) = (query.paging(), query.labels()?);
    let request = ListSessionsRequest {
        state: query.state(),
        template_id: query.template_id.unwrap_or_default(),
        page_size: paging.limit,
        page_token: paging.token.clone(),
        offset: paging.offset,
        labels,
    };
    let reply = call.sessions().list_sessions(call.unary(request)).await?.into_inner();
    let items = reply.sessions.into_iter().map(Session::try_from).collect::<Result<_, _>>()?;
    Ok(Json(paging.page(items, reply.total, reply.next_page_token)))
}

/// Reads a session.
#[utoipa::path(
    get, path = "/api/v1/sessions/{id}", tag = "sessions", operation_id = "get_session",
    params(("id" = String, Path, description = "The id of the session.")),
    responses((status = 200, description = "The session.", body = Session))
)]
pub(crate) async fn get(call: Call, Id(session_id): Id) -> Result<Json<Session>, ApiError> {
    let request = call.unary(GetSessionRequest { session_id });
    let reply = call.sessions().get_session(request).await?.into_inner();
    Session::try_from(sent(reply.session, "session")?).map(Json)
}

/// Ends a session: its executions are cancelled and its sandbox is destroyed. Idempotent.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/terminate", tag = "sessions", operation_id = "terminate_session",
    params(("id" = String, Path, description = "The id of the session.")),
    responses((status = 200, description = "The session, terminated.", body = Session))
)]
pub(crate) async fn terminate(call: Call, Id(session_id): Id) -> Result<Json<Session>, ApiError> {
    let request = call.unary(TerminateSessionRequest { session_id });
    let reply = call.sessions().terminate_session(request).await?.into_inner();
    Session::try_from(sent(reply.session, "session")?).map(Json)
}

/// Ends a session and forgets it, with its executions and files.
#[utoipa::path(
    delete, path = "/api/v1/sessions/{id}", tag = "sessions", operation_id = "delete_session",
    params(("id" = String, Path, description = "The id of the session.")),
    responses((status = 204, description = "It is gone."))
)]
pub(crate) async fn delete(call: Call, Id(session_id): Id) -> Result<NoContent, ApiError> {
    let request = call.unary(DeleteSessionRequest { session_id });
    call.sessions().delete_session(request).await?;
    Ok(NoContent)
}
