//! This node's record in the store.
//!
//! Every third of the lease's time one round compares what is in the store with what should be there and repairs the
//! difference; joining, coming back after an outage, updating and giving way are all the same round. So whatever
//! happened meanwhile, it ends in the right place, and nothing in it can end the process.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::lane::{Ending, Lane, Orders, on_own_thread};
use crate::lease::Lease;
use crate::{Committed, Entry, Error, Keys, Member, Store, StoreConfig, Txn};

/// Asks the process of a record whether it still answers with that record's incarnation. Runs on the registration's
/// thread, and counts as "no" after [`PROBE_TIMEOUT`].
pub type Probe = Arc<dyn Fn(Member) -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// How long a process may take to prove that it lives.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest pause before an unreachable store is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often one round begins anew because somebody was faster.
const ATTEMPTS: usize = 4;
/// How long taking the record back may take.
const LEAVING: Duration = Duration::from_secs(4);

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
/// computing cannot starve it. Dropped, it stops as if the process had died, and the record goes with its lease.
pub struct Registration {
    record: Arc<Record>,
    state: watch::Receiver<RegistrationState>,
    lane: Lane,
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
        let (registration, work) = Registration::detached(config, cluster, member, ttl, probe)?;
        on_own_thread("janus-member", work)?;
        Ok(registration)
    }

    /// The same without a thread: the caller polls the work, as simulations under one clock do.
    ///
    /// # Errors
    /// [`Error::BadConfig`] for a name that cannot be a key.
    pub fn detached(
        config: StoreConfig,
        cluster: &str,
        member: Member,
        ttl: Duration,
        probe: Probe,
    ) -> Result<(Registration, impl Future<Output = ()> + Send + 'static), Error> {
        let keys = Keys::new(cluster)?;
        crate::keys::check_name("member", &member.id)?;
        if member.incarnation.is_empty() {
            return Err(Error::BadConfig { what: format!("member {} has no incarnation", member.id) });
        }
        member.encode()?;
        let key = keys.member(&member.id);
        let record = Arc::new(Record { member: Mutex::new(member), changed: Notify::new() });
        let connecting = RegistrationState::Connecting { reason: "the store was not reached yet".to_owned() };
        let (told, state) = watch::channel(connecting);
        let keeper = Keeper { key, record: record.clone(), ttl, probe, state: told, lease: Lease::new(ttl) };
        let (lane, work) = Lane::new(|orders| keeper.run(config, orders));
        Ok((Registration { record, state, lane }, work))
    }

    /// Changes the record, here at once and in the store soon. Id and incarnation stay as they were.
    pub fn update(&self, change: impl FnOnce(&mut Member)) {
        {
            let mut member = self.record.lock();
            let (id, incarnation) = (member.id.clone(), member.incarnation.clone());
            change(&mut member);
            member.id = id;
            member.incarnation = incarnation;
        }
        self.record.changed.notify_one();
    }

    /// How it stands, and how it changes.
    pub fn state(&self) -> watch::Receiver<RegistrationState> {
        self.state.clone()
    }

    /// Deletes the record and ends the lease, if the store can be reached; waits at most a few seconds.
    pub async fn leave(self) {
        self.lane.leave().await;
    }
}

