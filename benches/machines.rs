//! Whole clusters of real processes at Janus-Pro-1B's widths, with 6 layers of random weights: what processes cost, what the
//! planner foretells, and how long a lost stage is missed. `cargo bench --bench machines -- throughput|plan|failover`.
//!
//! It runs `target/release/janus`, so build that first. The checkpoint goes to a temporary folder: 1 GB.
#![allow(clippy::unwrap_used)]

#[path = "../tests/harness/caller.rs"]
mod caller;
#[path = "../tests/harness/client.rs"]
mod client;
#[path = "../crates/cluster/tests/etcd_process/mod.rs"]
mod etcd_process;
#[path = "../tests/harness/served.rs"]
mod served;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "../tests/harness/up.rs"]
mod up;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use janus_model::Checkpoint;
use janus_spec::{Files, Layout, ModelSpec};
use janus_wire::v1::GenerateImageRequest;
use serde_json::{Value, json};
use tempfile::TempDir;

use caller::{Caller, Course};
use client::{Ask, paint};
use etcd_process::{Etcd, Version};
use served::Served;
use up::{Part, Up, count, free_ports, member, ready, signal, stages};

const LAYERS: usize = 6;
/// Of a picture.
const IDS: u32 = 576;
/// Under way at once.
const PICTURES: u32 = 4;
/// What a row of a prompt takes is measured with so many.
const PREFILL: f64 = 576.0;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let asked: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| asked.is_empty() || asked.iter().any(|word| word == name);
    let model = Model::random();
    let mut holds = true;
    if wanted("throughput") {
        holds &= throughput(&model).await;
    }
    if wanted("plan") {
        holds &= plan(&model).await;
    }
    if wanted("failover") {
        holds &= failover(&model).await;
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Four pictures by three stages: in one process, and in three.
async fn throughput(model: &Model) -> bool {
    const ROUNDS: usize = 3;
    let asked = pictures(PICTURES);
    let threads = threads().to_string();
    let args = ["--model", model.path(), "--stages", "3", "--threads", &threads];
    let (mut inside, mut apart) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let served = Served::start(&args);
        let one = timed(&served.address, &asked).await;
        drop(served);
        let up = Up::start(&args);
        let three = timed(&up.endpoints, &asked).await;
        assert_eq!(one.0.answer.sha256, three.0.answer.sha256, "the pictures differ");
        println!("round {round}: one process {:.1} s, three {:.1} s", one.1, three.1);
        inside.push(one.1);
        apart.push(three.1);
    }
    let share = median(&mut inside) / median(&mut apart);
    let what = format!("{PICTURES} pictures, 3 processes against 1, {threads} threads: {share:.3} of the throughput");
    bound(&what, share >= 0.9, "at least 0.9")
}

/// What a picture's step takes, and what `janus plan` says of the same cluster.
async fn plan(model: &Model) -> bool {
    // Threads and memory of each worker. A layer and its part of the cache take 220 MiB, the image head 72.
    let layouts: [(&str, &[(&str, &str)]); 3] = [
        ("two stages alike", &[("2", "8GiB"), ("2", "8GiB")]),
        ("three stages of one thread", &[("1", "8GiB"), ("1", "8GiB"), ("1", "8GiB")]),
        ("one of one thread, and one with little memory", &[("1", "8GiB"), ("2", "600MiB")]),
    ];
    let mut holds = true;
    for (what, workers) in layouts {
        let cluster = Cluster::start(model, workers).await;
        let planned = cluster.planned();
        let measured = cluster.step().await;
        let off = planned / measured - 1.0;
        let what = format!("{what}, {}: foretold {planned:.2} ms, measured {measured:.2} ms", cluster.layout());
        holds &= bound(&format!("{what}: {:+.1} %", 100.0 * off), off.abs() <= 0.1, "within 10 %");
    }
    holds
}

/// From the blow to the next id, for either stage of two that have a spare.
async fn failover(model: &Model) -> bool {
    let threads = threads().to_string();
    let prefill = prefill_ms(model, &threads);
    let up = Up::start(&["--model", model.path(), "--stages", "2", "--spares", "1", "--threads", &threads]);
    let mut holds = true;
    let expected = Caller::begin(&up.endpoints, &pictures(PICTURES)).end().await.answer;
    for at in [0, 1] {
        let status =
            up.until("two stages and a spare", |s| ready(s) && stages(s).len() == 2 && count(s, "spare") == 1).await;
        let victim = &stages(&status)[at];
        let pid = up.pid(victim).await;
        let mut caller = Caller::begin(&up.endpoints, &pictures(PICTURES));
        caller.reaches(IDS / 2).await;
        let (known, struck) = (caller.known(), Instant::now());
        signal(pid, "KILL");
        // One that was drawn before may still come.
        caller.reaches(known + 2).await;
        let waited = struck.elapsed().as_secs_f64();
        let course = caller.end().await;
        assert_eq!(course.answer, expected, "the pictures differ");
        assert_eq!(course.resumed, 1);
        let positions = course.answer.prompt.len() as u32 + known;
        let rows = f64::from(2 * PICTURES * positions);
        let (reading, silence) = (rows * prefill / PREFILL / 1e3, course.silence.as_secs_f64());
        let most = 2.0 + 1.2 * reading;
        let what = format!(
            "{victim} of 2 killed at id {known}, {PICTURES} pictures: the next id but one after {waited:.2} s (longest silence \
             {silence:.2} s), {rows} rows are read in {reading:.2} s"
        );
        holds &= bound(&what, waited <= most, &format!("at most 2 s + 1.2 x that = {most:.2} s"));
    }
    holds
}

/// Prints a figure with its bar, and whether it holds.
fn bound(what: &str, holds: bool, bar: &str) -> bool {
    println!("{what}; {bar}: {}", if holds { "holds" } else { "FAILS" });
    holds
}

