//! The decoder role: pictures of VQ ids.

use std::sync::Arc;

use janus_kernels::{Pool, WeightFormat};
use janus_model::vq::VqDecoder;
use janus_model::{Checkpoint, image};
use janus_wire::v1::decoder_server::{Decoder, DecoderServer};
use janus_wire::v1::{self};
use janus_wire::{Identity, MAX_NODE_MESSAGE};
use opentelemetry::KeyValue;
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
}

impl Painter {
    fn decoder(&mut self) -> Result<&VqDecoder, Error> {
        if self.decoder.is_none() {
            self.decoder = Some(VqDecoder::load(&self.checkpoint, self.format, janus_model::vq::WINOGRAD)?);
        }
        self.decoder.as_ref().ok_or_else(|| Error::Compute("the VQ decoder is missing".to_owned()))
    }

    fn paint(&mut self, ids: &[u32]) -> Result<image::Rgb8, Error> {
        let size = self.checkpoint.spec.vq.image_size;
        let pool = self.pool.clone();
        let pixels = self.decoder()?.decode(&pool, ids)?;
        image::from_unit_range(&pixels, size, size).map_err(|e| Error::Compute(e.to_string()))
    }
}

/// The service of a decoder node.
#[derive(Clone)]
pub struct DecoderService {
    identity: Identity,
    painter: ComputeThread<Painter>,
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
        let mut painter = Painter { checkpoint, pool, format, decoder: None };
        if eager {
            painter.decoder()?;
        }
        let node = KeyValue::new("node", identity.node.clone());
        let work = Work::new("decoder", "janus.decode", "Pixels of a picture", vec![node]);
        Ok(DecoderService { identity, work, painter: ComputeThread::start("decoder", QUEUE, painter)? })
    }

    /// As a tonic service.
    pub fn server(self) -> DecoderServer<Self> {
        DecoderServer::new(self).max_decoding_message_size(MAX_NODE_MESSAGE).max_encoding_message_size(MAX_NODE_MESSAGE)
    }
}

#[tonic::async_trait]
impl Decoder for DecoderService {
    async fn decode(&self, request: Request<v1::DecodeRequest>) -> Result<Response<v1::DecodeResponse>, Status> {
        let trace = janus_wire::trace::received(request.metadata());
        let request = request.into_inner();
        self.identity.check(request.hello.as_ref()).map_err(Error::from)?;
        let work = self.work.clone();
        let paint = move |painter: &mut Painter| work.time(&trace, || painter.paint(&request.ids));
        let picture = self.painter.call(paint).await??;
        let (width, height) = (picture.width as u32, picture.height as u32);
        Ok(Response::new(v1::DecodeResponse { width, height, rgb: picture.data.into() }))
    }

    async fn palette(&self, _: Request<v1::PaletteRequest>) -> Result<Response<v1::PaletteResponse>, Status> {
        Err(Status::unimplemented("no palette yet"))
    }
}
