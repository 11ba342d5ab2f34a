//! Jobs on stores that fail and processes that are killed between any two steps: no item is lost, none is there twice, and
//! the manifest is that of an undisturbed run.
//!
//! `JANUS_TEST_SEEDS` sets how many histories are tried, `JANUS_TEST_FIRST_SEED` where they begin.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "job_crashes/shaky.rs"]
mod shaky;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use janus_cluster::{Keys, MemoryStore, Store, StoreConfig, Txn};
use janus_coordinator::jobs::{Answer, Engine, Jobs, MANIFEST, Objects, Options, Picture, Setup};
use janus_wire::v1::jobs_server::Jobs as _;
use janus_wire::v1::{self, AskItem, JobItem, JobStatus, PaintItem, create_job_request, job_item};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use sha2::{Digest, Sha256};
use shaky::{Dice, Life, ShakyObjects, ShakyStore};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

/// Seeds that once failed: all when a manifest could not be written at first, and its writer was aborted once more.
const REMEMBERED: &[u64] = &[3, 126, 226, 231, 325, 424, 826];
/// Histories of a run in CI.
const SEEDS: u64 = 2_000;
/// Processes of one history that are killed; the next one lives.
const KILLED: u64 = 12;
const MODEL: [u8; 32] = [7; 32];

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The ids' digest of a picture of the toy.
fn drawn(prompt: &str, seed: u64) -> [u8; 32] {
    Sha256::new().chain_update(prompt).chain_update(seed.to_le_bytes()).finalize().into()
}

/// The toy's answer: long ones are kept apart from their results.
fn answered(question: &str) -> String {
    question.repeat(1 + usize::from(Sha256::digest(question)[0]) * 4)
}

/// Draws what follows from the request, now and then after an accident.
struct Toy {
    life: Arc<Life>,
    dice: std::sync::Mutex<Dice>,
    units: Arc<AtomicU64>,
}

