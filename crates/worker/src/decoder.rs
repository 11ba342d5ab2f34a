//! The decoder role: pictures of VQ ids, and what each id looks like by itself. Finished pictures come first: what is
//! decoded for a preview stops between two layers when one of them waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// What the compute thread owns.
struct Painter {
    checkpoint: Arc<Checkpoint>,
    pool: Arc<Pool>,
    format: WeightFormat,
    decoder: Option<VqDecoder>,
    palette: Palette,
}

/// What is known of the codes' colours.
enum Palette {
    Unasked,
    Fitting(PaletteFit),
    Known(Bytes),
}

impl Painter {
    fn decoder(&mut self) -> Result<&VqDecoder, Error> {
        if self.decoder.is_none() {
            self.decoder = Some(VqDecoder::load(&self.checkpoint, self.format, janus_model::vq::WINOGRAD)?);
        }
        self.decoder.as_ref().ok_or_else(|| Error::Compute("the VQ decoder is missing".to_owned()))
    }

    fn paint(&mut self, ids: &[u32], stop: impl Fn() -> bool) -> Result<image::Rgb8, Error> {
        let size = self.checkpoint.spec.vq.image_size;
        let pool = self.pool.clone();
        let pixels = self.decoder()?.decode_unless(&pool, ids, stop)?.ok_or(Error::GaveWay)?;
        image::from_unit_range(&pixels, size, size).map_err(|e| Error::Compute(e.to_string()))
    }

    /// Goes on with the palette by at most one decode; the palette, when it is known.
    fn palette(&mut self, stop: impl Fn() -> bool) -> Result<Option<Bytes>, Error> {
        let pool = self.pool.clone();
        let mut fit = match std::mem::replace(&mut self.palette, Palette::Unasked) {
            Palette::Known(palette) => {
                self.palette = Palette::Known(palette.clone());
                return Ok(Some(palette));
            }
            Palette::Unasked => PaletteFit::new(self.decoder()?)?,
            Palette::Fitting(fit) => fit,
        };
        let decoder = self.decoder()?;
        if fit.step(decoder, &pool, stop)? {
            self.palette = Palette::Fitting(fit);
            return Ok(None);
        }
        let palette = Bytes::from(fit.finish(decoder));
        self.palette = Palette::Known(palette.clone());
        Ok(Some(palette))
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
        let mut painter = Painter { checkpoint, pool, format, decoder: None, palette: Palette::Unasked };
        if eager {
            painter.decoder()?;
        }
        let painter = ComputeThread::start("decoder", QUEUE, painter)?;
        let node = KeyValue::new("node", identity.node.clone());
        let work = Work::new("decoder", "janus.decode", "Pixels of a picture", vec![node]);
        Ok(DecoderService { identity, painter, work, finals: Finals::default() })
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
            self.painter.call(move |painter| work.time(&trace, || painter.paint(&request.ids, yields))).await??
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
