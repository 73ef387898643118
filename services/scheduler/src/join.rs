//! Machines that join: tokens and certificates, and what their nodes may call.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sandmesh_mesh::{
    Clock, FieldViolation, Mesh, NodeCalls, ServerBuilder,
    tls::{Authority, JoinToken, Name, Peer},
};
use sandmesh_proto::{
    agent::Node,
    scheduler::{
        Certificate, IssueCertificateRequest, IssueCertificateResponse, JoinRequest, JoinResponse,
        RenewCertificateRequest, RenewCertificateResponse,
        certificate_service_server::{CertificateService, CertificateServiceServer},
        join_service_server::{JoinService, JoinServiceServer},
    },
};
use tonic::{Request, Response, Status, service::Routes};

use crate::{Error, config::Join as Settings, grpc, service::Service};

/// The longest id of a node.
const NODE_ID_MAX: usize = 63;

/// What machines may call.
const CALLS: NodeCalls = NodeCalls {
    of_strangers: &["/sandmesh.scheduler.v1.JoinService/Join"],
    of_nodes: &[
        "/sandmesh.scheduler.v1.JoinService/RenewCertificate",
        "/sandmesh.scheduler.v1.SchedulerService/RegisterNode",
    ],
};

/// Lets machines join. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Entrance(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    clock: Arc<dyn Clock>,
    service: Arc<Service>,
    /// `None` where no machine may join.
    authority: Option<Authority>,
}

impl Entrance {
    /// Opens the authority, if machines may join.
    ///
    /// # Errors
    /// When its files cannot be used.
    pub(crate) fn new(settings: &Settings, service: Arc<Service>, mesh: &Mesh) -> anyhow::Result<Self> {
        let (settings, clock) = (settings.clone(), mesh.clock());
        let authority = match settings.listen {
            None => None,
            Some(_) => {
                let (certificate, key) = settings.files(mesh.data_dir());
                Some(Authority::open(&certificate, &key, clock.now())?)
            }
        };
        Ok(Self(Arc::new(Inner { settings, clock, service, authority })))
    }

    /// Serves machines, where they may join.
    pub(crate) fn register(&self, server: &mut ServerBuilder) {
        server.add(CertificateServiceServer::new(self.clone()));
        if let Some(listen) = self.0.settings.listen {
            let routes = Routes::new(JoinServiceServer::new(self.clone()));
            server.serve_nodes(listen, routes.add_service(grpc::server(Arc::clone(&self.0.service))), CALLS);
        }
    }

    /// A token to join with, until when it works, and where.
    ///
    /// # Errors
    /// `JoinDisabled`, `Invalid`.
    pub(crate) fn token(
        &self,
        valid_for: Option<Duration>,
    ) -> Result<(JoinToken, DateTime<Utc>, SocketAddr), Error> {
        let listen = self.0.settings.listen.ok_or(Error::JoinDisabled)?;
        let valid_for = valid_for.unwrap_or(self.0.settings.token_valid_for.0);
        if !Settings::TOKEN_VALID_FOR.contains(&valid_for) {
            let violation =
                FieldViolation::new("valid_for", "value_error", "must be from 1 minute to 30 days");
            return Err(Error::Invalid(violation));
        }
        let expires_at = self.0.clock.now() + valid_for;
        tracing::info!(%expires_at, "a token to join with was made");
        Ok((self.authority()?.token(expires_at), expires_at, listen))
    }

    fn authority(&self) -> Result<&Authority, Error> {
        self.0.authority.as_ref().ok_or(Error::JoinDisabled)
    }

    fn admit(&self, request: &JoinRequest) -> Result<Certificate, Error> {
        let JoinRequest { token, node_id, signing_request } = request;
        let now = self.0.clock.now();
        let token: JoinToken = token.parse().map_err(|_| Error::JoinToken)?;
        if !self.authority()?.admits(&token, now) {
            return Err(Error::JoinToken);
        }
        check_id(node_id)?;
        if self.0.service.registry().is_present(node_id) {
            return Err(Error::NodeExists(node_id.clone()));
        }
        tracing::info!(node.id = node_id, "a machine joined");
        self.certify(signing_request, &Name::Node(node_id.clone()))
    }

    fn certify(&self, signing_request: &[u8], name: &Name) -> Result<Certificate, Error> {
        let (now, lifetime) = (self.0.clock.now(), self.0.settings.certificate_valid_for.0);
        let certified = self.authority()?.certify(signing_request, name, now, lifetime);
        certified.map_err(|error| {
            Error::Invalid(FieldViolation::new("signing_request", "value_error", error.to_string()))
        })
    }
}

fn check_id(node_id: &str) -> Result<(), Error> {
    let usable = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if node_id.is_empty() || node_id.len() > NODE_ID_MAX || !node_id.chars().all(usable) {
        let problem = format!("must be 1 to {NODE_ID_MAX} of a-z, 0-9, `-` and `.`");
        return Err(Error::Invalid(FieldViolation::new("node_id", "value_error", problem)));
    }
    Ok(())
}

/// A node that joined speaks for itself only, and is where it says that it is by its own name.
///
/// # Errors
/// `NotThatNode`, `Invalid`.
pub(crate) fn check_speaker(peer: Option<&Peer>, node: &Node) -> Result<(), Error> {
    // Without one it is a process of the mesh, which is trusted.
    let Some(peer) = peer else { return Ok(()) };
    if !peer.is(&Name::Node(node.node_id.clone())) {
        return Err(Error::NotThatNode(node.node_id.clone()));
    }
    let place = node.endpoint.strip_prefix("https://").and_then(|rest| rest.split_once('@'));
    match place {
        Some((name, address)) if name == node.node_id && !address.contains(['/', '@']) => Ok(()),
        _ => Err(Error::Invalid(FieldViolation::new(
            "node.endpoint",
            "value_error",
            format!("must be `https://{}@HOST:PORT`", node.node_id),
        ))),
    }
}

#[tonic::async_trait]
impl JoinService for Entrance {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let certificate = self.admit(request.get_ref()).map_err(Error::into_status)?;
        Ok(Response::new(JoinResponse { certificate: Some(certificate) }))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let name = Name::Node(request.get_ref().node_id.clone());
        let peer = request.extensions().get::<Peer>();
        if !peer.is_some_and(|peer| peer.is(&name)) {
            return Err(Error::NotThatNode(request.into_inner().node_id).into_status());
        }
        let certificate = self.certify(&request.get_ref().signing_request, &name);
        let certificate = Some(certificate.map_err(Error::into_status)?);
        Ok(Response::new(RenewCertificateResponse { certificate }))
    }
}

#[tonic::async_trait]
impl CertificateService for Entrance {
    async fn issue_certificate(
        &self,
        request: Request<IssueCertificateRequest>,
    ) -> Result<Response<IssueCertificateResponse>, Status> {
        let certificate = self.certify(&request.get_ref().signing_request, &Name::Control);
        let certificate = Some(certificate.map_err(Error::into_status)?);
        Ok(Response::new(IssueCertificateResponse { certificate }))
    }
}
