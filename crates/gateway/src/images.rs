//! `/v1/images/generations`.

use axum::Json as Answer;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use janus_wire::v1;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::attached::{Painted, Painting};
use crate::body::Json;
use crate::encode::{Format, encode};
use crate::results::Base;
use crate::seed::Seed;
use crate::{Asker, Gateway, Problem, now, remote, results, seed, sse};

/// Pictures of one request.
const MAX_PICTURES: u32 = 10;

/// What to paint. What is not named here is refused rather than ignored.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what has no effect is read too, or it would be refused")]
pub(crate) struct ImageRequest {
    /// What to paint.
    #[schema(required = true, nullable = false)]
    pub(crate) prompt: Option<String>,
    /// The model that is served, or nothing.
    pub(crate) model: Option<String>,
    /// How many pictures; picture i uses seed + i.
    #[schema(minimum = 1, maximum = 10)]
    pub(crate) n: Option<u32>,
    /// `auto`, or the size that the model paints.
    pub(crate) size: Option<String>,
    /// How pictures come back; `b64_json` unless this says `url`.
    pub(crate) response_format: Option<ResponseFormat>,
    /// File format, `png` by default.
    pub(crate) output_format: Option<Format>,
    /// Quality of a JPEG file.
    #[schema(minimum = 0, maximum = 100)]
    pub(crate) output_compression: Option<u8>,
    /// Send events as the pictures grow.
    pub(crate) stream: Option<bool>,
    /// With `stream`: at most so many unfinished pictures.
    #[schema(minimum = 0, maximum = 3)]
    pub(crate) partial_images: Option<u32>,
    /// Pictures have no transparent parts.
    pub(crate) background: Option<Background>,
    /// Without effect: there is one quality.
    pub(crate) quality: Option<String>,
    /// Without effect.
    pub(crate) style: Option<String>,
    /// Without effect.
    pub(crate) moderation: Option<String>,
    /// Without effect.
    pub(crate) user: Option<String>,
    /// Extension: the same seed paints the same picture. Drawn at random if it is left out; the answer says which.
    #[schema(value_type = Option<u64>)]
    pub(crate) seed: Option<Seed>,
    /// Extension: weight of classifier-free guidance; 1 paints without. `cfg_weight` is another name for it.
    #[schema(minimum = 0, maximum = 1000000)]
    #[serde(alias = "cfg_weight")]
    pub(crate) guidance: Option<f32>,
    /// Extension: sampling temperature.
    #[schema(minimum = 0)]
    pub(crate) temperature: Option<f32>,
    /// Extension: sample among so many likeliest ids.
    #[schema(minimum = 1)]
    pub(crate) top_k: Option<u32>,
    /// Extension: sample among the likeliest ids whose probabilities sum to this.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub(crate) top_p: Option<f32>,
    /// Extension: keep the upper rows of this picture (base64, or a data: URL) and paint the rest.
    pub(crate) init_image: Option<String>,
    /// Extension: how many rows of codebook ids of `init_image` to keep.
    pub(crate) keep_rows: Option<u32>,
    /// Extension, with `stream`: send `image_generation.progress` events with the ids as they are drawn, and
    /// `image_generation.queued` and `image_generation.resumed` (after a loss).
    pub(crate) stream_ids: Option<bool>,
}

/// What is behind what was painted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Background {
    Auto,
    Opaque,
}

/// How pictures come back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ResponseFormat {
    /// Inside the answer.
    #[default]
    B64Json,
    /// As a URL of this gateway, for an hour at most.
    Url,
}

/// Finished pictures.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ImageResponse {
    created: u64,
    background: &'static str,
    output_format: Format,
    size: String,
    data: Vec<Picture>,
    usage: Usage,
}

/// A finished picture.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Picture {
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// Extension: paints this picture again.
    seed: u64,
    /// Extension: SHA-256 of its codebook ids as little-endian u16.
    sha256: String,
}

/// What it took.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Usage {
    input_tokens: u64,
    output_tokens: u64,
    total_tokens: u64,
    input_tokens_details: InputDetails,
}

/// Of what the input was.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct InputDetails {
    text_tokens: u64,
    image_tokens: u64,
}

impl Usage {
    fn new(input: u64, output: u64) -> Self {
        Usage {
            input_tokens: input,
            output_tokens: output,
            total_tokens: input + output,
            input_tokens_details: InputDetails { text_tokens: input, image_tokens: 0 },
        }
    }
}

/// How the pictures of a request leave.
#[derive(Debug, Clone)]
pub(crate) struct Manner {
    pub(crate) format: Format,
    pub(crate) quality: Option<u8>,
    /// `WxH`.
    pub(crate) size: String,
}

