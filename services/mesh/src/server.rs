//! The server of a node: roles add their services, the builder adds what every service has.
//!
//! Reflection (v1 and v1alpha), `grpc.health.v1`, a deadline, a span for each rpc, and a net for panics
//! are here and nowhere else, and apply alike to calls inside the process and over the network.

use std::{any::Any, convert::Infallible, net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use opentelemetry::propagation::Extractor;
use tonic::{
    Code, Status,
    body::Body,
    server::NamedService,
    service::{Routes, RoutesBuilder},
};
use tower::Service;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{
    Secret,
    link::TOKEN_HEADER,
    tls::{Name, Peer},
};

/// How long a call of a machine that joins or has may take, whatever it says.
const NODE_CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Collects the services of a node.
#[derive(Debug, Default)]
pub struct ServerBuilder {
    routes: RoutesBuilder,
    names: Vec<&'static str>,
    public: Option<(SocketAddr, Router)>,
    for_nodes: Option<(SocketAddr, Router)>,
}

impl ServerBuilder {
    /// Adds a gRPC service, visible to reflection and to `grpc.health.v1`.
    pub fn add<S>(&mut self, service: S) -> &mut Self
    where
        S: Service<http::Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes.add_service(service);
        self
    }

    /// Serves `router` to clients at `listen`. For the gateway.
    pub fn set_public(&mut self, listen: SocketAddr, router: Router) {
        self.public = Some((listen, router));
    }

    /// Serves these calls of `routes` over TLS at `listen` to machines that are nodes, or want to be: each request
    /// has a [`Peer`] that says which. For the scheduler.
    pub fn serve_nodes(&mut self, listen: SocketAddr, routes: Routes, calls: NodeCalls) {
        let guard = move |request: Request, next: Next| async move {
            let answer = match calls.refusal(&request) {
                None => tokio::time::timeout(NODE_CALL_TIMEOUT, next.run(request)).await,
                Some(status) => Ok(status.into_http::<Body>().into_response()),
            };
            answer.unwrap_or_else(|_| {
                Status::deadline_exceeded("deadline exceeded").into_http::<Body>().into_response()
            })
        };
        self.for_nodes = Some((listen, grpc_router(routes).layer(middleware::from_fn(guard))));
    }

    pub(crate) fn take_for_nodes(&mut self) -> Option<(SocketAddr, Router)> {
        self.for_nodes.take()
    }

    pub(crate) fn take_public(&mut self) -> Option<(SocketAddr, Router)> {
        self.public.take()
    }

    pub(crate) fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// The router of everything that was added, with what every service has.
    pub(crate) fn router(mut self) -> anyhow::Result<Router> {
        add_reflection(&mut self.routes, &self.names)?;
        Ok(grpc_router(self.routes.routes()))
    }
}

/// What machines may call that are nodes, or want to be, by its path.
#[derive(Debug, Clone, Copy)]
pub struct NodeCalls {
    /// What everybody may call who can connect.
    pub of_strangers: &'static [&'static str],
    /// What nodes may call besides.
    pub of_nodes: &'static [&'static str],
}

impl NodeCalls {
    fn refusal(&self, request: &Request) -> Option<Status> {
        let path = request.uri().path();
        if self.of_strangers.contains(&path) {
            return None;
        }
        if !self.of_nodes.contains(&path) {
            return Some(Status::permission_denied("nodes may not call this"));
        }
        let known = request.extensions().get::<Peer>().is_some_and(Peer::is_known);
        (!known).then(|| Status::unauthenticated("show the certificate of a node: join first"))
    }
}

/// Server reflection (v1 and v1alpha) for the named services and no others. For the gateway.
///
/// # Errors
/// When the descriptors that were compiled in cannot be read, which is a broken build.
pub fn public_reflection(names: &[&str]) -> anyhow::Result<Router> {
    let mut routes = RoutesBuilder::default();
    add_reflection(&mut routes, names)?;
    Ok(routes.routes().into_axum_router())
}

fn add_reflection(routes: &mut RoutesBuilder, names: &[&str]) -> anyhow::Result<()> {
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(sandmesh_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        names.iter().fold(builder, |builder, name| builder.with_service_name(*name))
    };
    routes.add_service(builder().build_v1()?);
    routes.add_service(builder().build_v1alpha()?);
    Ok(())
}

