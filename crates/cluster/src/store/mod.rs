//! The store: a small ordered map with revisions, compare-and-swap, leases and watches.
//!
//! etcd gave the semantics. [`MemoryStore`] and the journal are its twins in this process, for single-process serving,
//! tests and simulation; one suite (`tests/store.rs`) holds all of them to the same promises. Every call ends within
//! [`StoreConfig`]'s timeout; nothing waits for ever except [`Watch::next`], which waits for something to happen.

mod config;
mod etcd;
mod local;
mod txn;
mod watch;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::Error;

pub use config::{DEFAULT_TIMEOUT, StoreConfig, Tls};
pub use local::MemoryStore;
pub use txn::{Check, MAX_BYTES, MAX_OPERATIONS, Txn, Write};
pub use watch::Watch;

/// A lease's number. Keys put with it are deleted when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A key and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The full key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// Revision of the store in which it was last changed; what [`Txn::if_version`] compares.
    pub version: u64,
    /// The lease it goes with.
    pub lease: Option<LeaseId>,
}

/// Everything below a prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// In the order of keys.
    pub entries: Vec<Entry>,
    /// The revision of the store they were read at.
    pub revision: u64,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// All checks held, and all writes are in the store for good.
    Done {
        /// The store's revision after it.
        revision: u64,
    },
    /// A check did not hold, and nothing was written.
    Conflict,
}

impl Committed {
    /// The revision, for callers to whom a conflict is an error.
    ///
    /// # Errors
    /// [`Error::Conflict`] about `what`.
    pub fn done(self, what: impl Into<String>) -> Result<u64, Error> {
        match self {
            Committed::Done { revision } => Ok(revision),
            Committed::Conflict => Err(Error::Conflict { what: what.into() }),
        }
    }
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Everything there is below the prefix: forget what was known before. The first event, and every event after the
    /// watch fell behind, met a compaction or lost its connection.
    Snapshot {
        /// In the order of keys.
        entries: Vec<Entry>,
        /// The revision they were read at.
        revision: u64,
    },
    /// A key was set.
    Put(Entry),
    /// A key was deleted, by somebody or with its lease.
    Delete {
        /// The key.
        key: String,
        /// The revision that deleted it.
        revision: u64,
    },
}

/// What all nodes share. Keys are full strings (see [`crate::keys`]), values are bytes.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads a key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error>;

    /// Reads every key that begins with `prefix` (all keys, if it is empty), at one revision.
    async fn list(&self, prefix: &str) -> Result<Listing, Error>;

    /// Commits a transaction. [`Error::Uncertain`] says that it was sent and no answer came.
    async fn commit(&self, txn: Txn) -> Result<Committed, Error>;

    /// Makes a lease. `ttl` is rounded up to whole seconds; etcd may make it longer (2 s is its least by default).
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error>;

    /// Renews a lease, and says for how long. [`Error::LeaseGone`] if it ended.
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Error>;

    /// Ends a lease and deletes its keys; no error if it is gone already.
    async fn revoke(&self, lease: LeaseId) -> Result<(), Error>;

    /// Follows every key that begins with `prefix`. Returns before the first snapshot is there.
    async fn watch(&self, prefix: &str) -> Result<Watch, Error>;

    /// Forgets the history before `revision`; no error if it is forgotten already.
    async fn compact(&self, revision: u64) -> Result<(), Error>;

    /// Which store this is, for messages.
    fn describe(&self) -> String;
}
