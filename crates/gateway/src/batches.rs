//! `/v1/batches`: OpenAI's life cycle of a batch, on a job of the cluster. A batch is its job: its id is the job's, and what
//! was asked for stands among the job's own words, so that nothing is kept here.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json as Answer;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use janus_wire::v1::jobs_client::JobsClient;
use janus_wire::v1::{self, JobStatus, create_job_request};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::body::Json;
use crate::query::Query;
use crate::{Asker, Gateway, Problem, files, lines};

/// How long a call may look for a coordinator.
const PATIENCE: Duration = Duration::from_secs(10);
/// Items of one message.
const ITEMS: usize = 256;
/// Jobs of one page.
const PAGE: u32 = 1000;
/// Pages that are looked through.
const PAGES: usize = 20;
/// What ids begin with.
const BATCH: &str = "batch_";
/// A batch's words among those of its job.
const ENDPOINT: &str = "openai.endpoint";
const INPUT: &str = "openai.input_file_id";
const WINDOW: &str = "openai.completion_window";
const USER: &str = "user.";
/// Words of a caller: how many, and the longest name and value.
const MAX_WORDS: (usize, usize, usize) = (16, 64, 512);

/// What to make a batch of.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchRequest {
    /// A file of lines `{"custom_id","method":"POST","url","body"}`.
    #[schema(required = true, nullable = false)]
    input_file_id: Option<String>,
    /// `/v1/images/generations` or `/v1/chat/completions`, as all its lines say.
    #[schema(required = true, nullable = false)]
    endpoint: Option<String>,
    /// `24h`. A batch is done as soon as there is room, and does not expire.
    #[schema(required = true, nullable = false)]
    completion_window: Option<String>,
    /// Words of the caller.
    metadata: Option<BTreeMap<String, String>>,
}

/// A batch.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Batch {
    pub(crate) id: String,
    object: &'static str,
    pub(crate) endpoint: String,
    errors: Option<Errors>,
    pub(crate) input_file_id: String,
    completion_window: String,
    status: &'static str,
    pub(crate) output_file_id: Option<String>,
    pub(crate) error_file_id: Option<String>,
    pub(crate) created_at: u64,
    in_progress_at: Option<u64>,
    completed_at: Option<u64>,
    failed_at: Option<u64>,
    cancelled_at: Option<u64>,
    request_counts: Counts,
    metadata: BTreeMap<String, String>,
}

/// Why a batch as a whole failed.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = BatchErrors)]
pub(crate) struct Errors {
    object: &'static str,
    data: Vec<Reason>,
}

/// One reason.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = BatchError)]
pub(crate) struct Reason {
    code: &'static str,
    message: String,
}

/// Lines, and how they ended.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[schema(as = BatchCounts)]
pub(crate) struct Counts {
    total: u64,
    completed: u64,
    failed: u64,
}

/// Batches.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Batches {
    object: &'static str,
    data: Vec<Batch>,
    has_more: bool,
    first_id: Option<String>,
    last_id: Option<String>,
}

/// Which batches.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Those after this id.
    after: Option<String>,
    /// At most so many; 20 unless it says otherwise.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
}

impl Batch {
    /// When it ended, if it has.
    pub(crate) fn ended_at(&self) -> Option<u64> {
        self.completed_at.or(self.failed_at).or(self.cancelled_at)
    }

    /// The batch that a job is; other jobs are none.
    fn of(job: v1::Job) -> Option<Self> {
        let (status, state) = (job.status(), job.metadata);
        let word = |name: &str| state.get(name).cloned();
        let (endpoint, input_file_id) = (word(ENDPOINT)?, word(INPUT)?);
        let seconds = |ms: u64| Some(ms / 1000).filter(|_| ms > 0);
        let ended = seconds(job.ended_unix_ms);
        let when = |is: JobStatus| ended.filter(|_| status == is);
        let done = ended.is_some() && status != JobStatus::Failed;
        Some(Batch {
            id: format!("{BATCH}{}", job.id),
            object: "batch",
            endpoint,
            errors: (status == JobStatus::Failed)
                .then(|| Errors { object: "list", data: vec![Reason { code: "failed", message: job.error.clone() }] }),
            input_file_id,
            completion_window: word(WINDOW).unwrap_or_default(),
            status: match status {
                JobStatus::Queued | JobStatus::Running | JobStatus::Unspecified => "in_progress",
                JobStatus::Cancelling => "cancelling",
                JobStatus::Succeeded => "completed",
                JobStatus::Failed => "failed",
                JobStatus::Cancelled => "cancelled",
            },
            output_file_id: (done && job.succeeded > 0).then(|| format!("{}{}", files::OUTPUT, job.id)),
            error_file_id: (done && job.failed + job.cancelled > 0).then(|| format!("{}{}", files::ERRORS, job.id)),
            created_at: job.created_unix_ms / 1000,
            in_progress_at: seconds(job.started_unix_ms),
            completed_at: when(JobStatus::Succeeded),
            failed_at: when(JobStatus::Failed),
            cancelled_at: when(JobStatus::Cancelled),
            request_counts: Counts { total: job.total, completed: job.succeeded, failed: job.failed },
            metadata: state.iter().filter_map(|(k, v)| Some((k.strip_prefix(USER)?.to_owned(), v.clone()))).collect(),
        })
    }
}

