//! Workers without weights on their disk: what their layers need comes from the cluster, is kept, and is believed only if it
//! fits the model's digest.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "harness/caller.rs"]
mod caller;
#[path = "harness/client.rs"]
mod client;
#[path = "../crates/cluster/tests/etcd_process/mod.rs"]
mod etcd_process;
#[path = "harness/givers.rs"]
mod givers;
#[path = "harness/served.rs"]
mod served;
mod support;
#[path = "harness/up.rs"]
mod up;

#[allow(dead_code)]
#[path = "process/asks.rs"]
mod asks;

use std::path::{Path, PathBuf};

use asks::{begin, end, guided, question, undisturbed};
use etcd_process::{Etcd, Version};
use givers::{Giver, Manner, announce};
use janus_model::Checkpoint;
use janus_model::weights::{Part as Tensors, inventory};
use support::{text, tiny};
use up::{LONG, Part, Up, free_ports, ready, stages, status, until};

/// The digest of `shapes`.
fn digest_of_shapes(dir: &Path) -> String {
    support::json(dir, &["inspect", "--json"])["digest"].as_str().unwrap().to_owned()
}

/// A worker of the cluster at `etcd` that has nothing but a folder for what it fetches.
fn worker(dir: &Path, etcd: &str, name: &str, model: &str, cache: &Path, role: &str) -> Part {
    let flags = ["worker", "--name", name, "--etcd", etcd, "--ttl", "3", "--role", role, "--model", model];
    let more = ["--cache", cache.to_str().unwrap(), "--threads", "1", "--memory", "2GiB"];
    Part::start(dir, name, &[&flags[..], &more].concat())
}

/// Files of whole tensors in a cache, and of incomplete ones.
fn kept(cache: &Path, digest: &str) -> (Vec<String>, Vec<String>) {
    let names = support::names(&cache.join(digest).join("tensors"));
    names.into_iter().partition(|name| !name.ends_with(".incomplete"))
}