fn pictures(n: u32) -> Ask {
    Ask::Paint(GenerateImageRequest { n, seed: 1, ..paint("a red circle left of a blue square") })
}

async fn timed(endpoints: &str, ask: &Ask) -> (Course, f64) {
    let begun = Instant::now();
    let course = Caller::begin(endpoints, ask).end().await;
    (course, begun.elapsed().as_secs_f64())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn threads() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// Milliseconds that a prompt of [`PREFILL`] rows takes in one process.
fn prefill_ms(model: &Model, threads: &str) -> f64 {
    let args = ["bench", "--json", "--phase", "prefill", "--model", model.path(), "--threads", threads];
    let output = Command::new(support::binary()).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["results"][0]["ms"].as_f64().unwrap()
}

/// A checkpoint that nobody trained.
struct Model(TempDir);

impl Model {
    /// tiny-a's files, its configuration with other sizes, and random weights. The tower and the vocabulary stay small: no
    /// picture that is painted uses them.
    fn random() -> Model {
        let (dir, tiny) = (tempfile::tempdir().unwrap(), support::repository().join("tests/data/tiny-a/transformers"));
        for file in std::fs::read_dir(&tiny).unwrap().map(|entry| entry.unwrap().path()) {
            std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
        }
        for other in ["model.safetensors", "processor_config.json"] {
            std::fs::remove_file(dir.path().join(other)).unwrap();
        }
        let rewrite = |name: &str, rewritten: fn(Value) -> Value| {
            let old = serde_json::from_slice(&std::fs::read(tiny.join(name)).unwrap()).unwrap();
            std::fs::write(dir.path().join(name), rewritten(old).to_string()).unwrap();
        };
        rewrite("config.json", widened);
        rewrite("preprocessor_config.json", |mut config| {
            config["size"] = json!({ "height": 384, "width": 384 });
            config
        });
        let spec = ModelSpec::load(&Files::open_dir(dir.path()).unwrap()).unwrap();
        assert_eq!((spec.llm.layers, spec.image_tokens()), (LAYERS, IDS as usize));
        Checkpoint::random(spec, 1).save_weights(dir.path(), Layout::Transformers).unwrap();
        Model(dir)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

fn widened(mut config: Value) -> Value {
    let mut set = |part: &str, values: Value| {
        let part = config[part].as_object_mut().unwrap();
        part.extend(values.as_object().unwrap().clone());
    };
    set(
        "text_config",
        json!({
            "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 16,
            "head_dim": 128, "num_hidden_layers": LAYERS,
        }),
    );
    set("vision_config", json!({ "image_size": 384, "num_image_tokens": IDS, "projection_dim": 2048 }));
    set(
        "vq_config",
        json!({
            "base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "latent_channels": 256, "num_embeddings": 16384,
            "num_patches": 24, "image_token_embed_dim": 2048, "projection_dim": 2048,
        }),
    );
    config
}

/// An etcd, a coordinator and workers that were started one after the other, so that each measured itself in peace.
struct Cluster {
    parts: Vec<Part>,
    endpoint: String,
    _etcd: Etcd,
    _dir: TempDir,
}

impl Cluster {
    async fn start(model: &Model, workers: &[(&str, &str)]) -> Cluster {
        let (etcd, dir) = (Etcd::start(Version::V34).await, tempfile::tempdir().unwrap());
        let (endpoint, url) = (format!("127.0.0.1:{}", free_ports()), format!("http://{}", etcd.endpoint()));
        let common = ["--etcd", &url, "--model", model.path()];
        let start = |name: &str, args: &[&str]| {
            let part = Part::start(dir.path(), name, &[args, &["--name", name], &common].concat());
            // It says so when it is there.
            part.line();
            part
        };
        let mut parts = Vec::new();
        for (i, (threads, memory)) in workers.iter().enumerate() {
            let args = ["worker", "--role", "stage", "--threads", threads, "--memory", memory];
            parts.push(start(&format!("stage-{i}"), &args));
        }
        parts.push(start("decoder", &["worker", "--role", "decoder"]));
        let count = workers.len().to_string();
        let args = ["coordinator", "--listen", &endpoint, "--stages", &count, "--kv-positions", "8192"];
        parts.push(start("coordinator", &args));
        let cluster = Cluster { parts, endpoint, _etcd: etcd, _dir: dir };
        cluster.until("all stages run", |s| ready(s) && !member(s, "decoder").is_null()).await;
        cluster
    }

    async fn until(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        up::until(&self.endpoint, what, fits, || self.parts.iter().map(Part::tail).collect()).await
    }

    /// Milliseconds of a step of one picture, as `janus plan` foretells it.
    fn planned(&self) -> f64 {
        let plan = support::json(Path::new("/"), &["plan", "--endpoint", &self.endpoint, "--json"]);
        plan["estimate"]["pipelines"][0]["step_ms"].as_f64().unwrap()
    }

    /// The same as it is, over one picture that is painted alone.
    async fn step(&self) -> f64 {
        let mut caller = Caller::begin(&self.endpoint, &pictures(1));
        caller.reaches(1).await;
        let (begun, first) = (Instant::now(), caller.known());
        caller.reaches(IDS).await;
        let (took, ids) = (begun.elapsed(), caller.known() - first);
        took.as_secs_f64() * 1e3 / f64::from(ids)
    }

    fn layout(&self) -> String {
        let status = up::status(&self.endpoint).unwrap();
        let stages = status["pipelines"][0]["stages"].as_array().unwrap().clone();
        let layers = |stage: &Value| member(&status, stage["node"].as_str().unwrap())["layers"].to_string();
        stages.iter().map(layers).collect::<Vec<_>>().join(" ")
    }
}
