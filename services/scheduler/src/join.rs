//! Machines that join: tokens and certificates, and what their nodes may call.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sandmesh_mesh::{
    Clock, FieldViolation, Mesh, NodeCalls, ServerBuilder,
    tls::{Authority, JoinToken, Name, Peer, Shown},
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

use crate::{Error, config::Join as Settings, grpc, members::Members, service::Service};

/// The longest id of a node.
const NODE_ID_MAX: usize = 63;

/// The largest messages that strangers and nodes may send, in bytes.
const MAX_JOIN: usize = 16 << 10;
const MAX_REPORT: usize = 1 << 20;

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
            let join = JoinServiceServer::new(self.clone()).max_decoding_message_size(MAX_JOIN);
            let reports = grpc::server(Arc::clone(&self.0.service)).max_decoding_message_size(MAX_REPORT);
            server.serve_nodes(listen, Routes::new(join).add_service(reports), CALLS);
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
        self.0.service.members().check_free(node_id, now)?;
        tracing::info!(node.id = node_id, "a machine joined");
        self.certify(signing_request, (&Name::Node(node_id.clone()), None))
    }

    fn renew(
        &self,
        peer: Option<&Peer>,
        node_id: &str,
        signing_request: &[u8],
    ) -> Result<Certificate, Error> {
        let peer = peer.ok_or_else(|| Error::NotThatNode(node_id.to_owned()))?;
        let shown = shown(peer, node_id)?;
        self.0.service.members().enter(node_id, shown, self.0.clock.now())?;
        self.certify(signing_request, (&Name::Node(node_id.to_owned()), Some(&shown.machine)))
    }

    fn certify(&self, signing_request: &[u8], name: (&Name, Option<&str>)) -> Result<Certificate, Error> {
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

/// A node that joined speaks for itself only, from the machine that has its name, and is where it says that it is
/// by that name.
///
/// # Errors
/// `NotThatNode`, `NodeExists`, `NodeRemoved`, `Invalid`.
pub(crate) fn check_speaker(
    peer: Option<&Peer>,
    node: &Node,
    members: &Members,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    // Without one it is a process of the mesh, which is trusted.
    let Some(peer) = peer else { return Ok(()) };
    let shown = shown(peer, &node.node_id)?;
    if !is_place_of(&node.node_id, &node.endpoint) {
        let problem = format!("must be `https://{}@HOST:PORT`", node.node_id);
        return Err(Error::Invalid(FieldViolation::new("node.endpoint", "value_error", problem)));
    }
    members.enter(&node.node_id, shown, now)
}

/// What a node shows, which it must be.
fn shown<'a>(peer: &'a Peer, node_id: &str) -> Result<&'a Shown, Error> {
    let known = peer.is(&Name::Node(node_id.to_owned()));
    peer.shown().filter(|_| known).ok_or_else(|| Error::NotThatNode(node_id.to_owned()))
}

fn is_place_of(node_id: &str, endpoint: &str) -> bool {
    let place = endpoint.strip_prefix("https://").and_then(|rest| rest.split_once('@'));
    place.is_some_and(|(name, address)| name == node_id && !address.contains(['/', '@']))
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
        let peer = request.extensions().get::<Peer>().cloned();
        let RenewCertificateRequest { node_id, signing_request } = request.into_inner();
        let certificate =
            self.renew(peer.as_ref(), &node_id, &signing_request).map_err(Error::into_status)?;
        Ok(Response::new(RenewCertificateResponse { certificate: Some(certificate) }))
    }
}

#[tonic::async_trait]
impl CertificateService for Entrance {
    async fn issue_certificate(
        &self,
        request: Request<IssueCertificateRequest>,
    ) -> Result<Response<IssueCertificateResponse>, Status> {
        let certificate = self.certify(&request.get_ref().signing_request, (&Name::Control, None));
        let certificate = Some(certificate.map_err(Error::into_status)?);
        Ok(Response::new(IssueCertificateResponse { certificate }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_where_it_is_by_its_own_name() {
        assert!(is_place_of("one", "https://one@10.0.0.2:8010"));
        for elsewhere in [
            "",
            "http://one@10.0.0.2:8010",
            "https://10.0.0.2:8010",
            "https://two@10.0.0.2:8010",
            "unix:/run/x",
            "https://one@10.0.0.2:8010/sbx_1",
            "https://one@two@10.0.0.2:8010",
        ] {
            assert!(!is_place_of("one", elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn who_shows_nothing_speaks_for_no_node() {
        let dir = tempfile::tempdir().unwrap();
        let members = Members::load(&dir.path().join("members")).unwrap();
        let endpoint = "https://one@10.0.0.2:8010".to_owned();
        let node = Node { node_id: "one".to_owned(), endpoint, ..Node::default() };
        let now = DateTime::UNIX_EPOCH;
        assert!(check_speaker(None, &node, &members, now).is_ok(), "a process of the mesh");
        let stranger = check_speaker(Some(&Peer::default()), &node, &members, now);
        assert!(matches!(stranger, Err(Error::NotThatNode(_))));
    }
}
