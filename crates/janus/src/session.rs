//! What verbs talk to: a coordinator somewhere (`--endpoint`), or a cluster in this process. Either way they are
//! clients of the public protocol.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use janus_model::{Checkpoint, KvDtype, WeightFormat};
use janus_wire::v1::inference_client::InferenceClient;
use janus_wire::v1::{self, RequestHeader, chat_event, generate_image_event};
use janus_wire::{MAX_CLIENT_MESSAGE, Security};
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::args::Compute;
use crate::checkpoint;
use crate::credential::signed;
use crate::failure::{Failure, Outcome};
use crate::local::{Local, Needs, Options};

/// The runtime of this process's network side; computing has threads of its own.
pub(crate) fn runtime() -> Outcome<Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    built.map_err(|e| Failure::Broken(format!("no runtime: {e}")))
}

/// How long a request may go without any news before it is given up, while its cluster recovers.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a cluster without a leader may take to find one, before the first word.
const LEADERLESS: Duration = Duration::from_secs(20);
/// Pause between two rounds over the endpoints.
const PAUSE: Duration = Duration::from_millis(200);

/// A connection to a coordinator.
pub(crate) struct Session {
    /// Keeps a cluster in this process alive; ends before the runtime that it runs on.
    local: Option<Local>,
    runtime: Runtime,
    /// Where coordinators are, the one that led last first.
    endpoints: Vec<String>,
    security: Security,
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

/// What a request was called, how often it went on after a loss, and how often it began again under other numerics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Course {
    pub(crate) request: String,
    pub(crate) resumed: u32,
    pub(crate) restarted: u32,
}

impl Course {
    /// Whether this is news: then everything before is void.
    fn begins_again(&mut self, restarted: &v1::Restarted) -> bool {
        let news = restarted.count > self.restarted;
        if news {
            tracing::info!(numerics = restarted.numerics, "the request began again under other numerics");
            self.restarted = restarted.count;
        }
        news
    }
}

/// How an answer grows.
pub(crate) enum Heard<'a> {
    Text(&'a str),
    /// It began again: what was heard before is void.
    Void,
}

/// What has been heard of a picture request so far; it survives a change of coordinators.
#[derive(Default)]
struct Painting {
    prompt: Vec<u32>,
    known: BTreeMap<u32, u32>,
    painted: BTreeMap<u32, Painted>,
    done: bool,
}

/// The same of an answer.
#[derive(Default)]
struct Answering {
    prompt: Vec<u32>,
    /// Bytes of the answer that were passed on.
    passed: usize,
    done: Option<v1::ChatDone>,
}

/// How an attempt ended.
enum Ended {
    Done,
    /// The connection or the coordinator was lost; the request runs on.
    Broken(Status),
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Ended::Failed(failure)
    }
}

impl Session {
    /// Connects, or starts a cluster in this process that loads `needs` now.
    pub(crate) fn open(compute: &Compute, needs: Needs) -> Outcome<Self> {
        match &compute.endpoint {
            Some(endpoint) => Self::connect(runtime()?, endpoint, None, compute.tls.security()?),
            None if compute.tls.asked() => Err(Failure::mistake("--tls-ca, --tls-cert and --tls-key are for --endpoint")),
            None => {
                let checkpoint = Checkpoint::open(checkpoint::files(&compute.here.model)?)?;
                let options = Options {
                    listen: "127.0.0.1:0".to_owned(),
                    model: compute.here.model.clone(),
                    stages: compute.here.stages,
                    threads: compute.here.threads,
                    device: compute.here.device,
                    weights: compute.here.weights.map(WeightFormat::from),
                    kv: KvDtype::from(compute.here.kv),
                    needs,
                    security: Security::Plain,
                    counts: false,
                    operator: None,
                    jobs: None,
                };
                Self::start(checkpoint, options)
            }
        }
    }

    /// Starts a cluster in this process.
    pub(crate) fn start(checkpoint: Checkpoint, options: Options) -> Outcome<Self> {
        let runtime = runtime()?;
        runtime.block_on(janus_wire::check_loopback()).map_err(|e| {
            Failure::Broken(format!("{e}; the parts of a pipeline talk over 127.0.0.1, even in one process"))
        })?;
        let local = runtime.block_on(Local::start(checkpoint, options))?;
        let address = local.address.to_string();
        Self::connect(runtime, &address, Some(local), Security::Plain)
    }

