//! Transport security as a value: every channel and server takes one, so that turning it on touches no caller.

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tonic::transport::Uri;

use crate::channel::{dial, host, port};
use crate::line::{First, Line};
use crate::tls::{self, Door, Files, Keyring, Peer, Pem, Roles};
use crate::{Dial, Error};

/// Who waits for the first bytes of a connection.
pub(crate) type Told = oneshot::Sender<Result<(), String>>;

/// Plain TCP, TLS, or somebody else's connections. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub enum Security {
    /// No encryption: loopback, or a network that is trusted.
    #[default]
    Plain,
    /// TLS, mutual wherever both sides have certificates.
    Tls {
        /// What it is made with.
        keyring: Arc<Keyring>,
        /// Of which roles a server that we connect to must have one.
        servers: Roles,
    },
    /// No encryption, and no sockets of ours: connections are this dialler's.
    Through(Arc<dyn Dial>),
}

impl Security {
    /// TLS with certificates from files, which may change while we run.
    ///
    /// # Errors
    /// [`Error::Certificate`] naming the file at fault.
    pub fn files(files: Files) -> Result<Security, Error> {
        Ok(Security::Tls { keyring: Keyring::open(files)?, servers: Roles::SERVERS })
    }

    /// TLS with certificates that stay as they are.
    ///
    /// # Errors
    /// [`Error::Certificate`].
    pub fn fixed(pem: &Pem) -> Result<Security, Error> {
        Ok(Security::Tls { keyring: Keyring::fixed(pem)?, servers: Roles::SERVERS })
    }

    /// The same, for connections to servers that must have one of `roles`.
    #[must_use]
    pub fn to(&self, roles: impl Into<Roles>) -> Security {
        match self {
            Security::Plain | Security::Through(_) => self.clone(),
            Security::Tls { keyring, .. } => Security::Tls { keyring: keyring.clone(), servers: roles.into() },
        }
    }

    /// Whether what is said is encrypted.
    pub fn encrypts(&self) -> bool {
        matches!(self, Security::Tls { .. })
    }

    /// Checks that our certificate lets us be a node of `cluster` in all of `roles`. Plain connections let everybody be anything.
    ///
    /// # Errors
    /// [`Error::Certificate`] naming the file.
    pub fn suits(&self, cluster: &str, roles: impl Into<Roles>) -> Result<(), Error> {
        let Security::Tls { keyring, .. } = self else { return Ok(()) };
        let roles = roles.into();
        tls::check_server(keyring)?;
        let wrong = |reason: String| Err(Error::Certificate { file: keyring.title().to_owned(), reason });
        let loaded = keyring.current();
        let Some(peer) = loaded.own.as_ref().map(|own| &own.peer) else { return Ok(()) };
        match peer {
            Err(reason) => wrong(format!("{reason}; `janus certs` issues such certificates")),
            Ok(peer) if peer.cluster != cluster => {
                wrong(format!("it is {peer}, of another cluster than `{cluster}` (--cluster)"))
            }
            Ok(peer) if !roles.without(peer.roles).is_empty() => {
                wrong(format!("it is {peer}, and what runs here is also {}", roles.without(peer.roles)))
            }
            Ok(_) => Ok(()),
        }
    }

    /// Who our certificate says we are.
    pub fn own(&self) -> Option<Peer> {
        match self {
            Security::Plain | Security::Through(_) => None,
            Security::Tls { keyring, .. } => keyring.current().own.as_ref().and_then(|own| own.peer.clone().ok()),
        }
    }

    /// Checks that servers can be made with this.
    pub(crate) fn check_server(&self) -> Result<(), Error> {
        match self {
            Security::Plain | Security::Through(_) => Ok(()),
            Security::Tls { keyring, .. } => tls::check_server(keyring),
        }
    }

    /// The scheme of URIs.
    pub(crate) fn scheme(&self) -> &'static str {
        match self {
            Security::Plain | Security::Through(_) => "http",
            Security::Tls { .. } => "https",
        }
    }

    /// A line to the host and port of `uri`; `told` hears what the other side's first bytes are.
    pub(crate) async fn line(&self, uri: &Uri, told: Option<Told>) -> io::Result<Line> {
        let first = |told: Option<Told>| told.map_or(First::Unheard, First::Told);
        match self {
            Security::Plain => Ok(Line::plain(dial(uri).await?, first(told))),
            Security::Through(dialler) => Ok(Line::through(dialler.dial(host(uri), port(uri)).await?, first(told))),
            Security::Tls { keyring, servers } => {
                let line = tls::connect(keyring, *servers, dial(uri).await?, host(uri)).await?;
                // The handshake ended with them.
                told.map(|told| told.send(Ok(())));
                Ok(line)
            }
        }
    }

    /// Makes a line of a connection that came in by `door`.
    pub(crate) async fn accepted(&self, stream: TcpStream, door: Door) -> Result<(Line, Option<Peer>), String> {
        match self {
            Security::Plain | Security::Through(_) => Ok((Line::plain(stream, First::Unheard), None)),
            Security::Tls { keyring, .. } => tls::accept(keyring, door, stream).await,
        }
    }
}
