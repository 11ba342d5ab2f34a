//! Pictures that were asked for as URLs: kept in memory for a while, under names that nobody can guess.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{FromRequestParts, Path, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::time::Instant;

use crate::connection::Way;
use crate::encode::Format;
use crate::{Gateway, Problem, asker, host};

/// Where they are found.
pub(crate) const PATH: &str = "/v1/images/results";
/// How long one is kept, as OpenAI keeps them...
const KEEP: Duration = Duration::from_secs(3600);
/// ...unless there are more than these bytes of newer ones.
const BYTES: usize = 256 << 20;

/// Recent pictures.
pub(crate) struct Results {
    inner: Mutex<Inner>,
    bytes: usize,
}

#[derive(Default)]
struct Inner {
    files: HashMap<String, (Format, Bytes)>,
    /// Oldest first.
    order: VecDeque<(Instant, String)>,
    bytes: usize,
}

impl Default for Results {
    fn default() -> Self {
        Results { inner: Mutex::default(), bytes: BYTES }
    }
}

impl Results {
    /// Keeps a file; its name.
    pub(crate) fn keep(&self, format: Format, file: Bytes) -> String {
        let name = format!("{}.{}", asker::name("img"), format.extension());
        let mut inner = self.lock();
        inner.bytes += file.len();
        inner.files.insert(name.clone(), (format, file));
        inner.order.push_back((Instant::now(), name.clone()));
        self.forget(&mut inner);
        name
    }

    fn get(&self, name: &str) -> Option<(Format, Bytes)> {
        let mut inner = self.lock();
        self.forget(&mut inner);
        inner.files.get(name).cloned()
    }

    fn forget(&self, inner: &mut Inner) {
        while inner.bytes > self.bytes || inner.order.front().is_some_and(|(made, _)| made.elapsed() > KEEP) {
            let Some((_, name)) = inner.order.pop_front() else { break };
            if let Some((_, file)) = inner.files.remove(&name) {
                inner.bytes -= file.len();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the URL of a picture begins with: the public URL, or how this request came here.
pub(crate) struct Base(pub(crate) String);

impl FromRequestParts<Gateway> for Base {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Infallible> {
        if let Some(url) = gateway.public_url() {
            return Ok(Base(url.trim_end_matches('/').to_owned()));
        }
        let encrypted = parts.extensions.get::<Way>().is_some_and(|way| way.encrypted);
        let scheme = if encrypted { "https" } else { "http" };
        let host = host::names(&parts.headers, &parts.uri).flatten().next().unwrap_or("localhost");
        Ok(Base(format!("{scheme}://{host}")))
    }
}

/// A picture that was painted with `response_format: url`; its name is all it takes to see it.
#[utoipa::path(get, path = "/v1/images/results/{name}", tag = "images",
    params(("name" = String, Path, description = "The last part of the picture's URL")),
    responses(
        (status = 200, description = "The picture", content_type = "image/*", body = Vec<u8>),
        (status = 404, description = "No such picture, or not any more", body = crate::problem::Body)
    )
)]
pub(crate) async fn get(State(gateway): State<Gateway>, Path(name): Path<String>) -> Result<Response, Problem> {
    let gone = || Problem::not_found("there is no such picture, or not any more: they are kept for an hour at most");
    let (format, file) = gateway.results().get(&name).ok_or_else(gone)?;
    let headers = [
        (header::CONTENT_TYPE, format.content_type()),
        (header::CACHE_CONTROL, "private, max-age=3600, immutable"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, file).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pictures_are_forgotten_by_age_and_by_size() {
        let results = Results { bytes: 10, ..Results::default() };
        let keep = |n: usize| results.keep(Format::Png, vec![0; n].into());
        let (first, second) = (keep(4), keep(4));
        assert!(first.ends_with(".png") && first != second);
        assert!(results.get(&first).is_some());
        let third = keep(4);
        assert!(results.get(&first).is_none() && results.get(&second).is_some());
        tokio::time::advance(KEEP + Duration::from_secs(1)).await;
        assert!(results.get(&third).is_none());
        let left = results.lock();
        assert_eq!((left.bytes, left.order.len()), (0, 0));
        drop(left);
        // Larger than everything: it is not kept at all.
        assert!(results.get(&keep(11)).is_none());
    }

    #[tokio::test]
    async fn a_url_begins_as_the_request_came_here() {
        let open = |public_url: Option<&str>| {
            let (endpoints, public_url) = ("127.0.0.1:1".to_owned(), public_url.map(str::to_owned));
            Gateway::new(crate::Options { endpoints, public_url, ..crate::Options::default() })
        };
        let gateway = open(None).unwrap();
        let base = async |gateway: &Gateway, encrypted: bool, uri: &str, host: Option<&str>| {
            let mut request = axum::http::Request::builder().uri(uri).header("x-forwarded-proto", "https");
            request = request.header("x-forwarded-host", "evil.example");
            if let Some(host) = host {
                request = request.header(header::HOST, host);
            }
            let mut parts = request.body(()).unwrap().into_parts().0;
            parts.extensions.insert(Way { encrypted, loopback: true });
            Base::from_request_parts(&mut parts, gateway).await.unwrap().0
        };
        assert_eq!(base(&gateway, false, "/v1", Some("a:81")).await, "http://a:81");
        assert_eq!(base(&gateway, true, "/v1", Some("a:81")).await, "https://a:81");
        assert_eq!(base(&gateway, true, "https://b:82/v1", None).await, "https://b:82");
        assert_eq!(base(&gateway, false, "https://b:82/v1", None).await, "http://b:82");
        assert_eq!(base(&gateway, true, "https://b:82/v1", Some("a:81")).await, "https://a:81");
        assert_eq!(base(&gateway, false, "/v1", None).await, "http://localhost");
        let public = open(Some("https://c/janus/")).unwrap();
        assert_eq!(base(&public, false, "/v1", Some("a:81")).await, "https://c/janus");
    }
}
