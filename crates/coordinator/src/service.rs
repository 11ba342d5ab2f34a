//! The public service: requests to units, units' records to event streams.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use janus_spec::{GenerationPrompt, ModelSpec, Tokenizer};
use janus_wire::v1::inference_server::{Inference, InferenceServer};
use janus_wire::v1::{
    self, AdmittedRequest, Ids, Kind, Piece, Role, Sampling, admitted_request, decoder_client::DecoderClient,
    encoder_client::EncoderClient, piece,
};
use janus_wire::{Identity, MAX_CLIENT_MESSAGE, Security, status};
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use crate::auth::Caller;
use crate::drive::DriverHandle;
use crate::images::{Blob, Blobs};
use crate::ledger::{Ledger, Logs};
use crate::params::{self, MAX_PICTURES, MAX_PROMPT};
use crate::pool::{Addresses, Pool};
use crate::request::{Failure, Joined, Reader, Record, Requests};
use crate::schedule::{Share, UnitId, UnitSpec};
use crate::tenants::Tenants;

mod admission;
mod chat;
mod encoded;
mod events;
mod nodes;
mod paint;
mod palette;
mod partial;
mod seen;
mod stops;
mod unit;

use admission::{Work, fingerprint};
use events::{Events, gone, stream, within};
pub use seen::Watched;
use seen::{Calls, Operation, Seen};

/// When to come back to a full queue or an unready pipeline.
const RETRY: Duration = Duration::from_secs(2);

/// What is served: configuration and tokeniser, no weights.
pub struct Model {
    /// Its name.
    pub name: String,
    /// Its configuration.
    pub spec: ModelSpec,
    /// Its tokeniser.
    pub tokenizer: Tokenizer,
}

/// What a coordinator works with.
pub struct Parts {
    /// Who we are.
    pub identity: Identity,
    /// How we connect.
    pub security: Security,
    /// One driver for each pipeline.
    pub drivers: Vec<DriverHandle>,
    /// Encoders, as they come and go.
    pub encoders: Addresses,
    /// Decoders.
    pub decoders: Addresses,
    /// How long encoding or decoding may look for a node that does it.
    pub patience: Duration,
    /// Where requests are durable; a single process has none.
    pub ledger: Option<Ledger>,
    /// Who may do how much.
    pub tenants: Tenants,
    /// What began under other numerics begins again under ours; if not, it waits for them.
    pub restart: bool,
    /// Finished requests can be read again for this long.
    pub keep: Duration,
    /// Stops admissions.
    pub draining: CancellationToken,
    /// Ends every stream: what was written down goes on elsewhere.
    pub over: CancellationToken,
}

struct Shared {
    model: Model,
    identity: Identity,
    drivers: Vec<DriverHandle>,
    /// Rows that are on their way to each of them.
    claimed: Vec<Arc<AtomicUsize>>,
    next_unit: AtomicU64,
    requests: Requests,
    blobs: Blobs,
    encoders: Pool<EncoderClient<Channel>>,
    decoders: Pool<DecoderClient<Channel>>,
    /// What each code looks like, once a decoder said so.
    palette: OnceCell<Bytes>,
    encoded: encoded::Encoded,
    ledger: Option<Ledger>,
    tenants: Tenants,
    restart: bool,
    /// Requests that began under other numerics, and wait for a leader that has nodes of those.
    waiting: Mutex<BTreeMap<String, String>>,
    draining: CancellationToken,
    over: CancellationToken,
    calls: Arc<Calls>,
    /// Held by every call until its last event is with the transport.
    running: Arc<()>,
}

/// The public gRPC service. Cheap to clone.
#[derive(Clone)]
pub struct Coordinator(Arc<Shared>);

impl Coordinator {
    /// A service over the drivers of its pipelines.
    pub fn new(model: Model, parts: Parts) -> Self {
        let Parts { identity, security, drivers, encoders, decoders, patience, ledger, .. } = parts;
        let Parts { tenants, restart, keep, draining, over, .. } = parts;
        Coordinator(Arc::new(Shared {
            encoders: Pool::encoders(encoders, &security, patience),
            decoders: Pool::decoders(decoders, &security, patience),
            palette: OnceCell::new(),
            encoded: encoded::Encoded::default(),
            // The canary of every pipeline is 0.
            next_unit: AtomicU64::new(1),
            requests: Requests::new(keep),
            blobs: Blobs::default(),
            calls: Arc::new(Calls::new(&model.name)),
            model,
            identity,
            claimed: drivers.iter().map(|_| Arc::default()).collect(),
            drivers,
            ledger,
            tenants,
            restart,
            waiting: Mutex::default(),
            draining,
            over,
            running: Arc::default(),
        }))
    }

    /// As a tonic service.
    pub fn server(self) -> InferenceServer<Self> {
        InferenceServer::new(self)
            .max_decoding_message_size(MAX_CLIENT_MESSAGE)
            .max_encoding_message_size(MAX_CLIENT_MESSAGE)
    }

    /// Name of the model.
    pub fn model_name(&self) -> String {
        self.0.model.name.clone()
    }

