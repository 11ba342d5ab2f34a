//! Pictures that were asked for as URLs: kept in memory for a while, under names that nobody can guess.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::time::Instant;

use crate::encode::Format;
use crate::{Gateway, Problem, asker};

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

/// What the URL of a picture begins with.
pub(crate) fn base(gateway: &Gateway, headers: &HeaderMap) -> String {
    if let Some(url) = gateway.public_url() {
        return url.trim_end_matches('/').to_owned();
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    format!("http://{host}")
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
}
