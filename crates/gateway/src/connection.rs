//! Connections: how many there may be, and how long one may keep us waiting.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use janus_wire::limits::MAX_HEADERS;
use janus_wire::tls::Door;
use janus_wire::{Listener, Security};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::codegen::Service;

use crate::Gateway;

/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 128;
/// How long a request's head may take, and a connection that asks nothing is kept.
const HEAD: Duration = Duration::from_secs(60);
/// How long a client may take nothing of what is sent to it.
const STALLED: Duration = Duration::from_secs(60);
/// HTTP/2 clients are asked this often whether they are still there.
const PING: Duration = Duration::from_secs(20);
/// Pause after the system refused a connection: it has too many open files.
const REFUSED: Duration = Duration::from_millis(100);

/// How a request came here; each has it among its extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    /// By TLS.
    pub(crate) encrypted: bool,
    /// To a port that only this machine reaches.
    pub(crate) loopback: bool,
}

impl Gateway {
    /// Answers on `listener` until `over`; then takes no more connections and finishes the requests that it has.
    pub async fn serve(self, listener: Listener, security: Security, over: CancellationToken) {
        let loopback = listener.address().ip().to_canonical().is_loopback();
        let router = self.router();
        let mut incoming = listener.behind(&security, Door::Web);
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                // How many there may be, in all and of one address, is what every port has.
                next = incoming.next() => match next {
                    Some(accepted) => accepted,
                    None => break,
                },
                Some(_) = connections.join_next() => continue,
                () = over.cancelled() => break,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken");
                    tokio::time::sleep(REFUSED).await;
                    continue;
                }
            };
            let way = Way { encrypted: stream.origin().encrypted, loopback };
            let service = TowerToHyperService::new(Marked { service: router.clone(), way });
            let over = over.clone();
            connections.spawn(async move {
                let mut builder = auto::Builder::new(TokioExecutor::new());
                // A request's head has to fit into the buffer.
                builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEADERS as usize);
                builder
                    .http2()
                    .timer(TokioTimer::new())
                    .keep_alive_interval(PING)
                    .keep_alive_timeout(PING)
                    .max_concurrent_streams(STREAMS)
                    .max_header_list_size(MAX_HEADERS);
                let connection = builder.serve_connection(TokioIo::new(Impatient::new(stream)), service);
                tokio::pin!(connection);
                let mut asked = false;
                loop {
                    tokio::select! {
                        ended = connection.as_mut() => {
                            if let Err(error) = ended {
                                tracing::debug!(%error, "a connection ended badly");
                            }
                            return;
                        }
                        () = over.cancelled(), if !asked => {
                            asked = true;
                            connection.as_mut().graceful_shutdown();
                        }
                    }
                }
            });
        }
        while connections.join_next().await.is_some() {}
    }
}

/// Answers the requests of one connection, each with its [`Way`].
#[derive(Clone)]
struct Marked<S> {
    service: S,
    way: Way,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for Marked<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        request.extensions_mut().insert(self.way);
        self.service.call(request)
    }
}

/// A socket that fails when its peer says nothing at first, or takes nothing for too long.
struct Impatient<S> {
    stream: S,
    /// Until something was read.
    silent: Option<Pin<Box<Sleep>>>,
    /// While something cannot be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn new(stream: S) -> Self {
        Impatient { stream, silent: Some(Box::pin(tokio::time::sleep(HEAD))), stalled: None }
    }

    fn wrote<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALLED)));
        match timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if result.is_ready() {
            self.silent = None;
            return result;
        }
        match self.silent.as_mut().map(|timer| timer.as_mut().poll(context)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client says nothing"))),
            _ => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.wrote(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.wrote(context, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_left_in_the_end() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut ours = Impatient::new(ours);
        let begun = Instant::now();
        // Whoever is slow is waited for, as long as there is some progress.
        let reading = async {
            for _ in 0..4 {
                tokio::time::sleep(STALLED / 2).await;
                theirs.read_exact(&mut [0; 16]).await.unwrap();
            }
            theirs
        };
        let (error, _theirs) = tokio::join!(async { ours.write_all(&[0; 1000]).await.unwrap_err() }, reading);
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= 2 * STALLED + STALLED && begun.elapsed() < 4 * STALLED, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_left_and_one_that_waits_for_its_answer_is_not() {
        let (ours, theirs) = tokio::io::duplex(16);
        let error = Impatient::new(ours).read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut ours = Impatient::new(ours);
        theirs.write_u8(1).await.unwrap();
        ours.read_u8().await.unwrap();
        assert!(tokio::time::timeout(10 * HEAD, ours.read_u8()).await.is_err());
    }
}
