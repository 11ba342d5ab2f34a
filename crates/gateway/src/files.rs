//! `/v1/files`. Nothing is kept here: a file's bytes are a blob of the cluster, and so are the words about it (name, size,
//! time, purpose), whose digest is in the file's id. So an id means the same at every gateway, today and after a restart.
//! What a batch became is a file too, made of the job's results when it is read; its id is the job's.

use std::time::Duration;

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use janus_wire::v1::blobs_client::BlobsClient;
use janus_wire::v1::jobs_client::JobsClient;
use janus_wire::{hello, v1};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::attached::{Attached, Opened};
use crate::batches::{self, Batch};
use crate::body::{self, Room};
use crate::{Asker, Gateway, Problem, now, outcome};

/// Largest file: the largest blob.
pub(crate) const MAX_FILE: usize = 64 << 20;
/// Largest form around a file.
pub(crate) const MAX_FORM: usize = MAX_FILE + (64 << 10);
/// Bytes of one message of a blob.
const PIECE: usize = 1 << 20;
/// Most words about a file.
const MAX_WORDS: usize = 4 << 10;
/// How long a file is kept that no batch is made of.
const KEEP: u64 = 24 * 3600;
/// How long a call may look for a coordinator.
const PATIENCE: Duration = Duration::from_secs(10);
/// What ids begin with.
const UPLOADED: &str = "file-";
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

/// What is kept about a file beside its bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Words {
    filename: String,
    bytes: u64,
    created_at: u64,
    purpose: String,
    /// Digest of the bytes, hexadecimal.
    sha256: String,
}

/// Files of batches.
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
    /// At most so many.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<u32>,
    /// Of this purpose.
    purpose: Option<String>,
    /// `desc`, newest first.
    order: Option<String>,
}

