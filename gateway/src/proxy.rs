//! gRPC and gRPC-web for clients: calls of public services pass through to their role as they are, frame
//! by frame in both directions, so a new rpc needs nothing here.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::any,
};
use futures::{future::join_all, stream::BoxStream};
use http::{HeaderMap, HeaderName, Version, header};
use sandmesh_mesh::{Link, public_reflection, status};
use tonic::Status;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tonic_web::GrpcWebLayer;
use tower::Service;

use crate::{app::App, auth, error::Edge};

/// How long a role may take to say that it serves.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a watched health is measured.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// Headers that belong to a connection, or to the gateway, and are not passed on.
const NOT_PASSED: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::COOKIE,
    header::HOST,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// The public services, their reflection and their health. Anything else is UNIMPLEMENTED.
pub(crate) fn router(app: &App) -> anyhow::Result<Router> {
    let services = app.public_services();
    let mut router = public_reflection(&services.each_ref().map(|(name, _)| *name))?;
    for (name, link) in services.clone() {
        let path = format!("/{name}/{{method}}");
        router = router.route(&path, any(move |request: Request| forward(link.clone(), request)));
    }
    let health = HealthServer::new(Readiness::of(app));
    let router = router.route_service("/grpc.health.v1.Health/{method}", health).fallback(unknown);
    Ok(router.layer(from_fn_with_state(app.clone(), auth::guard)).layer(GrpcWebLayer::new()))
}

async fn unknown(request: Request) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    status(Edge::UnknownRpc(path)).into_http::<Body>().into_response()
}

async fn forward(mut link: Link, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    // What this server knows about the request stays here: a router at the other end makes its own.
    let mut call = http::Request::new(tonic::body::Body::new(body));
    *call.method_mut() = parts.method;
    *call.uri_mut() = parts.uri;
    *call.version_mut() = Version::HTTP_2;
    *call.headers_mut() = passed(parts.headers);
    match link.call(call).await {
        Ok(response) => response.map(Body::new),
        Err(error) => {
            tracing::warn!(error, ?link, "a call could not be passed on");
            Status::unavailable("a part of the service does not answer").into_http::<Body>().into_response()
        }
    }
}

fn passed(mut headers: HeaderMap) -> HeaderMap {
    for name in NOT_PASSED {
        headers.remove(name);
    }
    headers
}

/// `grpc.health.v1` of the public services: what their roles say about themselves.
#[derive(Debug, Clone)]
pub(crate) struct Readiness(Vec<(&'static str, Link)>);

/// What sessions are created and run by.
const NEEDED: [&str; 2] = ["sandmesh.session.v1.SessionService", "sandmesh.template.v1.TemplateService"];

impl Readiness {
    /// Asks the roles behind the public services.
    pub(crate) fn of(app: &App) -> Self {
        Self(app.public_services().to_vec())
    }

    /// Whether sessions can be created and run, asked now.
    pub(crate) async fn is_ready(&self) -> bool {
        let asked = join_all(NEEDED.map(|name| self.measure_one(name))).await;
        asked.into_iter().all(|status| status == Some(ServingStatus::Serving))
    }

    /// The status of a service, asked now; `None` when it is not a public one. The empty name stands for
    /// the main job.
    async fn measure(&self, name: &str) -> Option<ServingStatus> {
        if !name.is_empty() {
            return self.measure_one(name).await;
        }
        Some(if self.is_ready().await { ServingStatus::Serving } else { ServingStatus::NotServing })
    }

    async fn measure_one(&self, name: &str) -> Option<ServingStatus> {
        let (service, link) = self.0.iter().find(|(service, _)| *service == name)?;
        let mut request = tonic::Request::new(HealthCheckRequest { service: (*service).to_owned() });
        request.set_timeout(HEALTH_TIMEOUT);
        let answer = HealthClient::new(link.clone()).check(request).await;
        Some(answer.map_or(ServingStatus::NotServing, |answer| answer.into_inner().status()))
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Readiness {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        let status = self.measure(&name).await;
        let status = status.ok_or_else(|| Status::not_found(format!("service `{name}` not found")))?;
        Ok(tonic::Response::new(response(status)))
    }

    async fn watch(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let (this, name) = (self.clone(), request.into_inner().service);
        let changes = async_stream::stream! {
            let mut last = None;
            loop {
                let status = this.measure(&name).await.unwrap_or(ServingStatus::ServiceUnknown);
                if last.replace(status) != Some(status) {
                    yield Ok(response(status));
                }
                tokio::time::sleep(HEALTH_INTERVAL).await;
            }
        };
        Ok(tonic::Response::new(Box::pin(changes)))
    }
}
