//! The encoder role: SigLIP features pushed to the first stage, and VQ ids of pictures.

use std::collections::HashMap;
use std::sync::Arc;

use janus_kernels::{Pool, WeightFormat};
use janus_model::siglip::VisionEncoder;
use janus_model::vq::VqEncoder;
use janus_model::{Checkpoint, image};
use janus_wire::v1::encoder_server::{Encoder, EncoderServer};
use janus_wire::v1::stage_client::StageClient;
use janus_wire::v1::{self, Role};
use janus_wire::{Guarded, Identity, MAX_NODE_MESSAGE, Security, frame, tls};
use opentelemetry::metrics::Counter;
use opentelemetry::{KeyValue, global};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::sight::{SCOPE, Work};
use crate::stage::Features;
use crate::{ComputeThread, Error};

/// Bytes of features kept for pictures that are asked about again.
const CACHE_BYTES: usize = 128 << 20;
/// Pictures that wait for the compute thread.
const QUEUE: usize = 8;

/// What the compute thread owns; either tower is loaded when it is first needed, or at the start.
struct Towers {
    checkpoint: Arc<Checkpoint>,
    pool: Arc<Pool>,
    format: WeightFormat,
    vision: Option<VisionEncoder>,
    vq: Option<VqEncoder>,
}

impl Towers {
    fn vision(&mut self) -> Result<&VisionEncoder, Error> {
        if self.vision.is_none() {
            self.vision = Some(VisionEncoder::load(&self.checkpoint, self.format)?);
        }
        self.vision.as_ref().ok_or_else(|| Error::Compute("the vision tower is missing".to_owned()))
    }

    fn vq(&mut self) -> Result<&VqEncoder, Error> {
        if self.vq.is_none() {
            self.vq = Some(VqEncoder::load(&self.checkpoint, self.format)?);
        }
        self.vq.as_ref().ok_or_else(|| Error::Compute("the VQ encoder is missing".to_owned()))
    }

    fn understand(&mut self, picture: &[u8]) -> Result<Vec<f32>, Error> {
        let picture = decode(picture)?;
        let rule = self.checkpoint.spec.preprocess.clone();
        let fitted = image::fit_square(&picture, rule.image_size, rule.min_size, rule.background, rule.rounding);
        let pool = self.pool.clone();
        Ok(self.vision()?.encode(&pool, &image::normalise(&fitted, &rule))?)
    }

    fn ids(&mut self, picture: &[u8]) -> Result<Vec<u32>, Error> {
        let picture = decode(picture)?;
        let pixels = image::vq_pixels(&image::crop_square(&picture, self.checkpoint.spec.vq.image_size));
        let pool = self.pool.clone();
        Ok(self.vq()?.encode(&pool, &pixels)?)
    }
}

fn decode(picture: &[u8]) -> Result<image::Rgb8, Error> {
    let decoded = image::decode(picture, image::Orientation::Apply, &image::Limits::default());
    decoded.map_err(|e| Error::Invalid(format!("image: {e}")))
}

/// The service of an encoder node.
#[derive(Clone)]
pub struct EncoderService {
    identity: Identity,
    security: Security,
    towers: ComputeThread<Towers>,
    hidden: usize,
    cache: Arc<Features>,
    stages: Arc<tokio::sync::Mutex<HashMap<String, StageClient<Channel>>>>,
    features: Work,
    ids: Work,
    cached: Counter<u64>,
}

