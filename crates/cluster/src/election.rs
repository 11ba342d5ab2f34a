//! Who leads: one coordinator at a time, and a number for its reign that only grows.
//!
//! The leader holds the leased key `election/leader`. The fencing epoch is the counter at `epoch`, raised in the same
//! transaction that creates the leader's key, and never deleted; so it grows strictly, also over restarts of the store.
//! Whoever acts for the leader carries the epoch, and whoever obeys refuses a lower one than it has seen.
//!
//! **A leader that cannot reach the store stays [`Leadership::Leader`].** While etcd is away nobody else can be elected,
//! and stopping would cost running work for nothing. If only this leader is cut off, another one is elected after the
//! lease's time with a higher epoch, which fences the old one at every worker, and at the store by [`guard`], before
//! it knows; it becomes a follower as soon as it hears of the higher epoch. If it comes back and nobody reigned in
//! between, it goes on under the epoch it had.

use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::lane::{Ending, Lane, Orders, on_own_thread};
use crate::lease::Lease;
use crate::{Committed, Entry, Error, Keys, LeaseId, Store, StoreConfig, Txn, Watch};

/// Longest pause before an unreachable store is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often one round begins anew because somebody was faster.
const ATTEMPTS: usize = 4;
/// How long taking the leader's key back may take.
const LEAVING: Duration = Duration::from_secs(4);

/// Somebody who may lead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Candidate {
    /// Name of the coordinator.
    pub id: String,
    /// `host:port` where it is reached.
    pub address: String,
}

/// Who leads, as this candidate knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leadership {
    /// Nothing was heard from the store yet, or nobody leads at the moment.
    Unknown,
    /// Somebody else.
    Follower {
        /// Who.
        leader: Candidate,
        /// Under which epoch.
        epoch: u64,
    },
    /// This candidate.
    Leader {
        /// Under which epoch.
        epoch: u64,
    },
}

/// A candidacy, on a thread of its own, with a runtime and a connection of its own. Dropped, it stops as if the process
/// had died.
pub struct Election {
    leadership: watch::Receiver<Leadership>,
    trouble: watch::Receiver<Option<String>>,
    lane: Lane,
}

impl Election {
    /// Starts the candidacy; does not wait for a result.
    ///
    /// # Errors
    /// [`Error::BadConfig`] for a name that cannot be a key, [`Error::System`] if no thread can be had.
    pub fn start(config: StoreConfig, cluster: &str, candidate: Candidate, ttl: Duration) -> Result<Election, Error> {
        let (election, work) = Election::detached(config, cluster, candidate, ttl)?;
        on_own_thread("janus-election", work)?;
        Ok(election)
    }

    /// The same without a thread: the caller polls the work, as simulations under one clock do.
    ///
    /// # Errors
    /// [`Error::BadConfig`] for a name that cannot be a key.
    pub fn detached(
        config: StoreConfig,
        cluster: &str,
        candidate: Candidate,
        ttl: Duration,
    ) -> Result<(Election, impl Future<Output = ()> + Send + 'static), Error> {
        let keys = Keys::new(cluster)?;
        crate::keys::check_name("coordinator", &candidate.id)?;
        let (told, leadership) = watch::channel(Leadership::Unknown);
        let (complaint, trouble) = watch::channel(None);
        let campaign = Campaign { keys, candidate, ttl, leadership: told, trouble: complaint, lease: Lease::new(ttl) };
        let (lane, work) = Lane::new(|orders| campaign.run(config, orders));
        Ok((Election { leadership, trouble, lane }, work))
    }

    /// Who leads, and how that changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Why the store cannot be used at present; `None` while all is well.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }

    /// Gives up leadership and candidacy, so that another can lead at once; waits at most a few seconds.
    pub async fn resign(self) {
        self.lane.leave().await;
    }
}

/// What stands at `election/leader`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Throne {
    #[serde(flatten)]
    leader: Candidate,
    epoch: u64,
}

/// The worker. One round compares the store with what is known and acts; watching only makes it sooner.
struct Campaign {
    keys: Keys,
    candidate: Candidate,
    ttl: Duration,
    leadership: watch::Sender<Leadership>,
    trouble: watch::Sender<Option<String>>,
    lease: Lease,
}

