//! The store in this process: in memory, or with a journal underneath.
//!
//! Leases end on tokio's clock and by whoever looks: every call first ends the leases that are due, and a watch that
//! waits wakes up for the next one. So there is no background task, paused time works, and any runtime may use it
//! (all runtimes that share a store should have the same clock: pause none of several).

mod journal;
mod link;
mod state;
mod watcher;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Committed, Entry, LeaseId, Listing, Store, Txn, Watch};
use crate::Error;
use link::Link;
use state::{Change, Op, Outcome, State};
use watcher::{Follower, Watchers};

/// The store in this process's memory: a handle, cheap to clone, and all clones are one store.
#[derive(Clone)]
pub struct MemoryStore {
    local: Arc<Local>,
    link: Arc<Link>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore { local: Arc::new(Local::new(State::default(), None)), link: Arc::default() }
    }

    /// Another way to the same store, which [`MemoryStore::cut`] of this one leaves alone.
    pub fn another_way(&self) -> MemoryStore {
        MemoryStore { local: self.local.clone(), link: Arc::default() }
    }

    /// From now on this handle and its clones do not reach the store, for tests and simulations of an outage: calls
    /// fail, watches are away, leases run on.
    pub fn cut(&self) {
        self.link.cut();
    }

    /// Undoes [`MemoryStore::cut`].
    pub fn mend(&self) {
        self.link.mend();
    }

    pub(super) fn handle(&self) -> LocalStore {
        LocalStore { local: self.local.clone(), link: self.link.clone() }
    }
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("revision", &self.local.lock().state.revision()).finish_non_exhaustive()
    }
}

/// Opens the journal in `dir`, or finds it open in this process.
pub(super) async fn open_journal(dir: &Path) -> Result<LocalStore, Error> {
    Ok(LocalStore { local: journal::open(dir).await?, link: Arc::default() })
}

/// An operation on its way to the journal's writer.
struct Job {
    op: Op,
    answer: oneshot::Sender<Result<Outcome, Error>>,
}

/// What everybody sees.
struct Inner {
    state: State,
    deadlines: BTreeMap<LeaseId, Instant>,
    watchers: Watchers,
}

impl Inner {
    fn due(&self, now: Instant) -> Vec<LeaseId> {
        self.deadlines.iter().filter(|(_, deadline)| **deadline <= now).map(|(id, _)| *id).collect()
    }

    /// Follows changes that the state has taken: deadlines and watchers.
    fn publish(&mut self, changes: &[Change]) {
        let mut leases_changed = false;
        for change in changes {
            match change {
                Change::LeaseBegin { id, ttl } => {
                    self.deadlines.insert(*id, Instant::now() + *ttl);
                    leases_changed = true;
                }
                Change::LeaseEnd(id) => {
                    self.deadlines.remove(id);
                }
                Change::Put(_) | Change::Delete { .. } => {}
            }
        }
        self.watchers.tell(changes);
        if leases_changed {
            self.watchers.wake_all();
        }
    }
}

/// The store itself, shared by all handles.
struct Local {
    inner: Mutex<Inner>,
    /// The way to the journal's writer, and its directory; `None` in memory.
    journal: Option<(mpsc::Sender<Job>, String)>,
}

impl Local {
    fn new(state: State, journal: Option<(mpsc::Sender<Job>, String)>) -> Local {
        let now = Instant::now();
        // After a restart every lease gets its whole time again, as after an election in etcd.
        let deadlines = state.leases().map(|(id, ttl)| (id, now + ttl)).collect();
        Local { inner: Mutex::new(Inner { state, deadlines, watchers: Watchers::default() }), journal }
    }

    /// A panic elsewhere leaves the state whole: it changes in steps that do not panic.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self) -> String {
        match &self.journal {
            None => "local memory".to_owned(),
            Some((_, dir)) => format!("local journal in {dir}"),
        }
    }

    /// Does an operation; with a journal it is on disk when this returns.
    async fn submit(&self, op: Op) -> Result<Outcome, Error> {
        let Some((jobs, dir)) = &self.journal else {
            let mut inner = self.lock();
            let (outcome, changes) = inner.state.apply(&op);
            inner.publish(&changes);
            return Ok(outcome);
        };
        let ended = || Error::Journal { dir: dir.clone(), reason: "its writer has ended".to_owned() };
        let (answer, answered) = oneshot::channel();
        jobs.send(Job { op, answer }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    /// Ends the leases whose time is over.
    async fn settle(&self) -> Result<(), Error> {
        loop {
            let due = self.lock().due(Instant::now());
            if due.is_empty() {
                return Ok(());
            }
            for lease in due {
                self.submit(Op::End(lease)).await?;
            }
        }
    }
}

/// A handle as everybody gets it.
pub(super) struct LocalStore {
    local: Arc<Local>,
    link: Arc<Link>,
}

impl LocalStore {
    async fn ready(&self) -> Result<(), Error> {
        self.link.check(&self.local.describe())?;
        self.local.settle().await
    }

    fn lease_gone(&self, lease: LeaseId) -> Error {
        Error::LeaseGone { store: self.local.describe(), lease }
    }

    fn refused(&self, reason: String) -> Error {
        Error::Refused { store: self.local.describe(), reason }
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.ready().await?;
        Ok(self.local.lock().state.get(key))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        self.ready().await?;
        Ok(self.local.lock().state.list(prefix))
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        txn.validate().map_err(|reason| self.refused(reason))?;
        self.ready().await?;
        match self.local.submit(Op::Commit(txn)).await? {
            Outcome::Committed(committed) => Ok(committed),
            Outcome::NoLease(lease) => Err(self.lease_gone(lease)),
            Outcome::Granted(_) | Outcome::Ended => Err(self.refused("a commit got the answer of another call".into())),
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.ready().await?;
        match self.local.submit(Op::Grant(whole_seconds(ttl))).await? {
            Outcome::Granted(lease) => Ok(lease),
            _ => Err(self.refused("a grant got the answer of another call".into())),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Error> {
        self.ready().await?;
        let mut inner = self.local.lock();
        let now = Instant::now();
        let Some(ttl) = inner.state.ttl(lease) else { return Err(self.lease_gone(lease)) };
        match inner.deadlines.get_mut(&lease).filter(|deadline| **deadline > now) {
            Some(deadline) => *deadline = now + ttl,
            None => return Err(self.lease_gone(lease)),
        }
        Ok(ttl)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.ready().await?;
        self.local.submit(Op::End(lease)).await.map(|_| ())
    }

    async fn watch(&self, prefix: &str) -> Result<Watch, Error> {
        self.ready().await?;
        Ok(Watch::new(Follower::new(self.local.clone(), self.link.clone(), prefix), self.link.away()))
    }

    async fn compact(&self, revision: u64) -> Result<(), Error> {
        self.ready().await?;
        let mut inner = self.local.lock();
        let newest = inner.state.revision();
        if revision > newest {
            return Err(self.refused(format!("revision {revision} cannot be compacted, the newest one is {newest}")));
        }
        inner.watchers.compact(revision);
        Ok(())
    }

    fn describe(&self) -> String {
        self.local.describe()
    }
}

/// Leases last whole seconds in etcd, so they do here.
pub(super) fn whole_seconds(ttl: Duration) -> Duration {
    Duration::from_secs((ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).clamp(1, 1 << 30))
}
