//! One suite of promises for every store: in memory, with a journal, and in two versions of etcd.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod etcd_process;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use etcd_process::{Etcd, Version};
use janus_cluster::{Committed, Error, Event, LeaseId, MemoryStore, Store, StoreConfig, Txn, Watch};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

/// Nothing here takes a tenth of this on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store, and a prefix in it that is this test's own.
struct Place {
    store: Arc<dyn Store>,
    prefix: String,
    _dir: Option<tempfile::TempDir>,
    _etcd: Option<Arc<Etcd>>,
}

impl Place {
    async fn new(config: &StoreConfig, dir: Option<tempfile::TempDir>) -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("/test-{}/", NUMBER.fetch_add(1, Ordering::Relaxed));
        Place { store: config.connect().await.unwrap(), prefix, _dir: dir, _etcd: None }
    }

    async fn memory() -> Place {
        Place::new(&StoreConfig::Memory(MemoryStore::new()), None).await
    }

    async fn journal() -> Place {
        let dir = tempfile::tempdir().unwrap();
        Place::new(&StoreConfig::Journal { dir: dir.path().to_owned() }, Some(dir)).await
    }

    async fn etcd34() -> Place {
        static SHARED: Mutex<Weak<Etcd>> = Mutex::const_new(Weak::new());
        Place::etcd(&SHARED, Version::V34).await
    }

    async fn etcd35() -> Place {
        static SHARED: Mutex<Weak<Etcd>> = Mutex::const_new(Weak::new());
        Place::etcd(&SHARED, Version::V35).await
    }

    /// Tests that run at once share a process, and the last one ends it.
    async fn etcd(shared: &Mutex<Weak<Etcd>>, version: Version) -> Place {
        let mut shared = shared.lock().await;
        let etcd = match shared.upgrade() {
            Some(etcd) => etcd,
            None => Arc::new(Etcd::start(version).await),
        };
        *shared = Arc::downgrade(&etcd);
        let place = Place::new(&etcd.config(), None).await;
        Place { _etcd: Some(etcd), ..place }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    async fn put(&self, name: &str, value: &str) -> u64 {
        done(&*self.store, Txn::new().put(self.key(name), value.to_owned())).await
    }

    async fn value(&self, name: &str) -> Option<String> {
        let entry = self.store.get(&self.key(name)).await.unwrap()?;
        Some(String::from_utf8(entry.value.to_vec()).unwrap())
    }

    async fn names(&self, prefix: &str) -> Vec<String> {
        let listing = self.store.list(&self.key(prefix)).await.unwrap();
        listing.entries.iter().map(|entry| entry.key[self.prefix.len()..].to_owned()).collect()
    }
}

async fn done(store: &dyn Store, txn: Txn) -> u64 {
    match store.commit(txn).await.unwrap() {
        Committed::Done { revision } => revision,
        Committed::Conflict => panic!("a conflict where there can be none"),
    }
}

async fn next(watch: &mut Watch) -> Event {
    timeout(PATIENCE, watch.next()).await.expect("an event")
}

/// What a reader knows who believes every event.
#[derive(Default)]
struct View {
    values: BTreeMap<String, String>,
    revision: u64,
    snapshots: usize,
}

impl View {
    fn take(&mut self, event: Event) {
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        match event {
            Event::Snapshot { entries, revision } => {
                assert!(revision >= self.revision, "a snapshot of the past");
                self.values = entries.into_iter().map(|entry| (entry.key, text(&entry.value))).collect();
                self.revision = revision;
                self.snapshots += 1;
            }
            Event::Put(entry) => {
                assert!(self.snapshots > 0, "the first event is a snapshot");
                assert!(entry.version >= self.revision, "an event of the past");
                self.revision = entry.version;
                self.values.insert(entry.key, text(&entry.value));
            }
            Event::Delete { key, revision } => {
                assert!(self.snapshots > 0, "the first event is a snapshot");
                assert!(revision >= self.revision, "an event of the past");
                self.revision = revision;
                assert!(self.values.remove(&key).is_some(), "{key} deleted, which was not there");
            }
        }
    }

