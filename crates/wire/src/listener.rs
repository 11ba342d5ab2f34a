//! Servers.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::net::{TcpListener, TcpStream};
use tokio_stream::Stream;
use tonic::transport::Server;

use crate::channel::{CONNECTION_WINDOW, KEEP_ALIVE, KEEP_ALIVE_TIMEOUT, STREAM_WINDOW, no_delay};
use crate::{Error, Security};

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

    /// The connections, each with TCP_NODELAY read back (tonic's own `serve` functions drop the option).
    pub fn incoming(self) -> Incoming {
        Incoming(self.listener)
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

/// Accepted connections.
pub struct Incoming(TcpListener);

impl Stream for Incoming {
    type Item = std::io::Result<TcpStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            return match self.0.poll_accept(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok((stream, _))) => match no_delay(&stream) {
                    Ok(()) => Poll::Ready(Some(Ok(stream))),
                    // The peer went away between connecting and being accepted.
                    Err(_) => continue,
                },
                Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
            };
        }
    }
}

/// A server builder with the project's settings.
///
/// # Errors
/// [`Error::Address`] if the certificates cannot be used.
pub fn server(security: &Security) -> Result<Server, Error> {
    let builder = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    match security.server() {
        None => Ok(builder),
        Some(tls) => {
            builder.tls_config(tls).map_err(|e| Error::Address { address: "TLS".to_owned(), reason: e.to_string() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
