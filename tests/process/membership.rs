//! Who comes, who goes, and who does not belong: parts that are started by hand, with an etcd of their own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use janus_cluster::{Member, Registration, Role};
use serde_json::Value;
use tempfile::TempDir;

use crate::asks::{begin, end, guided, mixed, undisturbed};
use crate::etcd_process::{Etcd, Version};
use crate::support::{text, tiny};
use crate::up::{LONG, Part, Place, Up, free_ports, member, ready, stages};

/// A cluster whose parts the test starts itself.
pub struct Hand {
    etcd: Etcd,
    dir: TempDir,
    pub parts: BTreeMap<String, Part>,
    pub endpoint: String,
    _place: Place,
}

impl Hand {
    /// An etcd and a coordinator.
    pub async fn start(args: &[&str]) -> Hand {
        let place = tokio::task::spawn_blocking(Place::take).await.unwrap();
        let etcd = Etcd::start(Version::V34).await;
        let dir = tempfile::Builder::new().prefix("janus-hand-").tempdir().unwrap();
        let endpoint = format!("127.0.0.1:{}", free_ports());
        let mut hand = Hand { etcd, dir, parts: BTreeMap::new(), endpoint: endpoint.clone(), _place: place };
        hand.spawn("coordinator", &[&["coordinator", "--name", "coordinator", "--listen", &endpoint], args].concat());
        hand
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.etcd.endpoint())
    }

    pub fn spawn(&mut self, title: &str, args: &[&str]) {
        let part = Part::start(self.dir.path(), title, &[args, &["--etcd", &self.url()]].concat());
        self.parts.insert(title.to_owned(), part);
    }

    /// A worker by this name.
    pub fn worker(&mut self, name: &str, args: &[&str]) {
        self.worker_as(name, name, args);
    }

    /// A worker whose process the test calls `title`.
    pub fn worker_as(&mut self, title: &str, name: &str, args: &[&str]) {
        self.spawn(title, &[&["worker", "--name", name], args].concat());
    }

    pub fn part(&mut self, title: &str) -> &mut Part {
        self.parts.get_mut(title).unwrap()
    }

    pub async fn until(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let tails = || self.parts.values().map(Part::tail).collect::<Vec<_>>().join("\n");
        crate::up::until(&self.endpoint, what, fits, tails).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_gets_layers_while_pictures_are_painted() {
    let asks = vec![guided("a red circle left of a blue square", 2, 0), guided("a green triangle", 1, 7)];
    let expected = undisturbed(&asks).await;
    let mut hand = Hand::start(&["--stages", "3"]).await;
    let slow = ["--test", "--test-step-delay-ms", "30"];
    for name in ["a", "b", "c"] {
        hand.worker(name, &slow);
    }
    let status = hand.until("three stages run", |s| ready(s) && stages(s).len() == 3).await;
    let lost = stages(&status)[1].clone();
    let mut callers = begin(&hand.endpoint, &asks);
    callers[0].reaches(5).await;
    // It does not come back; two go on.
    drop(hand.parts.remove(&lost));
    hand.until("two go on", |s| ready(s) && stages(s).len() == 2).await;
    end(callers, &expected, "one of three lost for good").await;

    let mut callers = begin(&hand.endpoint, &asks);
    callers[0].reaches(5).await;
    hand.worker("late", &slow);
    let status = hand.until("the newcomer is a stage", |s| ready(s) && stages(s).contains(&"late".to_owned())).await;
    assert_eq!(stages(&status).len(), 3);
    let more = begin(&hand.endpoint, &asks);
    end(callers, &expected, "a newcomer").await;
    end(more, &expected, "after a newcomer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_can_join_the_cluster_of_up() {
    let up = Up::start(&["--stages", "2"]);
    let etcd = up.etcd().await;
    let joined = Part::start(up.dir(), "joined", &["worker", "--name", "joined", "--etcd", &etcd]);
    let status = up.until("it is a member", |s| member(s, "joined")["pid"] == joined.pid()).await;
    assert_eq!(status["members"].as_array().unwrap().len(), 5, "{status:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_name_belongs_to_one_living_worker_and_a_ghost_gives_way_at_once() {
    let asks = mixed();
    let expected = undisturbed(&asks).await;
    let mut hand = Hand::start(&["--stages", "1"]).await;
    // A record of the dead would stand for a minute.
    let ttl = ["--ttl", "60"];
    hand.worker_as("first", "w", &ttl);
    let first = hand.part("first").pid();
    hand.until("the first one runs", |s| ready(s) && member(s, "w")["pid"] == first).await;
    hand.worker_as("second", "w", &ttl);
    hand.part("second").says("another living worker has this name").await;
    let second = hand.part("second").pid();
    assert!(hand.part("second").said().contains("--name"), "{}", hand.part("second").tail());
    let status = hand.until("somebody answers", |_| true).await;
    assert_eq!(member(&status, "w")["pid"], first);
    hand.part("first").signal("INT");
    hand.part("first").ends(Duration::from_secs(15)).await;
    hand.until("the second one has the name", |s| ready(s) && member(s, "w")["pid"] == second).await;
    end(begin(&hand.endpoint, &asks), &expected, "under a name that changed hands").await;

    hand.part("second").signal("KILL");
    hand.part("second").ends(Duration::from_secs(5)).await;
    let killed = Instant::now();
    hand.worker_as("third", "w", &ttl);
    let third = hand.part("third").pid();
    hand.until("the third one has the name", |s| member(s, "w")["pid"] == third).await;
    println!("a ghost was replaced after {:.2} s", killed.elapsed().as_secs_f64());
    assert!(killed.elapsed() < Duration::from_secs(30), "{:?}", killed.elapsed());
    hand.until("the third one runs", ready).await;
    end(begin(&hand.endpoint, &asks), &expected, "after a ghost").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_models_and_other_numerics_are_shown_and_never_used() {
    let asks = mixed();
    let expected = undisturbed(&asks).await;
    let mut hand = Hand::start(&[]).await;
    let other = text(&tiny("transformers"));
    // It comes first, so there is nobody else to use.
    hand.worker("other-model", &["--model", &other]);
    hand.worker("other-painter", &["--model", &other, "--role", "encoder,decoder"]);
    let known = |s: &Value| !member(s, "other-model").is_null() && !member(s, "other-painter").is_null();
    let status = hand.until("they are members", known).await;
    assert_eq!(member(&status, "other-model")["state"], "foreign", "{status:#}");
    assert_eq!(member(&status, "other-painter")["state"], "foreign", "{status:#}");
    let model = janus_spec_digest();
    let alien = Member {
        id: "other-numerics".to_owned(),
        incarnation: "1".to_owned(),
        roles: vec![Role::Stage, Role::Encoder, Role::Decoder],
        address: "127.0.0.1:9".to_owned(),
        memory_bytes: 1 << 40,
        threads: 64,
        ms_per_layer: 1e-3,
        model,
        numerics: "gpu-k1".to_owned(),
        ..Member::default()
    };
    let config = janus_cluster::StoreConfig::etcd([hand.url()]);
    let ttl = Duration::from_secs(5);
    let probe: janus_cluster::Probe = Arc::new(|_| Box::pin(async { true }));
    let alien = Registration::start(config, "janus", alien, ttl, probe).unwrap();
    hand.worker("ours", &[]);
    let status = hand.until("ours runs, the other is known", |s| ready(s) && !member(s, "other-numerics").is_null()).await;
    assert_eq!(member(&status, "other-numerics")["state"], "foreign", "{status:#}");
    assert_eq!(stages(&status), ["ours"]);
    end(begin(&hand.endpoint, &asks), &expected, "among foreigners").await;
    alien.leave().await;
}

/// The digest of `shapes`, as the program says it.
fn janus_spec_digest() -> String {
    let dir = tempfile::tempdir().unwrap();
    crate::support::json(dir.path(), &["inspect", "--json"])["digest"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_of_another_model_does_not_join_a_cluster_by_its_name() {
    let mut hand = Hand::start(&[]).await;
    hand.worker("ours", &[]);
    hand.until("it runs", ready).await;
    let listen = format!("127.0.0.1:{}", free_ports());
    let other = text(&tiny("transformers"));
    hand.spawn("other", &["coordinator", "--name", "other", "--listen", &listen, "--model", &other]);
    let ended = hand.part("other").ends(LONG).await;
    let said = hand.part("other").said();
    assert_eq!(ended.code(), Some(2), "{said}");
    assert!(said.contains("another model") && said.contains("--cluster"), "{said}");
    assert!(ready(&hand.until("somebody answers", |_| true).await));
}
