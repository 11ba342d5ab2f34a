//! Who asks: the credential as it came and the name of the request. The coordinator decides what the credential is worth.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use janus_wire::v1::RequestHeader;
use opentelemetry::Context;
use tonic::metadata::{Ascii, MetadataValue};

use crate::Problem;

/// Response header with the name of the request.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// W3C trace context.
const TRACEPARENT: &str = "traceparent";

/// A request's name; it is also the request id at the coordinator.
#[derive(Debug, Clone)]
struct RequestId(String);

/// Whose request it is, for handlers.
#[derive(Debug, Clone)]
pub struct Asker {
    id: String,
    authorization: Option<MetadataValue<Ascii>>,
    traceparent: Option<MetadataValue<Ascii>>,
}

impl Asker {
    /// The request's name: unique, and what `x-request-id` says.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `message` with the asker's credential.
    pub fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert(header::AUTHORIZATION.as_str(), authorization.clone());
        }
        if let Some(traceparent) = &self.traceparent {
            request.metadata_mut().insert(TRACEPARENT, traceparent.clone());
        }
        request
    }

    /// The header of a request for `model`, or for the one that is served.
    pub fn header(&self, model: Option<String>) -> RequestHeader {
        RequestHeader { request_id: self.id.clone(), model: model.unwrap_or_default(), ..RequestHeader::default() }
    }
}

impl<S: Sync> FromRequestParts<S> for Asker {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let metadata = |name: &str| {
            let value = parts.headers.get(name)?.to_str().ok()?;
            MetadataValue::try_from(value).ok()
        };
        Ok(Asker {
            id: parts.extensions.get::<RequestId>().map_or_else(|| name("req"), |id| id.0.clone()),
            authorization: metadata(header::AUTHORIZATION.as_str()),
            // In our own span, if anybody watches; else as it came.
            traceparent: Some(janus_wire::trace::traceparent(&Context::current()))
                .filter(|context| !context.is_empty())
                .and_then(|context| context.parse().ok())
                .or_else(|| metadata(TRACEPARENT)),
        })
    }
}

/// The name of a request that passed [`named`].
pub(crate) fn id(request: &Request) -> &str {
    request.extensions().get::<RequestId>().map_or("", |id| &id.0)
}

/// A name nobody can guess: 128 random bits behind a prefix.
pub(crate) fn name(prefix: &str) -> String {
    let mut bits = [0; 16];
    // Without the system's randomness two names could be equal; a clock and a counter keep them apart at least.
    if getrandom::fill(&mut bits).is_err() {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bits[..8].copy_from_slice(&(now.as_nanos() as u64).to_le_bytes());
        bits[8..].copy_from_slice(&count.to_le_bytes());
    }
    format!("{prefix}-{}", janus_wire::hello::hex(&bits))
}

/// Names every request, and says the name in the response.
pub(crate) async fn named(mut request: Request, next: Next) -> Response {
    let id = name("req");
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Refuses what a browser sends on behalf of a page from elsewhere: where no key is needed, any page could paint here.
pub(crate) async fn same_site(request: Request, next: Next) -> Response {
    let from = request.headers().get("sec-fetch-site").map(HeaderValue::as_bytes);
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    match changes && from == Some(b"cross-site") {
        true => {
            let message = "pages from other sites may not send requests from a browser";
            Problem::new(StatusCode::FORBIDDEN, message).code("cross_site").into_response()
        }
        false => next.run(request).await,
    }
}
