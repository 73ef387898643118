//! How a machine that has a token knows the control plane: by the authority's fingerprint, before there is
//! anything else to know it by.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{JoinToken, provider, roots};

/// Takes a certificate that the authority has signed which a token names.
#[derive(Debug)]
pub(super) struct ByToken {
    token: JoinToken,
    provider: Arc<CryptoProvider>,
}

impl ByToken {
    pub(super) fn new(token: JoinToken) -> Self {
        Self { token, provider: provider() }
    }
}

impl ServerCertVerifier for ByToken {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        with: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let stranger = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let authority = with.iter().find(|certificate| self.token.names(certificate)).ok_or_else(stranger)?;
        let roots = roots(&authority.clone().into_owned()).map_err(|_| stranger())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&self.provider));
        let verifier = verifier.build().map_err(|_| stranger())?;
        verifier.verify_server_cert(shown, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, shown, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
