//! Who may come in: REST, gRPC-web and gRPC alike.
//!
//! With keys, whoever shows one. Without keys the gateway is on loopback, where everything but a web page
//! is as trusted as its user; so a keyless gateway only answers to local names (a page cannot rebind its
//! own name to 127.0.0.1), and only to pages of its own origin.

use std::{net::IpAddr, time::Duration};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Uri, header, uri::Authority};
use sandmesh_mesh::{Secret, status};
use tonic::body::Body;

use crate::{
    app::{App, is_grpc},
    error::{ApiError, Edge},
    extract::discard,
};

/// How much of a refused body is read, and for how long.
const DRAINED_BYTES: usize = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_millis(200);

/// Lets a request in or refuses it in the words of its protocol.
pub(crate) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let config = app.config();
    let checked = if config.api_keys.is_empty() {
        check_local(&request, &config.cors_origins)
    } else {
        check_key(&request, &config.api_keys, config.open_metrics)
    };
    match checked {
        Ok(()) => next.run(request).await,
        Err(edge) => {
            let grpc = is_grpc(request.headers());
            // A client whose stream is reset while it sends may not see the refusal.
            discard(request.into_body(), DRAINED_BYTES, DRAIN_TIME).await;
            if grpc { status(edge).into_http::<Body>().into_response() } else { challenge(edge) }
        }
    }
}

fn challenge(edge: Edge) -> Response {
    let unauthenticated = matches!(edge, Edge::Unauthenticated);
    let mut response = ApiError::from(edge).into_response();
    if unauthenticated {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn check_key(request: &Request, keys: &[Secret], open_metrics: bool) -> Result<(), Edge> {
    let path = request.uri().path();
    let open = open(path) || (open_metrics && path == "/metrics");
    let value = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let given = match value.split_at_checked(7) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => key.trim_ascii(),
        _ => return if open { Ok(()) } else { Err(Edge::Unauthenticated) },
    };
    // Every key is compared, so that the time does not tell which one was near.
    let known = keys.iter().fold(false, |known, key| known | same(given, key.expose().as_bytes()));
    if known || open { Ok(()) } else { Err(Edge::Unauthenticated) }
}

/// What everybody may see.
fn open(path: &str) -> bool {
    matches!(path, "/api/v1/health" | "/api/v1/health/ready" | "/docs" | "/openapi.json")
        || path.starts_with("/docs/")
}

/// Compares without telling by its time where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |all, (x, y)| std::hint::black_box(all | (x ^ y)));
    a.len() == b.len() && differences == 0
}

fn check_local(request: &Request, origins: &[String]) -> Result<(), Edge> {
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or("?")),
    };
    if let Some(host) = host.filter(|host| !is_local(host)) {
        return Err(Edge::HostNotAllowed(host.to_owned()));
    }
    let Some(origin) = request.headers().get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("?");
    let own = origin.parse::<Uri>().is_ok_and(|uri| uri.authority().map(Authority::as_str) == host);
    if own || request.method().is_safe() || origins.iter().any(|allowed| allowed == origin) {
        return Ok(());
    }
    Err(Edge::OriginNotAllowed(origin.to_owned()))
}

/// True for names that always mean this machine.
fn is_local(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef";

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request {
        let builder = Request::builder().method(method).uri(uri);
        let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        builder.body(axum::body::Body::empty()).unwrap()
    }

    #[test]
    fn only_a_whole_key_opens() {
        let keys = [Secret::new("another-key-of-some-length"), Secret::new(KEY)];
        for (value, fine) in [
            (format!("Bearer {KEY}"), true),
            (format!("bearer {KEY}"), true),
            (format!("Bearer {}", &KEY[1..]), false),
            (format!("Bearer {KEY}x"), false),
            (format!("Basic {KEY}"), false),
            ("Bearer ".to_owned(), false),
            (KEY.to_owned(), false),
        ] {
            let request = request("GET", "/api/v1/sessions", &[("authorization", &value)]);
            assert_eq!(check_key(&request, &keys, false).is_ok(), fine, "{value}");
        }
    }

    #[test]
    fn health_and_documents_are_open() {
        let keys = [Secret::new(KEY)];
        for (path, fine) in [
            ("/api/v1/health", true),
            ("/docs/index.html", true),
            ("/openapi.json", true),
            ("/api/v1/health/detailed", false),
            ("/api/v1/health/ready", true),
            ("/metrics", false),
            ("/docsx", false),
            ("/nothing", false),
        ] {
            assert_eq!(check_key(&request("GET", path, &[]), &keys, false).is_ok(), fine, "{path}");
        }
    }

    #[test]
    fn metrics_are_open_where_that_is_set_and_nothing_else_is() {
        let keys = [Secret::new(KEY)];
        for (path, fine) in [("/metrics", true), ("/metrics/", false), ("/api/v1/sessions", false)] {
            assert_eq!(check_key(&request("GET", path, &[]), &keys, true).is_ok(), fine, "{path}");
        }
    }

    #[test]
    fn without_keys_only_local_names_are_answered() {
        for (host, fine) in [
            ("127.0.0.1:8000", true),
            ("localhost:8000", true),
            ("LOCALHOST", true),
            ("[::1]:8000", true),
            ("evil.example:8000", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
            ("10.0.0.1", false),
        ] {
            let request = request("GET", "/", &[("host", host)]);
            assert_eq!(check_local(&request, &[]).is_ok(), fine, "{host}");
        }
    }

    #[test]
    fn without_keys_pages_of_other_origins_change_nothing() {
        let allowed = ["http://localhost:3000".to_owned()];
        for (method, origin, fine) in [
            ("POST", "http://127.0.0.1:8000", true),
            ("POST", "http://localhost:3000", true),
            ("POST", "http://127.0.0.1:9999", false),
            ("POST", "https://evil.example", false),
            ("DELETE", "null", false),
            ("GET", "https://evil.example", true),
        ] {
            let request = request(method, "/", &[("host", "127.0.0.1:8000"), ("origin", origin)]);
            assert_eq!(check_local(&request, &allowed).is_ok(), fine, "{method} {origin}");
        }
    }
}
