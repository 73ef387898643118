//! What every request gets, whatever it asks for: an id, the headers that say so, and the body of an
//! error.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    extract::{FromRequestParts, Request},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, header, request::Parts};
use tokio::sync::OwnedSemaphorePermit;

use crate::error::{ApiError, Edge};

/// The header that carries the id of a request, in both directions.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The response header that names the fields of the request that were not understood.
pub(crate) const IGNORED_FIELDS: HeaderName = HeaderName::from_static("sandmesh-ignored-fields");

/// At most this many characters of ignored fields are named.
const IGNORED_LIMIT: usize = 1024;

/// What is known about a request besides its parts. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    id: Arc<str>,
    ignored: Arc<Mutex<Vec<String>>>,
    memory: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl Context {
    /// The id of the request; always a valid header value.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Notes a field that was not understood, to be named in the response.
    pub(crate) fn ignore(&self, field: String) {
        let mut ignored = self.ignored.lock().unwrap_or_else(PoisonError::into_inner);
        // More are never named, and a large body can have millions.
        if ignored.len() < IGNORED_LIMIT {
            ignored.push(field);
        }
    }

    /// Keeps the memory of the request's body until it is released or the request is done.
    pub(crate) fn hold(&self, memory: OwnedSemaphorePermit) {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
    }

    /// Gives the memory of the request's body back.
    pub(crate) fn release(&self) {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn of(request: &Request) -> Self {
        let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let id = given.filter(|id| sane(id)).map_or_else(generate, str::to_owned);
        Self { id: id.into(), ignored: Arc::default(), memory: Arc::default() }
    }

    fn id_header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.id).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
    }

    /// The ignored fields, as far as they fit and are printable.
    fn ignored_header(&self) -> Option<HeaderValue> {
        let fields = self.ignored.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for field in fields.iter() {
            let separator = if text.is_empty() { "" } else { ", " };
            if text.len() + separator.len() + field.len() > IGNORED_LIMIT {
                break;
            }
            text.push_str(separator);
            text.extend(field.chars().map(|c| if c.is_ascii_graphic() && c != ',' { c } else { '?' }));
        }
        if text.is_empty() { None } else { HeaderValue::from_str(&text).ok() }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Context {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let context = parts.extensions.get::<Self>().cloned();
        context.ok_or_else(|| Edge::Internal("a request without a context".into()).into())
    }
}

/// Gives a request its context, and its response what every response has. Outermost of all.
pub(crate) async fn track(mut request: Request, next: Next) -> Response {
    let context = Context::of(&request);
    request.headers_mut().insert(REQUEST_ID, context.id_header());
    request.extensions_mut().insert(context.clone());
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let (mut parts, _) = response.into_parts();
        // It tells the length of the empty body that is replaced here.
        parts.headers.remove(header::CONTENT_LENGTH);
        response = (parts, axum::Json(error.body(context.id()))).into_response();
    }
    response.headers_mut().insert(REQUEST_ID, context.id_header());
    if let Some(fields) = context.ignored_header() {
        response.headers_mut().insert(IGNORED_FIELDS, fields);
    }
    response
}

/// The answer to a handler that panicked.
#[expect(clippy::needless_pass_by_value, reason = "the signature is the layer's")]
pub(crate) fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    ApiError::from(Edge::Internal(format!("a handler panicked: {text}"))).into_response()
}

fn sane(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn generate() -> String {
    format!("req_{:016x}", rand::random::<u64>())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn context(id: &str) -> Context {
        Context::of(&Request::builder().header(REQUEST_ID, id).body(Body::empty()).unwrap())
    }

    #[test]
    fn a_sane_id_is_kept_and_any_other_is_replaced() {
        assert_eq!(context("a.B_1-2").id(), "a.B_1-2");
        for id in ["", "a b", "a\"b", "{}", &"x".repeat(129)] {
            assert!(context(id).id().starts_with("req_"), "{id}");
        }
    }

    #[test]
    fn ignored_fields_are_bounded_and_printable() {
        let context = context("x");
        context.ignore("gpu\u{e9}\r".into());
        for _ in 0..5000 {
            context.ignore("another_field".into());
        }
        assert!(context.ignored.lock().unwrap().len() <= IGNORED_LIMIT);
        let header = context.ignored_header().unwrap();
        assert!(header.len() <= IGNORED_LIMIT);
        assert!(header.to_str().unwrap().starts_with("gpu??, another_field"));
    }
}
