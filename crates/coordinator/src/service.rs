//! The public service: requests to units, units' records to event streams.

use std::sync::Arc;
use std::time::Duration;

use janus_spec::{GenerationPrompt, ModelSpec, Tokenizer};
use janus_wire::v1::inference_server::{Inference, InferenceServer};
use janus_wire::v1::{
    self, Ids, Kind, Piece, Role, Sampling, decoder_client::DecoderClient, encoder_client::EncoderClient, piece,
};
use janus_wire::{Identity, MAX_CLIENT_MESSAGE, Security, status};

use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::drive::{DriverHandle, Sink};
use crate::images::{Blob, Blobs};
use crate::params::{self, Header, MAX_PICTURES, MAX_PROMPT};
use crate::pipeline::{Nodes, Pool};
use crate::request::{Failure, Joined, Reader, Record, Requests};
use crate::schedule::UnitSpec;

mod chat;
mod paint;
mod stops;

/// Events that wait for a slow reader; its task waits then, nobody else.
const EVENTS: usize = 16;
/// When to come back to a full queue or an unready pipeline.
const RETRY: Duration = Duration::from_secs(2);
/// Encoders and decoders are asked this often.
const ATTEMPTS: usize = 3;

/// What is served: configuration and tokeniser, no weights.
pub struct Model {
    /// Its name.
    pub name: String,
    /// Its configuration.
    pub spec: ModelSpec,
    /// Its tokeniser.
    pub tokenizer: Tokenizer,
}

struct Shared {
    model: Model,
    identity: Identity,
    nodes: Nodes,
    driver: DriverHandle,
    requests: Requests,
    blobs: Blobs,
    encoders: Pool<EncoderClient<Channel>>,
    decoders: Pool<DecoderClient<Channel>>,
    draining: CancellationToken,
    /// Held by every call until its last event is with the transport.
    running: Arc<()>,
}

/// The public gRPC service. Cheap to clone.
#[derive(Clone)]
pub struct Coordinator(Arc<Shared>);

type Events<T> = ReceiverStream<Result<T, Status>>;

impl Coordinator {
    /// A service over a driver and its nodes. `draining` stops admissions.
    pub fn new(
        model: Model,
        identity: Identity,
        security: &Security,
        nodes: Nodes,
        driver: DriverHandle,
        draining: CancellationToken,
    ) -> Self {
        Coordinator(Arc::new(Shared {
            encoders: Pool::new(&nodes.encoders, security),
            decoders: Pool::new(&nodes.decoders, security),
            requests: Requests::default(),
            blobs: Blobs::default(),
            model,
            identity,
            nodes,
            driver,
            draining,
            running: Arc::default(),
        }))
    }

    /// As a tonic service.
    pub fn server(self) -> InferenceServer<Self> {
        InferenceServer::new(self)
            .max_decoding_message_size(MAX_CLIENT_MESSAGE)
            .max_encoding_message_size(MAX_CLIENT_MESSAGE)
    }

    /// Requests that are not finished, and all that are remembered.
    pub fn requests(&self) -> (usize, usize) {
        self.0.requests.counts()
    }

    /// Calls that are being answered.
    pub fn running(&self) -> usize {
        Arc::strong_count(&self.0.running) - 1
    }
}

/// The tenant of a call. Set by the server alone; until there are credentials, everybody is one tenant.
fn tenant<T>(_: &Request<T>) -> String {
    "local".to_owned()
}

impl Shared {
    /// A place among the calls that a shutdown waits for, until one has begun.
    fn enter(&self) -> Result<Arc<()>, Status> {
        let place = self.running.clone();
        match self.draining.is_cancelled() {
            true => Err(status::unavailable("the server is shutting down", RETRY)),
            false => Ok(place),
        }
    }

    fn admit(&self) -> Result<(), Status> {
        match *self.driver.ready().borrow() {
            true => Ok(()),
            false => Err(status::unavailable("the pipeline is not ready", RETRY)),
        }
    }

    fn hello(&self) -> v1::Hello {
        self.identity.hello(Role::Coordinator, 0, 0, 0..0)
    }

    /// Joins or makes a request; new units are submitted.
    async fn join(
        self: &Arc<Self>,
        tenant: &str,
        header: &Header,
        fingerprint: [u8; 32],
        make: impl FnOnce(&[u64]) -> (Record, Vec<UnitSpec>),
        units: usize,
        pictures: Vec<Blob>,
    ) -> Result<Reader, Status> {
        let ids = self.driver.unit_ids(units);
        let mut specs = Vec::new();
        let driver = self.driver.clone();
        let key = format!("{tenant}/{}", header.id);
        let make = || {
            let (record, made) = make(&ids);
            specs = made;
            record
        };
        let reader = match self.requests.join(&key, fingerprint, make, move |units| driver.cancel(units)) {
            Joined::Conflict => {
                return Err(Status::already_exists(format!(
                    "header.request_id: `{}` is in use with other parameters",
                    header.id
                )));
            }
            Joined::Known(reader) => return Ok(reader),
            Joined::New(reader) => reader,
        };
        self.submit(tenant, specs, pictures, reader.another()).await;
        Ok(reader)
    }

