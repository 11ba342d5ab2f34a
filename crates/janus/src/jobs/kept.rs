//! Where a server keeps its jobs, as its flags and its environment say it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use janus_cluster::{Keys, Store, StoreConfig};
use janus_coordinator::LOCAL;
use janus_coordinator::Tenants;
use janus_coordinator::jobs::{Environment, Objects, Options, next_epoch};
use reqwest::Url;

use crate::args::KeepJobs;
use crate::failure::{Failure, Outcome};

/// What clouds call their credentials and endpoints.
const CLOUDS: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

impl KeepJobs {
    /// The folder of jobs, if there is one, and how they are run.
    pub(crate) fn open(&self) -> Outcome<Option<(Objects, Options)>> {
        let Some(url) = &self.jobs else {
            return match self.jobs_output.is_empty() {
                true => Ok(None),
                false => Err(Failure::mistake("--jobs-output says where results of jobs may go, and there is no --jobs")),
            };
        };
        let options = self.options(self.jobs_output.clone());
        let objects = Objects::open(url, &options.environment);
        Ok(Some((objects.map_err(|error| Failure::mistake(format!("--jobs {error}")))?, options)))
    }

    /// What is wrong with the flags, without a folder that is made.
    ///
    /// # Errors
    /// URLs that jobs cannot be kept at.
    pub(crate) fn check(&self) -> Outcome {
        match &self.jobs {
            Some(url) => Objects::check(url, &environment()).map_err(|error| Failure::mistake(format!("--jobs {error}"))),
            None => self.open().map(drop),
        }
    }

    fn options(&self, outputs: Vec<Url>) -> Options {
        Options {
            window: self.jobs_window,
            segment: janus_coordinator::jobs::SEGMENT,
            keep: (self.jobs_keep > 0).then(|| Duration::from_secs(self.jobs_keep * 24 * 3600)),
            roots: Arc::new(move |tenant| if tenant == LOCAL { outputs.clone() } else { Vec::new() }),
            environment: environment(),
        }
    }
}

/// The same, and every tenant may write to the folders that the operator gave it.
pub(crate) fn for_tenants(options: Options, tenants: Tenants) -> Options {
    let others = options.roots.clone();
    let of = move |tenant: &str| {
        let given = tenants.output_roots(tenant);
        others(tenant).into_iter().chain(given.iter().filter_map(|root| root.parse().ok())).collect()
    };
    Options { roots: Arc::new(of), ..options }
}

/// Credentials for clouds.
fn environment() -> Environment {
    let ours = |(name, _): &(String, String)| CLOUDS.iter().any(|cloud| name.starts_with(cloud));
    std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?))).filter(ours).collect()
}

/// Proves that a folder can keep jobs, and that it is the one that all coordinators of the cluster have.
pub(crate) async fn prove(objects: &Objects, store: &dyn Store, keys: &Keys) -> Outcome {
    let refused = |error: janus_coordinator::jobs::Error| match error.is_retryable() {
        true => Failure::Broken(format!("--jobs: {error}")),
        false => Failure::mistake(format!("--jobs {error}")),
    };
    objects.probe().await.map_err(refused)?;
    objects.claim(store, keys).await.map_err(refused)
}

/// How a cluster in one process keeps jobs.
pub(crate) struct Here {
    /// Where its state is; forgotten at the end without.
    pub(crate) state: Option<PathBuf>,
    pub(crate) keep: KeepJobs,
    /// Jobs may write anywhere: whoever submits them started this process.
    pub(crate) anywhere: Option<Url>,
}

/// What such a cluster works with.
pub(crate) struct Kept {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) keys: Keys,
    pub(crate) epoch: u64,
    pub(crate) objects: Objects,
    pub(crate) options: Options,
    /// Removed at the end.
    pub(crate) forgotten: Option<tempfile::TempDir>,
}

impl Here {
    /// Opens store and folder.
    pub(crate) async fn open(&self, cluster: &str) -> Outcome<Kept> {
        let broken = |error: janus_cluster::Error| Failure::mistake(format!("--state: {error}"));
        let keys = Keys::new(cluster).map_err(broken)?;
        let forgotten = match &self.state {
            Some(_) => None,
            None => {
                let made = tempfile::Builder::new().prefix("janus-jobs-").tempdir();
                Some(made.map_err(|e| Failure::Broken(format!("no temporary directory: {e}")))?)
            }
        };
        let config = match &self.state {
            Some(dir) => StoreConfig::Journal { dir: dir.join("store") },
            None => StoreConfig::Memory(janus_cluster::MemoryStore::new()),
        };
        let store = config.connect().await.map_err(broken)?;
        let folder = self.state.as_deref().or(forgotten.as_ref().map(tempfile::TempDir::path));
        let (objects, mut options) = match (self.keep.open()?, folder) {
            (Some(there), _) => there,
            (None, Some(folder)) => {
                let options = self.keep.options(self.keep.jobs_output.clone());
                let url = folder_url(&folder.join("jobs"))?;
                (Objects::open(&url, &options.environment).map_err(Failure::mistake)?, options)
            }
            (None, None) => return Err(Failure::Broken("no folder for jobs".to_owned())),
        };
        if let Some(root) = self.anywhere.clone() {
            options.roots = Arc::new(move |_| vec![root.clone()]);
        }
        prove(&objects, store.as_ref(), &keys).await?;
        let epoch = next_epoch(store.as_ref(), &keys).await.map_err(Failure::mistake)?;
        Ok(Kept { store, keys, epoch, objects, options, forgotten })
    }
}

/// A folder of this machine as a URL.
pub(crate) fn folder_url(folder: &Path) -> Outcome<Url> {
    let bad = |why: String| Failure::mistake(format!("{}: {why}", folder.display()));
    let absolute = std::path::absolute(folder).map_err(|error| bad(error.to_string()))?;
    Url::from_directory_path(&absolute).map_err(|()| bad("is no path".to_owned()))
}