/// Waits for something that no status tells.
async fn soon(what: &str, holds: impl Fn() -> bool) {
    let late = std::time::Instant::now() + LONG;
    while !holds() {
        assert!(std::time::Instant::now() < late, "never: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_without_weights_take_what_their_layers_need_and_paint_the_same_picture() {
    let asks = vec![guided("a red circle left of a blue square", 1, 0), question()];
    let expected = undisturbed(&asks).await;
    let dir = tempfile::tempdir().unwrap();
    let place = up::Place::take();
    let etcd = Etcd::start(Version::V34).await;
    let url = etcd.endpoint();
    let listen = format!("127.0.0.1:{}", free_ports());
    let flags = ["coordinator", "--etcd", &url, "--listen", &listen, "--stages", "2", "--ttl", "3"];
    // First by name, before anybody could tell what that is; then by digest.
    let caches: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| dir.path().join(name)).collect();
    let mut workers = vec![worker(dir.path(), &url, "a", "shapes", &caches[0], "stage")];
    workers[0].says("nobody has the model yet").await;
    let coordinator = Part::start(dir.path(), "coordinator", &flags);
    coordinator.line();
    let digest = digest_of_shapes(dir.path());
    workers.push(worker(dir.path(), &url, "b", &digest, &caches[1], "stage"));
    workers.push(worker(dir.path(), &url, "c", &digest, &caches[2], "encoder,decoder"));
    let members = |status: &serde_json::Value| status["members"].as_array().unwrap().len() == 3;
    let complete = |s: &serde_json::Value| ready(s) && members(s) && stages(s).len() == 2;
    let now = until(&listen, "two stages are ready", complete, || coordinator.tail()).await;
    end(begin(&listen, &asks), &expected, "fetched weights").await;

    // Each has its own layers' tensors and no others.
    let inside =
        Checkpoint::open(janus_spec::Files::open_dir(support::repository().join("crates/janus/shapes/checkpoint")).unwrap());
    let inventory = inventory(&inside.unwrap().spec);
    let total =
        inventory.iter().filter_map(|t| if let Tensors::Layer(i) = t.part { Some(i + 1) } else { None }).max().unwrap();
    for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
        let layers = up::member(&now, name)["layers"].clone();
        let held = |part: Tensors| match (part, layers.as_array()) {
            (Tensors::Layer(layer), Some(range)) => {
                (range[0].as_u64().unwrap()..range[1].as_u64().unwrap()).contains(&(layer as u64))
            }
            (Tensors::Embeddings, Some(range)) => range[0] == 0,
            (Tensors::Heads, Some(range)) => range[1] == total,
            (Tensors::Layer(_) | Tensors::Embeddings | Tensors::Heads, None) => false,
            (_, range) => range.is_none(),
        };
        let mut wanted: Vec<String> = inventory.iter().filter(|t| held(t.part)).map(|t| t.name.clone()).collect();
        wanted.sort();
        assert_eq!(kept(&caches[i], &digest), (wanted, Vec::new()), "{name} with layers {layers}");
    }

    // Started again a node has what it had, and compares it with its digests before it is used.
    drop(workers.pop());
    let tensor = kept(&caches[2], &digest).0.remove(0);
    let path = caches[2].join(&digest).join("tensors").join(&tensor);
    let bytes = std::fs::read(&path).unwrap();
    let mut damaged = bytes.clone();
    damaged[0] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let again = worker(dir.path(), &url, "c", &digest, &caches[2], "encoder,decoder");
    again.line();
    assert!(again.said().contains("a tensor in the cache is damaged"), "{}", again.tail());
    assert!(std::fs::read(&path).unwrap() == bytes, "it is fetched again");
    until(&listen, "all are there again", |s| ready(s) && members(s), || coordinator.tail()).await;
    end(begin(&listen, &asks), &expected, "cached weights").await;
    drop(place);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_in_the_middle_of_its_download_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let place = up::Place::take();
    let etcd = Etcd::start(Version::V34).await;
    let url = etcd.endpoint();
    let slow = Giver::start(Manner::StopsAt(70_000)).await;
    announce(&etcd, "slow", &slow).await;
    let cache = dir.path().join("cache");
    let first = worker(dir.path(), &url, "w", &slow.digest, &cache, "decoder");
    let tensor = slow.reached().await;
    let incomplete = cache.join(&slow.digest).join("tensors").join(format!("{tensor}.incomplete"));
    soon("its beginning is on the disk", || std::fs::metadata(&incomplete).is_ok_and(|meta| meta.len() == 70_000)).await;
    first.signal("KILL");
    drop(first);
    let length = std::fs::metadata(&incomplete).unwrap().len();
    slow.behave(Manner::Honest);
    slow.reads();
    let second = worker(dir.path(), &url, "w", &slow.digest, &cache, "decoder");
    second.line();
    let reads = slow.reads();
    let resumed = reads.iter().find(|read| read.tensor == tensor).unwrap();
    assert_eq!(resumed.offset, length, "{reads:?}");
    let mut names: Vec<&str> = reads.iter().map(|read| read.tensor.as_str()).collect();
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "no tensor is asked for twice: {reads:?}");
    let before = kept(&cache, &slow.digest).0.len();
    assert!(before > count, "what was whole before was not asked for again");
    drop(place);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lying_peer_is_refused_and_another_one_asked() {
    let dir = tempfile::tempdir().unwrap();
    let place = up::Place::take();
    let etcd = Etcd::start(Version::V34).await;
    let url = etcd.endpoint();
    let lying = Giver::start(Manner::Lies).await;
    announce(&etcd, "a-lying", &lying).await;
    let cache = dir.path().join("cache");
    let worker = worker(dir.path(), &url, "w", &lying.digest, &cache, "decoder");
    worker.says("its bytes have another digest").await;
    assert!(
        !cache
            .join(&lying.digest)
            .join("tensors")
            .read_dir()
            .unwrap()
            .flatten()
            .any(|entry| { entry.path().extension().is_none_or(|extension| extension != "incomplete") }),
        "nothing it gave has a name"
    );
    let honest = Giver::start(Manner::Honest).await;
    announce(&etcd, "c-honest", &honest).await;
    worker.line();
    assert!(!honest.reads().is_empty());
    // Whoever lied once is not asked again: one tensor was enough.
    assert_eq!(lying.reads().len(), 1, "the liar");
    drop(place);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_does_not_prove_itself_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let place = up::Place::take();
    let etcd = Etcd::start(Version::V34).await;
    let url = etcd.endpoint();
    let forging = Giver::start(Manner::Forges).await;
    announce(&etcd, "a-forging", &forging).await;
    let cache = dir.path().join("cache");
    let worker = worker(dir.path(), &url, "w", &forging.digest, &cache, "decoder");
    worker.says("manifest").await;
    worker.says("a peer gives wrong weights").await;
    let honest = Giver::start(Manner::Honest).await;
    announce(&etcd, "b-honest", &honest).await;
    worker.line();
    drop(place);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_on_the_disk_is_not_fetched_and_another_models_part_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let place = up::Place::take();
    let etcd = Etcd::start(Version::V34).await;
    let url = etcd.endpoint();
    let giver = Giver::start(Manner::Honest).await;
    announce(&etcd, "giver", &giver).await;
    // The decoder's tensors, in the other layout.
    let whole = Checkpoint::open(janus_spec::Files::open_dir(tiny("transformers")).unwrap()).unwrap();
    let part = dir.path().join("part");
    std::fs::create_dir(&part).unwrap();
    for name in support::names(&tiny("transformers")).iter().filter(|name| name.ends_with(".json")) {
        std::fs::copy(tiny("transformers").join(name), part.join(name)).unwrap();
    }
    let half: Vec<_> = inventory(&whole.spec).into_iter().filter(|t| t.part == Tensors::VqDecoder).collect();
    whole.save_some(&part, janus_spec::Layout::Transformers, &half).unwrap();
    let cache = dir.path().join("cache");
    let worker_of = |name: &str, model: &Path| worker(dir.path(), &url, name, &text(model), &cache, "decoder");
    worker_of("w", &part).line();
    let reads = giver.reads();
    assert!(!reads.is_empty() && reads.iter().all(|read| half.iter().all(|t| t.name != read.tensor)), "{reads:?}");

    let other = support::repository().join("crates/janus/shapes/checkpoint");
    let mut refused = worker_of("x", &other);
    assert_eq!(refused.ends(LONG).await.code(), Some(2));
    assert!(refused.said().contains("holds another model than the cluster's"), "{}", refused.tail());
    drop(place);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_gives_its_weights_to_its_own_nodes_alone() {
    let up = Up::start(&["--stages", "1"]);
    let digest = digest_of_shapes(up.dir());
    let mut client = givers::client(&up.endpoints).await;
    let manifest = client.manifest(givers::manifest_of("janus", "")).await.unwrap().into_inner();
    assert_eq!(janus_wire::hello::hex(&manifest.digest), digest);
    for (request, word) in [
        (givers::manifest_of("other", ""), "cluster is `other`"),
        (givers::manifest_of("janus", "no-such"), "not `no-such`"),
    ] {
        let status = client.manifest(request).await.unwrap_err();
        assert!(status.code() == tonic::Code::FailedPrecondition && status.message().contains(word), "{status}");
    }
    let name = manifest.tensors[0].name.clone();
    for (tensor, offset, code) in [
        (name.as_str(), 1, tonic::Code::InvalidArgument),
        (name.as_str(), u64::MAX - 1, tonic::Code::InvalidArgument),
        ("../../etc/passwd", 0, tonic::Code::NotFound),
    ] {
        let status = client.read(givers::read_of(&manifest, tensor, offset)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
    assert!(status(&up.endpoints).is_some());
}
