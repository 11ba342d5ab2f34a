//! What is checked of the other side. Certificates are verified against our authorities by webpki; what is added is who
//! their bearers are.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};

use super::{Peer, Roles};

/// Why a peer with a sound certificate is not let in.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Stranger(String);

fn stranger(reason: String) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Stranger(reason)))))
}

/// Whether `certificate` says that its bearer is one of `roles` in `cluster`.
fn belongs(certificate: &CertificateDer<'_>, cluster: &str, roles: Roles) -> Result<Peer, String> {
    let peer = Peer::of(certificate).map_err(|reason| format!("its certificate names no role: {reason}"))?;
    if peer.cluster != cluster {
        return Err(format!("its certificate is {peer}, of another cluster than ours, `{cluster}`"));
    }
    if !peer.roles.meet(roles) {
        return Err(format!("its certificate is {peer}, and only {roles} may be there"));
    }
    Ok(peer)
}

/// For clients inside a cluster: a server is known by its cluster and role, at whatever address it is.
#[derive(Debug)]
pub(super) struct ByRole {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) cluster: String,
    pub(super) roles: Roles,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ByRole {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        belongs(end_entity, &self.cluster, self.roles).map_err(stranger)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// For servers: what webpki says of a client, and then whether it belongs here. The client hears `access denied`; the
/// reason is left for our own log.
#[derive(Debug)]
pub(super) struct Doorkeeper {
    pub(super) inner: Arc<dyn ClientCertVerifier>,
    pub(super) cluster: Option<String>,
    pub(super) roles: Roles,
    pub(super) reason: Arc<OnceLock<String>>,
}

impl ClientCertVerifier for Doorkeeper {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if let Some(cluster) = &self.cluster
            && let Err(reason) = belongs(end_entity, cluster, self.roles)
        {
            let _ = self.reason.set(reason);
            return Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
