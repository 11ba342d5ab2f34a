//! Transport security as a value: every channel and server takes one, so that turning it on touches no caller.

use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// Plain TCP, or TLS with certificates on both sides.
#[derive(Debug, Clone, Default)]
pub enum Security {
    /// No encryption: loopback, or a network that is trusted.
    #[default]
    Plain,
    /// Mutual TLS.
    Tls {
        /// PEM of the authority that signs every node.
        authority: Vec<u8>,
        /// PEM of this node's certificate.
        certificate: Vec<u8>,
        /// PEM of its key.
        key: Vec<u8>,
        /// Name that peers' certificates carry.
        domain: String,
    },
}

impl Security {
    /// The scheme of URIs.
    pub(crate) fn scheme(&self) -> &'static str {
        match self {
            Security::Plain => "http",
            Security::Tls { .. } => "https",
        }
    }

    pub(crate) fn client(&self) -> Option<ClientTlsConfig> {
        match self {
            Security::Plain => None,
            Security::Tls { authority, certificate, key, domain } => Some(
                ClientTlsConfig::new()
                    .ca_certificate(Certificate::from_pem(authority))
                    .identity(Identity::from_pem(certificate, key))
                    .domain_name(domain),
            ),
        }
    }

    pub(crate) fn server(&self) -> Option<ServerTlsConfig> {
        match self {
            Security::Plain => None,
            Security::Tls { authority, certificate, key, .. } => Some(
                ServerTlsConfig::new()
                    .identity(Identity::from_pem(certificate, key))
                    .client_ca_root(Certificate::from_pem(authority)),
            ),
        }
    }
}