    async fn until(&mut self, watch: &mut Watch, key: &str, value: Option<&str>) {
        while self.values.get(key).map(String::as_str) != value || self.snapshots == 0 {
            self.take(next(watch).await);
        }
    }
}

async fn a_value_is_read_back_with_the_revision_that_wrote_it(place: Place) {
    assert_eq!(place.store.get(&place.key("x")).await.unwrap(), None);
    let first = place.put("x", "1").await;
    let second = place.put("x", "2").await;
    assert!(second > first);
    let entry = place.store.get(&place.key("x")).await.unwrap().unwrap();
    assert_eq!((entry.version, &entry.value[..], entry.lease), (second, &b"2"[..], None));
    assert_eq!(place.value("x").await.as_deref(), Some("2"));
}

async fn of_writers_with_one_version_exactly_one_wins(place: Place) {
    let place = Arc::new(place);
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let place = place.clone();
            tokio::spawn(async move {
                let mut conflicts = 0;
                for _ in 0..10 {
                    loop {
                        let found = place.store.get(&place.key("counter")).await.unwrap();
                        let count: u32 =
                            found.as_ref().map_or(0, |e| std::str::from_utf8(&e.value).unwrap().parse().unwrap());
                        let version = found.map_or(0, |entry| entry.version);
                        let txn = Txn::new().if_version(place.key("counter"), version);
                        match place.store.commit(txn.put(place.key("counter"), (count + 1).to_string())).await.unwrap() {
                            Committed::Done { .. } => break,
                            Committed::Conflict => conflicts += 1,
                        }
                    }
                }
                conflicts
            })
        })
        .collect();
    let mut conflicts = 0;
    for writer in writers {
        conflicts += writer.await.unwrap();
    }
    assert_eq!(place.value("counter").await.as_deref(), Some("80"), "after {conflicts} conflicts");
}

async fn all_checks_hold_or_nothing_is_written(place: Place) {
    let version = place.put("there", "v").await;
    let (there, absent) = (place.key("there"), place.key("absent"));
    let write = |txn: Txn| txn.put(place.key("written"), "x").delete(&there);
    let failing = [
        Txn::new().if_absent(&there),
        Txn::new().if_exists(&absent),
        Txn::new().if_version(&there, version + 1),
        Txn::new().if_version(&absent, version),
        Txn::new().if_value(&there, "w"),
        Txn::new().if_value(&absent, "v"),
        Txn::new().if_exists(&there).if_absent(&absent).if_version(&there, 0),
    ];
    for txn in failing {
        assert_eq!(place.store.commit(write(txn.clone())).await.unwrap(), Committed::Conflict, "{txn:?}");
        assert_eq!(place.names("").await, ["there"]);
    }
    let holding = Txn::new().if_exists(&there).if_absent(&absent).if_version(&there, version).if_version(&absent, 0);
    done(&*place.store, write(holding.if_value(&there, "v"))).await;
    assert_eq!(place.names("").await, ["written"]);
}

