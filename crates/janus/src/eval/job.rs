//! A benchmark at an endpoint is a job there: it goes on while nobody is connected, makes room for those who wait, and is found
//! again by whoever runs the same command once more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use janus_wire::v1::{self, Job, JobItem, JobStatus, create_job_request, job_item};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::args::Compute;
use crate::credential::signed;
use crate::failure::{Failure, Outcome};
use crate::jobs::client::Client;
use crate::jobs::items::Blob;
use crate::jobs::{download, fresh_key, put_blob, watch};
use crate::{output, session};

/// Items of one message.
const BATCH: usize = 256;

/// Which job does the work. It is written before the job is made, and gone when its results are here.
#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    /// Digest of what is to be done in all.
    work: String,
    /// What the job's key begins with.
    key: String,
    /// The job, once it is made.
    job: Option<String>,
}

/// What a job is made of.
pub(crate) struct Errand<'a> {
    /// Where it is remembered which job it is.
    pub(crate) memory: &'a Path,
    /// Digest of what is to be done in all: another benchmark's job is none of ours.
    pub(crate) work: &'a str,
    /// What is missing.
    pub(crate) items: Vec<JobItem>,
    /// The picture of each item that asks.
    pub(crate) pictures: Vec<PathBuf>,
}

/// One result: the item's id, the number of its picture, its answer, its picture.
pub(crate) struct Made<'a> {
    pub(crate) id: &'a str,
    pub(crate) index: usize,
    pub(crate) text: Option<&'a str>,
    pub(crate) png: &'a [u8],
}

/// A client of the endpoint's jobs; `None` without an endpoint, and where no jobs are kept.
pub(crate) fn client(compute: &Compute) -> Outcome<Option<Client>> {
    let Some(endpoint) = &compute.endpoint else { return Ok(None) };
    let mut client = Client::new(endpoint, compute.tls.security()?)?;
    let kept = session::runtime()?.block_on(client.call(async |mut jobs| {
        let request = v1::ListJobsRequest { page_size: 1, page_token: String::new() };
        match jobs.list(signed(request)).await {
            Ok(_) => Ok(true),
            Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::Unimplemented) => Ok(false),
            Err(status) => Err(status),
        }
    }))?;
    // Connections belong to the runtime that made them.
    kept.then(|| Client::new(endpoint, compute.tls.security()?)).transpose()
}

/// Has a job do it, or takes what the job did that an earlier run began. `take` hears of every result that succeeded. False if
/// there may be more to do than that earlier job was made of.
pub(crate) fn run(client: &mut Client, errand: Errand<'_>, take: impl FnMut(Made<'_>) -> Outcome) -> Outcome<bool> {
    session::runtime()?.block_on(async {
        let (job, fresh) = match begun(client, &errand).await? {
            Some(job) => (job, false),
            None => (make(client, &errand).await?, true),
        };
        eprintln!("janus: job {}", job.id);
        let ended = watch(client, &job.id, false).await?;
        let failed = results(client, &job.id, take).await?;
        std::fs::remove_file(errand.memory).map_err(|e| forgotten(errand.memory, &e))?;
        match (ended.status(), failed) {
            (JobStatus::Failed, _) => Err(Failure::Broken(format!("job {} failed: {}", job.id, ended.error))),
            (JobStatus::Cancelled, _) => Err(Failure::Broken(format!("job {} was cancelled; run this again", job.id))),
            (_, Some((id, error))) => {
                let Job { id: job, failed, total, .. } = &ended;
                let text = format!("{failed} of {total} items of job {job} failed, `{id}` first: {error}");
                Err(Failure::Broken(text))
            }
            _ => Ok(fresh),
        }
    })
}

fn forgotten(path: &Path, error: &std::io::Error) -> Failure {
    Failure::mistake(format!("{}: cannot be written: {error}", path.display()))
}

fn remember(path: &Path, memory: &Memory) -> Outcome {
    let text = serde_json::to_vec(memory).map_err(|error| Failure::Broken(error.to_string()))?;
    output::write_whole(path, &text)
}

