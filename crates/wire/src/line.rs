//! A connection's bytes, plain or through TLS. Both ends read and write through it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// What TLS records begin with: a handshake of a client, and the alert with which a server answers what it cannot read.
const HANDSHAKE: u8 = 0x16;
const ALERT: u8 = 0x15;

/// See the module.
pub(crate) enum Line {
    /// TCP.
    Plain {
        stream: TcpStream,
        /// Nothing was read yet.
        fresh: bool,
    },
    /// TLS over TCP.
    Tls {
        stream: Box<TlsStream<TcpStream>>,
        /// What was read ahead.
        ahead: Vec<u8>,
    },
}

impl Line {
    pub(crate) fn plain(stream: TcpStream) -> Line {
        Line::Plain { stream, fresh: true }
    }

    pub(crate) fn tls(stream: TlsStream<TcpStream>, ahead: &[u8]) -> Line {
        Line::Tls { stream: Box::new(stream), ahead: ahead.to_vec() }
    }

    #[cfg(test)]
    pub(crate) fn nodelay(&self) -> io::Result<bool> {
        match self {
            Line::Plain { stream, .. } => stream.nodelay(),
            Line::Tls { stream, .. } => stream.get_ref().0.nodelay(),
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Line::Plain { stream, fresh: false } => Pin::new(stream).poll_read(context, buffer),
            Line::Plain { stream, fresh } => {
                let before = buffer.filled().len();
                std::task::ready!(Pin::new(stream).poll_read(context, buffer))?;
                *fresh = false;
                Poll::Ready(match buffer.filled().get(before) {
                    Some(&(HANDSHAKE | ALERT)) => {
                        Err(io::Error::new(io::ErrorKind::InvalidData, "the other side speaks TLS, and this one does not"))
                    }
                    _ => Ok(()),
                })
            }
            Line::Tls { stream, ahead } if ahead.is_empty() => Pin::new(stream.as_mut()).poll_read(context, buffer),
            Line::Tls { ahead, .. } => {
                let now = ahead.len().min(buffer.remaining());
                buffer.put_slice(&ahead[..now]);
                ahead.drain(..now);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Line::Plain { stream, .. } => Pin::new(stream).poll_write(context, bytes),
            Line::Tls { stream, .. } => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Line::Plain { stream, .. } => Pin::new(stream).poll_write_vectored(context, buffers),
            Line::Tls { stream, .. } => Pin::new(stream.as_mut()).poll_write_vectored(context, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Line::Plain { stream, .. } => stream.is_write_vectored(),
            Line::Tls { stream, .. } => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Line::Plain { stream, .. } => Pin::new(stream).poll_flush(context),
            Line::Tls { stream, .. } => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Line::Plain { stream, .. } => Pin::new(stream).poll_shutdown(context),
            Line::Tls { stream, .. } => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}
