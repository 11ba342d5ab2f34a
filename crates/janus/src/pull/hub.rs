//! Questions to the hub: what a revision consists of, and bytes of its files. Who asks too often, or meets a server in
//! trouble, tries again, a bounded number of times.

use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName};
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::cache::Repo;
use super::settings::Settings;
use crate::failure::{Failure, Outcome};
use crate::local::broken;

/// Attempts in a row that bring nothing.
pub(crate) const TRIES: u32 = 5;
/// Pause after the first of them; doubled each time, up to the second value.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));
/// Longest pause that a server may ask for.
const LONGEST: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);
/// A server that is silent for so long has stopped.
const SILENCE: Duration = Duration::from_secs(30);
const REDIRECTS: usize = 5;
/// Longest answer that is read whole.
const MAX_LISTING: usize = 16 << 20;

/// Why an attempt brought nothing.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It would be the same the next time.
    Final(Failure),
    /// It may pass.
    Passing {
        /// What happened.
        reason: String,
        /// How long the server wants to be left alone.
        pause: Option<Duration>,
    },
}

/// What tells content from other content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sum {
    /// SHA-256 of a large file, in hex.
    Sha256(String),
    /// SHA-1 of a file that git keeps, as git computes it.
    Git(String),
}

impl Sum {
    fn of(etag: &str) -> Option<Sum> {
        let hex = etag.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match (hex, etag.len()) {
            (true, 64) => Some(Sum::Sha256(etag.to_owned())),
            (true, 40) => Some(Sum::Git(etag.to_owned())),
            _ => None,
        }
    }

    /// The name of the content in the cache, and its ETag.
    pub(crate) fn etag(&self) -> &str {
        let (Sum::Sha256(hex) | Sum::Git(hex)) = self;
        hex
    }
}

/// A file of a commit.
#[derive(Debug, Clone)]
pub(crate) struct RepoFile {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) sum: Sum,
}

/// A revision as it is now.
pub(crate) struct Commit {
    pub(crate) repo: Repo,
    pub(crate) id: String,
    /// Names, and what the listing says of them.
    files: Vec<Sibling>,
}

impl Commit {
    pub(crate) fn names(&self) -> Vec<&str> {
        self.files.iter().map(|file| file.rfilename.as_str()).collect()
    }
}

#[derive(Deserialize)]
struct Listing {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

/// A hub, and who we are there.
pub(crate) struct Hub {
    client: Client,
    settings: Settings,
    endpoint: Url,
}

impl Hub {
    pub(crate) fn new(settings: Settings) -> Outcome<Hub> {
        let endpoint = Url::parse(&settings.endpoint)
            .map_err(|e| Failure::mistake(format!("HF_ENDPOINT is `{}`: {e}", settings.endpoint)))?;
        let client = Client::builder()
            .user_agent(concat!("janus/", env!("CARGO_PKG_VERSION")))
            // By hand: the token goes to the hub and never to where it sends us.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .build()
            .map_err(|e| {
                broken(format!(
                    "no HTTPS: {} (are the certificates of authorities installed, Debian: ca-certificates?)",
                    chain(&e)
                ))
            })?;
        Ok(Hub { client, settings, endpoint })
    }

    /// What `revision` is.
    pub(crate) async fn commit(&self, repo: &Repo, revision: &str) -> Outcome<Commit> {
        let url = format!("{}/api/models/{repo}/revision/{}?blobs=true", self.settings.endpoint, escape(revision));
        let what = format!("{repo} at revision `{revision}`");
        let listing = patiently(async || {
            let response = self.ask(Method::GET, &url, &[], &what).await?;
            let body = whole(response).await?;
            let listing = serde_json::from_slice::<Listing>(&body);
            listing.map_err(|e| {
                Trouble::Final(broken(format!("{}: the list of {what} is no JSON: {e}", self.settings.endpoint)))
            })
        });
        let listing = listing.await?;
        let id = listing.sha.filter(|sha| super::cache::is_commit(sha));
        let id = id.ok_or_else(|| broken(format!("{}: the list of {what} names no commit", self.settings.endpoint)))?;
        Ok(Commit { repo: repo.clone(), id, files: listing.siblings })
    }

