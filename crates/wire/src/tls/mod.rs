//! TLS on both ends of a connection: [`Keyring`] holds certificates that may change, `verify` says whom we believe, and
//! here are the two handshakes, each with the certificates of its moment, and words for what can go wrong in them.

mod keyring;
mod peer;
mod verify;
mod words;

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

pub use keyring::{Files, Keyring, Pem};
pub use peer::{Peer, Role, Roles};

use crate::Error;
use crate::channel::FIRST_WORDS;
use crate::line::Line;
use keyring::{Loaded, provider};
use verify::{ByRole, Doorkeeper};

/// Who may come in by a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Nodes of the cluster alone, each with its certificate. What each may call is [`crate::Guarded`]'s to say.
    Nodes,
    /// Everybody who speaks gRPC. A certificate is not asked for; one that is shown has to be of the cluster.
    Public,
    /// The same for browsers too: HTTP/1.1 beside HTTP/2.
    Web,
}

/// Cipher and certificates of a server at this moment, and where the reason of a refusal is left.
fn server_config(loaded: &Loaded, door: Door) -> Result<(Arc<ServerConfig>, Arc<OnceLock<String>>), rustls::Error> {
    let own = loaded.own.as_ref().ok_or_else(|| rustls::Error::General("no certificate of our own".to_owned()))?;
    let inside = door == Door::Nodes;
    let verifier = WebPkiClientVerifier::builder_with_provider(loaded.roots.clone(), provider());
    let verifier = if inside { verifier } else { verifier.allow_unauthenticated() };
    let reason = Arc::new(OnceLock::new());
    let doorkeeper = Doorkeeper {
        inner: verifier.build().map_err(|e| rustls::Error::General(e.to_string()))?,
        cluster: own.peer.as_ref().ok().map(|peer| peer.cluster.clone()),
        roles: if inside { Roles::NODES } else { Roles::of(&Role::ALL) },
        reason: reason.clone(),
    };
    let versions: &[_] = if inside { &[&TLS13] } else { &[&TLS13, &TLS12] };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(Arc::new(doorkeeper))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own.key.clone())));
    // A session that is taken up again would be believed without its certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = match door {
        Door::Web => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Door::Nodes | Door::Public => vec![b"h2".to_vec()],
    };
    Ok((Arc::new(config), reason))
}

/// The same of a client. With a certificate that says who we are, servers are believed by theirs: of our cluster, in one
/// of `roles`. Without, by the name of the host.
fn client_config(loaded: &Loaded, roles: Roles) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let us = loaded.own.as_ref().and_then(|own| own.peer.as_ref().ok());
    let versions: &[_] = if us.is_some() { &[&TLS13] } else { &[&TLS13, &TLS12] };
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    let builder = match us {
        Some(us) => {
            let (roots, cluster) = (loaded.roots.clone(), us.cluster.clone());
            builder.dangerous().with_custom_certificate_verifier(Arc::new(ByRole { roots, cluster, roles, algorithms }))
        }
        None => builder.with_root_certificates(loaded.roots.clone()),
    };
    let mut config = match &loaded.own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.key.clone()))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Shakes hands with the server at `host`, and waits for its first byte: only then has it looked at our certificate. One
/// that speaks HTTP/1.1 too waits for ours, and is not waited for long.
pub(crate) async fn connect(keyring: &Keyring, roles: Roles, stream: TcpStream, host: &str) -> io::Result<Line> {
    let config = client_config(&keyring.current(), roles).map_err(|e| io::Error::other(e.to_string()))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| io::Error::other("its host is no name"))?;
    let said = |e: io::Error| io::Error::new(e.kind(), words::for_client(&e));
    let mut stream = TlsConnector::from(config).connect(name, stream).await.map_err(said)?;
    let mut first = [0; 64];
    let Ok(read) = tokio::time::timeout(FIRST_WORDS, stream.read(&mut first)).await else {
        return Ok(Line::tls(TlsStream::Client(stream), &[]));
    };
    let read = read.map_err(said)?;
    if read == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection after the TLS handshake"));
    }
    Ok(Line::tls(TlsStream::Client(stream), &first[..read]))
}

/// Shakes hands with a client. The error is a sentence for our log.
pub(crate) async fn accept(keyring: &Keyring, door: Door, stream: TcpStream) -> Result<(Line, Option<Peer>), String> {
    if let Some(refusal) = plain(&stream).await.map_err(|e| e.to_string())? {
        words::refuse_plain(stream, refusal).await;
        return Err("it does not speak TLS".to_owned());
    }
    let (config, reason) = server_config(&keyring.current(), door).map_err(|e| e.to_string())?;
    let stream = TlsAcceptor::from(config).accept(stream).await;
    let stream = stream.map_err(|e| reason.get().cloned().unwrap_or_else(|| words::for_server(&e)))?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    // What has no name of ours is let in by a server that has none itself; it is nobody then.
    let peer = certificate.and_then(|certificate| Peer::of(certificate).ok());
    Ok((Line::tls(TlsStream::Server(stream), &[]), peer))
}

/// Which language a client speaks that does not begin with a TLS handshake.
async fn plain(stream: &TcpStream) -> io::Result<Option<words::Plain>> {
    const HANDSHAKE_RECORD: u8 = 0x16;
    let mut first = [0; 1];
    match stream.peek(&mut first).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(match first[0] {
            HANDSHAKE_RECORD => None,
            b'P' => Some(words::Plain::Http2),
            letter if letter.is_ascii_uppercase() => Some(words::Plain::Http1),
            _ => Some(words::Plain::Unknown),
        }),
    }
}

/// Whether a server can be made of this.
pub(crate) fn check_server(keyring: &Keyring) -> Result<(), Error> {
    match &keyring.current().own {
        Some(_) => Ok(()),
        None => Err(Error::Certificate {
            file: "TLS".to_owned(),
            reason: "a server needs a certificate and its key beside the authority's".to_owned(),
        }),
    }
}
