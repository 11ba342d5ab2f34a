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

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{Error, StoreConfig, Txn};

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

/// A candidacy, on a thread of its own, with a runtime and a connection of its own.
pub struct Election {
    leadership: watch::Receiver<Leadership>,
}

impl Election {
    /// Starts the candidacy; does not wait for a result.
    ///
    /// # Errors
    /// [`Error::BadConfig`] for a name that cannot be a key, [`Error::System`] if no thread can be had.
    pub fn start(config: StoreConfig, cluster: &str, candidate: Candidate, ttl: Duration) -> Result<Election, Error> {
        let _ = (config, cluster, candidate, ttl);
        todo!()
    }

    /// Who leads, and how that changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Gives up leadership and candidacy, so that another can lead at once; waits at most a few seconds.
    pub async fn resign(self) {
        todo!()
    }
}

/// Adds to a transaction the check that nobody reigns under another epoch than `epoch`: what a leader writes is
/// written while it leads, or not at all.
///
/// # Errors
/// [`Error::BadConfig`] for a name that cannot be a cluster's.
pub fn guard(txn: Txn, cluster: &str, epoch: u64) -> Result<Txn, Error> {
    Ok(txn.if_value(crate::Keys::new(cluster)?.epoch(), epoch.to_string()))
}
