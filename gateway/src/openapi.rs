//! The document of the REST API: `/openapi.json`, and Swagger UI at `/docs`, both in the binary.
//!
//! Paths and shapes come from the handlers and their types; what holds for every operation (aliases,
//! errors, keys) is added here.

use axum::Router;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        self, Content, OpenApi as Document, Ref, Response,
        path::Operation,
        security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_swagger_ui::SwaggerUi;

use crate::{
    app::App,
    error::ErrorBody,
    rest::{
        ALIASES, artifacts, containers, dependencies, executions, files, health, metrics, nodes, pools,
        sessions, templates,
    },
};

/// What every operation may answer, whatever it does.
const ERRORS: [(&str, &str); 3] = [
    ("401", "No valid key was shown, where keys are configured."),
    ("500", "An error inside the service."),
    ("503", "A part of the service does not answer; `Retry-After` says when to come back."),
];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sandmesh",
        description = "Run untrusted code: create a session, execute Python, JavaScript or shell in it, \
                       stream the output, read the result. The same is there over gRPC on the same port. \
                       Request fields that are not known are ignored and named in the response header \
                       `Sandmesh-Ignored-Fields`; every response carries `X-Request-ID`.",
    ),
    paths(
        health::get, health::detailed, health::ready, health::sync, metrics::get,
        containers::list, containers::get, containers::logs,
        nodes::list, nodes::get, nodes::drain, nodes::resume, nodes::remove, nodes::create_join_token,
        pools::list, pools::get, pools::set,
        sessions::create, sessions::list, sessions::get, sessions::terminate, sessions::delete,
        dependencies::install,
        executions::execute, executions::execute_sync, executions::execute_stream, executions::get,
        executions::status, executions::result, executions::stream, executions::cancel, executions::list,
        files::list, files::upload, files::read, files::delete, files::rename, files::mkdir,
        artifacts::list, artifacts::read,
        templates::create, templates::list, templates::get, templates::update, templates::delete,
    ),
    components(schemas(ErrorBody)),
    tags(
        (name = "sessions", description = "A session is a lease on one sandbox."),
        (name = "executions", description = "An execution is one run of code in a session."),
        (name = "files", description = "The files of a session, and those that its executions made."),
        (name = "templates", description = "A template is a named environment that sessions are created from."),
        (name = "health", description = "How the service is."),
        (name = "operators", description = "Sandboxes, nodes and pools of warm sandboxes."),
    ),
    modifiers(&Everywhere),
)]
struct Api;

/// The document.
pub(crate) fn document() -> Document {
    Api::openapi()
}

/// `/openapi.json` and `/docs`.
pub(crate) fn router() -> Router<App> {
    SwaggerUi::new("/docs").url("/openapi.json", document()).into()
}

/// Adds what holds for every operation.
struct Everywhere;

impl Modify for Everywhere {
    fn modify(&self, document: &mut Document) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = document.components.get_or_insert_default();
        components.security_schemes.insert("key".into(), scheme.into());
        document.security = Some(vec![
            SecurityRequirement::default(),
            SecurityRequirement::new::<_, [&str; 0], &str>("key", []),
        ]);
        for (path, item) in &mut document.paths.paths {
            for operation in operations(item) {
                add_errors(operation, path);
            }
        }
        for (alias, path) in ALIASES {
            let Some(mut item) = document.paths.paths.get(path).cloned() else { continue };
            for operation in operations(&mut item) {
                operation.operation_id = operation.operation_id.take().map(|id| format!("{id}_alias"));
                operation.summary = Some(format!("The same as `{path}`."));
            }
            document.paths.paths.insert(alias.to_owned(), item);
        }
    }
}

fn operations(item: &mut openapi::PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().flatten()
}

fn add_errors(operation: &mut Operation, path: &str) {
    let mut errors = ERRORS.to_vec();
    if path.contains('{') {
        errors.push(("404", "There is none with this id."));
    }
    if operation.request_body.is_some() {
        errors.push(("413", "The body is too large."));
        errors.push(("415", "The body is not declared as JSON."));
    }
    if operation.request_body.is_some() || operation.parameters.as_ref().is_some_and(|list| list.len() > 1) {
        errors.push(("422", "Fields are wrong; `detail` lists them."));
    }
    let responses = &mut operation.responses.responses;
    for (status, description) in errors {
        let response = Response::new(description);
        responses.entry(status.to_owned()).or_insert_with(|| response.into());
    }
    for (status, response) in responses {
        if let openapi::RefOr::T(response) = response
            && status.starts_with(['4', '5'])
        {
            let schema = Ref::from_schema_name("ErrorBody");
            response
                .content
                .entry("application/json".into())
                .or_insert_with(|| Content::new(Some(schema)).into());
        }
    }
}