impl Words {
    fn file(self, id: String) -> File {
        File {
            id,
            object: "file",
            bytes: self.bytes,
            created_at: self.created_at,
            expires_at: Some(self.created_at + KEEP),
            filename: self.filename,
            purpose: self.purpose,
            status: "processed",
        }
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

/// A whole blob of at most `most` bytes.
async fn whole(gateway: &Gateway, asker: &Asker, digest: Bytes, most: usize) -> Result<(Bytes, Room), Problem> {
    let mut pieces = get(gateway, asker, digest);
    let (mut bytes, mut room) = (BytesMut::new(), Room::default());
    loop {
        let (first, piece) = pieces.event_or_end().await?;
        if first {
            bytes.clear();
        }
        let Some(piece) = piece else { return Ok((bytes.freeze(), room)) };
        if bytes.len() + piece.data.len() > most {
            return Err(Problem::not_found(format!("the file is larger than {most} bytes")));
        }
        gateway.budget().more(&mut room, bytes.len() + piece.data.len())?;
        bytes.extend_from_slice(&piece.data);
    }
}

/// What is kept about an uploaded file.
async fn words(gateway: &Gateway, asker: &Asker, id: &str) -> Result<Words, Problem> {
    let digest = id.strip_prefix(UPLOADED).and_then(unhex).ok_or_else(|| unknown(id))?;
    let kept = whole(gateway, asker, digest, MAX_WORDS).await;
    // A blob that is no file's words is no file.
    let (bytes, _) = kept.map_err(|problem| if problem.is_not_found() { unknown(id) } else { problem })?;
    serde_json::from_slice(&bytes).map_err(|_| unknown(id))
}

/// The bytes of an uploaded file.
pub(crate) async fn content_of(gateway: &Gateway, asker: &Asker, id: &str) -> Result<(Bytes, Room), Problem> {
    let words = words(gateway, asker, id).await?;
    whole(gateway, asker, unhex(&words.sha256).ok_or_else(|| unknown(id))?, MAX_FILE).await
}

/// 32 bytes, written as 64 hexadecimal digits in lower case.
fn unhex(text: &str) -> Option<Bytes> {
    let digit = |c: u8| char::from(c).to_digit(16).filter(|_| !c.is_ascii_uppercase()).map(|d| d as u8);
    let pairs = text.as_bytes().chunks_exact(2);
    let bytes: Option<Vec<u8>> = pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect();
    bytes.filter(|bytes| bytes.len() == 32 && text.len() == 64).map(Bytes::from)
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

/// Keeps a file for a batch. One that no batch is made of is forgotten after a day.
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
    let bytes = data.len() as u64;
    let sha256 = hello::hex(&put(&gateway, &asker, data).await?);
    let words = Words { filename, bytes, created_at: now(), purpose, sha256 };
    let kept =
        serde_json::to_vec(&words).map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let id = format!("{UPLOADED}{}", hello::hex(&put(&gateway, &asker, kept.into()).await?));
    Ok(Answer(words.file(id)))
}

/// Files of batches, newest first. An uploaded file is among them once there is a batch of it.
#[utoipa::path(get, path = "/v1/files", tag = "batches", params(Which), responses(
    (status = 200, description = "The files", body = Files),
    (status = "default", description = "What went wrong", body = crate::problem::Body)
))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    asker: Asker,
    query: Result<Query<Which>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer<Files>, Problem> {
    let Query(which) = query.map_err(|rejection| Problem::new(StatusCode::BAD_REQUEST, rejection.body_text()))?;
    let limit = which.limit.unwrap_or(100);
    if !(1..=10_000).contains(&limit) {
        return Err(Problem::invalid("limit", format!("limit: {limit} is not from 1 to 10000")));
    }
    if which.order.as_deref().is_some_and(|order| order != "desc") {
        return Err(Problem::invalid("order", "order: files are listed newest first: `desc`"));
    }
    let wanted = |purpose: &str| which.purpose.as_deref().is_none_or(|only| only == purpose);
    let (mut data, mut seen) = (Vec::new(), std::collections::BTreeSet::new());
    let mut skipping = which.after.is_some();
    'all: for batch in batches::all(&gateway, &asker).await? {
        let inputs = wanted("batch").then(|| batch.input_file_id.clone());
        let outputs = wanted("batch_output").then(|| [batch.output_file_id.clone(), batch.error_file_id.clone()]);
        for id in outputs.into_iter().flatten().flatten().chain(inputs) {
            if !seen.insert(id.clone()) {
                continue;
            }
            if skipping {
                skipping = which.after.as_ref() != Some(&id);
                continue;
            }
            let file = match result_of(&batch, &id) {
                Some(file) => file,
                None => match words(&gateway, &asker, &id).await {
                    Ok(words) => words.file(id),
                    // The batch is there and its file is not any more.
                    Err(problem) if problem.is_not_found() => continue,
                    Err(problem) => return Err(problem),
                },
            };
            data.push(file);
            if data.len() > limit as usize {
                break 'all;
            }
        }
    }
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
        None => Ok(Answer(words(&gateway, &asker, &id).await?.file(id))),
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
    words(&gateway, &asker, &id).await?;
    // The words alone: another file may have the same bytes, and bytes that nobody names are forgotten by themselves.
    let digest = id.strip_prefix(UPLOADED).and_then(unhex).ok_or_else(|| unknown(&id))?;
    let delete = |channel| {
        let request = asker.request(v1::DeleteBlobRequest { sha256: digest.clone() });
        async move { BlobsClient::new(channel).delete(request).await }
    };
    gateway.coordinators().call(PATIENCE, delete).await?;
    Ok(Answer(Deleted { id, object: "file", deleted: true }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_digest_and_nothing_else_is() {
        let digest: Vec<u8> = (0..32).map(|i| i * 7).collect();
        let text = hello::hex(&digest);
        assert_eq!(unhex(&text).unwrap()[..], digest[..]);
        for wrong in ["", "00", &text[1..], &format!("{text}0"), &text.to_uppercase(), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }
}
