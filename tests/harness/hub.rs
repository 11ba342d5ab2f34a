//! A hub of models in this process: the paths and headers of the real one, and the troubles that real ones have.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;

pub const REPO: &str = "acme/Janus-Tiny";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// It came to the host that large files are on, not to the hub itself.
    pub cdn: bool,
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
    /// Bytes of content that were meant to be sent.
    pub sent: usize,
}

/// What goes wrong with the next answers that have content of a large file, one after the other.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection breaks after so many bytes.
    Cut(usize),
    /// One byte is another one.
    Lie,
    /// Ranges are not heard.
    Whole,
}

#[derive(Default)]
pub struct Inside {
    files: BTreeMap<String, Vec<u8>>,
    pub seen: Vec<Seen>,
    pub faults: Vec<Fault>,
    /// After so many bytes of large files every answer is cut.
    pub budget: Option<usize>,
    /// Answers to the next requests to the hub: status and headers.
    pub answers: Vec<(u16, Vec<(&'static str, String)>)>,
    /// Without it there is nothing but 401.
    pub token: Option<String>,
    /// Its name.
    repo: String,
    /// The listing says neither size nor checksum.
    pub terse: bool,
    cdn: String,
}

/// Between the last byte of an answer and the cut.
const MOMENT: Duration = Duration::from_millis(300);

type Shared = Arc<Mutex<Inside>>;

pub struct Hub {
    pub endpoint: String,
    inside: Shared,
    _runtime: Runtime,
}

impl Hub {
    /// Serves the files of a folder as the model [`REPO`].
    pub fn of(folder: &Path) -> Hub {
        Hub::with(REPO, folder)
    }

    /// The same under another name.
    pub fn with(repo: &str, folder: &Path) -> Hub {
        let inside = Shared::default();
        inside.lock().unwrap().repo = repo.to_owned();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            inside.lock().unwrap().files.insert(name, std::fs::read(path).unwrap());
        }
        inside.lock().unwrap().files.insert("README.md".to_owned(), b"nobody needs this".to_vec());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let serve = |router: Router| {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            runtime.spawn(async move { axum::serve(listener, router).await });
            url
        };
        let cdn = serve(Router::new().fallback(cdn).with_state(inside.clone()));
        inside.lock().unwrap().cdn = cdn;
        let endpoint = serve(Router::new().fallback(hub).with_state(inside.clone()));
        Hub { endpoint, inside, _runtime: runtime }
    }

    pub fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap()
    }

    pub fn set(&self, name: &str, bytes: impl Into<Vec<u8>>) {
        self.inside().files.insert(name.to_owned(), bytes.into());
    }

    pub fn remove(&self, name: &str) -> Vec<u8> {
        self.inside().files.remove(name).unwrap()
    }

    pub fn size(&self, name: &str) -> usize {
        self.inside().files[name].len()
    }

    /// What was asked since the last time.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.inside().seen)
    }
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".bin")
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes))
}

