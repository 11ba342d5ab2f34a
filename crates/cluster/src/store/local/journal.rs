//! The journal: the local store's state in a redb file, every change synced before it is acknowledged or seen.
//!
//! One writer thread owns the file and a copy of the state that runs ahead of what readers see. It takes all
//! operations that wait, applies them to its copy, writes them in one redb transaction with one sync, and then lets
//! readers and watchers see them. redb writes to pages that are not in use and switches over by a checksummed header,
//! so a process or machine that dies in the middle leaves the state before or after a batch, never between.

#[cfg(test)]
mod power_cut;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::mpsc;

use super::state::{Change, State};
use super::{Job, Local};
use crate::Error;
use crate::store::{Entry, LeaseId};

const FILE: &str = "store.redb";
/// Key -> (version, lease or 0, value).
const ENTRIES: TableDefinition<&str, (u64, i64, &[u8])> = TableDefinition::new("entries");
/// Lease -> seconds.
const LEASES: TableDefinition<i64, u64> = TableDefinition::new("leases");
/// `format`, `revision`, `last_lease`.
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
const FORMAT: u64 = 1;

/// Operations that may wait, and that go into one sync at most.
const QUEUE: usize = 256;
/// redb's cache; the state itself is in memory anyway.
const CACHE_BYTES: usize = 8 << 20;
/// How long an owner that is about to end may take to let the file go.
const PATIENCE: Duration = Duration::from_secs(3);

/// Journals this process has open: a second opener shares the first one's.
static OPEN: Mutex<Option<HashMap<PathBuf, Weak<Local>>>> = Mutex::new(None);

/// Opens the journal in `dir`, which is made if it is absent.
pub(super) async fn open(dir: &Path) -> Result<Arc<Local>, Error> {
    let dir = dir.to_owned();
    let shown = dir.display().to_string();
    let failed = |reason: String| Error::Journal { dir: shown.clone(), reason };
    tokio::task::spawn_blocking(move || open_blocking(&dir))
        .await
        .map_err(|error| failed(error.to_string()))?
        .map_err(failed)
}

fn open_blocking(dir: &Path) -> Result<Arc<Local>, String> {
    std::fs::create_dir_all(dir).map_err(|error| format!("cannot make the directory: {error}"))?;
    let dir = dir.canonicalize().map_err(|error| error.to_string())?;
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = open.get_or_insert_default();
    if let Some(local) = open.get(&dir).and_then(Weak::upgrade) {
        return Ok(local);
    }
    let journal = Journal { database: open_patiently(&dir)? };
    sync_directories(&dir).map_err(|error| format!("cannot sync the directory: {error}"))?;
    let state = journal.read()?;
    let (jobs, waiting) = mpsc::channel(QUEUE);
    let shown = dir.display().to_string();
    let local = Arc::new(Local::new(state.clone(), Some((jobs, shown.clone()))));
    let seen = Arc::downgrade(&local);
    std::thread::Builder::new()
        .name("janus-journal".to_owned())
        .spawn(move || write_all(&journal, state, waiting, &seen, &shown))
        .map_err(|error| format!("cannot start the writer's thread: {error}"))?;
    open.retain(|_, local| local.strong_count() > 0);
    open.insert(dir, Arc::downgrade(&local));
    Ok(local)
}

/// A process that was just killed, or the writer thread of a store that was just dropped, may still hold the file.
fn open_patiently(dir: &Path) -> Result<Database, String> {
    let started = std::time::Instant::now();
    loop {
        let path = dir.join(FILE);
        // A file that is damaged beyond what a crash can do must not take the process along.
        let opened = catch_unwind(AssertUnwindSafe(|| Builder::new().set_cache_size(CACHE_BYTES).create(&path)));
        match opened {
            Ok(Ok(database)) => return Ok(database),
            Ok(Err(DatabaseError::DatabaseAlreadyOpen)) if started.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => {
                return Err("another process uses it: end that one, or use another directory".to_owned());
            }
            Ok(Err(error)) => {
                return Err(format!(
                    "{FILE} cannot be opened: {error}; restore it from a backup, or remove it to begin anew"
                ));
            }
            Err(_) => return Err(format!("{FILE} is damaged; restore it from a backup, or remove it to begin anew")),
        }
    }
}

