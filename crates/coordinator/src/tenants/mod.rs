//! Who may use a cluster, and how much of it: credentials, shares and quotas.
//!
//! The store holds tenants; every coordinator follows them, so that a revoked key ends everywhere at once. Who changed a
//! tenant is answered when the coordinator that he asked goes by it. A key is 32
//! random bytes, shown once; the store has its SHA-256, which is enough for a secret that nobody can guess. A server
//! that was given an operator's key asks everybody for one; a server without lets everybody in as the tenant `local`.

mod audit;
mod meter;
mod record;
mod service;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use janus_cluster::{Event, Keys, Store, Txn, guard};
use janus_wire::hello::hex;
use janus_wire::status;
use opentelemetry::{KeyValue, global};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::DriverHandle;
use crate::auth::{Caller, LOCAL};
use crate::jobs::Jobs;
use crate::params::now_unix_ms;
use crate::schedule::Share;
use crate::sight::{OTHER, SCOPE, TENANTS};
use meter::{Meter, Usage};
use record::Stored;

/// Tenant of the key that a server was started with.
pub(crate) const OPERATOR: &str = "operator";
/// When to come back if too many requests are in flight: something ends soon.
const SOON: Duration = Duration::from_secs(1);
/// Pause before tenants that could not be followed are asked for again.
const RETRY: Duration = Duration::from_secs(1);
/// How long an answer about a change waits until this process goes by it.
const KNOWN: Duration = Duration::from_secs(5);
/// How often rates are measured.
const SAMPLE: Duration = Duration::from_secs(1);

/// Everybody who may use a cluster. Cheap to clone; as an interceptor it finds out who a call is from.
#[derive(Clone)]
pub struct Tenants(Arc<Inner>);

struct Inner {
    /// Where they are kept; without it there are none beside the operator.
    kept: Option<(Arc<dyn Store>, Keys)>,
    /// SHA-256 of the key the server was started with.
    operator: Option<String>,
    table: watch::Receiver<Table>,
    meter: Mutex<Meter>,
    /// Somebody counts in this process.
    measures: AtomicBool,
    started: tokio::time::Instant,
}

/// All tenants, and whose key is whose.
#[derive(Debug, Default)]
struct Table {
    by_name: BTreeMap<String, Stored>,
    by_key: HashMap<String, String>,
    /// The store's, of the last change that is in here.
    revision: u64,
}

impl Table {
    fn set(&mut self, name: &str, tenant: Option<Stored>) {
        self.by_key.retain(|_, owner| owner != name);
        match tenant {
            Some(tenant) => {
                self.by_key.extend(tenant.keys.keys().map(|key| (key.clone(), name.to_owned())));
                self.by_name.insert(name.to_owned(), tenant);
            }
            None => drop(self.by_name.remove(name)),
        }
    }
}

impl Tenants {
    /// Everybody is one tenant, and needs no key.
    pub fn open() -> Self {
        Self::with(None, None, watch::channel(Table::default()).1)
    }

    /// Follows the tenants of a cluster until `over`. With an `operator` key, everybody needs one.
    pub fn start(store: Arc<dyn Store>, keys: Keys, operator: Option<&str>, over: CancellationToken) -> Self {
        let (told, table) = watch::channel(Table::default());
        let (followed, prefix) = (store.clone(), by_name(&keys, ""));
        tokio::spawn(async move { over.run_until_cancelled(follow(followed, prefix, told)).await });
        Self::with(Some((store, keys)), operator.map(digest), table)
    }

    fn with(kept: Option<(Arc<dyn Store>, Keys)>, operator: Option<String>, table: watch::Receiver<Table>) -> Self {
        Tenants(Arc::new(Inner {
            kept,
            operator,
            table,
            meter: Mutex::default(),
            measures: AtomicBool::new(false),
            started: tokio::time::Instant::now(),
        }))
    }

