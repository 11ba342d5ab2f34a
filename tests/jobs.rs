//! Jobs: what they make, who sees them, and that nothing of them is lost.
//!
//! `JANUS_JOB_ITEMS` sets the items of the job whose cluster is killed (10000 for a long run).
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "harness/client.rs"]
mod client;
#[path = "harness/cluster.rs"]
mod cluster;
#[path = "../crates/cluster/tests/etcd_process/mod.rs"]
mod etcd_process;
#[path = "harness/kept.rs"]
mod kept;
#[path = "harness/served.rs"]
mod served;
#[path = "harness/stage.rs"]
mod stage;
mod support;
#[path = "harness/up.rs"]
mod up;

#[path = "jobs/blows.rs"]
mod blows;
#[path = "jobs/cli.rs"]
mod cli;
#[path = "jobs/refusals.rs"]
mod refusals;
#[path = "jobs/s3.rs"]
mod s3;

use client::{Answer, Ask, chat, paint as painting};
use janus_wire::v1::{self, *};
use kept::{Kept, ask, create, of, paint, put, results, watch};
use serde_json::Value;
use stage::soon;
use support::tiny;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn line(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// What a caller's own request gets.
async fn single(kept: &Kept, request: Ask) -> Answer {
    request.answer(&mut kept.cluster.client().await, || {}).await.unwrap()
}

fn change(item: JobItem, change: impl FnOnce(&mut PaintItem)) -> JobItem {
    let mut item = item;
    if let Some(job_item::Work::Paint(paint)) = &mut item.work {
        change(paint);
    }
    item
}

#[tokio::test]
async fn a_job_makes_what_single_requests_would() {
    let kept = Kept::start().await;
    let mut client = kept.client().await;
    let photo = std::fs::read(tiny("golden/images/rgb_64x64.png")).unwrap();
    let blob = put(&mut client, "a", &photo).await.unwrap();
    let items = [
        change(paint("two boats", "a red boat"), |p| (p.n, p.seed) = (2, 41)),
        ask("what", "What is it?", &[blob]),
        paint("bad", "a <begin_of_image>"),
        change(paint("plain", "a blue boat"), |p| (p.cfg_weight, p.temperature) = (Some(1.0), Some(0.5))),
        paint("..", "a green boat"),
        ask("hm", "Why?", &[]),
    ];
    let job = create(&mut client, "a", JobHeader::default(), &items).await.unwrap();
    let heard = watch(&mut client, "a", &job.id).await;
    let end = heard.last().unwrap();
    assert_eq!(end.status(), JobStatus::Succeeded, "{end:?}");
    assert_eq!((end.total, end.succeeded, end.failed, end.cancelled), (6, 5, 1, 0));
    assert!(heard.windows(2).all(|pair| pair[0].succeeded + pair[0].failed <= pair[1].succeeded + pair[1].failed));

    let all = results(&mut client, "a", &job.id, 0, true).await.unwrap();
    let manifest: String = all.iter().map(|(line, _)| format!("{line}\n")).collect();
    let output = kept.output(&job.id);
    assert_eq!(std::fs::read_to_string(output.join("manifest.jsonl")).unwrap(), manifest);
    let names: Vec<_> = all.iter().map(|(text, _)| (line(text)["id"].clone(), line(text)["index"].clone())).collect();
    let expected = [("two boats", 0), ("two boats", 1), ("what", 0), ("bad", 0), ("plain", 0), ("..", 0), ("hm", 0)];
    assert_eq!(names, expected.map(|(id, index)| (Value::from(id), Value::from(index))));

    let with = |prompt: &str, change: fn(&mut GenerateImageRequest)| {
        let mut request = painting(prompt);
        change(&mut request);
        Ask::Paint(request)
    };
    let pictures = [
        (0, with("a red boat", |r| r.seed = 41)),
        (1, with("a red boat", |r| r.seed = 42)),
        (4, with("a blue boat", |r| (r.cfg_weight, r.temperature) = (Some(1.0), Some(0.5)))),
        (5, with("a green boat", |_| {})),
    ];
    for (at, request) in pictures {
        let (text, png) = &all[at];
        let (line, alone) = (line(text), single(&kept, request).await);
        assert_eq!(line["sha256"], hex(&alone.sha256[0]), "{text}");
        assert_eq!(image::load_from_memory(png).unwrap().to_rgb8().into_raw(), alone.rgb[0], "{text}");
        assert_eq!(&std::fs::read(output.join(line["path"].as_str().unwrap())).unwrap(), png, "{text}");
        assert_eq!((&line["status"], &line["text"], &line["error"]), (&"succeeded".into(), &Value::Null, &Value::Null));
    }
    for (at, question, pictures) in [(2, "What is it?", vec![photo]), (6, "Why?", vec![])] {
        let alone = single(&kept, Ask::Chat(chat(question, &pictures, 6))).await;
        let line = line(&all[at].0);
        assert_eq!((&line["text"], &line["path"]), (&alone.text.into(), &Value::Null));
    }
    let bad = line(&all[3].0);
    assert_eq!((&bad["status"], &bad["path"], &bad["sha256"]), (&"failed".into(), &Value::Null, &Value::Null));
    assert!(bad["error"].as_str().unwrap().starts_with("prompt: "), "{bad}");

    // A broken download goes on where it was.
    for first in 0..9 {
        let rest = results(&mut client, "a", &job.id, first as u64, false).await.unwrap();
        let lines = |all: &[(String, Vec<u8>)]| all.iter().map(|(line, _)| line.clone()).collect::<Vec<_>>();
        assert_eq!(lines(&rest), lines(all.get(first..).unwrap_or_default()), "{first}");
    }
    // The store keeps one record and nothing of the items.
    let left = kept.store.list(&kept.keys.jobs()).await.unwrap().entries;
    assert_eq!(left.iter().map(|entry| &entry.key).collect::<Vec<_>>().len(), 1, "{left:?}");
}

#[tokio::test]
async fn the_same_key_with_the_same_items_is_the_same_job() {
    let kept = Kept::start().await;
    let mut client = kept.client().await;
    let header = || JobHeader { key: "mine".to_owned(), ..JobHeader::default() };
    let items = [paint("a", "a boat"), paint("b", "a car")];
    let first = create(&mut client, "a", header(), &items).await.unwrap();
    assert_eq!(create(&mut client, "a", header(), &items).await.unwrap().id, first.id);
    let other = create(&mut client, "a", header(), &items[..1]).await.unwrap_err();
    assert_eq!(other.code(), tonic::Code::AlreadyExists, "{other:?}");
    // Keys are a tenant's own.
    let theirs = create(&mut client, "b", header(), &items[..1]).await.unwrap();
    assert_ne!(theirs.id, first.id);
    let without = create(&mut client, "a", JobHeader::default(), &items).await.unwrap();
    assert_ne!(without.id, first.id);

    let list = async |client: &mut kept::Client, who, page_size, page_token: &str| {
        let request = ListJobsRequest { page_size, page_token: page_token.to_owned() };
        soon(client.list(of(who, request))).await.unwrap().into_inner()
    };
    let page = list(&mut client, "a", 1, "").await;
    assert_eq!(page.jobs.iter().map(|job| &job.id).collect::<Vec<_>>(), [&without.id]);
    let rest = list(&mut client, "a", 1, &page.next_page_token).await;
    assert_eq!(rest.jobs.iter().map(|job| &job.id).collect::<Vec<_>>(), [&first.id]);
    assert_eq!(rest.next_page_token, "");
    assert_eq!(list(&mut client, "b", 0, "").await.jobs.len(), 1);
    for job in [&first, &without] {
        watch(&mut client, "a", &job.id).await;
    }
    // An ended job is found by its key, too.
    assert_eq!(create(&mut client, "a", header(), &items).await.unwrap().status(), JobStatus::Succeeded);
}

#[tokio::test]
async fn a_cancelled_job_keeps_what_is_done_and_a_deleted_one_nothing() {
    let kept = Kept::start().await;
    let mut client = kept.client().await;
    let items: Vec<JobItem> = (0..400).map(|i| paint(&format!("item-{i}"), "a boat")).collect();
    let job = create(&mut client, "a", JobHeader::default(), &items).await.unwrap();
    let mut events = soon(client.watch(of("a", WatchJobRequest { job: job.id.clone() }))).await.unwrap().into_inner();
    while soon(events.message()).await.unwrap().unwrap().succeeded == 0 {}
    let request = || of("a", DeleteJobRequest { job: job.id.clone() });
    let refused = soon(client.delete(request())).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused:?}");
    soon(client.cancel(of("a", CancelJobRequest { job: job.id.clone() }))).await.unwrap();
    let end = watch(&mut client, "a", &job.id).await.pop().unwrap();
    assert_eq!(end.status(), JobStatus::Cancelled);
    assert!(end.succeeded > 0 && end.cancelled > 0 && end.succeeded + end.cancelled == 400, "{end:?}");
    let all = results(&mut client, "a", &job.id, 0, true).await.unwrap();
    assert_eq!(all.len(), 400);
    let done = all.iter().filter(|(text, png)| (line(text)["status"] == "succeeded") && !png.is_empty()).count();
    assert_eq!(done as u64, end.succeeded);

    soon(client.delete(request())).await.unwrap();
    let gone = soon(client.get(of("a", GetJobRequest { job: job.id.clone() }))).await.unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound);
    let folder = kept.dir.path().join("jobs/jobs").join(&job.id);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while folder.exists() || !kept.store.list(&kept.keys.jobs()).await.unwrap().entries.is_empty() {
        assert!(std::time::Instant::now() < until, "it is still there: {}", folder.display());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn results_of_a_running_job_come_as_far_as_it_is_complete() {
    let kept = Kept::start().await;
    let mut client = kept.client().await;
    let items: Vec<JobItem> = (0..200).map(|i| paint(&format!("item-{i}"), "a boat")).collect();
    let job = create(&mut client, "a", JobHeader::default(), &items).await.unwrap();
    let mut events = soon(client.watch(of("a", WatchJobRequest { job: job.id.clone() }))).await.unwrap().into_inner();
    while soon(events.message()).await.unwrap().unwrap().succeeded < 20 {}
    let early = results(&mut client, "a", &job.id, 0, true).await.unwrap();
    watch(&mut client, "a", &job.id).await;
    let all = results(&mut client, "a", &job.id, 0, true).await.unwrap();
    assert_eq!(all.len(), 200);
    assert!(early.len() >= 4 && early[..] == all[..early.len()], "{}", early.len());
    let request = v1::ResultsRequest { job: job.id, first: 200, data: false };
    assert!(soon(client.results(of("a", request))).await.unwrap().into_inner().message().await.unwrap().is_none());
}
