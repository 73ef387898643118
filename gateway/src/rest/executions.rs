//! Executions: run code (and wait for it, or follow it, or neither), read, list, cancel.

use std::{convert::Infallible, time::Duration};

use axum::response::sse::{Event, Sse};
use futures::Stream;
use http::{HeaderName, HeaderValue, header};
use sandmesh_proto::session::{
    AttachExecutionRequest, CancelExecutionRequest, GetExecutionRequest, ListExecutionsRequest,
    WaitExecutionRequest,
};

use super::{
    Created,
    json::{
        ListExecutions, Page,
        execution::{Accepted, Execute, Execution},
        sync::SyncOptions,
    },
    sent,
    stream::{self, Cursor, Offsets},
};
use crate::{
    app::Call,
    error::{ApiError, Edge},
    extract::{Id, IdempotencyKey, Json, Query},
};

/// Runs code and does not wait. Repeating an `execution_id` or `request_id` returns the first run.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/execute", tag = "executions", operation_id = "execute",
    params(
        ("id" = String, Path, description = "The id of the session."),
        ("Idempotency-Key" = Option<String>, Header, description = "Stands for `request_id`."),
    ),
    request_body = Execute,
    responses(
        (status = 201, description = "It is accepted and durable.", body = Accepted),
        (status = 409, description = "The session takes no executions."),
        (status = 429, description = "The session has too many executions."),
    )
)]
pub(crate) async fn execute(
    call: Call,
    Id(session_id): Id,
    key: IdempotencyKey,
    Json(body): Json<Execute>,
) -> Result<Created<Accepted>, ApiError> {
    let accepted = start(&call, session_id, key, body).await?;
    let location = format!("/api/v1/executions/{}", accepted.execution_id);
    Ok(Created(accepted, location))
}

/// Runs code and answers as soon as it ended, whatever its end. When `sync_timeout` is over first, the
/// answer is 408 with the `execution_id`, and the run goes on; so it does when the client leaves.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/execute-sync", tag = "executions", operation_id = "execute_sync",
    params(
        ("id" = String, Path, description = "The id of the session."),
        ("Idempotency-Key" = Option<String>, Header, description = "Stands for `request_id`."),
        SyncOptions,
    ),
    request_body = Execute,
    responses(
        (status = 200, description = "It ended: completed, failed, timeout, crashed or cancelled.", body = Execution),
        (status = 408, description = "It has not ended yet and goes on.", body = crate::error::ErrorBody),
        (status = 409, description = "The session takes no executions."),
        (status = 429, description = "The session has too many executions."),
    )
)]
pub(crate) async fn execute_sync(
    call: Call,
    Id(session_id): Id,
    Query(options): Query<SyncOptions>,
    key: IdempotencyKey,
    Json(body): Json<Execute>,
) -> Result<Json<Execution>, ApiError> {
    let seconds = options.sync_timeout(&body)?;
    let execution_id = start(&call, session_id, key, body).await?.execution_id;
    let wait = WaitExecutionRequest { execution_id: execution_id.clone(), wait_ms: seconds * 1000 };
    let request = call.within(wait, Duration::from_secs(seconds.into()));
    let reply = call.sessions().wait_execution(request).await?.into_inner();
    let execution = Execution::try_from(sent(reply.execution, "execution")?)?;
    if execution.status.is_final() {
        Ok(Json(execution))
    } else {
        Err(Edge::SyncTimeout { execution_id, seconds }.into())
    }
}

/// Runs code and follows it: `started`, `stdout`, `stderr`, then `result` (it ran and ended) or `failed`
/// (it never ran). The id of each event is a cursor: repeat the request with the same `execution_id` or
/// `request_id` and `Last-Event-ID` to go on after it.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/execute-stream", tag = "executions", operation_id = "execute_stream",
    params(
        ("id" = String, Path, description = "The id of the session."),
        ("Idempotency-Key" = Option<String>, Header, description = "Stands for `request_id`."),
        ("Last-Event-ID" = Option<String>, Header, description = "Go on after this event."),
        Offsets,
    ),
    request_body = Execute,
    responses(
        (status = 200, description = "The events.", body = String, content_type = "text/event-stream"),
        (status = 409, description = "The session takes no executions."),
        (status = 410, description = "The output after the cursor is not kept any more."),
        (status = 429, description = "The session has too many executions."),
    )
)]
pub(crate) async fn execute_stream(
    call: Call,
    Id(session_id): Id,
    cursor: Cursor,
    key: IdempotencyKey,
    Json(body): Json<Execute>,
) -> Result<Following<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let execution_id = start(&call, session_id, key, body).await?.execution_id;
    follow(&call, execution_id, cursor).await
}

/// Reads an execution with its output.
#[utoipa::path(
    get, path = "/api/v1/executions/{id}", tag = "executions", operation_id = "get_execution",
    params(("id" = String, Path, description = "The id of the execution.")),
    responses((status = 200, description = "The execution.", body = Execution))
)]
pub(crate) async fn get(call: Call, Id(execution_id): Id) -> Result<Json<Execution>, ApiError> {
    read(&call, execution_id).await
}

