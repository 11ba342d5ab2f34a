//! What verbs talk to: a coordinator somewhere (`--endpoint`), or a cluster in this process. Either way they are
//! clients of the public protocol.

use janus_model::{Checkpoint, KvDtype};
use janus_wire::v1::inference_client::InferenceClient;
use janus_wire::v1::{self, RequestHeader, chat_event, generate_image_event};
use janus_wire::{MAX_CLIENT_MESSAGE, Security};
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::args::Compute;
use crate::checkpoint;
use crate::failure::{Failure, Outcome};
use crate::local::{Local, Needs, Options};

/// The runtime of this process's network side; computing has threads of its own.
pub(crate) fn runtime() -> Outcome<Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    built.map_err(|e| Failure::Broken(format!("no runtime: {e}")))
}

/// A connection to a coordinator.
pub(crate) struct Session {
    /// Keeps a cluster in this process alive; ends before the runtime that it runs on.
    _local: Option<Local>,
    runtime: Runtime,
    client: InferenceClient<Channel>,
    /// What is served.
    pub(crate) model: v1::DescribeModelResponse,
    requests: u64,
}

/// A finished picture.
pub(crate) struct Painted {
    pub(crate) seed: u64,
    pub(crate) tokens: Vec<u32>,
    pub(crate) sha256: String,
    pub(crate) picture: janus_model::image::Rgb8,
}

impl Session {
    /// Connects, or starts a cluster in this process that loads `needs` now.
    pub(crate) fn open(compute: &Compute, needs: Needs) -> Outcome<Self> {
        let runtime = runtime()?;
        let (address, local) = match &compute.endpoint {
            Some(endpoint) => (endpoint.clone(), None),
            None => {
                runtime.block_on(janus_wire::check_loopback()).map_err(|e| {
                    Failure::Broken(format!("{e}; the parts of a pipeline talk over 127.0.0.1, even in one process"))
                })?;
                let checkpoint = Checkpoint::open(checkpoint::files(&compute.here.model)?)?;
                let options = Options {
                    listen: "127.0.0.1:0".to_owned(),
                    model: compute.here.model.clone(),
                    stages: compute.here.stages,
                    threads: compute.here.threads,
                    weights: None,
                    kv: KvDtype::F32,
                    needs,
                };
                let local = runtime.block_on(Local::start(checkpoint, options))?;
                (local.address.to_string(), Some(local))
            }
        };
        let (client, model) = runtime.block_on(connect(&address))?;
        Ok(Session { runtime, client, _local: local, model, requests: 0 })
    }

    /// A fresh request id: two processes, or two calls of one, never share one.
    fn header(&mut self) -> RequestHeader {
        self.requests += 1;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let request_id = format!("cli-{}-{}-{}", std::process::id(), now.as_nanos(), self.requests);
        RequestHeader { request_id, ..RequestHeader::default() }
    }

    /// Paints; `on_progress(picture, known ids)` hears of every step. Returns the prompt's ids and the pictures in order.
    pub(crate) fn paint(
        &mut self,
        mut request: v1::GenerateImageRequest,
        mut on_progress: impl FnMut(u32, u32),
    ) -> Outcome<(Vec<u32>, Vec<Painted>)> {
        request.header = Some(self.header());
        let client = &mut self.client;
        self.runtime.block_on(async {
            let mut events = client.generate_image(request).await.map_err(failure)?.into_inner();
            let (mut prompt, mut painted) = (Vec::new(), Vec::new());
            while let Some(event) = events.message().await.map_err(failure)? {
                match event.event {
                    Some(generate_image_event::Event::Started(started)) => prompt = started.prompt_tokens,
                    Some(generate_image_event::Event::Progress(p)) => on_progress(p.index, p.known),
                    Some(generate_image_event::Event::Image(image)) => painted.push((image.index, finished(image)?)),
                    Some(generate_image_event::Event::Done(_)) => {
                        painted.sort_by_key(|(index, _)| *index);
                        return Ok((prompt, painted.into_iter().map(|(_, picture)| picture).collect()));
                    }
                    Some(generate_image_event::Event::Queued(_)) | None => {}
                }
            }
            Err(Failure::Broken("the server ended the stream before the picture was complete".to_owned()))
        })
    }