impl ImageRequest {
    /// Checks everything that the coordinator cannot: the words of this door. `side` is the model's.
    pub(crate) fn manner(&self, side: u32) -> Result<Manner, Problem> {
        let size = format!("{side}x{side}");
        if let Some(other) = self.size.as_deref().filter(|s| *s != "auto" && *s != size) {
            return Err(Problem::invalid("size", format!("size: `{other}`: this model paints {size}, and nothing else")));
        }
        if let Some(n) = self.n.filter(|n| !(1..=MAX_PICTURES).contains(n)) {
            return Err(Problem::invalid("n", format!("n: {n} is not from 1 to {MAX_PICTURES}")));
        }
        if self.output_compression.is_some_and(|quality| quality > 100) {
            return Err(Problem::invalid("output_compression", "output_compression: must be from 0 to 100"));
        }
        Ok(Manner { format: self.output_format.unwrap_or_default(), quality: self.output_compression, size })
    }

    /// The request as the coordinator takes it.
    fn paint(&self, asker: &Asker) -> Result<v1::GenerateImageRequest, Problem> {
        let prompt =
            self.prompt.clone().ok_or_else(|| Problem::invalid("prompt", "prompt: is missing: say what to paint"))?;
        let streaming = self.stream.unwrap_or_default();
        let partial_images = self.partial_images.unwrap_or_default();
        if partial_images > 3 {
            return Err(Problem::invalid("partial_images", format!("partial_images: {partial_images} is not from 0 to 3")));
        }
        if partial_images > 0 && !streaming {
            return Err(Problem::invalid("partial_images", "partial_images: needs `stream: true`"));
        }
        if streaming && self.response_format == Some(ResponseFormat::Url) {
            return Err(Problem::invalid("response_format", "response_format: events carry b64_json, not URLs"));
        }
        let init_image = match &self.init_image {
            Some(text) => Some(v1::Image { data: remote::inline("init_image", text)?, ..v1::Image::default() }),
            None => None,
        };
        Ok(v1::GenerateImageRequest {
            header: Some(asker.header(self.model.clone())),
            prompt,
            raw_prompt: false,
            n: self.n.unwrap_or(1),
            seed: self.seed.map_or_else(seed::random, |seed| seed.0),
            temperature: self.temperature,
            cfg_weight: self.guidance,
            top_k: self.top_k,
            top_p: self.top_p,
            init_image,
            keep_rows: self.keep_rows.unwrap_or_default(),
            stream_ids: streaming && self.stream_ids.unwrap_or_default(),
            partial_images,
        })
    }
}

/// What this door calls a field of the coordinator's.
fn renamed(problem: Problem) -> Problem {
    problem.renamed(|field| match field {
        "cfg_weight" => "guidance".to_owned(),
        other => other.to_owned(),
    })
}

/// Paints pictures.
///
/// With `stream: true` the answer is a stream of server-sent events: `image_generation.partial_image` (with `sketch: true` if
/// no decoder had idle cores, so that it has the colours of the ids so far and no edges),
/// `image_generation.progress`, `.queued`, `.resumed` and `.restarted` if ids were asked for, and `image_generation.completed` for
/// each picture. After `.restarted` everything comes again, completed pictures too.
#[utoipa::path(post, path = "/v1/images/generations", tag = "images", request_body = ImageRequest, responses(
    (status = 200, description = "The pictures", content((ImageResponse = "application/json"), (String = "text/event-stream"))),
    (status = "default", description = "What went wrong", body = crate::problem::Body)
))]
pub(crate) async fn generate(
    State(gateway): State<Gateway>,
    asker: Asker,
    Base(base): Base,
    Json { value: request, room }: Json<ImageRequest>,
) -> Result<Response, Problem> {
    let model = gateway.describe(&asker).await?;
    let manner = request.manner(model.image_size)?;
    let wanted = request.paint(&asker)?;
    let kept = u64::from(wanted.keep_rows) * u64::from(model.grid);
    let mut painting = Painting::new(gateway.clone(), asker, wanted, room);
    painting.begin().await.map_err(|status| renamed(status.into()))?;
    if request.stream.unwrap_or_default() {
        let course = request.stream_ids.unwrap_or_default();
        let growing = Growing { painting, manner, kept, course, created: now() };
        return Ok(sse::stream(growing, Growing::next).into_response());
    }
    let by_url = request.response_format == Some(ResponseFormat::Url);
    let mut data = Vec::new();
    let usage = loop {
        match painting.next().await.map_err(|status| renamed(status.into()))? {
            Painted::Image(image) => {
                let at = image.index;
                let (seed, sha256) = (image.seed, janus_wire::hello::hex(&image.sha256));
                let file = encode(manner.format, manner.quality, (image.width, image.height), image.rgb).await?;
                let (b64_json, url) = match by_url {
                    true => {
                        let name = gateway.results().keep(manner.format, file);
                        (None, Some(format!("{base}{}/{name}", results::PATH)))
                    }
                    false => (Some(BASE64.encode(&file)), None),
                };
                data.push((at, Picture { b64_json, url, seed, sha256 }));
            }
            Painted::Done(done) => break done.usage.unwrap_or_default(),
            Painted::Restarted(_) => data.clear(),
            Painted::Queued(_) | Painted::Resumed(_) | Painted::Progress(_) | Painted::Partial(_) => {}
        }
    };
    data.sort_by_key(|(at, _)| *at);
    let answer = ImageResponse {
        created: now(),
        background: "opaque",
        output_format: manner.format,
        size: manner.size,
        data: data.into_iter().map(|(_, picture)| picture).collect(),
        usage: Usage::new(usage.input_tokens, usage.output_tokens),
    };
    Ok(Answer(answer).into_response())
}

