//! What encoders and decoders do for a request.

use std::sync::Arc;

use janus_wire::status;
use janus_wire::v1::{self, decoder_client::DecoderClient};
use tonic::Status;
use tonic::transport::Channel;
use tracing::{Instrument, info_span};

use super::{RETRY, Shared};
use crate::images::{Blob, feature_handle};
use crate::pipeline::StageNode;
use crate::request::{Failure, Record};
use crate::schedule::UnitId;

impl Shared {
    /// What brings a unit's features back when the first stage does not have them.
    pub(super) fn encoding(
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
                        shared.encoded.gone(&first.address, &feature_handle(&tenant, &picture.digest));
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

    fn first_stage(&self, home: usize) -> Option<StageNode> {
        self.drivers[home].placed().and_then(|placement| placement.stages.first().cloned())
    }

    /// Has the features of all pictures at the first stage of a pipeline.
    pub(super) async fn understand(&self, tenant: &str, pictures: &[Blob], home: usize) -> Result<(), Status> {
        for picture in pictures {
            let handle = feature_handle(tenant, &picture.digest);
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
    pub(super) async fn picture(&self, record: &Record, index: usize, ids: &[u32]) -> Result<v1::DecodeResponse, Status> {
        let Some(cell) = record.picture(index) else { return Err(Status::internal("no such picture")) };
        cell.get_or_try_init(|| self.decode(ids)).await.cloned()
    }

    pub(super) async fn decode(&self, ids: &[u32]) -> Result<v1::DecodeResponse, Status> {
        let request = v1::DecodeRequest { hello: Some(self.hello()), ids: ids.to_vec(), partial: false };
        let call = |mut decoder: DecoderClient<Channel>| {
            let request = request.clone();
            async move { decoder.decode(janus_wire::trace::request(request)).await }
        };
        self.decoders.call(call).instrument(info_span!("decode", otel.kind = "client")).await
    }

    pub(super) async fn encode_ids(&self, picture: &Blob) -> Result<Vec<u32>, Status> {
        let request = v1::EncodeIdsRequest { hello: Some(self.hello()), image: picture.data.clone() };
        let call = self.encoders.call(|mut encoder| {
            let request = request.clone();
            async move { encoder.tokenize(janus_wire::trace::request(request)).await }
        });
        let call = call.instrument(info_span!("encode", otel.kind = "client"));
        let answer = call.await.map_err(|status| status::blame(&picture.field, status))?;
        Ok(answer.ids)
    }
}
