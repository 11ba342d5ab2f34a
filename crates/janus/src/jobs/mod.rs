//! `janus jobs`: work that nobody waits for, and what callers do with it.

pub(crate) mod client;
pub(crate) mod download;
pub(crate) mod items;
pub(crate) mod kept;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use janus_model::{Checkpoint, KvDtype, WeightFormat};
use janus_wire::Security;
use janus_wire::v1::{self, Job, JobStatus, create_job_request};
use reqwest::Url;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::args::{Deed, Jobs, JobsList as List, KeepJobs, Submit, Urgency};
use crate::credential::signed;
use crate::failure::{Failure, Outcome};
use crate::local::{Local, Needs, Options};
use crate::{checkpoint, output, session};
use client::Client;
use items::{Items, Survey};

/// Items of one message.
const BATCH: usize = 256;
/// Bytes of items after which a message is sent.
const BATCH_BYTES: usize = 1 << 20;
/// Bytes of a file in one message.
const PIECE: usize = 1 << 20;
/// Messages that are read ahead.
const AHEAD: usize = 4;

/// What `submit` answers.
#[derive(Serialize)]
struct Submitted<'a> {
    job: &'a str,
}

/// What `get` answers.
#[derive(Serialize)]
struct Shown<'a> {
    job: &'a str,
    status: &'static str,
    total: u64,
    succeeded: u64,
    failed: u64,
    cancelled: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

impl<'a> From<&'a Job> for Shown<'a> {
    fn from(job: &'a Job) -> Self {
        let Job { id, total, succeeded, failed, cancelled, error, .. } = job;
        Shown {
            job: id,
            status: status(job),
            total: *total,
            succeeded: *succeeded,
            failed: *failed,
            cancelled: *cancelled,
            error,
        }
    }
}

fn status(job: &Job) -> &'static str {
    match job.status() {
        JobStatus::Unspecified => "unknown",
        JobStatus::Queued => "queued",
        JobStatus::Running => "running",
        JobStatus::Cancelling => "cancelling",
        JobStatus::Succeeded => "succeeded",
        JobStatus::Failed => "failed",
        JobStatus::Cancelled => "cancelled",
    }
}

/// Whether nothing more happens to a job.
fn has_ended(job: &Job) -> bool {
    matches!(job.status(), JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled)
}

pub(crate) fn run(args: Jobs) -> Outcome {
    let runtime = session::runtime()?;
    match args.deed {
        Deed::Submit(args) => submit(args),
        Deed::List(args) => runtime.block_on(list(args)),
        Deed::Get(args) => runtime.block_on(async {
            let job = get(&mut args.server.client()?, &args.job).await?;
            output::print_json(&Shown::from(&job))
        }),
        Deed::Watch(args) => runtime.block_on(async {
            let mut client = args.server.client()?;
            let job = watch(&mut client, &args.job, args.server.json).await?;
            if !args.server.json {
                output::print_json(&Shown::from(&job))?;
            }
            verdict(&job)
        }),
        Deed::Cancel(args) => runtime.block_on(async {
            let request = v1::CancelJobRequest { job: args.job.clone() };
            let mut client = args.server.client()?;
            let job = client.call(async |mut jobs| jobs.cancel(signed(request.clone())).await).await?.into_inner();
            output::print_json(&Shown::from(&job))
        }),
        Deed::Delete(args) => runtime.block_on(async {
            let request = v1::DeleteJobRequest { job: args.job.clone() };
            let mut client = args.server.client()?;
            client.call(async |mut jobs| jobs.delete(signed(request.clone())).await).await?;
            output::print_json(&Submitted { job: &args.job })
        }),
        Deed::Results(args) => runtime.block_on(async {
            let mut client = args.server.client()?;
            match &args.out {
                None => download::print(&mut client, &args.job, args.first).await,
                Some(dir) => {
                    check_folder(dir)?;
                    let job = get(&mut client, &args.job).await?;
                    download::into(&mut client, &job, dir).await?;
                    output::print_json(&Shown::from(&job))
                }
            }
        }),
    }
}

async fn get(client: &mut Client, id: &str) -> Outcome<Job> {
    let request = v1::GetJobRequest { job: id.to_owned() };
    Ok(client.call(async |mut jobs| jobs.get(signed(request.clone())).await).await?.into_inner())
}

async fn list(args: List) -> Outcome {
    let mut client = args.server.client()?;
    let (mut jobs, mut page_token) = (Vec::new(), String::new());
    while jobs.len() < args.limit {
        let page_size = (args.limit - jobs.len()).min(1000) as u32;
        let request = v1::ListJobsRequest { page_size, page_token: page_token.clone() };
        let page = client.call(async |mut jobs| jobs.list(signed(request.clone())).await).await?.into_inner();
        jobs.extend(page.jobs);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if args.server.json {
        #[derive(Serialize)]
        struct All<'a> {
            jobs: Vec<Shown<'a>>,
        }
        return output::print_json(&All { jobs: jobs.iter().map(Shown::from).collect() });
    }
    for job in &jobs {
        let (status, done) = (status(job), job.succeeded + job.failed + job.cancelled);
        let failed = if job.failed > 0 { format!(", {} failed", job.failed) } else { String::new() };
        output::print_line(&format!("{}  {status:<10}  {done}/{}{failed}", job.id, job.total));
    }
    Ok(())
}

