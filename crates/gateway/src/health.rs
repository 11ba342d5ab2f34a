//! For probes and scrapers.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::{Gateway, Problem};

/// This process answers.
#[utoipa::path(get, path = "/healthz", tag = "operation", responses(
    (status = 200, description = "The process is alive", body = String, content_type = "text/plain")
))]
pub(crate) async fn alive() -> &'static str {
    "ok\n"
}

/// A pipeline behind this process can generate.
#[utoipa::path(get, path = "/readyz", tag = "operation", responses(
    (status = 200, description = "Pictures can be painted", body = String, content_type = "text/plain"),
    (status = 503, description = "They cannot, for now", body = crate::problem::Body)
))]
pub(crate) async fn ready(State(gateway): State<Gateway>) -> Result<&'static str, Problem> {
    gateway.coordinators().ready().await?;
    Ok("ready\n")
}

/// Figures in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "operation", responses(
    (status = 200, description = "Metrics", body = String, content_type = "text/plain"),
    (status = 404, description = "This process collects none", body = crate::problem::Body)
))]
pub(crate) async fn metrics(State(gateway): State<Gateway>) -> Response {
    match gateway.scrape() {
        Some(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        None => Problem::not_found("this process collects no metrics").into_response(),
    }
}
