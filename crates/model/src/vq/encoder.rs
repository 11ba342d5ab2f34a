//! VQ encoder: pixels to codebook ids. Convolutions are direct and weights keep their stored precision: ids hang
//! on which code is nearest.

use janus_kernels::{Pool, WeightFormat, nearest_code};

use super::layers::{Arena, AttentionBlock, Conv3, ConvKind, GroupNorm, Map, Middle, ResBlock, Resize};
use super::{Codebook, check_pixels};
use crate::error::{Result, finite};
use crate::nn::Linear;
use crate::weights::Checkpoint;

struct Level {
    blocks: Vec<(ResBlock, Option<AttentionBlock>)>,
    downsample: Option<Conv3>,
}

/// VQ encoder, quantiser included.
pub struct VqEncoder {
    image_size: usize,
    conv_in: Conv3,
    levels: Vec<Level>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv3,
    quant: Linear,
    codebook: Codebook,
}

/// What the encoder computes on the way, `[grid, grid, channels]` each.
pub struct VqEncoderTrace {
    /// After conv_out.
    pub encoder_out: Vec<f32>,
    /// After quant_conv: the latents.
    pub latents: Vec<f32>,
    /// The nearest codes.
    pub ids: Vec<u32>,
}

impl VqEncoder {
    /// Loads encoder and codebook.
    pub fn load(checkpoint: &Checkpoint, format: WeightFormat) -> Result<Self> {
        let spec = &checkpoint.spec.vq;
        let format = checkpoint.unquantised(format);
        let root = "model.vqmodel.encoder";
        let kind = ConvKind { format, winograd: false };
        let conv = |name: &str, channels, resize| Conv3::load(checkpoint, &format!("{root}.{name}"), channels, resize, kind);
        let mut channels = spec.channels;
        let conv_in = conv("conv_in", (3, channels), Resize::Keep)?;
        let mut levels = Vec::new();
        for (i, multiplier) in spec.multipliers.iter().enumerate() {
            let last = i + 1 == spec.multipliers.len();
            let output = spec.channels * multiplier;
            let mut blocks = Vec::new();
            for b in 0..spec.res_blocks {
                let name = format!("{root}.down.{i}.block.{b}");
                let block = ResBlock::load(checkpoint, &name, (channels, output), kind)?;
                channels = output;
                let attention = match last {
                    true => Some(AttentionBlock::load(checkpoint, &format!("{root}.down.{i}.attn.{b}"), channels, format)?),
                    false => None,
                };
                blocks.push((block, attention));
            }
            let downsample = match last {
                true => None,
                false => Some(conv(&format!("down.{i}.downsample.conv"), (channels, channels), Resize::Half)?),
            };
            levels.push(Level { blocks, downsample });
        }
        Ok(VqEncoder {
            image_size: spec.image_size,
            conv_in,
            levels,
            middle: Middle::load(checkpoint, root, channels, kind)?,
            norm_out: GroupNorm::load(checkpoint, &format!("{root}.norm_out"), channels)?,
            conv_out: conv("conv_out", (channels, spec.latent), Resize::Keep)?,
            quant: Linear::load(checkpoint, "model.vqmodel.quant_conv", spec.embed_dim, spec.latent, format)?,
            codebook: Codebook::load(checkpoint)?,
        })
    }

    /// Bytes of weights held.
    pub fn bytes(&self) -> usize {
        let level = |l: &Level| {
            let blocks = l.blocks.iter().map(|(r, a)| r.bytes() + a.as_ref().map_or(0, AttentionBlock::bytes));
            blocks.sum::<usize>() + l.downsample.as_ref().map_or(0, Conv3::bytes)
        };
        self.conv_in.bytes()
            + self.levels.iter().map(level).sum::<usize>()
            + self.middle.bytes()
            + self.conv_out.bytes()
            + self.quant.bytes()
            + self.codebook.bytes()
    }

    /// Ids, row-major over the grid, of a picture given as pixels `[size, size, 3]` in [-1, 1].
    ///
    /// Latents and codes are l2-normalised before the search, as the original does in both layouts
    /// (vq_model.py:242-245); ties go to the lower id.
    pub fn encode(&self, pool: &Pool, pixels: &[f32]) -> Result<Vec<u32>> {
        Ok(self.trace(pool, pixels)?.ids)
    }

    /// As [`encode`](Self::encode), keeping intermediate results.
    pub fn trace(&self, pool: &Pool, pixels: &[f32]) -> Result<VqEncoderTrace> {
        check_pixels(pixels, self.image_size)?;
        let mut arena = Arena::default();
        let input = Map { height: self.image_size, width: self.image_size, channels: 3, data: pixels.to_vec() };
        let mut x = self.conv_in.forward(pool, &mut arena, &input);
        for level in &self.levels {
            for (block, attention) in &level.blocks {
                x = block.forward(pool, &mut arena, x);
                if let Some(attention) = attention {
                    x = attention.forward(pool, &mut arena, x);
                }
            }
            if let Some(downsample) = &level.downsample {
                let half = downsample.forward(pool, &mut arena, &x);
                arena.give(std::mem::replace(&mut x, half));
            }
        }
        x = self.middle.forward(pool, &mut arena, x);
        let normed = self.norm_out.forward(pool, &mut arena, &x, true);
        let encoder_out = self.conv_out.forward(pool, &mut arena, &normed);
        let mut latents = vec![0.0; encoder_out.height * encoder_out.width * self.quant.outputs()];
        self.quant.forward(pool, &encoder_out.data, &mut latents);
        finite("the VQ encoder's latent", &latents)?;
        let ids = latents
            .chunks_exact(self.codebook.dim())
            .map(|latent| nearest_code(&Codebook::normalise(latent), self.codebook.rows()))
            .collect();
        Ok(VqEncoderTrace { encoder_out: encoder_out.data, latents, ids })
    }
}
