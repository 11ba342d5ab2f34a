//! Who leads, under which epoch: under paused time over memory, with a journal, and over a real etcd.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod etcd_process;

use std::sync::Arc;
use std::time::Duration;

use etcd_process::{Etcd, Version, ready};
use janus_cluster::{Candidate, Committed, Election, Keys, Leadership, MemoryStore, Store, StoreConfig, Txn, guard};
use tokio::time::{Instant, sleep, timeout};

const TTL: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);
const CLUSTER: &str = "c";

fn candidate(id: &str) -> Candidate {
    Candidate { id: id.to_owned(), address: format!("{id}:1") }
}

/// A candidacy on the test's own runtime and clock.
fn stand(memory: &MemoryStore, id: &str) -> Election {
    let config = StoreConfig::Memory(memory.clone());
    let (election, work) = Election::detached(config, CLUSTER, candidate(id), TTL).unwrap();
    tokio::spawn(work);
    election
}

async fn leads(election: &Election) -> u64 {
    let mut leadership = election.leadership();
    let leadership = timeout(PATIENCE, leadership.wait_for(|l| matches!(l, Leadership::Leader { .. }))).await;
    match *leadership.expect("it is elected").unwrap() {
        Leadership::Leader { epoch } => epoch,
        _ => unreachable!("waited for"),
    }
}

async fn follows(election: &Election, id: &str, epoch: u64) {
    let wanted = Leadership::Follower { leader: candidate(id), epoch };
    let mut leadership = election.leadership();
    let outcome = timeout(PATIENCE, leadership.wait_for(|l| *l == wanted)).await.map(|_| ());
    outcome.unwrap_or_else(|_| panic!("not {wanted:?}: {:?}", *election.leadership().borrow()));
}

async fn store(memory: &MemoryStore) -> Arc<dyn Store> {
    StoreConfig::Memory(memory.another_way()).connect().await.unwrap()
}

async fn may_write(store: &dyn Store, epoch: u64) -> bool {
    let txn = guard(Txn::new().put("/janus/c/plan", epoch.to_string()), CLUSTER, epoch).unwrap();
    matches!(store.commit(txn).await.unwrap(), Committed::Done { .. })
}

#[tokio::test(start_paused = true)]
async fn of_many_candidates_one_leads_and_all_agree() {
    let memory = MemoryStore::new();
    let names = ["c0", "c1", "c2", "c3", "c4"];
    let candidates: Vec<_> = names.iter().map(|id| stand(&memory, id)).collect();
    sleep(TTL * 10).await;
    let leading: Vec<_> =
        candidates.iter().filter(|c| matches!(*c.leadership().borrow(), Leadership::Leader { .. })).collect();
    assert_eq!(leading.len(), 1);
    let epoch = leads(leading[0]).await;
    assert_eq!(epoch, 1, "a quiet reign is one reign");
    let followers = candidates.iter().filter(|c| {
        matches!(&*c.leadership().borrow(), Leadership::Follower { leader, epoch: 1 } if names.contains(&leader.id.as_str()))
    });
    assert_eq!(followers.count(), 4);
}

#[tokio::test(start_paused = true)]
async fn after_a_leader_s_death_another_leads_with_a_higher_epoch_in_the_lease_s_time() {
    let memory = MemoryStore::new();
    let store = store(&memory).await;
    let first = stand(&memory, "c0");
    let before = leads(&first).await;
    let second = stand(&memory, "c1");
    follows(&second, "c0", before).await;
    let died = Instant::now();
    drop(first);
    let after = leads(&second).await;
    assert!(after > before);
    assert!(died.elapsed() <= TTL + Duration::from_secs(1), "{:?}", died.elapsed());
    assert!(!may_write(&*store, before).await, "the dead leader's late write was taken");
    assert!(may_write(&*store, after).await);
}

