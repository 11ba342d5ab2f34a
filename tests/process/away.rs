//! The store goes away under load: what runs and what is admitted meanwhile does not notice.

use std::time::{Duration, Instant};

use crate::asks::{begin, end, guided, undisturbed, unguided};
use crate::seconds;
use crate::up::{Up, signal};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_etcd_is_away_everything_runs_and_new_requests_are_not_durable() {
    let away = seconds("JANUS_AWAY_SECONDS", 60);
    let asks = vec![guided("a red circle left of a blue square", 2, 0), unguided("a green triangle", 7)];
    let expected = undisturbed(&asks).await;
    let up = Up::slow(3, &["--spares", "1", "--coordinators", "2"]);
    let status = up.until("the spare is ready", |s| crate::up::count(s, "spare") == 1).await;

    let mut running = begin(&up.endpoints, &asks);
    running[0].reaches(10).await;
    let etcd = up.pid("etcd").await;
    signal(etcd, "STOP");
    let struck = Instant::now();
    let mut admitted = Vec::new();
    while struck.elapsed() < away {
        admitted.push(begin(&up.endpoints, &asks));
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let meanwhile = up.status().await;
    assert_eq!(meanwhile["store_reachable"], false, "{meanwhile:#}");
    assert_eq!(meanwhile["pipelines"][0]["state"], "ready", "{meanwhile:#}");
    signal(etcd, "CONT");

    let running = end(running, &expected, "began before the outage").await;
    assert!(running.iter().all(|course| course.durable));
    let count = admitted.len();
    for (i, admitted) in admitted.into_iter().enumerate() {
        let admitted = end(admitted, &expected, "began during the outage").await;
        // The last ones may have waited for an answer until the store was there again.
        assert!(i + 1 == count || admitted.iter().all(|course| !course.durable), "{i} of {count}: {admitted:?}");
    }
    up.until("the store is back", |s| s["store_reachable"] == true).await;
    let later = end(begin(&up.endpoints, &asks), &expected, "began after the outage").await;
    assert!(later.iter().all(|course| course.durable && course.resumed == 0), "{later:?}");
    let after = up.until("all members are back", |s| s["members"] != serde_json::json!([])).await;
    println!("etcd away for {away:?}: resumed {:?}", running.iter().map(|c| c.resumed).collect::<Vec<_>>());
    assert_eq!(after["pipelines"][0]["failures"], status["pipelines"][0]["failures"], "{after:#}");
}
