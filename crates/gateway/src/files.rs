//! `/v1/files`. Nothing is kept here: a file is one of the cluster's, a blob with a name, so an id means the same at every
//! gateway, today and after a restart. What a batch became is a file too, made of the job's results when it is read; its id is
//! the job's.

use std::time::Duration;

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use janus_wire::v1;
use janus_wire::v1::blobs_client::BlobsClient;
use janus_wire::v1::files_client::FilesClient;
use janus_wire::v1::jobs_client::JobsClient;
use serde::{Deserialize, Serialize};
use tonic::Code;
use utoipa::{IntoParams, ToSchema};

use crate::attached::{Attached, Opened};
use crate::batches::{self, Batch};
use crate::body::{self, Room};
use crate::query::Query;
use crate::{Asker, Gateway, Problem, asker, outcome};

/// Largest file: the largest blob.
pub(crate) const MAX_FILE: usize = 64 << 20;
/// Largest form around a file.
pub(crate) const MAX_FORM: usize = MAX_FILE + (64 << 10);
/// Bytes of one message of a blob.
const PIECE: usize = 1 << 20;
/// Files of one page of the cluster's list, and pages that are looked through.
const PAGE: u32 = 500;
const PAGES: usize = 4;
/// Files of one page of ours.
const MOST: u32 = 10_000;
/// How long a call may look for a coordinator.
const PATIENCE: Duration = Duration::from_secs(10);
/// A file's words among those of the cluster's.
const NAME: &str = "openai.filename";
const PURPOSE: &str = "openai.purpose";
/// What ids begin with.
const UPLOADED: &str = "file";
pub(crate) const OUTPUT: &str = "file-output-";
pub(crate) const ERRORS: &str = "file-error-";

/// A file.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct File {
    pub(crate) id: String,
    object: &'static str,
    /// Of what a batch became, 0: it is made when it is read.
    bytes: u64,
    created_at: u64,
    /// When it may be forgotten if no batch was made of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    filename: String,
    purpose: String,
    status: &'static str,
}

/// Files.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Files {
    object: &'static str,
    data: Vec<File>,
    has_more: bool,
    first_id: Option<String>,
    last_id: Option<String>,
}

/// A file is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Deleted {
    id: String,
    object: &'static str,
    deleted: bool,
}

/// A form with a file.
#[derive(ToSchema)]
#[allow(dead_code, reason = "it is read piece by piece; this describes it")]
pub(crate) struct Upload {
    /// Lines of JSON.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// `batch`.
    purpose: String,
}

/// Which files.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Those after this id.
    after: Option<String>,
    /// At most so many; 10000 unless it says otherwise.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<u32>,
    /// Of this purpose.
    purpose: Option<String>,
    /// `desc`, newest first, or `asc`.
    order: Option<String>,
}

impl File {
    /// A file of the cluster's; one that came by another door is not for batches.
    fn of(mut file: v1::File) -> Option<Self> {
        Some(File {
            filename: file.metadata.remove(NAME)?,
            purpose: file.metadata.remove(PURPOSE)?,
            id: file.id,
            object: "file",
            bytes: file.size,
            created_at: file.created_unix_ms / 1000,
            expires_at: Some(file.expires_unix_ms / 1000).filter(|&at| at > 0),
            status: "processed",
        })
    }
}

fn unknown(id: &str) -> Problem {
    let shown: String = id.chars().take(100).collect();
    Problem::not_found(format!("there is no file `{shown}`"))
}

/// Keeps bytes in the cluster; their digest.
pub(crate) async fn put(gateway: &Gateway, asker: &Asker, data: Bytes) -> Result<Bytes, Problem> {
    let call = |channel| {
        let size = data.len() as u64;
        let mut rest = data.clone();
        let mut pieces = vec![v1::PutBlobRequest { size, data: Bytes::new() }];
        while !rest.is_empty() {
            pieces.push(v1::PutBlobRequest { size: 0, data: rest.split_to(rest.len().min(PIECE)) });
        }
        let request = asker.request(tokio_stream::iter(pieces));
        async move { JobsClient::new(channel).put_blob(request).await }
    };
    Ok(gateway.coordinators().call(PATIENCE, call).await?.sha256)
}

