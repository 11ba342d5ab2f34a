//! The gRPC side of a stage: its layers, its place in a pipeline, and the streams to its neighbours.

mod link;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use janus_wire::v1::stage_server::{Stage, StageServer};
use janus_wire::v1::{self, Hello, LinkAnswer, LinkMessage, ResultMessage, Role, StepResult, link_message, result_message};
use janus_wire::{Guarded, Identity, MAX_NODE_MESSAGE, Security, frame};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::meter::Meter;
use super::{Compute, Features, Fence, Loader, StageCore};
use crate::{ComputeThread, Error};
use link::Output;

/// Frames or results that wait for a neighbour to take them; the sender then waits too.
const QUEUE: usize = 4;
/// Bytes of a handle of features; a digest has 32.
const MAX_HANDLE: usize = 64;

/// A stage's place in one epoch of one pipeline.
struct Place {
    pipeline: u64,
    epoch: u64,
    /// Until the previous node takes it with its link. It ends with that link, so that the next node hears of the end.
    output: Option<Output>,
    /// Until the coordinator takes it.
    results: Option<mpsc::Receiver<StepResult>>,
    /// Ends every stream of this place: a neighbour is lost, or a newer epoch has begun.
    over: CancellationToken,
}

struct Shared<C> {
    identity: Identity,
    security: Security,
    /// What computes; nothing until the first layers are there.
    thread: ComputeThread<Option<StageCore<C>>>,
    features: Arc<Features>,
    /// Layers that are computed with: none, or those of the latest place.
    held: watch::Sender<Range<usize>>,
    /// Loaded by `Prepare`, waiting for the epoch that uses it.
    prepared: Mutex<Option<C>>,
    loader: Option<Arc<dyn Loader<C>>>,
    total_layers: usize,
    hidden: usize,
    slots: usize,
    place: Mutex<Option<Place>>,
    /// One reconfiguration at a time.
    configuring: tokio::sync::Mutex<()>,
    /// The highest fencing epoch that a coordinator came with.
    fence: Fence,
    refused_frames: AtomicU64,
    meter: Arc<Meter>,
    /// Microseconds to wait after each frame: tests blow at what would be over before they strike.
    delay: AtomicU64,
    shutdown: CancellationToken,
}

/// The service of one stage.
pub struct StageService<C>(Arc<Shared<C>>);

impl<C> Clone for StageService<C> {
    fn clone(&self) -> Self {
        StageService(self.0.clone())
    }
}

impl<C: Compute> StageService<C> {
    /// A stage that computes with `compute` and nothing else, for `slots` units at once and `feature_bytes` of encoder
    /// features. `shutdown` ends its streams.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(
        identity: Identity,
        security: Security,
        compute: C,
        slots: usize,
        feature_bytes: usize,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let (layers, sizes) = (compute.layers(), (compute.total_layers(), compute.hidden()));
        let core = Some(StageCore::new(compute, slots));
        Self::with(identity, security, true, core, layers, None, sizes, slots, feature_bytes, shutdown)
    }

    /// As [`start`](Self::start), but it computes as a task of the runtime it is called on, for simulations.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_here(
        identity: Identity,
        security: Security,
        compute: C,
        slots: usize,
        feature_bytes: usize,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let (layers, sizes) = (compute.layers(), (compute.total_layers(), compute.hidden()));
        let core = Some(StageCore::new(compute, slots));
        Self::with(identity, security, false, core, layers, None, sizes, slots, feature_bytes, shutdown)
    }

    /// A stage without layers: it loads what a coordinator asks for.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start_empty(
        identity: Identity,
        security: Security,
        loader: Arc<dyn Loader<C>>,
        slots: usize,
        feature_bytes: usize,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let sizes = (loader.total_layers(), loader.hidden());
        Self::with(identity, security, true, None, 0..0, Some(loader), sizes, slots, feature_bytes, shutdown)
    }

    #[allow(clippy::too_many_arguments)]
    fn with(
        identity: Identity,
        security: Security,
        own_thread: bool,
        core: Option<StageCore<C>>,
        layers: Range<usize>,
        loader: Option<Arc<dyn Loader<C>>>,
        (total_layers, hidden): (usize, usize),
        slots: usize,
        feature_bytes: usize,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let meter = Arc::new(Meter::new(&identity.node, slots));
        meter.holds(core.as_ref());
        Ok(StageService(Arc::new(Shared {
            meter,
            identity,
            security,
            thread: match own_thread {
                true => ComputeThread::start("stage", QUEUE, core)?,
                false => ComputeThread::here(QUEUE, core),
            },
            features: Arc::new(Features::new(feature_bytes)),
            held: watch::channel(layers).0,
            prepared: Mutex::new(None),
            loader,
            total_layers,
            hidden,
            slots,
            place: Mutex::new(None),
            configuring: tokio::sync::Mutex::new(()),
            fence: Fence::default(),
            refused_frames: AtomicU64::new(0),
            delay: AtomicU64::new(0),
            shutdown,
        })))
    }

    /// Takes so much longer for every frame. For tests and for measuring the scheduler alone.
    pub fn delay(&self, delay: Duration) {
        self.0.delay.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// What this machine reads at most, in bytes per second: metrics say how much of it is used.
    pub fn bandwidth(&self, bytes_per_second: f64) {
        self.0.meter.bandwidth(bytes_per_second);
    }

    /// The layers that are computed with; empty while there are none.
    pub fn held(&self) -> watch::Receiver<Range<usize>> {
        self.0.held.subscribe()
    }

    /// As a tonic service.
    pub fn server(self) -> Guarded<StageServer<Self>> {
        let server = StageServer::new(self);
        Guarded(server.max_decoding_message_size(MAX_NODE_MESSAGE).max_encoding_message_size(MAX_NODE_MESSAGE))
    }
}

