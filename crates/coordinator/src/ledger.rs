//! What a coordinator writes down for its successor: every request when it is admitted, and now and then the token logs.
//!
//! Admissions and ends are gathered for some milliseconds and committed together. While the store is away, admissions
//! are answered `not durable` at once, and written when it is back, if they still run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use janus_cluster::{Error, Keys, Store, Txn, guard};
use janus_wire::v1::{AdmittedRequest, PipelineLogs, StoredLog};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Changes are gathered for this long, or until there are so many of so many bytes.
pub const GATHER: Duration = Duration::from_millis(25);
const GATHER_COUNT: usize = 48;
const GATHER_BYTES: usize = 1 << 20;
/// A value in the store; larger records are cut.
const PIECE: usize = 512 << 10;
/// Larger requests (pictures!) are not written down: their caller sends them again.
const MAX_REQUEST: usize = 16 << 20;
/// An admission that is not written within this is not durable.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause after the store failed.
const RETRY: Duration = Duration::from_millis(500);
/// Changes that wait for the writer.
const QUEUE: usize = 4096;

enum Change {
    Admit(String, Bytes, oneshot::Sender<bool>),
    Forget(String),
}

/// Where requests are durable. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    changes: mpsc::Sender<Change>,
}

/// Token logs by their names.
#[derive(Debug, Clone, Default)]
pub struct Logs(BTreeMap<String, Vec<u32>>);