#[tokio::test(start_paused = true)]
async fn who_resigns_is_followed_at_once() {
    let memory = MemoryStore::new();
    let first = stand(&memory, "c0");
    let before = leads(&first).await;
    let second = stand(&memory, "c1");
    follows(&second, "c0", before).await;
    let resigned = Instant::now();
    let was = first.leadership();
    first.resign().await;
    assert!(leads(&second).await > before);
    assert!(resigned.elapsed() < Duration::from_millis(500), "{:?}", resigned.elapsed());
    assert_eq!(*was.borrow(), Leadership::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_leader_stays_while_nobody_reaches_the_store_and_keeps_its_epoch() {
    let memory = MemoryStore::new();
    let store = store(&memory).await;
    let way = memory.another_way();
    let (first, second) = (stand(&way, "c0"), stand(&way, "c1"));
    sleep(TTL).await;
    let (leader, follower) = match *first.leadership().borrow() {
        Leadership::Leader { .. } => (&first, &second),
        _ => (&second, &first),
    };
    let epoch = leads(leader).await;
    way.cut();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(*leader.leadership().borrow(), Leadership::Leader { epoch });
    assert!(matches!(*follower.leadership().borrow(), Leadership::Follower { .. }));
    assert!(leader.trouble().borrow().is_some());
    assert_eq!(store.get(&Keys::new(CLUSTER).unwrap().leader()).await.unwrap(), None, "the lease ended meanwhile");
    way.mend();
    sleep(TTL).await;
    assert!(leader.trouble().borrow().is_none());
    // Both may come back first. Whoever leads, there is one, and an old epoch is only for the old leader.
    let now = [&leader, &follower].map(|election| election.leadership().borrow().clone());
    match &now {
        [Leadership::Leader { epoch: same }, Leadership::Follower { .. }] => assert_eq!(*same, epoch),
        [Leadership::Follower { .. }, Leadership::Leader { epoch: next }] => assert!(*next > epoch),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_alone_goes_on_under_its_epoch_after_a_lost_lease() {
    let memory = MemoryStore::new();
    let store = store(&memory).await;
    let leader = stand(&memory, "c0");
    let epoch = leads(&leader).await;
    let throne = store.get(&Keys::new(CLUSTER).unwrap().leader()).await.unwrap().unwrap();
    store.revoke(throne.lease.unwrap()).await.unwrap();
    sleep(TTL).await;
    assert_eq!(*leader.leadership().borrow(), Leadership::Leader { epoch });
    let again = store.get(&throne.key).await.unwrap().expect("it is on the throne again");
    assert_eq!(again.value, throne.value);
    assert!(may_write(&*store, epoch).await);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_cut_off_follows_whoever_was_elected_meanwhile() {
    let memory = MemoryStore::new();
    let store = store(&memory).await;
    let way = memory.another_way();
    let old = stand(&way, "c0");
    let before = leads(&old).await;
    let new = stand(&memory, "c1");
    follows(&new, "c0", before).await;
    way.cut();
    let after = leads(&new).await;
    assert!(after > before);
    assert_eq!(*old.leadership().borrow(), Leadership::Leader { epoch: before }, "it cannot know yet");
    assert!(!may_write(&*store, before).await, "and needs not: the store knows");
    way.mend();
    follows(&old, "c1", after).await;
    sleep(TTL * 4).await;
    assert_eq!(*new.leadership().borrow(), Leadership::Leader { epoch: after });
}

#[tokio::test]
async fn epochs_grow_over_restarts_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig::Journal { dir: dir.path().to_owned() };
    let mut last = 0;
    for id in ["c0", "c1", "c0"] {
        let election = Election::start(config.clone(), CLUSTER, candidate(id), Duration::from_secs(1)).unwrap();
        let epoch = leads(&election).await;
        assert!(epoch > last, "{epoch} after {last}");
        last = epoch;
        election.resign().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_real_etcd_leaders_die_and_outages_pass() {
    let mut etcd = Etcd::start(Version::V35).await;
    let store = ready(&etcd.config()).await;
    let ttl = Duration::from_secs(2);
    let config = etcd.config();
    let start = |id: &str| Election::start(config.clone(), CLUSTER, candidate(id), ttl).unwrap();
    let first = start("c0");
    let one = leads(&first).await;
    let second = start("c1");
    follows(&second, "c0", one).await;
    let died = Instant::now();
    drop(first);
    let two = leads(&second).await;
    println!("another leader after {:?} with leases of {ttl:?}", died.elapsed());
    assert!(two > one);
    // Promised: the lease's time and a second. The ceiling leaves room for busy machines.
    assert!(died.elapsed() < ttl + Duration::from_secs(8), "{:?}", died.elapsed());
    assert!(!may_write(&*store, one).await && may_write(&*store, two).await);

    etcd.kill();
    sleep(Duration::from_secs(8)).await;
    assert_eq!(*second.leadership().borrow(), Leadership::Leader { epoch: two });
    assert!(second.trouble().borrow().is_some());
    etcd.start_again();
    let mut trouble = second.trouble();
    timeout(PATIENCE, trouble.wait_for(Option::is_none)).await.expect("it is back").unwrap();
    assert_eq!(*second.leadership().borrow(), Leadership::Leader { epoch: two }, "an outage is no new reign");
    let third = start("c2");
    follows(&third, "c1", two).await;
    second.resign().await;
    assert!(leads(&third).await > two);
}
