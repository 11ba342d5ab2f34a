//! The decoder role: pictures of VQ ids, and what each id looks like by itself. Finished pictures come first: what is
//! decoded for a preview stops between two layers when one of them waits, and is not begun while the cores have other work.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use janus_kernels::{CpuTimes, Pool, WeightFormat};
use janus_model::vq::{PaletteFit, VqDecoder};
use janus_model::{Checkpoint, image};
use janus_wire::v1::decoder_server::{Decoder, DecoderServer};
use janus_wire::v1::{self};
use janus_wire::{Guarded, Identity, MAX_NODE_MESSAGE};
use opentelemetry::KeyValue;
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::sight::Work;
use crate::{ComputeThread, Error};

/// Pictures that wait for the compute thread.
const QUEUE: usize = 8;

/// The decoder's weights, loaded when they are first needed and shared by both threads.
struct Weights {
    checkpoint: Arc<Checkpoint>,
    format: WeightFormat,
    decoder: Mutex<Option<Arc<VqDecoder>>>,
}

impl Weights {
    fn decoder(&self) -> Result<Arc<VqDecoder>, Error> {
        let mut loaded = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(decoder) = &*loaded {
            return Ok(decoder.clone());
        }
        let decoder = Arc::new(VqDecoder::load(&self.checkpoint, self.format, janus_model::vq::WINOGRAD)?);
        *loaded = Some(decoder.clone());
        Ok(decoder)
    }

    /// The decoder, if it is there.
    fn loaded(&self) -> Option<Arc<VqDecoder>> {
        self.decoder.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn picture(&self, decoder: &VqDecoder, pool: &Pool, ids: &[u32], stop: impl Fn() -> bool) -> Result<image::Rgb8, Error> {
        let size = self.checkpoint.spec.vq.image_size;
        let pixels = decoder.decode_unless(pool, ids, stop)?.ok_or(Error::GaveWay)?;
        image::from_unit_range(&pixels, size, size).map_err(|e| Error::Compute(e.to_string()))
    }
}

/// What the compute thread owns.
struct Painter {
    weights: Arc<Weights>,
    pool: Arc<Pool>,
    /// What codes look like, as far as it is found out.
    fit: Option<PaletteFit>,
}

impl Painter {
    fn paint(&self, ids: &[u32], stop: impl Fn() -> bool) -> Result<image::Rgb8, Error> {
        let decoder = self.weights.decoder()?;
        self.weights.picture(&decoder, &self.pool, ids, stop)
    }

    /// Goes on with the palette by at most one decode; the palette, when it is known.
    fn palette(&mut self, stop: impl Fn() -> bool) -> Result<Option<Bytes>, Error> {
        let decoder = self.weights.decoder()?;
        let mut fit = match self.fit.take() {
            Some(fit) => fit,
            None => PaletteFit::new(&decoder)?,
        };
        if fit.step(&decoder, &self.pool, stop)? {
            self.fit = Some(fit);
            return Ok(None);
        }
        Ok(Some(fit.finish(&decoder).into()))
    }
}

/// What paints unfinished pictures: one thread of the lowest priority, so that it takes what others leave, also where the
/// steps of pictures are computed on the same cores.
struct Sketcher {
    weights: Arc<Weights>,
    pool: Pool,
}

impl Sketcher {
    /// Gives the calling thread the lowest priority there is.
    fn step_back(&mut self) {
        // On Linux no process means this thread. What cannot be lowered runs as everything else does.
        if let Err(error) = rustix::process::setpriority_process(None, 19) {
            tracing::info!(%error, "the thread that sketches keeps its priority");
        }
    }

    fn paint(&self, ids: &[u32], stop: impl Fn() -> bool) -> Result<image::Rgb8, Error> {
        let decoder = self.weights.loaded().ok_or(Error::GaveWay)?;
        self.weights.picture(&decoder, &self.pool, ids, stop)
    }
}

/// Finished pictures that wait or are decoded: how many.
#[derive(Clone)]
struct Finals(Arc<watch::Sender<usize>>);

/// One of them, until it is decoded or its caller is gone.
struct Final(Finals);

impl Finals {
    fn none() -> Self {
        Finals(Arc::new(watch::channel(0).0))
    }

    fn enter(&self) -> Final {
        self.0.send_modify(|count| *count += 1);
        Final(self.clone())
    }

    fn any(&self) -> bool {
        *self.0.borrow() > 0
    }

