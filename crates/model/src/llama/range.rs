//! A contiguous range of Llama layers with a KV cache by sequence slot.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use janus_kernels::{
    AttnRow, KvDtype, KvSlots, Packed, Pool, RopeTable, Rows, WeightFormat, add_assign, attention, linear, rms_norm,
    silu_mul,
};
use janus_spec::LlamaSpec;

use crate::error::{Error, Result};
use crate::weights::Checkpoint;

/// A row of KV memory: one sequence, or one branch of a guided pair.
pub type SlotId = usize;

/// Consecutive positions of one slot: `rows` rows starting at position `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Whose.
    pub slot: SlotId,
    /// First position; must be the slot's length.
    pub start: usize,
    /// How many positions.
    pub rows: usize,
}

/// The weights of one layer, packed.
pub struct Layer {
    attention_norm: Vec<f32>,
    qkv: Packed,
    output: Packed,
    mlp_norm: Vec<f32>,
    gate_up: Packed,
    down: Packed,
}

/// Layers `[first, end)` of the language model.
pub struct LlamaRange {
    spec: LlamaSpec,
    range: Range<usize>,
    layers: Vec<Arc<Layer>>,
    rope: RopeTable,
    cache: KvSlots,
    workspace: Arc<Workspace>,
}

/// Buffers of a forward pass; they only ever grow, so a steady step allocates nothing. Ranges that share a pool of threads
/// compute in turn anyway, so they share these too.
#[derive(Default)]
pub struct Workspace(Mutex<Scratch>);

#[derive(Default)]
struct Scratch {
    rows: Vec<AttnRow>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    gate_up: Vec<f32>,
    inner: Vec<f32>,
    delta: Vec<f32>,
}