async fn a_transaction_without_effect_moves_no_revision(place: Place) {
    let nothing = || [Txn::new(), Txn::new().delete(place.key("y")).delete_prefix(place.key("z/"))];
    for txn in nothing() {
        // Other tests may write to the same etcd in between; in some quiet moment it must hold.
        let started = Instant::now();
        loop {
            let before = place.put("x", "1").await;
            if done(&*place.store, txn.clone()).await == before {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{txn:?} made a revision");
        }
    }
    let before = place.put("x", "1").await;
    assert!(place.put("x", "1").await > before, "an equal value is a change all the same");
}

async fn a_prefix_takes_what_begins_so_and_nothing_else(place: Place) {
    for name in ["a", "a/", "a/b", "a/b/c", "a0", "a.", "b", "a/é", "a/\u{10ffff}"] {
        place.put(name, name).await;
    }
    assert_eq!(place.names("a/").await, ["a/", "a/b", "a/b/c", "a/é", "a/\u{10ffff}"]);
    assert_eq!(place.names("a/b").await, ["a/b", "a/b/c"]);
    assert_eq!(place.names("none").await, Vec::<String>::new());
    done(&*place.store, Txn::new().delete_prefix(place.key("a/"))).await;
    assert_eq!(place.names("").await, ["a", "a.", "a0", "b"]);
}

async fn the_empty_prefix_lists_everything(place: Place) {
    place.put("x", "1").await;
    let everything = place.store.list("").await.unwrap();
    assert!(everything.entries.iter().any(|entry| entry.key == place.key("x")));
    assert!(everything.entries.is_sorted_by(|a, b| a.key < b.key));
}

async fn a_big_listing_is_whole_sorted_and_of_one_revision(place: Place) {
    let names: Vec<String> = (0..2500).map(|i| format!("big/{i:05}")).collect();
    for chunk in names.chunks(125) {
        let txn = chunk.iter().fold(Txn::new(), |txn, name| txn.put(place.key(name), "v"));
        done(&*place.store, txn).await;
    }
    let mut last = 0;
    for i in 0..12 {
        last = done(&*place.store, Txn::new().put(place.key(&format!("heavy/{i:02}")), vec![7; 1_000_000])).await;
    }
    assert_eq!(place.names("big/").await, names);
    let heavy = place.store.list(&place.key("heavy/")).await.unwrap();
    assert!(heavy.revision >= last);
    assert_eq!(heavy.entries.iter().map(|entry| entry.value.len()).collect::<Vec<_>>(), vec![1_000_000; 12]);
    done(&*place.store, Txn::new().delete_prefix(place.key("heavy/"))).await;
}

async fn a_request_that_cannot_work_is_refused_and_says_why(place: Place) {
    let key = |i: usize| place.key(&i.to_string());
    let put = |n: usize| (0..n).fold(Txn::new(), |txn, i| txn.put(key(i), "x"));
    done(&*place.store, put(128)).await;
    let bad = [
        (put(129), "129 writes"),
        (Txn::new().put(key(1), vec![0; 1_500_000]), "bytes"),
        (Txn::new().put(key(1), "a").put(key(1), "b"), "twice"),
        (Txn::new().put(key(1), "a").delete(key(1)), "put and deleted"),
        (Txn::new().delete_prefix(&place.prefix).put(key(1), "a"), "put and deleted"),
        (Txn::new().delete_prefix(""), "empty"),
        (Txn::new().if_absent("").put(key(1), "a"), "empty"),
    ];
    for (txn, word) in bad {
        let error = place.store.commit(txn).await.unwrap_err();
        assert!(matches!(&error, Error::Refused { .. }) && error.to_string().contains(word), "{word}: {error}");
        assert!(!error.is_retryable());
    }
    assert_eq!(place.value("1").await.as_deref(), Some("x"));
}

async fn lease_of(place: &Place, name: &str) -> Option<LeaseId> {
    place.store.get(&place.key(name)).await.unwrap().unwrap().lease
}

async fn a_lease_that_ends_takes_its_keys_along(place: Place) {
    let lease = place.store.grant(Duration::from_secs(2)).await.unwrap();
    let other = place.store.grant(Duration::from_secs(60)).await.unwrap();
    let mut watch = place.store.watch(&place.prefix).await.unwrap();
    let txn = Txn::new().put_leased(place.key("a"), "1", lease).put_leased(place.key("b"), "1", lease);
    done(&*place.store, txn.put_leased(place.key("c"), "1", other).put(place.key("d"), "1")).await;
    assert_eq!(lease_of(&place, "a").await, Some(lease));
    let mut view = View::default();
    view.until(&mut watch, &place.key("d"), Some("1")).await;
    view.until(&mut watch, &place.key("a"), None).await;
    view.until(&mut watch, &place.key("b"), None).await;
    assert_eq!(place.names("").await, ["c", "d"]);
    let gone = place.store.keep_alive(lease).await.unwrap_err();
    assert!(matches!(gone, Error::LeaseGone { lease: named, .. } if named == lease), "{gone}");
    place.store.revoke(other).await.unwrap();
}

async fn a_lease_that_is_kept_keeps_its_keys(place: Place) {
    let lease = place.store.grant(Duration::from_secs(2)).await.unwrap();
    let version = done(&*place.store, Txn::new().put_leased(place.key("a"), "1", lease)).await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        let ttl = place.store.keep_alive(lease).await.unwrap();
        assert!(ttl >= Duration::from_secs(2), "{ttl:?}");
        sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(place.store.get(&place.key("a")).await.unwrap().unwrap().version, version);
}

async fn a_revoked_lease_is_gone_with_its_keys_and_takes_no_new_ones(place: Place) {
    let lease = place.store.grant(Duration::from_secs(60)).await.unwrap();
    done(&*place.store, Txn::new().put_leased(place.key("a"), "1", lease)).await;
    place.store.revoke(lease).await.unwrap();
    assert_eq!(place.names("").await, Vec::<String>::new());
    let late = Txn::new().put(place.key("b"), "1").put_leased(place.key("c"), "1", lease);
    for error in [place.store.keep_alive(lease).await.unwrap_err(), place.store.commit(late).await.unwrap_err()] {
        assert!(matches!(error, Error::LeaseGone { lease: named, .. } if named == lease), "{error}");
    }
    assert_eq!(place.names("").await, Vec::<String>::new(), "a lease that is gone stops the whole transaction");
    place.store.revoke(lease).await.unwrap();
}

async fn a_key_put_anew_goes_with_its_new_lease_or_with_none(place: Place) {
    let first = place.store.grant(Duration::from_secs(60)).await.unwrap();
    let second = place.store.grant(Duration::from_secs(60)).await.unwrap();
    for name in ["stays", "moves", "goes"] {
        done(&*place.store, Txn::new().put_leased(place.key(name), "1", first)).await;
    }
    place.put("stays", "2").await;
    done(&*place.store, Txn::new().put_leased(place.key("moves"), "2", second)).await;
    place.store.revoke(first).await.unwrap();
    assert_eq!(place.names("").await, ["moves", "stays"]);
    place.store.revoke(second).await.unwrap();
    assert_eq!(place.names("").await, ["stays"]);
}

async fn a_watch_begins_with_a_snapshot_and_goes_on_in_order(place: Place) {
    place.put("a", "old").await;
    let mut watch = place.store.watch(&place.key("a")).await.unwrap();
    let Event::Snapshot { entries, revision } = next(&mut watch).await else { panic!("a snapshot first") };
    assert_eq!(entries.iter().map(|entry| entry.key.clone()).collect::<Vec<_>>(), [place.key("a")]);
    let mut versions = vec![revision];
    for i in 0..50 {
        place.put("b", "not watched").await;
        versions.push(place.put("a", &i.to_string()).await);
    }
    for (i, version) in versions[1..].iter().enumerate() {
        let Event::Put(entry) = next(&mut watch).await else { panic!("a put") };
        assert_eq!((entry.version, entry.value), (*version, i.to_string().into()));
    }
    assert!(versions.is_sorted_by(|a, b| a < b));
}

async fn the_changes_of_one_transaction_come_together(place: Place) {
    place.put("gone/1", "1").await;
    place.put("gone/2", "1").await;
    let mut watch = place.store.watch(&place.prefix).await.unwrap();
    assert!(matches!(next(&mut watch).await, Event::Snapshot { .. }));
    let txn = Txn::new().put(place.key("z"), "1").delete_prefix(place.key("gone/")).put(place.key("a"), "1");
    let done_at = done(&*place.store, txn).await;
    let mut heard = Vec::new();
    for _ in 0..4 {
        match next(&mut watch).await {
            Event::Put(entry) => heard.push((entry.key, entry.version)),
            Event::Delete { key, revision } => heard.push((key, revision)),
            Event::Snapshot { .. } => panic!("a snapshot in between"),
        }
    }
    heard.sort();
    let expected = ["a", "gone/1", "gone/2", "z"].map(|name| (place.key(name), done_at));
    assert_eq!(heard, expected);
}

async fn who_falls_behind_hears_a_snapshot_and_misses_nothing(place: Place) {
    let mut watch = place.store.watch(&place.prefix).await.unwrap();
    let mut view = View::default();
    view.take(next(&mut watch).await);
    let mut last = 0;
    for round in 0..60 {
        let txn = (0..100).fold(Txn::new(), |txn, i| txn.put(place.key(&i.to_string()), round.to_string()));
        last = done(&*place.store, txn).await;
    }
    place.store.compact(last).await.unwrap();
    place.put("end", "reached").await;
    view.until(&mut watch, &place.key("end"), Some("reached")).await;
    assert!(view.snapshots >= 2, "6000 events were kept for a reader who did not read");
    assert!((0..100).all(|i| view.values[&place.key(&i.to_string())] == "59"));
    // And from then on it is a watch like any other.
    place.put("end", "passed").await;
    view.until(&mut watch, &place.key("end"), Some("passed")).await;
}

async fn compaction_forgets_history_and_nothing_else(place: Place) {
    let mut watch = place.store.watch(&place.prefix).await.unwrap();
    let mut view = View::default();
    view.take(next(&mut watch).await);
    place.put("a", "1").await;
    let revision = place.put("a", "2").await;
    place.store.compact(revision).await.unwrap();
    place.store.compact(revision).await.unwrap();
    place.store.compact(1).await.unwrap();
    assert_eq!(place.value("a").await.as_deref(), Some("2"));
    place.put("a", "3").await;
    view.until(&mut watch, &place.key("a"), Some("3")).await;
    let error = place.store.compact(revision + 1_000_000).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
}

async fn watches_are_many_and_independent(place: Place) {
    let mut watches = Vec::new();
    for i in 0..20 {
        watches.push(place.store.watch(&place.key(&format!("{}/", i % 4))).await.unwrap());
    }
    drop(watches.remove(0));
    for i in 0..4 {
        place.put(&format!("{i}/x"), "1").await;
    }
    for (i, watch) in watches.iter_mut().enumerate() {
        let mine = place.key(&format!("{}/x", (i + 1) % 4));
        let mut view = View::default();
        view.until(watch, &mine, Some("1")).await;
        assert_eq!(view.values.keys().collect::<Vec<_>>(), [&mine]);
    }
}

macro_rules! promises {
    ($($promise:ident)*) => {
        promises!(@store memory $($promise)*);
        promises!(@store journal $($promise)*);
        promises!(@store etcd34 $($promise)*);
        promises!(@store etcd35 $($promise)*);
    };
    (@store $store:ident $($promise:ident)*) => {
        mod $store {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(super::Place::$store().await).await;
            })*
        }
    };
}

promises! {
    a_value_is_read_back_with_the_revision_that_wrote_it
    of_writers_with_one_version_exactly_one_wins
    all_checks_hold_or_nothing_is_written
    a_transaction_without_effect_moves_no_revision
    a_prefix_takes_what_begins_so_and_nothing_else
    the_empty_prefix_lists_everything
    a_big_listing_is_whole_sorted_and_of_one_revision
    a_request_that_cannot_work_is_refused_and_says_why
    a_lease_that_ends_takes_its_keys_along
    a_lease_that_is_kept_keeps_its_keys
    a_revoked_lease_is_gone_with_its_keys_and_takes_no_new_ones
    a_key_put_anew_goes_with_its_new_lease_or_with_none
    a_watch_begins_with_a_snapshot_and_goes_on_in_order
    the_changes_of_one_transaction_come_together
    who_falls_behind_hears_a_snapshot_and_misses_nothing
    compaction_forgets_history_and_nothing_else
    watches_are_many_and_independent
}
