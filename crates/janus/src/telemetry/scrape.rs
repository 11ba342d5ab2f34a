//! Metrics for Prometheus: a small HTTP server whose connections are few and short.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use janus_wire::{Connection, Incoming, Listener};
use opentelemetry_prometheus::PrometheusExporter;
use prometheus::{Registry, TextEncoder};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_stream::StreamExt;

use crate::failure::{Failure, Outcome};
use crate::local::broken;

/// Connections at once; more of them wait.
const CONNECTIONS: usize = 16;
/// From accepting a connection to its end.
const LIFETIME: Duration = Duration::from_secs(10);

/// A reader of the instruments, and where it puts them.
///
/// # Errors
/// None that can happen with a registry of its own.
pub(super) fn reader() -> Outcome<(PrometheusExporter, Registry)> {
    let registry = Registry::new();
    // Everything here is of one program: a label that says so on every sample says nothing.
    let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).scope_info_enabled(false);
    Ok((exporter.build().map_err(broken)?, registry))
}

/// Answers at `address` until the process ends; where that is.
///
/// # Errors
/// An address that cannot be bound.
pub(super) async fn serve(address: &str, registry: Registry) -> Outcome<SocketAddr> {
    let listener = Listener::bind(address).await.map_err(|e| Failure::mistake(format!("--metrics: {e}")))?;
    let address = listener.address();
    let door = Door { incoming: listener.incoming(), places: Arc::new(Semaphore::new(CONNECTIONS)), address };
    let router = Router::new().route("/metrics", get(scrape)).with_state(registry);
    tokio::spawn(async move { axum::serve(door, router).await });
    Ok(address)
}

async fn scrape(State(registry): State<Registry>) -> Response {
    let headers: [(HeaderName, &str); 2] = [(CONTENT_TYPE, prometheus::TEXT_FORMAT), (CONNECTION, "close")];
    match text(&registry) {
        Ok(text) => (headers, text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// All samples, as Prometheus reads them.
///
/// # Errors
/// Samples that cannot be written down.
pub(super) fn text(registry: &Registry) -> prometheus::Result<String> {
    TextEncoder::new().encode_to_string(&registry.gather())
}

/// Lets few in.
struct Door {
    incoming: Incoming,
    places: Arc<Semaphore>,
    address: SocketAddr,
}

impl axum::serve::Listener for Door {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        loop {
            // The semaphore is never closed.
            let Ok(place) = self.places.clone().acquire_owned().await else { continue };
            match self.incoming.next().await {
                Some(Ok(stream)) => {
                    let peer = stream.origin().address;
                    return (Visit { stream, end: Box::pin(tokio::time::sleep(LIFETIME)), _place: place }, peer);
                }
                // Too many open files, most likely.
                Some(Err(_)) | None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// A connection that ends soon, whatever its peer does.
struct Visit {
    stream: Connection,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Visit {
    fn check(&mut self, task: &mut Context<'_>) -> std::io::Result<()> {
        match self.end.as_mut().poll(task) {
            Poll::Ready(()) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "it took too long")),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Visit {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.check(task)?;
        Pin::new(&mut self.stream).poll_read(task, buffer)
    }
}

impl AsyncWrite for Visit {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.check(task)?;
        Pin::new(&mut self.stream).poll_write(task, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.check(task)?;
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}
