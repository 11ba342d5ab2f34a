//! Items: what is asked for, checked; the requests they become; and the lines they leave in the manifest.

use bytes::Bytes;
use janus_wire::status::invalid;
use janus_wire::v1::{self, job_item};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tonic::Status;

use super::engine::Answer;
use super::record::{Told, UnitResult};
use crate::params::{self, MAX_PICTURES, MAX_PROMPT};

/// Pictures of one question.
const MAX_IMAGES: usize = 64;

/// Refuses an item that could not even be asked for. `number` counts from 0, for messages.
pub(super) fn check(item: &v1::JobItem, number: u64) -> Result<(), Status> {
    let field = |name: &str| format!("items[{number}].{name}");
    let legal = |id: &str| (1..=128).contains(&id.len()) && id.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'/');
    if !legal(&item.id) {
        return Err(invalid(&field("id"), "must be 1 to 128 printable ASCII characters without `/`"));
    }
    match &item.work {
        Some(job_item::Work::Paint(paint)) => {
            if paint.n > MAX_PICTURES {
                return Err(invalid(&field("n"), format!("{} pictures are more than {MAX_PICTURES}", paint.n)));
            }
            if paint.prompt.len() > MAX_PROMPT {
                let bytes = paint.prompt.len();
                return Err(invalid(&field("prompt"), format!("{bytes} bytes are more than {MAX_PROMPT}")));
            }
            let weight = paint.cfg_weight.is_none_or(|w| (0.0..=params::MAX_CFG_WEIGHT).contains(&w));
            if !weight {
                let most = params::MAX_CFG_WEIGHT;
                return Err(invalid(&field("cfg_weight"), format!("must be a number from 0 to {most}")));
            }
            if !matches!(paint.init_image.len(), 0 | 32) {
                return Err(invalid(&field("init_image"), "must be a digest of 32 bytes"));
            }
            if paint.init_image.is_empty() && paint.keep_rows > 0 {
                return Err(invalid(&field("keep_rows"), "needs init_image, whose rows are kept"));
            }
            params::check_sampling(paint.temperature, paint.top_k, paint.top_p, field)
        }
        Some(job_item::Work::Ask(ask)) => {
            if ask.question.len() > MAX_PROMPT {
                let bytes = ask.question.len();
                return Err(invalid(&field("question"), format!("{bytes} bytes are more than {MAX_PROMPT}")));
            }
            if ask.images.len() > MAX_IMAGES || ask.images.iter().any(|digest| digest.len() != 32) {
                return Err(invalid(&field("images"), format!("takes at most {MAX_IMAGES} digests of 32 bytes")));
            }
            conversation(ask, &field)?;
            params::check_sampling(ask.temperature, ask.top_k, ask.top_p, field)
        }
        None => Err(invalid(&field("work"), "is missing: an item paints or asks")),
    }
}

/// Refuses a conversation that is one of two, is too long, or brings its pictures along.
fn conversation(ask: &v1::AskItem, field: &impl Fn(&str) -> String) -> Result<(), Status> {
    if ask.messages.is_empty() {
        return Ok(());
    }
    if !ask.question.is_empty() || !ask.images.is_empty() {
        return Err(invalid(&field("messages"), "are instead of a question and its images"));
    }
    if !images(ask).all(|image| image.data.is_empty() && image.sha256.len() == 32) {
        return Err(invalid(&field("messages"), "name their pictures by digests of 32 bytes"));
    }
    let bytes = ask.messages.iter().map(prost::Message::encoded_len).sum::<usize>();
    if bytes > MAX_PROMPT {
        return Err(invalid(&field("messages"), format!("{bytes} bytes are more than {MAX_PROMPT}")));
    }
    match images(ask).count() > MAX_IMAGES {
        true => Err(invalid(&field("messages"), format!("take at most {MAX_IMAGES} pictures"))),
        false => Ok(()),
    }
}

/// Pictures in a conversation.
fn images(ask: &v1::AskItem) -> impl Iterator<Item = &v1::Image> {
    ask.messages.iter().flat_map(v1::Message::images)
}

/// Digests of the blobs that an item is about, in their order.
pub(super) fn blobs(item: &v1::JobItem) -> impl Iterator<Item = &Bytes> {
    let (paint, ask) = match &item.work {
        Some(job_item::Work::Paint(paint)) => (Some(&paint.init_image), None),
        Some(job_item::Work::Ask(ask)) => (None, Some(ask)),
        None => (None, None),
    };
    let of_ask = ask.into_iter().flat_map(|ask| ask.images.iter().chain(images(ask).map(|image| &image.sha256)));
    paint.into_iter().filter(|digest| !digest.is_empty()).chain(of_ask)
}

/// Pictures or answers of an item.
pub(super) fn units(item: &v1::JobItem) -> u32 {
    match &item.work {
        Some(job_item::Work::Paint(paint)) => paint.n.max(1),
        _ => 1,
    }
}

/// The seed of an item's unit.
fn seed(item: &v1::JobItem, index: u32) -> u64 {
    match &item.work {
        Some(job_item::Work::Paint(paint)) => paint.seed.wrapping_add(u64::from(index)),
        Some(job_item::Work::Ask(ask)) => ask.seed,
        None => 0,
    }
}

