//! `janus plan` for clusters that a file describes: right answers, and mistakes by name and line.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;

use janus_model::llama::{Embeddings, Heads, LlamaRange};
use janus_model::{Checkpoint, KvDtype, WeightFormat};
use janus_spec::{Files, KvStorage, WeightStorage};
use serde_json::json;
use support::{FORMS, Run, janus, json, repository, text, tiny};
use tempfile::tempdir;

/// Three equal machines whose best plan is known: 8 layers of 1 ms each.
const PLAIN: &str = "\
sizes: {layers: 9, layer: 100MB, embeddings: 10MB, heads: 20MB, kv_per_position: 1kB, hidden: 64, image_tokens: 576}
kv_positions: 2000
prompt_tokens: 0
pictures: 1
nodes:
  - {id: a, zone: x, memory: 1GB, ms_per_layer: 1}
  - {id: b, zone: x, memory: 1GB, ms_per_layer: 1}
  - {id: c, zone: y, memory: 1GB, ms_per_layer: 1}
links:
  - {between: [a, b], round_trip_ms: 0}
  - {between: [b, c], round_trip_ms: 2}
";

fn plan(dir: &Path, file: &str, flags: &[&str]) -> Run {
    std::fs::write(dir.join("cluster.yaml"), file).unwrap();
    janus(dir, &[&["plan", "cluster.yaml"], flags].concat())
}

