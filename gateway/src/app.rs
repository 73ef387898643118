//! What handlers work with, and how requests find them.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{FromRequestParts, Request, State},
    middleware::{from_fn, from_fn_with_state},
    response::Response,
};
use http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts};
use sandmesh_mesh::{Link, MAX_MESSAGE_BYTES, Mesh, RoleName, traced};
use sandmesh_proto::{
    health::health_probe_service_client::HealthProbeServiceClient,
    scheduler::{node_service_client::NodeServiceClient, pool_service_client::PoolServiceClient},
    session::{
        dependency_service_client::DependencyServiceClient, file_service_client::FileServiceClient,
        session_event_service_client::SessionEventServiceClient,
        session_service_client::SessionServiceClient,
    },
    statesync::state_sync_service_client::StateSyncServiceClient,
    template::template_service_client::TemplateServiceClient,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer},
};

use crate::{
    config::Config,
    error::{ApiError, Edge},
    metrics::{self, Metrics},
    openapi, proxy,
    request::{self, Context, IGNORED_FIELDS, REQUEST_ID},
    rest,
};

/// What handlers share. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct App(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Config,
    mesh: Mesh,
    session: Link,
    template: Link,
    scheduler: Link,
    metrics: Metrics,
    health: Link,
    state_sync: Link,
    /// One permit for each KiB of request bodies in work.
    body_memory: Arc<Semaphore>,
}

impl App {
    /// Finds the roles that clients are served by.
    pub(crate) fn new(config: &Config, mesh: &Mesh) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Shared {
            config: config.clone(),
            mesh: mesh.clone(),
            session: mesh.link(RoleName::Session)?,
            template: mesh.link(RoleName::Template)?,
            scheduler: mesh.link(RoleName::Scheduler)?,
            metrics: Metrics::new()?,
            health: mesh.link(RoleName::HealthProbe)?,
            state_sync: mesh.link(RoleName::StateSync)?,
            body_memory: Arc::new(Semaphore::new(kib(config.body_memory.0) as usize)),
        })))
    }

    /// The settings.
    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    /// Waits for memory for a body of at most `bytes`, for as long as a body may take to arrive.
    pub(crate) async fn body_memory(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Edge> {
        let permits = Arc::clone(&self.0.body_memory).acquire_many_owned(kib(bytes));
        let permits = tokio::time::timeout(self.config().body_timeout.0, permits).await;
        permits.ok().and_then(Result::ok).ok_or(Edge::Busy)
    }

    /// The version of the program.
    pub(crate) fn version(&self) -> &'static str {
        self.0.mesh.version()
    }

    /// What is counted here.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Seconds since this process started.
    pub(crate) fn uptime(&self) -> f64 {
        let up = self.0.mesh.clock().now() - self.0.mesh.started_at();
        up.to_std().unwrap_or(Duration::ZERO).as_secs_f64()
    }

    /// The services that clients may call by gRPC, and who answers.
    pub(crate) fn public_services(&self) -> [(&'static str, Link); 7] {
        [
            ("sandmesh.session.v1.SessionService", self.0.session.clone()),
            ("sandmesh.session.v1.FileService", self.0.session.clone()),
            ("sandmesh.session.v1.DependencyService", self.0.session.clone()),
            ("sandmesh.template.v1.TemplateService", self.0.template.clone()),
            ("sandmesh.health.v1.HealthProbeService", self.0.health.clone()),
            ("sandmesh.scheduler.v1.NodeService", self.0.scheduler.clone()),
            ("sandmesh.scheduler.v1.PoolService", self.0.scheduler.clone()),
        ]
    }
}

fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

/// How a handler calls the roles on behalf of one request.
#[derive(Debug)]
pub(crate) struct Call {
    app: App,
    context: Context,
}

impl FromRequestParts<App> for Call {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        Ok(Self { app: app.clone(), context: Context::from_request_parts(parts, app).await? })
    }
}

impl Call {
    /// What handlers share.
    pub(crate) fn app(&self) -> &App {
        &self.app
    }

    /// The id of the request.
    pub(crate) fn request_id(&self) -> &str {
        self.context.id()
    }

