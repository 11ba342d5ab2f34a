//! Client channels.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::{Error, Security};

/// A dead peer is noticed within these two: HTTP/2 pings are sent this often...
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// ...and answered within this.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// One unread stream may not hold up the others of its connection.
pub(crate) const STREAM_WINDOW: u32 = 16 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to `address` (`host:port`, or a URL), with TCP_NODELAY read back from the socket.
///
/// # Errors
/// [`Error::Address`], [`Error::Connect`].
pub async fn connect(address: &str, security: &Security) -> Result<Channel, Error> {
    let bad = |reason: String| Error::Address { address: address.to_owned(), reason };
    let url = match address.contains("://") {
        true => address.to_owned(),
        false => format!("{}://{address}", security.scheme()),
    };
    let uri: Uri = url.parse().map_err(|e| bad(format!("{e}")))?;
    if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none() {
        return Err(bad("expected host:port".to_owned()));
    }
    let mut endpoint = Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    if let Some(tls) = security.client() {
        endpoint = endpoint.tls_config(tls).map_err(|e| bad(format!("TLS: {e}")))?;
    }
    let connector = service_fn(|uri: Uri| async move { dial(&uri).await.map(TokioIo::new) });
    endpoint.connect_with_connector(connector).await.map_err(|e| {
        let mut reason = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(inner) = source {
            reason = inner.to_string();
            source = inner.source();
        }
        Error::Connect { address: address.to_owned(), reason }
    })
}

/// A socket to the host and port of `uri`.
pub(crate) async fn dial(uri: &Uri) -> std::io::Result<TcpStream> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or_default())).await?;
    no_delay(&stream)?;
    Ok(stream)
}

/// Sets TCP_NODELAY and reads it back: without it a small frame waits some 40 ms for an acknowledgement.
pub(crate) fn no_delay(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    match stream.nodelay()? {
        true => Ok(()),
        false => Err(std::io::Error::other("TCP_NODELAY did not take")),
    }
}
