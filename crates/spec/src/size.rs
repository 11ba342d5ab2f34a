//! Sizes: parameters of every part, bytes of a layer, bytes of the KV cache. For the planner and for `janus inspect`.

use serde::Serialize;

use crate::{ImageHeadSpec, LlamaSpec, ModelSpec, ProjectorSpec, SiglipSpec, StoredDtype, VqSpec};

/// Outputs and inputs of a block of quantised weights, and of a panel of others.
const BLOCK: u64 = 32;

/// How a stage keeps the weights of its linear layers in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightStorage {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// A sign and 8 bits with a bf16 scale per 16 inputs.
    Q8,
    /// Signed 4-bit with a bf16 scale per 32 inputs.
    Q4,
}

/// How a stage keeps keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvStorage {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

/// Bytes of what stages hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StageSizes {
    /// Weights of one block.
    pub layer: u64,
    /// Weights that the first stage has besides: both embedding tables and the generation aligner.
    pub embeddings: u64,
    /// Weights that the last stage has besides: final norm, text head, image head.
    pub heads: u64,
    /// Keys and values of one position of one row in one block.
    pub kv_per_position: u64,
}

impl WeightStorage {
    /// Every one, the largest first.
    pub const ALL: [WeightStorage; 4] = [WeightStorage::F32, WeightStorage::Bf16, WeightStorage::Q8, WeightStorage::Q4];

    /// Bytes of a matrix. Outputs are padded to whole panels of 32, inputs of quantised ones to whole blocks.
    pub fn matrix_bytes(self, outputs: usize, inputs: usize) -> u64 {
        let (panels, inputs) = ((outputs as u64).div_ceil(BLOCK), inputs as u64);
        let scales = 2 * BLOCK;
        panels
            * match self {
                WeightStorage::F32 => 4 * BLOCK * inputs,
                WeightStorage::Bf16 => 2 * BLOCK * inputs,
                WeightStorage::Q8 => (scales + (BLOCK / 8 + BLOCK) * 16) * inputs.div_ceil(16),
                WeightStorage::Q4 => (scales + BLOCK * BLOCK / 2) * inputs.div_ceil(BLOCK),
            }
    }

    /// Bytes of a matrix and its bias, which is f32.
    fn linear_bytes(self, outputs: usize, inputs: usize) -> u64 {
        self.matrix_bytes(outputs, inputs) + 4 * outputs as u64
    }
}

impl KvStorage {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            KvStorage::F32 => 4,
            KvStorage::Bf16 => 2,
        }
    }
}

/// Parameters of each part. Tensors that inference never uses (SigLIP's pooling head) are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PartSizes {
    /// Token embedding of the language model.
    pub embedding: u64,
    /// One block of the language model.
    pub layer: u64,
    /// Blocks of the language model.
    pub layers: u64,
    /// Final norm of the language model.
    pub norm: u64,
    /// Text head.
    pub lm_head: u64,
    /// Vision tower.
    pub vision: u64,
    /// Understanding aligner.
    pub aligner: u64,
    /// Generation embedding.
    pub gen_embedding: u64,
    /// Generation aligner.
    pub gen_aligner: u64,
    /// Image head.
    pub gen_head: u64,
    /// VQ encoder with `quant_conv`.
    pub vq_encoder: u64,
    /// VQ codebook.
    pub vq_codebook: u64,
    /// VQ decoder with `post_quant_conv`.
    pub vq_decoder: u64,
}

impl PartSizes {
    /// All parameters.
    pub fn total(&self) -> u64 {
        let llm = self.embedding + self.layer * self.layers + self.norm + self.lm_head;
        let understanding = self.vision + self.aligner;
        let generation = self.gen_embedding + self.gen_aligner + self.gen_head;
        llm + understanding + generation + self.vq_encoder + self.vq_codebook + self.vq_decoder
    }
}

/// Weights and biases of a linear layer.
fn linear(input: usize, output: usize) -> u64 {
    input as u64 * output as u64 + output as u64
}

/// Weights and biases of a square convolution.
fn conv(side: u64, input: usize, output: usize) -> u64 {
    side * side * input as u64 * output as u64 + output as u64
}

/// Scale and shift of LayerNorm or GroupNorm.
fn norm(width: usize) -> u64 {
    2 * width as u64
}

impl LlamaSpec {
    /// Parameters of one block.
    pub fn layer_parameters(&self) -> u64 {
        let hidden = self.hidden as u64;
        let queries = (self.heads * self.head_dim) as u64;
        let keys = (self.kv_heads * self.head_dim) as u64;
        2 * hidden * queries + 2 * hidden * keys + 3 * hidden * self.intermediate as u64 + 2 * hidden
    }

    /// Bytes of keys and values of one position of one sequence in `layers` blocks.
    pub fn kv_bytes(&self, layers: usize, bytes_per_value: usize) -> u64 {
        2 * self.kv_heads as u64 * self.head_dim as u64 * layers as u64 * bytes_per_value as u64
    }
}

impl SiglipSpec {
    /// Parameters of the tower.
    pub fn parameters(&self) -> u64 {
        let block = 2 * norm(self.width)
            + 4 * linear(self.width, self.width)
            + linear(self.width, self.mlp)
            + linear(self.mlp, self.width);
        let patches = conv(self.patch as u64, 3, self.width);
        patches + self.tokens() as u64 * self.width as u64 + self.layers as u64 * block + norm(self.width)
    }
}

impl ProjectorSpec {
    /// Parameters of the stack.
    pub fn parameters(&self) -> u64 {
        linear(self.input, self.hidden) + (self.depth as u64 - 1) * linear(self.hidden, self.hidden)
    }
}

