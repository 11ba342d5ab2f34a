//! Members join, stay, give way and come back: under paused time over memory, and over a real etcd.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod etcd_process;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use etcd_process::{Etcd, Version, ready};
use janus_cluster::{
    Entry, Error, Keys, Member, MemoryStore, Probe, Registration, RegistrationState, Role, Store, StoreConfig, Txn,
    random_incarnation, watch_members,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

const TTL: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);
const CLUSTER: &str = "c";

fn member(id: &str) -> Member {
    Member {
        id: id.to_owned(),
        incarnation: random_incarnation().unwrap(),
        roles: vec![Role::Stage],
        address: "127.0.0.1:1".to_owned(),
        ..Member::default()
    }
}

/// Processes that answer when they are asked, by incarnation.
#[derive(Clone, Default)]
struct Alive(Arc<Mutex<BTreeSet<String>>>);

impl Alive {
    fn with(members: &[&Member]) -> Alive {
        Alive(Arc::new(Mutex::new(members.iter().map(|member| member.incarnation.clone()).collect())))
    }

    fn dies(&self, member: &Member) {
        self.0.lock().unwrap().remove(&member.incarnation);
    }

    fn probe(&self) -> Probe {
        let alive = self.clone();
        Arc::new(move |member: Member| {
            let answers = alive.0.lock().unwrap().contains(&member.incarnation);
            Box::pin(async move { answers })
        })
    }
}

/// A registration on the test's own runtime and clock.
fn join(memory: &MemoryStore, member: &Member, alive: &Alive) -> Registration {
    let config = StoreConfig::Memory(memory.clone());
    let (registration, work) = Registration::detached(config, CLUSTER, member.clone(), TTL, alive.probe()).unwrap();
    tokio::spawn(work);
    registration
}

async fn until(registration: &Registration, wanted: impl Fn(&RegistrationState) -> bool) -> RegistrationState {
    let mut state = registration.state();
    let state = timeout(PATIENCE, state.wait_for(|state| wanted(state))).await;
    state.unwrap_or_else(|_| panic!("it stays {:?}", *registration.state().borrow())).unwrap().clone()
}

async fn registered(registration: &Registration) {
    until(registration, |state| *state == RegistrationState::Registered).await;
}

async fn record(store: &dyn Store, id: &str) -> Option<(Member, Entry)> {
    let key = Keys::new(CLUSTER).unwrap().member(id);
    let entry = store.get(&key).await.unwrap()?;
    Some((Member::decode(&key, &entry.value).unwrap(), entry))
}

