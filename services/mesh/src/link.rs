//! How one role calls another, wherever it runs.
//!
//! A [`Link`] is a tower service that any generated client accepts. Behind it is this process's own
//! router, or a channel over TCP or a unix socket that connects when first used and reconnects.

mod several;

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use opentelemetry::propagation::Injector;
use tokio::net::UnixStream;
use tonic::{
    ConnectError, Status, TimeoutExpired,
    body::Body,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};
use tower::{Service, ServiceExt, service_fn};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use self::several::Several;
use crate::{RoleName, Secret, answer::Answer};

/// The metadata key that carries the mesh's own credential.
pub const TOKEN_HEADER: &str = "x-sandmesh-token";

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest frame that a server may send: a chunk of output with what is around it.
const FRAME_BYTES: u32 = 65 << 10;

type Request = http::Request<Body>;
type Response = http::Response<Body>;
type BoxError = Box<dyn Error + Send + Sync>;

/// A link that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The role does not run here, and the configuration does not say where it runs.
    #[error(
        "role `{0}` does not run in this process and setting `mesh.links.{0}` does not say where it does"
    )]
    NotConfigured(RoleName),
    /// The address is neither `http://HOST:PORT` nor `unix:PATH`.
    #[error("`{0}` is not an address such as `http://127.0.0.1:8001` or `unix:/run/sandmesh/session.sock`")]
    InvalidEndpoint(String),
}

/// Calls a role, an executor or any other gRPC server. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    target: Arc<str>,
    to: To,
}

#[derive(Clone)]
enum To {
    Local(Slot),
    Remote(Channel, Option<Secret>),
    /// Streams share the connection too.
    Shared(Channel),
    Several(Arc<Several>),
}

/// This process's own router. It is filled when the node starts and emptied when it stops, because the
/// roles behind it hold links to it: a cycle that nothing else would break.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Option<Router>>>);

impl Slot {
    pub(crate) fn set(&self, router: Option<Router>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = router;
    }

    fn get(&self) -> Option<Router> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Link {
    /// A link to a router in this process.
    #[must_use]
    pub fn local(router: Router) -> Self {
        let slot = Slot::default();
        slot.set(Some(router));
        Self::to_slot("local", slot)
    }

    pub(crate) fn to_slot(target: &str, slot: Slot) -> Self {
        Self { target: target.into(), to: To::Local(slot) }
    }

    /// A link to `http://HOST:PORT` or `unix:PATH`. Nothing is connected before the first call; a call
    /// while the other side is not there fails with UNAVAILABLE at once.
    ///
    /// # Errors
    /// When the address has neither form.
    pub fn dial(endpoint: &str) -> Result<Self, LinkError> {
        Self::dial_with(endpoint, None)
    }

    /// As [`Link::dial`], sending the mesh's credential with each call.
    ///
    /// # Errors
    /// When the address has neither form.
    pub fn dial_with(endpoint: &str, token: Option<Secret>) -> Result<Self, LinkError> {
        let channel = connect(endpoint).ok_or_else(|| LinkError::InvalidEndpoint(endpoint.to_owned()))?;
        Ok(Self { target: endpoint.into(), to: To::Remote(channel, token) })
    }

    /// A link to whichever is there of several processes, whose addresses have commas between them; sending
    /// the mesh's credential with each call.
    ///
    /// # Errors
    /// When an address has neither form.
    pub fn dial_any(endpoints: &str, token: Option<&Secret>) -> Result<Self, LinkError> {
        let links: Vec<_> = endpoints
            .split(',')
            .map(|endpoint| Self::dial_with(endpoint.trim(), token.cloned()))
            .collect::<Result<_, _>>()?;
        Ok(match <[Self; 1]>::try_from(links) {
            Ok([link]) => link,
            Err(links) => Self { target: endpoints.into(), to: To::Several(Arc::new(Several::new(links))) },
        })
    }

    /// Where it leads: an address, or the name of a role of this process.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Whether it leads to this process.
    #[must_use]
    pub fn is_here(&self) -> bool {
        matches!(self.to, To::Local(_))
    }

    /// The links to each of the processes behind this one.
    #[must_use]
    pub fn each(&self) -> Vec<Self> {
        match &self.to {
            To::Several(several) => several.each().to_vec(),
            _ => vec![self.clone()],
        }
    }

    /// As [`Link::dial`], with one connection for all calls, streams too: for a caller that reads every
    /// stream as it comes. It saves a connection for each of them.
    ///
    /// # Errors
    /// When the address has neither form.
    pub fn dial_shared(endpoint: &str) -> Result<Self, LinkError> {
        let channel = connect(endpoint).ok_or_else(|| LinkError::InvalidEndpoint(endpoint.to_owned()))?;
        Ok(Self { target: endpoint.into(), to: To::Shared(channel) })
    }
}

/// A channel that connects when first used; `None` for an address of neither form.
fn connect(endpoint: &str) -> Option<Channel> {
    match endpoint.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Some(unix_channel(path.to_owned())),
        _ if endpoint.starts_with("http://") => {
            Some(tuned(Endpoint::from_shared(endpoint.to_owned()).ok()?).connect_lazy())
        }
        _ => None,
    }
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        // A chunk of output in one frame, and not in five.
        .max_frame_size(FRAME_BYTES)
}

