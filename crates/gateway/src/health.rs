//! For probes and scrapers.

use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use janus_wire::v1;
use janus_wire::v1::tenants_client::TenantsClient;

use crate::{Asker, Gateway, Problem};

/// How long a scraper may wait for a coordinator.
const PATIENCE: Duration = Duration::from_secs(3);

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

/// Figures in Prometheus' text format, with the names of tenants: where keys are asked for, it takes an operator's.
#[utoipa::path(get, path = "/metrics", tag = "operation", responses(
    (status = 200, description = "Metrics", body = String, content_type = "text/plain"),
    (status = 404, description = "This process collects none", body = crate::problem::Body),
    (status = "default", description = "What went wrong", body = crate::problem::Body)
))]
pub(crate) async fn metrics(State(gateway): State<Gateway>, asker: Asker) -> Result<Response, Problem> {
    let text = gateway.scrape().ok_or_else(|| Problem::not_found("this process collects no metrics"))?;
    // Whoever may see the tenants may see this. Only the cluster knows who may.
    let tenants = |channel| {
        let request = asker.request(v1::ListTenantsRequest {});
        async move { TenantsClient::new(channel).list(request).await }
    };
    gateway.coordinators().call(PATIENCE, tenants).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text()).into_response())
}
