//! What `janus top` knows: the latest answer, and how fast pipelines were before it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use janus_wire::v1::{PipelineStatus, StatusResponse};

/// Answers whose speeds are drawn.
const REMEMBERED: usize = 60;

/// A cluster as it was and is.
pub(super) struct Watch {
    pub(super) answer: StatusResponse,
    /// Since the start, when it was given.
    at: Duration,
    /// Microbatches per second of each pipeline, the newest last.
    rates: BTreeMap<u64, VecDeque<f64>>,
    /// Why there was no newer answer.
    pub(super) silent: Option<String>,
    /// Members above the first one that is shown.
    pub(super) above: usize,
}

impl Watch {
    pub(super) fn new(answer: StatusResponse) -> Self {
        Watch { answer, at: Duration::ZERO, rates: BTreeMap::new(), silent: None, above: 0 }
    }

    /// An answer came.
    pub(super) fn hear(&mut self, at: Duration, answer: StatusResponse) {
        let seconds = at.saturating_sub(self.at).as_secs_f64().max(1e-3);
        for pipeline in &answer.pipelines {
            let before = self.answer.pipelines.iter().find(|p| p.id == pipeline.id);
            let rates = self.rates.entry(pipeline.id).or_default();
            rates.push_back(microbatches(before, pipeline) as f64 / seconds);
            while rates.len() > REMEMBERED {
                rates.pop_front();
            }
        }
        self.rates.retain(|id, _| answer.pipelines.iter().any(|p| p.id == *id));
        (self.answer, self.at, self.silent) = (answer, at, None);
        self.scroll(0);
    }

    /// No answer came.
    pub(super) fn miss(&mut self, reason: String) {
        self.silent = Some(reason);
    }

    /// Shows members further down, or up.
    pub(super) fn scroll(&mut self, by: isize) {
        let last = self.answer.members.len().saturating_sub(1);
        self.above = self.above.saturating_add_signed(by).min(last);
    }

    /// Microbatches per second of a pipeline, the newest last.
    pub(super) fn rates(&self, pipeline: u64) -> impl Iterator<Item = f64> + '_ {
        self.rates.get(&pipeline).into_iter().flatten().copied()
    }
}

/// Microbatches between two answers. A pipeline counts from 0 again under each epoch.
fn microbatches(before: Option<&PipelineStatus>, now: &PipelineStatus) -> u64 {
    match before {
        Some(before) if before.epoch == now.epoch => now.microbatches.saturating_sub(before.microbatches),
        Some(_) => now.microbatches,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(epoch: u64, microbatches: u64) -> StatusResponse {
        let pipeline = PipelineStatus { id: 1, epoch, microbatches, ..PipelineStatus::default() };
        StatusResponse { pipelines: vec![pipeline], ..StatusResponse::default() }
    }

    #[test]
    fn speed_survives_a_new_epoch_and_a_slow_answer() {
        let mut watch = Watch::new(status(1, 100));
        watch.hear(Duration::from_secs(2), status(1, 110));
        watch.miss("gone".to_owned());
        watch.hear(Duration::from_secs(4), status(2, 6));
        assert_eq!(watch.rates(1).collect::<Vec<_>>(), [5.0, 3.0]);
        assert_eq!(watch.silent, None);
    }
}