    /// Asks; `on_text` gets the answer as it grows. Returns the prompt's ids and the whole answer.
    pub(crate) fn ask(
        &mut self,
        mut request: v1::ChatRequest,
        mut on_text: impl FnMut(&str),
    ) -> Outcome<(Vec<u32>, v1::ChatDone)> {
        request.header = Some(self.header());
        let client = &mut self.client;
        self.runtime.block_on(async {
            let mut events = client.chat(request).await.map_err(failure)?.into_inner();
            let mut prompt = Vec::new();
            while let Some(event) = events.message().await.map_err(failure)? {
                match event.event {
                    Some(chat_event::Event::Started(started)) => prompt = started.prompt_tokens,
                    Some(chat_event::Event::Token(token)) => on_text(&token.text),
                    Some(chat_event::Event::Done(done)) => return Ok((prompt, done)),
                    Some(chat_event::Event::Queued(_)) | None => {}
                }
            }
            Err(Failure::Broken("the server ended the stream before the answer was complete".to_owned()))
        })
    }

    /// VQ ids of a picture file's bytes.
    pub(crate) fn tokenize(&mut self, data: Vec<u8>) -> Outcome<Vec<u32>> {
        let image = Some(v1::Image { data: data.into(), ..v1::Image::default() });
        let request = v1::TokenizeRequest { header: Some(self.header()), image };
        let answer = self.runtime.block_on(self.client.tokenize(request)).map_err(failure)?;
        Ok(answer.into_inner().tokens)
    }

    /// The picture of VQ ids.
    pub(crate) fn detokenize(&mut self, tokens: Vec<u32>) -> Outcome<janus_model::image::Rgb8> {
        let request = v1::DetokenizeRequest { header: Some(self.header()), tokens };
        let answer = self.runtime.block_on(self.client.detokenize(request)).map_err(failure)?.into_inner();
        picture(answer.width, answer.height, &answer.rgb)
    }
}

/// The first of the comma-separated endpoints that answers.
async fn connect(endpoints: &str) -> Outcome<(InferenceClient<Channel>, v1::DescribeModelResponse)> {
    let mut last = Failure::mistake("--endpoint is empty: give host:port");
    for address in endpoints.split(',').map(str::trim).filter(|a| !a.is_empty()) {
        let channel = match janus_wire::connect(address, &Security::Plain).await {
            Ok(channel) => channel,
            Err(error @ janus_wire::Error::Address { .. }) => return Err(Failure::mistake(format!("--endpoint: {error}"))),
            Err(error) => {
                last = Failure::Broken(format!("--endpoint: {error}"));
                continue;
            }
        };
        let client = InferenceClient::new(channel);
        let mut client = client.max_decoding_message_size(MAX_CLIENT_MESSAGE).max_encoding_message_size(MAX_CLIENT_MESSAGE);
        match client.describe(v1::DescribeModelRequest {}).await {
            Ok(model) => return Ok((client, model.into_inner())),
            Err(status) => last = failure(status),
        }
    }
    Err(last)
}

fn finished(image: v1::ImageDone) -> Outcome<Painted> {
    Ok(Painted {
        seed: image.seed,
        sha256: janus_wire::hello::hex(&image.sha256),
        picture: picture(image.width, image.height, &image.rgb)?,
        tokens: image.tokens,
    })
}

fn picture(width: u32, height: u32, rgb: &[u8]) -> Outcome<janus_model::image::Rgb8> {
    Ok(janus_model::image::Rgb8::new(width as usize, height as usize, rgb.to_vec())?)
}

/// What the server refused because of what it was asked is the user's to mend; so is a checkpoint that computes nothing.
fn failure(status: Status) -> Failure {
    let message = status.message().to_owned();
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::OutOfRange
        | Code::Unauthenticated
        | Code::DataLoss => Failure::Mistake(message),
        // A status with a source was not said by the server.
        _ if std::error::Error::source(&status).is_some() => {
            Failure::Broken(format!("the connection to the server was lost: {message}"))
        }
        _ => Failure::Broken(message),
    }
}
