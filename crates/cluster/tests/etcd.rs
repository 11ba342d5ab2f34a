//! What only a real etcd can show: a cluster that loses its leader, users with few permissions, TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod etcd_process;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Permission, PermissionType};
use etcd_process::{Certificates, Etcd, Version, ready};
use janus_cluster::{Committed, Error, Event, Keys, Store, StoreConfig, Tls, Txn};
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(40);

fn every(members: &[Etcd]) -> StoreConfig {
    StoreConfig::etcd(members.iter().map(Etcd::endpoint))
}

/// Which member leads.
async fn leader(members: &[Etcd]) -> usize {
    for (index, member) in members.iter().enumerate() {
        let mut client = Client::connect([member.endpoint()], None).await.unwrap();
        let status = client.status().await.unwrap();
        if status.header().unwrap().member_id() == status.leader() {
            return index;
        }
    }
    panic!("nobody leads")
}

/// Raises a counter by compare-and-swap, and settles what became of commits without an answer.
async fn raise(store: &Arc<dyn Store>) -> u64 {
    let started = Instant::now();
    let mut sent = None;
    loop {
        assert!(started.elapsed() < PATIENCE, "no commit went through");
        let Ok(found) = store.get("counter").await else { continue };
        let value: u64 = found.as_ref().map_or(0, |e| std::str::from_utf8(&e.value).unwrap().parse().unwrap());
        if sent == Some(value) {
            return value;
        }
        let txn = Txn::new().if_version("counter", found.map_or(0, |entry| entry.version));
        match store.commit(txn.put("counter", (value + 1).to_string())).await {
            Ok(Committed::Done { .. }) => return value + 1,
            Ok(Committed::Conflict) => panic!("there is one writer"),
            Err(Error::Uncertain { .. }) => sent = Some(value + 1),
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_that_etcd_s_leader_was_killed() {
    let mut members = Etcd::start_cluster(Version::V35, 3).await;
    let config = every(&members);
    let store = config.connect().await.unwrap();
    let lease = store.grant(Duration::from_secs(5)).await.unwrap();
    store.commit(Txn::new().put_leased("leased", "1", lease)).await.unwrap();
    let mut watch = store.watch("").await.unwrap();
    let mut counted = 0;
    for _ in 0..20 {
        counted += 1;
        assert_eq!(raise(&store).await, counted);
    }

    let first = leader(&members).await;
    members[first].kill();
    let blow = Instant::now();
    let mut longest = Duration::ZERO;
    while blow.elapsed() < Duration::from_secs(7) {
        let began = Instant::now();
        counted += 1;
        assert_eq!(raise(&store).await, counted, "a commit was lost or done twice");
        longest = longest.max(began.elapsed());
        match store.keep_alive(lease).await {
            Ok(_) | Err(Error::Unreachable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
    println!("longest commit around the leader's death: {longest:?}");
    assert!(store.get("leased").await.unwrap().is_some(), "the lease was lost");

    let mut seen = 0;
    while seen < counted {
        match timeout(PATIENCE, watch.next()).await.expect("the watch goes on") {
            Event::Snapshot { entries, .. } => {
                let counter = entries.iter().find(|entry| entry.key == "counter");
                seen = counter.map_or(0, |e| std::str::from_utf8(&e.value).unwrap().parse().unwrap());
            }
            Event::Put(entry) if entry.key == "counter" => {
                let value: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                assert_eq!(value, seen + 1, "the watch missed a commit");
                seen = value;
            }
            Event::Put(_) | Event::Delete { .. } => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_connected_and_silent_is_left_for_another() {
    let members = Etcd::start_cluster(Version::V34, 3).await;
    let follower = (leader(&members).await + 1) % 3;
    let mut order: Vec<String> = members.iter().map(Etcd::endpoint).collect();
    order.swap(0, follower);
    let store = StoreConfig::etcd(order).connect().await.unwrap();
    let mut watch = store.watch("x").await.unwrap();
    timeout(PATIENCE, watch.next()).await.expect("a snapshot");
    members[follower].freeze();
    let began = Instant::now();
    store.get("x").await.unwrap();
    println!("a read left the silent member after {:?}", began.elapsed());
    store.commit(Txn::new().put("x", "1")).await.unwrap();
    let heard = async {
        loop {
            match watch.next().await {
                Event::Put(entry) if entry.key == "x" => return,
                Event::Snapshot { entries, .. } if !entries.is_empty() => return,
                _ => {}
            }
        }
    };
    timeout(PATIENCE, heard).await.expect("the watch leaves it too");
    members[follower].thaw();
}

/// Users `root`, `w1` (a worker as `keys` describes it) and `c1` (a coordinator), then authentication is on.
async fn with_users(etcd: &Etcd, keys: &Keys) {
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    for role in ["root", "worker-w1", "coordinator"] {
        client.role_add(role).await.unwrap();
    }
    let mut grant = async |role: &str, permission: Permission| {
        client.role_grant_permission(role, permission).await.unwrap();
    };
    grant("worker-w1", Permission::new(PermissionType::Readwrite, keys.member("w1"))).await;
    for read in [keys.members(), keys.election()] {
        grant("worker-w1", Permission::new(PermissionType::Read, read).with_prefix()).await;
    }
    for read in [keys.epoch(), keys.plan()] {
        grant("worker-w1", Permission::new(PermissionType::Read, read)).await;
    }
    grant("coordinator", Permission::new(PermissionType::Readwrite, keys.root()).with_prefix()).await;
    for (user, role) in [("root", "root"), ("w1", "worker-w1"), ("c1", "coordinator")] {
        client.user_add(user, format!("{user}-secret"), None).await.unwrap();
        client.user_grant_role(user, role).await.unwrap();
    }
    client.auth_enable().await.unwrap();
}

fn as_user(etcd: &Etcd, user: &str, password: &str) -> StoreConfig {
    StoreConfig::Etcd {
        endpoints: vec![etcd.endpoint()],
        tls: None,
        auth: Some((user.to_owned(), password.to_owned())),
        timeout: Duration::from_secs(5),
    }
}

async fn a_worker_can_write_its_own_member_key_and_nothing_else(version: Version) {
    let keys = Keys::new("c").unwrap();
    // Tokens that live 2 s without use, so that they have to be renewed.
    let mut etcd = Etcd::start_with(version, &["--auth-token-ttl=2"], None).await;
    with_users(&etcd, &keys).await;
    let worker = ready(&as_user(&etcd, "w1", "w1-secret")).await;
    let coordinator = ready(&as_user(&etcd, "c1", "c1-secret")).await;

    let lease = worker.grant(Duration::from_secs(60)).await.unwrap();
    let own = Txn::new().if_absent(keys.member("w1")).put_leased(keys.member("w1"), "me", lease);
    assert!(matches!(worker.commit(own).await.unwrap(), Committed::Done { .. }));
    let put = |key: String| Txn::new().put(key, "mine now");
    let forbidden = [
        put(keys.member("w2")),
        put(keys.member("w10")),
        put(keys.plan()),
        put(keys.epoch()),
        put(keys.leader()),
        put(keys.request("r")),
        Txn::new().delete_prefix(keys.members()),
        Txn::new().delete(keys.member("w2")),
        Txn::new().put(keys.member("w1"), "me").put(keys.member("w2"), "me too"),
    ];
    coordinator.commit(put(keys.member("w2"))).await.unwrap();
    for txn in forbidden {
        let error = worker.commit(txn.clone()).await.unwrap_err();
        assert!(matches!(error, Error::AuthRefused { .. }) && !error.is_retryable(), "{txn:?}: {error}");
    }
    assert!(matches!(worker.list(&keys.requests()).await, Err(Error::AuthRefused { .. })), "others' requests");
    assert_eq!(worker.list(&keys.members()).await.unwrap().entries.len(), 2);
    let mut watch = worker.watch(&keys.members()).await.unwrap();
    assert!(matches!(timeout(PATIENCE, watch.next()).await.unwrap(), Event::Snapshot { entries, .. } if entries.len() == 2));

    // An expired token, and a member that forgot all tokens, are no reason to fail.
    sleep(Duration::from_secs(5)).await;
    worker.keep_alive(lease).await.unwrap();
    worker.get(&keys.plan()).await.unwrap();
    etcd.kill();
    etcd.start_again();
    ready(&as_user(&etcd, "w1", "w1-secret")).await;
    worker.keep_alive(lease).await.unwrap();
    worker.commit(Txn::new().put_leased(keys.member("w1"), "me again", lease)).await.unwrap();
    assert!(matches!(timeout(PATIENCE, watch.next()).await.unwrap(), Event::Snapshot { .. } | Event::Put(_)));

    for (user, password) in [("w1", "wrong"), ("nobody", "w1-secret")] {
        let error = as_user(&etcd, user, password).connect().await.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::AuthRefused { .. }), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let nameless = etcd.config().connect().await;
    let refused = match nameless {
        Ok(store) => store.get(&keys.plan()).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(refused, Error::AuthRefused { .. }), "{refused}");
    assert!(!format!("{:?}", as_user(&etcd, "w1", "w1-secret")).contains("secret"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_can_write_its_own_member_key_and_nothing_else_in_3_4() {
    a_worker_can_write_its_own_member_key_and_nothing_else(Version::V34).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_can_write_its_own_member_key_and_nothing_else_in_3_5() {
    a_worker_can_write_its_own_member_key_and_nothing_else(Version::V35).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_carries_everything_and_strangers_are_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path());
    let etcd = Etcd::start_with(Version::V35, &[], Some(certificates.server.clone())).await;
    let secure = |ca: &std::path::Path, identity| StoreConfig::Etcd {
        endpoints: vec![format!("https://{}", etcd.endpoint())],
        tls: Some(Tls { ca: ca.to_owned(), identity, server_name: None }),
        auth: None,
        timeout: Duration::from_secs(3),
    };
    let store = ready(&secure(&certificates.ca, Some(certificates.client.clone()))).await;
    store.commit(Txn::new().put("a", "1")).await.unwrap();
    let mut watch = store.watch("a").await.unwrap();
    assert!(matches!(timeout(PATIENCE, watch.next()).await.unwrap(), Event::Snapshot { entries, .. } if entries.len() == 1));

    let other = tempfile::tempdir().unwrap();
    let stranger = Certificates::make(other.path());
    for config in [
        secure(&certificates.ca, None),
        secure(&certificates.ca, Some(stranger.client.clone())),
        secure(&stranger.ca, Some(certificates.client.clone())),
        etcd.config(),
    ] {
        let error = config.connect().await.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{config:?}: {error}");
        println!("{error}");
    }
    let missing = secure(&dir.path().join("none.pem"), None).connect().await.map(|_| ()).unwrap_err();
    assert!(matches!(&missing, Error::BadConfig { what } if what.contains("none.pem")), "{missing}");
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_told_at_once() {
    let bad = ["", "nonsense", "host", "host:", ":2379", "host:0", "host:99999", "ftp://host:1", "https://host:2379"];
    for endpoint in bad {
        let error = StoreConfig::etcd([endpoint]).connect().await.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::BadConfig { .. }) && !error.is_retryable(), "{endpoint:?}: {error}");
    }
    assert!(matches!(StoreConfig::etcd::<String>([]).connect().await, Err(Error::BadConfig { .. })));
}
