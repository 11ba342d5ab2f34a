//! Lines of a batch's file as items of a job: each is a request of one of our endpoints, as far as a job can do it.

use std::collections::{BTreeSet, HashMap};

use axum::http::StatusCode;
use bytes::Bytes;
use janus_wire::v1::{self, job_item};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::body::parse;
use crate::chat::{self, ChatRequest};
use crate::encode::Format;
use crate::images::{ImageRequest, ResponseFormat};
use crate::{Asker, Gateway, Problem, files, remote};

/// Lines of one batch.
const MAX_LINES: usize = 50_000;
/// Longest name of an item, as the job has it.
const MAX_ID: usize = 128;

/// What a batch's lines ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Images,
    Chat,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    custom_id: String,
    method: String,
    url: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

impl Endpoint {
    /// By its path.
    pub(crate) fn of(path: &str) -> Option<Self> {
        [Endpoint::Images, Endpoint::Chat].into_iter().find(|endpoint| endpoint.path() == path)
    }

    pub(crate) fn path(self) -> &'static str {
        match self {
            Endpoint::Images => "/v1/images/generations",
            Endpoint::Chat => "/v1/chat/completions",
        }
    }
}

/// The items of a file's lines; pictures in them are kept in the cluster first.
pub(crate) async fn items(
    gateway: &Gateway,
    asker: &Asker,
    endpoint: Endpoint,
    content: &Bytes,
) -> Result<Vec<v1::JobItem>, Problem> {
    let at = |number: usize, problem: Problem| {
        let message = format!("line {number}: {}", problem.message());
        let told = Problem::invalid("input_file_id", message).code("invalid_line");
        if problem.is_callers() { told } else { problem }
    };
    let served = gateway.describe(asker).await?;
    let (mut items, mut ids) = (Vec::new(), BTreeSet::new());
    // A picture of many lines is kept once.
    let mut kept: HashMap<[u8; 32], Bytes> = HashMap::new();
    for (number, line) in (1..).zip(content.split(|byte| *byte == b'\n')) {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if items.len() == MAX_LINES {
            return Err(at(number, Problem::invalid("input_file_id", format!("a batch has at most {MAX_LINES} lines"))));
        }
        let item = item(gateway, asker, endpoint, &served, line, &mut kept).await.map_err(|problem| at(number, problem))?;
        if !ids.insert(item.id.clone()) {
            return Err(at(number, Problem::invalid("custom_id", "custom_id: another line has the same")));
        }
        items.push(item);
    }
    match items.is_empty() {
        true => Err(Problem::invalid("input_file_id", "input_file_id: the file has no lines")),
        false => Ok(items),
    }
}

/// What a line asks for, before any picture of it was looked at.
struct Asked {
    item: v1::JobItem,
    model: Option<String>,
    /// In the order of their places in the item.
    pictures: Vec<Sent>,
}

/// A picture of a line: its parameter, and where it is.
struct Sent {
    param: String,
    at: At,
}

enum At {
    Url(String),
    /// In base64, or a data: URL.
    Inline(String),
}

/// Reads a line of a batch for pictures of `side` pixels.
fn read(endpoint: Endpoint, side: u32, line: &[u8]) -> Result<Asked, Problem> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| {
        let message = format!("expected {{\"custom_id\",\"method\",\"url\",\"body\"}}: {error}");
        Problem::new(StatusCode::BAD_REQUEST, message)
    })?;
    if line.method != "POST" {
        return Err(Problem::invalid("method", "method: it is POST"));
    }
    if line.url != endpoint.path() {
        return Err(Problem::invalid("url", format!("url: it is the batch's endpoint, {}", endpoint.path())));
    }
    let id = escape(&line.custom_id)?;
    // Not drawn at random: the same file is the same batch.
    let drawn = Sha256::digest(line.custom_id.as_bytes());
    let drawn = u64::from(u32::from_le_bytes([drawn[0], drawn[1], drawn[2], drawn[3]]));
    let body = line.body.get().as_bytes();
    let (work, model, pictures) = match endpoint {
        Endpoint::Images => {
            let mut request: ImageRequest = parse(body)?;
            let model = request.model.take();
            let (paint, pictures) = paint(request, side, drawn)?;
            (job_item::Work::Paint(paint), model, pictures)
        }
        Endpoint::Chat => {
            let mut request: ChatRequest = parse(body)?;
            let model = request.model.take();
            let (ask, pictures) = ask(request, drawn)?;
            (job_item::Work::Ask(ask), model, pictures)
        }
    };
    Ok(Asked { item: v1::JobItem { id, work: Some(work) }, model, pictures })
}

/// Whether a line of a batch for the endpoint at `path` could be asked for; its pictures are not looked at.
///
/// # Errors
/// What is wrong with it.
pub fn check_line(path: &str, side: u32, line: &[u8]) -> Result<(), Problem> {
    let endpoint = Endpoint::of(path).ok_or_else(|| Problem::invalid("endpoint", "endpoint: there are no batches of it"))?;
    read(endpoint, side, line).map(drop)
}