impl Layer {
    /// Loads layer `i` of the language model and nothing else.
    ///
    /// # Errors
    /// Tensors that are missing, damaged or of another shape.
    pub fn load(checkpoint: &Checkpoint, i: usize, format: WeightFormat) -> Result<Self> {
        let spec = &checkpoint.spec.llm;
        let (hidden, queries, keys) = (spec.hidden, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let name = |tail: &str| format!("model.language_model.layers.{i}.{tail}.weight");
        let (q, k, v) = (name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj"));
        let (gate, up) = (name("mlp.gate_proj"), name("mlp.up_proj"));
        Ok(Layer {
            attention_norm: checkpoint.f32(&name("input_layernorm"), &[hidden])?,
            qkv: checkpoint.packed(&[(&q, queries), (&k, keys), (&v, keys)], hidden, format)?,
            output: checkpoint.packed(&[(&name("self_attn.o_proj"), hidden)], queries, format)?,
            mlp_norm: checkpoint.f32(&name("post_attention_layernorm"), &[hidden])?,
            gate_up: checkpoint.packed(&[(&gate, spec.intermediate), (&up, spec.intermediate)], hidden, format)?,
            down: checkpoint.packed(&[(&name("mlp.down_proj"), hidden)], spec.intermediate, format)?,
        })
    }

    /// Bytes of weights held.
    pub fn bytes(&self) -> usize {
        4 * (self.attention_norm.len() + self.mlp_norm.len())
            + self.qkv.bytes()
            + self.output.bytes()
            + self.gate_up.bytes()
            + self.down.bytes()
    }
}

impl LlamaRange {
    /// Loads the layers of `range` and nothing else, with a table of `slots` free KV slots.
    pub fn load(
        checkpoint: &Checkpoint,
        range: Range<usize>,
        format: WeightFormat,
        kv: KvDtype,
        slots: usize,
    ) -> Result<Self> {
        check_range(&checkpoint.spec.llm, &range)?;
        let layers = range.clone().map(|i| Layer::load(checkpoint, i, format).map(Arc::new)).collect::<Result<_>>()?;
        LlamaRange::of(&checkpoint.spec.llm, range.start, layers, kv, slots)
    }

    /// Puts loaded layers, which begin with number `first`, together with a table of `slots` free KV slots.
    pub fn of(spec: &LlamaSpec, first: usize, layers: Vec<Arc<Layer>>, kv: KvDtype, slots: usize) -> Result<Self> {
        let range = first..first + layers.len();
        check_range(spec, &range)?;
        Ok(LlamaRange {
            rope: RopeTable::new(spec.head_dim, spec.rope_theta as f32, spec.max_positions),
            cache: KvSlots::new(slots, range.len(), spec.kv_heads, spec.head_dim, kv),
            spec: spec.clone(),
            range,
            layers,
            workspace: Arc::default(),
        })
    }

    /// Computes in `workspace`, with others that use the same pool.
    pub fn sharing(mut self, workspace: Arc<Workspace>) -> Self {
        self.workspace = workspace;
        self
    }

    /// Which layers these are.
    pub fn layers(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Bytes of weights held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.bytes()).sum()
    }

    /// Reserves the free slot `slot` for a sequence of at most `capacity` positions.
    pub fn open(&mut self, slot: SlotId, capacity: usize) -> Result<()> {
        if capacity > self.spec.max_positions {
            return Err(Error::Argument(format!(
                "{capacity} positions are more than the model's context of {}",
                self.spec.max_positions
            )));
        }
        Ok(self.cache.allocate(slot, capacity)?)
    }

    /// Frees a slot and its memory; closing a free slot is fine.
    pub fn close(&mut self, slot: SlotId) {
        self.cache.free(slot);
    }

    /// Forgets all positions from `length` on.
    pub fn truncate(&mut self, slot: SlotId, length: usize) -> Result<()> {
        Ok(self.cache.truncate(slot, length)?)
    }

    /// Gives slot `to` the first `length` positions of slot `from`, bit for bit.
    pub fn copy(&mut self, from: SlotId, to: SlotId, length: usize) -> Result<()> {
        Ok(self.cache.copy(from, to, length)?)
    }

    /// Forgets all positions from `length` on, and gives their memory back: no more can follow.
    pub fn shrink(&mut self, slot: SlotId, length: usize) -> Result<()> {
        Ok(self.cache.shrink(slot, length)?)
    }

    /// Fills a slot up to `length` positions with arbitrary keys and values: for measuring a step at some context without
    /// computing the context.
    pub fn pretend(&mut self, slot: SlotId, length: usize) -> Result<()> {
        let width = self.spec.kv_heads * self.spec.head_dim;
        let values: Vec<f32> = (0..width).map(|i| (i % 13) as f32 / 13.0 - 0.5).collect();
        for layer in 0..self.layers.len() {
            for position in 0..length {
                self.cache.append(layer, slot, position, &values, &values)?;
            }
        }
        Ok(())
    }

    /// Positions a slot holds; 0 for a free one.
    pub fn length(&self, slot: SlotId) -> usize {
        self.cache.len(slot)
    }

    /// Bytes of KV memory a slot of `capacity` positions takes.
    pub fn slot_bytes(&self, capacity: usize) -> usize {
        self.cache.slot_bytes(capacity)
    }

    /// Bytes of KV memory in use.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Runs the layers over `x`, the residual rows `[rows, hidden]` of all spans one after another, in place.
    ///
    /// # Errors
    /// A span that does not start at its slot's length or does not fit its capacity, or rows that do not match; the
    /// cache is then unchanged.
    pub fn forward(&mut self, pool: &Pool, spans: &[Span], x: &mut [f32]) -> Result<()> {
        let spec = &self.spec;
        let rows = spans.iter().map(|s| s.rows).sum::<usize>();
        if x.len() != rows * spec.hidden {
            return Err(Error::Argument(format!("{} values are not {rows} rows of {}", x.len(), spec.hidden)));
        }
        let mut scratch = self.workspace.0.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = &mut *scratch;
        scratch.rows.clear();
        for span in spans {
            let slot = span.slot;
            let (length, capacity) = (self.cache.len(slot), self.cache.capacity(slot));
            let refuse = |reason: String| Err(Error::Slot { slot, reason });
            if span.start != length {
                return refuse(format!("holds {length} positions, so position {} cannot come next", span.start));
            }
            if span.start + span.rows > capacity {
                return refuse(format!("has room for {capacity} positions, not {}", span.start + span.rows));
            }
            scratch.rows.extend((span.start..span.start + span.rows).map(|position| AttnRow { slot, position }));
        }

        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let width = queries + 2 * keys;
        scratch.normed.resize(rows * spec.hidden, 0.0);
        scratch.delta.resize(rows * spec.hidden, 0.0);
        scratch.qkv.resize(rows * width, 0.0);
        scratch.mixed.resize(rows * queries, 0.0);
        scratch.gate_up.resize(rows * 2 * spec.intermediate, 0.0);
        scratch.inner.resize(rows * spec.intermediate, 0.0);
        let (hidden, inner) = (spec.hidden, spec.intermediate);
        let norm = |x: &[f32], weight: &[f32], out: &mut [f32]| {
            pool.map_rows(x, hidden, out, hidden, |x, out| rms_norm(x, weight, spec.rms_eps, out));
        };
        let add = |delta: &[f32], x: &mut [f32]| pool.map_rows(delta, hidden, x, hidden, |delta, x| add_assign(x, delta));
        for (i, layer) in self.layers.iter().enumerate() {
            norm(x, &layer.attention_norm, &mut scratch.normed);
            linear(pool, &scratch.normed, &layer.qkv, None, &mut scratch.qkv);
            self.rope.apply_rows(pool, &mut scratch.qkv, width, spec.heads + spec.kv_heads, &scratch.rows);
            let (key, value) = (&scratch.qkv[queries..], &scratch.qkv[queries + keys..]);
            self.cache.append_rows(pool, i, &scratch.rows, Rows::new(key, width), Rows::new(value, width))?;
            attention(pool, Rows::new(&scratch.qkv, width), &scratch.rows, spec.heads, &self.cache, i, &mut scratch.mixed);
            linear(pool, &scratch.mixed, &layer.output, None, &mut scratch.delta);
            add(&scratch.delta, x);

            norm(x, &layer.mlp_norm, &mut scratch.normed);
            linear(pool, &scratch.normed, &layer.gate_up, None, &mut scratch.gate_up);
            pool.map_rows(&scratch.gate_up, 2 * inner, &mut scratch.inner, inner, |x, out| silu_mul(x, inner, out));
            linear(pool, &scratch.inner, &layer.down, None, &mut scratch.delta);
            add(&scratch.delta, x);
        }
        Ok(())
    }
}

fn check_range(spec: &LlamaSpec, range: &Range<usize>) -> Result<()> {
    match range.is_empty() || range.end > spec.layers {
        true => Err(Error::Argument(format!("layers {range:?} are not a range within the model's {} layers", spec.layers))),
        false => Ok(()),
    }
}
