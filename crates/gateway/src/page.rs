//! The web page: its files, and the endpoints that only it uses, below `/ui`.

use axum::Router;

use crate::Gateway;

/// Its routes.
pub(crate) fn routes() -> Router<Gateway> {
    Router::new()
}