/// The file of a picture, below the output: no two units of a job share one.
pub(super) fn path(item: &v1::JobItem, index: u32) -> String {
    format!("pictures/{}-{index}.png", file_name(&item.id))
}

/// An item's id as part of a file name: what a file system, a shell or a URL could mistake is written `=XX`.
fn file_name(id: &str) -> String {
    let mut name = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => name.push(char::from(byte)),
            _ => name.push_str(&format!("={byte:02X}")),
        }
    }
    name
}

/// A picture of an item, as a request for one picture.
pub(super) fn painting(
    paint: &v1::PaintItem,
    init_image: Option<v1::Image>,
    index: u32,
    header: v1::RequestHeader,
) -> v1::GenerateImageRequest {
    v1::GenerateImageRequest {
        header: Some(header),
        prompt: paint.prompt.clone(),
        n: 1,
        seed: paint.seed.wrapping_add(u64::from(index)),
        cfg_weight: paint.cfg_weight,
        temperature: paint.temperature,
        top_k: paint.top_k,
        top_p: paint.top_p,
        init_image,
        keep_rows: paint.keep_rows,
        ..v1::GenerateImageRequest::default()
    }
}

/// A question or a conversation, with the pictures it is about in the order of [`blobs`].
pub(super) fn asking(ask: &v1::AskItem, images: Vec<v1::Image>, header: v1::RequestHeader) -> v1::ChatRequest {
    let mut messages = ask.messages.clone();
    if messages.is_empty() {
        let part = |part| v1::Part { part: Some(part) };
        let mut parts: Vec<v1::Part> = images.into_iter().map(|image| part(v1::part::Part::Image(image))).collect();
        parts.push(part(v1::part::Part::Text(ask.question.clone())));
        messages.push(v1::Message { role: "user".to_owned(), parts });
    } else {
        let said = messages.iter_mut().flat_map(v1::Message::images_mut);
        said.zip(images).for_each(|(place, image)| *place = image);
    }
    v1::ChatRequest {
        header: Some(header),
        messages,
        max_tokens: ask.max_tokens,
        temperature: ask.temperature,
        top_k: ask.top_k,
        top_p: ask.top_p,
        seed: ask.seed,
        stop: ask.stop.clone(),
        ..v1::ChatRequest::default()
    }
}

/// SHA-256 of an answer's text, hexadecimal.
pub(super) fn digest_of_text(text: &str) -> String {
    janus_wire::hello::hex(&Sha256::digest(text))
}

/// What is told of an answer beside its text.
pub(super) fn told(answer: &Answer) -> Told {
    let finish_reason = match answer.finish_reason {
        v1::FinishReason::Length => "length",
        v1::FinishReason::Stop | v1::FinishReason::Unspecified => "stop",
    };
    let v1::Usage { input_tokens, output_tokens } = answer.usage;
    Told { finish_reason: finish_reason.to_owned(), input_tokens, output_tokens }
}

/// A line of the manifest. The order of its fields is part of the format.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    index: u32,
    status: &'a str,
    path: Option<String>,
    sha256: Option<&'a str>,
    seed: u64,
    text: Option<&'a str>,
    error: Option<&'a str>,
    /// Of an answer.
    #[serde(flatten)]
    told: Option<&'a Told>,
}

/// The line of a unit, without its end; `None` for a unit that was cancelled.
pub(super) fn line(item: &v1::JobItem, index: u32, result: Option<&UnitResult>) -> String {
    let paints = matches!(item.work, Some(job_item::Work::Paint(_)));
    let made = result.filter(|result| result.succeeded);
    let line = Line {
        id: &item.id,
        index,
        status: match result {
            None => "cancelled",
            Some(result) if result.succeeded => "succeeded",
            Some(_) => "failed",
        },
        path: made.filter(|_| paints).map(|_| path(item, index)),
        sha256: made.map(|result| result.sha256.as_str()),
        seed: seed(item, index),
        text: made.and_then(|result| result.text.as_deref()),
        error: result.and_then(|result| result.error.as_deref()),
        told: made.and_then(|result| result.told.as_ref()),
    };
    // Strings and numbers are always JSON.
    serde_json::to_string(&line).unwrap_or_default()
}

