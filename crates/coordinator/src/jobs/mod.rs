//! Durable jobs: pictures and answers by the million that nobody waits for.
//!
//! [`Jobs`] lives with the leader and is made anew in every reign. [`course`] decides, without I/O, what a job does next;
//! [`runner`] does it, through an [`Engine`]; [`spool`] takes items in, [`manifest`] brings results out, [`service`] is
//! the public gRPC, [`sweep`] forgets.
//!
//! # What is where
//!
//! The cluster's store holds little, and the same for ten items or a million:
//!
//! | key below `jobs/` | value | how many |
//! |---|---|---|
//! | `place` | the mark of the folder that all coordinators share | 1 |
//! | `records/<tenant>/<job>` | [`JobRecord`], JSON, at most some 8 KiB | one a job |
//! | `keys/<tenant>/<SHA-256 of the caller's key>` | the job's id | at most one a job |
//! | `files/<tenant>/<id>` | a file: its blob's digest and what its tenant calls it, at most some 2 KiB | 1,000 a tenant |
//! | `results/<job>/<segment>/<unit>` | [`UnitResult`], JSON, at most some 2 KiB | units of 3 open segments, at most |
//!
//! Everything else is in objects, below the folder of `--jobs`. None is ever changed:
//!
//! | object | what | size |
//! |---|---|---|
//! | `jobs/<job>/items/<segment>` | the items of a segment, length-delimited [`v1::JobItem`](janus_wire::v1::JobItem)s | up to 256 items or 512 units, 256 KiB if items are small |
//! | `jobs/<job>/index` | the number of the first line of every segment | 8 bytes a segment |
//! | `jobs/<job>/texts/<segment>-<unit>` | an answer of more than 1 KiB | |
//! | `jobs/<job>/segments/<segment>` | the lines of a sealed segment | |
//! | `<output>/pictures/<id>-<index>.png` | a picture | |
//! | `<output>/manifest.jsonl` | all segments' lines; appears when the job is complete | |
//! | `blobs/<tenant>/<SHA-256>` | a file that items name | at most 64 MiB |
//!
//! So a million items of one picture are about 4,000 segments, one record, and at most 768 results in the store at any time.
//!
//! # What survives
//!
//! A job is there when its record is: items come before it. A unit's picture is created, if absent, before its result is
//! committed; a result is put, if absent, in a transaction that the leader's fencing epoch guards, so a coordinator that was
//! replaced is refused. A segment's lines are created before the record counts them; the transaction that does
//! also deletes the results they replace. The manifest is written before the record says that the job ended. Whoever comes
//! next finds one of these states, and goes on; what was computed and not committed is computed again from its token log,
//! with the same bits.

mod blob_service;
mod blobs;
pub mod course;
mod engine;
mod error;
mod files;
mod item;
mod manifest;
mod objects;
mod record;
mod runner;
mod service;
mod spool;
mod state;
mod sweep;

