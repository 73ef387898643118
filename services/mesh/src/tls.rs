//! How machines of the mesh know each other: by certificates of one authority.
//!
//! The scheduler has the authority ([`Authority`]). A machine joins with a token that names it by its
//! fingerprint ([`JoinToken`]), and gets the certificate of a node; processes of the control plane ask for
//! theirs over the mesh ([`Credentials`]). Both sides of every connection between machines show one, TLS 1.3,
//! and check whom they meet: the control plane that the machine is the node that it means, a node that it is
//! the control plane.

mod authority;
mod credentials;
mod join;
mod token;
mod verify;

use std::{io, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use ring::digest;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::danger::ServerCertVerifier,
    crypto::{CryptoProvider, ring::default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use sandmesh_proto::scheduler::Certificate;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::{extensions::GeneralName, time::ASN1Time};

pub use self::{
    authority::{Authority, write_secret},
    token::JoinToken,
};
pub(crate) use self::{credentials::Credentials, join::Membership};
use crate::{Clock, SystemClock};

/// How long it may take until a connection is made and encrypted.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What certificates are made and used with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Something that is no certificate, key or signing request.
    #[error("it is no {0} that can be used")]
    Unusable(&'static str),
    /// There is no certificate to show, and why.
    #[error("this process has no certificate to show: {0}")]
    NoCertificate(String),
    /// A file.
    #[error("cannot use `{path}`: {error}")]
    File {
        /// Where it is.
        path: String,
        /// What happened.
        error: io::Error,
    },
}

/// Whose certificate it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A process of the control plane.
    Control,
    /// A node, by its id.
    Node(String),
}

impl Name {
    /// The DNS name in the certificate. The id of a node need not be one, so a digest of it is.
    fn dns(&self) -> String {
        match self {
            Self::Control => "control.sandmesh.internal".to_owned(),
            Self::Node(id) => {
                let digest = digest::digest(&digest::SHA256, id.as_bytes());
                format!("{}.node.sandmesh.internal", hex(&digest.as_ref()[..16]))
            }
        }
    }

    fn server_name(&self) -> Result<ServerName<'static>, TlsError> {
        ServerName::try_from(self.dns()).map_err(|_| TlsError::Unusable("name"))
    }
}

/// Who is at the other end of a connection, by the certificate that was shown and checked. In the extensions of
/// each request that came over TLS. Nobody any more when the certificate's time is over.
#[derive(Debug, Clone, Default)]
pub struct Peer(Option<Arc<Known>>);

/// What a certificate of a machine says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Which machine it is: the same in each certificate that it was given for the one before.
    pub machine: String,
    /// When it was signed, to the second.
    pub issued_at: DateTime<Utc>,
    /// From when on it is worth nothing.
    pub expires_at: DateTime<Utc>,
}

#[derive(Debug)]
struct Known {
    certificate: CertificateDer<'static>,
    shown: Shown,
}

impl Peer {
    pub(crate) fn of(shown: Option<&[CertificateDer<'_>]>) -> Self {
        Self(shown.and_then(<[_]>::first).and_then(Known::new).map(Arc::new))
    }

    fn known(&self) -> Option<&Known> {
        self.0.as_deref().filter(|known| SystemClock.now() < known.shown.expires_at)
    }

    /// Whether it showed a certificate.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.known().is_some()
    }

    /// What its certificate says.
    #[must_use]
    pub fn shown(&self) -> Option<&Shown> {
        self.known().map(|known| &known.shown)
    }

    /// For how long its certificate is worth something.
    pub(crate) fn lasts(&self) -> Option<Duration> {
        (self.shown()?.expires_at - SystemClock.now()).to_std().ok()
    }

    /// Whether it is who is meant.
    #[must_use]
    pub fn is(&self, name: &Name) -> bool {
        let Some(known) = self.known() else { return false };
        let (Ok(shown), Ok(name)) = (webpki::EndEntityCert::try_from(&known.certificate), name.server_name())
        else {
            return false;
        };
        shown.verify_is_valid_for_subject_name(&name).is_ok()
    }
}

impl Known {
    fn new(certificate: &CertificateDer<'_>) -> Option<Self> {
        let shown = shown_by(certificate)?;
        Some(Self { certificate: certificate.clone().into_owned(), shown })
    }
}

