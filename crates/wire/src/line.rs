//! A connection's bytes, plain or through TLS. Both ends read and write through it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsStream;

use crate::dial::Stream;

/// What TLS records begin with: a handshake of a client, and the alert with which a server answers what it cannot read.
const HANDSHAKE: u8 = 0x16;
const ALERT: u8 = 0x15;

/// See the module.
pub(crate) enum Line {
    /// TCP.
    Plain {
        stream: TcpStream,
        /// Until something was read: who is told whether it was what it should be.
        first: Option<First>,
    },
    /// What a dialler made instead.
    Through { stream: Box<dyn Stream>, first: Option<First> },
    /// TLS over TCP.
    Tls {
        stream: Box<TlsStream<TcpStream>>,
        /// What was read ahead.
        ahead: Vec<u8>,
    },
}

/// Whom the first bytes of a plain line matter to.
pub(crate) enum First {
    /// Nobody but the line: it ends if they are wrong.
    Unheard,
    /// Who connects and wants to know why it will not do.
    Told(oneshot::Sender<Result<(), String>>),
}

/// Why these first bytes of a plain line are not HTTP/2's, in a sentence about who sent them.
fn fault(bytes: &[u8]) -> Option<String> {
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const INADEQUATE_SECURITY: [u8; 4] = [0, 0, 0, 0xc];
    if let Some(&(HANDSHAKE | ALERT)) = bytes.first() {
        return Some("the other side speaks TLS, and this one does not".to_owned());
    }
    if bytes.starts_with(b"HTTP/") {
        return Some("it does not speak HTTP/2".to_owned());
    }
    // A server that only takes TLS may say so with its first frames.
    let (head, rest) = bytes.split_first_chunk::<9>()?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let (next, rest) = rest.get(length..)?.split_first_chunk::<9>()?;
    let (last, words) = rest.split_at_checked(8)?;
    let refused = head[3] == SETTINGS && next[3] == GOAWAY && last[4..] == INADEQUATE_SECURITY;
    refused.then(|| String::from_utf8_lossy(words).into_owned())
}

impl Line {
    pub(crate) fn plain(stream: TcpStream, first: First) -> Line {
        Line::Plain { stream, first: Some(first) }
    }

    pub(crate) fn through(stream: Box<dyn Stream>, first: First) -> Line {
        Line::Through { stream, first: Some(first) }
    }

    pub(crate) fn tls(stream: TlsStream<TcpStream>, ahead: &[u8]) -> Line {
        Line::Tls { stream: Box::new(stream), ahead: ahead.to_vec() }
    }

    #[cfg(test)]
    pub(crate) fn nodelay(&self) -> io::Result<bool> {
        match self {
            Line::Plain { stream, .. } => stream.nodelay(),
            Line::Through { .. } => Ok(true),
            Line::Tls { stream, .. } => stream.get_ref().0.nodelay(),
        }
    }
}

/// Reads what should be HTTP/2, and looks at how it begins.
fn read_plain(
    stream: &mut (impl AsyncRead + Unpin),
    first: &mut Option<First>,
    context: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let before = buffer.filled().len();
    std::task::ready!(Pin::new(stream).poll_read(context, buffer))?;
    let Some(first) = first.take() else { return Poll::Ready(Ok(())) };
    let fault = fault(buffer.filled().get(before..).unwrap_or_default());
    if let First::Told(told) = first {
        // Whoever wanted to know may have gone on.
        let _ = told.send(fault.clone().map_or(Ok(()), Err));
    }
    Poll::Ready(fault.map_or(Ok(()), |words| Err(io::Error::new(io::ErrorKind::InvalidData, words))))
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Line::Plain { stream, first } => read_plain(stream, first, context, buffer),
            Line::Through { stream, first } => read_plain(stream, first, context, buffer),
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
            Line::Through { stream, .. } => Pin::new(stream).poll_write(context, bytes),
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
            Line::Through { stream, .. } => Pin::new(stream).poll_write_vectored(context, buffers),
            Line::Tls { stream, .. } => Pin::new(stream.as_mut()).poll_write_vectored(context, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Line::Plain { stream, .. } => stream.is_write_vectored(),
            Line::Through { stream, .. } => stream.is_write_vectored(),
            Line::Tls { stream, .. } => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Line::Plain { stream, .. } => Pin::new(stream).poll_flush(context),
            Line::Through { stream, .. } => Pin::new(stream).poll_flush(context),
            Line::Tls { stream, .. } => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Line::Plain { stream, .. } => Pin::new(stream).poll_shutdown(context),
            Line::Through { stream, .. } => Pin::new(stream).poll_shutdown(context),
            Line::Tls { stream, .. } => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fault;

    #[test]
    fn what_is_no_http2_is_known_by_its_first_bytes() {
        let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1];
        let goaway = |code: u8| [&[0, 0, 10, 7, 0, 0, 0, 0, 0][..], &[0, 0, 0, 0], &[0, 0, 0, code], b"so"].concat();
        assert_eq!(fault(&settings), None);
        assert_eq!(fault(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), None);
        assert_eq!(fault(&[&settings[..], &goaway(0)].concat()), None);
        let refused = [&settings[..], &goaway(0xc)].concat();
        assert_eq!(fault(&refused).unwrap(), "so");
        assert!(fault(&[0x16, 3, 1]).unwrap().contains("TLS") && fault(&[0x15, 3]).unwrap().contains("TLS"));
        assert!(fault(b"HTTP/1.1 400 Bad Request").unwrap().contains("HTTP/2"));
        for end in 0..refused.len() {
            assert!(fault(&refused[..end]).is_none_or(|words| words.len() < 2));
        }
    }
}
