//! The caller's jobs: the newest ones, a new one of prompts, and the end of one.

use axum::Json as Answer;
use axum::extract::{Path, State};
use janus_wire::v1::jobs_client::JobsClient;
use janus_wire::v1::{
    CancelJobRequest, CreateJobRequest, Job, JobHeader, JobItem, JobItems, JobStatus, ListJobsRequest, PaintItem,
    create_job_request, job_item,
};
use serde::{Deserialize, Serialize};

use super::PATIENCE;
use crate::body::Json;
use crate::{Asker, Gateway, Problem};

/// Jobs that are shown.
const SHOWN: u32 = 20;
/// Prompts of one job that a person types.
const MAX_PROMPTS: usize = 1000;

#[derive(Serialize)]
pub(super) struct Shown {
    id: String,
    status: &'static str,
    total: u64,
    succeeded: u64,
    failed: u64,
    cancelled: u64,
    created_unix_ms: u64,
    ended_unix_ms: u64,
    error: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct New {
    prompts: Vec<String>,
    #[serde(default)]
    seed: u64,
    guidance: Option<f32>,
}

pub(super) async fn list(State(gateway): State<Gateway>, asker: Asker) -> Result<Answer<Vec<Shown>>, Problem> {
    let call = gateway.coordinators().call(PATIENCE, |channel| {
        let request = asker.request(ListJobsRequest { page_size: SHOWN, ..ListJobsRequest::default() });
        async move { JobsClient::new(channel).list(request).await }
    });
    Ok(Answer(call.await?.jobs.into_iter().map(Shown::from).collect()))
}

pub(super) async fn create(
    State(gateway): State<Gateway>,
    asker: Asker,
    Json { value: New { prompts, seed, guidance }, .. }: Json<New>,
) -> Result<Answer<Shown>, Problem> {
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
        return Err(Problem::invalid(
            "prompts",
            format!("a job here has 1 to {MAX_PROMPTS} prompts, not {}", prompts.len()),
        ));
    }
    let item = |(at, prompt): (usize, String)| JobItem {
        id: format!("line-{}", at + 1),
        work: Some(job_item::Work::Paint(PaintItem { prompt, seed, cfg_weight: guidance, ..PaintItem::default() })),
    };
    let items = JobItems { items: prompts.into_iter().enumerate().map(item).collect() };
    // The key is this request's own, so a call that is made again after a loss makes no second job.
    let header = JobHeader { key: asker.id().to_owned(), ..JobHeader::default() };
    let parts = [create_job_request::Part::Header(header), create_job_request::Part::Items(items)];
    let parts = parts.map(|part| CreateJobRequest { part: Some(part) });
    let call = gateway.coordinators().call(PATIENCE, |channel| {
        let request = asker.request(tokio_stream::iter(parts.clone()));
        async move { JobsClient::new(channel).create(request).await }
    });
    Ok(Answer(call.await?.into()))
}

pub(super) async fn cancel(
    State(gateway): State<Gateway>,
    Path(job): Path<String>,
    asker: Asker,
) -> Result<Answer<Shown>, Problem> {
    let call = gateway.coordinators().call(PATIENCE, |channel| {
        let request = asker.request(CancelJobRequest { job: job.clone() });
        async move { JobsClient::new(channel).cancel(request).await }
    });
    Ok(Answer(call.await?.into()))
}

impl From<Job> for Shown {
    fn from(job: Job) -> Self {
        let status = match job.status() {
            JobStatus::Unspecified | JobStatus::Queued => "queued",
            JobStatus::Running => "running",
            JobStatus::Cancelling => "cancelling",
            JobStatus::Succeeded => "succeeded",
            JobStatus::Failed => "failed",
            JobStatus::Cancelled => "cancelled",
        };
        Shown {
            status,
            id: job.id,
            total: job.total,
            succeeded: job.succeeded,
            failed: job.failed,
            cancelled: job.cancelled,
            created_unix_ms: job.created_unix_ms,
            ended_unix_ms: job.ended_unix_ms,
            error: job.error,
        }
    }
}
