//! Lines of a batch's file as items of a job: each is a request of one of our endpoints, as far as a job can do it.

use std::collections::{BTreeSet, HashMap};

use axum::http::StatusCode;
use bytes::Bytes;
use janus_wire::v1::{self, job_item};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::body::parse;
use crate::chat::{ChatRequest, Content, Part, Role};
use crate::encode::Format;
use crate::images::{ImageRequest, ResponseFormat};
use crate::{Asker, Gateway, Problem, files};

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
    let side = gateway.describe(asker).await?.image_size;
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
        let item = item(gateway, asker, endpoint, side, line, &mut kept).await.map_err(|problem| at(number, problem))?;
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
    /// Of a question: where each picture stands in the line, and its URL.
    pictures: Vec<(String, String)>,
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
    let (work, pictures) = match endpoint {
        Endpoint::Images => (job_item::Work::Paint(paint(parse(body)?, side, drawn)?), Vec::new()),
        Endpoint::Chat => {
            let (ask, pictures) = ask(parse(body)?, drawn)?;
            (job_item::Work::Ask(ask), pictures)
        }
    };
    Ok(Asked { item: v1::JobItem { id, work: Some(work) }, pictures })
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
    side: u32,
    line: &[u8],
    kept: &mut HashMap<[u8; 32], Bytes>,
) -> Result<v1::JobItem, Problem> {
    let Asked { mut item, pictures } = read(endpoint, side, line)?;
    let Some(job_item::Work::Ask(ask)) = &mut item.work else { return Ok(item) };
    for (param, url) in pictures {
        let picture = gateway.remote().picture(&param, &url).await?;
        let digest: [u8; 32] = Sha256::digest(&picture).into();
        let there = match kept.get(&digest) {
            Some(there) => there.clone(),
            None => {
                let there = files::put(gateway, asker, picture).await?;
                kept.insert(digest, there.clone());
                there
            }
        };
        ask.images.push(there);
    }
    Ok(item)
}

/// Refuses what a job cannot do though a request can.
fn only(fields: &[(&str, bool)]) -> Result<(), Problem> {
    match fields.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(Problem::invalid(*name, format!("{name}: is not for batches"))),
        None => Ok(()),
    }
}

fn paint(request: ImageRequest, side: u32, drawn: u64) -> Result<v1::PaintItem, Problem> {
    let manner = request.manner(side)?;
    only(&[
        ("stream", request.stream == Some(true)),
        ("partial_images", request.partial_images.is_some_and(|n| n > 0)),
        ("stream_ids", request.stream_ids == Some(true)),
        ("response_format", request.response_format == Some(ResponseFormat::Url)),
        ("output_format", manner.format != Format::Png),
        ("init_image", request.init_image.is_some()),
        ("keep_rows", request.keep_rows.is_some_and(|rows| rows > 0)),
        ("top_k", request.top_k.is_some()),
        ("top_p", request.top_p.is_some()),
    ])?;
    Ok(v1::PaintItem {
        prompt: request.prompt.ok_or_else(|| Problem::invalid("prompt", "prompt: is missing: say what to paint"))?,
        n: request.n.unwrap_or(1),
        seed: request.seed.map_or(drawn, |seed| seed.0),
        cfg_weight: request.guidance,
        temperature: request.temperature,
    })
}

/// A question, and where its pictures are.
fn ask(request: ChatRequest, drawn: u64) -> Result<(v1::AskItem, Vec<(String, String)>), Problem> {
    request.check()?;
    only(&[
        ("stream", request.stream == Some(true)),
        ("top_k", request.top_k.is_some()),
        ("top_p", request.top_p.is_some_and(|p| p != 1.0)),
    ])?;
    let (max_tokens, stop) = (request.most(), request.stops());
    let one = || Problem::invalid("messages", "messages: in a batch it is one message, of the user");
    let mut messages = request.messages.unwrap_or_default();
    let message = messages.pop().filter(|m| messages.is_empty() && m.role == Role::User).ok_or_else(one)?;
    let (mut question, mut pictures) = (Vec::new(), Vec::new());
    let parts = match message.content.ok_or_else(one)? {
        Content::Text(text) => vec![Part::Text { text }],
        Content::Parts(parts) => parts,
    };
    for (i, part) in parts.into_iter().enumerate() {
        match part {
            Part::Text { text } => question.push(text),
            Part::ImageUrl { image_url } => pictures.push((format!("messages[0].content[{i}].image_url"), image_url.url)),
        }
    }
    let item = v1::AskItem {
        question: question.join("\n"),
        images: Vec::new(),
        max_tokens,
        temperature: request.temperature,
        seed: request.seed.map_or(drawn, |seed| seed.0),
        stop,
    };
    Ok((item, pictures))
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