pub fn git_sha1(bytes: &[u8]) -> String {
    hex(Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

fn note(inside: &mut Inside, request: &Request, cdn: bool, sent: usize) {
    let text = |name| request.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    inside.seen.push(Seen {
        cdn,
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        range: text(header::RANGE),
        token: text(header::AUTHORIZATION),
        sent,
    });
}

async fn hub(State(inside): State<Shared>, request: Request) -> Response {
    let mut inside = inside.lock().unwrap();
    let path = request.uri().path().to_owned();
    let repo = inside.repo.clone();
    let listing = format!("/api/models/{repo}/revision/");
    let content = format!("/{repo}/resolve/");
    let refuse = |status: u16, code: &str| {
        let status = StatusCode::from_u16(status).unwrap();
        (status, [("x-error-code", code.to_owned()), ("x-error-message", format!("said by the hub: {code}"))])
            .into_response()
    };
    if !inside.answers.is_empty() {
        note(&mut inside, &request, false, 0);
        let (status, headers) = inside.answers.remove(0);
        let mut response = StatusCode::from_u16(status).unwrap().into_response();
        for (name, value) in headers {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        return response;
    }
    let said = request.headers().get(header::AUTHORIZATION).map(|v| v.to_str().unwrap().to_owned());
    if inside.token.as_ref().is_some_and(|token| said != Some(format!("Bearer {token}"))) {
        note(&mut inside, &request, false, 0);
        return refuse(401, "RepoNotFound");
    }
    if let Some(revision) = path.strip_prefix(&listing) {
        note(&mut inside, &request, false, 0);
        return match revision {
            "main" | "refs%2Fpr%2F1" | COMMIT => list(&inside).into_response(),
            _ => refuse(404, "RevisionNotFound"),
        };
    }
    // The newest library asks for a tree.
    if path.starts_with(&format!("/api/models/{repo}/tree/")) {
        note(&mut inside, &request, false, 0);
        return tree(&inside).into_response();
    }
    let name = path.strip_prefix(&content).and_then(|rest| rest.split_once('/')).map(|(_, name)| name.to_owned());
    let Some((name, bytes)) = name.and_then(|name| inside.files.get(&name).cloned().map(|bytes| (name, bytes))) else {
        note(&mut inside, &request, false, 0);
        return refuse(404, if path.starts_with(&content) { "EntryNotFound" } else { "RepoNotFound" });
    };
    let commit = [("x-repo-commit", COMMIT)];
    if is_large(&name) {
        note(&mut inside, &request, false, 0);
        let sum = format!("\"{}\"", sha256(&bytes));
        let size = bytes.len().to_string();
        let location = format!("{}/{name}", inside.cdn);
        let told = [("x-linked-etag", sum.clone()), ("x-linked-size", size), ("etag", sum), ("location", location)];
        return (StatusCode::FOUND, commit, told).into_response();
    }
    note(&mut inside, &request, false, bytes.len());
    let etag = [("etag", format!("\"{}\"", git_sha1(&bytes)))];
    if request.method() == Method::HEAD {
        return (commit, etag, [("content-length", bytes.len().to_string())]).into_response();
    }
    (commit, etag, bytes).into_response()
}

fn list(inside: &Inside) -> axum::Json<serde_json::Value> {
    let sibling = |(name, bytes): (&String, &Vec<u8>)| match (inside.terse, is_large(name)) {
        (true, _) => json!({"rfilename": name}),
        (false, true) => {
            let lfs = json!({"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134});
            json!({"rfilename": name, "size": bytes.len(), "blobId": "f".repeat(40), "lfs": lfs})
        }
        (false, false) => json!({"rfilename": name, "size": bytes.len(), "blobId": git_sha1(bytes)}),
    };
    let siblings: Vec<_> = inside.files.iter().map(sibling).collect();
    let repo = &inside.repo;
    axum::Json(json!({
        "_id": "1", "id": repo, "modelId": repo, "sha": COMMIT, "private": false, "gated": false, "disabled": false,
        "tags": [], "downloads": 0, "likes": 0, "siblings": siblings,
    }))
}

fn tree(inside: &Inside) -> axum::Json<serde_json::Value> {
    let entry = |(name, bytes): (&String, &Vec<u8>)| {
        let mut entry = json!({"type": "file", "path": name, "size": bytes.len(), "oid": git_sha1(bytes)});
        if is_large(name) {
            entry["lfs"] = json!({"oid": sha256(bytes), "size": bytes.len(), "pointerSize": 134});
        }
        entry
    };
    axum::Json(inside.files.iter().map(entry).collect())
}

/// Where large files are. It knows no ETag of the hub's.
async fn cdn(State(inside): State<Shared>, request: Request) -> Response {
    let mut inside = inside.lock().unwrap();
    let name = request.uri().path().trim_start_matches('/').to_owned();
    let Some(mut bytes) = inside.files.get(&name).cloned() else { return StatusCode::NOT_FOUND.into_response() };
    if request.method() == Method::HEAD {
        note(&mut inside, &request, true, 0);
        return ([("content-length", bytes.len().to_string()), ("accept-ranges", "bytes".to_owned())]).into_response();
    }
    let fault = if inside.faults.is_empty() { None } else { Some(inside.faults.remove(0)) };
    let size = bytes.len();
    let range = match fault {
        Some(Fault::Whole) => None,
        _ => range(request.headers(), size),
    };
    if matches!(fault, Some(Fault::Lie)) {
        let middle = size - 1000;
        bytes[middle] ^= 1;
    }
    let (status, headers, bytes) = match range {
        Some((first, end)) if first >= end => {
            let told = [("content-range", format!("bytes */{size}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, told).into_response();
        }
        Some((first, end)) => {
            let told = [("content-range", format!("bytes {first}-{}/{size}", end - 1))];
            (StatusCode::PARTIAL_CONTENT, told, bytes[first..end].to_vec())
        }
        None => (StatusCode::OK, [("accept-ranges", "bytes".to_owned())], bytes),
    };
    let length = [("content-length", bytes.len().to_string()), ("etag", "\"of-the-cdn\"".to_owned())];
    let cut = match fault {
        Some(Fault::Cut(after)) => after.min(bytes.len()),
        _ => inside.budget.map_or(bytes.len(), |budget| budget.min(bytes.len())),
    };
    if let Some(budget) = &mut inside.budget {
        *budget -= cut;
    }
    note(&mut inside, &request, true, cut);
    if cut == bytes.len() {
        return (status, headers, length, bytes).into_response();
    }
    let sent = Bytes::from(bytes).slice(..cut);
    let pieces = tokio_stream::iter([Ok(sent), Err(std::io::Error::other("the line is cut"))]);
    // A cut throws away what was not sent yet, and nobody can tell when that is: the line holds a moment longer.
    let body = pieces.then(async |piece| {
        if piece.is_err() {
            tokio::time::sleep(MOMENT).await;
        }
        piece
    });
    (status, headers, length, Body::from_stream(Box::pin(body))).into_response()
}

fn range(headers: &HeaderMap, size: usize) -> Option<(usize, usize)> {
    // With a condition on an ETag that is not ours, everything is sent.
    if headers.contains_key(header::IF_RANGE) {
        return None;
    }
    let text = headers.get(header::RANGE)?.to_str().unwrap();
    let (first, last) = text.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let end = if last.is_empty() { size } else { (last.parse::<usize>().unwrap() + 1).min(size) };
    Some((first.parse().unwrap(), end))
}
