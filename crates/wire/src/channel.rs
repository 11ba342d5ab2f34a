//! Client channels.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::line::Line;
use crate::{Error, Security};

/// A dead peer is noticed within these two: HTTP/2 pings are sent this often...
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// ...and answered within this.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// One unread stream may not hold up the others of its connection.
pub(crate) const STREAM_WINDOW: u32 = 16 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server of HTTP/2 begins to speak at once; one that speaks something else is found out by what it says.
pub(crate) const FIRST_WORDS: Duration = Duration::from_millis(500);

/// Connects to `address` (`host:port`, or a URL), with TCP_NODELAY read back from the socket.
///
/// # Errors
/// [`Error::Address`], [`Error::Connect`].
pub async fn connect(address: &str, security: &Security) -> Result<Channel, Error> {
    connect_until(address, security, CancellationToken::new()).await
}

/// As [`connect`], over a connection that is cut at once when `over` is cancelled.
///
/// Dropping a channel does not end a stream whose peer has stopped reading: what waits for its window keeps the connection
/// for as long as the peer lives. So whoever must be able to leave such a peer cuts the connection.
///
/// # Errors
/// As [`connect`].
pub async fn connect_until(address: &str, security: &Security, over: CancellationToken) -> Result<Channel, Error> {
    let bad = |reason: String| Error::Address { address: address.to_owned(), reason };
    let (scheme, place) = address.split_once("://").unwrap_or((security.scheme(), address));
    let parse = |scheme: &str| format!("{scheme}://{place}").parse::<Uri>().map_err(|e| bad(format!("{e}")));
    let uri = parse(scheme)?;
    if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none() {
        return Err(bad("expected host:port".to_owned()));
    }
    match (scheme, security.encrypts()) {
        ("http", false) | ("https", true) => {}
        ("https", false) => return Err(bad("https needs the authority's certificate (--tls-ca)".to_owned())),
        ("http", true) => return Err(bad("http is not encrypted, and TLS was asked for: write https".to_owned())),
        _ => return Err(bad("expected http or https".to_owned())),
    }
    // To tonic the connection is plain: our own line is what encrypts it. Peers see the scheme as it is.
    let endpoint = Endpoint::from(parse("http")?)
        .origin(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let security = security.clone();
    let (told, first) = oneshot::channel();
    let mut told = Some(told);
    let connector = service_fn(move |uri: Uri| {
        let (over, security, told) = (over.clone(), security.clone(), told.take());
        async move { Ok::<_, io::Error>(TokioIo::new(Cut::new(security.line(&uri, told).await?, over))) }
    });
    let unconnected = |reason: String| Error::Connect { address: address.to_owned(), reason };
    let channel = endpoint.connect_with_connector(connector).await.map_err(|e| {
        let mut reason = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(inner) = source {
            reason = inner.to_string();
            source = inner.source();
        }
        unconnected(reason)
    })?;
    // A peer that is frozen says nothing; whoever calls it has his own patience with it.
    match tokio::time::timeout(FIRST_WORDS, first).await {
        Ok(Ok(Err(reason))) => Err(unconnected(reason)),
        _ => Ok(channel),
    }
}

/// A socket that fails once its token is cancelled.
struct Cut {
    stream: Line,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Cut {
    fn new(stream: Line, over: CancellationToken) -> Self {
        Cut { stream, over: Box::pin(over.cancelled_owned()) }
    }

    /// A connection always reads, so this is where it wakes and ends.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.over.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "what this connection was for is over")),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Cut {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

pub(crate) fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_matches(['[', ']'])
}

pub(crate) fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or_default()
}

/// A socket to the host and port of `uri`.
pub(crate) async fn dial(uri: &Uri) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host(uri), port(uri))).await?;
    no_delay(&stream)?;
    Ok(stream)
}

/// Sets TCP_NODELAY and reads it back: without it a small frame waits some 40 ms for an acknowledgement.
pub(crate) fn no_delay(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match stream.nodelay()? {
        true => Ok(()),
        false => Err(io::Error::other("TCP_NODELAY did not take")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::First;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_connection_is_cut_when_it_is_over_whatever_its_peer_does() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (dialled, accepted) = tokio::join!(dial(&uri), listener.accept());
        let over = CancellationToken::new();
        let (mut ours, mut theirs) =
            (Cut::new(Line::plain(dialled.unwrap(), First::Unheard), over.clone()), accepted.unwrap().0);
        ours.write_all(b"to").await.unwrap();
        theirs.write_all(b"fro").await.unwrap();
        let (mut to, mut fro) = ([0; 2], [0; 3]);
        theirs.read_exact(&mut to).await.unwrap();
        ours.read_exact(&mut fro).await.unwrap();
        assert_eq!((&to, &fro), (b"to", b"fro"));
        let waiting = tokio::spawn(async move { ours.read_u8().await });
        tokio::task::yield_now().await;
        over.cancel();
        assert_eq!(waiting.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(theirs.read(&mut to).await.unwrap(), 0);
    }
}
