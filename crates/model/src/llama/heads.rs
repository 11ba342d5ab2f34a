//! The last stage's end: final norm, then logits over text tokens or over image codes.

use janus_kernels::{Packed, Pool, WeightFormat, gelu_erf, linear, rms_norm};

use crate::error::Result;
use crate::nn::Linear;
use crate::weights::Checkpoint;

/// Final RMSNorm, `lm_head`, and the image head (Linear, GELU, Linear; modeling_vlm.py:36-51).
pub struct Heads {
    norm: Vec<f32>,
    eps: f32,
    text: Packed,
    image_in: Linear,
    image_out: Linear,
    normed: Vec<f32>,
    inner: Vec<f32>,
    logits: Vec<f32>,
}

impl Heads {
    /// Loads both heads.
    pub fn load(checkpoint: &Checkpoint, format: WeightFormat) -> Result<Self> {
        let spec = &checkpoint.spec;
        let (hidden, head) = (spec.llm.hidden, &spec.gen_head);
        Ok(Heads {
            norm: checkpoint.f32("model.language_model.norm.weight", &[hidden])?,
            eps: spec.llm.rms_eps,
            text: checkpoint.packed(&[("lm_head.weight", spec.llm.vocab)], hidden, format)?,
            image_in: Linear::load(checkpoint, "model.generation_head.proj_out", head.embed, hidden, format)?,
            image_out: Linear::load(checkpoint, "model.generation_head.vision_head", head.vocab, head.embed, format)?,
            normed: Vec::new(),
            inner: Vec::new(),
            logits: Vec::new(),
        })
    }

    /// Bytes of weights held.
    pub fn bytes(&self) -> usize {
        4 * self.norm.len() + self.text.bytes() + self.image_in.bytes() + self.image_out.bytes()
    }

    /// Bytes of weights that one pass over the image head reads.
    pub fn image_bytes(&self) -> usize {
        self.image_in.bytes() + self.image_out.bytes()
    }

    /// Hidden rows after the final norm, `[rows, hidden]`.
    pub fn normed(&mut self, x: &[f32]) -> &[f32] {
        self.normed.resize(x.len(), 0.0);
        rms_norm(x, &self.norm, self.eps, &mut self.normed);
        &self.normed
    }

    /// Text logits `[rows, vocab]` of hidden rows before the final norm.
    pub fn text_logits(&mut self, pool: &Pool, x: &[f32]) -> &[f32] {
        let rows = x.len() / self.norm.len();
        self.normed(x);
        self.logits.resize(rows * self.text.n(), 0.0);
        linear(pool, &self.normed, &self.text, None, &mut self.logits);
        &self.logits
    }

    /// Image logits `[rows, codebook]` of hidden rows before the final norm.
    pub fn image_logits(&mut self, pool: &Pool, x: &[f32]) -> &[f32] {
        let rows = x.len() / self.norm.len();
        self.normed(x);
        self.inner.resize(rows * self.image_in.outputs(), 0.0);
        self.image_in.forward(pool, &self.normed, &mut self.inner);
        gelu_erf(&mut self.inner);
        self.logits.resize(rows * self.image_out.outputs(), 0.0);
        self.image_out.forward(pool, &self.inner, &mut self.logits);
        &self.logits
    }
}
