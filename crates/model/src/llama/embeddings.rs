//! Ids to rows of the residual stream: text ids by table, image ids by their own table and the generation aligner.

use std::sync::{Mutex, PoisonError};

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
    scratch: Mutex<Scratch>,
}

/// Rows on their way through the aligner; they only ever grow, so a steady step allocates nothing.
#[derive(Default)]
struct Scratch {
    codes: Vec<f32>,
    inner: Vec<f32>,
    aligned: Vec<f32>,
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
            scratch: Mutex::default(),
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

    /// Appends rows `[ids, hidden]` of text ids to `out`; none of them if an id is unknown.
    pub fn text(&self, ids: &[u32], out: &mut Vec<f32>) -> Result<()> {
        let before = out.len();
        out.reserve(ids.len() * self.hidden);
        for &id in ids {
            let start = id as usize * self.hidden;
            if id as usize >= self.vocab {
                out.truncate(before);
                return Err(Error::Argument(format!("token id {id} is outside the vocabulary of {}", self.vocab)));
            }
            match &self.tokens {
                Rows::F32(rows) => out.extend_from_slice(&rows[start..start + self.hidden]),
                Rows::Bf16(rows) => out.extend(rows[start..start + self.hidden].iter().map(|x| x.to_f32())),
            }
        }
        Ok(())
    }

    /// Appends rows `[ids, hidden]` of image ids, `gen_aligner(gen_embed(id))` (modeling_vlm.py:262), to `out`.
    pub fn image(&self, pool: &Pool, ids: &[u32], out: &mut Vec<f32>) -> Result<()> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { codes, inner, aligned } = &mut *scratch;
        codes.clear();
        for &id in ids {
            let start = id as usize * self.code_width;
            if id as usize >= self.codes {
                return Err(Error::Argument(format!("image id {id} is outside the codebook of {} codes", self.codes)));
            }
            codes.extend_from_slice(&self.code_rows[start..start + self.code_width]);
        }
        self.aligner.forward(pool, codes, ids.len(), inner, aligned);
        out.extend_from_slice(aligned);
        Ok(())
    }
}
