//! Watches of the local store: a bounded buffer for each, filled by whoever changes the store.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::link::Link;
use super::state::Change;
use super::{Inner, Local};
use crate::store::Event;
use crate::store::watch::{BUFFERED_EVENTS, Source};

/// How soon a journal that could not end a lease is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// All watches of a store.
#[derive(Default)]
pub(super) struct Watchers {
    last: u64,
    by_number: BTreeMap<u64, Watcher>,
}

struct Watcher {
    prefix: String,
    queue: VecDeque<Event>,
    /// A snapshot is due: at the beginning, and when the queue could not hold what happened.
    behind: bool,
    wake: Arc<Notify>,
}

impl Watcher {
    fn fall_behind(&mut self) {
        self.queue.clear();
        self.behind = true;
    }
}

impl Watchers {
    fn add(&mut self, prefix: &str) -> (u64, Arc<Notify>) {
        self.last += 1;
        let wake = Arc::new(Notify::new());
        let watcher = Watcher { prefix: prefix.to_owned(), queue: VecDeque::new(), behind: true, wake: wake.clone() };
        self.by_number.insert(self.last, watcher);
        (self.last, wake)
    }

    pub(super) fn tell(&mut self, changes: &[Change]) {
        for change in changes {
            let (Change::Put(crate::Entry { key, .. }) | Change::Delete { key, .. }) = change else { continue };
            for watcher in self.by_number.values_mut() {
                if watcher.behind || !key.starts_with(&watcher.prefix) {
                    continue;
                }
                if watcher.queue.len() == BUFFERED_EVENTS {
                    watcher.fall_behind();
                } else {
                    watcher.queue.extend(change.event());
                }
                watcher.wake.notify_one();
            }
        }
    }

    pub(super) fn wake_all(&self) {
        for watcher in self.by_number.values() {
            watcher.wake.notify_one();
        }
    }

    /// Who has not heard yet of what happened before `revision` gets a snapshot instead.
    pub(super) fn compact(&mut self, revision: u64) {
        for watcher in self.by_number.values_mut() {
            let oldest = watcher.queue.front().map(|event| match event {
                Event::Put(entry) => entry.version,
                Event::Delete { revision, .. } | Event::Snapshot { revision, .. } => *revision,
            });
            if oldest.is_some_and(|oldest| oldest < revision) {
                watcher.fall_behind();
            }
        }
    }
}

/// The reader's end of a watch.
pub(super) struct Follower {
    local: Arc<Local>,
    link: Arc<Link>,
    away: tokio::sync::watch::Receiver<Option<String>>,
    cuts: u64,
    number: u64,
    wake: Arc<Notify>,
}

impl Follower {
    pub(super) fn new(local: Arc<Local>, link: Arc<Link>, prefix: &str) -> Follower {
        let (number, wake) = local.lock().watchers.add(prefix);
        let (away, cuts) = (link.away(), link.cuts());
        Follower { local, link, away, cuts, number, wake }
    }

    /// An event that is there already, or until when to wait at most.
    fn look(&mut self) -> Result<Event, Option<Instant>> {
        let mut inner = self.local.lock();
        let Inner { state, deadlines, watchers } = &mut *inner;
        let Some(watcher) = watchers.by_number.get_mut(&self.number) else { return Err(None) };
        if self.cuts != self.link.cuts() {
            self.cuts = self.link.cuts();
            watcher.fall_behind();
        }
        if self.link.is_cut() {
            return Err(None);
        }
        let first_deadline = deadlines.values().min().copied();
        if first_deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(first_deadline);
        }
        if watcher.behind {
            watcher.behind = false;
            let listing = state.list(&watcher.prefix);
            return Ok(Event::Snapshot { entries: listing.entries, revision: listing.revision });
        }
        watcher.queue.pop_front().ok_or(first_deadline)
    }
}

#[async_trait]
impl Source for Follower {
    async fn next(&mut self) -> Event {
        loop {
            let until = match self.look() {
                Ok(event) => return event,
                Err(until) => until,
            };
            let lease_ends = async {
                match until {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                changed = self.away.changed() => {
                    // The link lives as long as this does, so the channel cannot be closed.
                    debug_assert!(changed.is_ok());
                }
                () = lease_ends => {
                    if let Err(error) = self.local.settle().await {
                        tracing::warn!(%error, "a lease that is over could not be ended");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.local.lock().watchers.by_number.remove(&self.number);
    }
}
