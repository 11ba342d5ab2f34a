//! What all handlers share, and the map of paths to them.

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn;
use axum::routing::get;
use janus_wire::{Coordinators, Security};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{Error, asker, health, page, problem};

/// How a gateway runs.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Coordinators: `host:port,host:port`.
    pub endpoints: String,
    /// How they are reached.
    pub security: Security,
    /// Hosts (`example.org` or `example.org:8443`) that pictures of a conversation may be fetched from; none by default.
    pub image_hosts: Vec<String>,
    /// Fetch from those hosts even where their addresses are private.
    pub private_images: bool,
    /// How clients reach this gateway, for the URLs of pictures; what a request's `Host` says by default.
    pub public_url: Option<String>,
}

type Scrape = Arc<dyn Fn() -> String + Send + Sync>;

/// The gateway. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
    scrape: Option<Scrape>,
}

struct Shared {
    coordinators: Coordinators,
}

impl Gateway {
    /// A gateway to these coordinators; nothing is connected before it is needed.
    ///
    /// # Errors
    /// [`Error`] names the option that cannot be used.
    pub fn new(options: Options) -> Result<Self, Error> {
        let coordinators = Coordinators::new(&options.endpoints, options.security)?;
        Ok(Gateway { shared: Arc::new(Shared { coordinators }), scrape: None })
    }

    /// With what `/metrics` answers.
    #[must_use]
    pub fn metrics(mut self, scrape: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.scrape = Some(Arc::new(scrape));
        self
    }

    /// The cluster behind it.
    pub fn coordinators(&self) -> &Coordinators {
        &self.shared.coordinators
    }

    pub(crate) fn scrape(&self) -> Option<String> {
        self.scrape.as_ref().map(|scrape| scrape())
    }

    /// All paths.
    pub fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(health::alive))
            .route("/readyz", get(health::ready))
            .route("/metrics", get(health::metrics))
            .merge(page::routes())
            .fallback(problem::nowhere)
            .method_not_allowed_fallback(problem::other_method)
            .layer(CatchPanicLayer::custom(problem::panicked))
            .layer(from_fn(asker::named))
            .with_state(self)
    }
}
