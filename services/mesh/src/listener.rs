//! Where a node is reached: TCP or a unix socket, HTTP/1 and HTTP/2 on the same port.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use axum::{Router, extract::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{either::Either, sync::CancellationToken};
use tower::util::MapRequest;

use crate::{
    Tasks,
    tls::{Credentials, Peer},
};

/// Calls at once on one connection. One connection carries all calls between two roles, and many of them
/// wait for something: the usual 200 would make short calls wait behind those.
const MAX_STREAMS: u32 = 16 * 1024;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long to wait when no connection can be accepted, as with too many open files.
const PAUSE: Duration = Duration::from_millis(200);

/// Connections at once on one address; more wait to be accepted.
const MAX_CONNECTIONS: usize = 10_000;

type Stream = Either<TcpStream, UnixStream>;

/// Calls at once on a connection of a machine that joins or has: it makes one every few seconds.
const MAX_NODE_STREAMS: u32 = 16;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How many strangers are spoken to at once, and for how long: they have one call to make.
const MAX_STRANGERS: usize = 1000;
const STRANGER_TIMEOUT: Duration = Duration::from_secs(15);

/// How connections are encrypted, and from whom they are taken.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    /// What is shown.
    credentials: Credentials,
    /// Places for strangers, who show no certificate; what they may do is for others to say. `None`: nobody
    /// speaks to them.
    strangers: Option<Arc<Semaphore>>,
    /// Whether there were none left when one was wanted last.
    is_full: Arc<AtomicBool>,
}

impl Tls {
    pub(crate) fn new(credentials: Credentials, strangers: bool) -> Self {
        let strangers = strangers.then(|| Arc::new(Semaphore::new(MAX_STRANGERS)));
        Self { credentials, strangers, is_full: Arc::default() }
    }

    /// Serves a connection to its end; that of a stranger, or of a certificate whose time is over, for a while.
    async fn converse(
        &self,
        stream: Stream,
        router: Router,
        builder: &auto::Builder<TokioExecutor>,
        watcher: Watcher,
    ) {
        let place = self.strangers.as_ref().map(|places| Arc::clone(places).try_acquire_owned());
        let is_full = matches!(place, Some(Err(_)));
        if is_full != self.is_full.swap(is_full, Ordering::Relaxed) {
            tracing::warn!(is_full, "strangers are turned away while too many connect");
        }
        if is_full {
            return;
        }
        match self.accept(stream).await {
            Ok((stream, peer)) => {
                let limit = peer.lasts().unwrap_or(STRANGER_TIMEOUT);
                let _place = place.filter(|_| !peer.is_known());
                // Who is known comes again with its next certificate.
                let served = converse(stream, router, Some(peer), builder, watcher);
                let _ = tokio::time::timeout(limit, served).await;
            }
            Err(error) => tracing::debug!(%error, "a connection is not what it should be"),
        }
    }

    async fn accept(&self, stream: Stream) -> io::Result<(TlsStream<Stream>, Peer)> {
        let held = self.credentials.current().await.map_err(io::Error::other)?;
        let config = if self.strangers.is_some() { held.open_server } else { held.server };
        let accept = TlsAcceptor::from(config).accept(stream);
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no handshake in time");
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, accept).await.unwrap_or_else(|_| Err(late()))?;
        let peer = Peer::of(stream.get_ref().1.peer_certificates());
        Ok((stream, peer))
    }
}

/// A bound address.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds `HOST:PORT` or `unix:PATH`. A socket file that nobody serves is replaced.
    pub(crate) async fn bind(address: &str) -> anyhow::Result<Self> {
        let Some(path) = address.strip_prefix("unix:") else { return Self::tcp(address).await };
        if UnixStream::connect(path).await.is_ok() {
            bail!("cannot listen on `{address}`: another process serves it");
        }
        // What is left there is of a process that was killed.
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on `{address}`"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self::Unix(listener))
    }

    /// Binds `HOST:PORT`.
    pub(crate) async fn tcp(address: &str) -> anyhow::Result<Self> {
        let listener = match TcpListener::bind(address).await {
            // A kernel without IPv6.
            Err(_) if address.starts_with("[::]:") => {
                TcpListener::bind(address.replacen("[::]", "0.0.0.0", 1)).await
            }
            bound => bound,
        };
        Ok(Self::Tcp(listener.with_context(|| format!("cannot listen on `{address}`"))?))
    }

    /// The address that was bound, for the log.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(|a| a.to_string()).unwrap_or_default(),
            Self::Unix(_) => "unix".into(),
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Small frames go out at once: a stream of output is no bulk transfer.
                stream.set_nodelay(true)?;
                Ok(Either::Left(stream))
            }
            Self::Unix(listener) => Ok(Either::Right(listener.accept().await?.0)),
        }
    }

    /// Serves until `tasks` are told to end: then no new connection is taken, and those that are open end
    /// after the calls in flight.
    pub(crate) async fn serve(self, router: Router, tasks: Tasks, tls: Option<Tls>) {
        let streams = match &tls {
            Some(Tls { strangers: Some(_), .. }) => MAX_NODE_STREAMS,
            _ => MAX_STREAMS,
        };
        let (builder, connections, done) = (builder(streams), GracefulShutdown::new(), tasks.token());
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
            let stream = tokio::select! {
                accepted = self.accept() => match accepted {
                    Ok(stream) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                },
                () = done.cancelled() => break,
            };
            let (router, tls) = (router.clone(), tls.clone());
            let (builder, watcher, done) = (builder.clone(), connections.watcher(), done.clone());
            tasks.spawn("connection", async move {
                let _place = place;
                if !speaks(&stream, &done).await {
                    return;
                }
                let Some(tls) = tls else { return converse(stream, router, None, &builder, watcher).await };
                tls.converse(stream, router, &builder, watcher).await;
            });
        }
        drop(self);
        connections.shutdown().await;
    }
}

/// Serves one connection; each request says who the `peer` is, if that is known.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: Router,
    peer: Option<Peer>,
    builder: &auto::Builder<TokioExecutor>,
    watcher: Watcher,
) {
    let service = MapRequest::new(router, move |mut request: Request<Incoming>| {
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        request
    });
    let service = TowerToHyperService::new(service);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection.into_owned()).await {
        tracing::debug!(error, "a connection broke");
    }
}

/// Whether a client says something within its time: nothing else bounds how long one may be silent.
async fn speaks(stream: &Stream, done: &CancellationToken) -> bool {
    let readable = async {
        match stream {
            Either::Left(stream) => stream.readable().await,
            Either::Right(stream) => stream.readable().await,
        }
    };
    tokio::select! {
        spoken = tokio::time::timeout(HEAD_TIMEOUT, readable) => matches!(spoken, Ok(Ok(()))),
        () = done.cancelled() => false,
    }
}

fn builder(streams: u32) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Duration::from_secs(30));
    builder
}