    /// The session role.
    pub(crate) fn sessions(&self) -> SessionServiceClient<Link> {
        SessionServiceClient::new(self.app.0.session.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The files of the session role.
    pub(crate) fn files(&self) -> FileServiceClient<Link> {
        FileServiceClient::new(self.app.0.session.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The numbers of the session role.
    pub(crate) fn statistics(&self) -> SessionEventServiceClient<Link> {
        SessionEventServiceClient::new(self.app.0.session.clone())
    }

    /// The session role, for the packages of sessions.
    pub(crate) fn dependencies(&self) -> DependencyServiceClient<Link> {
        DependencyServiceClient::new(self.app.0.session.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The template role.
    pub(crate) fn templates(&self) -> TemplateServiceClient<Link> {
        TemplateServiceClient::new(self.app.0.template.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The health-probe role.
    pub(crate) fn health(&self) -> HealthProbeServiceClient<Link> {
        HealthProbeServiceClient::new(self.app.0.health.clone())
    }

    /// The nodes and their sandboxes, by the scheduler role.
    pub(crate) fn nodes(&self) -> NodeServiceClient<Link> {
        NodeServiceClient::new(self.app.0.scheduler.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The warm sandboxes, by the scheduler role.
    pub(crate) fn pools(&self) -> PoolServiceClient<Link> {
        PoolServiceClient::new(self.app.0.scheduler.clone())
    }

    /// The state-sync role.
    pub(crate) fn state_sync(&self) -> StateSyncServiceClient<Link> {
        StateSyncServiceClient::new(self.app.0.state_sync.clone())
    }

    /// Lets other bodies have the memory of this one, which is in other hands now.
    pub(crate) fn release_body(&self) {
        self.context.release();
    }

    /// A message for a call that answers at once.
    pub(crate) fn unary<T>(&self, message: T) -> tonic::Request<T> {
        self.within(message, Duration::ZERO)
    }

    /// A message for a call that waits for `wait` before it answers.
    pub(crate) fn within<T>(&self, message: T, wait: Duration) -> tonic::Request<T> {
        let mut request = self.stream(message);
        request.set_timeout(self.app.config().rpc_timeout.0 + wait);
        request
    }

    /// A message for a call that streams until it is done, however long that takes.
    pub(crate) fn stream<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Ok(id) = self.context.id().parse() {
            request.metadata_mut().insert("x-request-id", id);
        }
        request
    }
}

/// Everything that clients can reach.
pub(crate) fn router(app: &App) -> anyhow::Result<Router> {
    let rest = rest::guarded(rest::router().merge(openapi::router()), app);
    let doors = Doors { grpc: proxy::router(app)?, rest };
    let router = Router::new().fallback(choose).with_state(doors);
    let router = router.layer(CatchPanicLayer::custom(request::panicked));
    let mut router = traced(router.layer(from_fn_with_state(app.clone(), metrics::count)));
    if let Some(cors) = cors(&app.config().cors_origins) {
        router = router.layer(cors);
    }
    Ok(router.layer(from_fn(request::track)))
}

/// The two doors behind the one port.
#[derive(Debug, Clone)]
struct Doors {
    grpc: Router,
    rest: Router,
}

async fn choose(State(doors): State<Doors>, request: Request) -> Result<Response, Infallible> {
    if is_grpc(request.headers()) {
        doors.grpc.oneshot(request).await
    } else {
        doors.rest.oneshot(request).await
    }
}

/// True for gRPC and gRPC-web.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    value.starts_with(b"application/grpc")
}

/// What pages of other origins may do; `None`: nothing.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    let allowed = match origins {
        [] => return None,
        origins if origins.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        origins => AllowOrigin::list(origins.iter().filter_map(|origin| origin.parse().ok())),
    };
    let grpc = ["grpc-status", "grpc-message", "grpc-status-details-bin"].map(HeaderName::from_static);
    let rest = [
        REQUEST_ID,
        IGNORED_FIELDS,
        header::LOCATION,
        header::RETRY_AFTER,
        header::CONTENT_DISPOSITION,
        header::CONTENT_RANGE,
        header::ETAG,
    ];
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods(AllowMethods::mirror_request())
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(rest.into_iter().chain(grpc).collect::<Vec<_>>())
            .max_age(Duration::from_secs(600)),
    )
}