fn unknown(id: &str) -> Problem {
    let shown: String = id.chars().take(100).collect();
    Problem::not_found(format!("there is no batch `{shown}`"))
}

/// The job of a batch's id.
fn job_of(id: &str) -> Result<&str, Problem> {
    id.strip_prefix(BATCH).ok_or_else(|| unknown(id))
}

/// What this door calls a job's fields.
fn renamed(problem: Problem) -> Problem {
    problem.renamed(|field| match field {
        "header.metadata" => "metadata".to_owned(),
        _ => "input_file_id".to_owned(),
    })
}

/// The batch of a job.
pub(crate) async fn of_job(gateway: &Gateway, asker: &Asker, job: &str) -> Result<Batch, Problem> {
    let call = |channel| {
        let request = asker.request(v1::GetJobRequest { job: job.to_owned() });
        async move { JobsClient::new(channel).get(request).await }
    };
    let id = format!("{BATCH}{job}");
    match gateway.coordinators().call(PATIENCE, call).await {
        Ok(job) => Batch::of(job).ok_or_else(|| unknown(&id)),
        Err(status) if status.code() == tonic::Code::NotFound => Err(unknown(&id)),
        Err(status) => Err(status.into()),
    }
}

/// All batches, newest first.
pub(crate) async fn all(gateway: &Gateway, asker: &Asker) -> Result<Vec<Batch>, Problem> {
    let (mut batches, mut page_token) = (Vec::new(), String::new());
    for _ in 0..PAGES {
        let call = |channel| {
            let request = asker.request(v1::ListJobsRequest { page_size: PAGE, page_token: page_token.clone() });
            async move { JobsClient::new(channel).list(request).await }
        };
        let page = gateway.coordinators().call(PATIENCE, call).await?;
        batches.extend(page.jobs.into_iter().filter_map(Batch::of));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(batches)
}

impl BatchRequest {
    /// Checks everything but the file: its id, the endpoint, and the words of the job.
    fn check(self) -> Result<(String, lines::Endpoint, BTreeMap<String, String>), Problem> {
        let missing = |param: &str| Problem::invalid(param, format!("{param}: is missing"));
        let file = self.input_file_id.ok_or_else(|| missing("input_file_id"))?;
        let endpoint = self.endpoint.ok_or_else(|| missing("endpoint"))?;
        let kind = lines::Endpoint::of(&endpoint).ok_or_else(|| {
            let message = "endpoint: it is /v1/images/generations or /v1/chat/completions";
            Problem::invalid("endpoint", message)
        })?;
        let window = self.completion_window.ok_or_else(|| missing("completion_window"))?;
        if window != "24h" {
            return Err(Problem::invalid("completion_window", "completion_window: it is `24h`"));
        }
        let given = self.metadata.unwrap_or_default();
        let (most, name, value) = MAX_WORDS;
        if given.len() > most || given.iter().any(|(k, v)| k.len() > name || v.len() > value) {
            let message = format!("metadata: takes {most} words with names of {name} and values of {value} bytes");
            return Err(Problem::invalid("metadata", message));
        }
        let mut words: BTreeMap<String, String> = given.into_iter().map(|(k, v)| (format!("{USER}{k}"), v)).collect();
        words.insert(ENDPOINT.to_owned(), endpoint);
        words.insert(INPUT.to_owned(), file.clone());
        words.insert(WINDOW.to_owned(), window);
        Ok((file, kind, words))
    }
}

/// Makes a batch of a file's lines. A line that cannot be done is refused at once, by its number.
///
/// With an `idempotency-key` the same request answers with the same batch.
#[utoipa::path(post, path = "/v1/batches", tag = "batches", request_body = BatchRequest, responses(
    (status = 200, description = "The batch", body = Batch),
    (status = "default", description = "What went wrong", body = crate::problem::Body)
))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    asker: Asker,
    headers: HeaderMap,
    Json { value: request, room: _room }: Json<BatchRequest>,
) -> Result<Answer<Batch>, Problem> {
    let (file, endpoint, words) = request.check()?;
    let content = files::content_of(&gateway, &asker, &file).await;
    let (content, _content_room) = content.map_err(|problem| match problem.is_not_found() {
        true => Problem::invalid("input_file_id", format!("input_file_id: {}", problem.message())),
        false => problem,
    })?;
    let items = lines::items(&gateway, &asker, endpoint, &content).await?;
    // Trying again must not make two of it, so it has a key in any case.
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let key = key.map_or_else(|| asker.id().to_owned(), |key| format!("openai/{key}"));
    let metadata = words.into_iter().collect();
    let header = v1::JobHeader { key, metadata, files: vec![file], ..v1::JobHeader::default() };
    let part = |part| v1::CreateJobRequest { part: Some(part) };
    let mut messages = vec![part(create_job_request::Part::Header(header))];
    for items in items.chunks(ITEMS) {
        messages.push(part(create_job_request::Part::Items(v1::JobItems { items: items.to_vec() })));
    }
    let call = |channel| {
        let request = asker.request(tokio_stream::iter(messages.clone()));
        async move { JobsClient::new(channel).create(request).await }
    };
    let job = gateway.coordinators().call(PATIENCE, call).await.map_err(|status| renamed(status.into()))?;
    let lost = || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the job came back without its words");
    Batch::of(job).map(Answer).ok_or_else(lost)
}