/// A new file's name is safe only when its directories are.
fn sync_directories(dir: &Path) -> std::io::Result<()> {
    std::fs::File::open(dir)?.sync_all()?;
    match dir.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// The writer's life: until no handle is left.
fn write_all(journal: &Journal, mut ahead: State, mut waiting: mpsc::Receiver<Job>, seen: &Weak<Local>, dir: &str) {
    while let Some(first) = waiting.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < QUEUE {
            match waiting.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        let done: Vec<_> = batch.iter().map(|job| ahead.apply(&job.op)).collect();
        let changes: Vec<Change> = done.iter().flat_map(|(_, changes)| changes).cloned().collect();
        let written = if changes.is_empty() { Ok(()) } else { journal.write(&changes, &ahead) };
        // Who dropped the last handle waits for no answer.
        let Some(local) = seen.upgrade() else { return };
        match written {
            Ok(()) => {
                let mut inner = local.lock();
                for change in &changes {
                    inner.state.step(change);
                }
                inner.publish(&changes);
                drop(inner);
                for (job, (outcome, _)) in batch.into_iter().zip(done) {
                    let _ = job.answer.send(Ok(outcome));
                }
            }
            Err(reason) => {
                tracing::error!(dir, reason, "the journal could not be written");
                ahead = local.lock().state.clone();
                for job in batch {
                    let _ = job.answer.send(Err(Error::Journal { dir: dir.to_owned(), reason: reason.clone() }));
                }
            }
        }
    }
}

/// The file.
struct Journal {
    database: Database,
}

impl Journal {
    /// The state as it was when the last batch was synced.
    fn read(&self) -> Result<State, String> {
        self.prepare().map_err(|error| format!("cannot be prepared: {error}"))?;
        let failed = |error: redb::Error| format!("cannot be read: {error}");
        let (format, state) = self.load().map_err(failed)?;
        if format != FORMAT {
            return Err(format!("it has format {format}, this version reads format {FORMAT}"));
        }
        Ok(state)
    }

    /// Makes the tables, so that reading needs no exceptions.
    fn prepare(&self) -> Result<(), redb::Error> {
        let txn = self.database.begin_write()?;
        {
            txn.open_table(ENTRIES)?;
            txn.open_table(LEASES)?;
            let mut counters = txn.open_table(COUNTERS)?;
            if counters.get("format")?.is_none() {
                counters.insert("format", FORMAT)?;
            }
        }
        Ok(txn.commit()?)
    }

    fn load(&self) -> Result<(u64, State), redb::Error> {
        let txn = self.database.begin_read()?;
        let counters = txn.open_table(COUNTERS)?;
        let counter = |name: &str| -> Result<u64, redb::Error> { Ok(counters.get(name)?.map_or(0, |value| value.value())) };
        let mut state = State::restored(counter("revision")?, counter("last_lease")?.cast_signed());
        for row in txn.open_table(LEASES)?.iter()? {
            let (id, seconds) = row?;
            let ttl = Duration::from_secs(seconds.value());
            state.step(&Change::LeaseBegin { id: LeaseId(id.value()), ttl });
        }
        for row in txn.open_table(ENTRIES)?.iter()? {
            let (key, held) = row?;
            let (version, lease, value) = held.value();
            let lease = (lease != 0).then_some(LeaseId(lease));
            let value = bytes::Bytes::copy_from_slice(value);
            state.step(&Change::Put(Entry { key: key.value().to_owned(), value, version, lease }));
        }
        Ok((counter("format")?, state))
    }

    /// Writes a batch and syncs it. `after` is the state after it.
    fn write(&self, changes: &[Change], after: &State) -> Result<(), String> {
        self.try_write(changes, after).map_err(|error| format!("cannot be written: {error}"))
    }

    fn try_write(&self, changes: &[Change], after: &State) -> Result<(), redb::Error> {
        // Durability::Immediate is the default: commit returns after the sync.
        let txn = self.database.begin_write()?;
        {
            let mut entries = txn.open_table(ENTRIES)?;
            let mut leases = txn.open_table(LEASES)?;
            let mut counters = txn.open_table(COUNTERS)?;
            for change in changes {
                match change {
                    Change::Put(entry) => {
                        let lease = entry.lease.map_or(0, |lease| lease.0);
                        entries.insert(entry.key.as_str(), (entry.version, lease, &entry.value[..]))?;
                    }
                    Change::Delete { key, .. } => {
                        entries.remove(key.as_str())?;
                    }
                    Change::LeaseBegin { id, ttl } => {
                        leases.insert(id.0, ttl.as_secs())?;
                    }
                    Change::LeaseEnd(id) => {
                        leases.remove(id.0)?;
                    }
                }
            }
            counters.insert("revision", after.revision())?;
            counters.insert("last_lease", after.last_lease().cast_unsigned())?;
        }
        Ok(txn.commit()?)
    }
}