/// The record as it should be.
struct Record {
    member: Mutex<Member>,
    changed: Notify,
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, Member> {
        self.member.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a round did not end in a registration.
#[allow(clippy::large_enum_variant)] // short-lived
enum Trouble {
    Taken(Member),
    Store(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Store(error)
    }
}

/// The worker.
struct Keeper {
    key: String,
    record: Arc<Record>,
    ttl: Duration,
    probe: Probe,
    state: watch::Sender<RegistrationState>,
    lease: Lease,
}

impl Keeper {
    async fn run(mut self, config: StoreConfig, mut orders: Orders) {
        let store = loop {
            tokio::select! {
                connected = config.connect() => match connected {
                    Ok(store) => break store,
                    Err(error) => self.failed(&error),
                },
                _ = orders.ending() => return,
            }
            tokio::select! {
                () = sleep(RETRY) => {}
                _ = orders.ending() => return,
            }
        };
        let record = self.record.clone();
        loop {
            let round = tokio::select! {
                round = self.round(&*store) => round,
                ending = orders.ending() => return self.end(&*store, ending).await,
            };
            let third = self.ttl / 3;
            let pause = match round {
                Ok(()) => {
                    self.tell(RegistrationState::Registered);
                    third
                }
                Err(Trouble::Taken(by)) => {
                    self.tell(RegistrationState::NameTaken { by });
                    third
                }
                Err(Trouble::Store(error)) => {
                    self.failed(&error);
                    third.min(RETRY)
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = record.changed.notified() => {}
                ending = orders.ending() => return self.end(&*store, ending).await,
            }
        }
    }

    /// Makes the store hold our record under a living lease, unless a living other has the name.
    async fn round(&mut self, store: &dyn Store) -> Result<(), Trouble> {
        for _ in 0..ATTEMPTS {
            let lease = self.lease.living(store).await?;
            let (incarnation, wanted) = {
                let member = self.record.lock();
                (member.incarnation.clone(), member.encode()?)
            };
            let txn = match store.get(&self.key).await? {
                None => Txn::new().if_absent(&self.key),
                Some(found) => {
                    let other = Member::decode(&self.key, &found.value)?;
                    let ours = other.incarnation == incarnation;
                    if ours && found.lease == Some(lease) && found.value == wanted {
                        return Ok(());
                    }
                    if !ours && self.answers(&other).await {
                        return Err(Trouble::Taken(other));
                    }
                    // Ours, or a ghost: replaced only if it is still the record that was looked at.
                    Txn::new().if_version(&self.key, found.version)
                }
            };
            match store.commit(txn.put_leased(&self.key, wanted, lease)).await {
                Ok(Committed::Done { .. }) => return Ok(()),
                // Somebody was faster, or it is not known whether we were: the next look tells.
                Ok(Committed::Conflict) | Err(Error::Uncertain { .. }) => {}
                Err(Error::LeaseGone { .. }) => self.lease.gone(),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Conflict { what: self.key.clone() }.into())
    }

    /// Whether the process of a record lives and still is the one that wrote it.
    async fn answers(&self, other: &Member) -> bool {
        timeout(PROBE_TIMEOUT, (self.probe)(other.clone())).await.unwrap_or(false)
    }

    fn tell(&self, new: RegistrationState) {
        self.state.send_if_modified(|state| {
            let changed = *state != new;
            if changed {
                tracing::info!(key = self.key, state = ?new, "registration");
                *state = new;
            }
            changed
        });
    }

    fn failed(&self, error: &Error) {
        let reason = error.to_string();
        let new = match &*self.state.borrow() {
            RegistrationState::Registered => RegistrationState::Away { since: Instant::now(), reason },
            RegistrationState::Away { since, .. } => RegistrationState::Away { since: *since, reason },
            _ => RegistrationState::Connecting { reason },
        };
        self.tell(new);
    }

    async fn end(self, store: &dyn Store, ending: Ending) {
        if ending == Ending::Leave {
            match timeout(LEAVING, self.take_back(store)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(key = self.key, %error, "the record stays until its lease ends"),
                Err(_) => tracing::warn!(key = self.key, "the record stays until its lease ends: no answer in time"),
            }
        }
    }

    async fn take_back(&self, store: &dyn Store) -> Result<(), Error> {
        let ours = |entry: &Entry| {
            Member::decode(&self.key, &entry.value).is_ok_and(|found| found.incarnation == self.record.lock().incarnation)
        };
        if let Some(entry) = store.get(&self.key).await?.filter(ours) {
            store.commit(Txn::new().if_version(&self.key, entry.version).delete(&self.key)).await?;
        }
        match self.lease.id() {
            Some(lease) => store.revoke(lease).await,
            None => Ok(()),
        }
    }
}