impl<C: Compute> Shared<C> {
    fn place(&self) -> MutexGuard<'_, Option<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hello(&self, pipeline: u64, epoch: u64) -> Hello {
        self.identity.hello(Role::Stage, pipeline, epoch, self.held.borrow().clone())
    }

    /// The peer must agree on everything and mean the layers we hold.
    fn check(&self, hello: Option<&Hello>) -> Result<(), Error> {
        self.identity.check(hello)?;
        let (asked, held) = (layers_of(hello), self.held.borrow().clone());
        match asked == held {
            true => Ok(()),
            false => Err(Error::Layers { held, asked }),
        }
    }

    /// Has the compute thread hold exactly `layers`, which were prepared unless they are held already.
    async fn switch(&self, layers: Range<usize>) -> Result<(), Error> {
        if *self.held.borrow() == layers {
            return Ok(());
        }
        let ready = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take_if(|c| c.layers() == layers);
        let Some(compute) = ready else {
            return Err(Error::Layers { held: self.held.borrow().clone(), asked: layers });
        };
        let (slots, meter) = (self.slots, self.meter.clone());
        self.thread
            .call(move |core| {
                let counters = core.as_ref().map(StageCore::counters).unwrap_or_default();
                *core = Some(StageCore::new(compute, slots).counting_on(counters));
                meter.holds(core.as_ref());
            })
            .await?;
        if let Some(loader) = &self.loader {
            loader.keep(layers.clone());
        }
        self.held.send_replace(layers);
        Ok(())
    }

    /// Stops being a stage.
    async fn release(&self) -> Result<(), Error> {
        if let Some(place) = self.place().take() {
            place.over.cancel();
        }
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
        let meter = self.meter.clone();
        self.thread
            .call(move |core| {
                *core = None;
                meter.holds(core.as_ref());
            })
            .await?;
        if let Some(loader) = &self.loader {
            loader.keep(0..0);
        }
        self.held.send_replace(0..0);
        Ok(())
    }
}

fn layers_of(hello: Option<&Hello>) -> Range<usize> {
    hello.map_or(0..0, |h| h.first_layer as usize..h.end_layer as usize)
}

fn no_layers() -> Error {
    Error::NotReady("this stage holds no layers".to_owned())
}

#[tonic::async_trait]
impl<C: Compute> Stage for StageService<C> {
    type LinkStream = ReceiverStream<Result<LinkAnswer, Status>>;
    type ResultsStream = ReceiverStream<Result<ResultMessage, Status>>;