async fn item(
    gateway: &Gateway,
    asker: &Asker,
    endpoint: Endpoint,
    served: &v1::DescribeModelResponse,
    line: &[u8],
    kept: &mut HashMap<[u8; 32], Bytes>,
) -> Result<v1::JobItem, Problem> {
    let Asked { mut item, model, pictures } = read(endpoint, served.image_size, line)?;
    if let Some(other) = model.filter(|model| *model != served.model) {
        let other: String = other.chars().take(100).collect();
        let message = format!("model: `{other}` is not served here; `{}` is", served.model);
        return Err(Problem::invalid("model", message).code("model_not_found"));
    }
    let mut digests = Vec::new();
    for Sent { param, at } in pictures {
        let picture = match at {
            At::Url(url) => gateway.remote().picture(&param, &url).await?,
            At::Inline(text) => remote::inline(&param, &text)?,
        };
        let digest: [u8; 32] = Sha256::digest(&picture).into();
        digests.push(match kept.get(&digest) {
            Some(there) => there.clone(),
            None => {
                let there = files::put(gateway, asker, picture).await?;
                kept.insert(digest, there.clone());
                there
            }
        });
    }
    match &mut item.work {
        Some(job_item::Work::Paint(paint)) => paint.init_image = digests.pop().unwrap_or_default(),
        Some(job_item::Work::Ask(ask)) => {
            let named = |sha256| v1::Image { sha256, ..v1::Image::default() };
            chat::show(&mut ask.messages, digests.into_iter().map(named).collect());
            plain(ask);
        }
        None => {}
    }
    Ok(item)
}

/// Says a question about pictures that come first as one, which coordinators that know no conversations understand too.
fn plain(ask: &mut v1::AskItem) {
    let [message] = &ask.messages[..] else { return };
    let mut parts: Vec<_> = message.parts.iter().filter_map(|part| part.part.clone()).collect();
    let Some(v1::part::Part::Text(question)) = parts.pop() else { return };
    let images = parts.into_iter().map(|part| match part {
        v1::part::Part::Image(image) => Some(image.sha256),
        v1::part::Part::Text(_) => None,
    });
    if let (Some(images), "user") = (images.collect(), message.role.as_str()) {
        (ask.question, ask.images) = (question, images);
        ask.messages.clear();
    }
}

/// Refuses what a job cannot do though a request can.
fn only(fields: &[(&str, bool)]) -> Result<(), Problem> {
    match fields.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(Problem::invalid(*name, format!("{name}: is not for batches"))),
        None => Ok(()),
    }
}

/// A picture to paint, and the one that it begins with.
fn paint(request: ImageRequest, side: u32, drawn: u64) -> Result<(v1::PaintItem, Vec<Sent>), Problem> {
    let manner = request.manner(side)?;
    only(&[
        ("stream", request.stream == Some(true)),
        ("partial_images", request.partial_images.is_some_and(|n| n > 0)),
        ("stream_ids", request.stream_ids == Some(true)),
        ("response_format", request.response_format == Some(ResponseFormat::Url)),
        ("output_format", manner.format != Format::Png),
    ])?;
    let begun = request.init_image.map(|text| Sent { param: "init_image".to_owned(), at: At::Inline(text) });
    let item = v1::PaintItem {
        prompt: request.prompt.ok_or_else(|| Problem::invalid("prompt", "prompt: is missing: say what to paint"))?,
        n: request.n.unwrap_or(1),
        seed: request.seed.map_or(drawn, |seed| seed.0),
        cfg_weight: request.guidance,
        temperature: request.temperature,
        top_k: request.top_k,
        top_p: request.top_p,
        init_image: Bytes::new(),
        keep_rows: request.keep_rows.unwrap_or_default(),
    };
    Ok((item, begun.into_iter().collect()))
}

/// A conversation, and its pictures.
fn ask(request: ChatRequest, drawn: u64) -> Result<(v1::AskItem, Vec<Sent>), Problem> {
    request.check()?;
    only(&[("stream", request.stream == Some(true))])?;
    let (max_tokens, stop) = (request.most(), request.stops());
    let (messages, pictures) = chat::said(request.messages)?;
    let item = v1::AskItem {
        messages,
        max_tokens,
        temperature: request.temperature,
        seed: request.seed.map_or(drawn, |seed| seed.0),
        stop,
        top_k: request.top_k,
        top_p: request.top_p,
        ..v1::AskItem::default()
    };
    Ok((item, pictures.into_iter().map(|(param, url)| Sent { param, at: At::Url(url) }).collect()))
}

/// A caller's name for a line as a job's item may be called: everything but visible ASCII, `/` and `%` as `%` and two digits.
fn escape(id: &str) -> Result<String, Problem> {
    let mut escaped = String::new();
    for byte in id.bytes() {
        match byte.is_ascii_graphic() && !b"/%".contains(&byte) {
            true => escaped.push(char::from(byte)),
            false => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    match (1..=MAX_ID).contains(&escaped.len()) {
        true => Ok(escaped),
        false => Err(Problem::invalid("custom_id", format!("custom_id: must be 1 to {MAX_ID} characters"))),
    }
}

/// What [`escape`] was given.
pub(crate) fn unescape(id: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = id.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match (first, code) {
            (b'%', Some(code)) => {
                bytes.push(code);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_line_comes_back() {
        for id in ["a", "request/1", "100 %", "%2F", "größe", "a\nb", "日本"] {
            let escaped = escape(id).unwrap();
            assert!(escaped.bytes().all(|b| b.is_ascii_graphic() && b != b'/'), "{escaped}");
            assert_eq!(unescape(&escaped), id);
        }
        assert!(escape("").is_err() && escape(&"x".repeat(129)).is_err());
    }
}