/// The file that a line of a manifest names.
pub(super) fn path_of(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    line.get("path")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paint(id: &str) -> v1::JobItem {
        let work = job_item::Work::Paint(v1::PaintItem { prompt: "x".into(), seed: 7, ..v1::PaintItem::default() });
        v1::JobItem { id: id.into(), work: Some(work) }
    }

    #[test]
    fn no_two_units_share_a_file_and_no_name_leaves_the_folder() {
        let ids = ["a", "a-1", "..", ".", "A", "a b", "a=20b", "a\\b", "%2e", "C:", "*", "~", "a#1", "a'b\"c"];
        let mut paths = std::collections::BTreeSet::new();
        for id in ids {
            for index in [0, 1, 10] {
                let path = path(&paint(id), index);
                assert!(path.starts_with("pictures/") && path[9..].bytes().all(|b| b != b'/' && b != b'#'), "{path}");
                assert!(paths.insert(path), "{id}");
            }
        }
    }

    #[test]
    fn a_line_says_everything_in_one_order() {
        let result =
            UnitResult { succeeded: true, sha256: "ab".into(), text: None, aside: false, error: None, bytes: 9, told: None };
        let made = r#"{"id":"a","index":1,"status":"succeeded","path":"pictures/a-1.png","sha256":"ab","seed":8,"text":null,"error":null}"#;
        assert_eq!(line(&paint("a"), 1, Some(&result)), made);
        assert_eq!(path_of(made).unwrap(), "pictures/a-1.png");
        let failed = UnitResult { succeeded: false, error: Some("no \"words\"".into()), ..result };
        let refused = r#"{"id":"a","index":0,"status":"failed","path":null,"sha256":null,"seed":7,"text":null,"error":"no \"words\""}"#;
        assert_eq!(line(&paint("a"), 0, Some(&failed)), refused);
        assert!(line(&paint("a"), 0, None).contains(r#""status":"cancelled","path":null"#));
    }

    #[test]
    fn pictures_of_a_conversation_come_into_their_places() {
        let named = |n: u8| v1::Image { sha256: vec![n; 32].into(), ..v1::Image::default() };
        let part = |part| v1::Part { part: Some(part) };
        let message = |role: &str, parts: Vec<v1::part::Part>| v1::Message {
            role: role.into(),
            parts: parts.into_iter().map(part).collect(),
        };
        use v1::part::Part::{Image, Text};
        let messages = vec![
            message("system", vec![Text("be short".into())]),
            message("user", vec![Text("this".into()), Image(named(1)), Image(named(2))]),
            message("user", vec![Image(named(1))]),
        ];
        let ask = v1::AskItem { messages, top_k: Some(3), top_p: Some(0.5), ..v1::AskItem::default() };
        let item = v1::JobItem { id: "a".into(), work: Some(job_item::Work::Ask(ask.clone())) };
        let digests: Vec<u8> = blobs(&item).map(|digest| digest[0]).collect();
        assert_eq!(digests, [1, 2, 1]);
        let image = |n: u8| v1::Image { data: vec![n].into(), ..v1::Image::default() };
        let request = asking(&ask, digests.iter().map(|n| image(*n)).collect(), v1::RequestHeader::default());
        assert_eq!((request.top_k, request.top_p), (Some(3), Some(0.5)));
        assert_eq!(request.messages[0], ask.messages[0]);
        assert_eq!(request.messages[1], message("user", vec![Text("this".into()), Image(image(1)), Image(image(2))]));
        assert_eq!(request.messages[2], message("user", vec![Image(image(1))]));
    }

    #[test]
    fn an_item_that_cannot_be_asked_for_is_refused_by_its_field() {
        let refused = |item: &v1::JobItem| check(item, 3).unwrap_err().message().to_owned();
        for id in ["", "a/b", "a\nb", "\u{e9}", &"x".repeat(129)] {
            assert!(refused(&paint(id)).starts_with("items[3].id: "), "{id}");
        }
        assert!(check(&paint("a b"), 0).is_ok());
        let with = |change: fn(&mut v1::PaintItem)| {
            let mut item = paint("a");
            if let Some(job_item::Work::Paint(paint)) = &mut item.work {
                change(paint);
            }
            refused(&item)
        };
        assert!(with(|p| p.n = 257).starts_with("items[3].n: "));
        assert!(with(|p| p.temperature = Some(f32::NAN)).starts_with("items[3].temperature: "));
        assert!(with(|p| p.cfg_weight = Some(-1.0)).starts_with("items[3].cfg_weight: "));
        assert!(with(|p| p.top_k = Some(0)).starts_with("items[3].top_k: "));
        assert!(with(|p| p.top_p = Some(1.5)).starts_with("items[3].top_p: "));
        assert!(with(|p| p.init_image = vec![0; 31].into()).starts_with("items[3].init_image: "));
        assert!(with(|p| p.keep_rows = 2).starts_with("items[3].keep_rows: "));
        let said = |question: &str, sha256: usize, data: &'static [u8]| {
            let picture = v1::Image { sha256: vec![1; sha256].into(), data: Bytes::from_static(data) };
            let parts = vec![v1::Part { part: Some(v1::part::Part::Image(picture)) }];
            let messages = vec![v1::Message { role: "user".into(), parts }];
            let ask = v1::AskItem { question: question.into(), messages, ..v1::AskItem::default() };
            v1::JobItem { id: "a".into(), work: Some(job_item::Work::Ask(ask)) }
        };
        assert!(check(&said("", 32, b""), 3).is_ok());
        for item in [said("too?", 32, b""), said("", 31, b""), said("", 32, b"bytes")] {
            assert!(refused(&item).starts_with("items[3].messages: "));
        }
        assert!(refused(&v1::JobItem { id: "a".into(), work: None }).starts_with("items[3].work: "));
    }
}
