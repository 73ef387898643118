//! How one role calls another, wherever it runs.
//!
//! A [`Link`] is a tower service that any generated client accepts. Behind it is this process's own
//! router, or a channel over TCP or a unix socket that connects when first used and reconnects.

mod remote;
mod several;

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::Router;
use futures::future::BoxFuture;
use opentelemetry::propagation::Injector;
use tonic::{Status, body::Body, metadata::MetadataValue};
use tower::{Service, ServiceExt};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use self::{remote::Remote, several::Several};
use crate::{RoleName, Secret, tls::Credentials};

/// The metadata key that carries the mesh's own credential.
pub const TOKEN_HEADER: &str = "x-sandmesh-token";

/// The metadata key that names the sandbox whose executor is meant, at an agent that serves those of many.
pub const SANDBOX_HEADER: &str = "x-sandmesh-sandbox";

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
    /// The address is neither `http://HOST:PORT` nor `unix:PATH`, nor, where there are certificates,
    /// `https://HOST:PORT`.
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
    Remote(Box<Remote>),
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
        Self::remote(endpoint, Remote::plain(endpoint, token))
    }

    /// A link to another machine, `https://HOST:PORT` or `https://NODE@HOST:PORT[/SANDBOX]`, which is sure to be
    /// the control plane or that node, or else is not spoken to.
    ///
    /// # Errors
    /// When the address has neither form.
    pub(crate) fn dial_machine(endpoint: &str, credentials: &Credentials) -> Result<Self, LinkError> {
        Self::remote(endpoint, Remote::tls(endpoint, credentials))
    }

    fn remote(endpoint: &str, remote: Option<Remote>) -> Result<Self, LinkError> {
        let to = remote.ok_or_else(|| LinkError::InvalidEndpoint(endpoint.to_owned()))?;
        Ok(Self { target: endpoint.into(), to: To::Remote(Box::new(to)) })
    }

    /// A link to whichever is there of several processes, whose addresses have commas between them; sending
    /// the mesh's credential with each call.
    ///
    /// # Errors
    /// When an address has neither form.
    pub fn dial_any(endpoints: &str, token: Option<&Secret>) -> Result<Self, LinkError> {
        Self::any(endpoints, |endpoint| Self::dial_with(endpoint, token.cloned()))
    }

    /// As [`Link::dial_any`], of several machines: see [`Link::dial_machine`].
    pub(crate) fn dial_any_machine(endpoints: &str, credentials: &Credentials) -> Result<Self, LinkError> {
        Self::any(endpoints, |endpoint| Self::dial_machine(endpoint, credentials))
    }

    fn any(endpoints: &str, dial: impl Fn(&str) -> Result<Self, LinkError>) -> Result<Self, LinkError> {
        let links: Vec<_> = endpoints.split(',').map(|one| dial(one.trim())).collect::<Result<_, _>>()?;
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

    /// With one connection for all calls, streams too: for a caller that reads every stream as it comes. It saves
    /// a connection for each of them.
    #[must_use]
    pub fn shared(mut self) -> Self {
        if let To::Remote(remote) = self.to {
            self.to = To::Remote(Box::new(remote.shared()));
        }
        self
    }
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
            To::Remote(remote) => remote.call(request).await,
            // They are links themselves.
            To::Several(several) => Box::pin(several.call(request)).await,
        }
    }
}

/// The metadata key that says that a call never left this process.
const NOT_SENT: &str = "sandmesh-not-sent";

/// Whether an address is on another machine, which joined as a node, or where machines join: a link there is
/// encrypted, and sure of whom it leads to.
#[must_use]
pub fn is_elsewhere(endpoint: &str) -> bool {
    endpoint.starts_with(ELSEWHERE)
}

/// What addresses on other machines begin with.
const ELSEWHERE: &str = "https://";

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

/// Takes from a status that it was not sent, for who passes on what another was told.
pub fn forget_not_sent(status: &mut Status) {
    status.metadata_mut().remove(NOT_SENT);
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