async fn store(memory: &MemoryStore) -> Arc<dyn Store> {
    StoreConfig::Memory(memory.another_way()).connect().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_member_is_there_until_it_leaves() {
    let memory = MemoryStore::new();
    let store = store(&memory).await;
    let me = member("w1");
    let registration = join(&memory, &me, &Alive::with(&[&me]));
    registered(&registration).await;
    let (found, before) = record(&*store, "w1").await.unwrap();
    assert_eq!(found, me);
    sleep(TTL * 20).await;
    assert_eq!(record(&*store, "w1").await.unwrap().1, before, "kept alive, and not written again");
    let left = Instant::now();
    registration.leave().await;
    assert_eq!(record(&*store, "w1").await, None);
    assert!(left.elapsed() < Duration::from_secs(1));
    assert!(matches!(store.keep_alive(before.lease.unwrap()).await, Err(Error::LeaseGone { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_dies_is_gone_when_its_lease_ends() {
    let memory = MemoryStore::new();
    let store = store(&memory).await;
    let me = member("w1");
    let registration = join(&memory, &me, &Alive::default());
    registered(&registration).await;
    let mut members = watch_members(store.clone(), CLUSTER).unwrap();
    members.wait_for(|members| members.by_id.contains_key("w1")).await.unwrap();
    let died = Instant::now();
    drop(registration);
    members.wait_for(|members| members.known && members.by_id.is_empty()).await.unwrap();
    assert!(died.elapsed() <= TTL + Duration::from_millis(100), "{:?}", died.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_record_is_seen_by_all_and_the_name_stays() {
    let memory = MemoryStore::new();
    let me = member("w1");
    let registration = join(&memory, &me, &Alive::default());
    registered(&registration).await;
    let mut members = watch_members(store(&memory).await, CLUSTER).unwrap();
    registration.update(|member| {
        member.layers = Some([0, 6]);
        member.draining = true;
        member.id = "other".to_owned();
        member.incarnation = "other".to_owned();
    });
    let changed = Instant::now();
    let seen = members.wait_for(|members| members.by_id.get("w1").is_some_and(|w1| w1.draining)).await.unwrap().clone();
    assert!(changed.elapsed() < Duration::from_millis(100), "{:?}", changed.elapsed());
    let expected = Member { layers: Some([0, 6]), draining: true, ..me };
    assert_eq!(seen.by_id.into_values().collect::<Vec<_>>(), [expected]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_or_a_deleted_record_is_registered_again() {
    let memory = MemoryStore::new();
    let store = store(&memory).await;
    let registration = join(&memory, &member("w1"), &Alive::default());
    registered(&registration).await;
    for blow in 0..3 {
        let (found, entry) = record(&*store, "w1").await.unwrap();
        match blow {
            0 => store.revoke(entry.lease.unwrap()).await.unwrap(),
            1 => drop(store.commit(Txn::new().delete(&entry.key)).await.unwrap()),
            _ => drop(store.commit(Txn::new().put(&entry.key, entry.value.clone())).await.unwrap()),
        }
        sleep(TTL / 3 + Duration::from_millis(100)).await;
        let (again, entry) = record(&*store, "w1").await.unwrap();
        assert_eq!(again, found);
        store.keep_alive(entry.lease.expect("a record goes with a lease")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_ghost_is_replaced_at_once() {
    let memory = MemoryStore::new();
    let store = store(&memory).await;
    let (ghost, me) = (member("w1"), member("w1"));
    let old = join(&memory, &ghost, &Alive::default());
    registered(&old).await;
    drop(old);
    let started = Instant::now();
    let registration = join(&memory, &me, &Alive::with(&[&me]));
    registered(&registration).await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}, so it waited for the lease", started.elapsed());
    sleep(TTL * 3).await;
    assert_eq!(record(&*store, "w1").await.unwrap().0, me, "the ghost's lease took the new record along");
}

#[tokio::test(start_paused = true)]
async fn a_living_process_keeps_its_name_until_it_dies() {
    let memory = MemoryStore::new();
    let store = store(&memory).await;
    let (first, second) = (member("w1"), member("w1"));
    let alive = Alive::with(&[&first, &second]);
    let one = join(&memory, &first, &alive);
    registered(&one).await;
    let two = join(&memory, &second, &alive);
    let taken = until(&two, |state| matches!(state, RegistrationState::NameTaken { .. })).await;
    assert_eq!(taken, RegistrationState::NameTaken { by: first.clone() });
    sleep(TTL * 10).await;
    assert_eq!(record(&*store, "w1").await.unwrap().0, first);
    assert_eq!(*one.state().borrow(), RegistrationState::Registered);
    // Told to leave while it waits, it takes nothing that is not its own.
    two.leave().await;
    assert_eq!(record(&*store, "w1").await.unwrap().0, first);
    let two = join(&memory, &second, &alive);
    until(&two, |state| matches!(state, RegistrationState::NameTaken { .. })).await;
    alive.dies(&first);
    drop(one);
    registered(&two).await;
    assert_eq!(record(&*store, "w1").await.unwrap().0, second);
}

#[tokio::test(start_paused = true)]
async fn a_zombie_does_not_take_its_name_back_from_the_living() {
    let memory = MemoryStore::new();
    let store = store(&memory).await;
    let (zombie, heir) = (member("w1"), member("w1"));
    let alive = Alive::with(&[&heir]);
    // Cut off is what a stopped process is to the others.
    let way = memory.another_way();
    let old = join(&way, &zombie, &alive);
    registered(&old).await;
    way.cut();
    let new = join(&memory, &heir, &alive);
    registered(&new).await;
    until(&old, |state| matches!(state, RegistrationState::Away { .. })).await;
    sleep(TTL * 2).await;
    way.mend();
    let taken = until(&old, |state| matches!(state, RegistrationState::NameTaken { .. })).await;
    assert_eq!(taken, RegistrationState::NameTaken { by: heir.clone() });
    sleep(TTL * 5).await;
    assert_eq!(record(&*store, "w1").await.unwrap().0, heir);
    assert_eq!(*new.state().borrow(), RegistrationState::Registered);
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_after_an_outage_is_registered_again_and_the_view_stays_meanwhile() {
    let memory = MemoryStore::new();
    let me = member("w1");
    let registration = join(&memory, &me, &Alive::default());
    let mut members = watch_members(StoreConfig::Memory(memory.clone()).connect().await.unwrap(), CLUSTER).unwrap();
    registered(&registration).await;
    members.wait_for(|members| members.by_id.contains_key("w1")).await.unwrap();
    let cut = Instant::now();
    memory.cut();
    let away = until(&registration, |state| matches!(state, RegistrationState::Away { .. })).await;
    sleep(TTL * 12).await;
    let RegistrationState::Away { since, .. } = *registration.state().borrow() else { panic!("{away:?}") };
    assert!(since - cut <= TTL, "away since the beginning, not since the last attempt");
    {
        let view = members.borrow();
        assert!(view.known && view.stale && view.by_id.contains_key("w1"), "{view:?}");
    }
    memory.mend();
    registered(&registration).await;
    let back = |members: &janus_cluster::Members| !members.stale && members.by_id.contains_key("w1");
    timeout(PATIENCE, members.wait_for(back)).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_at_the_start_is_waited_for() {
    let memory = MemoryStore::new();
    memory.cut();
    let registration = join(&memory, &member("w1"), &Alive::default());
    let waits =
        |state: &RegistrationState| matches!(state, RegistrationState::Connecting { reason } if reason.contains("cut"));
    until(&registration, waits).await;
    sleep(Duration::from_secs(60)).await;
    memory.mend();
    registered(&registration).await;
}

#[tokio::test(start_paused = true)]
async fn records_that_cannot_be_read_are_left_out_and_never_overwritten() {
    let memory = MemoryStore::new();
    let store = store(&memory).await;
    let keys = Keys::new(CLUSTER).unwrap();
    let liar = member("w9").encode().unwrap();
    let newer = br#"{"id":"w3","incarnation":"i","roles":["stage","oracle"],"invented":{"x":1}}"#.to_vec();
    let txn = Txn::new().put(keys.member("w1"), "not json").put(keys.member("w2"), liar).put(keys.member("w3"), newer);
    store.commit(txn).await.unwrap();
    let mut members = watch_members(store.clone(), CLUSTER).unwrap();
    let view = members.wait_for(|members| members.known).await.unwrap().clone();
    assert_eq!(view.by_id.keys().collect::<Vec<_>>(), ["w3"]);
    assert_eq!(view.by_id["w3"].roles, [Role::Stage, Role::Unknown], "a newer version's record is readable");
    let registration = join(&memory, &member("w1"), &Alive::default());
    let complains = |state: &RegistrationState| matches!(state, RegistrationState::Connecting { reason } if reason.contains(&keys.member("w1")));
    until(&registration, complains).await;
    store.commit(Txn::new().delete(keys.member("w1"))).await.unwrap();
    registered(&registration).await;
}

#[tokio::test]
async fn names_that_cannot_be_keys_are_refused() {
    let start = |cluster: &str, id: &str| {
        let config = StoreConfig::Memory(MemoryStore::new());
        Registration::start(config, cluster, member(id), TTL, Alive::default().probe()).map(|_| ())
    };
    for (cluster, id) in [("c", ""), ("c", "a/b"), ("c", "ä"), ("", "w1"), ("a/b", "w1"), ("c", &"x".repeat(64))] {
        let error = start(cluster, id).unwrap_err();
        assert!(matches!(error, Error::BadConfig { .. }), "{cluster:?} {id:?}: {error}");
    }
    start("c", &"x".repeat(63)).unwrap();
}

#[tokio::test]
async fn a_starved_runtime_does_not_cost_the_lease() {
    let memory = MemoryStore::new();
    let ttl = Duration::from_secs(1);
    let config = StoreConfig::Memory(memory.clone());
    let registration = Registration::start(config, CLUSTER, member("w1"), ttl, Alive::default().probe()).unwrap();
    registered(&registration).await;
    let store = store(&memory).await;
    let (_, before) = record(&*store, "w1").await.unwrap();
    // This runtime's only thread, for four times the lease.
    std::thread::sleep(ttl * 4);
    assert_eq!(record(&*store, "w1").await.expect("the lease ended").1, before);
    assert_eq!(*registration.state().borrow(), RegistrationState::Registered);
}

async fn seen(members: &mut watch::Receiver<janus_cluster::Members>, ids: &[&str]) {
    let wanted = |members: &janus_cluster::Members| {
        members.known && !members.stale && members.by_id.keys().map(String::as_str).eq(ids.iter().copied())
    };
    let outcome = timeout(PATIENCE, members.wait_for(wanted)).await.map(|_| ());
    outcome.unwrap_or_else(|_| panic!("not {ids:?}: {:?}", *members.borrow()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_real_etcd_members_survive_lost_leases_ghosts_and_an_outage() {
    let mut etcd = Etcd::start(Version::V34).await;
    let store = ready(&etcd.config()).await;
    let ttl = Duration::from_secs(2);
    let config = etcd.config();
    let start = |member: &Member, alive: &Alive| {
        Registration::start(config.clone(), CLUSTER, member.clone(), ttl, alive.probe()).unwrap()
    };
    let (one, two) = (member("w1"), member("w2"));
    let alive = Alive::with(&[&one, &two]);
    let (first, second) = (start(&one, &alive), start(&two, &alive));
    let mut members = watch_members(store.clone(), CLUSTER).unwrap();
    seen(&mut members, &["w1", "w2"]).await;

    // A lost lease.
    let (_, entry) = record(&*store, "w1").await.unwrap();
    store.revoke(entry.lease.unwrap()).await.unwrap();
    seen(&mut members, &["w1", "w2"]).await;

    // A living twin waits, and a dead one's ghost does not make its heir wait.
    let heir = member("w2");
    alive.0.lock().unwrap().insert(heir.incarnation.clone());
    let waiting = start(&heir, &alive);
    until(&waiting, |state| matches!(state, RegistrationState::NameTaken { .. })).await;
    alive.dies(&two);
    drop(second);
    registered(&waiting).await;
    seen(&mut members, &["w1", "w2"]).await;
    assert_eq!(record(&*store, "w2").await.unwrap().0, heir);

    // Eight seconds without etcd, four times the lease.
    etcd.kill();
    for registration in [&first, &waiting] {
        until(registration, |state| matches!(state, RegistrationState::Away { .. })).await;
    }
    timeout(PATIENCE, members.wait_for(|members| members.stale)).await.unwrap().unwrap();
    sleep(Duration::from_secs(8)).await;
    assert_eq!(members.borrow().by_id.len(), 2, "the last view stays");
    etcd.start_again();
    for registration in [&first, &waiting] {
        registered(registration).await;
    }
    seen(&mut members, &["w1", "w2"]).await;
    first.leave().await;
    seen(&mut members, &["w2"]).await;
}