fn unix_channel(path: String) -> Channel {
    // The address is not used: the connector knows the path. It becomes the `:authority`.
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    tuned(Endpoint::from_static("http://localhost")).connect_with_connector_lazy(connector)
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.target).finish()
    }
}

impl Service<Request> for Link {
    type Response = Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        inject_trace(&mut request);
        let link = self.clone();
        Box::pin(async move { Ok(link.answer(request).await) })
    }
}

impl Link {
    async fn answer(self, request: Request) -> Response {
        match self.to {
            To::Local(slot) => match slot.get() {
                Some(router) => match router.oneshot(request).await {
                    Ok(answer) => answer.map(Body::new),
                    Err(never) => match never {},
                },
                None => Status::unavailable(format!("role `{}` is not running", self.target)).into_http(),
            },
            To::Remote(channel, token) => {
                let channel = channel_for(channel, &self.target, &request);
                call_remote(channel, token, request).await
            }
            To::Shared(channel) => call_remote(channel, None, request).await,
            // They are links themselves.
            To::Several(several) => Box::pin(several.call(request)).await,
        }
    }
}

/// A stream gets a connection of its own: one whose reader is slow would use up the flow-control window
/// of the connection, and every other call on it would wait. It closes when the stream ends.
fn channel_for(shared: Channel, target: &str, request: &Request) -> Channel {
    if !sandmesh_proto::is_server_streaming(request.uri().path()) {
        return shared;
    }
    connect(target).unwrap_or(shared)
}

async fn call_remote(channel: Channel, token: Option<Secret>, mut request: Request) -> Response {
    if let Some(value) = token.and_then(|token| token.expose().parse().ok()) {
        request.headers_mut().insert(TOKEN_HEADER, value);
    }
    match channel.oneshot(request).await {
        Ok(response) => response.map(Answer::of),
        // tonic would report its own timer as CANCELLED; the caller's deadline passed, so say that.
        Err(error) if caused_by::<TimeoutExpired>(&error) => {
            Status::deadline_exceeded("deadline exceeded").into_http()
        }
        Err(error) if caused_by::<ConnectError>(&error) => {
            not_sent("the other side does not answer").into_http()
        }
        Err(error) => {
            // tonic would report a connection that broke as UNKNOWN.
            tracing::debug!(error = &error as &dyn Error, "a call did not get through");
            Status::unavailable("the other side does not answer").into_http()
        }
    }
}

/// The metadata key that says that a call never left this process.
const NOT_SENT: &str = "sandmesh-not-sent";

/// The status of a call that had no effect, as it never reached who was to do it.
#[must_use]
pub fn not_sent(message: &str) -> Status {
    let mut status = Status::unavailable(message);
    status.metadata_mut().insert(NOT_SENT, MetadataValue::from_static("1"));
    status
}

/// Whether a call that failed never reached the other side, as nobody was there: it had no effect.
#[must_use]
pub fn was_not_sent(status: &Status) -> bool {
    status.metadata().contains_key(NOT_SENT)
}

fn caused_by<T: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<T>() {
            return true;
        }
        next = error.source();
    }
    false
}

struct Headers<'a>(&'a mut http::HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (http::HeaderName::try_from(key), value.parse()) {
            self.0.insert(name, value);
        }
    }
}

fn inject_trace(request: &mut Request) {
    let context = tracing::Span::current().context();
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Headers(request.headers_mut()));
    });
}