    async fn prepare(&self, request: Request<v1::PrepareRequest>) -> Result<Response<v1::PrepareResponse>, Status> {
        let shared = self.0.clone();
        let request = request.into_inner();
        shared.identity.check(request.hello.as_ref()).map_err(Error::from)?;
        let hello = request.hello.clone().unwrap_or_default();
        shared.fence.enter(hello.epoch)?;
        let layers = request.first_layer as usize..request.end_layer as usize;
        let held = shared.held.borrow().clone();
        let Some(loader) = shared.loader.clone() else {
            return match layers == held {
                true => Ok(Response::new(v1::PrepareResponse { weight_bytes: 0 })),
                false => Err(Error::Layers { held, asked: layers }.into()),
            };
        };
        let _turn = shared.configuring.lock().await;
        // Meanwhile another coordinator may have come, or another place.
        shared.fence.enter(hello.epoch)?;
        if layers.is_empty() {
            if let Some(current) = shared.place().as_ref().map(|place| place.epoch).filter(|epoch| hello.epoch < *epoch) {
                return Err(Error::OldEpoch { pipeline: hello.pipeline, asked: hello.epoch, current }.into());
            }
            shared.release().await?;
        } else if layers != held {
            let (loading, from) = (layers.clone(), loader.clone());
            let loaded = tokio::task::spawn_blocking(move || from.load(loading)).await;
            let loaded = loaded.map_err(|_| Error::Compute("loading the layers panicked".to_owned()))?;
            let compute = loaded.map_err(Error::Compute)?;
            *shared.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(compute);
            tracing::info!(?layers, "layers loaded");
        }
        Ok(Response::new(v1::PrepareResponse { weight_bytes: loader.bytes() as u64 }))
    }

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<v1::LogsResponse>, Status> {
        let shared = &self.0;
        let request = request.into_inner();
        shared.identity.check(request.hello.as_ref()).map_err(Error::from)?;
        shared.fence.enter(request.hello.unwrap_or_default().epoch)?;
        let logs = shared.thread.call(|core| core.as_ref().map(StageCore::logs).unwrap_or_default()).await?;
        Ok(Response::new(v1::LogsResponse { logs }))
    }

    async fn configure(&self, request: Request<v1::ConfigureRequest>) -> Result<Response<v1::ConfigureResponse>, Status> {
        let shared = &self.0;
        let request = request.into_inner();
        shared.identity.check(request.hello.as_ref()).map_err(Error::from)?;
        let hello = request.hello.clone().unwrap_or_default();
        shared.fence.enter(hello.epoch)?;
        let layers = layers_of(Some(&hello));
        let last = layers.end == shared.total_layers;
        if request.next.is_empty() != last {
            return Err(Error::Invalid(format!(
                "layers {layers:?} of {} need {} next stage",
                shared.total_layers,
                if last { "no" } else { "a" }
            ))
            .into());
        }
        let _turn = shared.configuring.lock().await;
        shared.fence.enter(hello.epoch)?;
        if let Some(place) = shared.place().as_ref() {
            if hello.epoch <= place.epoch {
                return Err(Error::OldEpoch { pipeline: hello.pipeline, asked: hello.epoch, current: place.epoch }.into());
            }
            place.over.cancel();
        }
        shared.switch(layers.clone()).await?;
        let (pipeline, epoch) = (hello.pipeline, hello.epoch);
        shared
            .thread
            .call(move |core| core.as_mut().map(|core| core.begin(pipeline, epoch)))
            .await?
            .ok_or_else(no_layers)?;
        let over = CancellationToken::new();
        let (output, results) = if last {
            let (sender, receiver) = mpsc::channel(QUEUE);
            (Output::Results(sender), Some(receiver))
        } else {
            (shared.connect_next(&request, &hello, &over).await?, None)
        };
        *shared.place() = Some(Place { pipeline, epoch, output: Some(output), results, over });
        tracing::info!(pipeline, epoch, ?layers, "placed");
        Ok(Response::new(v1::ConfigureResponse { hello: Some(shared.hello(pipeline, epoch)), copies: true }))
    }