impl Campaign {
    async fn run(mut self, config: StoreConfig, mut orders: Orders) {
        let (store, mut events) = loop {
            let connecting = async {
                let store = config.connect().await?;
                let events = store.watch(&self.keys.election()).await?;
                Ok::<_, Error>((store, events))
            };
            tokio::select! {
                connected = connecting => match connected {
                    Ok(connected) => break connected,
                    Err(error) => self.complain(Some(&error)),
                },
                _ = orders.ending() => return,
            }
            tokio::select! {
                () = sleep(RETRY) => {}
                _ = orders.ending() => return,
            }
        };
        loop {
            let round = tokio::select! {
                round = self.round(&*store) => round,
                ending = orders.ending() => return self.end(&*store, ending).await,
            };
            let pause = match round {
                Ok(leadership) => {
                    self.complain(None);
                    self.tell(leadership);
                    self.ttl / 3
                }
                // Whoever led goes on: see the top of this module.
                Err(error) => {
                    self.complain(Some(&error));
                    (self.ttl / 3).min(RETRY)
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = news(&mut events) => {}
                ending = orders.ending() => return self.end(&*store, ending).await,
            }
        }
    }

    /// Looks who leads, and takes the throne if it is empty.
    async fn round(&mut self, store: &dyn Store) -> Result<Leadership, Error> {
        for _ in 0..ATTEMPTS {
            let lease = self.lease.living(store).await?;
            let leader_key = self.keys.leader();
            let txn = match store.get(&leader_key).await? {
                Some(entry) => {
                    let throne = read_throne(&entry)?;
                    let epoch = throne.epoch;
                    if entry.lease == Some(lease) {
                        return Ok(Leadership::Leader { epoch });
                    }
                    if !self.reigns(epoch) {
                        return Ok(Leadership::Follower { leader: throne.leader, epoch });
                    }
                    // Our own reign under a lease that is about to end.
                    let txn = Txn::new().if_version(&leader_key, entry.version);
                    txn.put_leased(&leader_key, self.throne(epoch)?, lease)
                }
                None => self.campaign(store, lease).await?,
            };
            match store.commit(txn).await {
                // The next look tells who leads now, also if no answer came.
                Ok(Committed::Done { .. } | Committed::Conflict) | Err(Error::Uncertain { .. }) => {}
                Err(Error::LeaseGone { .. }) => self.lease.gone(),
                Err(error) => return Err(error),
            }
        }
        Err(Error::Conflict { what: self.keys.leader() })
    }

    /// The transaction that takes an empty throne: under the same epoch if nobody reigned since we did, else under a
    /// new one.
    async fn campaign(&self, store: &dyn Store, lease: LeaseId) -> Result<Txn, Error> {
        let (leader_key, epoch_key) = (self.keys.leader(), self.keys.epoch());
        let counter = store.get(&epoch_key).await?;
        let last = counter.as_ref().map_or(Ok(0), read_epoch)?;
        let version = counter.map_or(0, |entry| entry.version);
        let txn = Txn::new().if_absent(&leader_key).if_version(&epoch_key, version);
        if self.reigns(last) {
            return Ok(txn.put_leased(&leader_key, self.throne(last)?, lease));
        }
        if matches!(*self.leadership.borrow(), Leadership::Leader { epoch } if epoch < last) {
            self.tell(Leadership::Unknown);
        }
        let next = last
            .checked_add(1)
            .ok_or_else(|| Error::BadRecord { key: epoch_key.clone(), reason: "the counter is at its end".to_owned() })?;
        Ok(txn.put(&epoch_key, next.to_string()).put_leased(&leader_key, self.throne(next)?, lease))
    }

    fn reigns(&self, epoch: u64) -> bool {
        *self.leadership.borrow() == Leadership::Leader { epoch }
    }

    fn throne(&self, epoch: u64) -> Result<Vec<u8>, Error> {
        let throne = Throne { leader: self.candidate.clone(), epoch };
        let bad = |error: serde_json::Error| Error::BadConfig { what: format!("candidate cannot be encoded: {error}") };
        serde_json::to_vec(&throne).map_err(bad)
    }

    fn tell(&self, new: Leadership) {
        self.leadership.send_if_modified(|leadership| {
            let changed = *leadership != new;
            if changed {
                tracing::info!(candidate = self.candidate.id, leadership = ?new, "election");
                *leadership = new;
            }
            changed
        });
    }

    fn complain(&self, error: Option<&Error>) {
        let new = error.map(ToString::to_string);
        self.trouble.send_if_modified(|trouble| {
            let changed = *trouble != new;
            *trouble = new;
            changed
        });
    }

    async fn end(self, store: &dyn Store, ending: Ending) {
        if ending == Ending::Leave && timeout(LEAVING, self.abdicate(store)).await.is_err() {
            tracing::warn!(candidate = self.candidate.id, "leadership ends with its lease: no answer in time");
        }
        self.tell(Leadership::Unknown);
    }

    async fn abdicate(&self, store: &dyn Store) {
        let Some(lease) = self.lease.id() else { return };
        // The leader's key is ours exactly if it goes with our lease.
        if let Err(error) = store.revoke(lease).await {
            tracing::warn!(candidate = self.candidate.id, %error, "leadership ends with its lease");
        }
    }
}

/// Waits until something happened at the election's keys.
async fn news(events: &mut Watch) {
    events.next().await;
}

fn read_throne(entry: &Entry) -> Result<Throne, Error> {
    serde_json::from_slice(&entry.value)
        .map_err(|error| Error::BadRecord { key: entry.key.clone(), reason: error.to_string() })
}

fn read_epoch(entry: &Entry) -> Result<u64, Error> {
    let text = std::str::from_utf8(&entry.value).unwrap_or("not text");
    let bad = || Error::BadRecord { key: entry.key.clone(), reason: format!("{text:?} is no epoch") };
    text.parse().map_err(|_| bad())
}

/// Adds to a transaction the check that nobody reigns under another epoch than `epoch`: what a leader writes is
/// written while it leads, or not at all.
///
/// # Errors
/// [`Error::BadConfig`] for a name that cannot be a cluster's.
pub fn guard(txn: Txn, cluster: &str, epoch: u64) -> Result<Txn, Error> {
    Ok(txn.if_value(crate::Keys::new(cluster)?.epoch(), epoch.to_string()))
}
