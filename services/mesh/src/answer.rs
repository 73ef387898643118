//! The body of an answer that comes over the network.
//!
//! When the connection breaks in the middle of it, the caller is told UNAVAILABLE, as when it breaks before:
//! a client tries again after that, and not after the INTERNAL or UNKNOWN that a broken body would become.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Status, body::Body};

/// Ends with UNAVAILABLE where the body that it wraps breaks.
#[derive(Debug)]
pub(crate) struct Answer(Body);

impl Answer {
    pub(crate) fn of(body: Body) -> Body {
        if body.is_end_stream() { body } else { Body::new(Self(body)) }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let error = match ready!(Pin::new(&mut self.0).poll_frame(context)) {
            Some(Err(error)) => error,
            frame => return Poll::Ready(frame),
        };
        tracing::debug!(%error, "an answer broke off");
        self.0 = Body::empty();
        let mut trailers = HeaderMap::new();
        let told = Status::unavailable("the other side went away").add_header(&mut trailers);
        Poll::Ready(Some(told.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
