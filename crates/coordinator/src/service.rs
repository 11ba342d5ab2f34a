//! The public service: requests to units, units' records to event streams.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
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
use tracing::{Instrument, info_span};

use crate::auth::Caller;
use crate::drive::{DriverHandle, Sink};
use crate::images::{Blob, Blobs};
use crate::ledger::{Ledger, Logs};
use crate::params::{self, Header, MAX_PICTURES, MAX_PROMPT};
use crate::pool::{Addresses, Pool};
use crate::request::{Failure, Joined, Reader, Record, Requests};
use crate::schedule::{Share, UnitId, UnitSpec};
use crate::tenants::Tenants;

mod chat;
mod encoded;
mod events;
mod paint;
mod palette;
mod partial;
mod seen;
mod stops;
mod unit;

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

/// A request that was checked: everything that is needed to begin it, or to begin it again.
struct Work {
    header: Header,
    fingerprint: [u8; 32],
    record: Record,
    specs: Vec<UnitSpec>,
    pictures: Vec<Blob>,
    home: Claim,
    admitted: AdmittedRequest,
}

/// A place on a pipeline, until its units are there: who comes meanwhile is routed with them in mind.
struct Claim {
    home: usize,
    rows: usize,
    claimed: Arc<AtomicUsize>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claimed.fetch_sub(self.rows, Ordering::Relaxed);
    }
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

    /// Takes on what a predecessor had admitted, with the ids it is known to have drawn. Nobody has to ask for it.
    pub async fn restore(&self, admitted: Vec<AdmittedRequest>, logs: &Logs) {
        self.0.calls.restarted(0);
        for request in admitted {
            let header = match &request.request {
                Some(admitted_request::Request::Image(image)) => image.header.as_ref(),
                Some(admitted_request::Request::Chat(chat)) => chat.header.as_ref(),
                None => continue,
            };
            let id = header.map_or("", |header| header.request_id.as_str());
            let span = tracing::error_span!("restored", request = id, tenant = request.tenant);
            let key = format!("{}/{id}", request.tenant);
            self.restore_one(key, request, logs).instrument(span).await;
        }
    }

    async fn restore_one(&self, key: String, request: AdmittedRequest, logs: &Logs) {
        let tenant = request.tenant.clone();
        // The cluster was started with another model since: its ids mean nothing to this one.
        if request.model[..] != self.0.identity.model[..] {
            tracing::warn!("a request that was admitted for another model is dropped");
            return;
        }
        let (foreign, mut restarted, since) = (self.0.foreign(&request), request.restarted, request.admitted_unix_ms);
        if foreign && !self.0.restart {
            tracing::warn!(numerics = request.numerics, "a request waits for nodes of other numerics");
            self.0.waiting().insert(key, request.numerics);
            return;
        }
        // Its log belongs to other numerics, whoever had it.
        let none = Logs::default();
        let logs = if foreign { &none } else { logs };
        restarted += u32::from(foreign);
        self.0.keep_blobs(&request);
        let work = match request.request {
            Some(admitted_request::Request::Image(image)) => paint::work(&self.0, &tenant, image, logs).await,
            Some(admitted_request::Request::Chat(chat)) => chat::work(&self.0, &tenant, chat, logs),
            None => return,
        };
        match work {
            Ok(mut work) => {
                (work.record.restarted, work.admitted.restarted) = (restarted, restarted);
                work.admitted.admitted_unix_ms = since;
                if foreign {
                    self.0.calls.restarted(1);
                    if let Some(ledger) = &self.0.ledger {
                        ledger.rewrite(&key, &work.admitted).await;
                    }
                }
                self.0.take_on(&tenant, work).await;
            }
            Err(status) => tracing::warn!(error = status.message(), "an admitted request cannot go on"),
        }
    }

    /// Moves everything from one pipeline to the others that are alive.
    pub async fn evacuate(&self, from: usize) {
        let alive = |i: &usize| *i != from && self.0.drivers[*i].proven() && *self.0.drivers[*i].ready().borrow();
        if !(0..self.0.drivers.len()).any(|i| alive(&i)) {
            return;
        }
        for (spec, sink) in self.0.drivers[from].evacuate().await {
            let claim = self.0.route(spec.target * spec.rows());
            let home = claim.home;
            sink.record.update(sink.index, |p| p.home = home);
            let (record, index) = (sink.record.clone(), sink.index);
            if self.0.drivers[home].submit(spec, sink).await.is_err() {
                record.update(index, |p| p.end = Some(Err(Failure::Ended)));
            }
        }
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
    /// A place among the calls that a shutdown waits for, until one has begun.
    fn enter(&self) -> Result<Arc<()>, Status> {
        let place = self.running.clone();
        match self.draining.is_cancelled() {
            true => Err(status::unavailable("the server is shutting down", RETRY)),
            false => Ok(place),
        }
    }

    /// A pipeline that was ready once does what it takes on, after a recovery if need be.
    fn admit(&self) -> Result<(), Status> {
        match self.drivers.iter().any(|driver| *driver.ready().borrow() || driver.proven()) {
            true => Ok(()),
            false => Err(status::unavailable("the pipeline is not ready", RETRY)),
        }
    }

    /// The pipeline with the least to do, among those that are ready if there are any; `rows` more are claimed on it.
    fn route(&self, rows: usize) -> Claim {
        let rank = |i: &usize| {
            let driver = &self.drivers[*i];
            let backlog = driver.backlog() + self.claimed[*i].load(Ordering::Relaxed);
            (!*driver.ready().borrow(), !driver.proven(), backlog)
        };
        let home = (0..self.drivers.len()).min_by_key(rank).unwrap_or(0);
        let claimed = self.claimed[home].clone();
        claimed.fetch_add(rows, Ordering::Relaxed);
        Claim { home, rows, claimed }
    }

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

    fn unit_ids(&self, count: usize) -> impl Iterator<Item = UnitId> + use<> {
        let first = self.next_unit.fetch_add(count as u64, Ordering::Relaxed);
        first..first + count as u64
    }

    fn keep_blobs(&self, request: &AdmittedRequest) {
        for data in &request.blobs {
            let image = v1::Image { data: data.clone(), ..v1::Image::default() };
            // What it is was checked when it was admitted.
            let _ = self.blobs.resolve(&request.tenant, "image", &image);
        }
    }

    /// What is done when the last reader of a request has left.
    fn leaving(self: &Arc<Self>, key: &str) -> impl Fn(&Record, bool) + Send + Sync + use<> {
        let (shared, key) = (Arc::downgrade(self), key.to_owned());
        move |record: &Record, unfinished| {
            let Some(shared) = shared.upgrade() else { return };
            // A reign that ends leaves its requests to the next one.
            if shared.over.is_cancelled() || (shared.ledger.is_some() && shared.draining.is_cancelled()) {
                return;
            }
            if unfinished {
                shared.give_up(record);
            }
            if let Some(ledger) = &shared.ledger {
                ledger.forget(&key);
            }
        }
    }

    fn give_up(&self, record: &Record) {
        for (index, unit) in record.units.iter().enumerate() {
            let home = record.look(index, |p| p.home).unwrap_or_default();
            self.drivers[home].cancel(&[*unit]);
        }
    }

    /// Joins a request, or makes it: then it is written down, and its units are submitted.
    async fn join(self: &Arc<Self>, tenant: &str, work: Work) -> Result<Reader, Status> {
        let Work { header, fingerprint, record, specs, pictures, home, admitted } = work;
        let key = format!("{tenant}/{}", header.id);
        if let Some(numerics) = self.waiting().get(&key) {
            return Err(status::unavailable(
                format!("the request began under `{numerics}` and waits for nodes of these numerics"),
                RETRY,
            ));
        }
        let reader = match self.requests.join(&key, fingerprint, || record, self.leaving(&key)) {
            Joined::Conflict => {
                return Err(Status::already_exists(format!(
                    "header.request_id: `{}` is in use with other parameters",
                    header.id
                )));
            }
            Joined::Known(reader) => {
                reader.record.accepted().await?;
                return Ok(reader);
            }
            Joined::New(reader) => reader,
        };
        let asked = specs.iter().filter(|spec| spec.kind != Kind::Text).count() as u64;
        // Over a quota its readers leave again, and nothing is left of the request.
        self.tenants
            .admit(tenant, asked, || self.requests.unfinished(tenant))
            .inspect_err(|status| reader.record.refuse(status))?;
        let (shared, tenant, mine) = (self.clone(), tenant.to_owned(), reader.another());
        // A caller that goes away meanwhile does not end this: others may have joined.
        let begin = async move {
            let durable = match &shared.ledger {
                Some(ledger) => ledger.admit(&key, admitted).await,
                None => false,
            };
            mine.record.accept(durable);
            shared.submit(&tenant, specs, pictures, home, mine).await;
        };
        let _ = tokio::spawn(begin.in_current_span()).await;
        Ok(reader)
    }

    /// Begins a request that is written down already; it runs to its end whether anybody asks for it or not.
    async fn take_on(self: &Arc<Self>, tenant: &str, work: Work) {
        let Work { header, fingerprint, record, mut specs, pictures, home, .. } = work;
        specs.iter_mut().for_each(|spec| spec.admitted = true);
        let key = format!("{tenant}/{}", header.id);
        let Joined::New(reader) = self.requests.join(&key, fingerprint, || record, self.leaving(&key)) else { return };
        reader.record.accept(true);
        let (holding, keep) = (reader.another(), self.requests.keep);
        self.submit(tenant, specs, pictures, home, reader).await;
        tokio::spawn(async move {
            let mut watch = holding.record.watch();
            while !holding.record.finished() && watch.changed().await.is_ok() {}
            // Its caller, if it is still there, comes back within this time.
            tokio::time::sleep(keep).await;
        });
    }

    /// Gives units to their driver.
    async fn submit(
        self: &Arc<Self>,
        tenant: &str,
        specs: Vec<UnitSpec>,
        pictures: Vec<Blob>,
        claim: Claim,
        reader: Reader,
    ) {
        let home = claim.home;
        let pictures = Arc::new(pictures);
        let share = self.tenants.share(tenant);
        for (index, mut spec) in specs.into_iter().enumerate() {
            let record = &reader.record;
            // Cancelled before it was the turn of this one.
            if record.look(index, |p| p.end.is_some()).unwrap_or(true) {
                continue;
            }
            record.update(index, |p| p.home = home);
            spec.share = share;
            let encode_again = self.encoding(tenant, &pictures, &reader.record, index);
            let sink = Sink { record: record.clone(), index, encode_again: Some(encode_again) };
            if self.drivers[home].submit(spec, sink).await.is_err() {
                record.update(index, |p| p.end = Some(Err(Failure::Ended)));
            }
        }
    }

    /// What brings a unit's features back when the first stage does not have them.
    fn encoding(
        self: &Arc<Self>,
        tenant: &str,
        pictures: &Arc<Vec<Blob>>,
        record: &Arc<Record>,
        index: usize,
    ) -> Arc<dyn Fn(UnitId) + Send + Sync> {
        let (shared, tenant, pictures, record) = (Arc::downgrade(self), tenant.to_owned(), pictures.clone(), record.clone());
        // The driver's thread calls this; the work belongs to the public runtime.
        let (runtime, span) = (tokio::runtime::Handle::current(), tracing::Span::current());
        Arc::new(move |unit| {
            let Some(shared) = shared.upgrade() else { return };
            let (tenant, pictures, record) = (tenant.clone(), pictures.clone(), record.clone());
            let again = async move {
                let home = record.look(index, |p| p.home).unwrap_or_default();
                if let Some(first) = shared.first_stage(home) {
                    let gone = |picture: &Blob| {
                        shared.encoded.gone(&first.address, &crate::images::feature_handle(&tenant, &picture.digest));
                    };
                    pictures.iter().for_each(gone);
                }
                match shared.understand(&tenant, &pictures, home).await {
                    Ok(()) => shared.drivers[home].features_ready(unit).await,
                    Err(error) => {
                        tracing::warn!(%error, "pictures could not be encoded again");
                        shared.drivers[home].cancel(&[unit]);
                        let lost = Failure::Lost("its pictures are gone and could not be encoded again".to_owned());
                        record.update(index, |p| p.end = Some(Err(lost)));
                    }
                }
            };
            runtime.spawn(again.instrument(span.clone()));
        })
    }

    fn first_stage(&self, home: usize) -> Option<crate::pipeline::StageNode> {
        self.drivers[home].placed().and_then(|placement| placement.stages.first().cloned())
    }

    /// Has the features of all pictures at the first stage of a pipeline.
    async fn understand(&self, tenant: &str, pictures: &[Blob], home: usize) -> Result<(), Status> {
        for picture in pictures {
            let handle = crate::images::feature_handle(tenant, &picture.digest);
            if self.first_stage(home).is_some_and(|first| self.encoded.has(&first.address, &handle)) {
                continue;
            }
            let request = v1::UnderstandRequest {
                hello: Some(self.hello()),
                image: picture.data.clone(),
                handle: handle.clone(),
                ..v1::UnderstandRequest::default()
            };
            let call = self.encoders.call(|mut encoder| {
                let first = self.first_stage(home);
                let (mut request, handle) = (request.clone(), &handle);
                async move {
                    let none = || status::unavailable("the pipeline has no stages", RETRY);
                    let first = first.ok_or_else(none)?;
                    request.stage = first.address.clone();
                    request.stage_first_layer = first.layers.start as u32;
                    request.stage_end_layer = first.layers.end as u32;
                    let answer = encoder.understand(janus_wire::trace::request(request)).await?;
                    self.encoded.put(&first.address, handle);
                    Ok(answer)
                }
            });
            let call = call.instrument(info_span!("understand", otel.kind = "client"));
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
        let request = v1::DecodeRequest { hello: Some(self.hello()), ids: ids.to_vec(), partial: false };
        let call = |mut decoder: DecoderClient<Channel>| {
            let request = request.clone();
            async move { decoder.decode(janus_wire::trace::request(request)).await }
        };
        self.decoders.call(call).instrument(info_span!("decode", otel.kind = "client")).await
    }

    async fn encode_ids(&self, picture: &Blob) -> Result<Vec<u32>, Status> {
        let request = v1::EncodeIdsRequest { hello: Some(self.hello()), image: picture.data.clone() };
        let call = self.encoders.call(|mut encoder| {
            let request = request.clone();
            async move { encoder.tokenize(janus_wire::trace::request(request)).await }
        });
        let call = call.instrument(info_span!("encode", otel.kind = "client"));
        let answer = call.await.map_err(|status| status::blame(&picture.field, status))?;
        Ok(answer.ids)
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

/// SHA-256 of a request's parameters: everything but its header.
fn fingerprint(what: &str, request: &impl prost::Message) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(what);
    hash.update(request.encode_to_vec());
    hash.finalize().into()
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