/// Batches, newest first.
#[utoipa::path(get, path = "/v1/batches", tag = "batches", params(Which), responses(
    (status = 200, description = "The batches", body = Batches),
    (status = "default", description = "What went wrong", body = crate::problem::Body)
))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    asker: Asker,
    Query(which): Query<Which>,
) -> Result<Answer<Batches>, Problem> {
    let limit = which.limit.unwrap_or(20);
    if !(1..=100).contains(&limit) {
        return Err(Problem::invalid("limit", format!("limit: {limit} is not from 1 to 100")));
    }
    let mut data = all(&gateway, &asker).await?;
    if let Some(after) = &which.after {
        let at = data.iter().position(|batch| batch.id == *after).ok_or_else(|| unknown(after))?;
        data.drain(..=at);
    }
    let has_more = data.len() > limit as usize;
    data.truncate(limit as usize);
    let (first_id, last_id) = (data.first().map(|b| b.id.clone()), data.last().map(|b| b.id.clone()));
    Ok(Answer(Batches { object: "list", data, has_more, first_id, last_id }))
}

/// One batch.
#[utoipa::path(get, path = "/v1/batches/{batch}", tag = "batches",
    params(("batch" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The batch", body = Batch),
        (status = "default", description = "What went wrong", body = crate::problem::Body)
    )
)]
pub(crate) async fn look(
    State(gateway): State<Gateway>,
    asker: Asker,
    Path(id): Path<String>,
) -> Result<Answer<Batch>, Problem> {
    of_job(&gateway, &asker, job_of(&id)?).await.map(Answer)
}

/// Ends what is not done yet. Done lines keep their results.
#[utoipa::path(post, path = "/v1/batches/{batch}/cancel", tag = "batches",
    params(("batch" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The batch", body = Batch),
        (status = "default", description = "What went wrong", body = crate::problem::Body)
    )
)]
pub(crate) async fn cancel(
    State(gateway): State<Gateway>,
    asker: Asker,
    Path(id): Path<String>,
) -> Result<Answer<Batch>, Problem> {
    let job = job_of(&id)?;
    // A job that is no batch is not ours to end.
    of_job(&gateway, &asker, job).await?;
    let call = |channel| {
        let request = asker.request(v1::CancelJobRequest { job: job.to_owned() });
        async move { JobsClient::new(channel).cancel(request).await }
    };
    let job = gateway.coordinators().call(PATIENCE, call).await?;
    Batch::of(job).map(Answer).ok_or_else(|| unknown(&id))
}
