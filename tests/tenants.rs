//! Tenants and their keys, on a real server: who is let in, what a tenant reaches, how much it may have.
#![allow(clippy::unwrap_used)]

#[path = "harness/client.rs"]
mod client;
#[path = "harness/served.rs"]
mod served;
mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use client::{Client, Events, header, paint, soon};
use janus_wire::v1::blobs_client::BlobsClient;
use janus_wire::v1::cluster_client::ClusterClient;
use janus_wire::v1::files_client::FilesClient;
use janus_wire::v1::jobs_client::JobsClient;
use janus_wire::v1::tenants_client::TenantsClient;
use janus_wire::v1::{self, *};
use served::Served;
use support::{janus, json};
use tempfile::TempDir;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

const OPERATOR: &str = "the operator's key of this test";

/// A server that asks for keys, and the folder with the operator's.
struct Guarded {
    served: Served,
    dir: TempDir,
}

impl Guarded {
    fn start() -> Self {
        Guarded::start_with(&[])
    }

    fn start_with(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (key, state) = (dir.path().join("key"), dir.path().join("state"));
        std::fs::write(&key, format!("{OPERATOR}\n")).unwrap();
        let args = ["--operator-key-file", key.to_str().unwrap(), "--state", state.to_str().unwrap()];
        Guarded { served: Served::start(&[&args[..], flags].concat()), dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `janus tenants`, as the operator.
    fn tenants(&self, args: &[&str]) -> serde_json::Value {
        let key = self.dir.path().join("key");
        let fixed = ["tenants", "--json", "--endpoint", &self.served.address, "--api-key-file", key.to_str().unwrap()];
        json(self.path(), &[&fixed[..], args].concat())
    }

    /// A new tenant's key.
    fn create(&self, args: &[&str]) -> String {
        self.tenants(&[&["create"], args].concat())["api_key"].as_str().unwrap().to_owned()
    }

    async fn client(&self) -> Client {
        client::client(self.served.channel().await)
    }
}

fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// A message with a key.
fn by<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

/// Paints to the end; the error, if there is one.
async fn paints(client: &mut Client, key: &str, request: GenerateImageRequest) -> Result<client::Answer, Status> {
    let mut events = Events::Paint(soon(client.generate_image(by(key, request))).await?.into_inner());
    let mut answer = client::Answer::default();
    while soon(events.next(&mut answer)).await? {}
    Ok(answer)
}

async fn refuses(client: &mut Client, key: &str) {
    let refused = paints(client, key, paint("a red circle")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{key:?}: {refused}");
}

#[tokio::test]
async fn a_key_lets_in_until_it_is_revoked_and_nobody_else() {
    let server = Guarded::start();
    let mut client = server.client().await;
    let ann = server.create(&["ann"]);
    assert!(ann.starts_with("janus_") && ann.len() > 40);
    paints(&mut client, &ann, paint("a red circle")).await.unwrap();
    paints(&mut client, OPERATOR, paint("a red circle")).await.unwrap();
    for wrong in ["", "janus_wrong", &ann[..ann.len() - 1], "Bearer"] {
        refuses(&mut client, wrong).await;
    }
    let refused = soon(client.describe(DescribeModelRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("API key") && refused.message().contains("JANUS_API_KEY"), "{refused}");
    // The command line says the same, and takes a key.
    let generate = ["generate", "a red circle", "--endpoint", &server.served.address, "--json"];
    let run = janus(server.path(), &generate);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("API key") && run.stderr.lines().count() == 1, "{run:?}");
    std::fs::write(server.path().join("ann"), &ann).unwrap();
    let mut with_key = generate.to_vec();
    with_key.extend(["--api-key-file", "ann", "--output", "a.png"]);
    json(server.path(), &with_key);

    // A rotated key lives for its grace, a revoked one ends at once.
    let second = server.tenants(&["rotate", "ann", "--grace", "600"])["api_key"].as_str().unwrap().to_owned();
    for key in [&ann, &second] {
        paints(&mut client, key, paint("a red circle")).await.unwrap();
    }
    let third = server.tenants(&["rotate", "ann"])["api_key"].as_str().unwrap().to_owned();
    refuses(&mut client, &second).await;
    refuses(&mut client, &ann).await;
    paints(&mut client, &third, paint("a red circle")).await.unwrap();
    server.tenants(&["revoke", "ann"]);
    refuses(&mut client, &third).await;
    let shown = server.tenants(&["list"]);
    assert_eq!(shown["tenants"][0]["revoked"], true, "{shown}");
    let told = server.tenants(&["audit"]);
    let told: Vec<_> = told["entries"].as_array().unwrap().iter().map(|e| [&e["by"], &e["verb"], &e["subject"]]).collect();
    let done = ["revoked", "rotated", "rotated", "created"];
    assert_eq!(told, done.each_ref().map(|verb| ["operator", verb, "ann"]));
    let last = server.tenants(&["audit", "--last", "1"]);
    assert_eq!((last["entries"].as_array().unwrap().len(), &last["entries"][0]["verb"]), (1, &"revoked".into()));
    assert!(last["entries"][0]["at_unix_ms"].as_u64().unwrap() > 1_700_000_000_000);
    // Keys stand nowhere; what the store has is a digest.
    for file in walk(server.path()) {
        let bytes = std::fs::read(&file).unwrap();
        for key in [&second, &third] {
            let found = bytes.windows(key.len()).any(|window| window == key.as_bytes());
            assert!(!found, "{} holds a key", file.display());
        }
    }
}

/// Metrics name tenants, and the HTTP port is for everybody.
#[tokio::test]
async fn metrics_are_for_operators_where_everybody_may_knock() {
    let server = Guarded::start_with(&["--metrics", "127.0.0.1:0"]);
    let ann = server.create(&["ann"]);
    paints(&mut server.client().await, &ann, paint("a red circle")).await.unwrap();
    let url = format!("{}/metrics", server.served.http());
    let door = http();
    let get = async |key: Option<&str>| {
        let request = key.iter().fold(door.get(&url), |request, key| request.bearer_auth(key));
        let answer = soon(request.send()).await.unwrap();
        (answer.status().as_u16(), soon(answer.text()).await.unwrap())
    };
    for (key, expected) in [(None, 401), (Some("janus_wrong"), 401), (Some(&ann[..]), 403)] {
        let (status, text) = get(key).await;
        assert!(status == expected && !text.contains("tenant=") && !text.contains("ann"), "{key:?}: {status} {text}");
    }
    let (status, text) = get(Some(OPERATOR)).await;
    assert!(status == 200 && text.contains("janus_tenant_rows_total{tenant=\"ann\"}"), "{status} {text}");
}

#[tokio::test]
async fn a_tenant_reaches_nothing_of_another_by_any_method() {
    let server = Guarded::start();
    let mut client = server.client().await;
    let (ann, bob) = (server.create(&["ann"]), server.create(&["bob"]));
    let channel = server.served.channel().await;
    let (mut jobs, mut cluster, mut tenants) =
        (JobsClient::new(channel.clone()), ClusterClient::new(channel.clone()), TenantsClient::new(channel.clone()));
    let (mut blobs, mut files) = (BlobsClient::new(channel.clone()), FilesClient::new(channel));

    // Inference: the same id is another request, a picture's digest says nothing, and nobody cancels for another.
    let png = png();
    let digest = sha256(&png);
    let mut first = GenerateImageRequest { n: 8, ..paint("a blue square") };
    first.header = Some(RequestHeader { request_id: "one".to_owned(), ..header().unwrap() });
    let mut running = soon(client.generate_image(by(&ann, first.clone()))).await.unwrap().into_inner();
    soon(running.message()).await.unwrap();
    let cancel = || CancelRequest { request_id: "one".to_owned() };
    assert_eq!(soon(client.cancel(by(&bob, cancel()))).await.unwrap_err().code(), Code::NotFound);
    let other = GenerateImageRequest { header: first.header.clone(), ..paint("a green triangle") };
    paints(&mut client, &bob, other).await.expect("bob's `one` is bob's");
    let tokenize = |image: v1::Image| TokenizeRequest { header: header(), image: Some(image) };
    soon(client.tokenize(by(&ann, tokenize(client::picture(png.clone()))))).await.unwrap();
    let named = || v1::Image { sha256: digest.clone().into(), ..v1::Image::default() };
    assert!(soon(client.tokenize(by(&ann, tokenize(named())))).await.is_ok());
    assert_eq!(soon(client.tokenize(by(&bob, tokenize(named())))).await.unwrap_err().code(), Code::NotFound);
    let mut chat = client::chat("what is this?", std::slice::from_ref(&png), 4);
    if let Some(part::Part::Image(image)) = &mut chat.messages[0].parts[0].part {
        *image = named();
    }
    assert_eq!(soon(client.chat(by(&bob, chat))).await.unwrap_err().code(), Code::NotFound);
    let init = GenerateImageRequest { init_image: Some(named()), keep_rows: 2, ..paint("a red circle") };
    assert_eq!(paints(&mut client, &bob, init).await.unwrap_err().code(), Code::NotFound);
    soon(client.cancel(by(&ann, cancel()))).await.unwrap();

    // Jobs: ids and blobs of another are not there.
    let put = |bytes: Vec<u8>| tokio_stream::iter([PutBlobRequest { size: bytes.len() as u64, data: bytes.into() }]);
    soon(jobs.put_blob(by(&ann, put(png.clone())))).await.unwrap();
    let ask = |image: Vec<u8>| {
        let work = job_item::Work::Ask(AskItem {
            question: "what is this?".to_owned(),
            images: vec![image.into()],
            max_tokens: Some(4),
            ..AskItem::default()
        });
        let items = JobItems { items: vec![JobItem { id: "a".to_owned(), work: Some(work) }] };
        let parts = [create_job_request::Part::Header(JobHeader::default()), create_job_request::Part::Items(items)];
        tokio_stream::iter(parts.map(|part| CreateJobRequest { part: Some(part) }))
    };
    let refused = soon(jobs.create(by(&bob, ask(digest.clone())))).await.unwrap_err();
    assert!(matches!(refused.code(), Code::NotFound | Code::InvalidArgument), "{refused}");
    let file = || CreateFileRequest { id: "f".to_owned(), sha256: digest.clone().into(), metadata: Default::default() };
    soon(files.create(by(&ann, file()))).await.unwrap();
    assert_eq!(soon(files.create(by(&bob, file()))).await.unwrap_err().code(), Code::InvalidArgument);
    let f = || "f".to_owned();
    let codes = [
        soon(first_of(blobs.get(by(&bob, GetBlobRequest { sha256: digest.clone().into() })))).await,
        soon(blobs.delete(by(&bob, DeleteBlobRequest { sha256: digest.clone().into() }))).await.map(drop),
        soon(files.get(by(&bob, GetFileRequest { id: f() }))).await.map(drop),
        soon(files.delete(by(&bob, DeleteFileRequest { id: f() }))).await.map(drop),
    ];
    for (i, code) in codes.into_iter().enumerate() {
        assert_eq!(code.unwrap_err().code(), Code::NotFound, "method {i}");
    }
    assert!(soon(files.list(by(&bob, ListFilesRequest::default()))).await.unwrap().into_inner().files.is_empty());
    assert_eq!(soon(files.list(by(&ann, ListFilesRequest::default()))).await.unwrap().into_inner().files[0].id, "f");
    let job = soon(jobs.create(by(&ann, ask(digest)))).await.unwrap().into_inner().id;
    let id = || job.clone();
    let codes = [
        soon(jobs.get(by(&bob, GetJobRequest { job: id() }))).await.map(drop),
        soon(jobs.cancel(by(&bob, CancelJobRequest { job: id() }))).await.map(drop),
        soon(jobs.delete(by(&bob, DeleteJobRequest { job: id() }))).await.map(drop),
        soon(first_of(jobs.watch(by(&bob, WatchJobRequest { job: id() })))).await,
        soon(first_of(jobs.results(by(&bob, ResultsRequest { job: id(), first: 0, data: true })))).await,
    ];
    for (i, code) in codes.into_iter().enumerate() {
        assert_eq!(code.unwrap_err().code(), Code::NotFound, "method {i}");
    }
    let list = |key: &str| by(key, ListJobsRequest::default());
    assert!(soon(jobs.list(list(&bob))).await.unwrap().into_inner().jobs.is_empty());
    assert_eq!(soon(jobs.list(list(&ann))).await.unwrap().into_inner().jobs.len(), 1);

    // What operators do is for operators.
    let denied = [
        soon(cluster.drain(by(&bob, DrainRequest { node: "local".to_owned() }))).await.map(drop),
        soon(tenants.create(by(&bob, CreateTenantRequest::default()))).await.map(drop),
        soon(tenants.update(by(&bob, UpdateTenantRequest::default()))).await.map(drop),
        soon(tenants.list(by(&bob, ListTenantsRequest {}))).await.map(drop),
        soon(tenants.rotate(by(&bob, RotateTenantRequest { name: "ann".to_owned(), grace_seconds: 0 }))).await.map(drop),
        soon(tenants.revoke(by(&bob, RevokeTenantRequest { name: "ann".to_owned() }))).await.map(drop),
        soon(tenants.usage(by(&bob, TenantUsageRequest::default()))).await.map(drop),
        soon(tenants.audit(by(&bob, AuditRequest::default()))).await.map(drop),
    ];
    for (i, code) in denied.into_iter().enumerate() {
        assert_eq!(code.unwrap_err().code(), Code::PermissionDenied, "method {i}");
    }
    // What is kept is counted for the one who sent it.
    eventually(async || server.tenants(&["usage", "ann"])["tenants"][0]["bytes"].as_u64() >= Some(png.len() as u64)).await;
    let bob = server.tenants(&["usage", "bob"]);
    assert_eq!(bob["tenants"][0]["bytes"], 0, "{bob}");
}

/// The error of a stream, or of its first message.
async fn first_of<T>(
    call: impl Future<Output = Result<tonic::Response<tonic::Streaming<T>>, Status>>,
) -> Result<(), Status> {
    call.await?.into_inner().message().await.map(drop)
}

#[tokio::test]
async fn quotas_are_kept_and_say_when_to_come_back() {
    let server = Guarded::start();
    let mut client = server.client().await;
    let one = server.create(&["one", "--in-flight", "1"]);
    let few = server.create(&["few", "--pictures-per-day", "3"]);
    let mut running =
        soon(client.generate_image(by(&one, GenerateImageRequest { n: 32, ..paint("a blue square") }))).await.unwrap();
    soon(running.get_mut().message()).await.unwrap();
    let refused = paints(&mut client, &one, paint("a red circle")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("1 requests in flight"), "{refused}");
    assert!(refused.get_error_details().retry_info().unwrap().retry_delay.unwrap() >= Duration::from_millis(500));
    drop(running);
    eventually(async || paints(&mut client, &one, paint("a red circle")).await.is_ok()).await;

    paints(&mut client, &few, GenerateImageRequest { n: 3, ..paint("a red circle") }).await.unwrap();
    let refused = paints(&mut client, &few, paint("a red circle")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("3 of 3 pictures a day"), "{refused}");
    server.tenants(&["update", "few", "--pictures-per-day", "4"]);
    paints(&mut client, &few, paint("a red circle")).await.unwrap();

    // Usage is counted by rows: 3 + 1 pictures of 64 ids and their prompts, two rows each.
    eventually(async || {
        let used = server.tenants(&["usage", "few"]);
        let rows = used["tenants"][0]["rows"].as_u64().unwrap();
        used["tenants"][0]["pictures"] == 4 && (4 * 2 * 64..4 * 2 * 128).contains(&rows)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_floods_do_not_starve_somebody_polite() {
    let server = Guarded::start();
    let keys = ["flood-a", "flood-b", "polite"].map(|name| server.create(&[name]));
    let over = Arc::new(AtomicBool::new(false));
    let mut floods = tokio::task::JoinSet::new();
    for caller in 0..64 {
        let (mut client, key, over) = (server.client().await, keys[caller % 2].clone(), over.clone());
        floods.spawn(async move {
            let mut painted = 0;
            while !over.load(Ordering::Relaxed) {
                match paints(&mut client, &key, GenerateImageRequest { n: 4, ..paint("a blue square") }).await {
                    Ok(answer) => painted += answer.tokens.len(),
                    Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status}"),
                }
            }
            painted
        });
    }
    let mut client = server.client().await;
    let mut waits = Vec::new();
    for _ in 0..10 {
        let asked = Instant::now();
        let mut events = soon(client.generate_image(by(&keys[2], paint("a red circle")))).await.unwrap().into_inner();
        loop {
            match soon(events.message()).await.unwrap().unwrap().event {
                Some(generate_image_event::Event::Started(_)) => waits.push(asked.elapsed()),
                Some(generate_image_event::Event::Done(_)) => break,
                _ => {}
            }
        }
    }
    over.store(true, Ordering::Relaxed);
    drop(server);
    floods.abort_all();
    waits.sort();
    let p99 = waits[waits.len() - 1];
    println!(
        "queueing beside 64 callers of two floods: median {:?}, worst of {} {p99:?}",
        waits[waits.len() / 2],
        waits.len()
    );
    // It is milliseconds; a thousand pictures of the floods wait before whoever comes last.
    assert!(p99 < Duration::from_secs(10), "{p99:?}");
}

#[test]
fn a_port_for_others_asks_for_keys_or_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let certs = json(dir.path(), &["certs", "--out", "certs", "--json"]);
    assert!(certs.is_object());
    let (cert, key) = pair(&dir.path().join("certs"));
    let tls = ["serve", "--listen", "0.0.0.0:0", "--tls-ca", "certs/ca.pem", "--tls-cert", &cert, "--tls-key", &key];
    let run = janus(dir.path(), &tls);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("nobody would need a key") && run.stderr.contains("--operator-key-file"), "{run:?}");
    std::fs::write(dir.path().join("short"), "short").unwrap();
    let run = janus(dir.path(), &["serve", "--operator-key-file", "short"]);
    assert!(run.code == Some(2) && run.stderr.contains("at least 16"), "{run:?}");
    let run = janus(dir.path(), &["serve", "--operator-key-file", "missing"]);
    assert!(run.code == Some(2) && run.stderr.contains("missing"), "{run:?}");
}

/// Some certificate and its key below a folder of `janus certs`.
fn pair(dir: &Path) -> (String, String) {
    let files: Vec<String> = walk(dir).into_iter().map(|file| file.to_str().unwrap().to_owned()).collect();
    let key = files.iter().find(|file| file.ends_with(".key") && !file.ends_with("ca.key")).unwrap();
    (key.replace(".key", ".pem"), key.clone())
}

/// Tries again until it holds.
async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < until, "it never happened");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).filter(|p| !p.ends_with("ann")).collect()
}

fn png() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([x as u8 * 8, y as u8 * 8, 90]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).to_vec()
}