    /// Gives units to the driver. A caller that goes away meanwhile does not end this: others may have joined.
    async fn submit(self: &Arc<Self>, tenant: &str, specs: Vec<UnitSpec>, pictures: Vec<Blob>, reader: Reader) {
        let pictures = Arc::new(pictures);
        let mut units = Vec::new();
        for (index, spec) in specs.into_iter().enumerate() {
            let (shared, tenant, pictures, record) =
                (self.clone(), tenant.to_owned(), pictures.clone(), reader.record.clone());
            let again = move |unit| {
                let (shared, tenant, pictures, record) = (shared.clone(), tenant.clone(), pictures.clone(), record.clone());
                tokio::spawn(async move {
                    match shared.understand(&tenant, &pictures).await {
                        Ok(()) => shared.driver.features_ready(unit).await,
                        Err(error) => {
                            tracing::warn!(%error, "pictures could not be encoded again");
                            shared.driver.cancel(&[unit]);
                            let lost = Failure::Lost("its pictures are gone and could not be encoded again".to_owned());
                            record.update(index, |p| p.end = Some(Err(lost)));
                        }
                    }
                });
            };
            let runtime = tokio::runtime::Handle::current();
            // The driver's thread calls this; the work belongs to the public runtime.
            let encode_again: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(move |unit| {
                let _guard = runtime.enter();
                again(unit);
            });
            let sink = Sink { record: reader.record.clone(), index, encode_again: Some(encode_again) };
            units.push((index, spec, sink));
        }
        let driver = self.driver.clone();
        let submit = async move {
            for (index, spec, sink) in units {
                let record = &reader.record;
                // Cancelled before it was the turn of this one.
                if record.look(index, |p| p.end.is_some()).unwrap_or(true) {
                    continue;
                }
                if driver.submit(spec, sink).await.is_err() {
                    record.update(index, |p| p.end = Some(Err(Failure::Lost("the pipeline's driver is gone".to_owned()))));
                }
            }
        };
        let _ = tokio::spawn(submit).await;
    }

    /// Has the features of all pictures at the first stage.
    async fn understand(&self, tenant: &str, pictures: &[Blob]) -> Result<(), Status> {
        let Some(first) = self.nodes.stages.first() else {
            return Err(status::unavailable("the pipeline has no stages", RETRY));
        };
        for picture in pictures {
            let request = v1::UnderstandRequest {
                hello: Some(self.hello()),
                image: picture.data.clone(),
                handle: crate::images::feature_handle(tenant, &picture.digest),
                stage: first.address.clone(),
                stage_first_layer: first.layers.start as u32,
                stage_end_layer: first.layers.end as u32,
            };
            let call =
                retried(|| async { self.encoders.encoder().await.map_err(unreachable)?.understand(request.clone()).await });
            call.await.map_err(|status| status::blame(&picture.field, status))?;
        }
        Ok(())
    }

    /// The picture of a unit's ids, decoded once.
    async fn picture(&self, record: &Record, index: usize, ids: &[u32]) -> Result<v1::DecodeResponse, Status> {
        let Some(cell) = record.picture(index) else { return Err(Status::internal("no such picture")) };
        cell.get_or_try_init(|| self.decode(ids)).await.cloned()
    }

    async fn decode(&self, ids: &[u32]) -> Result<v1::DecodeResponse, Status> {
        let request = v1::DecodeRequest { hello: Some(self.hello()), ids: ids.to_vec() };
        retried(|| async { self.decoders.decoder().await.map_err(unreachable)?.decode(request.clone()).await }).await
    }

    async fn encode_ids(&self, picture: &Blob) -> Result<Vec<u32>, Status> {
        let request = v1::EncodeIdsRequest { hello: Some(self.hello()), image: picture.data.clone() };
        let call = retried(|| async { self.encoders.encoder().await.map_err(unreachable)?.tokenize(request.clone()).await });
        let answer = call.await.map_err(|status| status::blame(&picture.field, status))?;
        Ok(answer.ids)
    }

    fn done(&self, input: usize, output: usize) -> v1::Done {
        let usage = v1::Usage { input_tokens: input as u64, output_tokens: output as u64 };
        v1::Done { numerics: self.identity.numerics.clone(), usage: Some(usage) }
    }
}

fn unreachable(error: janus_wire::Error) -> Status {
    status::unavailable(error.to_string(), RETRY)
}

/// Encoding and decoding change nothing, so a lost node is tried again, on the next one if there is one.
async fn retried<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut attempt = 1;
    loop {
        match call().await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status)
                if attempt < ATTEMPTS && matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown) =>
            {
                attempt += 1
            }
            Err(status) => return Err(status),
        }
    }
}

/// SHA-256 of a request's parameters: everything but its header.
fn fingerprint(what: &str, request: &impl prost::Message) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(what);
    hash.update(request.encode_to_vec());
    hash.finalize().into()
}

