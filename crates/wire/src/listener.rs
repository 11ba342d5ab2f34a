//! Servers.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::Server;

use crate::admission::{Admission, Place};
use crate::channel::{CONNECTION_WINDOW, KEEP_ALIVE, KEEP_ALIVE_TIMEOUT, STREAM_WINDOW, no_delay};
use crate::connection::{Connection, Origin};
use crate::limits::{HANDSHAKE, MAX_FAULTY_STREAMS, MAX_HEADERS, MAX_PENDING_RESETS, MAX_STREAMS};
use crate::line::{First, Line};
use crate::tls::{Door, Peer};
use crate::{Error, Security};

/// Pause after the system had no connection to give: it is out of file descriptors or memory.
const OUT_OF_FILES: Duration = Duration::from_millis(100);

/// A bound port. Binding comes before anything expensive, so that a taken port is known at once.
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address` (`host:port`; port 0 takes a free one).
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub async fn bind(address: &str) -> Result<Self, Error> {
        let fail = |source| Error::Listen { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let local = listener.local_addr().map_err(fail)?;
        Ok(Listener { listener, address: local })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Plain connections, each with TCP_NODELAY read back (tonic's own `serve` functions drop the option).
    pub fn incoming(self) -> Incoming {
        self.behind(&Security::Plain, Door::Public)
    }

    /// Connections as `security` wants them, of those who may come in by `door`.
    pub fn behind(self, security: &Security, door: Door) -> Incoming {
        Incoming {
            listener: self.listener,
            security: security.clone(),
            door,
            admission: Admission::default(),
            handshakes: JoinSet::new(),
            pause: None,
        }
    }
}

/// Whether this machine can talk to itself. Without its loopback interface nothing in one process can.
///
/// # Errors
/// [`Error::Listen`], [`Error::Connect`].
pub async fn check_loopback() -> Result<(), Error> {
    let listener = Listener::bind("127.0.0.1:0").await?;
    let connected = tokio::net::TcpStream::connect(listener.address()).await;
    let failed = |e: std::io::Error| Error::Connect { address: "127.0.0.1".to_owned(), reason: e.to_string() };
    connected.map(drop).map_err(failed)
}

/// Accepted connections. Handshakes go on beside each other: who takes his time with one holds up nobody.
pub struct Incoming {
    listener: TcpListener,
    security: Security,
    door: Door,
    admission: Admission,
    /// As many as there may be connections.
    handshakes: JoinSet<Option<Connection>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// The next connection that has a place.
    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<(TcpStream, SocketAddr, Place)> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(context)) {
                Ok((stream, address)) => {
                    // Without a place it is closed at once. One whose option fails went away meanwhile.
                    if let Some(place) = self.admission.enter(address.ip())
                        && no_delay(&stream).is_ok()
                    {
                        return Poll::Ready((stream, address, place));
                    }
                }
                Err(error) if connection_failed(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted for a moment");
                    self.pause = Some(Box::pin(tokio::time::sleep(OUT_OF_FILES)));
                }
            }
        }
    }
}

/// Whether it is about one connection, and not about us.
fn connection_failed(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

impl Stream for Incoming {
    type Item = std::io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while let Poll::Ready((stream, address, place)) = this.poll_accept(context) {
            if !this.security.encrypts() {
                let origin = Origin { address, encrypted: false, peer: None };
                return Poll::Ready(Some(Ok(Connection::new(Line::plain(stream, First::Unheard), origin, place))));
            }
            this.handshakes.spawn(shake_hands(this.security.clone(), this.door, stream, address, place));
        }
        while let Poll::Ready(Some(ended)) = this.handshakes.poll_join_next(context) {
            // Those that failed have said so.
            if let Ok(Some(connection)) = ended {
                return Poll::Ready(Some(Ok(connection)));
            }
        }
        Poll::Pending
    }
}

async fn shake_hands(
    security: Security,
    door: Door,
    stream: TcpStream,
    address: SocketAddr,
    place: Place,
) -> Option<Connection> {
    let refused = |reason: &str| tracing::warn!(%address, reason, "a connection was refused");
    match tokio::time::timeout(HANDSHAKE, security.accepted(stream, door)).await {
        Ok(Ok((line, peer))) => {
            let peer: Option<Arc<Peer>> = peer.map(Arc::new);
            Some(Connection::new(line, Origin { address, encrypted: true, peer }, place))
        }
        Ok(Err(reason)) => {
            refused(&reason);
            None
        }
        Err(_) => {
            refused("it did not finish its TLS handshake");
            None
        }
    }
}

/// A server builder with the project's settings.
///
/// # Errors
/// [`Error::Certificate`] if there is none to serve with.
pub fn server(security: &Security) -> Result<Server, Error> {
    security.check_server()?;
    Ok(Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_FAULTY_STREAMS)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn small_frames_leave_at_once_from_both_ends() {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.address()).parse().unwrap();
        let mut incoming = listener.incoming();
        let (dialled, accepted) = tokio::join!(crate::channel::dial(&uri), incoming.next());
        assert!(dialled.unwrap().nodelay().unwrap());
        assert!(accepted.unwrap().unwrap().nodelay().unwrap());
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_is_said_is_cut() {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.address();
        let mut incoming = listener.incoming();
        let (_silent, accepted) = tokio::join!(TcpStream::connect(address), incoming.next());
        let mut accepted = accepted.unwrap().unwrap();
        tokio::time::pause();
        let error = accepted.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }
}