    /// Size and checksum of a file: the listing's, else those that its headers give.
    pub(crate) async fn file(&self, commit: &Commit, name: &str) -> Outcome<RepoFile> {
        let found = commit.files.iter().find(|file| file.rfilename == name);
        let found = found.ok_or_else(|| Failure::mistake(format!("{} has no file {name}", commit.repo)))?;
        let listed = match (&found.lfs, &found.blob_id) {
            (Some(lfs), _) => lfs.sha256.as_deref().and_then(Sum::of),
            (None, id) => id.as_deref().and_then(Sum::of),
        };
        if let (Some(sum), Some(size)) = (listed, found.size) {
            return Ok(RepoFile { name: name.to_owned(), size, sum });
        }
        let (url, what) = (self.url(commit, name), format!("{} of {}", name, commit.repo));
        let headers =
            patiently(async || self.ask(Method::HEAD, &url, &[], &what).await.map(|r| r.headers().clone())).await?;
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let etag = text(HeaderName::from_static("x-linked-etag")).or_else(|| text(header::ETAG)).unwrap_or_default();
        let size = text(HeaderName::from_static("x-linked-size")).or_else(|| text(header::CONTENT_LENGTH));
        let sum = Sum::of(etag.trim_start_matches("W/").trim_matches('"'));
        let (Some(sum), Some(size)) = (sum, size.and_then(|size| size.parse().ok())) else {
            return Err(broken(format!("{}: neither size nor checksum of {what} is told", self.settings.endpoint)));
        };
        Ok(RepoFile { name: name.to_owned(), size, sum })
    }

    /// The content of a file from byte `from` on, up to `end` (excluded) if it is given. The answer may be the whole
    /// file nevertheless.
    pub(crate) async fn open(
        &self,
        commit: &Commit,
        file: &RepoFile,
        from: u64,
        end: Option<u64>,
    ) -> Result<Response, Trouble> {
        let mut headers = Vec::new();
        if from > 0 || end.is_some() {
            let end = end.map_or_else(String::new, |end| (end - 1).to_string());
            headers.push((header::RANGE, format!("bytes={from}-{end}")));
            headers.push((header::IF_RANGE, format!("\"{}\"", file.sum.etag())));
        }
        let what = format!("{} of {}", file.name, commit.repo);
        self.ask(Method::GET, &self.url(commit, &file.name), &headers, &what).await
    }

    fn url(&self, commit: &Commit, name: &str) -> String {
        format!("{}/{}/resolve/{}/{}", self.settings.endpoint, commit.repo, commit.id, escape(name))
    }

    /// One request, wherever the hub sends us. What is said of a large file is said by the hub, so a HEAD stays there.
    async fn ask(
        &self,
        method: Method,
        url: &str,
        headers: &[(HeaderName, String)],
        what: &str,
    ) -> Result<Response, Trouble> {
        let bad = |e: String| Trouble::Final(broken(format!("{url}: {e}")));
        let mut at = Url::parse(url).map_err(|e| bad(e.to_string()))?;
        for _ in 0..=REDIRECTS {
            let ours = at.origin() == self.endpoint.origin();
            let mut request = self.client.request(method.clone(), at.clone());
            // As it is on the disk of the hub: a compressed answer has other offsets.
            request = request.header(header::ACCEPT_ENCODING, "identity");
            for (name, value) in headers {
                // Another server has another ETag for the same content.
                if ours || *name != header::IF_RANGE {
                    request = request.header(name, value);
                }
            }
            if let Some(token) = self.settings.token.as_ref().filter(|_| ours) {
                request = request.bearer_auth(token);
            }
            let host = at.host_str().unwrap_or_default().to_owned();
            let passing = |e: reqwest::Error| Trouble::Passing { reason: format!("{host}: {}", chain(&e)), pause: None };
            let response = request.send().await.map_err(passing)?;
            if !response.status().is_redirection() {
                return self.judge(response, &host, what);
            }
            let location = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            let next = location.and_then(|to| at.join(to).ok());
            let next = next.ok_or_else(|| bad(format!("{host} sends us nowhere ({})", response.status())))?;
            if method == Method::HEAD && next.origin() != self.endpoint.origin() {
                return Ok(response);
            }
            if at.scheme() == "https" && next.scheme() != "https" {
                return Err(bad(format!("{host} sends us to {next}, which is not encrypted")));
            }
            at = next;
        }
        Err(bad(format!("more than {REDIRECTS} redirects")))
    }