    pub(crate) fn tenants(&self) -> &Tenants {
        &self.0.tenants
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

/// The tenant of a call.
fn tenant<T>(request: &Request<T>) -> Arc<str> {
    Caller::of(request).tenant
}

impl Shared {
    fn hello(&self) -> v1::Hello {
        self.identity.hello(Role::Coordinator, 0, 0, 0..0)
    }

    /// It began under other numerics.
    fn foreign(&self, request: &AdmittedRequest) -> bool {
        !request.numerics.is_empty() && request.numerics != self.identity.numerics
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The event that follows `accepted` if everything before is void.
    fn restarted(&self, record: &Record) -> Option<v1::Restarted> {
        let restarted = v1::Restarted { count: record.restarted, numerics: self.identity.numerics.clone() };
        (record.restarted > 0).then_some(restarted)
    }

    async fn tokenize(&self, tenant: &str, request: v1::TokenizeRequest) -> Result<Response<v1::TokenizeResponse>, Status> {
        let image = request.image.clone().ok_or_else(|| status::invalid("image", "is missing"))?;
        let (_place, left) = (self.enter()?, params::left(request.header.as_ref())?);
        params::header(request.header, &self.model.name)?;
        let blob = self.blobs.resolve(tenant, "image", &image)?;
        let tokens = within(left, self.encode_ids(&blob)).await?;
        Ok(Response::new(v1::TokenizeResponse { tokens }))
    }

    async fn detokenize(&self, request: v1::DetokenizeRequest) -> Result<Response<v1::DetokenizeResponse>, Status> {
        let left = params::left(request.header.as_ref())?;
        params::header(request.header, &self.model.name)?;
        check_ids(&request.tokens, &self.model.spec)?;
        let _place = self.enter()?;
        let picture = within(left, self.decode(&request.tokens)).await?;
        Ok(Response::new(v1::DetokenizeResponse { width: picture.width, height: picture.height, rgb: picture.rgb }))
    }

    fn done(&self, input: usize, output: usize) -> v1::Done {
        let usage = v1::Usage { input_tokens: input as u64, output_tokens: output as u64 };
        v1::Done { numerics: self.identity.numerics.clone(), usage: Some(usage) }
    }
}

#[tonic::async_trait]
impl Inference for Coordinator {
    type GenerateImageStream = Watched<v1::GenerateImageEvent>;
    type ChatStream = Watched<v1::ChatEvent>;

    async fn generate_image(
        &self,
        request: Request<v1::GenerateImageRequest>,
    ) -> Result<Response<Self::GenerateImageStream>, Status> {
        let seen = Seen::begin(&self.0.calls, Operation::Paint, &request, request.get_ref().header.as_ref());
        let tenant = tenant(&request);
        let paint = paint::paint(&self.0, &tenant, request.into_inner()).instrument(seen.span());
        seen.streaming(paint.await)
    }

    async fn chat(&self, request: Request<v1::ChatRequest>) -> Result<Response<Self::ChatStream>, Status> {
        let seen = Seen::begin(&self.0.calls, Operation::Chat, &request, request.get_ref().header.as_ref());
        let tenant = tenant(&request);
        let chat = chat::chat(&self.0, &tenant, request.into_inner()).instrument(seen.span());
        seen.streaming(chat.await)
    }

    async fn tokenize(&self, request: Request<v1::TokenizeRequest>) -> Result<Response<v1::TokenizeResponse>, Status> {
        let seen = Seen::begin(&self.0.calls, Operation::Tokenize, &request, request.get_ref().header.as_ref());
        let tenant = tenant(&request);
        let tokenize = self.0.tokenize(&tenant, request.into_inner()).instrument(seen.span());
        seen.answered(tokenize.await)
    }

    async fn detokenize(&self, request: Request<v1::DetokenizeRequest>) -> Result<Response<v1::DetokenizeResponse>, Status> {
        let seen = Seen::begin(&self.0.calls, Operation::Detokenize, &request, request.get_ref().header.as_ref());
        let detokenize = self.0.detokenize(request.into_inner()).instrument(seen.span());
        seen.answered(detokenize.await)
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        let id = format!("{}/{}", tenant(&request), request.get_ref().request_id);
        let record = self.0.requests.get(&id);
        if self.0.waiting().remove(&id).is_some() {
            if let Some(ledger) = &self.0.ledger {
                ledger.forget(&id);
            }
            return Ok(Response::new(v1::CancelResponse {}));
        }
        let record = record.ok_or_else(|| {
            Status::not_found(format!("request_id: `{}` is unknown", status::shown(&request.get_ref().request_id)))
        })?;
        self.0.give_up(&record);
        if let Some(ledger) = &self.0.ledger {
            ledger.forget(&id);
        }
        for index in 0..record.units.len() {
            record.update(index, |p| {
                p.end.get_or_insert(Err(Failure::Cancelled));
            });
        }
        self.0.requests.remove(&id);
        Ok(Response::new(v1::CancelResponse {}))
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeModelRequest>,
    ) -> Result<Response<v1::DescribeModelResponse>, Status> {
        let palette = self.0.palette(request.get_ref().palette).await;
        let (shared, spec) = (&self.0, &self.0.model.spec);
        Ok(Response::new(v1::DescribeModelResponse {
            model: shared.model.name.clone(),
            digest: shared.identity.model.to_vec().into(),
            numerics: shared.identity.numerics.clone(),
            image_size: spec.vq.image_size as u32,
            grid: spec.vq.grid as u32,
            codebook: spec.vq.codebook as u32,
            stages: shared.drivers.iter().find_map(DriverHandle::placed).map_or(0, |p| p.stages.len() as u32),
            cfg_weight: spec.generation.cfg_weight,
            temperature: spec.generation.temperature,
            palette,
            context: spec.llm.max_positions as u32,
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