    /// Another session with the same coordinators, for requests beside this one's. It must not outlive a cluster in this
    /// process.
    pub(crate) fn twin(&self) -> Outcome<Self> {
        Self::connect(runtime()?, &self.endpoints.join(","), None, self.security.clone())
    }

    fn connect(runtime: Runtime, address: &str, local: Option<Local>, security: Security) -> Outcome<Self> {
        let mut endpoints: Vec<String> =
            address.split(',').map(str::trim).filter(|a| !a.is_empty()).map(str::to_owned).collect();
        let (client, model) = runtime.block_on(connect(&mut endpoints, &security))?;
        Ok(Session { runtime, client, local, endpoints, security, model, requests: 0 })
    }

    /// A fresh request id: two processes, or two calls of one, never share one.
    fn header(&mut self) -> RequestHeader {
        self.requests += 1;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let request_id = format!("cli-{}-{}-{}", std::process::id(), now.as_nanos(), self.requests);
        RequestHeader { request_id, ..RequestHeader::default() }
    }

    /// Paints; `on_progress(picture, known ids)` hears of every step once. Returns the prompt's ids and the pictures in order.
    pub(crate) fn paint(
        &mut self,
        mut request: v1::GenerateImageRequest,
        mut on_progress: impl FnMut(u32, u32),
    ) -> Outcome<(Vec<u32>, Vec<Painted>, Course)> {
        let header = self.header();
        let mut course = Course { request: header.request_id.clone(), ..Course::default() };
        request.header = Some(header);
        let mut painting = Painting::default();
        let (mut broken, mut heard) = (0, Instant::now());
        loop {
            let before = painting.known.clone();
            let client = &mut self.client;
            let attempt = painting.hear(client, request.clone(), &mut course, &mut on_progress);
            let ended = self.runtime.block_on(attempt);
            if painting.known != before {
                heard = Instant::now();
            }
            match ended {
                Ended::Done => {
                    let pictures = painting.painted.into_values().collect();
                    course.resumed = course.resumed.max(broken);
                    return Ok((painting.prompt, pictures, course));
                }
                Ended::Failed(failure) => return Err(failure),
                Ended::Broken(status) => self.again(status, heard, &mut broken)?,
            }
        }
    }

