//! Units of jobs: the same way as a caller's request, without a caller. They are not written into the ledger, because
//! the job is written down; their token logs are kept as everybody's.

use crate::jobs::{Answer, Engine, Picture};
use crate::schedule::Finish;

use super::stops::Stops;
use super::*;

struct Units {
    coordinator: Coordinator,
    logs: Logs,
}

impl Coordinator {
    /// Makes units of jobs here; what a predecessor had drawn of them is in `logs`.
    pub fn units(&self, logs: Logs) -> Arc<dyn Engine> {
        Arc::new(Units { coordinator: self.clone(), logs })
    }
}

impl Units {
    /// Draws all ids of the one unit of `work`. Dropped before the end, the unit is given up.
    async fn draw(&self, tenant: &str, work: Work) -> Result<(Vec<u32>, Finish), Status> {
        let shared = &self.coordinator.0;
        let Work { header, fingerprint, record, mut specs, pictures, home, .. } = work;
        // Jobs bound themselves: a queue that callers have filled is no reason to refuse their units.
        specs.iter_mut().for_each(|spec| spec.admitted = true);
        let key = format!("{tenant}/{}", header.id);
        let weak = Arc::downgrade(shared);
        let leaving = move |record: &Record, unfinished: bool| {
            // The pipelines of a reign that is over are not ours any more.
            if let Some(shared) = weak.upgrade().filter(|shared| unfinished && !shared.over.is_cancelled()) {
                shared.give_up(record);
            }
        };
        let reader = match shared.requests.join(&key, fingerprint, || record, leaving) {
            Joined::New(reader) => reader,
            Joined::Known(_) | Joined::Conflict => {
                return Err(status::unavailable(format!("request {} is in use", header.id), RETRY));
            }
        };
        reader.record.accept(true);
        let mut watch = reader.record.watch();
        shared.submit(tenant, specs, pictures, home, reader.another()).await;
        let finish = loop {
            watch.borrow_and_update();
            if let Some(end) = reader.record.look(0, |p| p.end.clone()).flatten() {
                break end.map_err(paint::failed)?;
            }
            watch.changed().await.map_err(|_| Status::internal("the unit's record is gone"))?;
        };
        let ids = reader.record.look(0, |p| p.ids.clone()).unwrap_or_default();
        drop(reader);
        shared.requests.remove(&key);
        Ok((ids, finish))
    }
}

#[tonic::async_trait]
impl Engine for Units {
    async fn paint(&self, tenant: &Arc<str>, request: v1::GenerateImageRequest) -> Result<Picture, Status> {
        let shared = &self.coordinator.0;
        shared.enter()?;
        let work = paint::work(shared, tenant, request, &self.logs).await?;
        shared.admit()?;
        // Over its quota, a job waits; it has nobody in flight who would be refused.
        shared.tenants.admit(tenant, 1, || 0)?;
        let (ids, _) = self.draw(tenant, work).await?;
        let picture = shared.decode(&ids).await?;
        Ok(Picture { width: picture.width, height: picture.height, rgb: picture.rgb, sha256: paint::sha256_of_ids(&ids) })
    }

    async fn answer(&self, tenant: &Arc<str>, request: v1::ChatRequest) -> Result<Answer, Status> {
        let shared = &self.coordinator.0;
        shared.enter()?;
        let mut stops = Stops::new(request.stop.clone());
        let work = chat::work(shared, tenant, request, &self.logs)?;
        shared.admit()?;
        shared.tenants.admit(tenant, 0, || 0)?;
        shared.understand(tenant, &work.pictures, work.home.home).await?;
        let prompt = work.record.prompt.len();
        let (ids, finish) = self.draw(tenant, work).await?;
        let answer = |text, finish_reason, drawn: usize| {
            let usage = v1::Usage { input_tokens: prompt as u64, output_tokens: drawn as u64 };
            Ok(Answer { text, finish_reason, usage })
        };
        let broken = |error: janus_spec::Error| Status::internal(error.to_string());
        let tokenizer = &shared.model.tokenizer;
        let (mut decoder, mut text) = (tokenizer.stream_decoder(), String::new());
        for (at, id) in ids.iter().enumerate() {
            let passed = stops.push(&decoder.push(tokenizer, *id).map_err(broken)?.unwrap_or_default());
            text.push_str(&passed.text);
            if passed.stopped {
                return answer(text, v1::FinishReason::Stop, at + 1);
            }
        }
        let passed = stops.push(&decoder.finish(tokenizer).map_err(broken)?);
        text.push_str(&passed.text);
        if passed.stopped {
            return answer(text, v1::FinishReason::Stop, ids.len());
        }
        text.push_str(&stops.finish());
        answer(text, chat::reason(finish), ids.len())
    }
}
