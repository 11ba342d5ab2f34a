//! A job of many items is never held at once, neither while it comes in nor while it runs; and what a job costs beside its
//! pictures. `JANUS_JOB_ITEMS=1000000` measures the largest one.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use janus_cluster::{Keys, MemoryStore, StoreConfig};
use janus_coordinator::jobs::{Answer, Engine, Jobs, Objects, Options, Picture, SEGMENT, Setup, next_epoch};
use janus_wire::v1::jobs_server::Jobs as _;
use janus_wire::v1::{self, AskItem, JobItem, JobStatus, create_job_request, job_item};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

/// Answers at once.
struct Echo;

#[async_trait]
impl Engine for Echo {
    async fn paint(&self, _: &Arc<str>, _: v1::GenerateImageRequest) -> Result<Picture, Status> {
        Err(Status::invalid_argument("prompt: this one answers"))
    }

    async fn answer(&self, _: &Arc<str>, request: v1::ChatRequest) -> Result<Answer, Status> {
        tokio::task::yield_now().await;
        Ok(Answer { text: request.header.unwrap().request_id, ..Answer::default() })
    }
}

/// The most memory this process ever had resident, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_of_a_million_items_fits_into_300_mib() {
    let items: u64 = std::env::var("JANUS_JOB_ITEMS").map_or(50_000, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let store = StoreConfig::Memory(MemoryStore::new()).connect().await.unwrap();
    let keys = Keys::new("test").unwrap();
    let url = url::Url::from_directory_path(dir.path()).unwrap();
    let setup = Setup {
        store: store.clone(),
        keys: keys.clone(),
        cluster: "test".to_owned(),
        epoch: next_epoch(store.as_ref(), &keys).await.unwrap(),
        objects: Objects::open(&url, &Vec::new()).unwrap(),
        options: Options {
            window: 64,
            segment: SEGMENT,
            keep: None,
            roots: Arc::new(|_| Vec::new()),
            environment: Vec::new(),
        },
        engine: Arc::new(Echo),
        model: [7; 32],
    };
    let jobs = Jobs::start(setup, CancellationToken::new()).await.unwrap();
    let before = peak();

    let item = |number: u64| {
        let question = format!("What is the {number}th thing that one would like to know about a picture of this size?");
        JobItem { id: format!("{number}"), work: Some(job_item::Work::Ask(AskItem { question, ..AskItem::default() })) }
    };
    let part = |part| Ok(v1::CreateJobRequest { part: Some(part) });
    let header = std::iter::once(part(create_job_request::Part::Header(v1::JobHeader::default())));
    let messages = (0..items).step_by(256).map(|first| {
        let items = (first..items.min(first + 256)).map(item).collect();
        part(create_job_request::Part::Items(v1::JobItems { items }))
    });
    let begun = Instant::now();
    let job = jobs.make(&"local".into(), futures_util::stream::iter(header.chain(messages))).await.unwrap();
    let spooled = begun.elapsed();
    let request = || Request::new(v1::WatchJobRequest { job: job.id.clone() });
    let mut events = jobs.watch(request()).await.unwrap().into_inner();
    let (mut end, mut records) = (job.clone(), 0);
    while let Some(now) = events.next().await {
        end = now.unwrap();
        records = records.max(store.list(&keys.jobs()).await.unwrap().entries.len());
    }
    let ran = begun.elapsed() - spooled;
    assert_eq!((end.status(), end.succeeded), (JobStatus::Succeeded, items), "{end:?}");
    let peak = peak();
    println!(
        "{items} items: spooled in {:.1} s, ran in {:.1} s, {:.0} us an item; at most {peak} MiB resident ({before} before), \
         {records} records in the store",
        spooled.as_secs_f64(),
        ran.as_secs_f64(),
        (spooled + ran).as_secs_f64() * 1e6 / items as f64,
    );
    assert!(records <= 1 + 3 * SEGMENT, "{records}");
    assert!(peak < 300, "{peak} MiB");
    // What grows with the items is their names' digests, while they come in.
    assert!((peak - before) as f64 <= 60.0 + items as f64 * 100e-6, "{before} MiB before, {peak} at most");
}
