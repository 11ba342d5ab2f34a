//! A connection that came in: who it is from, its place among others, and how long it may be silent at first.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use crate::admission::Place;
use crate::limits::FIRST_WORDS;
use crate::line::Line;
use crate::tls::Peer;

/// Bytes of "PRI * HTTP/2.0" and what belongs to it; no request of HTTP/1.1 is shorter.
const PREFACE: usize = 24;

/// Where a call comes from; every request of a connection carries it among its extensions.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The other end.
    pub address: SocketAddr,
    /// Whether what is said is encrypted.
    pub encrypted: bool,
    /// Who the other end's certificate says it is, if it showed one.
    pub peer: Option<Arc<Peer>>,
}

/// See the module.
pub struct Connection {
    line: Line,
    origin: Origin,
    /// Bytes of the preface that are missing, and until when.
    awaited: Option<(usize, Pin<Box<Sleep>>)>,
    _place: Place,
}

impl Connection {
    pub(crate) fn new(line: Line, origin: Origin, place: Place) -> Self {
        let awaited = Some((PREFACE, Box::pin(tokio::time::sleep(FIRST_WORDS))));
        Connection { line, origin, awaited, _place: place }
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    #[cfg(test)]
    pub(crate) fn nodelay(&self) -> io::Result<bool> {
        self.line.nodelay()
    }
}

impl Connected for Connection {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        self.origin.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some((missing, patience)) = &mut this.awaited else {
            return Pin::new(&mut this.line).poll_read(context, buffer);
        };
        let before = buffer.filled().len();
        match Pin::new(&mut this.line).poll_read(context, buffer) {
            Poll::Pending => match patience.as_mut().poll(context) {
                Poll::Ready(()) => {
                    Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was said on this connection")))
                }
                Poll::Pending => Poll::Pending,
            },
            Poll::Ready(read) => {
                *missing = missing.saturating_sub(buffer.filled().len() - before);
                if *missing == 0 {
                    this.awaited = None;
                }
                if let Err(error) = &read
                    && error.kind() == io::ErrorKind::InvalidData
                {
                    tracing::warn!(address = %this.origin.address, %error, "a connection was refused");
                }
                Poll::Ready(read)
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().line).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().line).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.line.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().line).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().line).poll_shutdown(context)
    }
}