/// An event of a request's course.
fn course(kind: &'static str, name: &str, value: u32) -> Result<sse::Event, Problem> {
    sse::Event::new(kind, &serde_json::json!({ "type": kind, name: value }))
}

/// Pictures as a stream of events.
struct Growing {
    painting: Painting,
    manner: Manner,
    /// Ids that were given.
    kept: u64,
    /// Whoever wants the ids wants to know of the rest of its course too.
    course: bool,
    created: u64,
}

/// What both kinds of picture events say.
#[derive(Serialize)]
struct PictureEvent {
    #[serde(rename = "type")]
    kind: &'static str,
    b64_json: String,
    created_at: u64,
    background: &'static str,
    output_format: Format,
    quality: &'static str,
    size: String,
    /// Extension: which of the n pictures.
    index: u32,
    #[serde(flatten)]
    more: More,
}

#[derive(Serialize)]
#[serde(untagged)]
enum More {
    Partial { partial_image_index: u32, known: u32, sketch: bool },
    Completed { usage: Usage, seed: u64, sha256: String },
}

#[derive(Serialize)]
struct ProgressEvent {
    #[serde(rename = "type")]
    kind: &'static str,
    index: u32,
    known: u32,
    total: u32,
    ids: Vec<u32>,
}

impl Growing {
    /// The next event; nothing after the last picture.
    async fn next(mut self) -> Option<(Result<sse::Event, Problem>, Option<Self>)> {
        loop {
            let event = match self.painting.next().await {
                Ok(Painted::Progress(progress)) if progress.ids.is_empty() => continue,
                Ok(Painted::Queued(_) | Painted::Resumed(_) | Painted::Restarted(_)) if !self.course => continue,
                Ok(Painted::Queued(position)) => course("image_generation.queued", "position", position),
                Ok(Painted::Resumed(count)) => course("image_generation.resumed", "count", count),
                Ok(Painted::Restarted(count)) => course("image_generation.restarted", "count", count),
                Ok(Painted::Progress(p)) => {
                    let kind = "image_generation.progress";
                    let event = ProgressEvent { kind, index: p.index, known: p.known, total: p.total, ids: p.ids };
                    sse::Event::new(kind, &event)
                }
                Ok(Painted::Partial(p)) => {
                    let more = More::Partial { partial_image_index: p.partial, known: p.known, sketch: p.sketch };
                    self.picture("image_generation.partial_image", p.index, (p.width, p.height), p.rgb, more).await
                }
                Ok(Painted::Image(image)) => {
                    let drawn = (image.tokens.len() as u64).saturating_sub(self.kept);
                    let more = More::Completed {
                        usage: Usage::new(self.painting.prompt, drawn),
                        seed: image.seed,
                        sha256: janus_wire::hello::hex(&image.sha256),
                    };
                    let size = (image.width, image.height);
                    self.picture("image_generation.completed", image.index, size, image.rgb, more).await
                }
                Ok(Painted::Done(_)) => return None,
                Err(status) => Err(renamed(status.into())),
            };
            return Some(match event {
                Ok(event) => (Ok(event), Some(self)),
                Err(problem) => (Err(problem), None),
            });
        }
    }

    async fn picture(
        &self,
        kind: &'static str,
        index: u32,
        size: (u32, u32),
        rgb: Bytes,
        more: More,
    ) -> Result<sse::Event, Problem> {
        let file = encode(self.manner.format, self.manner.quality, size, rgb).await?;
        let event = PictureEvent {
            kind,
            b64_json: BASE64.encode(&file),
            created_at: self.created,
            background: "opaque",
            output_format: self.manner.format,
            quality: "auto",
            size: format!("{}x{}", size.0, size.1),
            index,
            more,
        };
        sse::Event::new(kind, &event)
    }
}