    /// Who a call is from.
    ///
    /// # Errors
    /// UNAUTHENTICATED without a key that is known here.
    pub fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let refused = |message| Err(Status::unauthenticated(message));
        let Some(value) = metadata.get("authorization") else {
            return match self.0.operator {
                None => Ok(Caller { tenant: LOCAL.into(), operator: true }),
                Some(_) => {
                    refused("this cluster needs an API key: authorization: Bearer KEY (--api-key-file, JANUS_API_KEY)")
                }
            };
        };
        let key = value.to_str().ok().and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
        let Some(key) = key else { return refused("authorization must be `Bearer KEY`") };
        let digest = digest(key);
        if self.0.operator.as_ref() == Some(&digest) {
            return Ok(Caller { tenant: OPERATOR.into(), operator: true });
        }
        let table = self.0.table.borrow();
        let found = table.by_key.get(&digest).and_then(|name| Some((name, table.by_name.get(name)?)));
        match found {
            Some((name, tenant)) if alive(tenant.keys.get(&digest).copied().flatten()) => {
                Ok(Caller { tenant: name.as_str().into(), operator: tenant.operator })
            }
            // Tools that insist on a key can be given any where none is needed.
            None if self.0.operator.is_none() && table.by_name.is_empty() => {
                Ok(Caller { tenant: LOCAL.into(), operator: true })
            }
            _ => refused("this API key is not known here, or was revoked"),
        }
    }

    /// Waits until calls are let in by what the store held at `revision`. What was written stands, even if this takes too long.
    async fn known(&self, revision: u64) {
        let mut table = self.0.table.clone();
        let known = table.wait_for(|table| table.revision >= revision);
        if tokio::time::timeout(KNOWN, known).await.is_err() {
            tracing::warn!(revision, "the store does not tell of a change of tenants; it will be known here later");
        }
    }

    /// A tenant's share of every pipeline.
    pub(crate) fn share(&self, tenant: &str) -> Share {
        self.0.table.borrow().by_name.get(tenant).map_or_else(Share::default, Stored::share)
    }

    /// Folders a tenant's jobs may write to, as the operator set them.
    pub fn output_roots(&self, tenant: &str) -> Vec<String> {
        self.0.table.borrow().by_name.get(tenant).map(|t| t.output_roots.clone()).unwrap_or_default()
    }

    /// Takes a request for so many pictures (none for an answer), the `in_flight`th that is unfinished.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if a quota does not allow it.
    pub(crate) fn admit(&self, tenant: &str, pictures: u64, in_flight: impl FnOnce() -> usize) -> Result<(), Status> {
        let quotas = self.0.table.borrow().by_name.get(tenant).map(|t| t.quotas).unwrap_or_default();
        if quotas.in_flight > 0 {
            let running = in_flight();
            if running > quotas.in_flight as usize {
                let most = quotas.in_flight;
                return Err(status::exhausted(format!("tenant {tenant} has {most} requests in flight, its quota"), SOON));
            }
        }
        let asked = self.meter().ask(tenant, pictures, &quotas, now_unix_ms());
        asked.map_err(|(why, wait)| status::exhausted(format!("tenant {tenant}: {why}"), wait))
    }

    /// Counts what the pipelines of a reign compute for whom and what its jobs keep, and writes it down now and then, until `over`.
    pub async fn measure(
        &self,
        drivers: Vec<DriverHandle>,
        jobs: Option<Jobs>,
        fence: Option<(String, u64)>,
        every: Duration,
    ) {
        let _counting = Counting::begin(&self.0.measures);
        let mut written = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(SAMPLE).await;
            let mut rows: BTreeMap<Arc<str>, u64> = BTreeMap::new();
            for (tenant, served) in drivers.iter().flat_map(DriverHandle::served) {
                *rows.entry(tenant).or_default() += served;
            }
            let now = self.0.started.elapsed();
            {
                let mut meter = self.meter();
                rows.iter().for_each(|(tenant, total)| meter.rows(tenant, *total, now));
            }
            if let (Some((cluster, epoch)), true) = (&fence, written.elapsed() >= every) {
                written = tokio::time::Instant::now();
                if let Some(jobs) = &jobs {
                    let bytes = jobs.bytes().await;
                    self.meter().bytes(&bytes);
                }
                if let Err(error) = self.write_usage(cluster, *epoch).await {
                    tracing::warn!(%error, "what tenants use is not written down");
                }
            }
        }
    }

    /// Registers what metrics say of tenants, where they are counted. Once in a process.
    pub fn observe(&self) {
        let meter = global::meter(SCOPE);
        let told = |read: fn(&Usage) -> u64| {
            let tenants = self.clone();
            move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
                if tenants.measures() {
                    let usages: Vec<_> = tenants.meter().usages().map(|(name, usage)| (name.clone(), read(usage))).collect();
                    let (named, others) = usages.split_at(usages.len().min(TENANTS));
                    named.iter().for_each(|(name, value)| to.observe(*value, &[KeyValue::new("tenant", name.clone())]));
                    if !others.is_empty() {
                        let sum = others.iter().map(|(_, value)| value).sum();
                        to.observe(sum, &[KeyValue::new("tenant", OTHER)]);
                    }
                }
            }
        };
        let pictures = meter.u64_observable_counter("janus.tenant.pictures").with_callback(told(|usage| usage.pictures));
        pictures.with_description("Pictures a tenant asked for").build();
        let answers = meter.u64_observable_counter("janus.tenant.answers").with_callback(told(|usage| usage.answers));
        answers.with_description("Answers a tenant asked for").build();
        let bytes = meter.u64_observable_gauge("janus.tenant.kept").with_unit("By").with_callback(told(|usage| usage.bytes));
        bytes.with_description("Results and blobs that are kept for a tenant").build();
    }

    /// Reads what a predecessor counted.
    ///
    /// # Errors
    /// The store's.
    pub async fn read_usage(&self) -> Result<(), janus_cluster::Error> {
        let Some((store, keys)) = &self.0.kept else { return Ok(()) };
        let prefix = usage_key(keys, "");
        for entry in store.list(&prefix).await?.entries {
            let name = entry.key.strip_prefix(&prefix).unwrap_or_default();
            if let Ok(usage) = serde_json::from_slice::<Usage>(&entry.value) {
                self.meter().load(name, usage);
            }
        }
        Ok(())
    }

    async fn write_usage(&self, cluster: &str, epoch: u64) -> Result<(), janus_cluster::Error> {
        let Some((store, keys)) = &self.0.kept else { return Ok(()) };
        let all: Vec<(String, Usage)> = self.meter().usages().map(|(name, usage)| (name.clone(), usage.clone())).collect();
        for some in all.chunks(janus_cluster::store::MAX_OPERATIONS) {
            let put = |txn: Txn, (name, usage): &(String, Usage)| {
                txn.put(usage_key(keys, name), serde_json::to_vec(usage).unwrap_or_default())
            };
            let txn = guard(some.iter().fold(Txn::new(), put), cluster, epoch)?;
            store.commit(txn).await?.done("the coordinator's epoch")?;
        }
        Ok(())
    }

    fn measures(&self) -> bool {
        self.0.measures.load(Ordering::Relaxed)
    }

    fn meter(&self) -> MutexGuard<'_, Meter> {
        self.0.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Set while it lives.
