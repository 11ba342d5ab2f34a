//! What all handlers share, and the map of paths to them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use janus_wire::{Coordinators, Security, v1};
use tower_http::catch_panic::CatchPanicLayer;

use crate::body::Budget;
use crate::host::Hosts;
use crate::remote::Remote;
use crate::results::Results;
use crate::{
    Asker, Error, Problem, asker, attached, batches, body, chat, files, health, host, images, models, openapi, page,
    problem, results, seen,
};

/// How long a question that changes nothing looks for a coordinator.
const PATIENCE: Duration = Duration::from_secs(10);

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
    /// How clients reach this gateway, for the URLs of pictures; how a request came by default.
    pub public_url: Option<String>,
    /// Names that this machine has for its clients, beside `localhost`, its addresses and the public URL's host.
    pub allow_hosts: Vec<String>,
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
    budget: Budget,
    remote: Remote,
    results: Results,
    public_url: Option<String>,
    hosts: Hosts,
}

impl Gateway {
    /// A gateway to these coordinators; nothing is connected before it is needed.
    ///
    /// # Errors
    /// [`Error`] names the option that cannot be used.
    pub fn new(options: Options) -> Result<Self, Error> {
        let coordinators = Coordinators::new(&options.endpoints, options.security)?;
        let remote = Remote::new(&options.image_hosts, options.private_images)?;
        if let Some(url) = &options.public_url {
            let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
            if rest
                .is_none_or(|rest| rest.is_empty() || rest.starts_with('/') || !rest.bytes().all(|b| b.is_ascii_graphic()))
            {
                return Err(Error::PublicUrl { url: url.clone() });
            }
        }
        let hosts = Hosts::new(&options.allow_hosts, options.public_url.as_deref())?;
        let (budget, results, public_url) = (Budget::default(), Results::default(), options.public_url);
        let shared = Arc::new(Shared { coordinators, budget, remote, results, public_url, hosts });
        Ok(Gateway { shared, scrape: None })
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

    /// What is served. It is asked for each time: a question of a fraction of a millisecond, and never out of date.
    ///
    /// # Errors
    /// What the coordinator said, if it is not the model.
    pub async fn describe(&self, asker: &Asker) -> Result<v1::DescribeModelResponse, Problem> {
        let describe = |channel| {
            let request = asker.request(v1::DescribeModelRequest::default());
            async move { attached::inference(channel).describe(request).await }
        };
        Ok(self.coordinators().call(PATIENCE, describe).await?)
    }

    /// Whether whoever shows no key is refused. Only the cluster knows.
    pub(crate) async fn asks_for_keys(&self) -> Result<bool, Problem> {
        let describe = |channel| async move {
            let request = tonic::Request::new(v1::DescribeModelRequest::default());
            attached::inference(channel).describe(request).await
        };
        match self.coordinators().call(PATIENCE, describe).await {
            Ok(_) => Ok(false),
            Err(status) if status.code() == tonic::Code::Unauthenticated => Ok(true),
            Err(status) => Err(status.into()),
        }
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.shared.budget
    }

    pub(crate) fn remote(&self) -> &Remote {
        &self.shared.remote
    }

    pub(crate) fn results(&self) -> &Results {
        &self.shared.results
    }

    pub(crate) fn public_url(&self) -> Option<&str> {
        self.shared.public_url.as_deref()
    }

    pub(crate) fn hosts(&self) -> &Hosts {
        &self.shared.hosts
    }

    pub(crate) fn scrape(&self) -> Option<&Scrape> {
        self.scrape.as_ref()
    }

    /// All paths.
    pub fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(health::alive))
            .route("/readyz", get(health::ready))
            .route("/metrics", get(health::metrics))
            .route("/openapi.json", get(openapi::document))
            .route("/v1/models", get(models::list))
            .route("/v1/models/{*model}", get(models::get))
            .route("/v1/images/generations", post(images::generate))
            .route("/v1/images/results/{name}", get(results::get))
            .route("/v1/chat/completions", post(chat::complete))
            .route("/v1/files", get(files::list).post(files::upload).layer(DefaultBodyLimit::max(files::MAX_FORM)))
            .route("/v1/files/{file}", get(files::look).delete(files::delete))
            .route("/v1/files/{file}/content", get(files::content))
            .route("/v1/batches", get(batches::list).post(batches::create))
            .route("/v1/batches/{batch}", get(batches::look))
            .route("/v1/batches/{batch}/cancel", post(batches::cancel))
            .merge(page::routes())
            .fallback(problem::nowhere)
            .method_not_allowed_fallback(problem::other_method)
            .layer(CatchPanicLayer::custom(problem::panicked))
            .layer(from_fn(body::timed))
            .layer(from_fn(asker::same_site))
            .layer(from_fn_with_state(self.clone(), host::known))
            .layer(from_fn_with_state(seen::Door::new(), seen::seen))
            .layer(from_fn(asker::named))
            .with_state(self)
    }
}
