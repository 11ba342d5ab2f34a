//! A cluster in this process that keeps jobs, for several tenants, with its store and its folder at hand.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use janus_cluster::{Keys, MemoryStore, Store, StoreConfig};
use janus_coordinator::jobs::{Jobs, Objects, Options, Setup, next_epoch};
use janus_coordinator::{Caller, Logs};
use janus_wire::Security;
use janus_wire::v1::jobs_client::JobsClient;
use janus_wire::v1::{self, *};
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::cluster::Cluster;
use crate::stage::{identity, serve, soon};

pub type Client = JobsClient<Channel>;

/// A cluster with jobs; it ends when this is dropped.
pub struct Kept {
    pub cluster: Cluster,
    pub jobs: Jobs,
    pub store: Arc<dyn Store>,
    pub keys: Keys,
    pub dir: TempDir,
    pub address: String,
    _over: DropGuard,
}

/// In place of credentials: whoever says a name is believed.
fn tenant(mut request: Request<()>) -> Result<Request<()>, Status> {
    let name = request.metadata().get("tenant").map_or("local", |name| name.to_str().unwrap()).to_owned();
    request.extensions_mut().insert(Caller { tenant: name.into(), operator: false });
    Ok(request)
}

impl Kept {
    pub async fn start() -> Kept {
        let cluster = Cluster::start(64).await;
        let dir = tempfile::tempdir().unwrap();
        let store = StoreConfig::Memory(MemoryStore::new()).connect().await.unwrap();
        let keys = Keys::new("test").unwrap();
        let outputs = dir.path().join("outputs");
        let roots = {
            let outputs = outputs.clone();
            move |tenant: &str| vec![url(&outputs.join(tenant))]
        };
        let over = CancellationToken::new();
        let setup = Setup {
            store: store.clone(),
            keys: keys.clone(),
            cluster: "test".to_owned(),
            epoch: next_epoch(store.as_ref(), &keys).await.unwrap(),
            objects: Objects::open(&url(&dir.path().join("jobs")), &Vec::new()).unwrap(),
            options: Options { window: 8, segment: 4, keep: None, roots: Arc::new(roots), environment: Vec::new() },
            engine: cluster.coordinator.units(Logs::default()),
            model: identity().model,
        };
        let jobs = Jobs::start(setup, over.clone()).await.unwrap();
        let service = InterceptedService::new(jobs.clone().server(), tenant);
        let address = serve(|server| server.add_service(service), &over).await;
        Kept { cluster, jobs, store, keys, dir, address, _over: over.drop_guard() }
    }

    pub async fn client(&self) -> Client {
        client(&self.address).await
    }

    /// The folder of a job's results.
    pub fn output(&self, job: &str) -> std::path::PathBuf {
        self.dir.path().join("jobs/jobs").join(job).join("output")
    }
}

pub fn url(path: &Path) -> reqwest::Url {
    reqwest::Url::from_directory_path(path).unwrap()
}

pub async fn client(address: &str) -> Client {
    JobsClient::new(janus_wire::connect(address, &Security::Plain).await.unwrap()).max_decoding_message_size(16 << 20)
}

/// A call of a tenant.
pub fn of<T>(tenant: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("tenant", tenant.parse().unwrap());
    request
}

pub fn paint(id: &str, prompt: &str) -> JobItem {
    let work = PaintItem { prompt: prompt.to_owned(), ..PaintItem::default() };
    JobItem { id: id.to_owned(), work: Some(job_item::Work::Paint(work)) }
}

pub fn ask(id: &str, question: &str, images: &[[u8; 32]]) -> JobItem {
    let images = images.iter().map(|digest| Bytes::from(digest.to_vec())).collect();
    let work = AskItem { question: question.to_owned(), images, max_tokens: Some(6), ..AskItem::default() };
    JobItem { id: id.to_owned(), work: Some(job_item::Work::Ask(work)) }
}

pub fn messages(header: JobHeader, items: &[JobItem]) -> Vec<CreateJobRequest> {
    let part = |part| CreateJobRequest { part: Some(part) };
    let items = items.chunks(3).map(|items| part(create_job_request::Part::Items(JobItems { items: items.to_vec() })));
    std::iter::once(part(create_job_request::Part::Header(header))).chain(items).collect()
}

pub async fn create(client: &mut Client, who: &'static str, header: JobHeader, items: &[JobItem]) -> Result<Job, Status> {
    soon(client.create(of(who, tokio_stream::iter(messages(header, items))))).await.map(tonic::Response::into_inner)
}

pub async fn put(client: &mut Client, who: &'static str, data: &[u8]) -> Result<[u8; 32], Status> {
    let mut messages = vec![PutBlobRequest { size: data.len() as u64, data: Bytes::new() }];
    messages.extend(data.chunks(1000).map(|data| PutBlobRequest { size: 0, data: data.to_vec().into() }));
    let answer = soon(client.put_blob(of(who, tokio_stream::iter(messages)))).await?;
    Ok(answer.into_inner().sha256.as_ref().try_into().unwrap())
}

/// Follows a job to its end; everything that was heard of it.
pub async fn watch(client: &mut Client, who: &'static str, job: &str) -> Vec<Job> {
    let request = of(who, WatchJobRequest { job: job.to_owned() });
    let mut events = soon(client.watch(request)).await.unwrap().into_inner();
    let mut heard = Vec::new();
    while let Some(job) = tokio::time::timeout(Duration::from_secs(120), events.message()).await.unwrap().unwrap() {
        heard.push(job);
    }
    heard
}

/// A job's results from `first` on: lines, and the files that came with them.
pub async fn results(
    client: &mut Client,
    who: &'static str,
    job: &str,
    first: u64,
    data: bool,
) -> Result<Vec<(String, Vec<u8>)>, Status> {
    let request = of(who, v1::ResultsRequest { job: job.to_owned(), first, data });
    let mut events = soon(client.results(request)).await?.into_inner();
    let (mut all, mut line, mut bytes) = (Vec::new(), String::new(), Vec::new());
    while let Some(message) = soon(events.message()).await? {
        line.push_str(&message.manifest_line);
        bytes.extend_from_slice(&message.data);
        if message.end {
            all.push((std::mem::take(&mut line), std::mem::take(&mut bytes)));
        }
    }
    assert!(line.is_empty());
    Ok(all)
}
