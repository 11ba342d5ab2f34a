//! Ids to rows of the residual stream: text ids by table, image ids by their own table and the generation aligner.

use half::bf16;
use janus_kernels::{Pool, WeightFormat};

use crate::error::{Error, Result};
use crate::nn::Projector;
use crate::weights::{Checkpoint, Dtype};

enum Rows {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

/// What the first stage owns besides its layers.
pub struct Embeddings {
    hidden: usize,
    vocab: usize,
    tokens: Rows,
    codes: usize,
    code_width: usize,
    /// `gen_embed`: its own table, not the VQ codebook, not normalised (modeling_vlm.py:214).
    code_rows: Vec<f32>,
    aligner: Projector,
}

impl Embeddings {
    /// Loads both tables and the generation aligner; the text table stays in its stored precision, and the aligner is never quantised.
    pub fn load(checkpoint: &Checkpoint, format: WeightFormat) -> Result<Self> {
        let spec = &checkpoint.spec;
        let format = checkpoint.unquantised(format);
        let (vocab, hidden) = (spec.llm.vocab, spec.llm.hidden);
        let name = "model.language_model.embed_tokens.weight";
        let tokens = match checkpoint.dtype_of(name) {
            Some(Dtype::Bf16) => Rows::Bf16(checkpoint.bf16(name, &[vocab, hidden])?),
            _ => Rows::F32(checkpoint.f32(name, &[vocab, hidden])?),
        };
        let (codes, code_width) = (spec.gen_head.vocab, spec.gen_aligner.input);
        Ok(Embeddings {
            hidden,
            vocab,
            tokens,
            codes,
            code_width,
            code_rows: checkpoint.f32("model.generation_embeddings.weight", &[codes, code_width])?,
            aligner: Projector::load(checkpoint, "model.generation_aligner", &spec.gen_aligner, format)?,
        })
    }

    /// Bytes of weights held.
    pub fn bytes(&self) -> usize {
        let tokens = match &self.tokens {
            Rows::F32(rows) => 4 * rows.len(),
            Rows::Bf16(rows) => 2 * rows.len(),
        };
        tokens + 4 * self.code_rows.len() + self.aligner.bytes()
    }

    /// Rows `[ids, hidden]` of text ids.
    pub fn text(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut out = Vec::with_capacity(ids.len() * self.hidden);
        for &id in ids {
            let start = id as usize * self.hidden;
            if id as usize >= self.vocab {
                return Err(Error::Argument(format!("token id {id} is outside the vocabulary of {}", self.vocab)));
            }
            match &self.tokens {
                Rows::F32(rows) => out.extend_from_slice(&rows[start..start + self.hidden]),
                Rows::Bf16(rows) => out.extend(rows[start..start + self.hidden].iter().map(|x| x.to_f32())),
            }
        }
        Ok(out)
    }

    /// Rows `[ids, hidden]` of image ids: `gen_aligner(gen_embed(id))` (modeling_vlm.py:262).
    pub fn image(&self, pool: &Pool, ids: &[u32]) -> Result<Vec<f32>> {
        let mut codes = Vec::with_capacity(ids.len() * self.code_width);
        for &id in ids {
            let start = id as usize * self.code_width;
            if id as usize >= self.codes {
                return Err(Error::Argument(format!("image id {id} is outside the codebook of {} codes", self.codes)));
            }
            codes.extend_from_slice(&self.code_rows[start..start + self.code_width]);
        }
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        self.aligner.forward(pool, &codes, ids.len(), &mut scratch, &mut out);
        Ok(out)
    }
}
