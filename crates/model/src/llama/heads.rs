//! The last stage's end: final norm, then logits over text tokens or over image codes.

use std::sync::Arc;

use janus_kernels::{Packed, Pool, WeightFormat, gelu_erf, linear, rms_norm};

use crate::error::Result;
use crate::nn::Linear;
use crate::weights::Checkpoint;

/// What is read only.
struct HeadWeights {
    norm: Vec<f32>,
    eps: f32,
    text: Packed,
    image_in: Linear,
    image_out: Linear,
}

/// Final RMSNorm, `lm_head`, and the image head (Linear, GELU, Linear; modeling_vlm.py:36-51).
pub struct Heads {
    weights: Arc<HeadWeights>,
    normed: Vec<f32>,
    inner: Vec<f32>,
    logits: Vec<f32>,
}

impl Heads {
    /// Loads both heads.
    pub fn load(checkpoint: &Checkpoint, format: WeightFormat) -> Result<Self> {
        let spec = &checkpoint.spec;
        let (hidden, head) = (spec.llm.hidden, &spec.gen_head);
        let weights = HeadWeights {
            norm: checkpoint.f32("model.language_model.norm.weight", &[hidden])?,
            eps: spec.llm.rms_eps,
            text: checkpoint.packed(&[("lm_head.weight", spec.llm.vocab)], hidden, format)?,
            image_in: Linear::load(checkpoint, "model.generation_head.proj_out", head.embed, hidden, format)?,
            image_out: Linear::load(checkpoint, "model.generation_head.vision_head", head.vocab, head.embed, format)?,
        };
        Ok(Heads::of(Arc::new(weights)))
    }

    fn of(weights: Arc<HeadWeights>) -> Self {
        Heads { weights, normed: Vec::new(), inner: Vec::new(), logits: Vec::new() }
    }

    /// The same weights with buffers of their own.
    pub fn twin(&self) -> Self {
        Heads::of(self.weights.clone())
    }

    /// Bytes of weights held.
    pub fn bytes(&self) -> usize {
        4 * self.weights.norm.len()
            + self.weights.text.bytes()
            + self.weights.image_in.bytes()
            + self.weights.image_out.bytes()
    }

    /// Bytes of weights that one pass over the image head reads.
    pub fn image_bytes(&self) -> usize {
        self.weights.image_in.bytes() + self.weights.image_out.bytes()
    }

    /// Hidden rows after the final norm, `[rows, hidden]`.
    pub fn normed(&mut self, x: &[f32]) -> &[f32] {
        self.normed.resize(x.len(), 0.0);
        rms_norm(x, &self.weights.norm, self.weights.eps, &mut self.normed);
        &self.normed
    }

    /// Text logits `[rows, vocab]` of hidden rows before the final norm.
    pub fn text_logits(&mut self, pool: &Pool, x: &[f32]) -> &[f32] {
        let rows = x.len() / self.weights.norm.len();
        self.normed(x);
        self.logits.resize(rows * self.weights.text.n(), 0.0);
        linear(pool, &self.normed, &self.weights.text, None, &mut self.logits);
        &self.logits
    }

    /// Image logits `[rows, codebook]` of hidden rows before the final norm.
    pub fn image_logits(&mut self, pool: &Pool, x: &[f32]) -> &[f32] {
        let rows = x.len() / self.weights.norm.len();
        self.normed(x);
        self.inner.resize(rows * self.weights.image_in.outputs(), 0.0);
        self.weights.image_in.forward(pool, &self.normed, &mut self.inner);
        gelu_erf(&mut self.inner);
        self.logits.resize(rows * self.weights.image_out.outputs(), 0.0);
        self.weights.image_out.forward(pool, &self.inner, &mut self.logits);
        &self.logits
    }
}
