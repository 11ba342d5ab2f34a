//! The understanding pathway: SigLIP tower and aligner, pixels to rows of the language model.
//!
//! timm's pre-norm blocks, no class token, learned positions, exact GELU; all layers and the final norm
//! (deepseek-ai/Janus siglip_vit.py; `select_layer -1`, `select_feature same`).

use janus_kernels::{Pool, Rows, WeightFormat, add_assign, attention_full, gelu_erf};
use janus_spec::SiglipSpec;

use crate::error::{Error, Result, finite};
use crate::nn::{LayerNorm, Linear, Projector};
use crate::weights::Checkpoint;

struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    projection: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// SigLIP tower and aligner.
pub struct VisionEncoder {
    spec: SiglipSpec,
    patches: Linear,
    positions: Vec<f32>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    aligner: Projector,
    hidden: usize,
}

/// What the tower computes on the way, for comparison with a reference.
pub struct VisionTrace {
    /// Patch embeddings plus positions, `[tokens, width]`.
    pub embeddings: Vec<f32>,
    /// Output of each block, `[tokens, width]`.
    pub layers: Vec<Vec<f32>>,
    /// After the final layer norm.
    pub last_hidden_state: Vec<f32>,
    /// After the aligner, `[tokens, hidden]`.
    pub aligned: Vec<f32>,
}

