//! The web page: its files, and the endpoints that only it uses, below `/ui`. Everything it shows comes from this server:
//! the browser is told to load nothing from anywhere else.

mod cluster;
mod jobs;
mod model;

use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};

use crate::Gateway;

/// How long a call that changes nothing looks for a coordinator: somebody is watching.
const PATIENCE: Duration = Duration::from_secs(3);

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Files below `/ui/`, by name.
const FILES: [(&str, &str, &str); 11] = [
    ("/ui/page.css", CSS, include_str!("../page/page.css")),
    ("/ui/main.js", SCRIPT, include_str!("../page/main.js")),
    ("/ui/api.js", SCRIPT, include_str!("../page/api.js")),
    ("/ui/asks.js", SCRIPT, include_str!("../page/asks.js")),
    ("/ui/canvas.js", SCRIPT, include_str!("../page/canvas.js")),
    ("/ui/drop.js", SCRIPT, include_str!("../page/drop.js")),
    ("/ui/paint.js", SCRIPT, include_str!("../page/paint.js")),
    ("/ui/ask.js", SCRIPT, include_str!("../page/ask.js")),
    ("/ui/jobs.js", SCRIPT, include_str!("../page/jobs.js")),
    ("/ui/cluster.js", SCRIPT, include_str!("../page/cluster.js")),
    ("/ui/icon.svg", "image/svg+xml", include_str!("../page/icon.svg")),
];

/// Scripts and styles are files of ours; pictures are those that the page made from what it was sent.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
                      connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

/// Its routes.
pub(crate) fn routes() -> Router<Gateway> {
    let mut router = Router::new().route("/", get(|| async { file(HTML, include_str!("../page/index.html")) }));
    for (path, kind, text) in FILES {
        router = router.route(path, get(move || async move { file(kind, text) }));
    }
    router
        .route("/ui/api/model", get(model::model))
        .route("/ui/api/cluster", get(cluster::status))
        .route("/ui/api/jobs", get(jobs::list).post(jobs::create))
        .route("/ui/api/jobs/{id}/cancel", post(jobs::cancel))
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // It belongs to the server's version; asking again costs little.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