    /// What a status means to whoever asked.
    fn judge(&self, response: Response, host: &str, what: &str) -> Result<Response, Trouble> {
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let said = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let reason = said("x-error-message");
        let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let mistake = |text: String| Err(Trouble::Final(Failure::mistake(text)));
        match (status, self.settings.token.is_some()) {
            (StatusCode::UNAUTHORIZED, false) => mistake(format!(
                "{host} asks who we are (401) before it gives {what}{reason}: it is private, wants its terms accepted, or does \
                 not exist; check the name, or set HF_TOKEN"
            )),
            (StatusCode::UNAUTHORIZED, true) => mistake(format!(
                "{host} does not accept the token of HF_TOKEN for {what} (401){reason}: check that it is valid and may read it"
            )),
            (StatusCode::FORBIDDEN, _) => mistake(format!(
                "{host} refuses {what} (403){reason}: accept its terms on its page, with the account that HF_TOKEN is of"
            )),
            (StatusCode::NOT_FOUND, _) => mistake(match said("x-error-code") {
                "RevisionNotFound" => format!("{host} has the model, but not {what} (404); check --revision"),
                _ => format!("{host} has no {what} (404); check the name"),
            }),
            _ if status.is_server_error() || matches!(status.as_u16(), 408 | 429) => {
                let pause = said("retry-after").parse().ok().map(Duration::from_secs);
                let busy = if status.as_u16() == 429 { " (too many requests; a token in HF_TOKEN allows more)" } else { "" };
                Err(Trouble::Passing { reason: format!("{host} answers {status}{busy}{reason}"), pause })
            }
            _ => Err(Trouble::Final(broken(format!("{host} answers {status} for {what}{reason}")))),
        }
    }
}

/// Attempts until one succeeds, or [`TRIES`] have failed.
pub(crate) async fn patiently<T>(mut attempt: impl AsyncFnMut() -> Result<T, Trouble>) -> Outcome<T> {
    let mut failed = 0;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(trouble) => {
                failed += 1;
                rest(trouble, failed).await?;
            }
        }
    }
}

/// Pauses after the attempt number `failed` without success, or gives up.
pub(crate) async fn rest(trouble: Trouble, failed: u32) -> Outcome {
    let (reason, asked) = match trouble {
        Trouble::Final(failure) => return Err(failure),
        Trouble::Passing { reason, pause } => (reason, pause),
    };
    if failed >= TRIES || asked.is_some_and(|pause| pause > LONGEST) {
        let wait = asked.map_or_else(String::new, |pause| format!("; it asks for a pause of {} s", pause.as_secs()));
        return Err(broken(format!("{reason}; given up after {failed} attempts{wait}; start again to go on where it was")));
    }
    tracing::info!(reason, failed, "trying again");
    tokio::time::sleep(asked.unwrap_or_else(|| (PAUSE.0 * 2u32.pow(failed - 1)).min(PAUSE.1))).await;
    Ok(())
}

/// An answer of bounded length.
async fn whole(mut response: Response) -> Result<Vec<u8>, Trouble> {
    let passing = |e: reqwest::Error| Trouble::Passing { reason: chain(&e), pause: None };
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(passing)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_LISTING {
            return Err(Trouble::Final(broken("the list of files is too long to be one")));
        }
    }
    Ok(body)
}

/// Where an answer's first byte belongs, if it is a part.
pub(crate) fn starts_at(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// An error with what caused it: reqwest's own text says least.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    text
}

/// A path segment, its slashes too: revisions have them.
fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_known_by_its_length() {
        assert_eq!(Sum::of(&"a1".repeat(32)), Some(Sum::Sha256("a1".repeat(32))));
        assert_eq!(Sum::of(&"a1".repeat(20)), Some(Sum::Git("a1".repeat(20))));
        // What becomes a file's name is nothing else.
        assert_eq!(Sum::of("../../etc/passwd"), None);
        assert_eq!(Sum::of(&"A1".repeat(20)), None);
    }

    #[test]
    fn slashes_of_a_revision_are_escaped() {
        assert_eq!(escape("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(escape("a b%"), "a%20b%25");
    }
}
