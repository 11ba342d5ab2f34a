//! Who is there: this node's own record, kept alive, and the view of all records.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::{Error, Member, Store, StoreConfig};

/// Time to live of a member's lease, unless said otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(5);

/// Asks the process of a record whether it still answers with that record's incarnation.
pub type Probe = Arc<dyn Fn(Member) -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// How this node's registration stands.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // one per process
pub enum RegistrationState {
    /// Not registered yet.
    Connecting {
        /// What it waits for.
        reason: String,
    },
    /// The record is in the store and its lease is kept.
    Registered,
    /// Another living process has the name; ours tries again until that one leaves.
    NameTaken {
        /// Its record.
        by: Member,
    },
    /// It was registered, and the store cannot be reached now. Tried again until it can.
    Away {
        /// Since when.
        since: Instant,
        /// What the last attempt said.
        reason: String,
    },
}

/// Keeps this node's record in the store: on a thread of its own, with a runtime and a connection of its own, so that
/// computing cannot starve it.
pub struct Registration {
    state: watch::Receiver<RegistrationState>,
}

impl Registration {
    /// Starts registering; does not wait for it. `member.id` is the name, `member.incarnation` this process.
    ///
    /// # Errors
    /// [`Error::BadConfig`] for a name that cannot be a key, [`Error::System`] if no thread can be had.
    pub fn start(
        config: StoreConfig,
        cluster: &str,
        member: Member,
        ttl: Duration,
        probe: Probe,
    ) -> Result<Registration, Error> {
        let _ = (config, cluster, member, ttl, probe);
        todo!()
    }

    /// Changes the record, here at once and in the store soon. Id and incarnation stay as they were.
    pub fn update(&self, change: impl FnOnce(&mut Member)) {
        let _ = change;
        todo!()
    }

    /// How it stands, and how it changes.
    pub fn state(&self) -> watch::Receiver<RegistrationState> {
        self.state.clone()
    }

    /// Deletes the record and ends the lease, if the store can be reached; waits at most a few seconds.
    pub async fn leave(self) {
        todo!()
    }
}

/// Everybody.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Members {
    /// Whether the store was ever heard.
    pub known: bool,
    /// Whether the store cannot be heard now; the last view stays.
    pub stale: bool,
    /// Records by id. Those that cannot be read are left out.
    pub by_id: BTreeMap<String, Member>,
}

/// Follows all records of a cluster, on the runtime of the caller, until the last receiver is dropped.
///
/// # Errors
/// [`Error::BadConfig`] for a name that cannot be a key.
pub fn watch_members(store: Arc<dyn Store>, cluster: &str) -> Result<watch::Receiver<Members>, Error> {
    let _ = (store, cluster);
    todo!()
}
