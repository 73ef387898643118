//! A link over the network: where it leads, and the connections of its calls.

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    ConnectError, Status, TimeoutExpired,
    transport::{Channel, Endpoint, Uri},
};
use tower::{ServiceExt, service_fn};

use super::{ELSEWHERE, Request, Response, SANDBOX_HEADER, TOKEN_HEADER, caused_by, not_sent};
use crate::{
    Secret,
    answer::Answer,
    tls::{self, Credentials, Name},
};

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest frame that a server may send: a chunk of output with what is around it.
const FRAME_BYTES: u32 = 65 << 10;

/// How often a connection is tried that says nothing: on this machine, and to another, which may be cut off.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(5));

/// Where a link leads.
#[derive(Debug, Clone)]
enum Way {
    /// `http://HOST:PORT`
    Http(Box<Endpoint>),
    /// A unix socket.
    Unix(Arc<str>),
    /// Another machine.
    Tls(Arc<Machine>),
}

#[derive(Debug)]
struct Machine {
    address: String,
    name: Name,
    credentials: Credentials,
}

/// A link over the network.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    way: Way,
    channel: Channel,
    token: Option<Secret>,
    /// The sandbox whose executor is meant, at an agent that serves many.
    sandbox: Option<HeaderValue>,
    /// Streams share the connection too.
    shared: bool,
}

impl Remote {
    /// To `http://HOST:PORT` or `unix:PATH`; `None` for an address of neither form.
    pub(super) fn plain(endpoint: &str, token: Option<Secret>) -> Option<Self> {
        let way = match endpoint.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Way::Unix(path.into()),
            _ if endpoint.starts_with("http://") => {
                Way::Http(Box::new(Endpoint::from_shared(endpoint.to_owned()).ok()?))
            }
            _ => return None,
        };
        Some(Self { channel: way.connect(), way, token, sandbox: None, shared: false })
    }

    /// To `https://HOST:PORT`, which is the control plane, or `https://NODE@HOST:PORT`, which is that node, or an
    /// executor there, `https://NODE@HOST:PORT/SANDBOX`; `None` for an address of neither form.
    pub(super) fn tls(endpoint: &str, credentials: &Credentials) -> Option<Self> {
        let rest = endpoint.strip_prefix(ELSEWHERE)?;
        let (place, sandbox) = rest.split_once('/').map_or((rest, None), |(place, id)| (place, Some(id)));
        let (name, address) = match place.rsplit_once('@') {
            Some((node, address)) if !node.is_empty() => (Name::Node(node.to_owned()), address),
            Some(_) => return None,
            None => (Name::Control, place),
        };
        let (_, port) = address.rsplit_once(':')?;
        port.parse::<u16>().ok()?;
        let sandbox = match sandbox {
            Some("") | None => None,
            Some(id) => Some(id.parse().ok()?),
        };
        let (address, credentials) = (address.to_owned(), credentials.clone());
        let way = Way::Tls(Arc::new(Machine { address, name, credentials }));
        Some(Self { channel: way.connect(), way, token: None, sandbox, shared: false })
    }

    /// With one connection for all calls, streams too.
    pub(super) fn shared(self) -> Self {
        Self { shared: true, ..self }
    }

    pub(super) async fn call(self, mut request: Request) -> Response {
        let channel = self.channel_for(&request);
        if let Some(value) = self.token.and_then(|token| token.expose().parse().ok()) {
            request.headers_mut().insert(TOKEN_HEADER, value);
        }
        if let Some(sandbox) = self.sandbox {
            request.headers_mut().insert(SANDBOX_HEADER, sandbox);
        }
        match channel.oneshot(request).await {
            Ok(response) => response.map(Answer::of),
            // tonic would report its own timer as CANCELLED; the caller's deadline passed, so say that.
            Err(error) if caused_by::<TimeoutExpired>(&error) => {
                Status::deadline_exceeded("deadline exceeded").into_http()
            }
            Err(error) if caused_by::<ConnectError>(&error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "nobody to connect to");
                not_sent("the other side does not answer").into_http()
            }
            Err(error) => {
                // tonic would report a connection that broke as UNKNOWN.
                tracing::debug!(error = &error as &dyn std::error::Error, "a call did not get through");
                Status::unavailable("the other side does not answer").into_http()
            }
        }
    }

    /// A stream gets a connection of its own: one whose reader is slow would use up the flow-control window
    /// of the connection, and every other call on it would wait. It closes when the stream ends.
    fn channel_for(&self, request: &Request) -> Channel {
        match self.shared || !sandmesh_proto::is_server_streaming(request.uri().path()) {
            true => self.channel.clone(),
            false => self.way.connect(),
        }
    }
}

impl Way {
    /// A channel that connects when first used.
    fn connect(&self) -> Channel {
        // Where the connector knows the way the address is not used. It becomes the `:authority`.
        let nameless = || Endpoint::from_static("http://localhost");
        match self {
            Self::Http(endpoint) => tuned(endpoint.as_ref().clone(), KEEP_ALIVE.0).connect_lazy(),
            Self::Unix(path) => {
                let path = Arc::clone(path);
                tuned(nameless(), KEEP_ALIVE.0).connect_with_connector_lazy(service_fn(move |_: Uri| {
                    let path = Arc::clone(&path);
                    async move { UnixStream::connect(&*path).await.map(TokioIo::new) }
                }))
            }
            Self::Tls(machine) => {
                let machine = Arc::clone(machine);
                tuned(nameless(), KEEP_ALIVE.1).connect_with_connector_lazy(service_fn(move |_: Uri| {
                    let machine = Arc::clone(&machine);
                    async move { machine.open().await.map(TokioIo::new) }
                }))
            }
        }
    }
}

impl Machine {
    async fn open(&self) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        let held = self.credentials.current().await.map_err(std::io::Error::other)?;
        tls::open(&self.address, &self.name, held.client).await
    }
}

fn tuned(endpoint: Endpoint, keep_alive: Duration) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(keep_alive)
        .keep_alive_timeout(keep_alive)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        // A chunk of output in one frame, and not in five.
        .max_frame_size(FRAME_BYTES)
}