impl EncoderService {
    /// An encoder of `checkpoint`; `eager` says whether the vision tower and the VQ encoder are loaded now.
    ///
    /// # Errors
    /// Weights that cannot be read; no thread.
    pub fn start(
        identity: Identity,
        security: Security,
        checkpoint: Arc<Checkpoint>,
        pool: Arc<Pool>,
        format: WeightFormat,
        eager: (bool, bool),
    ) -> Result<Self, Error> {
        let hidden = checkpoint.spec.llm.hidden;
        let mut towers = Towers { checkpoint, pool, format, vision: None, vq: None };
        if eager.0 {
            towers.vision()?;
        }
        if eager.1 {
            towers.vq()?;
        }
        let work = |name, what| {
            let labels = vec![KeyValue::new("node", identity.node.clone()), KeyValue::new("what", what)];
            Work::new(name, "janus.encode", "Features or VQ ids of a picture", labels)
        };
        let meter = global::meter(SCOPE);
        let cached = meter.u64_counter("janus.encode.cached");
        let cached = cached.with_description("Pictures whose features were still there").build();
        // Coordinators remember too, so it may take long until the first one.
        cached.add(0, &[KeyValue::new("node", identity.node.clone())]);
        Ok(EncoderService {
            features: work("encoder features", "features"),
            ids: work("encoder ids", "ids"),
            cached,
            identity,
            security,
            towers: ComputeThread::start_with("encoder", QUEUE, towers, |towers| {
                towers.pool.pin();
            })?,
            hidden,
            cache: Arc::new(Features::new(CACHE_BYTES)),
            stages: Arc::default(),
        })
    }

    /// As a tonic service.
    pub fn server(self) -> Guarded<EncoderServer<Self>> {
        let server = EncoderServer::new(self);
        Guarded(server.max_decoding_message_size(MAX_NODE_MESSAGE).max_encoding_message_size(MAX_NODE_MESSAGE))
    }

    async fn stage(&self, address: &str) -> Result<StageClient<Channel>, Error> {
        let mut stages = self.stages.lock().await;
        if let Some(client) = stages.get(address) {
            return Ok(client.clone());
        }
        let channel = janus_wire::connect(address, &self.security.to(tls::Role::Stage)).await?;
        let client = StageClient::new(channel).max_encoding_message_size(MAX_NODE_MESSAGE);
        stages.insert(address.to_owned(), client.clone());
        Ok(client)
    }
}

#[tonic::async_trait]
impl Encoder for EncoderService {
    async fn understand(&self, request: Request<v1::UnderstandRequest>) -> Result<Response<v1::UnderstandResponse>, Status> {
        let trace = janus_wire::trace::received(request.metadata());
        let request = request.into_inner();
        self.identity.check(request.hello.as_ref()).map_err(Error::from)?;
        let cached = self.cache.get(&request.handle);
        let features = match &cached {
            Some(features) => {
                self.cached.add(1, &[KeyValue::new("node", self.identity.node.clone())]);
                features.clone()
            }
            None => {
                let (picture, work) = (request.image.clone(), self.features.clone());
                let understand = move |towers: &mut Towers| work.time(&trace, || towers.understand(&picture));
                let features = self.towers.call(understand).await??;
                self.cache.put(&request.handle, features.clone());
                Arc::new(features)
            }
        };
        let rows = (features.len() / self.hidden) as u32;
        let layers = request.stage_first_layer as usize..request.stage_end_layer as usize;
        let put = v1::PutFeaturesRequest {
            hello: Some(self.identity.hello(Role::Encoder, 0, 0, layers)),
            handle: request.handle.clone(),
            rows,
            features: frame::to_bytes(&features),
        };
        if let Err(status) = self.stage(&request.stage).await?.put_features(put).await {
            self.stages.lock().await.remove(&request.stage);
            return Err(status);
        }
        Ok(Response::new(v1::UnderstandResponse { rows, cached: cached.is_some() }))
    }

    async fn tokenize(&self, request: Request<v1::EncodeIdsRequest>) -> Result<Response<v1::EncodeIdsResponse>, Status> {
        let trace = janus_wire::trace::received(request.metadata());
        let request = request.into_inner();
        self.identity.check(request.hello.as_ref()).map_err(Error::from)?;
        let work = self.ids.clone();
        let ids = self.towers.call(move |towers| work.time(&trace, || towers.ids(&request.image))).await??;
        Ok(Response::new(v1::EncodeIdsResponse { ids }))
    }
}