impl Toy {
    async fn work(&self, words: &str) -> Result<(), Status> {
        self.units.fetch_add(1, Ordering::Relaxed);
        let (long, accident) = {
            let mut dice = self.dice.lock().unwrap();
            (dice.below(6), dice.below(100))
        };
        tokio::time::sleep(Duration::from_millis(10 * long)).await;
        self.life.step().await;
        match accident {
            0..5 => Err(Status::unavailable("the pipeline is not ready")),
            5..7 => Err(Status::internal("an accident")),
            _ if words.contains("bad") => Err(Status::invalid_argument("prompt: it is bad")),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Engine for Toy {
    async fn paint(&self, _: &Arc<str>, request: v1::GenerateImageRequest) -> Result<Picture, Status> {
        self.work(&request.prompt).await?;
        let sha256 = drawn(&request.prompt, request.seed);
        Ok(Picture { width: 2, height: 5, rgb: sha256[..30].to_vec().into(), sha256 })
    }

    async fn answer(&self, _: &Arc<str>, request: v1::ChatRequest) -> Result<Answer, Status> {
        let Some(v1::part::Part::Text(question)) = request.messages[0].parts[0].part.clone() else { panic!("no question") };
        self.work(&question).await?;
        let usage = v1::Usage { input_tokens: question.len() as u64, output_tokens: 1 };
        Ok(Answer { text: answered(&question), finish_reason: v1::FinishReason::Length, usage })
    }
}

fn items(dice: &mut Dice) -> Vec<JobItem> {
    let count = 1 + dice.below(20);
    let one = |number: u64| {
        let work = match dice.below(5) {
            0 => job_item::Work::Ask(AskItem { question: format!("what is {number}?"), ..AskItem::default() }),
            1 => job_item::Work::Paint(PaintItem { prompt: format!("bad {number}"), ..PaintItem::default() }),
            n => {
                let prompt = format!("prompt {number}");
                job_item::Work::Paint(PaintItem { prompt, n: n as u32, seed: dice.below(99), ..PaintItem::default() })
            }
        };
        JobItem { id: format!("item {number}"), work: Some(work) }
    };
    (0..count).map(one).collect()
}

/// The manifest of an undisturbed run, written down another way.
fn expected(items: &[JobItem]) -> Vec<String> {
    let mut lines = Vec::new();
    for item in items {
        let (id, name) = (&item.id, item.id.replace(' ', "=20"));
        let failed = |seed: u64, index: u32| {
            format!(
                r#"{{"id":"{id}","index":{index},"status":"failed","path":null,"sha256":null,"seed":{seed},"text":null,"error":"prompt: it is bad"}}"#
            )
        };
        match item.work.as_ref().unwrap() {
            job_item::Work::Paint(paint) => {
                for index in 0..paint.n.max(1) {
                    let seed = paint.seed + u64::from(index);
                    let sha256 = hex(drawn(&paint.prompt, seed));
                    lines.push(match paint.prompt.contains("bad") {
                        true => failed(seed, index),
                        false => format!(
                            r#"{{"id":"{id}","index":{index},"status":"succeeded","path":"pictures/{name}-{index}.png","sha256":"{sha256}","seed":{seed},"text":null,"error":null}}"#
                        ),
                    });
                }
            }
            job_item::Work::Ask(ask) => {
                let text = answered(&ask.question);
                let sha256 = hex(Sha256::digest(&text));
                lines.push(format!(
                    r#"{{"id":"{id}","index":0,"status":"succeeded","path":null,"sha256":"{sha256}","seed":0,"text":"{text}","error":null,"finish_reason":"length","input_tokens":{},"output_tokens":1}}"#,
                    ask.question.len()
                ));
            }
        }
    }
    lines
}

/// What outlives every process.
struct World {
    seed: u64,
    store: Arc<dyn Store>,
    objects: Arc<InMemory>,
    keys: Keys,
    items: Vec<JobItem>,
    units: Arc<AtomicU64>,
}

impl World {
    /// Jobs of one process that is elected now.
    async fn lead(&self, epoch: u64, life: &Arc<Life>, over: &CancellationToken) -> Option<Jobs> {
        self.store.commit(Txn::new().put(self.keys.epoch(), epoch.to_string())).await.unwrap();
        let objects = ShakyObjects { inner: self.objects.clone(), life: life.clone() };
        let setup = Setup {
            store: Arc::new(ShakyStore { inner: self.store.clone(), life: life.clone() }),
            keys: self.keys.clone(),
            cluster: "test".to_owned(),
            epoch,
            objects: Objects::of(Arc::new(objects), "memory:///jobs"),
            options: Options { window: 5, segment: 3, keep: None, roots: Arc::new(|_| Vec::new()), environment: Vec::new() },
            engine: Arc::new(Toy {
                life: life.clone(),
                dice: std::sync::Mutex::new(Dice(self.seed ^ epoch)),
                units: self.units.clone(),
            }),
            model: MODEL,
        };
        Jobs::start(setup, over.clone()).await
    }

    /// Makes the job, or finds it made.
    async fn submit(&self, jobs: &Jobs) -> v1::Job {
        loop {
            let part = |part| Ok(v1::CreateJobRequest { part: Some(part) });
            let header = v1::JobHeader { key: "the key".to_owned(), ..v1::JobHeader::default() };
            let mut messages = vec![part(create_job_request::Part::Header(header))];
            for items in self.items.chunks(4) {
                messages.push(part(create_job_request::Part::Items(v1::JobItems { items: items.to_vec() })));
            }
            match jobs.make(&"local".into(), futures_util::stream::iter(messages)).await {
                Ok(job) => return job,
                Err(status) => {
                    assert_eq!(status.code(), tonic::Code::Unavailable, "seed {}: {status:?}", self.seed);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn ended(&self, jobs: &Jobs, id: &str) -> v1::Job {
        let until = tokio::time::Instant::now() + Duration::from_secs(3600);
        loop {
            let job = jobs.get(Request::new(v1::GetJobRequest { job: id.to_owned() })).await.unwrap().into_inner();
            if matches!(job.status(), JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled) {
                return job;
            }
            assert!(tokio::time::Instant::now() < until, "seed {}: it stands still: {job:?}", self.seed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// One history; how many units were begun.
fn history(seed: u64) -> (u64, usize) {
    let mut dice = Dice(seed);
    let outside = runtime();
    let store = outside.block_on(StoreConfig::Memory(MemoryStore::new()).connect()).unwrap();
    let world = World {
        seed,
        store,
        objects: Arc::new(InMemory::new()),
        keys: Keys::new("test").unwrap(),
        items: items(&mut dice),
        units: Arc::default(),
    };
    let (cancels, trouble) = (dice.chance(20), dice.below(4) * 3);
    let (mut known, mut cancelled, mut epoch) = (None::<String>, false, 0);
    let job = loop {
        epoch += 1;
        let steps = if epoch > KILLED { i64::MAX } else { 1 + dice.below(60 * epoch) as i64 };
        let life = Life::new(steps, trouble, dice.below(u64::MAX));
        let (zombie, wants_cancel) = (dice.chance(25), cancels && !cancelled && dice.chance(50));
        let (before, pause) = (dice.below(300), dice.below(300));
        let runtime = runtime();
        let work = async {
            let over = CancellationToken::new();
            let mut jobs = world.lead(epoch, &life, &over).await.unwrap();
            let job = world.submit(&jobs).await;
            // An acknowledged job has one name for ever.
            assert_eq!(*known.get_or_insert(job.id.clone()), job.id, "seed {seed}: the job was lost");
            if wants_cancel {
                tokio::time::sleep(Duration::from_millis(before)).await;
                // From here on it may be cancelled, whether anybody lives to say so or not.
                cancelled = true;
                let request = || Request::new(v1::CancelJobRequest { job: job.id.clone() });
                while let Err(status) = jobs.cancel(request()).await {
                    assert_eq!(status.code(), tonic::Code::Unavailable, "seed {seed}: {status:?}");
                }
            }
            if zombie {
                // It is deposed and does not know; both go on.
                tokio::time::sleep(Duration::from_millis(pause)).await;
                epoch += 1;
                jobs = world.lead(epoch, &life, &over).await.unwrap();
            }
            world.ended(&jobs, &job.id).await
        };
        let ended = runtime.block_on(async {
            tokio::select! {
                biased;
                () = life.over.notified() => None,
                job = work => Some(job),
            }
        });
        // Killed: nothing that it began goes on.
        runtime.shutdown_background();
        if let Some(job) = ended {
            break job;
        }
    };
    outside.block_on(check(&world, &job, cancelled));
    (world.units.load(Ordering::Relaxed), expected(&world.items).len())
}

/// What must be there in the end, and what must not.
async fn check(world: &World, job: &v1::Job, cancelled: bool) {
    let seed = world.seed;
    let folder = format!("jobs/{}/output", job.id);
    let manifest = world.objects.get(&format!("{folder}/{MANIFEST}").into()).await.unwrap().bytes().await.unwrap();
    let manifest = String::from_utf8(manifest.to_vec()).unwrap();
    let lines: Vec<&str> = manifest.lines().collect();
    let expected = expected(&world.items);
    assert_eq!(job.total, world.items.len() as u64, "seed {seed}");
    assert_eq!(job.succeeded + job.failed + job.cancelled, job.total, "seed {seed}: {job:?}");
    if job.status() == JobStatus::Succeeded {
        assert_eq!(lines, expected, "seed {seed}");
        assert_eq!(job.cancelled, 0, "seed {seed}");
        let bad = world
            .items
            .iter()
            .filter(|item| matches!(&item.work, Some(job_item::Work::Paint(paint)) if paint.prompt.contains("bad")));
        assert_eq!(job.failed, bad.count() as u64, "seed {seed}");
    } else {
        assert!(cancelled && job.status() == JobStatus::Cancelled, "seed {seed}: {job:?}");
        assert_eq!(lines.len(), expected.len(), "seed {seed}");
        for (line, expected) in lines.iter().zip(&expected) {
            let there = line == expected || line.contains(r#""status":"cancelled","path":null,"sha256":null"#);
            assert!(there, "seed {seed}: {line} instead of {expected}");
        }
        assert!(job.cancelled > 0, "seed {seed}: {job:?}");
    }
    for line in &lines {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        if let Some(path) = line["path"].as_str() {
            let png = world.objects.get(&format!("{folder}/{path}").into()).await.unwrap().bytes().await.unwrap();
            let pixels = image::load_from_memory(&png).unwrap().to_rgb8().into_raw();
            assert!(hex(pixels).starts_with(&line["sha256"].as_str().unwrap()[..60]), "seed {seed}: {path}");
        }
    }
    let left = world.store.list(&format!("{}results/", world.keys.jobs())).await.unwrap().entries;
    assert!(left.is_empty(), "seed {seed}: {left:?}");
    let records = world.store.list(&world.keys.jobs()).await.unwrap().entries;
    assert_eq!(records.len(), 2, "seed {seed}: a record and its key, not {records:?}");
    assert!(records.iter().all(|entry| entry.value.len() < 8192), "seed {seed}");
}

#[test]
fn no_item_is_lost_or_doubled_whenever_anything_is_killed() {
    let number = |name: &str, otherwise: u64| std::env::var(name).map_or(otherwise, |text| text.parse().unwrap());
    let first = number("JANUS_TEST_FIRST_SEED", 0);
    let seeds = first..first + number("JANUS_TEST_SEEDS", SEEDS);
    let (mut begun, mut needed) = (0, 0);
    for seed in REMEMBERED.iter().copied().chain(seeds) {
        let told = std::panic::catch_unwind(|| history(seed));
        let (units, lines) = told.unwrap_or_else(|_| panic!("JANUS_TEST_FIRST_SEED={seed} JANUS_TEST_SEEDS=1 repeats it"));
        begun += units;
        needed += lines as u64;
    }
    println!("{needed} units were begun {begun} times");
    // The killing was real.
    assert!(begun > needed + needed / 10, "{needed} units were begun {begun} times");
}