impl VisionEncoder {
    /// Loads tower and aligner, weights packed as `format` unless it is a quantised one.
    pub fn load(checkpoint: &Checkpoint, format: WeightFormat) -> Result<Self> {
        let spec = checkpoint.spec.vision.clone();
        let format = checkpoint.unquantised(format);
        let root = "model.vision_model";
        let (width, eps) = (spec.width, spec.layer_norm_eps);
        let patches = Linear::load(
            checkpoint,
            &format!("{root}.embeddings.patch_embedding"),
            width,
            3 * spec.patch * spec.patch,
            format,
        )?;
        let positions = checkpoint.f32(&format!("{root}.embeddings.position_embedding.weight"), &[spec.tokens(), width])?;
        let mut blocks = Vec::with_capacity(spec.layers);
        for i in 0..spec.layers {
            let name = |tail: &str| format!("{root}.encoder.layers.{i}.{tail}");
            let (q, k, v) = (name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj"));
            blocks.push(Block {
                norm1: LayerNorm::load(checkpoint, &name("layer_norm1"), width, eps)?,
                qkv: Linear::fused(checkpoint, &[&q, &k, &v], width, width, format)?,
                projection: Linear::load(checkpoint, &name("self_attn.projection_layer"), width, width, format)?,
                norm2: LayerNorm::load(checkpoint, &name("layer_norm2"), width, eps)?,
                fc1: Linear::load(checkpoint, &name("mlp.fc1"), spec.mlp, width, format)?,
                fc2: Linear::load(checkpoint, &name("mlp.fc2"), width, spec.mlp, format)?,
            });
        }
        let norm = LayerNorm::load(checkpoint, &format!("{root}.post_layernorm"), width, eps)?;
        let aligner = Projector::load(checkpoint, "model.aligner", &checkpoint.spec.aligner, format)?;
        Ok(VisionEncoder { spec, patches, positions, blocks, norm, aligner, hidden: checkpoint.spec.llm.hidden })
    }

    /// Bytes of weights held.
    pub fn bytes(&self) -> usize {
        let blocks = self.blocks.iter().map(|b| b.qkv.bytes() + b.projection.bytes() + b.fc1.bytes() + b.fc2.bytes());
        self.patches.bytes() + 4 * self.positions.len() + blocks.sum::<usize>() + self.aligner.bytes()
    }

    /// Features `[tokens, hidden]` of a picture given as normalised pixels `[size, size, 3]`.
    pub fn encode(&self, pool: &Pool, pixels: &[f32]) -> Result<Vec<f32>> {
        let (aligned, _) = self.run(pool, pixels, |_, _| {})?;
        finite("a picture's feature", &aligned)?;
        Ok(aligned)
    }

    /// As [`encode`](Self::encode), keeping every intermediate result.
    pub fn trace(&self, pool: &Pool, pixels: &[f32]) -> Result<VisionTrace> {
        let mut seen = Vec::new();
        let (aligned, last_hidden_state) = self.run(pool, pixels, |_, x| seen.push(x.to_vec()))?;
        let layers = seen.split_off(1);
        Ok(VisionTrace { embeddings: seen.swap_remove(0), layers, last_hidden_state, aligned })
    }

    /// Returns (aligned, last hidden state); `watch(i, x)` sees the embeddings (0) and each block's output (i).
    fn run(&self, pool: &Pool, pixels: &[f32], mut watch: impl FnMut(usize, &[f32])) -> Result<(Vec<f32>, Vec<f32>)> {
        let spec = &self.spec;
        let (tokens, width) = (spec.tokens(), spec.width);
        let expected = 3 * spec.image_size * spec.image_size;
        if pixels.len() != expected {
            return Err(Error::Argument(format!("the vision tower takes {expected} pixel values, not {}", pixels.len())));
        }

        let mut x = vec![0.0; tokens * width];
        self.patches.forward(pool, &self.gather_patches(pixels), &mut x);
        add_assign(&mut x, &self.positions);
        watch(0, &x);

        let head_dim = width / spec.heads;
        let mut normed = vec![0.0; tokens * width];
        let mut qkv = vec![0.0; tokens * 3 * width];
        let mut mixed = vec![0.0; tokens * width];
        let mut wide = vec![0.0; tokens * spec.mlp];
        let add = |y: &[f32], x: &mut [f32]| pool.map_rows(y, width, x, width, |y, x| add_assign(x, y));
        for (i, block) in self.blocks.iter().enumerate() {
            block.norm1.forward(pool, &x, &mut normed);
            block.qkv.forward(pool, &normed, &mut qkv);
            let [q, k, v] = [0, 1, 2].map(|part| Rows::new(&qkv[part * width..], 3 * width));
            attention_full(pool, q, k, v, tokens, spec.heads, head_dim, &mut mixed);
            block.projection.forward(pool, &mixed, &mut normed);
            add(&normed, &mut x);

            block.norm2.forward(pool, &x, &mut normed);
            block.fc1.forward(pool, &normed, &mut wide);
            pool.each_row(&mut wide, spec.mlp, gelu_erf);
            block.fc2.forward(pool, &wide, &mut normed);
            add(&normed, &mut x);
            watch(i + 1, &x);
        }
        self.norm.forward(pool, &x, &mut normed);
        let (mut scratch, mut aligned) = (Vec::new(), Vec::new());
        self.aligner.forward(pool, &normed, tokens, &mut scratch, &mut aligned);
        debug_assert_eq!(aligned.len(), tokens * self.hidden);
        Ok((aligned, normed))
    }

    /// Rows `[tokens, 3 * patch * patch]` in the order of the convolution's weight: channel, then y, then x.
    fn gather_patches(&self, pixels: &[f32]) -> Vec<f32> {
        let (size, patch, grid) = (self.spec.image_size, self.spec.patch, self.spec.grid());
        let normal = self.spec.pixel_norm.unwrap_or(([0.0; 3], [1.0; 3]));
        let mut rows = Vec::with_capacity(pixels.len());
        for (gy, gx) in (0..grid).flat_map(|gy| (0..grid).map(move |gx| (gy, gx))) {
            for channel in 0..3 {
                for (y, x) in (0..patch).flat_map(|y| (0..patch).map(move |x| (y, x))) {
                    let value = pixels[3 * ((gy * patch + y) * size + gx * patch + x) + channel];
                    rows.push((value - normal.0[channel]) / normal.1[channel]);
                }
            }
        }
        rows
    }
}