    /// Asks; `on_text` gets the answer as it grows. Returns the prompt's ids and the whole answer.
    pub(crate) fn ask(
        &mut self,
        mut request: v1::ChatRequest,
        mut on_text: impl FnMut(Heard<'_>),
    ) -> Outcome<(Vec<u32>, v1::ChatDone, Course)> {
        let header = self.header();
        let mut course = Course { request: header.request_id.clone(), ..Course::default() };
        request.header = Some(header);
        let mut answering = Answering::default();
        let (mut broken, mut heard) = (0, Instant::now());
        loop {
            let before = answering.passed;
            let client = &mut self.client;
            let attempt = answering.hear(client, request.clone(), &mut course, &mut on_text);
            let ended = self.runtime.block_on(attempt);
            if answering.passed > before {
                heard = Instant::now();
            }
            match (ended, answering.done.take()) {
                (Ended::Done, Some(done)) => {
                    course.resumed = course.resumed.max(broken);
                    return Ok((answering.prompt, done, course));
                }
                (Ended::Done, None) => {
                    return Err(Failure::Broken("the server ended the stream before the answer was complete".to_owned()));
                }
                (Ended::Failed(failure), _) => return Err(failure),
                (Ended::Broken(status), _) => self.again(status, heard, &mut broken)?,
            }
        }
    }

    /// Finds a coordinator again after a loss, unless it has been too long.
    fn again(&mut self, status: Status, heard: Instant, broken: &mut u32) -> Outcome {
        // There is nobody else in this process.
        if self.local.is_some() {
            return Err(failure(status));
        }
        *broken += 1;
        follow(&mut self.endpoints, &status);
        tracing::info!(error = status.message(), "the coordinator is lost; looking for its successor");
        self.runtime.block_on(async {
            loop {
                match connect(&mut self.endpoints, &self.security).await {
                    Ok((client, _)) => {
                        self.client = client;
                        tokio::time::sleep(PAUSE).await;
                        return Ok(());
                    }
                    Err(mistake @ Failure::Mistake(_)) => return Err(mistake),
                    Err(last) if heard.elapsed() > PATIENCE => return Err(last),
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        })?;
        match heard.elapsed() > PATIENCE {
            true => Err(failure(status)),
            false => Ok(()),
        }
    }

    /// VQ ids of a picture file's bytes.
    pub(crate) fn tokenize(&mut self, data: Vec<u8>) -> Outcome<Vec<u32>> {
        let image = Some(v1::Image { data: data.into(), ..v1::Image::default() });
        let request = v1::TokenizeRequest { header: Some(self.header()), image };
        let answer = self.once_or_again(|mut client| {
            let request = request.clone();
            async move { client.tokenize(signed(request)).await }
        })?;
        Ok(answer.tokens)
    }

    /// The picture of VQ ids.
    pub(crate) fn detokenize(&mut self, tokens: Vec<u32>) -> Outcome<janus_model::image::Rgb8> {
        let request = v1::DetokenizeRequest { header: Some(self.header()), tokens };
        let answer = self.once_or_again(|mut client| {
            let request = request.clone();
            async move { client.detokenize(signed(request)).await }
        })?;
        picture(answer.width, answer.height, &answer.rgb)
    }

    /// A call that changes nothing: it is made again if its coordinator is lost.
    fn once_or_again<R, F>(&mut self, call: impl Fn(InferenceClient<Channel>) -> F) -> Outcome<R>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let (mut broken, heard) = (0, Instant::now());
        loop {
            match self.runtime.block_on(call(self.client.clone())) {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => match lost(status) {
                    Ended::Broken(status) => self.again(status, heard, &mut broken)?,
                    Ended::Failed(failure) => return Err(failure),
                    Ended::Done => {}
                },
            }
        }
    }
}

impl Painting {
    /// Listens to the request's events until its end or a loss; what was heard before is not passed on again.
    async fn hear(
        &mut self,
        client: &mut InferenceClient<Channel>,
        request: v1::GenerateImageRequest,
        course: &mut Course,
        on_progress: &mut impl FnMut(u32, u32),
    ) -> Ended {
        let mut events = match client.generate_image(signed(request)).await {
            Ok(events) => events.into_inner(),
            Err(status) => return lost(status),
        };
        loop {
            let event = match events.message().await {
                Ok(Some(event)) => event,
                Ok(None) if self.done => return Ended::Done,
                Ok(None) => return Ended::Broken(Status::unavailable("the server ended the stream too early")),
                Err(status) => return lost(status),
            };
            match event.event {
                Some(generate_image_event::Event::Started(started)) => self.prompt = started.prompt_tokens,
                Some(generate_image_event::Event::Progress(p)) => {
                    let known = self.known.entry(p.index).or_default();
                    if p.known > *known {
                        *known = p.known;
                        on_progress(p.index, p.known);
                    }
                }
                Some(generate_image_event::Event::Image(image)) => match finished(image) {
                    Ok((index, picture)) => drop(self.painted.insert(index, picture)),
                    Err(failure) => return failure.into(),
                },
                Some(generate_image_event::Event::Done(_)) => {
                    self.done = true;
                    return Ended::Done;
                }
                Some(generate_image_event::Event::Resumed(r)) => course.resumed = course.resumed.max(r.count),
                Some(generate_image_event::Event::Restarted(r)) => {
                    if course.begins_again(&r) {
                        std::mem::take(&mut self.known).into_keys().for_each(|index| on_progress(index, 0));
                        self.painted.clear();
                    }
                }
                Some(
                    generate_image_event::Event::Accepted(_)
                    | generate_image_event::Event::Queued(_)
                    | generate_image_event::Event::Partial(_),
                )
                | None => {}
            }
        }
    }
}

impl Answering {
    async fn hear(
        &mut self,
        client: &mut InferenceClient<Channel>,
        request: v1::ChatRequest,
        course: &mut Course,
        on_text: &mut impl FnMut(Heard<'_>),
    ) -> Ended {
        let mut events = match client.chat(signed(request)).await {
            Ok(events) => events.into_inner(),
            Err(status) => return lost(status),
        };
        let mut at = 0;
        loop {
            let event = match events.message().await {
                Ok(Some(event)) => event,
                Ok(None) => return Ended::Broken(Status::unavailable("the server ended the stream too early")),
                Err(status) => return lost(status),
            };
            match event.event {
                Some(chat_event::Event::Started(started)) => self.prompt = started.prompt_tokens,
                Some(chat_event::Event::Token(token)) => {
                    let end = at + token.text.len();
                    // The same bits come again, so a cut within a piece is a cut between characters.
                    if let Some(new) = token.text.get(self.passed.saturating_sub(at).min(token.text.len())..) {
                        on_text(Heard::Text(new));
                    }
                    self.passed = self.passed.max(end);
                    at = end;
                }
                Some(chat_event::Event::Done(done)) => {
                    self.done = Some(done);
                    return Ended::Done;
                }
                Some(chat_event::Event::Resumed(r)) => course.resumed = course.resumed.max(r.count),
                Some(chat_event::Event::Restarted(r)) => {
                    if course.begins_again(&r) {
                        self.passed = 0;
                        on_text(Heard::Void);
                    }
                }
                Some(chat_event::Event::Accepted(_) | chat_event::Event::Queued(_)) | None => {}
            }
        }
    }
}

/// Whether a request goes on somewhere after this: its connection broke, or who answered cannot lead it now.
fn lost(status: Status) -> Ended {
    match status.code() == Code::Unavailable || std::error::Error::source(&status).is_some() {
        true => Ended::Broken(status),
        false => Ended::Failed(failure(status)),
    }
}

/// Puts the leader that a standby named in front.
fn follow(endpoints: &mut Vec<String>, status: &Status) {
    let Some(leader) = status.metadata().get(janus_wire::LEADER).and_then(|l| l.to_str().ok()) else { return };
    endpoints.retain(|known| known != leader);
    endpoints.insert(0, leader.to_owned());
}

/// The first of the endpoints that leads, or knows who does.
async fn connect(
    endpoints: &mut Vec<String>,
    security: &Security,
) -> Outcome<(InferenceClient<Channel>, v1::DescribeModelResponse)> {
    let started = Instant::now();
    loop {
        let mut last = Failure::mistake("--endpoint is empty: give host:port");
        let mut waiting = false;
        let mut at = 0;
        while let Some(address) = endpoints.get(at).cloned() {
            at += 1;
            let client = match client(&address, security).await {
                Ok(client) => client,
                Err(error @ janus_wire::Error::Address { .. }) => {
                    return Err(Failure::mistake(format!("--endpoint: {error}")));
                }
                Err(error) => {
                    last = Failure::Broken(format!("--endpoint: {error}"));
                    continue;
                }
            };
            let describe = client.clone().describe(signed(v1::DescribeModelRequest::default())).await;
            match describe {
                Ok(model) => {
                    endpoints.remove(at - 1);
                    endpoints.insert(0, address);
                    return Ok((client, model.into_inner()));
                }
                Err(status) => {
                    let named = status.metadata().get(janus_wire::LEADER).and_then(|l| l.to_str().ok());
                    if named.is_some_and(|leader| !endpoints[..at].iter().any(|known| known == leader)) {
                        // Everybody before was asked already.
                        let tail = named.map(str::to_owned).unwrap_or_default();
                        endpoints.retain(|known| *known != tail);
                        endpoints.insert(at.min(endpoints.len()), tail);
                    }
                    waiting |= status.code() == Code::Unavailable;
                    last = failure(status);
                }
            }
        }
        // Somebody is there, but nobody leads yet.
        if !waiting || started.elapsed() > LEADERLESS {
            return Err(last);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn client(address: &str, security: &Security) -> Result<InferenceClient<Channel>, janus_wire::Error> {
    let client = InferenceClient::new(janus_wire::connect(address, security).await?);
    Ok(client.max_decoding_message_size(MAX_CLIENT_MESSAGE).max_encoding_message_size(MAX_CLIENT_MESSAGE))
}

fn finished(image: v1::ImageDone) -> Outcome<(u32, Painted)> {
    let painted = Painted {
        seed: image.seed,
        sha256: janus_wire::hello::hex(&image.sha256),
        picture: picture(image.width, image.height, &image.rgb)?,
        tokens: image.tokens,
    };
    Ok((image.index, painted))
}

fn picture(width: u32, height: u32, rgb: &[u8]) -> Outcome<janus_model::image::Rgb8> {
    Ok(janus_model::image::Rgb8::new(width as usize, height as usize, rgb.to_vec())?)
}

/// What the server refused because of what it was asked is the user's to mend; so is a checkpoint that computes nothing.
pub(crate) fn failure(status: Status) -> Failure {
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
            Failure::Broken(format!("the connection to the server was lost: {}", janus_wire::status::cause(&status)))
        }
        _ => Failure::Broken(message),
    }
}
