//! Painting for the page: ids as they are drawn, then the pictures, as server-sent events. A request that loses its
//! coordinator goes on at the next one; what was told is not told again.

use std::convert::Infallible;
use std::io::Cursor;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ExtendedColorType, ImageEncoder as _};
use janus_wire::MAX_CLIENT_MESSAGE;
use janus_wire::client::{Lead, is_lost};
use janus_wire::v1::inference_client::InferenceClient;
use janus_wire::v1::{self, GenerateImageEvent, GenerateImageRequest, generate_image_event};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::read;
use crate::{Asker, Gateway, Problem};

/// Events that wait for a slow browser.
const EVENTS: usize = 16;
/// How long a picture may be without news before it is given up; so long a cluster may take to recover.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause before another attempt.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    prompt: String,
    #[serde(default)]
    n: u32,
    #[serde(default)]
    seed: u64,
    guidance: Option<f32>,
    temperature: Option<f32>,
    /// A picture file in base64, of which the upper rows are kept.
    init_image: Option<String>,
    #[serde(default)]
    keep_rows: u32,
}

type Out = mpsc::Sender<Result<Event, Infallible>>;

pub(super) async fn paint(
    State(gateway): State<Gateway>,
    asker: Asker,
    body: Bytes,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let wish: Wish = read(&body)?;
    let init_image = match wish.init_image {
        Some(text) => {
            let data = STANDARD.decode(text).map_err(|e| Problem::invalid("init_image", format!("not base64: {e}")))?;
            Some(v1::Image { data: data.into(), ..v1::Image::default() })
        }
        None => None,
    };
    let request = GenerateImageRequest {
        header: Some(asker.header(None)),
        prompt: wish.prompt,
        n: wish.n,
        seed: wish.seed,
        cfg_weight: wish.guidance,
        temperature: wish.temperature,
        init_image,
        keep_rows: wish.keep_rows,
        stream_ids: true,
        ..GenerateImageRequest::default()
    };
    let mut painting =
        Painting { gateway, asker, request, begun: false, told: Vec::new(), resumed: 0, heard: Instant::now() };
    // A refusal is the answer to the request, not an event.
    let (lead, events) = painting.begin().await?;
    let (out, stream) = mpsc::channel(EVENTS);
    tokio::spawn(async move {
        // A browser that is gone wants nothing any more; the request ends with its stream.
        tokio::select! {
            () = painting.tell(lead, events, &out) => {}
            () = out.closed() => {}
        }
    });
    Ok(Sse::new(ReceiverStream::new(stream)).keep_alive(KeepAlive::default()))
}

/// What one picture's reader knows.
#[derive(Default, Clone)]
struct Told {
    known: u32,
    done: bool,
}

struct Painting {
    gateway: Gateway,
    asker: Asker,
    request: GenerateImageRequest,
    /// A coordinator took it.
    begun: bool,
    told: Vec<Told>,
    resumed: u32,
    /// When there was news last.
    heard: Instant,
}