/// Puts the layers that every gRPC service has around some routes.
pub fn grpc_router(routes: Routes) -> Router {
    routes
        .into_axum_router()
        .layer(middleware::map_response(blame_the_caller))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(deadline))
        .layer(middleware::from_fn(trace))
}

/// Gives each request a span that goes on with the caller's trace. For the gateway; what is served by
/// [`grpc_router`] has it.
pub fn traced(router: Router) -> Router {
    router.layer(middleware::from_fn(trace))
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is the layer's")]
fn panicked(panic: Box<dyn Any + Send>) -> http::Response<Body> {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    tracing::error!(panic = text, "a handler panicked");
    Status::internal("internal error").into_http()
}

/// What could not be decoded is the caller's mistake; tonic says INTERNAL, and OUT_OF_RANGE for a message
/// that is too long. The roles' own errors carry details, and stay.
async fn blame_the_caller(response: Response) -> Response {
    let Some(status) = Status::from_header_map(response.headers()) else { return response };
    let code = match status.code() {
        Code::Internal => Code::InvalidArgument,
        Code::OutOfRange => Code::ResourceExhausted,
        _ => return response,
    };
    if !status.details().is_empty() {
        return response;
    }
    Status::new(code, status.message()).into_http::<Body>().into_response()
}

/// Ends a call at the caller's `grpc-timeout`: nothing else does so for calls inside the process. A
/// stream that has begun is left to its caller, which drops it.
async fn deadline(request: Request, next: Next) -> Response {
    let header = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok());
    let Some(limit) = header.and_then(parse_timeout) else { return next.run(request).await };
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Status::deadline_exceeded("deadline exceeded").into_http::<Body>().into_response(),
    }
}

/// The value of a `grpc-timeout` header: at most eight digits and a unit.
fn parse_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

async fn trace(request: Request, next: Next) -> Response {
    let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    let span = tracing::info_span!("rpc", path = request.uri().path(), request.id = id);
    let parent = opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.extract(&Headers(request.headers()))
    });
    // Without an exporter there is no layer to take the parent, and nothing to do about it.
    let _ = span.set_parent(parent);
    next.run(request).instrument(span).await
}

/// Refuses calls without the mesh's credential.
pub(crate) fn require_token(router: Router, token: Secret) -> Router {
    router.layer(middleware::from_fn(move |request: Request, next: Next| {
        let given = request.headers().get(TOKEN_HEADER).map(|value| value.as_bytes().to_vec());
        let allowed = given.is_some_and(|given| same(&given, token.expose().as_bytes()));
        async move {
            if allowed {
                return next.run(request).await;
            }
            let message = format!("metadata `{TOKEN_HEADER}` does not carry the credential of this mesh");
            Status::unauthenticated(message).into_http::<Body>().into_response()
        }
    }))
}

/// Refuses calls of others than the control plane.
pub(crate) fn require_control(router: Router) -> Router {
    router.layer(middleware::from_fn(|request: Request, next: Next| {
        let known = request.extensions().get::<Peer>().is_some_and(|peer| peer.is(&Name::Control));
        async move {
            if known {
                return next.run(request).await;
            }
            let status = Status::permission_denied("a node is told what to do by the control plane alone");
            status.into_http::<Body>().into_response()
        }
    }))
}

/// Compares without telling by its time where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_and_nodes_call_what_is_theirs() {
        let calls = NodeCalls { of_strangers: &["/a.Join/Join"], of_nodes: &["/a.Join/Renew"] };
        let code = |path: &str| {
            let mut request = Request::new(axum::body::Body::empty());
            *request.uri_mut() = path.parse().unwrap();
            request.extensions_mut().insert(Peer::of(None));
            calls.refusal(&request).map(|status| status.code())
        };
        assert_eq!(code("/a.Join/Join"), None);
        assert_eq!(code("/a.Join/Renew"), Some(Code::Unauthenticated));
        for path in ["/a.Other/Call", "/a.Join/Renew/", "//a.Join/Join", "/a.join/join", "/"] {
            assert_eq!(code(path), Some(Code::PermissionDenied), "{path}");
        }
    }

    #[test]
    fn a_timeout_is_read_in_every_unit() {
        assert_eq!(parse_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse_timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse_timeout("5n"), Some(Duration::from_nanos(5)));
    }

    #[test]
    fn a_malformed_timeout_is_ignored() {
        for value in ["", "m", "1x", "-1S", "123456789S", "1\u{e9}"] {
            assert_eq!(parse_timeout(value), None, "{value}");
        }
    }
}