/// A blob's pieces.
fn get(gateway: &Gateway, asker: &Asker, digest: Bytes) -> Attached<v1::GetBlobRequest, v1::GetBlobResponse> {
    let open = |channel, request| -> Opened<_> { Box::pin(async move { BlobsClient::new(channel).get(request).await }) };
    let request = v1::GetBlobRequest { sha256: digest };
    Attached::new(gateway.clone(), asker.clone(), request, Room::default(), open)
}

/// A whole blob of at most [`MAX_FILE`] bytes.
async fn whole(gateway: &Gateway, asker: &Asker, digest: Bytes) -> Result<(Bytes, Room), Problem> {
    let mut pieces = get(gateway, asker, digest);
    let (mut bytes, mut room) = (BytesMut::new(), Room::default());
    loop {
        let (first, piece) = pieces.event_or_end().await?;
        if first {
            bytes.clear();
        }
        let Some(piece) = piece else { return Ok((bytes.freeze(), room)) };
        if bytes.len() + piece.data.len() > MAX_FILE {
            return Err(Problem::not_found(format!("the file is larger than {MAX_FILE} bytes")));
        }
        gateway.budget().more(&mut room, bytes.len() + piece.data.len())?;
        bytes.extend_from_slice(&piece.data);
    }
}

/// What the cluster knows of a file.
async fn find(gateway: &Gateway, asker: &Asker, id: &str) -> Result<v1::File, Problem> {
    let call = |channel| {
        let request = asker.request(v1::GetFileRequest { id: id.to_owned() });
        async move { FilesClient::new(channel).get(request).await }
    };
    let found = gateway.coordinators().call(PATIENCE, call).await;
    found.map_err(|status| if status.code() == Code::NotFound { unknown(id) } else { status.into() })
}

/// All uploaded files, newest first. The cluster keeps a thousand of each tenant.
async fn uploaded(gateway: &Gateway, asker: &Asker) -> Result<Vec<File>, Problem> {
    let (mut files, mut page_token) = (Vec::new(), String::new());
    for _ in 0..PAGES {
        let call = |channel| {
            let request = asker.request(v1::ListFilesRequest { page_size: PAGE, page_token: page_token.clone() });
            async move { FilesClient::new(channel).list(request).await }
        };
        let page = gateway.coordinators().call(PATIENCE, call).await?;
        files.extend(page.files.into_iter().filter_map(File::of));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(files)
}

/// The bytes of an uploaded file.
pub(crate) async fn content_of(gateway: &Gateway, asker: &Asker, id: &str) -> Result<(Bytes, Room), Problem> {
    let file = find(gateway, asker, id).await?;
    whole(gateway, asker, file.sha256).await
}

fn form(error: &MultipartError) -> Problem {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("a file has at most {MAX_FILE} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("request_too_large")
        }
        _ => Problem::new(StatusCode::BAD_REQUEST, format!("the form: {}", error.body_text())).code("invalid_form"),
    }
}

