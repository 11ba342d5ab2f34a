//! Everybody's records, as this node sees them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::{Entry, Error, Event, Keys, Member, Store};

/// Pause before a watch that could not be had is asked for again.
const RETRY: Duration = Duration::from_secs(1);

/// Everybody.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Members {
    /// Whether the store was ever heard.
    pub known: bool,
    /// Whether the store cannot be heard now; the last view stays.
    pub stale: bool,
    /// Records by id. Those that cannot be read, or stand under a name that is not theirs, are left out.
    pub by_id: BTreeMap<String, Member>,
}

impl Members {
    fn apply(&mut self, prefix: &str, event: Event) {
        match event {
            Event::Snapshot { entries, .. } => {
                self.known = true;
                self.by_id = entries.iter().filter_map(|entry| readable(prefix, entry)).collect();
            }
            Event::Put(entry) => match readable(prefix, &entry) {
                Some((id, member)) => {
                    self.by_id.insert(id, member);
                }
                None => {
                    self.by_id.remove(entry.key.strip_prefix(prefix).unwrap_or(&entry.key));
                }
            },
            Event::Delete { key, .. } => {
                self.by_id.remove(key.strip_prefix(prefix).unwrap_or(&key));
            }
        }
    }
}

/// The key is what the store's permissions protect, so it decides whose record this is.
fn readable(prefix: &str, entry: &Entry) -> Option<(String, Member)> {
    let id = entry.key.strip_prefix(prefix)?;
    match Member::decode(&entry.key, &entry.value) {
        Ok(member) if member.id == id => Some((id.to_owned(), member)),
        Ok(member) => {
            tracing::warn!(key = entry.key, id = member.id, "a record under another's name is left out");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "a record is left out");
            None
        }
    }
}

/// Follows all records of a cluster, on the runtime of the caller, until the last receiver is dropped.
///
/// # Errors
/// [`Error::BadConfig`] for a name that cannot be a key.
pub fn watch_members(store: Arc<dyn Store>, cluster: &str) -> Result<watch::Receiver<Members>, Error> {
    let prefix = Keys::new(cluster)?.members();
    let (told, members) = watch::channel(Members::default());
    tokio::spawn(async move {
        tokio::select! {
            () = follow(&*store, &prefix, &told) => {}
            () = told.closed() => {}
        }
    });
    Ok(members)
}

async fn follow(store: &dyn Store, prefix: &str, told: &watch::Sender<Members>) {
    let stale = |stale: bool| {
        told.send_if_modified(|members| std::mem::replace(&mut members.stale, stale) != stale);
    };
    loop {
        let mut events = match store.watch(prefix).await {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!(%error, "members cannot be watched");
                stale(true);
                sleep(RETRY).await;
                continue;
            }
        };
        let mut away = events.away();
        loop {
            tokio::select! {
                event = events.next() => {
                    told.send_modify(|members| members.apply(prefix, event));
                }
                changed = away.changed() => if changed.is_err() { break },
            }
            stale(away.borrow().is_some());
        }
    }
}
