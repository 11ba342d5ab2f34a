//! What a caller of jobs cannot do: reach what is another's, write elsewhere, ask for what cannot be.

use janus_wire::v1::*;
use tonic::{Code, Status};

use crate::kept::{Client, Kept, ask, create, messages, of, paint, put, results, watch};
use crate::stage::soon;

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, says: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{says}: {status:?}");
    assert!(status.message().contains(says), "{says}: {status:?}");
}

#[tokio::test]
async fn another_tenants_jobs_results_and_blobs_are_not_found() {
    let kept = Kept::start().await;
    let mut client = kept.client().await;
    let blob = put(&mut client, "a", b"a file").await.unwrap();
    let job = create(&mut client, "a", JobHeader::default(), &[paint("x", "a boat")]).await.unwrap().id;
    watch(&mut client, "a", &job).await;
    let id = || job.clone();
    for who in ["b", "local", "A"] {
        refused(soon(client.get(of(who, GetJobRequest { job: id() }))).await, Code::NotFound, &job);
        refused(soon(client.cancel(of(who, CancelJobRequest { job: id() }))).await, Code::NotFound, &job);
        refused(soon(client.delete(of(who, DeleteJobRequest { job: id() }))).await, Code::NotFound, &job);
        refused(soon(client.watch(of(who, WatchJobRequest { job: id() }))).await, Code::NotFound, &job);
        refused(results(&mut client, who, &job, 0, true).await, Code::NotFound, &job);
        let listed = soon(client.list(of(who, ListJobsRequest::default()))).await.unwrap().into_inner();
        assert_eq!(listed.jobs, []);
        let theirs = create(&mut client, who, JobHeader::default(), &[ask("x", "What?", &[blob])]).await;
        refused(theirs, Code::InvalidArgument, "there is no blob");
    }
    // Nobody's attempts changed anything.
    assert_eq!(results(&mut client, "a", &job, 0, true).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_tenant_names_stays_below_its_root() {
    let kept = Kept::start().await;
    let mut client = kept.client().await;
    let root = kept.dir.path().join("outputs/a");
    let with = |output: String| JobHeader { output, ..JobHeader::default() };
    let items = [paint("x", "a boat")];
    let outside = kept.dir.path().join("outputs/b/run");
    for output in [
        format!("file://{}", outside.display()),
        format!("file://{}/../b/run", root.display()),
        format!("file://{}", root.display()),
        "file:///etc/janus".to_owned(),
        "s3://bucket/run".to_owned(),
        root.join("run").display().to_string(),
    ] {
        refused(create(&mut client, "a", with(output.clone()), &items).await, Code::InvalidArgument, &output);
    }
    assert!(!outside.exists());
    let run = format!("file://{}", root.join("run").display());
    let job = create(&mut client, "a", with(run.clone()), &items).await.unwrap();
    assert_eq!(watch(&mut client, "a", &job.id).await.pop().unwrap().status(), JobStatus::Succeeded);
    assert!(root.join("run/manifest.jsonl").is_file() && root.join("run/pictures/x-0.png").is_file());
    // Results are written once.
    refused(create(&mut client, "a", with(run), &items).await, Code::FailedPrecondition, "results of another job");
    // Somebody else's file is not taken for a result, and not replaced.
    let taken = root.join("taken/pictures");
    std::fs::create_dir_all(&taken).unwrap();
    std::fs::write(taken.join("x-0.png"), "precious").unwrap();
    let job = create(&mut client, "a", with(format!("file://{}", root.join("taken").display())), &items).await.unwrap();
    let end = watch(&mut client, "a", &job.id).await.pop().unwrap();
    assert_eq!(end.status(), JobStatus::Failed);
    assert!(end.error.contains("x-0.png is there already"), "{end:?}");
    assert_eq!(std::fs::read(taken.join("x-0.png")).unwrap(), b"precious");
    assert!(!root.join("taken/manifest.jsonl").exists());
}

#[tokio::test]
async fn a_job_that_cannot_be_is_refused_and_leaves_nothing() {
    let kept = Kept::start().await;
    let mut client = kept.client().await;
    let header = |change: fn(&mut JobHeader)| {
        let mut header = JobHeader::default();
        change(&mut header);
        header
    };
    let good = || vec![paint("a", "a boat")];
    let many: Vec<JobItem> = (0..9).map(|i| paint(&format!("{}", i % 8), "a boat")).collect();
    for (header, items, says) in [
        (header(|h| h.priority = 9), good(), "header.priority: "),
        (header(|h| h.key = "x".repeat(1025)), good(), "header.key: "),
        (header(|h| h.key = "a\nb".into()), good(), "header.key: "),
        (header(|h| h.output = "x".repeat(1025)), good(), "header.output: "),
        (header(|h| drop(h.metadata.insert("a".into(), "x".repeat(5000)))), good(), "header.metadata: "),
        (JobHeader::default(), vec![], "items: "),
        (JobHeader::default(), vec![paint("a/b", "x")], "items[0].id: "),
        (JobHeader::default(), vec![paint("a", "x"), paint("", "x")], "items[1].id: "),
        (JobHeader::default(), many, "items[8].id: "),
        (JobHeader::default(), vec![JobItem { id: "a".into(), work: None }], "items[0].work: "),
        (JobHeader::default(), vec![ask("a", "What?", &[[7; 32]])], "items[0].images[0]: "),
    ] {
        refused(create(&mut client, "a", header, &items).await, Code::InvalidArgument, says);
    }
    let mut twice = messages(JobHeader::default(), &good());
    twice.push(twice[0].clone());
    refused(soon(client.create(of("a", tokio_stream::iter(twice)))).await, Code::InvalidArgument, "part: ");
    let headless = messages(JobHeader::default(), &good()).split_off(1);
    refused(soon(client.create(of("a", tokio_stream::iter(headless)))).await, Code::InvalidArgument, "header: ");
    assert_eq!(kept.store.list(&kept.keys.jobs()).await.unwrap().entries, []);
    let folder = kept.dir.path().join("jobs/jobs");
    assert!(!folder.exists() || std::fs::read_dir(folder).unwrap().count() == 0);
}

#[tokio::test]
async fn a_blob_is_what_was_announced() {
    let kept = Kept::start().await;
    let mut client: Client = kept.client().await;
    let send = |size: u64, data: &[&'static [u8]]| {
        let mut messages = vec![PutBlobRequest { size, data: data[0].into() }];
        messages.extend(data[1..].iter().map(|data| PutBlobRequest { size: 0, data: (*data).into() }));
        of("a", tokio_stream::iter(messages))
    };
    refused(soon(client.put_blob(send(0, &[b""]))).await, Code::InvalidArgument, "size: ");
    refused(soon(client.put_blob(send((64 << 20) + 1, &[b""]))).await, Code::InvalidArgument, "size: ");
    refused(soon(client.put_blob(send(4, &[b"abc"]))).await, Code::InvalidArgument, "1 of 4 bytes are missing");
    refused(soon(client.put_blob(send(4, &[b"abc", b"de"]))).await, Code::InvalidArgument, "more than the 4 bytes");
    let nothing = of("a", tokio_stream::iter(Vec::<PutBlobRequest>::new()));
    refused(soon(client.put_blob(nothing)).await, Code::InvalidArgument, "size: ");
    let folder = kept.dir.path().join("jobs/blobs/a");
    assert!(!folder.exists() || std::fs::read_dir(&folder).unwrap().count() == 0);
    let first = soon(client.put_blob(send(5, &[b"abc", b"", b"de"]))).await.unwrap().into_inner().sha256;
    let again = soon(client.put_blob(send(5, &[b"abcde"]))).await.unwrap().into_inner().sha256;
    assert_eq!(first, again);
    assert_eq!(std::fs::read(folder.join(crate::hex(&first))).unwrap(), b"abcde");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1);
}
