//! What operators did: `tenants/audit/<unix ms>-<random>` in the store, JSON. An entry is written in the transaction of the
//! change it tells of, so neither is there without the other.

use janus_cluster::Txn;
use serde::{Deserialize, Serialize};

use super::*;

/// Entries that are kept; older ones leave when a coordinator begins to lead.
const MOST: usize = 10_000;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) by: String,
    pub(super) verb: String,
    pub(super) subject: String,
}

fn prefix(keys: &Keys) -> String {
    format!("{}audit/", keys.tenants())
}

/// Adds to a change who made it.
pub(super) fn told(txn: Txn, keys: &Keys, by: &str, verb: &str, subject: &str) -> Txn {
    let entry = Entry { by: by.to_owned(), verb: verb.to_owned(), subject: subject.to_owned() };
    let key = format!("{}{:013}-{}", prefix(keys), now_unix_ms(), crate::jobs::random_hex(8));
    txn.put(key, serde_json::to_vec(&entry).unwrap_or_default())
}

impl Tenants {
    /// Writes down what an operator is about to do to something that is no tenant.
    ///
    /// # Errors
    /// The store's: then it is not to be done.
    pub(crate) async fn audit(&self, by: &str, verb: &str, subject: &str) -> Result<(), janus_cluster::Error> {
        tracing::warn!(target: "audit", by, subject, "{verb}");
        if let Some((store, keys)) = &self.0.kept {
            store.commit(told(Txn::new(), keys, by, verb, subject)).await?;
        }
        Ok(())
    }

    /// The newest `last` entries, with their times.
    pub(super) async fn audited(&self, last: usize) -> Result<Vec<(u64, Entry)>, janus_cluster::Error> {
        let Some((store, keys)) = &self.0.kept else { return Ok(Vec::new()) };
        let prefix = prefix(keys);
        let read = |entry: &janus_cluster::Entry| {
            let at = entry.key.strip_prefix(&prefix)?.split('-').next()?.parse().ok()?;
            Some((at, serde_json::from_slice(&entry.value).ok()?))
        };
        Ok(store.list(&prefix).await?.entries.iter().rev().filter_map(read).take(last).collect())
    }

    /// Forgets all but the newest entries.
    ///
    /// # Errors
    /// The store's.
    pub async fn trim_audit(&self) -> Result<(), janus_cluster::Error> {
        let Some((store, keys)) = &self.0.kept else { return Ok(()) };
        let entries = store.list(&prefix(keys)).await?.entries;
        let old = &entries[..entries.len().saturating_sub(MOST)];
        for some in old.chunks(janus_cluster::store::MAX_OPERATIONS) {
            store.commit(some.iter().fold(Txn::new(), |txn, entry| txn.delete(&entry.key))).await?;
        }
        Ok(())
    }
}