impl ImageHeadSpec {
    /// Parameters of the head over a hidden state of width `hidden`.
    pub fn parameters(&self, hidden: usize) -> u64 {
        linear(hidden, self.embed) + linear(self.embed, self.vocab)
    }
}

/// Parameters of a residual block.
fn res_block(input: usize, output: usize) -> u64 {
    let shortcut = if input == output { 0 } else { conv(1, input, output) };
    norm(input) + conv(3, input, output) + norm(output) + conv(3, output, output) + shortcut
}

/// Parameters of an attention block.
fn attention(width: usize) -> u64 {
    norm(width) + 4 * conv(1, width, width)
}

impl VqSpec {
    /// Channels of every level, full resolution first.
    pub fn level_channels(&self) -> Vec<usize> {
        self.multipliers.iter().map(|m| m * self.channels).collect()
    }

    /// Parameters of the encoder and `quant_conv`.
    pub fn encoder_parameters(&self) -> u64 {
        let mut sum = conv(3, 3, self.channels);
        let mut width = self.channels;
        let levels = self.level_channels();
        for (i, &channels) in levels.iter().enumerate() {
            let last = i + 1 == levels.len();
            for _ in 0..self.res_blocks {
                sum += res_block(width, channels) + if last { attention(channels) } else { 0 };
                width = channels;
            }
            sum += if last { 0 } else { conv(3, width, width) };
        }
        sum += 2 * res_block(width, width) + attention(width) + norm(width) + conv(3, width, self.latent);
        sum + conv(1, self.latent, self.embed_dim)
    }

    /// Parameters of `post_quant_conv` and the decoder.
    pub fn decoder_parameters(&self) -> u64 {
        let levels = self.level_channels();
        let mut width = levels.last().copied().unwrap_or(self.channels);
        let mut sum = conv(1, self.embed_dim, self.latent) + conv(3, self.latent, width);
        sum += 2 * res_block(width, width) + attention(width);
        for (i, &channels) in levels.iter().enumerate().rev() {
            let lowest = i + 1 == levels.len();
            for _ in 0..=self.res_blocks {
                sum += res_block(width, channels) + if lowest { attention(channels) } else { 0 };
                width = channels;
            }
            sum += if i == 0 { 0 } else { conv(3, width, width) };
        }
        sum + norm(width) + conv(3, width, 3)
    }
}

impl ModelSpec {
    /// Parameters of every part.
    pub fn parts(&self) -> PartSizes {
        let (llm, vq) = (&self.llm, &self.vq);
        let vocabulary = llm.vocab as u64 * llm.hidden as u64;
        PartSizes {
            embedding: vocabulary,
            layer: llm.layer_parameters(),
            layers: llm.layers as u64,
            norm: llm.hidden as u64,
            lm_head: vocabulary,
            vision: self.vision.parameters(),
            aligner: self.aligner.parameters(),
            gen_embedding: self.gen_head.vocab as u64 * self.gen_aligner.input as u64,
            gen_aligner: self.gen_aligner.parameters(),
            gen_head: self.gen_head.parameters(llm.hidden),
            vq_encoder: vq.encoder_parameters(),
            vq_codebook: vq.codebook as u64 * vq.embed_dim as u64,
            vq_decoder: vq.decoder_parameters(),
        }
    }

    /// All parameters: 2,076,636,811 for the 1B models, 7,407,773,323 for the 7B.
    pub fn parameters(&self) -> u64 {
        self.parts().total()
    }

    /// Bytes of the weights of one block of the language model.
    pub fn layer_bytes(&self, bytes_per_value: usize) -> u64 {
        self.llm.layer_parameters() * bytes_per_value as u64
    }

    /// Bytes of the KV cache of one position of one sequence, all blocks: 196,608 for the 1B models in bf16.
    pub fn kv_bytes_per_position(&self, bytes_per_value: usize) -> u64 {
        self.llm.kv_bytes(self.llm.layers, bytes_per_value)
    }

    /// Bytes of what stages hold when linear layers are kept as `weights` and the cache as `kv`. The text embedding stays
    /// as it is stored, norms, biases and the table of codes are f32.
    pub fn stage_sizes(&self, weights: WeightStorage, kv: KvStorage) -> StageSizes {
        let (llm, head) = (&self.llm, &self.gen_head);
        let (queries, keys) = (llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim);
        let layer = weights.matrix_bytes(queries + 2 * keys, llm.hidden)
            + weights.matrix_bytes(llm.hidden, queries)
            + weights.matrix_bytes(2 * llm.intermediate, llm.hidden)
            + weights.matrix_bytes(llm.hidden, llm.intermediate)
            + 4 * 2 * llm.hidden as u64;
        let stored = if self.dtype == StoredDtype::BF16 { 2 } else { 4 };
        let aligner = &self.gen_aligner;
        // Only layers and heads are quantised.
        let plain = match weights {
            WeightStorage::Q8 | WeightStorage::Q4 if self.dtype == StoredDtype::BF16 => WeightStorage::Bf16,
            WeightStorage::Q8 | WeightStorage::Q4 => WeightStorage::F32,
            WeightStorage::F32 | WeightStorage::Bf16 => weights,
        };
        let embeddings = stored * (llm.vocab * llm.hidden) as u64
            + 4 * (head.vocab * aligner.input) as u64
            + plain.linear_bytes(aligner.hidden, aligner.input)
            + (aligner.depth as u64).saturating_sub(1) * plain.linear_bytes(aligner.hidden, aligner.hidden);
        let heads = 4 * llm.hidden as u64
            + weights.matrix_bytes(llm.vocab, llm.hidden)
            + weights.linear_bytes(head.embed, llm.hidden)
            + weights.linear_bytes(head.vocab, head.embed);
        StageSizes { layer, embeddings, heads, kv_per_position: llm.kv_bytes(1, kv.size()) }
    }
}