/// A job that failed or was cancelled is no success.
fn verdict(job: &Job) -> Outcome {
    if job.failed > 0 {
        eprintln!("janus: {} of {} items failed; the manifest says why", job.failed, job.total);
    }
    match job.status() {
        JobStatus::Failed => Err(Failure::Broken(format!("job {} failed: {}", job.id, job.error))),
        JobStatus::Cancelled => Err(Failure::Broken(format!("job {} was cancelled", job.id))),
        _ => Ok(()),
    }
}

/// Follows a job to its end with a bar, or with a line of JSON for every change.
pub(crate) async fn watch(client: &mut Client, id: &str, json: bool) -> Outcome<Job> {
    let bar = bar();
    let mut broken = Ok(());
    let watched = client.follow(id, |job| {
        if json {
            broken = output::print_json(&Shown::from(job));
        }
        bar.set_length(job.total);
        bar.set_position(job.succeeded + job.failed + job.cancelled);
        bar.set_message(status(job));
    });
    let job = watched.await?;
    bar.finish_and_clear();
    broken?;
    Ok(job)
}

/// A bar with rate and time left; hidden unless stderr is a terminal.
fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:32}] {pos}/{len}  {per_sec}  {eta} left") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// Where results go.
enum Out {
    /// The server's own folder.
    Kept,
    /// A folder the server writes to.
    Url(String),
    /// A folder here.
    Dir(PathBuf),
}

fn submit(args: Submit) -> Outcome {
    let out = match &args.out {
        None => Out::Kept,
        Some(url) if url.contains("://") => Out::Url(url.clone()),
        Some(dir) => Out::Dir(PathBuf::from(dir)),
    };
    if let Out::Dir(dir) = &out {
        check_folder(dir)?;
    }
    // Mistakes in the items are known before anything is started.
    let survey = items::survey(&args.items)?;
    match args.compute.endpoint.clone() {
        Some(endpoint) => {
            let key = args.key.clone().unwrap_or_else(fresh_key);
            let wait = args.wait || matches!(out, Out::Dir(_));
            session::runtime()?.block_on(submit_to(
                &mut Client::new(&endpoint, args.compute.tls.security()?)?,
                &args,
                &survey,
                out,
                key,
                wait,
            ))
        }
        None => submit_here(args, &survey, out),
    }
}

/// A key of its own: so a job whose answer was lost with the coordinator is not made twice.
pub(crate) fn fresh_key() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("cli-{}-{}", std::process::id(), now.as_nanos())
}

/// Runs the job in this process. Its state is beside its results until it is done, so that it can be stopped.
fn submit_here(args: Submit, survey: &Survey, out: Out) -> Outcome {
    let here = &args.compute.here;
    let checkpoint = Checkpoint::open(checkpoint::files(&here.model)?)?;
    let state = match &out {
        Out::Dir(dir) => Some(dir.join(".janus-jobs")),
        _ => None,
    };
    let anywhere = match &out {
        Out::Url(url) => Some(root_of(url)?),
        _ => None,
    };
    let keep = KeepJobs { jobs: None, jobs_output: Vec::new(), jobs_window: 64, jobs_keep: 0 };
    let options = Options {
        listen: "127.0.0.1:0".to_owned(),
        model: here.model.clone(),
        stages: here.stages,
        threads: here.threads,
        device: here.device,
        weights: here.weights.map(WeightFormat::from),
        kv: KvDtype::from(here.kv),
        needs: Needs { vision: survey.asks, vq_decoder: survey.paints, ..Needs::NONE },
        security: Security::Plain,
        counts: false,
        operator: None,
        jobs: Some(kept::Here { state: state.clone(), keep, anywhere }),
    };
    // The same items for the same model are the same job, which goes on.
    let made_with = format!("{} {:?} {:?}", here.model, here.weights, here.kv);
    let digest = Sha256::new().chain_update(survey.digest).chain_update(made_with).finalize();
    let key = args.key.clone().unwrap_or_else(|| format!("here-{}", janus_wire::hello::hex(&digest)));
    let runtime = session::runtime()?;
    let done = runtime.block_on(async {
        let local = Local::start(checkpoint, options).await?;
        let mut client = Client::new(&local.address.to_string(), Security::Plain)?;
        end_others(&mut client, &key).await?;
        submit_to(&mut client, &args, survey, out, key, true).await
    });
    drop(runtime);
    if done.is_ok()
        && let Some(state) = state
    {
        let _ = std::fs::remove_dir_all(state);
    }
    done
}

/// Cancels what an earlier run began and this one does not want.
async fn end_others(client: &mut Client, key: &str) -> Outcome {
    let request = v1::ListJobsRequest { page_size: 1000, page_token: String::new() };
    let known = client.call(async |mut jobs| jobs.list(signed(request.clone())).await).await?.into_inner().jobs;
    for job in known.into_iter().filter(|job| job.key != key && !has_ended(job)) {
        let request = v1::CancelJobRequest { job: job.id };
        client.call(async |mut jobs| jobs.cancel(signed(request.clone())).await).await?;
    }
    Ok(())
}