impl Logs {
    /// Adds logs; of two by one name the longer one stays. All logs of one unit begin alike.
    pub fn add(&mut self, key: String, ids: Vec<u32>) {
        let known = self.0.entry(key).or_default();
        if ids.len() > known.len() {
            *known = ids;
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The log of a unit that draws `most` ids; the last one is always drawn again, so that the unit has an end.
    pub fn of(&self, key: &str, most: usize) -> Vec<u32> {
        let log = self.0.get(key).map(Vec::as_slice).unwrap_or_default();
        log[..log.len().min(most.saturating_sub(1))].to_vec()
    }
}

/// The key of a request: a digest, because callers choose their ids freely.
pub fn name(key: &str) -> String {
    janus_wire::hello::hex(&Sha256::digest(key))
}

impl Ledger {
    /// Starts the writer for the coordinator that leads under `epoch`, until `over` or until
    /// its last handle is gone.
    pub fn start(store: Arc<dyn Store>, keys: Keys, cluster: &str, epoch: u64, over: CancellationToken) -> Self {
        Self::gathering(GATHER, store, keys, cluster, epoch, over)
    }

    /// The same, gathering changes for another time: a test's is shorter.
    pub fn gathering(
        gather: Duration,
        store: Arc<dyn Store>,
        keys: Keys,
        cluster: &str,
        epoch: u64,
        over: CancellationToken,
    ) -> Self {
        let (changes, inbox) = mpsc::channel(QUEUE);
        let (owed, gone) = (BTreeMap::new(), BTreeSet::new());
        let writer = Writer { store, keys, cluster: cluster.to_owned(), epoch, gather, inbox, owed, gone };
        tokio::spawn(async move { over.run_until_cancelled(writer.run()).await });
        Ledger { changes }
    }

    /// Writes a request down; whether it is there now.
    pub async fn admit(&self, key: &str, request: AdmittedRequest) -> bool {
        let record = request.encode_to_vec();
        if record.len() > MAX_REQUEST {
            tracing::info!(bytes = record.len(), "a request is too large to be durable");
            return false;
        }
        let (written, answer) = oneshot::channel();
        if self.changes.try_send(Change::Admit(key.to_owned(), record.into(), written)).is_err() {
            return false;
        }
        matches!(tokio::time::timeout(PATIENCE, answer).await, Ok(Ok(true)))
    }

    /// A request's record has changed.
    pub(crate) async fn rewrite(&self, key: &str, request: &AdmittedRequest) {
        let change = Change::Admit(key.to_owned(), request.encode_to_vec().into(), oneshot::channel().0);
        let _ = self.changes.send(change).await;
    }

    /// The request has ended.
    pub fn forget(&self, key: &str) {
        // A record that stays behind costs its successor some work, and nothing else.
        let _ = self.changes.try_send(Change::Forget(key.to_owned()));
    }

    /// What a predecessor admitted, and the token logs of these numerics that it left.
    ///
    /// # Errors
    /// The store's.
    pub async fn read(store: &dyn Store, keys: &Keys, numerics: &str) -> Result<(Vec<AdmittedRequest>, Logs), Error> {
        let mut records: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for entry in store.list(&keys.requests()).await?.entries {
            let (name, _) = entry.key.rsplit_once('.').unwrap_or((&entry.key, ""));
            records.entry(name.to_owned()).or_default().extend(&entry.value);
        }
        let mut requests = Vec::new();
        for (key, record) in records {
            match AdmittedRequest::decode(record.as_slice()) {
                Ok(request) => requests.push(request),
                Err(error) => tracing::warn!(key, %error, "a request's record is damaged"),
            }
        }
        requests.sort_by_key(|request| request.admitted_unix_ms);
        let mut logs = Logs::default();
        let mut pieces: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for entry in store.list(&keys.logs()).await?.entries {
            let (name, _) = entry.key.rsplit_once('.').unwrap_or((&entry.key, ""));
            pieces.entry(name.to_owned()).or_default().extend(&entry.value);
        }
        for (key, packed) in pieces {
            let record = unpack(&packed).and_then(|bytes| PipelineLogs::decode(bytes.as_slice()).ok());
            match record {
                Some(record) if !record.numerics.is_empty() && record.numerics != numerics => {
                    tracing::info!(key, numerics = record.numerics, "token logs of other numerics are of no use");
                }
                Some(record) => record.logs.into_iter().for_each(|log| logs.add(log.key, log.ids)),
                // A lost log costs time, and nothing else.
                None => tracing::warn!(key, "a pipeline's token logs are damaged"),
            }
        }
        Ok((requests, logs))
    }
}

/// Writes one pipeline's token logs, drawn under these numerics, in place of what was there.
///
/// # Errors
/// The store's.
pub async fn write_logs(
    store: &dyn Store,
    keys: &Keys,
    cluster: &str,
    epoch: u64,
    pipeline: u64,
    numerics: &str,
    logs: BTreeMap<String, Vec<u32>>,
) -> Result<(), Error> {
    let logs = logs.into_iter().map(|(key, ids)| StoredLog { key, ids }).collect();
    let packed = pack(&PipelineLogs { logs, numerics: numerics.to_owned() }.encode_to_vec());
    let name = |i: usize| format!("{}.{i:04}", keys.log(&pipeline.to_string()));
    let pieces: Vec<&[u8]> = packed.chunks(PIECE).collect();
    for (i, piece) in pieces.iter().enumerate() {
        let txn = Txn::new().put(name(i), piece.to_vec());
        store.commit(guard(txn, cluster, epoch)?).await?.done("the coordinator's epoch")?;
    }
    // What a longer record before left behind.
    let txn = (pieces.len()..pieces.len() + 4).fold(Txn::new(), |txn, i| txn.delete(name(i)));
    store.commit(guard(txn, cluster, epoch)?).await?.done("the coordinator's epoch")?;
    Ok(())
}

/// Writes down what has changed of the token logs, round by round.
pub struct Rounds {
    store: Arc<dyn Store>,
    keys: Keys,
    cluster: String,
    epoch: u64,
    numerics: String,
    /// By pipeline, as it was written last.
    written: BTreeMap<u64, BTreeMap<String, Vec<u32>>>,
}

impl Rounds {
    /// Nothing is written yet by the coordinator that leads under `epoch`.
    pub fn new(store: Arc<dyn Store>, keys: Keys, cluster: &str, epoch: u64, numerics: &str) -> Self {
        let (cluster, numerics) = (cluster.to_owned(), numerics.to_owned());
        Rounds { store, keys, cluster, epoch, numerics, written: BTreeMap::new() }
    }

    /// Writes one pipeline's logs, unless they are as before.
    pub async fn write(&mut self, pipeline: u64, logs: BTreeMap<String, Vec<u32>>) {
        if self.written.entry(pipeline).or_default() == &logs {
            return;
        }
        let (store, keys) = (self.store.as_ref(), &self.keys);
        match write_logs(store, keys, &self.cluster, self.epoch, pipeline, &self.numerics, logs.clone()).await {
            Ok(()) => drop(self.written.insert(pipeline, logs)),
            Err(error) => tracing::info!(%error, "token logs are not written down"),
        }
    }

    /// Has the store forget what they replaced.
    pub async fn end(&self) {
        if let Ok(listing) = self.store.list(&self.keys.plan()).await {
            let _ = self.store.compact(listing.revision).await;
        }
    }
}

fn pack(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    // Writing to memory does not fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    // Far above what a pipeline's units can have.
    let mut decoder = flate2::read::DeflateDecoder::new(packed).take(256 << 20);
    decoder.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

struct Writer {
    store: Arc<dyn Store>,
    keys: Keys,
    cluster: String,
    epoch: u64,
    gather: Duration,
    inbox: mpsc::Receiver<Change>,
    /// Admitted, but not written yet.
    owed: BTreeMap<String, (Bytes, Option<oneshot::Sender<bool>>)>,
    /// Ended, but not deleted yet.
    gone: BTreeSet<String>,
}

impl Writer {
    async fn run(mut self) {
        loop {
            let open = self.gather().await;
            while !self.owed.is_empty() || !self.gone.is_empty() {
                if let Err(error) = self.write().await {
                    tracing::warn!(%error, "requests cannot be written down; they run on");
                    for written in self.owed.values_mut().filter_map(|(_, written)| written.take()) {
                        let _ = written.send(false);
                    }
                    if !error.is_retryable() || matches!(error, Error::Conflict { .. }) {
                        // Somebody else leads: what we know is no longer ours to write.
                        if matches!(error, Error::Conflict { .. }) {
                            return;
                        }
                        (self.owed, self.gone) = Default::default();
                    }
                    tokio::time::sleep(RETRY).await;
                    break;
                }
            }
            if !open {
                return;
            }
        }
    }

    /// Takes changes in; false when nobody can send any more.
    async fn gather(&mut self) -> bool {
        let (mut count, mut bytes, mut until) = (0, 0, None);
        if !self.owed.is_empty() || !self.gone.is_empty() {
            until = Some(Instant::now() + self.gather);
        }
        while count < GATHER_COUNT && bytes < GATHER_BYTES {
            let change = match until {
                None => self.inbox.recv().await,
                Some(until) => match tokio::time::timeout_at(until, self.inbox.recv()).await {
                    Ok(change) => change,
                    Err(_) => return true,
                },
            };
            match change {
                None => return false,
                Some(Change::Admit(key, record, written)) => {
                    bytes += record.len();
                    self.gone.remove(&key);
                    self.owed.insert(key, (record, Some(written)));
                }
                Some(Change::Forget(key)) => {
                    if self.owed.remove(&key).is_none() {
                        self.gone.insert(key);
                    }
                }
            }
            count += 1;
            until.get_or_insert(Instant::now() + self.gather);
        }
        true
    }

    /// One transaction, or several for a record in pieces.
    async fn write(&mut self) -> Result<(), Error> {
        let (mut txn, mut bytes, mut small) = (Txn::new(), 0, Vec::new());
        let request = |key: &str, piece: usize| format!("{}.{piece:04}", self.keys.request(&name(key)));
        let guarded = |txn| guard(txn, &self.cluster, self.epoch);
        let ours = |committed: janus_cluster::Committed| committed.done("the coordinator's epoch");
        let gone: Vec<String> = self.gone.iter().take(GATHER_COUNT).cloned().collect();
        for key in &gone {
            txn = txn.delete_prefix(format!("{}.", self.keys.request(&name(key))));
        }
        for (key, (record, _)) in self.owed.iter().take(GATHER_COUNT) {
            if record.len() > PIECE {
                // The first piece comes last: without it there is no record.
                for (i, piece) in record.chunks(PIECE).enumerate().rev() {
                    let txn = Txn::new().put(request(key, i), piece.to_vec());
                    ours(self.store.commit(guarded(txn)?).await?)?;
                }
            } else if bytes + record.len() <= GATHER_BYTES {
                bytes += record.len();
                txn = txn.put(request(key, 0), record.clone());
            } else {
                continue;
            }
            small.push(key.clone());
        }
        if !txn.writes.is_empty() {
            ours(self.store.commit(guarded(txn)?).await?)?;
        }
        for key in gone {
            self.gone.remove(&key);
        }
        for key in small {
            if let Some((_, Some(written))) = self.owed.remove(&key) {
                let _ = written.send(true);
            }
        }
        Ok(())
    }
}
