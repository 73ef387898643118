//! The executors of this node for who cannot dial them: calls go on to the socket of the sandbox that they name.
//!
//! Nothing is decoded. That there is no such sandbox, or nobody at its socket, is told as to one who dials that
//! socket: the call was not sent.

use std::{
    convert::Infallible,
    fmt,
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use sandmesh_mesh::{Link, SANDBOX_HEADER, TOKEN_HEADER, not_sent};
use tonic::{Status, body::Body, server::NamedService};

use crate::{convert::known_id, service::Service};

type Request = http::Request<Body>;
type Response = http::Response<Body>;

/// Passes on the calls of one gRPC service; `S` is the generated server that names it.
pub(crate) struct Forward<S> {
    service: Arc<Service>,
    named: PhantomData<fn() -> S>,
}

impl<S> Forward<S> {
    pub(crate) fn new(service: Arc<Service>) -> Self {
        Self { service, named: PhantomData }
    }

    /// The way to the executor that a call is for.
    fn way(&self, request: &Request) -> Result<Link, Status> {
        let id = request.headers().get(SANDBOX_HEADER).and_then(|id| id.to_str().ok());
        let missing = || format!("metadata `{SANDBOX_HEADER}` does not say whose executor is meant");
        let id = id.ok_or_else(|| Status::invalid_argument(missing()))?;
        let gone = || not_sent(&format!("sandbox `{id}` does not run on this node"));
        let sandbox = known_id(id).ok().and_then(|id| self.service.get(&id).ok()).ok_or_else(gone)?;
        Link::dial(&sandbox.facts.endpoint).map_err(|_| gone())
    }
}

impl<S> Clone for Forward<S> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.service))
    }
}

impl<S> fmt::Debug for Forward<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forward").finish_non_exhaustive()
    }
}

impl<S: NamedService> NamedService for Forward<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: 'static> tower::Service<Request> for Forward<S> {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let way = self.way(&request);
        // The executor is in reach of user code: it is told nothing that is between others.
        for header in [SANDBOX_HEADER, TOKEN_HEADER] {
            request.headers_mut().remove(header);
        }
        Box::pin(async move {
            let mut executor = match way {
                Ok(executor) => executor,
                Err(status) => return Ok(status.into_http()),
            };
            Ok(executor.call(request).await.unwrap_or_else(|error| Status::from_error(error).into_http()))
        })
    }
}