async fn submit_to(client: &mut Client, args: &Submit, survey: &Survey, out: Out, key: String, wait: bool) -> Outcome {
    for blob in survey.files.values() {
        put_blob(client, blob).await?;
    }
    let header = v1::JobHeader {
        key,
        priority: match args.priority {
            Urgency::Batch => v1::Priority::Batch,
            Urgency::Interactive => v1::Priority::Interactive,
        }
        .into(),
        output: if let Out::Url(url) = &out { url.clone() } else { String::new() },
        ..v1::JobHeader::default()
    };
    let job = client.call(async |jobs| create(jobs, &args.items, survey, header.clone()).await).await?;
    let job = job?;
    if !wait {
        return output::print_json(&Submitted { job: &job.id });
    }
    eprintln!("janus: job {}", job.id);
    let ended = watch(client, &job.id, false).await?;
    if let Out::Dir(dir) = &out
        && ended.status() != JobStatus::Failed
    {
        download::into(client, &ended, dir).await?;
    }
    output::print_json(&Shown::from(&ended))?;
    verdict(&ended)
}

/// Sends the items. The outer result is the server's, the inner one the file's.
async fn create(
    mut jobs: v1::jobs_client::JobsClient<tonic::transport::Channel>,
    path: &Path,
    survey: &Survey,
    header: v1::JobHeader,
) -> Result<Outcome<Job>, Status> {
    let (send, messages) = mpsc::channel(AHEAD);
    // As long as this one is there, the server waits for more: a job is never made of half a file.
    let open = send.clone();
    let (path, files) = (path.to_owned(), survey.files.clone());
    let read = tokio::task::spawn_blocking(move || -> Outcome {
        // Whether the server takes more. Why it does not is in its answer.
        let sent = |part| send.blocking_send(v1::CreateJobRequest { part: Some(part) }).is_ok();
        let items_of = |items| create_job_request::Part::Items(v1::JobItems { items });
        let mut taken = sent(create_job_request::Part::Header(header));
        let (mut items, mut batch, mut bytes) = (Items::open(&path)?, Vec::new(), 0);
        while taken && let Some(item) = items.next(&files)? {
            bytes += prost_len(&item);
            batch.push(item);
            if batch.len() >= BATCH || bytes >= BATCH_BYTES {
                taken = sent(items_of(std::mem::take(&mut batch)));
                bytes = 0;
            }
        }
        if taken && !batch.is_empty() {
            sent(items_of(batch));
        }
        Ok(())
    });
    let mut call = std::pin::pin!(jobs.create(signed(ReceiverStream::new(messages))));
    let read = async {
        match read.await {
            Ok(read) => read,
            Err(error) => Err(Failure::Broken(error.to_string())),
        }
    };
    tokio::select! {
        // Refused before the end of the items.
        answer = &mut call => return answer.map(|job| Ok(job.into_inner())),
        read = read => if let Err(failure) = read { return Ok(Err(failure)) },
    }
    drop(open);
    call.await.map(|job| Ok(job.into_inner()))
}

fn prost_len(item: &v1::JobItem) -> usize {
    match &item.work {
        Some(v1::job_item::Work::Paint(paint)) => paint.prompt.len() + 64,
        Some(v1::job_item::Work::Ask(ask)) => ask.question.len() + 34 * ask.images.len() + 64,
        None => 64,
    }
}

/// Sends a file that questions are about.
pub(crate) async fn put_blob(client: &mut Client, blob: &items::Blob) -> Outcome {
    let data = std::fs::read(&blob.path).map_err(|e| Failure::mistake(format!("{}: {e}", blob.path.display())))?;
    let data = bytes::Bytes::from(data);
    let answer = client
        .call(async |mut jobs| {
            let size = data.len() as u64;
            let mut rest = data.clone();
            let mut messages = vec![v1::PutBlobRequest { size, data: bytes::Bytes::new() }];
            while !rest.is_empty() {
                let piece = rest.split_to(rest.len().min(PIECE));
                messages.push(v1::PutBlobRequest { size: 0, data: piece });
            }
            jobs.put_blob(signed(tokio_stream::iter(messages))).await
        })
        .await?;
    match answer.into_inner().sha256 == blob.sha256[..] {
        true => Ok(()),
        false => Err(Failure::Broken(format!("{}: it changed while it was sent", blob.path.display()))),
    }
}

/// The place of a URL: everything below it.
fn root_of(url: &str) -> Outcome<Url> {
    let mut root = Url::parse(url).map_err(|error| Failure::mistake(format!("--out {url}: {error}")))?;
    root.set_path("/");
    Ok(root)
}

/// A folder that results can be written to.
fn check_folder(dir: &Path) -> Outcome {
    let refuse = |error: std::io::Error| Failure::mistake(format!("--out {}: cannot be written: {error}", dir.display()));
    std::fs::create_dir_all(dir).map_err(refuse)?;
    tempfile::tempfile_in(dir).map(drop).map_err(refuse)
}