/// Waits until the deadline, or for ever.
async fn deadline(left: Option<Duration>) -> Status {
    match left {
        Some(left) => {
            tokio::time::sleep(left).await;
            Status::deadline_exceeded("the deadline passed before the answer was complete")
        }
        None => std::future::pending().await,
    }
}

/// The outcome of `work`, unless the deadline comes first.
async fn within<T>(left: Option<Duration>, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::select! {
        outcome = work => outcome,
        status = deadline(left) => Err(status),
    }
}

/// Runs a reader's task: events until the end, an error, the deadline, or until nobody listens.
fn stream<T, F>(
    place: Arc<()>,
    left: Option<Duration>,
    run: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F,
) -> Response<Events<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (events, stream) = mpsc::channel(EVENTS);
    let task = run(events.clone());
    tokio::spawn(async move {
        let end = tokio::select! {
            end = task => end,
            status = deadline(left) => Err(status),
            () = events.closed() => Ok(()),
        };
        if let Err(status) = end {
            let _ = events.send(Err(status)).await;
        }
        drop(place);
    });
    Response::new(ReceiverStream::new(stream))
}

/// The answer to a send to somebody who is gone: the task ends without an error of its own.
fn gone<E>(_: E) -> Status {
    Status::cancelled("the caller is gone")
}

#[tonic::async_trait]
impl Inference for Coordinator {
    type GenerateImageStream = Events<v1::GenerateImageEvent>;
    type ChatStream = Events<v1::ChatEvent>;

    async fn generate_image(
        &self,
        request: Request<v1::GenerateImageRequest>,
    ) -> Result<Response<Self::GenerateImageStream>, Status> {
        paint::paint(&self.0, &tenant(&request), request.into_inner()).await
    }

    async fn chat(&self, request: Request<v1::ChatRequest>) -> Result<Response<Self::ChatStream>, Status> {
        chat::chat(&self.0, &tenant(&request), request.into_inner()).await
    }

    async fn tokenize(&self, request: Request<v1::TokenizeRequest>) -> Result<Response<v1::TokenizeResponse>, Status> {
        let tenant = tenant(&request);
        let request = request.into_inner();
        let header = params::header(request.header, &self.0.model.name)?;
        let image = request.image.ok_or_else(|| status::invalid("image", "is missing"))?;
        let _place = self.0.enter()?;
        let blob = self.0.blobs.resolve(&tenant, "image", &image)?;
        let tokens = within(header.left, self.0.encode_ids(&blob)).await?;
        Ok(Response::new(v1::TokenizeResponse { tokens }))
    }

    async fn detokenize(&self, request: Request<v1::DetokenizeRequest>) -> Result<Response<v1::DetokenizeResponse>, Status> {
        let request = request.into_inner();
        let header = params::header(request.header, &self.0.model.name)?;
        check_ids(&request.tokens, &self.0.model.spec)?;
        let _place = self.0.enter()?;
        let picture = within(header.left, self.0.decode(&request.tokens)).await?;
        Ok(Response::new(v1::DetokenizeResponse { width: picture.width, height: picture.height, rgb: picture.rgb }))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        let id = format!("{}/{}", tenant(&request), request.get_ref().request_id);
        let record = self.0.requests.get(&id);
        let record =
            record.ok_or_else(|| Status::not_found(format!("request_id: `{}` is unknown", request.get_ref().request_id)))?;
        self.0.driver.cancel(&record.units);
        for index in 0..record.units.len() {
            record.update(index, |p| {
                p.end.get_or_insert(Err(Failure::Cancelled));
            });
        }
        self.0.requests.remove(&id);
        Ok(Response::new(v1::CancelResponse {}))
    }

    async fn describe(&self, _: Request<v1::DescribeModelRequest>) -> Result<Response<v1::DescribeModelResponse>, Status> {
        let (shared, spec) = (&self.0, &self.0.model.spec);
        Ok(Response::new(v1::DescribeModelResponse {
            model: shared.model.name.clone(),
            digest: shared.identity.model.to_vec().into(),
            numerics: shared.identity.numerics.clone(),
            image_size: spec.vq.image_size as u32,
            grid: spec.vq.grid as u32,
            codebook: spec.vq.codebook as u32,
            stages: shared.nodes.stages.len() as u32,
            cfg_weight: spec.generation.cfg_weight,
            temperature: spec.generation.temperature,
        }))
    }
}

fn check_ids(ids: &[u32], spec: &ModelSpec) -> Result<(), Status> {
    if ids.len() != spec.image_tokens() {
        return Err(status::invalid(
            "tokens",
            format!("a picture of this model has {} ids, not {}", spec.image_tokens(), ids.len()),
        ));
    }
    match ids.iter().enumerate().find(|(_, id)| **id as usize >= spec.vq.codebook) {
        Some((i, id)) => {
            let codes = spec.vq.codebook;
            Err(status::invalid("tokens", format!("id {id} at position {i} is outside the codebook of {codes} codes")))
        }
        None => Ok(()),
    }
}