struct Counting<'a>(&'a AtomicBool);

impl<'a> Counting<'a> {
    fn begin(flag: &'a AtomicBool) -> Self {
        flag.store(true, Ordering::Relaxed);
        Counting(flag)
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Interceptor for Tenants {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let caller = self.authenticate(request.metadata())?;
        request.extensions_mut().insert(caller);
        Ok(request)
    }
}

fn by_name(keys: &Keys, name: &str) -> String {
    format!("{}by-name/{name}", keys.tenants())
}

fn usage_key(keys: &Keys, name: &str) -> String {
    format!("{}usage/{name}", keys.tenants())
}

fn digest(key: &str) -> String {
    hex(&Sha256::digest(key.trim()))
}

fn alive(until: Option<u64>) -> bool {
    until.is_none_or(|until| now_unix_ms() < until)
}

/// Keeps the table as the store has it; while the store is away, as it was.
async fn follow(store: Arc<dyn Store>, prefix: String, told: watch::Sender<Table>) {
    let read = |key: &str, value: &[u8]| {
        let name = key.strip_prefix(&prefix)?.to_owned();
        match serde_json::from_slice::<Stored>(value) {
            Ok(tenant) => Some((name, tenant)),
            Err(error) => {
                tracing::warn!(key, %error, "a tenant's record cannot be read: it has no access");
                None
            }
        }
    };
    loop {
        let mut events = match store.watch(&prefix).await {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!(%error, "tenants cannot be watched");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        loop {
            let event = events.next().await;
            told.send_modify(|table| match event {
                Event::Snapshot { entries, revision } => {
                    *table = Table { revision, ..Table::default() };
                    entries.iter().filter_map(|e| read(&e.key, &e.value)).for_each(|(name, t)| table.set(&name, Some(t)));
                }
                Event::Put(entry) => {
                    let name = entry.key.strip_prefix(&prefix).unwrap_or_default().to_owned();
                    table.set(&name, read(&entry.key, &entry.value).map(|(_, tenant)| tenant));
                    table.revision = entry.version;
                }
                Event::Delete { key, revision } => {
                    table.set(key.strip_prefix(&prefix).unwrap_or_default(), None);
                    table.revision = revision;
                }
            });
        }
    }
}
