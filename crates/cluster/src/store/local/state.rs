//! The pure core of the local store: operations in, changes out. No clock, no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use crate::store::{Check, Committed, Entry, Event, LeaseId, Listing, Txn, Write};

/// What changes the store.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// A validated transaction.
    Commit(Txn),
    /// A lease, its time in whole seconds.
    Grant(Duration),
    /// The end of a lease, by its owner or by time.
    End(LeaseId),
}

/// What an operation answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed(Committed),
    Granted(LeaseId),
    Ended,
    /// A transaction names a lease that is gone; nothing was changed.
    NoLease(LeaseId),
}

/// One step from a state to the next; what the journal keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Put(Entry),
    Delete { key: String, revision: u64 },
    LeaseBegin { id: LeaseId, ttl: Duration },
    LeaseEnd(LeaseId),
}

impl Change {
    /// What watchers hear of it.
    pub(super) fn event(&self) -> Option<Event> {
        match self {
            Change::Put(entry) => Some(Event::Put(entry.clone())),
            Change::Delete { key, revision } => Some(Event::Delete { key: key.clone(), revision: *revision }),
            Change::LeaseBegin { .. } | Change::LeaseEnd(_) => None,
        }
    }
}

#[derive(Debug, Clone)]
struct Held {
    value: Bytes,
    version: u64,
    lease: Option<LeaseId>,
}

#[derive(Debug, Clone)]
struct Lease {
    ttl: Duration,
    keys: BTreeSet<String>,
}

/// Keys, leases and the counters behind their numbers.
#[derive(Debug, Clone)]
pub(super) struct State {
    revision: u64,
    last_lease: i64,
    entries: BTreeMap<String, Held>,
    leases: BTreeMap<LeaseId, Lease>,
}

impl Default for State {
    /// Empty, at revision 1 as in etcd.
    fn default() -> State {
        State { revision: 1, last_lease: 0, entries: BTreeMap::new(), leases: BTreeMap::new() }
    }
}

impl State {
    /// A state read back: counters first, then leases, then entries by [`State::step`].
    pub(super) fn restored(revision: u64, last_lease: i64) -> State {
        State { revision: revision.max(1), last_lease, ..State::default() }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn last_lease(&self) -> i64 {
        self.last_lease
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = (LeaseId, Duration)> {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl))
    }

    pub(super) fn ttl(&self, id: LeaseId) -> Option<Duration> {
        self.leases.get(&id).map(|lease| lease.ttl)
    }

    pub(super) fn get(&self, key: &str) -> Option<Entry> {
        self.entries.get(key).map(|held| entry(key, held))
    }

    pub(super) fn list(&self, prefix: &str) -> Listing {
        let entries = self.below(prefix).map(|(key, held)| entry(key, held)).collect();
        Listing { entries, revision: self.revision }
    }

    fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a Held)> {
        let from = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
        self.entries.range::<str, _>(from).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Does an operation.
    pub(super) fn apply(&mut self, op: &Op) -> (Outcome, Vec<Change>) {
        let (outcome, changes) = self.consider(op);
        for change in &changes {
            self.step(change);
        }
        (outcome, changes)
    }

    fn consider(&self, op: &Op) -> (Outcome, Vec<Change>) {
        let next = self.revision + 1;
        match op {
            Op::Grant(ttl) => {
                let id = LeaseId(self.last_lease + 1);
                (Outcome::Granted(id), vec![Change::LeaseBegin { id, ttl: *ttl }])
            }
            Op::End(id) => {
                let Some(lease) = self.leases.get(id) else { return (Outcome::Ended, Vec::new()) };
                let deleted = lease.keys.iter().map(|key| Change::Delete { key: key.clone(), revision: next });
                (Outcome::Ended, deleted.chain([Change::LeaseEnd(*id)]).collect())
            }
            Op::Commit(txn) => self.consider_commit(txn, next),
        }
    }

    fn consider_commit(&self, txn: &Txn, next: u64) -> (Outcome, Vec<Change>) {
        if !txn.checks.iter().all(|check| self.holds(check)) {
            return (Outcome::Committed(Committed::Conflict), Vec::new());
        }
        let mut changes = Vec::new();
        let mut deleted = BTreeSet::new();
        for write in &txn.writes {
            match write {
                Write::Put { key, value, lease } => {
                    if let Some(id) = lease.filter(|id| !self.leases.contains_key(id)) {
                        return (Outcome::NoLease(id), Vec::new());
                    }
                    let (key, value) = (key.clone(), value.clone());
                    changes.push(Change::Put(Entry { key, value, version: next, lease: *lease }));
                }
                Write::Delete(key) => {
                    if self.entries.contains_key(key) && deleted.insert(key.clone()) {
                        changes.push(Change::Delete { key: key.clone(), revision: next });
                    }
                }
                Write::DeletePrefix(prefix) => {
                    for (key, _) in self.below(prefix) {
                        if deleted.insert(key.clone()) {
                            changes.push(Change::Delete { key: key.clone(), revision: next });
                        }
                    }
                }
            }
        }
        let revision = if changes.is_empty() { self.revision } else { next };
        (Outcome::Committed(Committed::Done { revision }), changes)
    }

    fn holds(&self, check: &Check) -> bool {
        match check {
            Check::Absent(key) => !self.entries.contains_key(key),
            Check::Exists(key) => self.entries.contains_key(key),
            Check::Version(key, version) => self.entries.get(key).map_or(0, |held| held.version) == *version,
            Check::Value(key, value) => self.entries.get(key).is_some_and(|held| held.value == *value),
        }
    }

    /// Takes one change over, also from the journal or from the writer's copy.
    pub(super) fn step(&mut self, change: &Change) {
        match change {
            Change::Put(new) => {
                self.detach(&new.key);
                if let Some(lease) = new.lease.and_then(|id| self.leases.get_mut(&id)) {
                    lease.keys.insert(new.key.clone());
                }
                let held = Held { value: new.value.clone(), version: new.version, lease: new.lease };
                self.entries.insert(new.key.clone(), held);
                self.revision = self.revision.max(new.version);
            }
            Change::Delete { key, revision } => {
                self.detach(key);
                self.entries.remove(key);
                self.revision = self.revision.max(*revision);
            }
            Change::LeaseBegin { id, ttl } => {
                self.last_lease = self.last_lease.max(id.0);
                self.leases.insert(*id, Lease { ttl: *ttl, keys: BTreeSet::new() });
            }
            Change::LeaseEnd(id) => {
                self.leases.remove(id);
            }
        }
    }

    fn detach(&mut self, key: &str) {
        let lease = self.entries.get(key).and_then(|held| held.lease);
        if let Some(lease) = lease.and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.remove(key);
        }
    }
}

fn entry(key: &str, held: &Held) -> Entry {
    Entry { key: key.to_owned(), value: held.value.clone(), version: held.version, lease: held.lease }
}
