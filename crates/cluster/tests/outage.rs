//! A store that goes away and comes back: the same promises for the twin in memory and for two versions of etcd.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod etcd_process;

use std::sync::Arc;
use std::time::Duration;

use etcd_process::{Etcd, Version};
use janus_cluster::{Committed, Error, Event, MemoryStore, Store, StoreConfig, Txn, Watch};
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(40);

/// Something that can be made to vanish.
enum Outage {
    Memory(MemoryStore),
    Etcd(Box<Etcd>),
}

impl Outage {
    fn config(&self) -> StoreConfig {
        match self {
            Outage::Memory(memory) => StoreConfig::Memory(memory.clone()),
            Outage::Etcd(etcd) => StoreConfig::Etcd {
                endpoints: vec![etcd.endpoint()],
                tls: None,
                auth: None,
                timeout: Duration::from_secs(2),
            },
        }
    }

    fn begin(&mut self) {
        match self {
            Outage::Memory(memory) => memory.cut(),
            Outage::Etcd(etcd) => etcd.kill(),
        }
    }

    fn end(&mut self) {
        match self {
            Outage::Memory(memory) => memory.mend(),
            Outage::Etcd(etcd) => etcd.start_again(),
        }
    }
}

async fn next(watch: &mut Watch) -> Event {
    timeout(PATIENCE, watch.next()).await.expect("an event")
}

/// Commits until it is done, as a caller with an idempotent change may.
async fn insist(store: &Arc<dyn Store>, key: &str, value: &str) {
    let started = Instant::now();
    loop {
        match store.commit(Txn::new().put(key, value.to_owned())).await {
            Ok(Committed::Done { .. }) => return,
            Ok(Committed::Conflict) => panic!("no check, no conflict"),
            Err(error) => assert!(error.is_retryable() && started.elapsed() < PATIENCE, "{error}"),
        }
    }
}

async fn calls_end_and_watches_go_on_across_an_outage(mut outage: Outage) {
    let store = outage.config().connect().await.unwrap();
    let lease = store.grant(Duration::from_secs(30)).await.unwrap();
    store.commit(Txn::new().put_leased("x/leased", "1", lease).put("x/before", "1")).await.unwrap();
    let mut watch = store.watch("x/").await.unwrap();
    let mut away = watch.away();
    assert!(matches!(next(&mut watch).await, Event::Snapshot { entries, .. } if entries.len() == 2));

    outage.begin();
    timeout(PATIENCE, away.wait_for(Option::is_some)).await.expect("the watch notices").unwrap();
    let started = Instant::now();
    for result in [
        store.get("x/before").await.map(|_| ()),
        store.list("x/").await.map(|_| ()),
        store.keep_alive(lease).await.map(|_| ()),
        store.commit(Txn::new().put("x/during", "1")).await.map(|_| ()),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }) && error.is_retryable(), "{error}");
        assert!(error.to_string().contains(&store.describe()), "{error}");
    }
    // 2 s each, and as much again for a busy machine.
    assert!(started.elapsed() < Duration::from_secs(16), "four calls took {:?}", started.elapsed());

    outage.end();
    insist(&store, "x/after", "1").await;
    let Event::Snapshot { entries, .. } = next(&mut watch).await else { panic!("a snapshot after an outage") };
    let mut known: Vec<String> = entries.into_iter().map(|entry| entry.key).collect();
    if known.len() == 2 {
        // Listed before the commit, which then comes as an event.
        let Event::Put(entry) = next(&mut watch).await else { panic!("the commit") };
        known.push(entry.key);
    }
    known.sort();
    assert_eq!(known, ["x/after", "x/before", "x/leased"]);
    timeout(PATIENCE, away.wait_for(Option::is_none)).await.expect("the watch is back").unwrap();
    store.keep_alive(lease).await.unwrap();
}

async fn a_watch_asked_for_during_an_outage_begins_when_it_ends(mut outage: Outage) {
    let store = outage.config().connect().await.unwrap();
    store.commit(Txn::new().put("x", "1")).await.unwrap();
    outage.begin();
    let asked = store.watch("x").await;
    outage.end();
    // A store may refuse at once, or give a watch that waits.
    let mut watch = match asked {
        Ok(watch) => watch,
        Err(error) => {
            assert!(error.is_retryable(), "{error}");
            store.watch("x").await.unwrap()
        }
    };
    assert!(matches!(next(&mut watch).await, Event::Snapshot { entries, .. } if entries.len() == 1));
}

macro_rules! promises {
    ($($promise:ident)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise(super::Outage::Memory(janus_cluster::MemoryStore::new())).await;
            })*
        }
        mod etcd34 {
            $(#[tokio::test]
            async fn $promise() {
                let etcd = super::Etcd::start(super::Version::V34).await;
                super::$promise(super::Outage::Etcd(Box::new(etcd))).await;
            })*
        }
        mod etcd35 {
            $(#[tokio::test]
            async fn $promise() {
                let etcd = super::Etcd::start(super::Version::V35).await;
                super::$promise(super::Outage::Etcd(Box::new(etcd))).await;
            })*
        }
    };
}

promises! {
    calls_end_and_watches_go_on_across_an_outage
    a_watch_asked_for_during_an_outage_begins_when_it_ends
}
