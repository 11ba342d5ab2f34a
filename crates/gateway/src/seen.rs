//! What is seen of HTTP: how long requests take and how they end, by route; and a span of each, in its client's trace.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::Instant;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::Stream;
use opentelemetry::metrics::Histogram;
use opentelemetry::{KeyValue, global};
use tonic::metadata::MetadataMap;
use tracing::{Instrument, Span, error_span, field::Empty};

use crate::asker;

/// Seconds of a request.
const SECONDS: [f64; 16] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0];

/// Counts requests.
#[derive(Clone)]
pub(crate) struct Door(Arc<Histogram<f64>>);

impl Door {
    pub(crate) fn new() -> Self {
        let meter = global::meter("janus");
        let seconds = meter.f64_histogram("http.server.request.duration").with_unit("s");
        let seconds = seconds.with_description("From an HTTP request to the end of its response");
        Door(Arc::new(seconds.with_boundaries(SECONDS.to_vec()).build()))
    }
}

/// A request that is being answered; it is counted when its response has ended.
struct Visit {
    door: Door,
    labels: Vec<KeyValue>,
    span: Span,
    begun: Instant,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.door.0.record(self.begun.elapsed().as_secs_f64(), &self.labels);
        // The span lasts until here.
        let _ended = self.span.enter();
    }
}

/// Watches a request.
pub(crate) async fn seen(State(door): State<Door>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let method = method(request.method());
    let span = {
        let theirs = janus_wire::trace::received(&MetadataMap::from_headers(request.headers().clone()));
        let _theirs = theirs.attach();
        let (id, name) = (asker::id(&request), format!("{method} {route}"));
        error_span!("http", request = id, otel.name = name, otel.kind = "server", status = Empty)
    };
    let labels = vec![KeyValue::new("http.request.method", method), KeyValue::new("http.route", route)];
    let mut visit = Visit { door, labels, span: span.clone(), begun: Instant::now() };
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    span.record("status", status);
    visit.labels.push(KeyValue::new("http.response.status_code", i64::from(status)));
    let streams = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
    match streams {
        true => response.map(|body| Body::from_stream(Watched { body: body.into_data_stream(), _visit: visit })),
        false => response,
    }
}

/// A response that goes on.
struct Watched {
    body: BodyDataStream,
    _visit: Visit,
}

impl Stream for Watched {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.body).poll_next(task)
    }
}

/// Anybody can make up methods; metrics cannot hold them all.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "_OTHER",
    }
}
