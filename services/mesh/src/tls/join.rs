//! Joining the mesh as a node on another machine, and staying in it.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};
use hyper_util::rt::TokioIo;
use rcgen::KeyPair;
use rustls::CertificateError;
use sandmesh_proto::scheduler::{
    JoinRequest, RenewCertificateRequest, join_service_client::JoinServiceClient,
};
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use super::{
    Credentials, Identity, JoinToken, Name, TlsError,
    authority::{file, write_secret},
    open, signing_request, stranger,
    verify::ByToken,
};
use crate::{CancellationToken, Clock, Link, LinkError, MeshConfig};

/// How soon a control plane that does not answer is tried again, at first and at last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked whether the next certificate is due, at most and at least.
const RENEW_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// How long after it could not be had it is asked for again.
const RENEW_RETRY: Duration = Duration::from_secs(60);

/// What this machine is in the mesh that it joined.
#[derive(Debug)]
pub(crate) struct Membership {
    /// The id of the node.
    pub(crate) node_id: String,
    /// What it shows.
    pub(crate) credentials: Credentials,
    /// The address that others reach this machine at, as far as it can tell.
    pub(crate) host: String,
    addresses: String,
    token: Option<JoinToken>,
    path: PathBuf,
    clock: Arc<dyn Clock>,
}

/// What of it is kept in a file.
#[derive(Serialize, Deserialize)]
struct Kept {
    node_id: String,
    key: String,
    certificate: String,
    authority: String,
    /// For who looks into the file: the certificate says it, too.
    expires_at: DateTime<Utc>,
}

impl Membership {
    /// Joins as `node_id`, unless this machine has done so before. While the control plane does not answer it
    /// is asked again.
    ///
    /// # Errors
    /// When the control plane refuses, is not the one that the token names, or there is no token and no
    /// certificate from before.
    pub(crate) async fn enter(
        config: &MeshConfig,
        node_id: &str,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let path = config.data_dir.join("identity.json");
        let token = token(config)?;
        // A token for another mesh than the certificate is of: then it moves there.
        let stays = |identity: &Identity| {
            clock.now() < identity.expires_at
                && token.as_ref().is_none_or(|token| token.names(&identity.authority))
        };
        let identity = match read(&path, node_id)?.filter(stays) {
            Some(identity) => identity,
            None => {
                let identity = join(&config.join, node_id, token.as_ref()).await?;
                keep(&path, node_id, &identity)?;
                identity
            }
        };
        let credentials = Credentials::of_node(&identity, Arc::clone(&clock))?;
        let host = own_address(&config.join).await?;
        let (node_id, addresses) = (node_id.to_owned(), config.join.clone());
        Ok(Self { node_id, credentials, host, addresses, token, path, clock })
    }

    /// A link to the control plane, at each of the addresses.
    pub(crate) fn control(&self) -> Result<Link, LinkError> {
        let endpoints: Vec<_> =
            self.addresses.split(',').map(|one| format!("https://{}", one.trim())).collect();
        Link::dial_any_machine(&endpoints.join(","), &self.credentials)
    }

    /// `HOST:PORT` at which others reach what listens at `address`.
    pub(crate) fn place(&self, address: &str) -> String {
        let anywhere = ["0.0.0.0:", "[::]:"].iter().find_map(|any| address.strip_prefix(any));
        anywhere.map_or_else(|| address.to_owned(), |port| format!("{}:{port}", self.host))
    }

    /// Gets the next certificate whenever half of the time of one is over, until `stopped`.
    pub(crate) async fn renew(self: Arc<Self>, control: Link, stopped: CancellationToken) {
        let renew = async {
            loop {
                tokio::time::sleep(self.left().clamp(RENEW_PAUSES.0, RENEW_PAUSES.1)).await;
                if !self.left().is_zero() {
                    continue;
                }
                if let Err(error) = self.renew_now(&control).await {
                    let (error, is_over) = (format!("{error:#}"), self.credentials.is_over());
                    tracing::warn!(error, is_over, "no new certificate; it is asked for again");
                    tokio::time::sleep(RENEW_RETRY).await;
                }
            }
        };
        stopped.run_until_cancelled(renew).await;
    }

    /// How long it is until the next certificate is due.
    fn left(&self) -> Duration {
        let left = self.credentials.renew_at().map(|at| at - self.clock.now());
        left.and_then(|left| left.to_std().ok()).unwrap_or_default()
    }

    async fn renew_now(&self, control: &Link) -> anyhow::Result<()> {
        let identity = match self.credentials.is_over() {
            // It was away for too long to be given one for the last.
            true => join(&self.addresses, &self.node_id, self.token.as_ref()).await?,
            false => self.next(control).await?,
        };
        // Kept before it is used, so that a start finds what was shown last.
        keep(&self.path, &self.node_id, &identity)?;
        self.credentials.replace(&identity)?;
        tracing::info!(expires_at = %identity.expires_at, "this node has its next certificate");
        Ok(())
    }

    async fn next(&self, control: &Link) -> anyhow::Result<Identity> {
        let (key, request) = signing_request()?;
        let node_id = self.node_id.clone();
        let mut request = Request::new(RenewCertificateRequest { node_id, signing_request: request.into() });
        request.set_timeout(CALL_TIMEOUT);
        let mut client = JoinServiceClient::new(control.clone());
        let renewed =
            client.renew_certificate(request).await.map_err(|status| anyhow!(status.message().to_owned()))?;
        Ok(Identity::new(key, renewed.into_inner().certificate)?)
    }
}