/// What is after the machine in the name that says which it is.
const MACHINE: &str = ".machine.sandmesh.internal";

/// How far the clock of another machine may be behind: so much earlier than they are signed certificates begin.
const CLOCK_SKEW: TimeDelta = TimeDelta::hours(1);

/// What a certificate, DER, says.
fn shown_by(certificate: &[u8]) -> Option<Shown> {
    let (_, read) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = read.subject_alternative_name().ok()??;
    let machine = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => name.strip_suffix(MACHINE),
        _ => None,
    });
    let time = |time: ASN1Time| DateTime::from_timestamp(time.timestamp(), 0);
    Some(Shown {
        machine: machine.unwrap_or_default().to_owned(),
        issued_at: time(read.validity().not_before)? + CLOCK_SKEW,
        expires_at: time(read.validity().not_after)?,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A key, its certificate, and the authority that signed it.
#[derive(Clone)]
pub(crate) struct Identity {
    key: Arc<KeyPair>,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    issued_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

impl Identity {
    /// As it was sent.
    fn new(key: KeyPair, sent: Option<Certificate>) -> Result<Self, TlsError> {
        let sent = sent.ok_or(TlsError::Unusable("certificate"))?;
        Self::of(key, sent.der.to_vec(), sent.authority_der.to_vec())
    }

    /// Of a key and DER.
    fn of(key: KeyPair, certificate: Vec<u8>, authority: Vec<u8>) -> Result<Self, TlsError> {
        let shown = shown_by(&certificate).ok_or(TlsError::Unusable("certificate"))?;
        let Shown { issued_at, expires_at, .. } = shown;
        let (certificate, authority) = (certificate.into(), authority.into());
        Ok(Self { key: Arc::new(key), certificate, authority, issued_at, expires_at })
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        // The authority, too: by its fingerprint a machine that joins knows whom it meets.
        vec![self.certificate.clone(), self.authority.clone()]
    }

    /// How to meet others as this.
    fn client(&self) -> Result<ClientConfig, TlsError> {
        let config = client().with_root_certificates(roots(&self.authority)?);
        let mut config = config
            .with_client_auth_cert(self.chain(), self.key())
            .map_err(|_| TlsError::Unusable("certificate"))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// How to be met as this; by strangers, too, or by those alone that the authority knows.
    fn server(&self, strangers: bool) -> Result<ServerConfig, TlsError> {
        let known = WebPkiClientVerifier::builder_with_provider(roots(&self.authority)?.into(), provider());
        let known = if strangers { known.allow_unauthenticated() } else { known };
        let known = known.build().map_err(|_| TlsError::Unusable("certificate"))?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|_| TlsError::Unusable("version of TLS"))?;
        let mut config = config
            .with_client_cert_verifier(known)
            .with_single_cert(self.chain(), self.key())
            .map_err(|_| TlsError::Unusable("certificate"))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// A key and the request to have it certified, DER. Who is asked decides on the name.
fn signing_request() -> Result<(KeyPair, Vec<u8>), TlsError> {
    let unusable = |_| TlsError::Unusable("key");
    let key = KeyPair::generate().map_err(unusable)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(unusable)?;
    Ok((key, request.der().to_vec()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

fn roots(authority: &CertificateDer<'static>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(|_| TlsError::Unusable("certificate of an authority"))?;
    Ok(roots)
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>;

#[expect(clippy::expect_used, reason = "the provider that is compiled in has TLS 1.3")]
fn client() -> Builder {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
}

/// How a machine that has nothing but a token meets the control plane.
fn stranger(verifier: Arc<dyn ServerCertVerifier>) -> ClientConfig {
    let mut config = client().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Connects to `HOST:PORT`, and makes sure that it is who is meant.
///
/// # Errors
/// `InvalidData` when it is somebody else; else what the network says.
pub(crate) async fn open(
    address: &str,
    name: &Name,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let name = name.server_name().map_err(io::Error::other)?;
    let connect = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config).connect(name, stream).await
    };
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection in time");
    tokio::time::timeout(CONNECT_TIMEOUT, connect).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests;
