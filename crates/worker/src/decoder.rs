//! The decoder role: pictures of VQ ids, and what each id looks like by itself. Finished pictures come first: what is
//! decoded for a preview stops between two layers when one of them waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use janus_kernels::{Pool, WeightFormat};
use janus_model::vq::{PaletteFit, VqDecoder};
use janus_model::{Checkpoint, image};
use janus_wire::v1::decoder_server::{Decoder, DecoderServer};
use janus_wire::v1::{self};
use janus_wire::{Guarded, Identity, MAX_NODE_MESSAGE};
use opentelemetry::KeyValue;
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

    /// The decoder, if it is there: nobody of low priority loads what others would wait for.
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
    palette: Palette,
}

/// What is known of the codes' colours.
enum Palette {
    Unasked,
    Fitting(PaletteFit),
    Known(Bytes),
}

impl Painter {
    fn paint(&self, ids: &[u32], stop: impl Fn() -> bool) -> Result<image::Rgb8, Error> {
        let decoder = self.weights.decoder()?;
        self.weights.picture(&decoder, &self.pool, ids, stop)
    }

    /// Goes on with the palette by at most one decode; the palette, when it is known.
    fn palette(&mut self, stop: impl Fn() -> bool) -> Result<Option<Bytes>, Error> {
        let decoder = self.weights.decoder()?;
        let mut fit = match std::mem::replace(&mut self.palette, Palette::Unasked) {
            Palette::Known(palette) => {
                self.palette = Palette::Known(palette.clone());
                return Ok(Some(palette));
            }
            Palette::Unasked => PaletteFit::new(&decoder)?,
            Palette::Fitting(fit) => fit,
        };
        if fit.step(&decoder, &self.pool, stop)? {
            self.palette = Palette::Fitting(fit);
            return Ok(None);
        }
        let palette = Bytes::from(fit.finish(&decoder));
        self.palette = Palette::Known(palette.clone());
        Ok(Some(palette))
    }
}

/// What paints unfinished pictures: one thread of the lowest priority, so that it takes what others leave, also where the
/// steps of pictures are computed on the same cores.
struct Sketcher {
    weights: Arc<Weights>,
    pool: Pool,
}

/// Lowest priority there is (nice).
const LEAST: i32 = 19;

impl Sketcher {
    fn paint(&self, ids: &[u32], stop: impl Fn() -> bool) -> Result<image::Rgb8, Error> {
        let decoder = self.weights.loaded().ok_or(Error::GaveWay)?;
        self.weights.picture(&decoder, &self.pool, ids, stop)
    }
}

/// Finished pictures that wait or are decoded.
#[derive(Clone, Default)]
struct Finals(Arc<AtomicUsize>);

/// One of them, until it is decoded or its caller is gone.
struct Final(Finals);

impl Finals {
    fn enter(&self) -> Final {
        self.0.fetch_add(1, Ordering::SeqCst);
        Final(self.clone())
    }

    fn any(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

impl Drop for Final {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The service of a decoder node.
#[derive(Clone)]
pub struct DecoderService {
    identity: Identity,
    painter: ComputeThread<Painter>,
    sketcher: ComputeThread<Sketcher>,
    finals: Finals,
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
        let sketcher = ComputeThread::start_at("sketcher", 1, Some(LEAST), sketcher)?;
        let painter = ComputeThread::start("decoder", QUEUE, Painter { weights, pool, palette: Palette::Unasked })?;
        let node = KeyValue::new("node", identity.node.clone());
        let work = Work::new("decoder", "janus.decode", "Pixels of a picture", vec![node]);
        Ok(DecoderService { identity, painter, sketcher, work, finals: Finals::default() })
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
        loop {
            let finals = self.finals.clone();
            // One job for each decode: what waits gets its turn between two.
            if let Some(rgb) = self.painter.call(move |painter| painter.palette(|| finals.any())).await?? {
                return Ok(Response::new(v1::PaletteResponse { rgb }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use janus_spec::Files;
    use janus_wire::v1::Role;
    use tonic::Code;

    #[tokio::test]
    async fn an_unfinished_picture_gives_way_to_a_finished_one() {
        let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/tiny-a/transformers");
        let checkpoint = Arc::new(Checkpoint::open(Files::open_dir(tiny).unwrap()).unwrap());
        let identity = Identity { cluster: "c".into(), numerics: "n".into(), model: [1; 32], node: "d".into() };
        let format = checkpoint.native_format();
        let service = DecoderService::start(identity.clone(), checkpoint, Arc::new(Pool::new(1)), format, true).unwrap();
        let ask = |partial| {
            let hello = Some(identity.hello(Role::Coordinator, 0, 0, 0..0));
            service.decode(Request::new(v1::DecodeRequest { hello, ids: vec![1; 16], partial }))
        };
        let finished = service.finals.enter();
        assert_eq!(ask(true).await.unwrap_err().code(), Code::Aborted);
        let picture = ask(false).await.unwrap().into_inner();
        drop(finished);
        assert!(!service.finals.any());
        assert!(ask(true).await.unwrap().into_inner() == picture);
    }
}