/// The token that is configured.
fn token(config: &MeshConfig) -> anyhow::Result<Option<JoinToken>> {
    let token = config.join_token.as_ref().map(|token| token.expose().parse());
    token.transpose().context("setting `mesh.join_token`")
}

/// Joins, at whichever of the addresses answers.
async fn join(addresses: &str, node_id: &str, token: Option<&JoinToken>) -> anyhow::Result<Identity> {
    let Some(token) = token else {
        bail!(
            "this machine is no node of the mesh at `{addresses}` yet, or was away for too long: give setting \
             `mesh.join_token` what `sandmesh nodes token` prints there"
        );
    };
    let mut pause = PAUSES.0;
    loop {
        for address in addresses.split(',').map(str::trim) {
            match join_at(address, node_id, token).await? {
                Ok(identity) => return Ok(identity),
                Err(why) => tracing::warn!(address, why, "the mesh does not answer yet; it is asked again"),
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Joins at one address; what may be otherwise soon is the inner error.
async fn join_at(
    address: &str,
    node_id: &str,
    token: &JoinToken,
) -> anyhow::Result<Result<Identity, String>> {
    let channel = match meet(address, token).await {
        Ok(channel) => channel,
        Err(error) if is_stranger(&error) => {
            bail!("`{address}` is not the mesh that the token in setting `mesh.join_token` is for: {error}")
        }
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            let advice = "do the clocks of both machines agree, and is it the port to join at?";
            return Ok(Err(format!("{error}; {advice}")));
        }
        Err(error) => return Ok(Err(error.to_string())),
    };
    let (key, signing_request) = signing_request()?;
    let mut request = Request::new(JoinRequest {
        token: token.to_string(),
        node_id: node_id.to_owned(),
        signing_request: signing_request.into(),
    });
    request.set_timeout(CALL_TIMEOUT);
    match JoinServiceClient::new(channel).join(request).await {
        Ok(answer) => Ok(Ok(Identity::new(key, answer.into_inner().certificate)?)),
        Err(status) => match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                Ok(Err(status.message().to_owned()))
            }
            _ => bail!("the mesh at `{address}` does not take node `{node_id}`: {}", status.message()),
        },
    }
}

/// Whether who answered is another mesh, and will be.
fn is_stranger(error: &std::io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let unknown = [CertificateError::UnknownIssuer, CertificateError::BadSignature];
    matches!(error, Some(rustls::Error::InvalidCertificate(why)) if unknown.contains(why)
        || matches!(why, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }))
}

/// A connection to the control plane, known by the token.
async fn meet(address: &str, token: &JoinToken) -> std::io::Result<Channel> {
    let config = Arc::new(stranger(Arc::new(ByToken::new(token.clone()))));
    let stream = open(address, &Name::Control, config).await?;
    let mut stream = Some(TokioIo::new(stream));
    let connector = service_fn(move |_: http::Uri| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("it broke"));
        async move { stream }
    });
    let endpoint = Endpoint::from_static("http://control");
    endpoint.connect_with_connector(connector).await.map_err(std::io::Error::other)
}

/// The address of this machine on the way to the control plane. Nothing is sent for it. Waits for a network, as at
/// the start of a machine.
async fn own_address(join: &str) -> anyhow::Result<String> {
    let mut pause = PAUSES.0;
    loop {
        let mut why = String::new();
        for address in join.split(',').map(str::trim) {
            for local in ["0.0.0.0:0", "[::]:0"] {
                match route(local, address).await {
                    Ok(own) if own.is_ipv6() => return Ok(format!("[{own}]")),
                    Ok(own) => return Ok(own.to_string()),
                    Err(error) => why = error.to_string(),
                }
            }
        }
        tracing::warn!(join, why, "there is no way to the mesh yet");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

async fn route(local: &str, address: &str) -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind(local).await?;
    socket.connect(address).await?;
    Ok(socket.local_addr()?.ip())
}

/// The certificate from before; `None` where there is none, or it was that of another node.
fn read(path: &Path, node_id: &str) -> anyhow::Result<Option<Identity>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read(path).map_err(|error| file(path, error))?;
    let kept: Kept = serde_json::from_slice(&text)
        .with_context(|| format!("`{}` is damaged; remove it and join again", path.display()))?;
    if kept.node_id != node_id {
        return Ok(None);
    }
    let decode = |text: &str| STANDARD.decode(text).map_err(|_| TlsError::Unusable("certificate"));
    let key = KeyPair::from_pem(&kept.key).map_err(|_| TlsError::Unusable("key"))?;
    Ok(Some(Identity::of(key, decode(&kept.certificate)?, decode(&kept.authority)?)?))
}

fn keep(path: &Path, node_id: &str, identity: &Identity) -> anyhow::Result<()> {
    let kept = Kept {
        node_id: node_id.to_owned(),
        key: identity.key.serialize_pem(),
        certificate: STANDARD.encode(&identity.certificate),
        authority: STANDARD.encode(&identity.authority),
        expires_at: identity.expires_at,
    };
    write_secret(path, &serde_json::to_vec_pretty(&kept)?)?;
    Ok(())
}