impl Painting {
    /// Begins the request, or joins it again.
    async fn begin(&mut self) -> Result<(Lead, Streaming<GenerateImageEvent>), Status> {
        loop {
            let lost = match self.gateway.coordinators().lead().await {
                Ok(lead) => {
                    let client = InferenceClient::new(lead.channel.clone());
                    let mut client =
                        client.max_decoding_message_size(MAX_CLIENT_MESSAGE).max_encoding_message_size(MAX_CLIENT_MESSAGE);
                    match client.generate_image(self.asker.request(self.request.clone())).await {
                        Ok(events) => {
                            self.begun = true;
                            return Ok((lead, events.into_inner()));
                        }
                        Err(status) if is_lost(&status) => {
                            self.gateway.coordinators().lost(&lead, &status).await;
                            status
                        }
                        Err(status) => return Err(status),
                    }
                }
                Err(status) => status,
            };
            // Nobody waits minutes for a first word.
            let patience = if self.begun { PATIENCE } else { super::PATIENCE };
            if self.heard.elapsed() > patience {
                return Err(lost);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Tells everything until the end, or what went wrong.
    async fn tell(&mut self, mut lead: Lead, mut events: Streaming<GenerateImageEvent>, out: &Out) {
        loop {
            let status = match events.message().await {
                Ok(Some(GenerateImageEvent { event: Some(event) })) => {
                    self.heard = Instant::now();
                    match self.news(event) {
                        Ok(None) => continue,
                        Ok(Some((name, data))) => {
                            if send(out, name, data).await.is_err() || name == "done" {
                                return;
                            }
                            continue;
                        }
                        Err(problem) => return fail(out, &problem).await,
                    }
                }
                Ok(Some(_)) => continue,
                Ok(None) => Status::unavailable("the coordinator ended the stream too early"),
                Err(status) => status,
            };
            if !is_lost(&status) {
                return fail(out, &status.into()).await;
            }
            self.gateway.coordinators().lost(&lead, &status).await;
            if send(out, "lost", json!({ "reason": status.message() })).await.is_err() {
                return;
            }
            match self.begin().await {
                Ok(begun) => (lead, events) = begun,
                Err(status) => return fail(out, &status.into()).await,
            }
        }
    }

    /// What is new in an event: its name and data.
    fn news(&mut self, event: generate_image_event::Event) -> Result<Option<(&'static str, Value)>, Problem> {
        use generate_image_event::Event as Heard;
        Ok(Some(match event {
            Heard::Accepted(accepted) => ("accepted", json!({ "id": self.asker.id(), "durable": accepted.durable })),
            Heard::Queued(queued) => ("queued", json!({ "position": queued.position })),
            Heard::Started(_) => ("started", json!({})),
            Heard::Resumed(resumed) if resumed.count > self.resumed => {
                self.resumed = resumed.count;
                ("resumed", json!({ "count": resumed.count }))
            }
            Heard::Resumed(_) | Heard::Partial(_) => return Ok(None),
            Heard::Progress(progress) => {
                let told = self.told(progress.index);
                // Those that are news of what this event brings.
                let new = progress.known.saturating_sub(told.known) as usize;
                told.known = told.known.max(progress.known);
                let ids = &progress.ids[progress.ids.len().saturating_sub(new)..];
                if ids.is_empty() {
                    return Ok(None);
                }
                let v1::ImageProgress { index, known, total, .. } = progress;
                ("progress", json!({ "index": index, "known": known, "total": total, "ids": ids }))
            }
            Heard::Image(image) => {
                let told = self.told(image.index);
                if std::mem::replace(&mut told.done, true) {
                    return Ok(None);
                }
                let data = Picture {
                    index: image.index,
                    // Seeds fill 64 bits, numbers of JavaScript 53.
                    seed: image.seed.to_string(),
                    sha256: janus_wire::hello::hex(&image.sha256),
                    width: image.width,
                    height: image.height,
                    png: STANDARD.encode(png(&image)?),
                };
                ("image", serde_json::to_value(data).unwrap_or_default())
            }
            Heard::Done(done) => {
                let usage = done.usage.unwrap_or_default();
                ("done", json!({ "numerics": done.numerics, "input": usage.input_tokens, "output": usage.output_tokens }))
            }
        }))
    }

    fn told(&mut self, index: u32) -> &mut Told {
        let index = index as usize;
        self.told.resize(self.told.len().max(index + 1), Told::default());
        &mut self.told[index]
    }
}

#[derive(Serialize)]
struct Picture {
    index: u32,
    seed: String,
    sha256: String,
    width: u32,
    height: u32,
    png: String,
}

fn png(image: &v1::ImageDone) -> Result<Vec<u8>, Problem> {
    let mut file = Cursor::new(Vec::new());
    let encoder = image::codecs::png::PngEncoder::new(&mut file);
    encoder.write_image(&image.rgb, image.width, image.height, ExtendedColorType::Rgb8).map_err(|e| {
        Problem::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, format!("the picture cannot be written as PNG: {e}"))
    })?;
    Ok(file.into_inner())
}

async fn send(out: &Out, name: &str, data: Value) -> Result<(), ()> {
    out.send(Ok(Event::default().event(name).data(data.to_string()))).await.map_err(drop)
}

async fn fail(out: &Out, problem: &Problem) {
    let data = serde_json::to_value(problem.body()).unwrap_or_default();
    let _ = send(out, "problem", data).await;
}