/// The same as reading the execution, for clients that poll its status.
#[utoipa::path(
    get, path = "/api/v1/executions/{id}/status", tag = "executions", operation_id = "get_execution_status",
    params(("id" = String, Path, description = "The id of the execution.")),
    responses((status = 200, description = "The execution.", body = Execution))
)]
pub(crate) async fn status(call: Call, Id(execution_id): Id) -> Result<Json<Execution>, ApiError> {
    read(&call, execution_id).await
}

/// The same as reading the execution, for clients that read its result.
#[utoipa::path(
    get, path = "/api/v1/executions/{id}/result", tag = "executions", operation_id = "get_execution_result",
    params(("id" = String, Path, description = "The id of the execution.")),
    responses((status = 200, description = "The execution.", body = Execution))
)]
pub(crate) async fn result(call: Call, Id(execution_id): Id) -> Result<Json<Execution>, ApiError> {
    read(&call, execution_id).await
}

/// Follows an execution from a cursor: replays what is kept, then goes on live.
#[utoipa::path(
    get, path = "/api/v1/executions/{id}/stream", tag = "executions", operation_id = "stream_execution",
    params(
        ("id" = String, Path, description = "The id of the execution."),
        ("Last-Event-ID" = Option<String>, Header, description = "Go on after this event; wins over the offsets."),
        Offsets,
    ),
    responses(
        (status = 200, description = "The events.", body = String, content_type = "text/event-stream"),
        (status = 410, description = "The output after the cursor is not kept any more."),
    )
)]
pub(crate) async fn stream(
    call: Call,
    Id(execution_id): Id,
    cursor: Cursor,
) -> Result<Following<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    follow(&call, execution_id, cursor).await
}

/// Cancels an execution and answers when it has ended. Its output so far is kept.
#[utoipa::path(
    post, path = "/api/v1/executions/{id}/cancel", tag = "executions", operation_id = "cancel_execution",
    params(("id" = String, Path, description = "The id of the execution.")),
    responses(
        (status = 200, description = "The execution, cancelled.", body = Execution),
        (status = 409, description = "It had ended already."),
    )
)]
pub(crate) async fn cancel(call: Call, Id(execution_id): Id) -> Result<Json<Execution>, ApiError> {
    let request = call.unary(CancelExecutionRequest { execution_id });
    let reply = call.sessions().cancel_execution(request).await?.into_inner();
    Execution::try_from(sent(reply.execution, "execution")?).map(Json)
}

/// Lists the executions of a session, newest first.
#[utoipa::path(
    get, path = "/api/v1/sessions/{id}/executions", tag = "executions", operation_id = "list_executions",
    params(("id" = String, Path, description = "The id of the session."), ListExecutions),
    responses((status = 200, description = "A page of executions.", body = Page<Execution>))
)]
pub(crate) async fn list(
    call: Call,
    Id(session_id): Id,
    Query(query): Query<ListExecutions>,
) -> Result<Json<Page<Execution>>, ApiError> {
    let paging = query.paging();
    let request = ListExecutionsRequest {
        session_id,
        state: query.state(),
        page_size: paging.limit,
        page_token: paging.token.clone(),
        offset: paging.offset,
    };
    let reply = call.sessions().list_executions(call.unary(request)).await?.into_inner();
    let items = reply.executions.into_iter().map(Execution::try_from).collect::<Result<_, _>>()?;
    Ok(Json(paging.page(items, reply.total, reply.next_page_token)))
}

async fn start(
    call: &Call,
    session_id: String,
    key: IdempotencyKey,
    body: Execute,
) -> Result<Accepted, ApiError> {
    let request = call.unary(body.into_request(session_id, key)?);
    let reply = call.sessions().start_execution(request).await?.into_inner();
    call.release_body();
    Accepted::try_from(sent(reply.execution, "execution")?)
}

async fn read(call: &Call, execution_id: String) -> Result<Json<Execution>, ApiError> {
    let request = call.unary(GetExecutionRequest { execution_id });
    let reply = call.sessions().get_execution(request).await?.into_inner();
    Execution::try_from(sent(reply.execution, "execution")?).map(Json)
}

/// An event stream that proxies leave alone, with the path of its execution.
pub(crate) type Following<S> = ([(HeaderName, HeaderValue); 3], Sse<axum::response::sse::KeepAliveStream<S>>);

async fn follow(
    call: &Call,
    execution_id: String,
    cursor: Cursor,
) -> Result<Following<impl Stream<Item = Result<Event, Infallible>> + use<>>, ApiError> {
    let request = AttachExecutionRequest {
        execution_id: execution_id.clone(),
        stdout_offset: cursor.stdout,
        stderr_offset: cursor.stderr,
    };
    let events = call.sessions().attach_execution(call.stream(request)).await?.into_inner();
    let location = format!("/api/v1/executions/{execution_id}");
    let location = HeaderValue::from_str(&location).map_err(|_| Edge::InvalidPath)?;
    let headers = [
        (header::CONTENT_LOCATION, location),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    let events = stream::events(events, execution_id, call.request_id().to_owned(), cursor);
    Ok((headers, Sse::new(events).keep_alive(stream::keep_alive(call.app()))))
}
