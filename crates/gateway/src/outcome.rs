//! What a batch became, as the lines of a file, made while it is read.

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream};
use janus_wire::MAX_CLIENT_MESSAGE;
use janus_wire::v1;
use janus_wire::v1::jobs_client::JobsClient;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::attached::{Attached, Opened};
use crate::batches::Batch;
use crate::body::Room;
use crate::lines::{Endpoint, unescape};
use crate::{Asker, Gateway, Problem};

/// Bytes of all pictures of one line: ten large ones have fewer.
const MAX_PICTURES: usize = 256 << 20;

/// A line of a job's manifest.
#[derive(Debug, Deserialize)]
struct Entry {
    id: String,
    status: String,
    sha256: Option<String>,
    seed: Option<u64>,
    text: Option<String>,
    error: Option<String>,
    /// Of an answer; results that an older version kept have none of these.
    finish_reason: Option<String>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

/// One result with its picture.
struct Made {
    entry: Entry,
    picture: Bytes,
}

/// A job's results, grouped by item.
struct Outcome {
    results: Attached<v1::ResultsRequest, v1::ResultsResponse>,
    job: String,
    model: String,
    created: u64,
    endpoint: Endpoint,
    /// The lines of items that failed, or of those that did not.
    failed: bool,
    /// A result that belongs to the next item.
    next: Option<Made>,
    ended: bool,
}

/// A line of a batch's result.
#[derive(Serialize)]
struct Line {
    id: String,
    custom_id: String,
    response: Option<Value>,
    error: Option<Value>,
}

/// The lines of a batch's job, each with its end; `failed` says which of the two files they are for.
pub(crate) async fn lines(
    gateway: &Gateway,
    asker: &Asker,
    batch: &Batch,
    job: String,
    model: String,
    failed: bool,
) -> Result<impl Stream<Item = Result<Bytes, std::io::Error>> + Send + use<>, Problem> {
    let broken = || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("`{}` is no endpoint", batch.endpoint));
    let endpoint = Endpoint::of(&batch.endpoint).ok_or_else(broken)?;
    let open = |channel, request| -> Opened<_> {
        let client = JobsClient::new(channel).max_decoding_message_size(MAX_CLIENT_MESSAGE);
        Box::pin(async move { client.clone().results(request).await })
    };
    // Pictures are no part of the file of what failed.
    let request = v1::ResultsRequest { job: job.clone(), first: 0, data: !failed };
    let mut results = Attached::new(gateway.clone(), asker.clone(), request, Room::default(), open);
    results.open().await?;
    let created = batch.ended_at().unwrap_or(batch.created_at);
    let outcome = Outcome { results, job, model, created, endpoint, failed, next: None, ended: false };
    Ok(stream::unfold(Some(outcome), |outcome| async {
        let mut outcome = outcome?;
        match outcome.line().await {
            Ok(Some(line)) => Some((Ok(line), Some(outcome))),
            Ok(None) => None,
            // The answer has begun, so all that is left is to cut it off.
            Err(problem) => Some((Err(std::io::Error::other(problem.message().to_owned())), None)),
        }
    }))
}

impl Outcome {
    /// The next result, whole.
    async fn result(&mut self) -> Result<Option<Made>, Problem> {
        let (mut line, mut picture) = (String::new(), BytesMut::new());
        loop {
            let (first, message) = self.results.event_or_end().await?;
            // After a loss the results begin again with the first one that is not whole.
            if first {
                line.clear();
                picture.clear();
            }
            let Some(message) = message else { return Ok(None) };
            line.push_str(&message.manifest_line);
            picture.extend_from_slice(&message.data);
            let broken = |what: String| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, what);
            if picture.len() > MAX_PICTURES {
                return Err(broken("a picture is too large".to_owned()));
            }
            if message.end {
                let entry =
                    serde_json::from_str(&line).map_err(|error| broken(format!("a result of job {}: {error}", self.job)))?;
                self.results.request.first += 1;
                self.results.news();
                return Ok(Some(Made { entry, picture: picture.freeze() }));
            }
        }
    }

    /// The results of the next item.
    async fn item(&mut self) -> Result<Vec<Made>, Problem> {
        let mut group: Vec<Made> = self.next.take().into_iter().collect();
        while !self.ended {
            match self.result().await? {
                Some(result) if group.first().is_none_or(|first| first.entry.id == result.entry.id) => group.push(result),
                Some(result) => {
                    self.next = Some(result);
                    break;
                }
                None => self.ended = true,
            }
        }
        Ok(group)
    }

    /// The next line of this file.
    async fn line(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let group = self.item().await?;
            let Some(first) = group.first() else { return Ok(None) };
            let failure = group.iter().find(|result| result.entry.status != "succeeded");
            if failure.is_some() != self.failed {
                continue;
            }
            let item = &first.entry.id;
            let error = failure.map(|result| {
                let reason = result.entry.error.as_deref().unwrap_or("the batch was cancelled before it was done");
                json!({ "code": result.entry.status, "message": reason })
            });
            let response = match error {
                Some(_) => None,
                None => {
                    let body = match self.endpoint {
                        Endpoint::Images => self.pictures(&group),
                        Endpoint::Chat => self.answer(first),
                    };
                    Some(json!({ "status_code": 200, "request_id": format!("{}/{item}", self.job), "body": body }))
                }
            };
            let id = format!("batch_req_{}_{item}", self.job);
            let line = Line { id, custom_id: unescape(item), response, error };
            let broken = |error: serde_json::Error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
            let mut bytes = serde_json::to_vec(&line).map_err(broken)?;
            bytes.push(b'\n');
            return Ok(Some(bytes.into()));
        }
    }

    fn pictures(&self, group: &[Made]) -> Value {
        let picture = |result: &Made| json!({ "b64_json": BASE64.encode(&result.picture), "seed": result.entry.seed, "sha256": result.entry.sha256 });
        json!({ "created": self.created, "output_format": "png", "data": group.iter().map(picture).collect::<Vec<_>>() })
    }

    fn answer(&self, result: &Made) -> Value {
        let (read, drawn) = (result.entry.input_tokens.unwrap_or_default(), result.entry.output_tokens.unwrap_or_default());
        let finish_reason = result.entry.finish_reason.as_deref().unwrap_or("stop");
        let message = json!({ "role": "assistant", "content": result.entry.text, "refusal": null });
        json!({
            "id": format!("chatcmpl-{}-{}", self.job, result.entry.id),
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{ "index": 0, "message": message, "finish_reason": finish_reason, "logprobs": null }],
            "usage": { "prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn },
        })
    }
}