use std::collections::{BTreeMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use janus_cluster::{Committed, Keys, Store, Txn};
use tokio::sync::{Notify, RwLock, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::Url;

pub use engine::{Answer, Engine, Picture};
pub use error::Error;
pub use manifest::MANIFEST;
pub use objects::{Created, Environment, Objects};
pub use record::{JobRecord, Status, UnitResult};
pub(crate) use service::server;
pub use spool::{MAX_ITEMS, SEGMENT};

use record::JobKeys;
pub(crate) use record::random_hex;
use state::{Shared, Tracked};

/// When to come back to what cannot be done now.
pub(crate) const RETRY: Duration = Duration::from_secs(2);
/// Jobs that run at once...
const RUNNING: usize = 16;
/// ...and those of one tenant: the next one begins while the last units of one are under way.
const RUNNING_EACH: usize = 2;
/// Jobs whose items come in at once.
const CREATING: usize = 4;
/// Blobs that come in at once.
const UPLOADS: usize = 8;
/// A job whose run broke, which is a mistake of ours, is begun again after this.
const BROKEN: Duration = Duration::from_secs(30);
/// Blobs are counted so often.
const COUNTED: Duration = Duration::from_secs(60);
/// Pause before the store is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// Where a tenant's jobs may write: URLs of folders.
pub type Roots = Arc<dyn Fn(&str) -> Vec<Url> + Send + Sync>;

/// How jobs are run.
#[derive(Clone)]
pub struct Options {
    /// Units of one job that are under way at once.
    pub window: usize,
    /// Items of a segment, at most: [`SEGMENT`] unless there is a reason.
    pub segment: usize,
    /// Jobs that ended so long ago are forgotten; `None` keeps them.
    pub keep: Option<Duration>,
    /// Where tenants may write.
    pub roots: Roots,
    /// Where credentials of outputs come from.
    pub environment: Environment,
}

/// What jobs of one reign need.
pub struct Setup {
    /// The cluster's store.
    pub store: Arc<dyn Store>,
    /// Its keys.
    pub keys: Keys,
    /// The cluster's name.
    pub cluster: String,
    /// The fencing epoch under which this coordinator leads.
    pub epoch: u64,
    /// Where items and results are.
    pub objects: Objects,
    /// How jobs are run.
    pub options: Options,
    /// Who makes units.
    pub engine: Arc<dyn Engine>,
    /// Digest of the model.
    pub model: [u8; 32],
}

/// The jobs of one reign. Cheap to clone.
#[derive(Clone)]
pub struct Jobs(Arc<Shared>);

impl Jobs {
    /// Reads what is there, and goes on with it until `over`. Waits for the store; `None` if `over` comes first.
    pub async fn start(setup: Setup, over: CancellationToken) -> Option<Jobs> {
        let shared = Arc::new(Shared {
            store: setup.store,
            keys: JobKeys::new(&setup.keys),
            cluster: setup.cluster,
            epoch: setup.epoch,
            objects: setup.objects,
            options: setup.options,
            engine: setup.engine,
            model: janus_wire::hello::hex(&setup.model),
            all: Mutex::default(),
            wake: Notify::new(),
            sweep: Notify::new(),
            creating: Semaphore::new(CREATING),
            blobs: RwLock::new(()),
            uploads: Semaphore::new(UPLOADS),
            blob_bytes: Default::default(),
            over: over.clone(),
        });
        over.run_until_cancelled(read(&shared)).await?;
        let (running, sweeping) = (shared.clone(), shared.clone());
        let (until, end) = (over.clone(), over);
        tokio::spawn(async move { until.run_until_cancelled(dispatch(running)).await });
        tokio::spawn(async move { end.run_until_cancelled(sweep::run(sweeping)).await });
        Some(Jobs(shared))
    }

    /// Bytes of results and blobs that are kept, by tenant. Blobs are counted once a minute.
    pub async fn bytes(&self) -> BTreeMap<String, u64> {
        let jobs: Vec<_> = self.0.all().iter().map(|((owner, _), job)| (owner.clone(), job.clone())).collect();
        let mut bytes = {
            let (counted, blobs) = &mut *self.0.blob_bytes.lock().await;
            if counted.is_none_or(|at| at.elapsed() >= COUNTED) {
                match blobs::bytes(&self.0.objects).await {
                    Ok(bytes) => *blobs = bytes,
                    Err(error) => tracing::warn!(%error, "blobs cannot be counted"),
                }
                *counted = Some(tokio::time::Instant::now());
            }
            blobs.clone()
        };
        for (owner, job) in jobs {
            *bytes.entry(owner.to_string()).or_default() += job.record().await.bytes;
        }
        bytes
    }

    /// Jobs that have not ended.
    pub async fn unfinished(&self) -> usize {
        let all: Vec<_> = self.0.all().values().cloned().collect();
        let mut unfinished = 0;
        for job in all {
            unfinished += usize::from(!job.record().await.status.is_end());
        }
        unfinished
    }
}

/// A fencing epoch for a process that is alone with its store: higher than all before.
///
/// # Errors
/// The store's.
pub async fn next_epoch(store: &dyn Store, keys: &Keys) -> Result<u64, Error> {
    let key = keys.epoch();
    loop {
        let there = store.get(&key).await?;
        let last = there.as_ref().and_then(|entry| std::str::from_utf8(&entry.value).ok()?.parse::<u64>().ok());
        let next = last.unwrap_or_default() + 1;
        let txn = Txn::new().if_version(&key, there.map_or(0, |entry| entry.version)).put(&key, next.to_string());
        if let Committed::Done { .. } = store.commit(txn).await? {
            return Ok(next);
        }
    }
}

async fn read(shared: &Shared) {
    loop {
        match shared.store.list(&shared.keys.records()).await {
            Ok(listing) => {
                let mut all = shared.all();
                for entry in listing.entries {
                    match record::decode::<JobRecord>(&entry) {
                        Ok(record) => {
                            all.insert((record.tenant.clone(), record.id.clone()), Tracked::new(record));
                        }
                        Err(error) => tracing::error!(%error, "a job cannot be read"),
                    }
                }
                return;
            }
            Err(error) => tracing::warn!(%error, "jobs cannot be read"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Runs jobs, some at a time.
async fn dispatch(shared: Arc<Shared>) {
    let mut runs = JoinSet::new();
    let mut running: HashSet<(Arc<str>, String)> = HashSet::new();
    loop {
        for (name, job) in waiting(&shared, &running).await {
            running.insert(name.clone());
            let shared = shared.clone();
            runs.spawn(async move {
                let ended = AssertUnwindSafe(runner::run(shared, job)).catch_unwind().await;
                let ended = match ended {
                    Ok(ended) => ended,
                    Err(_) => {
                        tracing::error!(job = name.1, "a job's run broke; it is tried again");
                        tokio::time::sleep(BROKEN).await;
                        Ok(())
                    }
                };
                (name, ended)
            });
        }
        tokio::select! {
            () = shared.wake.notified() => {}
            Some(ended) = runs.join_next() => match ended {
                Ok((_, Err(Error::Deposed))) => {
                    tracing::warn!("another coordinator leads now: its jobs are not ours any more");
                    return;
                }
                Ok((name, ended)) => {
                    if let Err(error) = ended {
                        tracing::error!(job = name.1, %error, "a job's end is not written down");
                    }
                    running.remove(&name);
                }
                Err(error) => tracing::error!(%error, "a job's run broke"),
            },
        }
    }
}

/// The jobs to begin: whoever waits for one first, then tenants that have the fewest, then the oldest.
async fn waiting(shared: &Shared, running: &HashSet<(Arc<str>, String)>) -> Vec<((Arc<str>, String), Arc<Tracked>)> {
    let all: Vec<_> = shared.all().iter().map(|(name, job)| (name.clone(), job.clone())).collect();
    let mut each: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    running.iter().for_each(|(tenant, _)| *each.entry(tenant.clone()).or_default() += 1);
    let (mut chosen, mut ready) = (Vec::new(), Vec::new());
    for (name, job) in all {
        if running.contains(&name) {
            continue;
        }
        let record = job.record().await;
        match record.status {
            _ if record.deleting || record.status.is_end() => {}
            // To end a job that nobody wants takes no room from others.
            Status::Cancelling => chosen.push((name, job)),
            _ => ready.push((!record.interactive, name, job)),
        }
    }
    let mut room = RUNNING.saturating_sub(running.len());
    while room > 0 {
        let count = |tenant: &Arc<str>| each.get(tenant).copied().unwrap_or_default();
        let fits = ready.iter().enumerate().filter(|(_, (_, name, _))| count(&name.0) < RUNNING_EACH);
        let first = fits.min_by_key(|(_, (late, name, _))| (*late, count(&name.0), name.1.clone())).map(|(at, _)| at);
        let Some(at) = first else { break };
        let (_, name, job) = ready.swap_remove(at);
        *each.entry(name.0.clone()).or_default() += 1;
        chosen.push((name, job));
        room -= 1;
    }
    chosen
}
