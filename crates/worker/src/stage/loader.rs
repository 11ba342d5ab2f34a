//! Loading layers while others are computed with: what is there already is never read again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use janus_kernels::{KvDtype, Pool, WeightFormat};
use janus_model::Checkpoint;
use janus_model::llama::{Embeddings, Heads, Layer, LlamaRange};

use super::compute::{Loader, ModelCompute};

/// Layers of a checkpoint.
pub struct ModelLoader {
    checkpoint: Arc<Checkpoint>,
    pool: Arc<Pool>,
    weights: WeightFormat,
    kv: KvDtype,
    slots: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    layers: BTreeMap<usize, Arc<Layer>>,
    embeddings: Option<Arc<Embeddings>>,
    heads: Option<Heads>,
}

impl ModelLoader {
    /// Nothing is loaded yet. `slots` units can be open at once.
    pub fn new(checkpoint: Arc<Checkpoint>, pool: Arc<Pool>, weights: WeightFormat, kv: KvDtype, slots: usize) -> Self {
        ModelLoader { checkpoint, pool, weights, kv, slots, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loader<ModelCompute> for ModelLoader {
    fn total_layers(&self) -> usize {
        self.checkpoint.spec.llm.layers
    }

    fn hidden(&self) -> usize {
        self.checkpoint.spec.llm.hidden
    }

    fn load(&self, range: Range<usize>) -> Result<ModelCompute, String> {
        let said = |e: janus_model::Error| e.to_string();
        let spec = &self.checkpoint.spec.llm;
        if range.is_empty() || range.end > spec.layers {
            return Err(format!("layers {range:?} are not a range within the model's {}", spec.layers));
        }
        let mut layers = Vec::with_capacity(range.len());
        for i in range.clone() {
            let known = self.held().layers.get(&i).cloned();
            let layer = match known {
                Some(layer) => layer,
                None => Arc::new(Layer::load(&self.checkpoint, i, self.weights).map_err(said)?),
            };
            self.held().layers.insert(i, layer.clone());
            layers.push(layer);
        }
        let embeddings = match (range.start, self.held().embeddings.clone()) {
            (0, None) => Some(Arc::new(Embeddings::load(&self.checkpoint, self.weights).map_err(said)?)),
            (0, known) => known,
            _ => None,
        };
        let heads = match (range.end == spec.layers, self.held().heads.as_ref().map(Heads::twin)) {
            (true, None) => Some(Heads::load(&self.checkpoint, self.weights).map_err(said)?),
            (true, known) => known,
            _ => None,
        };
        let mut held = self.held();
        held.embeddings = embeddings.clone().or(held.embeddings.take());
        held.heads = heads.as_ref().map(Heads::twin).or(held.heads.take());
        let llm = LlamaRange::of(spec, range.start, layers, self.kv, 2 * self.slots).map_err(said)?;
        Ok(ModelCompute::of(self.pool.clone(), spec, llm, embeddings, heads))
    }

    fn keep(&self, range: Range<usize>) {
        let total = self.total_layers();
        let mut held = self.held();
        held.layers.retain(|i, _| range.contains(i));
        if range.is_empty() || range.start > 0 {
            held.embeddings = None;
        }
        if range.is_empty() || range.end < total {
            held.heads = None;
        }
    }

    fn bytes(&self) -> usize {
        let held = self.held();
        held.layers.values().map(|layer| layer.bytes()).sum::<usize>()
            + held.embeddings.as_ref().map_or(0, |e| e.bytes())
            + held.heads.as_ref().map_or(0, Heads::bytes)
    }
}
