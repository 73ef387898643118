//! REST: the paths of the contract, and who handles each.
//!
//! A handler reads a request, calls a role, and writes the answer. `json` has the shapes, and
//! `error.rs` every status that is not a success.

pub(crate) mod artifacts;
pub(crate) mod containers;
pub(crate) mod dependencies;
mod download;
mod escape;
pub(crate) mod executions;
pub(crate) mod files;
pub(crate) mod health;
pub(crate) mod json;
pub(crate) mod metrics;
pub(crate) mod nodes;
pub(crate) mod pools;
pub(crate) mod sessions;
mod stream;
pub(crate) mod templates;
mod upload;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::{
    app::App,
    auth,
    error::{ApiError, Edge},
    extract::Json,
    metrics::note_route,
};

/// Paths that existing clients use besides the ones they stand for: alias, path.
pub(crate) const ALIASES: [(&str, &str); 3] = [
    ("/api/v1/executions/sessions/{id}/execute", "/api/v1/sessions/{id}/execute"),
    ("/api/v1/executions/sessions/{id}/execute-sync", "/api/v1/sessions/{id}/execute-sync"),
    ("/api/v1/executions/sessions/{id}/executions", "/api/v1/sessions/{id}/executions"),
];

/// What is done to files. A file may have such a name, too: it is read and deleted as any other.
pub(crate) const FILE_ACTIONS: [&str; 3] = [
    "/api/v1/sessions/{id}/files/upload",
    "/api/v1/sessions/{id}/files/move",
    "/api/v1/sessions/{id}/files/mkdir",
];

/// Every path of the contract with its methods, without the aliases.
pub(crate) fn routes() -> Vec<(&'static str, MethodRouter<App>)> {
    vec![
        ("/api/v1/health", get(health::get)),
        ("/api/v1/health/detailed", get(health::detailed)),
        ("/api/v1/health/ready", get(health::ready)),
        ("/api/v1/health/sync", post(health::sync)),
        ("/api/v1/sessions", post(sessions::create).get(sessions::list)),
        ("/api/v1/sessions/{id}", get(sessions::get).delete(sessions::delete)),
        ("/api/v1/sessions/{id}/terminate", post(sessions::terminate)),
        ("/api/v1/sessions/{id}/dependencies/install", post(dependencies::install)),
        ("/api/v1/sessions/{id}/execute", post(executions::execute)),
        ("/api/v1/sessions/{id}/execute-sync", post(executions::execute_sync)),
        ("/api/v1/sessions/{id}/execute-stream", post(executions::execute_stream)),
        ("/api/v1/sessions/{id}/executions", get(executions::list)),
        ("/api/v1/executions/{id}", get(executions::get)),
        ("/api/v1/executions/{id}/status", get(executions::status)),
        ("/api/v1/executions/{id}/result", get(executions::result)),
        ("/api/v1/executions/{id}/stream", get(executions::stream)),
        ("/api/v1/executions/{id}/cancel", post(executions::cancel)),
        ("/api/v1/executions/{id}/artifacts", get(artifacts::list)),
        ("/api/v1/executions/{id}/artifacts/{*path}", get(artifacts::read)),
        ("/api/v1/sessions/{id}/files", get(files::list)),
        ("/api/v1/sessions/{id}/files/upload", post(files::upload).layer(DefaultBodyLimit::disable())),
        ("/api/v1/sessions/{id}/files/move", post(files::rename)),
        ("/api/v1/sessions/{id}/files/mkdir", post(files::mkdir)),
        ("/api/v1/sessions/{id}/files/{*path}", get(files::read).delete(files::delete)),
        ("/api/v1/containers", get(containers::list)),
        ("/api/v1/containers/{id}", get(containers::get)),
        ("/api/v1/containers/{id}/logs", get(containers::logs)),
        ("/api/v1/nodes", get(nodes::list)),
        ("/api/v1/nodes/join-tokens", post(nodes::create_join_token)),
        ("/api/v1/nodes/{id}", get(nodes::get).delete(nodes::remove)),
        ("/api/v1/nodes/{id}/drain", post(nodes::drain)),
        ("/api/v1/nodes/{id}/resume", post(nodes::resume)),
        ("/api/v1/pools", get(pools::list)),
        ("/api/v1/pools/{template_id}", get(pools::get).put(pools::set)),
        ("/metrics", get(metrics::get)),
        ("/api/v1/templates", post(templates::create).get(templates::list)),
        ("/api/v1/templates/{id}", get(templates::get).put(templates::update).delete(templates::delete)),
    ]
}

/// The paths with their aliases.
pub(crate) fn router() -> Router<App> {
    let mut router = Router::new();
    for (path, methods) in routes() {
        for (alias, _) in ALIASES.iter().filter(|(_, stands_for)| *stands_for == path) {
            router = router.route(alias, methods.clone());
        }
        router = router.route(path, methods);
    }
    for path in FILE_ACTIONS {
        router = router.route(path, get(files::read).delete(files::delete));
    }
    router
}

/// Adds what unknown paths and methods are told, and the guard around everything.
pub(crate) fn guarded(router: Router<App>, app: &App) -> Router {
    router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(app.clone(), auth::guard))
        .layer(from_fn(note_route))
        .with_state(app.clone())
}

async fn not_found(request: Request) -> ApiError {
    Edge::RouteNotFound(request.uri().path().to_owned()).into()
}

async fn method_not_allowed(request: Request) -> ApiError {
    Edge::MethodNotAllowed { method: request.method().to_string(), path: request.uri().path().to_owned() }
        .into()
}

/// 201 with the new resource and, where it has one, its path.
#[derive(Debug)]
pub(crate) struct Created<T>(pub(crate) T, pub(crate) String);

impl<T: Serialize> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        let mut response = (StatusCode::CREATED, Json(self.0)).into_response();
        if let Ok(location) = HeaderValue::from_str(&self.1) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

/// 204.
#[derive(Debug)]
pub(crate) struct NoContent;

impl IntoResponse for NoContent {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

/// What a role must have sent.
fn sent<T>(value: Option<T>, what: &str) -> Result<T, ApiError> {
    value.ok_or_else(|| Edge::Internal(format!("an answer without its {what}")).into())
}
