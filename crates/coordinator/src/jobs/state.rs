//! Jobs as the leader knows them, and every write to their records: under its fencing epoch, or not at all.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use janus_cluster::{Committed, Store, Txn, guard};
use janus_wire::v1;
use tokio::sync::{Notify, RwLock, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::course::{At, Tally};
use super::engine::{Engine, PAUSE};
use super::objects::{self, Objects};
use super::record::{JobKeys, JobRecord, Status, UnitResult, decode};
use super::{Error, Options};

/// One job.
pub(super) struct Tracked {
    /// As it is in the store. Held while it is changed there.
    record: tokio::sync::Mutex<JobRecord>,
    /// As callers see it.
    view: watch::Sender<v1::Job>,
    /// Cancel was asked for.
    pub(super) cancel: CancellationToken,
}

impl Tracked {
    pub(super) fn new(record: JobRecord) -> Arc<Self> {
        let cancel = CancellationToken::new();
        if record.status == Status::Cancelling {
            cancel.cancel();
        }
        let view = watch::channel(record.shown(record.tally())).0;
        Arc::new(Tracked { record: tokio::sync::Mutex::new(record), view, cancel })
    }

    /// A copy of its record.
    pub(super) async fn record(&self) -> JobRecord {
        self.record.lock().await.clone()
    }

    /// As callers see it.
    pub(super) fn shown(&self) -> v1::Job {
        self.view.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<v1::Job> {
        self.view.subscribe()
    }

    /// Items have ended.
    pub(super) fn tell(&self, tally: Tally) {
        self.view.send_if_modified(|job| {
            let news = (job.succeeded, job.failed) != (tally.succeeded, tally.failed);
            (job.succeeded, job.failed) = (tally.succeeded, tally.failed);
            news
        });
    }
}

/// Jobs by tenant and name: newest last.
type All = BTreeMap<(Arc<str>, String), Arc<Tracked>>;

/// What everything about jobs has in common.
pub(super) struct Shared {
    pub(super) store: Arc<dyn Store>,
    pub(super) keys: JobKeys,
    pub(super) cluster: String,
    /// The fencing epoch of the coordinator that leads.
    pub(super) epoch: u64,
    pub(super) objects: Objects,
    pub(super) options: Options,
    pub(super) engine: Arc<dyn Engine>,
    /// Digest of the model, hexadecimal.
    pub(super) model: String,
    pub(super) all: Mutex<All>,
    /// There is a new job to run.
    pub(super) wake: Notify,
    /// There is something to delete.
    pub(super) sweep: Notify,
    /// Jobs that are being made at once.
    pub(super) creating: Semaphore,
    /// Held for reading while a job or a file is made that names blobs, for writing while blobs are deleted.
    pub(super) blobs: RwLock<()>,
    /// Blobs that are being sent at once.
    pub(super) uploads: Semaphore,
    /// Bytes of blobs by tenant, and when they were counted.
    pub(super) blob_bytes: tokio::sync::Mutex<(Option<Instant>, BTreeMap<String, u64>)>,
    pub(super) over: CancellationToken,
}

impl Shared {
    pub(super) fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tenant's job.
    pub(super) fn find(&self, tenant: &Arc<str>, id: &str) -> Option<Arc<Tracked>> {
        self.all().get(&(tenant.clone(), id.to_owned())).cloned()
    }

    /// The folder of a job's items and results.
    pub(super) fn folder(&self, id: &str) -> Objects {
        self.objects.below(&format!("jobs/{id}"))
    }

    /// Where a job's pictures and manifest go.
    pub(super) fn output(&self, tenant: &str, id: &str, output: &str) -> Result<Objects, Error> {
        if output.is_empty() {
            return Ok(self.folder(id).below("output"));
        }
        match objects::below_a_root(output, &(self.options.roots)(tenant)) {
            Some(url) => Objects::open(&url, &self.options.environment),
            None => Err(Error::Place {
                url: output.to_owned(),
                reason: "is not below a folder that the operator allows this tenant to write to".to_owned(),
            }),
        }
    }

    /// Commits under the fencing epoch; false if one of the transaction's own checks did not hold.
    pub(super) async fn commit(&self, txn: Txn) -> Result<bool, Error> {
        match self.store.commit(guard(txn, &self.cluster, self.epoch)?).await? {
            Committed::Done { .. } => Ok(true),
            Committed::Conflict => match self.store.get(&self.keys.epoch).await? {
                Some(entry) if entry.value == self.epoch.to_string().as_bytes() => Ok(false),
                _ => Err(Error::Deposed),
            },
        }
    }

    /// Changes a job's record, together with what `also` writes.
    pub(super) async fn amend(
        &self,
        job: &Tracked,
        also: impl Fn(Txn) -> Txn,
        change: impl FnOnce(&mut JobRecord),
    ) -> Result<(), Error> {
        let mut record = job.record.lock().await;
        let mut new = record.clone();
        change(&mut new);
        let (key, value) = (self.keys.record(&new.tenant, &new.id), new.encode()?);
        patiently("a job's record", || async {
            let txn = also(Txn::new().if_exists(&key).put(&key, value.clone()));
            match self.commit(txn).await? {
                true => Ok(()),
                false => Err(Error::Damaged { what: format!("the record at {key}"), reason: "it is gone".to_owned() }),
            }
        })
        .await?;
        *record = new;
        job.view.send_modify(|shown| {
            let tally = Tally { succeeded: shown.succeeded.max(record.succeeded), failed: shown.failed.max(record.failed) };
            *shown = record.shown(tally);
        });
        Ok(())
    }

    /// Commits results, each put if absent. One that is there already must be the same; then it is discarded.
    pub(super) async fn commit_results(&self, id: &str, mut results: Vec<(At, UnitResult)>) -> Result<(), Error> {
        loop {
            let mut txn = Txn::new();
            for (at, result) in &results {
                let key = self.keys.result(id, at.segment, at.unit);
                let value = serde_json::to_vec(result)
                    .map_err(|error| Error::Damaged { what: "a result".to_owned(), reason: error.to_string() })?;
                txn = txn.if_absent(&key).put(&key, value);
            }
            if results.is_empty() || patiently("results", || self.commit(txn.clone())).await? {
                return Ok(());
            }
            // Somebody was faster: this coordinator, if it never heard the answer, or the one before.
            let mut left = Vec::new();
            for (at, result) in results {
                let key = self.keys.result(id, at.segment, at.unit);
                let there = patiently("results", || async { Ok(self.store.get(&key).await?) }).await?;
                let Some(entry) = there else {
                    left.push((at, result));
                    continue;
                };
                let committed: UnitResult = decode(&entry)?;
                if (committed.succeeded, &committed.sha256) != (result.succeeded, &result.sha256) {
                    return Err(Error::Contradiction {
                        unit: format!("unit {} of segment {} of {id}", at.unit, at.segment),
                        committed: committed.sha256,
                        now: result.sha256,
                    });
                }
            }
            results = left;
        }
    }

    /// What is committed of a segment and not sealed.
    pub(super) async fn committed(&self, id: &str, segment: u32) -> Result<Vec<(u32, UnitResult)>, Error> {
        let prefix = self.keys.segment(id, segment);
        let mut results = Vec::new();
        for entry in self.store.list(&prefix).await?.entries {
            let Some(unit) = entry.key.strip_prefix(&prefix).and_then(|unit| unit.parse().ok()) else { continue };
            let mut result: UnitResult = decode(&entry)?;
            if result.aside {
                let text = self.folder(id).expect(&aside(At { segment, unit })).await?;
                result.text = Some(String::from_utf8_lossy(&text).into_owned());
            }
            results.push((unit, result));
        }
        Ok(results)
    }
}

/// The object of a long answer.
pub(super) fn aside(at: At) -> String {
    format!("texts/{:06}-{:04}", at.segment, at.unit)
}

/// Tries until it works, or until trying again cannot help.
pub(super) async fn patiently<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut pause = PAUSE.0;
    loop {
        match attempt().await {
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, what, "trying again");
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(PAUSE.1);
            }
            done => return done,
        }
    }
}