/// The bytes of a field, and the room they take.
async fn field(gateway: &Gateway, mut field: Field<'_>, most: usize) -> Result<(Bytes, Room), Problem> {
    let (mut bytes, mut room) = (BytesMut::new(), Room::default());
    while let Some(piece) = field.chunk().await.map_err(|error| form(&error))? {
        if bytes.len() + piece.len() > most {
            let message = format!("a field is larger than {most} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("request_too_large"));
        }
        gateway.budget().more(&mut room, bytes.len() + piece.len())?;
        bytes.extend_from_slice(&piece);
    }
    Ok((bytes.freeze(), room))
}

/// Keeps a file for a batch: as long as there is a batch of it, and a day without.
#[utoipa::path(post, path = "/v1/files", tag = "batches",
    request_body(content = Upload, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The file", body = File),
        (status = "default", description = "What went wrong", body = crate::problem::Body)
    )
)]
pub(crate) async fn upload(State(gateway): State<Gateway>, asker: Asker, request: Request) -> Result<Answer<File>, Problem> {
    let mut form_of = Multipart::from_request(request, &()).await.map_err(|rejection| {
        let message = format!("{}; a file is sent as multipart/form-data", rejection.body_text());
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).code("unsupported_media_type")
    })?;
    let (mut file, mut purpose) = (None, None);
    while let Some(part) = form_of.next_field().await.map_err(|error| form(&error))? {
        match part.name().unwrap_or_default() {
            "file" => {
                let name: String =
                    part.file_name().unwrap_or("file.jsonl").chars().filter(|c| !c.is_control()).take(255).collect();
                file = Some((name, field(&gateway, part, MAX_FILE).await?));
            }
            "purpose" => purpose = Some(String::from_utf8_lossy(&field(&gateway, part, 64).await?.0).into_owned()),
            other => {
                let other: String = other.chars().take(64).collect();
                return Err(Problem::invalid(&other, format!("{other}: a file has no such field here")));
            }
        }
    }
    let (filename, (data, _room)) = file.ok_or_else(|| Problem::invalid("file", "file: is missing"))?;
    let purpose = purpose.ok_or_else(|| Problem::invalid("purpose", "purpose: is missing; it is `batch`"))?;
    if purpose != "batch" {
        return Err(Problem::invalid("purpose", "purpose: files are for batches here: `batch`"));
    }
    if data.is_empty() {
        return Err(Problem::invalid("file", "file: is empty"));
    }
    let sha256 = put(&gateway, &asker, data).await?;
    let words = [(NAME.to_owned(), filename), (PURPOSE.to_owned(), purpose)];
    // Its name is chosen here: asking again must not make two of it.
    let id = asker::name(UPLOADED);
    let call = |channel| {
        let file = v1::CreateFileRequest { id: id.clone(), sha256: sha256.clone(), metadata: words.clone().into() };
        let request = asker.request(file);
        async move { FilesClient::new(channel).create(request).await }
    };
    let file = gateway.coordinators().call(PATIENCE, call).await?;
    let lost = || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the file came back without its words");
    File::of(file).map(Answer).ok_or_else(lost)
}

/// Uploaded files and what batches became, newest first unless it is asked otherwise.
#[utoipa::path(get, path = "/v1/files", tag = "batches", params(Which), responses(
    (status = 200, description = "The files", body = Files),
    (status = "default", description = "What went wrong", body = crate::problem::Body)
))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    asker: Asker,
    Query(which): Query<Which>,
) -> Result<Answer<Files>, Problem> {
    let limit = which.limit.unwrap_or(MOST);
    if !(1..=MOST).contains(&limit) {
        return Err(Problem::invalid("limit", format!("limit: {limit} is not from 1 to {MOST}")));
    }
    let oldest_first = match which.order.as_deref() {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(_) => return Err(Problem::invalid("order", "order: it is `asc` or `desc`")),
    };
    let mut data = uploaded(&gateway, &asker).await?;
    for batch in batches::all(&gateway, &asker).await? {
        let results = [&batch.output_file_id, &batch.error_file_id].into_iter().flatten();
        data.extend(results.filter_map(|id| result_of(&batch, id)));
    }
    data.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
    if oldest_first {
        data.reverse();
    }
    if let Some(after) = &which.after {
        let at = data.iter().position(|file| file.id == *after).ok_or_else(|| unknown(after))?;
        data.drain(..=at);
    }
    data.retain(|file| which.purpose.as_ref().is_none_or(|only| *only == file.purpose));
    let has_more = data.len() > limit as usize;
    data.truncate(limit as usize);
    let (first_id, last_id) = (data.first().map(|f| f.id.clone()), data.last().map(|f| f.id.clone()));
    Ok(Answer(Files { object: "list", data, has_more, first_id, last_id }))
}