    async fn link(&self, request: Request<Streaming<LinkMessage>>) -> Result<Response<Self::LinkStream>, Status> {
        let shared = self.0.clone();
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|m| m.message);
        let Some(link_message::Message::Hello(hello)) = first else {
            return Err(Error::Invalid("a link begins with a hello".to_owned()).into());
        };
        shared.check(Some(&hello))?;
        let (output, over) = {
            let mut place = shared.place();
            let place =
                place.as_mut().ok_or_else(|| Error::NotReady("this stage has no place in a pipeline yet".to_owned()))?;
            if (hello.pipeline, hello.epoch) != (place.pipeline, place.epoch) {
                return Err(Error::OldEpoch { pipeline: hello.pipeline, asked: hello.epoch, current: place.epoch }.into());
            }
            let taken = || Error::NotReady("this epoch's link is taken".to_owned());
            (place.output.take().ok_or_else(taken)?, place.over.clone())
        };
        let (answers, stream) = mpsc::channel(1);
        let answer = LinkAnswer { hello: Some(shared.hello(hello.pipeline, hello.epoch)) };
        answers.try_send(Ok(answer)).map_err(|_| Status::internal("the answer cannot be queued"))?;
        tokio::spawn(async move {
            let end = shared.run_link(incoming, (hello.pipeline, hello.epoch), output, &over).await;
            // Whatever ended it, the pipeline is broken here: let both neighbours know.
            over.cancel();
            if let Err(error) = end {
                match shared.shutdown.is_cancelled() {
                    true => tracing::debug!(%error, "link ended"),
                    false => tracing::warn!(%error, "link ended"),
                }
                let _ = answers.send(Err(error.into())).await;
            }
            let (pipeline, epoch) = (hello.pipeline, hello.epoch);
            let meter = shared.meter.clone();
            let rest = move |core: &mut Option<StageCore<C>>| {
                if let Some(core) = core {
                    core.rest(pipeline, epoch);
                    meter.holds(Some(core));
                }
            };
            let _ = shared.thread.call(rest).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn results(&self, request: Request<Hello>) -> Result<Response<Self::ResultsStream>, Status> {
        let shared = self.0.clone();
        let hello = request.into_inner();
        shared.check(Some(&hello))?;
        let (mut results, over) = {
            let mut place = shared.place();
            let place =
                place.as_mut().ok_or_else(|| Error::NotReady("this stage has no place in a pipeline yet".to_owned()))?;
            if (hello.pipeline, hello.epoch) != (place.pipeline, place.epoch) {
                return Err(Error::OldEpoch { pipeline: hello.pipeline, asked: hello.epoch, current: place.epoch }.into());
            }
            let results = place.results.take();
            let taken = || Error::NotReady("this stage has no results to give, or they are taken".to_owned());
            (results.ok_or_else(taken)?, place.over.clone())
        };
        let (sender, stream) = mpsc::channel(QUEUE);
        let answer =
            ResultMessage { message: Some(result_message::Message::Hello(shared.hello(hello.pipeline, hello.epoch))) };
        sender.try_send(Ok(answer)).map_err(|_| Status::internal("the answer cannot be queued"))?;
        tokio::spawn(async move {
            loop {
                let result = tokio::select! {
                    biased;
                    result = results.recv() => result,
                    () = over.cancelled() => None,
                    () = shared.shutdown.cancelled() => None,
                    () = sender.closed() => None,
                };
                let Some(result) = result else { break };
                let message = ResultMessage { message: Some(result_message::Message::Result(result)) };
                if sender.send(Ok(message)).await.is_err() {
                    break;
                }
            }
            over.cancel();
            let _ = sender.send(Err(Status::unavailable("the pipeline's epoch is over or a stage is lost"))).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn put_features(
        &self,
        request: Request<v1::PutFeaturesRequest>,
    ) -> Result<Response<v1::PutFeaturesResponse>, Status> {
        let shared = &self.0;
        let request = request.into_inner();
        shared.check(request.hello.as_ref())?;
        if shared.held.borrow().start != 0 {
            return Err(Error::Invalid("features go to the first stage".to_owned()).into());
        }
        if !(1..=MAX_HANDLE).contains(&request.handle.len()) {
            return Err(Error::Invalid(format!("a handle has 1 to {MAX_HANDLE} bytes, not {}", request.handle.len())).into());
        }
        let mut rows = Vec::with_capacity(request.features.len() / 4);
        frame::read_rows(&request.features, &mut rows).map_err(Error::from)?;
        let expected = request.rows as usize * shared.hidden;
        if rows.len() != expected || rows.is_empty() {
            return Err(Error::Invalid(format!(
                "{} numbers are not {} rows of {}",
                rows.len(),
                request.rows,
                shared.hidden
            ))
            .into());
        }
        if rows.iter().any(|x| !x.is_finite()) {
            return Err(Error::Invalid("a feature is not a finite number".to_owned()).into());
        }
        shared.features.put(&request.handle, rows);
        Ok(Response::new(v1::PutFeaturesResponse {}))
    }

    async fn describe(&self, _: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        let shared = &self.0;
        let (pipeline, epoch) = shared.place().as_ref().map_or((0, 0), |p| (p.pipeline, p.epoch));
        let seen = shared.thread.call(|core| {
            let core = core.as_ref()?;
            let compute = core.compute();
            Some((core.counters(), core.open_slots(), compute.weight_bytes(), compute.kv_bytes()))
        });
        let (counters, open_slots, weight_bytes, kv_bytes) = seen.await?.unwrap_or_default();
        let layers = shared.held.borrow().clone();
        Ok(Response::new(v1::DescribeResponse {
            hello: Some(shared.hello(pipeline, epoch)),
            first_layer: layers.start as u32,
            end_layer: layers.end as u32,
            weight_bytes: weight_bytes as u64,
            kv_bytes: kv_bytes as u64,
            open_slots: open_slots as u32,
            feature_entries: shared.features.len() as u32,
            frames: counters.frames,
            refused_frames: shared.refused_frames.load(Ordering::Relaxed),
            refused_units: counters.refused_units + counters.refused_ops,
        }))
    }
}