    /// Waits until there is none.
    async fn over(&self) {
        // The sender is `self`, so it cannot be gone.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for Final {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// Whether the cores of this process have time to spare for what nobody waits for.
#[derive(Clone)]
struct Spare {
    /// How long a look takes, and for how long what it finds is believed.
    look: Duration,
    looked: Arc<tokio::sync::Mutex<Looked>>,
}

#[derive(Default)]
struct Looked {
    last: Option<CpuTimes>,
    /// Idle cores that were found at `last`.
    cores: f64,
}

/// Ten ticks of the system's clock.
const LOOK: Duration = Duration::from_millis(100);
/// An earlier look is of use for so long.
const RECENT: Duration = Duration::from_secs(2);
/// Idle cores that one thread needs, but for what the ticks are inexact by.
const NEEDED: f64 = 0.8;

impl Spare {
    /// Whether a core was idle just now. Where that cannot be known, none was.
    async fn any(&self) -> bool {
        let mut looked = self.looked.lock().await;
        let Some(mut now) = CpuTimes::now() else { return false };
        let last = match looked.last.map(|last| (last, now.at() - last.at())) {
            Some((_, age)) if age < self.look => return looked.cores >= NEEDED,
            Some((last, age)) if age < RECENT => last,
            _ => {
                let first = now;
                tokio::time::sleep(self.look).await;
                now = CpuTimes::now().unwrap_or(first);
                first
            }
        };
        *looked = Looked { cores: now.spare_since(&last), last: Some(now) };
        looked.cores >= NEEDED
    }
}

/// The service of a decoder node.
#[derive(Clone)]
pub struct DecoderService {
    identity: Identity,
    painter: ComputeThread<Painter>,
    sketcher: ComputeThread<Sketcher>,
    /// What each code looks like, once that is found out.
    palette: Arc<OnceCell<Bytes>>,
    finals: Finals,
    spare: Spare,
    work: Work,
}

impl DecoderService {
    /// A decoder of `checkpoint`; with `eager`, its weights are loaded now.
    ///
    /// # Errors
    /// Weights that cannot be read; no thread.
    pub fn start(
        identity: Identity,
        checkpoint: Arc<Checkpoint>,
        pool: Arc<Pool>,
        format: WeightFormat,
        eager: bool,
    ) -> Result<Self, Error> {
        let weights = Arc::new(Weights { checkpoint, format, decoder: Mutex::default() });
        if eager {
            weights.decoder()?;
        }
        let sketcher = Sketcher { weights: weights.clone(), pool: Pool::new(1) };
        let sketcher = ComputeThread::start_with("sketcher", 1, sketcher, Sketcher::step_back)?;
        let painter = Painter { weights, pool, fit: None };
        let painter = ComputeThread::start_with("decoder", QUEUE, painter, |painter| {
            painter.pool.pin();
        })?;
        let node = KeyValue::new("node", identity.node.clone());
        let work = Work::new("decoder", "janus.decode", "Pixels of a picture", vec![node]);
        let spare = Spare { look: LOOK, looked: Arc::default() };
        Ok(DecoderService { identity, painter, sketcher, palette: Arc::default(), work, finals: Finals::none(), spare })
    }

    /// Finds out the codes' colours, a few decodes: before this decoder has other work, which might never leave time for it.
    pub async fn prepare(&self) {
        if let Err(error) = self.colours().await {
            tracing::warn!(%error, "what codes look like is not known yet");
        }
    }

    async fn colours(&self) -> Result<Bytes, Error> {
        self.palette.get_or_try_init(|| self.fit()).await.cloned()
    }

    async fn fit(&self) -> Result<Bytes, Error> {
        loop {
            self.finals.over().await;
            let finals = self.finals.clone();
            // One job for each decode: what waits gets its turn between two.
            if let Some(rgb) = self.painter.call(move |painter| painter.palette(|| finals.any())).await?? {
                return Ok(rgb);
            }
        }
    }

    /// As a tonic service.
    pub fn server(self) -> Guarded<DecoderServer<Self>> {
        let server = DecoderServer::new(self);
        Guarded(server.max_decoding_message_size(MAX_NODE_MESSAGE).max_encoding_message_size(MAX_NODE_MESSAGE))
    }
}

#[tonic::async_trait]
impl Decoder for DecoderService {
    async fn decode(&self, request: Request<v1::DecodeRequest>) -> Result<Response<v1::DecodeResponse>, Status> {
        let trace = janus_wire::trace::received(request.metadata());
        let request = request.into_inner();
        self.identity.check(request.hello.as_ref()).map_err(Error::from)?;
        // Dropped with this future when the caller goes away.
        let gone = CancellationToken::new();
        let (left, _leaving) = (gone.clone(), gone.drop_guard());
        let work = self.work.clone();
        let picture = if request.partial {
            if !self.spare.any().await {
                return Err(Error::GaveWay.into());
            }
            let finals = self.finals.clone();
            let yields = move || finals.any() || left.is_cancelled();
            self.sketcher.call(move |sketcher| work.time(&trace, || sketcher.paint(&request.ids, yields))).await??
        } else {
            let _one = self.finals.enter();
            let yields = move || left.is_cancelled();
            self.painter.call(move |painter| work.time(&trace, || painter.paint(&request.ids, yields))).await??
        };
        let (width, height) = (picture.width as u32, picture.height as u32);
        Ok(Response::new(v1::DecodeResponse { width, height, rgb: picture.data.into() }))
    }

    async fn palette(&self, request: Request<v1::PaletteRequest>) -> Result<Response<v1::PaletteResponse>, Status> {
        self.identity.check(request.into_inner().hello.as_ref()).map_err(Error::from)?;
        Ok(Response::new(v1::PaletteResponse { rgb: self.colours().await? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use janus_spec::Files;
    use janus_wire::v1::Role;
    use tonic::Code;

    /// In the codebook of tiny-a.
    const CODES: usize = 64;

    fn service() -> DecoderService {
        let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/tiny-a/transformers");
        let checkpoint = Arc::new(Checkpoint::open(Files::open_dir(tiny).unwrap()).unwrap());
        let identity = Identity { cluster: "c".into(), numerics: "n".into(), model: [1; 32], node: "d".into() };
        let format = checkpoint.native_format();
        DecoderService::start(identity, checkpoint, Arc::new(Pool::new(1)), format, true).unwrap()
    }

    /// As if so many cores had just been found idle, and for as long as a test takes.
    async fn found(service: &mut DecoderService, cores: f64) {
        service.spare.look = Duration::from_secs(3600);
        *service.spare.looked.lock().await = Looked { last: CpuTimes::now(), cores };
    }

    async fn ask(service: &DecoderService, partial: bool) -> Result<v1::DecodeResponse, Status> {
        let hello = Some(service.identity.hello(Role::Coordinator, 0, 0, 0..0));
        let request = v1::DecodeRequest { hello, ids: vec![1; 16], partial };
        service.decode(Request::new(request)).await.map(Response::into_inner)
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn an_unfinished_picture_gives_way_to_a_finished_one_and_to_other_work() {
        let mut service = service();
        found(&mut service, 1.0).await;
        let finished = service.finals.enter();
        assert_eq!(ask(&service, true).await.unwrap_err().code(), Code::Aborted);
        let picture = ask(&service, false).await.unwrap();
        drop(finished);
        assert!(!service.finals.any());
        assert!(ask(&service, true).await.unwrap() == picture);
        found(&mut service, 0.5).await;
        assert_eq!(ask(&service, true).await.unwrap_err().code(), Code::Aborted);
        assert!(ask(&service, false).await.unwrap() == picture, "whoever waits for a picture gets it");
    }

    #[test]
    fn a_process_that_computes_on_all_cores_has_none_to_spare() {
        let spare = Spare { look: LOOK, looked: Arc::default() };
        let done = std::sync::atomic::AtomicBool::new(false);
        let any = std::thread::scope(|scope| {
            for _ in 0..janus_kernels::default_threads() {
                scope.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            // Without an earlier look, right after one, and with one to go on from.
            let looks = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
                let (first, second) = (spare.any().await, spare.any().await);
                tokio::time::sleep(LOOK).await;
                [first, second, spare.any().await]
            });
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            looks
        });
        assert_eq!(any, [false; 3]);
    }

    #[tokio::test]
    async fn colours_wait_until_no_finished_picture_does() {
        let service = service();
        let finished = service.finals.enter();
        let asked = tokio::spawn({
            let service = service.clone();
            async move { service.colours().await }
        });
        assert!(!ask(&service, false).await.unwrap().rgb.is_empty());
        assert!(!asked.is_finished());
        drop(finished);
        assert_eq!(asked.await.unwrap().unwrap().len(), 3 * CODES);
        // What is known waits for nobody.
        let _finished = service.finals.enter();
        assert_eq!(service.colours().await.unwrap().len(), 3 * CODES);
    }
}