/// What a batch became, as a file.
fn result_of(batch: &Batch, id: &str) -> Option<File> {
    let kind = if id.starts_with(OUTPUT) { "output" } else { "error" };
    let mine = [&batch.output_file_id, &batch.error_file_id].into_iter().flatten().any(|file| file == id);
    mine.then(|| File {
        id: id.to_owned(),
        object: "file",
        bytes: 0,
        created_at: batch.ended_at().unwrap_or(batch.created_at),
        expires_at: None,
        filename: format!("{}_{kind}.jsonl", batch.id),
        purpose: "batch_output".to_owned(),
        status: "processed",
    })
}

/// The batch that a file is the result of, and whether it is the file of what failed.
async fn origin(gateway: &Gateway, asker: &Asker, id: &str) -> Result<Option<(Batch, String, bool)>, Problem> {
    let (job, failed) = match (id.strip_prefix(OUTPUT), id.strip_prefix(ERRORS)) {
        (Some(job), _) => (job, false),
        (_, Some(job)) => (job, true),
        _ => return Ok(None),
    };
    let batch = batches::of_job(gateway, asker, job).await;
    let batch = batch.map_err(|problem| if problem.is_not_found() { unknown(id) } else { problem })?;
    Ok(Some((batch, job.to_owned(), failed)))
}

/// One file.
#[utoipa::path(get, path = "/v1/files/{file}", tag = "batches",
    params(("file" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The file", body = File),
        (status = "default", description = "What went wrong", body = crate::problem::Body)
    )
)]
pub(crate) async fn look(
    State(gateway): State<Gateway>,
    asker: Asker,
    Path(id): Path<String>,
) -> Result<Answer<File>, Problem> {
    match origin(&gateway, &asker, &id).await? {
        Some((batch, ..)) => result_of(&batch, &id).map(Answer).ok_or_else(|| unknown(&id)),
        None => File::of(find(&gateway, &asker, &id).await?).map(Answer).ok_or_else(|| unknown(&id)),
    }
}

/// A file's bytes.
#[utoipa::path(get, path = "/v1/files/{file}/content", tag = "batches",
    params(("file" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "Its bytes", content_type = "application/jsonl", body = Vec<u8>),
        (status = "default", description = "What went wrong", body = crate::problem::Body)
    )
)]
pub(crate) async fn content(
    State(gateway): State<Gateway>,
    asker: Asker,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let headers = [(header::CONTENT_TYPE, "application/jsonl"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    if let Some((batch, job, failed)) = origin(&gateway, &asker, &id).await? {
        result_of(&batch, &id).ok_or_else(|| unknown(&id))?;
        let model = gateway.describe(&asker).await?.model;
        let lines = outcome::lines(&gateway, &asker, &batch, job, model, failed).await?;
        return Ok((headers, Body::from_stream(lines)).into_response());
    }
    let (bytes, room) = content_of(&gateway, &asker, &id).await?;
    Ok((headers, body::held(bytes, room)).into_response())
}

/// Forgets a file. What a batch became goes with its batch, and stays.
#[utoipa::path(delete, path = "/v1/files/{file}", tag = "batches",
    params(("file" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is gone", body = Deleted),
        (status = "default", description = "What went wrong", body = crate::problem::Body)
    )
)]
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    asker: Asker,
    Path(id): Path<String>,
) -> Result<Answer<Deleted>, Problem> {
    if origin(&gateway, &asker, &id).await?.is_some() {
        let message = "what a batch became is kept and forgotten with the batch's job";
        return Err(Problem::new(StatusCode::BAD_REQUEST, message).code("not_deletable"));
    }
    // The name alone: another file may have the same bytes, and bytes that nobody names are forgotten by themselves.
    let delete = |channel| {
        let request = asker.request(v1::DeleteFileRequest { id: id.clone() });
        async move { FilesClient::new(channel).delete(request).await }
    };
    let gone = gateway.coordinators().call(PATIENCE, delete).await;
    gone.map_err(|status| if status.code() == Code::NotFound { unknown(&id) } else { status.into() })?;
    Ok(Answer(Deleted { id, object: "file", deleted: true }))
}