/// The file with one thing changed is refused with exit code 2 and these words.
fn refused(from: &str, to: &str, words: &[&str]) {
    assert!(PLAIN.contains(from), "{from}");
    let run = plan(tempdir().unwrap().path(), &PLAIN.replacen(from, to, 1), &[]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{to}: {}", run.stderr);
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    for word in ["janus: cluster.yaml: "].iter().chain(words) {
        assert!(run.stderr.contains(word), "{to}: {}", run.stderr);
    }
}

#[test]
fn the_plan_is_the_one_that_can_be_worked_out_by_hand() {
    let dir = tempdir().unwrap();
    std::fs::write(dir.path().join("cluster.yaml"), PLAIN).unwrap();
    let said = json(dir.path(), &["plan", "cluster.yaml", "--json"]);
    let stages = said["plan"]["pipelines"][0]["stages"].as_array().unwrap();
    let of = |key: &str| stages.iter().map(|stage| stage[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("node"), ["a", "b", "c"].map(|id| json!(id)));
    assert_eq!(of("layers"), [json!([0, 3]), json!([3, 6]), json!([6, 9])]);
    // Weights, and a cache of 2000 positions of 1 kB in each layer.
    assert_eq!(of("memory_bytes"), [316_000_000, 306_000_000, 326_000_000].map(|bytes| json!(bytes)));
    assert_eq!(of("ms"), [json!(3.0), json!(3.0), json!(3.0)]);
    // Nine layers and one way of 1 ms.
    assert_eq!(said["estimate"]["pipelines"][0]["step_ms"], json!(10.0));
    assert_eq!(said["estimate"]["pipelines"][0]["pace_ms"], json!(3.0));
    let hour = 3.6e6 / (576.0 * 10.0);
    assert!((said["estimate"]["pictures_per_hour"].as_f64().unwrap() - hour).abs() < 1e-6, "{said}");
    assert_eq!(
        said["estimate"]["memory"][1],
        json!({"node": "b", "used_bytes": 306_000_000, "offered_bytes": 1_000_000_000})
    );
    assert_eq!(said["plan"]["unused"], json!([]));
    assert_eq!(said["next"]["like"], json!("b"));
    assert_eq!(said["next"]["pace_ms"], json!(3.0), "nine layers over four machines are no faster than over three");
}

#[test]
fn people_read_the_same_in_a_table() {
    let run = plan(tempdir().unwrap().path(), PLAIN, &[]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    for words in ["node", "0..3", "301.4 MiB", "953.7 MiB", "10.00 ms", "625.0 pictures per hour", "one more node like b"] {
        assert!(run.stdout.contains(words), "{words} in\n{}", run.stdout);
    }
}

#[test]
fn a_spare_and_pipelines_are_planned_as_asked() {
    let dir = tempdir().unwrap();
    let spare = plan(dir.path(), &format!("spares: 1\n{PLAIN}"), &["--json"]);
    let said: serde_json::Value = serde_json::from_str(&spare.stdout).unwrap();
    assert_eq!(said["plan"]["spares"], json!([{"node": "c", "preload": [0, 9]}]));
    let many = plan(dir.path(), &format!("pipelines: auto\n{PLAIN}").replace("1GB", "2GB"), &["--json"]);
    let said: serde_json::Value = serde_json::from_str(&many.stdout).unwrap();
    // Each machine holds everything, and three at nine milliseconds are as fast as one pipeline at three.
    assert_eq!(said["plan"]["pipelines"].as_array().unwrap().len(), 1);
    let missing = plan(dir.path(), &format!("spares: 3\n{PLAIN}"), &[]);
    assert!(missing.stdout.contains("1 of 3 spares are missing"), "{}", missing.stdout);
}

#[test]
fn the_example_and_the_models_have_sizes() {
    let dir = tempdir().unwrap();
    let example = text(&repository().join("deploy/examples/three-nodes.yaml"));
    let said = json(dir.path(), &["plan", &example, "--json"]);
    let layers = said["layers"].as_u64().unwrap();
    assert_eq!(layers, 30);
    let stages = said["plan"]["pipelines"][0]["stages"].as_array().unwrap();
    assert_eq!(stages.last().unwrap()["layers"][1], json!(layers));
    // A checkpoint takes the model's place.
    let tiny = text(&tiny(FORMS[0]));
    let other = json(dir.path(), &["plan", &example, "--model", &tiny, "--json"]);
    assert_ne!(other["layers"], json!(30));
    let shapes = plan(dir.path(), "model: shapes\nnodes: [{id: a, memory: 1GiB, ms_per_layer: 0.1}]\n", &["--json"]);
    assert_eq!(shapes.code, Some(0), "{}", shapes.stderr);
}

#[test]
fn mistakes_are_named_with_their_line() {
    refused("memory: 1GB, ms_per_layer: 1}\n  - {id: b", "memroy: 1GB}\n  - {id: b", &["`memroy`", "line 6"]);
    refused("kv_positions", "kv_position", &["`kv_position`", "line 2"]);
    refused("{id: b, zone: x, memory: 1GB", "{id: b, zone: x, memory: 1 gig", &["`1 gig` is no size", "16GiB", "line 7"]);
    refused("pictures: 1", "pictures: many", &["line 4"]);
    refused("pictures: 1", "kv_positions: 1", &["kv_positions", "line 4"]);
    refused("links:", "links: ]", &["line 9"]);
    refused("ms_per_layer: 1", "roles: [stage]", &["node a has no speed", "read_gb_s"]);
    refused("ms_per_layer: 1", "ms_per_layer: -1", &["ms_per_layer of a"]);
    refused("ms_per_layer: 1", "gflops: 0", &["gflops of a"]);
    refused("links:", "  - {id: a, memory: 1GB, ms_per_layer: 1}\nlinks:", &["two nodes are called a"]);
    refused("[b, c]", "[b, d]", &["d, which is no node"]);
    refused("layers: 9", "layers: 100000000", &["100000 layers"]);
    refused("sizes:", "model: janus-pro-9b #", &["`janus-pro-9b`", "janus-pro-7b", "line 1"]);
    refused("sizes:", "model: janus-pro-7b\nsizes:", &["both `model` and `sizes`"]);
    refused("pictures: 1", "pipelines: 1.5", &["`auto`", "line 4"]);
    let run = janus(tempdir().unwrap().path(), &["plan", "nowhere.yaml"]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("nowhere.yaml: cannot be read"), "{}", run.stderr);
}

#[test]
fn what_does_not_fit_says_how_much_is_missing_and_where() {
    // 930 MB and a cache of 18 MB in three machines of 300 MB.
    let dir = tempdir().unwrap();
    let run = plan(dir.path(), &PLAIN.replace("1GB", "300MB"), &[]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""));
    let expected = "no plan that fits: 3 nodes offer 858.3 MiB, 1 pipeline with KV for 2000 positions needs 904.1 MiB; \
                    45.8 MiB missing (";
    assert!(run.stderr.contains(expected), "{}", run.stderr);
}

/// What the planner counts is what a stage holds.
#[test]
fn planned_sizes_are_those_of_loaded_weights() {
    for form in FORMS {
        let checkpoint = Checkpoint::open(Files::open_dir(tiny(form)).unwrap()).unwrap();
        let layers = checkpoint.spec.llm.layers;
        for (format, storage) in [
            (WeightFormat::F32, WeightStorage::F32),
            (WeightFormat::Bf16, WeightStorage::Bf16),
            (WeightFormat::Q8, WeightStorage::Q8),
            (WeightFormat::Q4, WeightStorage::Q4),
        ] {
            let sizes = checkpoint.spec.stage_sizes(storage, KvStorage::Bf16);
            let loaded = LlamaRange::load(&checkpoint, 0..layers, format, KvDtype::Bf16, 1).unwrap();
            assert_eq!(sizes.layer * layers as u64, loaded.bytes() as u64, "{form} {storage:?}");
            assert_eq!(
                sizes.embeddings,
                Embeddings::load(&checkpoint, format).unwrap().bytes() as u64,
                "{form} {storage:?}"
            );
            assert_eq!(sizes.heads, Heads::load(&checkpoint, format).unwrap().bytes() as u64, "{form} {storage:?}");
        }
        let kv = checkpoint.spec.stage_sizes(WeightStorage::F32, KvStorage::F32).kv_per_position;
        assert_eq!(kv * layers as u64, checkpoint.spec.kv_bytes_per_position(4));
    }
}
