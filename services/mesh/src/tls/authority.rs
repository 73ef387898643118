//! The authority of the mesh: it signs certificates and makes tokens. Two PEM files; schedulers that serve the
//! same nodes have the same.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use chrono::{DateTime, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use ring::hmac;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use sandmesh_proto::scheduler::Certificate;
use time::OffsetDateTime;

use super::{CLOCK_SKEW, JoinToken, MACHINE, Name, TlsError, hex};
use crate::timestamp;

/// How long the authority lives.
const LIFETIME: Duration = Duration::from_secs(20 * 365 * 86_400);

/// Signs certificates and makes tokens.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    tokens: hmac::Key,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority whose certificate and key are in these files; where neither is there it is made.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is not what it should be; or one of the two is missing.
    pub fn open(certificate: &Path, key: &Path, now: DateTime<Utc>) -> Result<Self, TlsError> {
        if !certificate.exists() && !key.exists() {
            make(certificate, key, now)?;
        }
        if !certificate.exists() {
            let why = "it is missing, and its key is there: where no machine has joined yet, remove the key";
            return Err(file(certificate, io::Error::new(io::ErrorKind::NotFound, why)));
        }
        let read = |path: &Path| fs::read_to_string(path).map_err(|error| file(path, error));
        let (certificate_pem, key_pem) = (read(certificate)?, read(key)?);
        let unusable = |path: &Path, what: &str| file(path, io::Error::other(format!("it is no {what}")));
        let no_key = || unusable(key, "private key in PEM");
        let no_certificate = || unusable(certificate, "certificate of an authority in PEM");
        let pair = KeyPair::from_pem(&key_pem).map_err(|_| no_key())?;
        let tokens = hmac::Key::new(hmac::HMAC_SHA256, &pair.serialize_der());
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| no_certificate())?;
        let (_, read) = x509_parser::parse_x509_certificate(&der).map_err(|_| no_certificate())?;
        if read.public_key().raw != pair.subject_public_key_info() {
            return Err(unusable(key, "key of the certificate beside it"));
        }
        if read.validity().not_after.timestamp() < now.timestamp() {
            return Err(unusable(certificate, "certificate any more: its time is over"));
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(|_| no_certificate())?;
        Ok(Self { issuer, certificate: der, tokens })
    }

    /// A certificate with this name, for the key that a signing request (DER) is about, of the `machine` that has
    /// one already or of another. What else the request says is not heeded.
    ///
    /// # Errors
    /// When it is no signing request, or not signed with the key that it is about.
    pub fn certify(
        &self,
        request: &[u8],
        (name, machine): (&Name, Option<&str>),
        now: DateTime<Utc>,
        lifetime: Duration,
    ) -> Result<Certificate, TlsError> {
        let unusable = || TlsError::Unusable("signing request");
        let mut request =
            CertificateSigningRequestParams::from_der(&request.into()).map_err(|_| unusable())?;
        let expires_at = now + lifetime;
        let machine = machine.map_or_else(|| hex(&rand::random::<[u8; 16]>()), str::to_owned);
        request.params = params(name, &machine, now, expires_at)?;
        let certificate = request.signed_by(&self.issuer).map_err(|_| unusable())?;
        Ok(Certificate {
            der: certificate.der().to_vec().into(),
            authority_der: self.certificate.to_vec().into(),
            expires_at: Some(timestamp(expires_at)),
        })
    }

    /// A token that machines can join with until `expires_at`.
    #[must_use]
    pub fn token(&self, expires_at: DateTime<Utc>) -> JoinToken {
        JoinToken::make(&self.certificate, expires_at, &self.tokens)
    }

    /// Whether a token is of this authority, and not too old.
    #[must_use]
    pub fn admits(&self, token: &JoinToken, now: DateTime<Utc>) -> bool {
        token.names(&self.certificate) && token.is_made_with(&self.tokens) && now < token.expires_at()
    }
}

fn params(
    name: &Name,
    machine: &str,
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(vec![name.dns(), format!("{machine}{MACHINE}")])
        .map_err(|_| TlsError::Unusable("name"))?;
    params.distinguished_name = called(match name {
        Name::Control => "control plane",
        Name::Node(id) => id,
    });
    params.serial_number = Some(SerialNumber::from(rand::random::<[u8; 16]>().to_vec()));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    (params.not_before, params.not_after) = (moment(now - CLOCK_SKEW)?, moment(expires_at)?);
    Ok(params)
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::OrganizationName, "Sandmesh");
    called.push(DnType::CommonName, name);
    called
}

fn moment(time: DateTime<Utc>) -> Result<OffsetDateTime, TlsError> {
    OffsetDateTime::from_unix_timestamp(time.timestamp()).map_err(|_| TlsError::Unusable("time"))
}

fn make(certificate: &Path, key: &Path, now: DateTime<Utc>) -> Result<(), TlsError> {
    let unusable = |_| TlsError::Unusable("key");
    let pair = KeyPair::generate().map_err(unusable)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = called(&format!("authority of {}", now.format("%Y-%m-%d")));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    (params.not_before, params.not_after) = (moment(now - CLOCK_SKEW)?, moment(now + LIFETIME)?);
    let made = params.self_signed(&pair).map_err(unusable)?;
    // The key first, by whoever is first: a start that ends in between is told what is missing, and of two at
    // once the other takes what the first made.
    match write(key, pair.serialize_pem().as_bytes(), |new, path| fs::hard_link(new, path)) {
        Err(TlsError::File { error, .. }) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made_it => {
            made_it?;
            write_secret(certificate, made.pem().as_bytes())
        }
    }
}

/// Writes a file that nobody else may read, whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn write_secret(path: &Path, text: &[u8]) -> Result<(), TlsError> {
    write(path, text, |new, path| fs::rename(new, path))
}

fn write(path: &Path, text: &[u8], publish: impl Fn(&Path, &Path) -> io::Result<()>) -> Result<(), TlsError> {
    let new: PathBuf = path.with_extension(format!("{:x}.new", rand::random::<u64>()));
    let write = || {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        made.write_all(text)?;
        made.sync_all()?;
        publish(&new, path)?;
        // What was written is there after a power cut, too.
        path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
    };
    let written = write().map_err(|error| file(path, error));
    // What was renamed is not there any more.
    let _ = fs::remove_file(&new);
    written
}

pub(super) fn file(path: &Path, error: io::Error) -> TlsError {
    TlsError::File { path: path.display().to_string(), error }
}