fn remembered(errand: &Errand<'_>) -> Option<Memory> {
    let memory: Memory = serde_json::from_slice(&std::fs::read(errand.memory).ok()?).ok()?;
    (memory.work == errand.work).then_some(memory)
}

/// The job that an earlier run made.
async fn begun(client: &mut Client, errand: &Errand<'_>) -> Outcome<Option<Job>> {
    let Some(Memory { job: Some(job), .. }) = remembered(errand) else { return Ok(None) };
    client
        .call(async |mut jobs| match jobs.get(signed(v1::GetJobRequest { job: job.clone() })).await {
            Ok(job) => Ok(Some(job.into_inner())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        })
        .await
}

async fn make(client: &mut Client, errand: &Errand<'_>) -> Outcome<Job> {
    let items = with_pictures(client, errand).await?;
    // A run that ended between the two writes made this job already, if it made any.
    let key = match remembered(errand) {
        Some(Memory { key, job: None, .. }) => key,
        _ => fresh_key(),
    };
    let mut memory = Memory { work: errand.work.to_owned(), key, job: None };
    remember(errand.memory, &memory)?;
    let ids = items.iter().fold(Sha256::new(), |hash, item| hash.chain_update(&item.id).chain_update("\n"));
    let key = format!("{}-{}", memory.key, janus_wire::hello::hex(&ids.finalize()));
    let part = |part| v1::CreateJobRequest { part: Some(part) };
    let header = v1::JobHeader { key, priority: v1::Priority::Batch.into(), ..v1::JobHeader::default() };
    let mut messages = vec![part(create_job_request::Part::Header(header))];
    let batches = items.chunks(BATCH).map(|items| v1::JobItems { items: items.to_vec() });
    messages.extend(batches.map(|items| part(create_job_request::Part::Items(items))));
    let job =
        client.call(async |mut jobs| jobs.create(signed(tokio_stream::iter(messages.clone()))).await).await?.into_inner();
    memory.job = Some(job.id.clone());
    remember(errand.memory, &memory)?;
    Ok(job)
}

/// The items, once the pictures that they name are where the job finds them.
async fn with_pictures(client: &mut Client, errand: &Errand<'_>) -> Outcome<Vec<JobItem>> {
    let (mut items, mut sent) = (errand.items.clone(), BTreeMap::<&Path, [u8; 32]>::new());
    for (item, path) in items.iter_mut().zip(&errand.pictures) {
        let digest = match sent.get(path.as_path()) {
            Some(digest) => *digest,
            None => {
                let blob = Blob { path: path.clone(), sha256: Sha256::digest(output::read_picture(path)?).into() };
                put_blob(client, &blob).await?;
                sent.insert(path, blob.sha256);
                blob.sha256
            }
        };
        if let Some(job_item::Work::Ask(ask)) = &mut item.work {
            ask.images = vec![digest.to_vec().into()];
        }
    }
    Ok(items)
}

/// All results of a job that has ended; the first item that failed, and why.
async fn results(
    client: &mut Client,
    job: &str,
    mut take: impl FnMut(Made<'_>) -> Outcome,
) -> Outcome<Option<(String, String)>> {
    let (mut at, mut failed) = (0, None);
    loop {
        let whole = download::fetch(client, job, &mut at, true, |line, png| {
            let bad = || Failure::Broken(format!("the server sent a result that cannot be read: {line}"));
            let said: Value = serde_json::from_str(line).map_err(|_| bad())?;
            let id = said["id"].as_str().ok_or_else(bad)?;
            if said["status"] != "succeeded" {
                let why = said["error"].as_str().unwrap_or("it was not done").to_owned();
                failed.get_or_insert((id.to_owned(), why));
                return Ok(());
            }
            let index = said["index"].as_u64().ok_or_else(bad)? as usize;
            take(Made { id, index, text: said["text"].as_str(), png })
        });
        if whole.await? {
            return Ok(failed);
        }
    }
}
