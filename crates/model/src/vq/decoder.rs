//! VQ decoder: codebook ids to pixels.

use janus_kernels::{Pool, WeightFormat};

use super::Codebook;
use super::layers::{Arena, AttentionBlock, Conv3, ConvKind, GroupNorm, Map, Middle, ResBlock, Resize};
use crate::error::{Error, Result, finite};
use crate::nn::Linear;
use crate::weights::Checkpoint;

struct Level {
    blocks: Vec<(ResBlock, Option<AttentionBlock>)>,
    upsample: Option<Conv3>,
}

/// VQ decoder with its codebook.
pub struct VqDecoder {
    grid: usize,
    codebook: Codebook,
    post_quant: Linear,
    conv_in: Conv3,
    middle: Middle,
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv3,
}

/// What the decoder computes on the way.
pub struct VqDecoderTrace {
    /// l2-normalised codes `[grid, grid, dim]`.
    pub codes: Vec<f32>,
    /// After post_quant_conv, `[grid, grid, latent]`.
    pub latents: Vec<f32>,
    /// Pixels `[size, size, 3]` in about [-1, 1].
    pub pixels: Vec<f32>,
}

impl VqDecoder {
    /// Loads decoder and codebook. Only here may 3x3 convolutions use Winograd's form: nothing is decided by
    /// comparing what comes out.
    pub fn load(checkpoint: &Checkpoint, format: WeightFormat, winograd: bool) -> Result<Self> {
        let spec = &checkpoint.spec.vq;
        let format = checkpoint.unquantised(format);
        let root = "model.vqmodel.decoder";
        let kind = ConvKind { format, winograd };
        let conv = |name: &str, channels, resize| Conv3::load(checkpoint, &format!("{root}.{name}"), channels, resize, kind);
        let mut channels = spec.channels * spec.multipliers.last().copied().unwrap_or(1);
        let conv_in = conv("conv_in", (spec.latent, channels), Resize::Keep)?;
        let middle = Middle::load(checkpoint, root, channels, kind)?;
        let mut levels = Vec::new();
        for (i, multiplier) in spec.multipliers.iter().rev().enumerate() {
            let output = spec.channels * multiplier;
            let mut blocks = Vec::new();
            for b in 0..spec.res_blocks + 1 {
                let name = format!("{root}.up.{i}.block.{b}");
                let block = ResBlock::load(checkpoint, &name, (channels, output), kind)?;
                channels = output;
                let attention = match i {
                    0 => Some(AttentionBlock::load(checkpoint, &format!("{root}.up.{i}.attn.{b}"), channels, format)?),
                    _ => None,
                };
                blocks.push((block, attention));
            }
            let upsample = match i + 1 == spec.multipliers.len() {
                true => None,
                false => Some(conv(&format!("up.{i}.upsample.conv"), (channels, channels), Resize::Double)?),
            };
            levels.push(Level { blocks, upsample });
        }
        Ok(VqDecoder {
            grid: spec.grid,
            codebook: Codebook::load(checkpoint)?,
            post_quant: Linear::load(checkpoint, "model.vqmodel.post_quant_conv", spec.latent, spec.embed_dim, format)?,
            conv_in,
            middle,
            levels,
            norm_out: GroupNorm::load(checkpoint, &format!("{root}.norm_out"), channels)?,
            conv_out: conv("conv_out", (channels, 3), Resize::Keep)?,
        })
    }

    /// Bytes of weights held.
    pub fn bytes(&self) -> usize {
        let level = |l: &Level| {
            let blocks = l.blocks.iter().map(|(r, a)| r.bytes() + a.as_ref().map_or(0, AttentionBlock::bytes));
            blocks.sum::<usize>() + l.upsample.as_ref().map_or(0, Conv3::bytes)
        };
        self.codebook.bytes()
            + self.post_quant.bytes()
            + self.conv_in.bytes()
            + self.middle.bytes()
            + self.levels.iter().map(level).sum::<usize>()
            + self.conv_out.bytes()
    }

    pub(super) fn grid(&self) -> usize {
        self.grid
    }

    pub(super) fn codebook(&self) -> &Codebook {
        &self.codebook
    }

    /// Pixels `[size, size, 3]`, about [-1, 1], of row-major ids.
    ///
    /// # Errors
    /// A wrong number of ids, or an id outside the codebook.
    pub fn decode(&self, pool: &Pool, ids: &[u32]) -> Result<Vec<f32>> {
        Ok(self.trace(pool, ids)?.pixels)
    }

    /// As [`decode`](Self::decode), unless `stop` says so between two layers: then `None`.
    ///
    /// # Errors
    /// As there.
    pub fn decode_unless(&self, pool: &Pool, ids: &[u32], stop: impl Fn() -> bool) -> Result<Option<Vec<f32>>> {
        Ok(self.run(pool, ids, stop)?.map(|trace| trace.pixels))
    }

    /// As [`decode`](Self::decode), keeping intermediate results.
    pub fn trace(&self, pool: &Pool, ids: &[u32]) -> Result<VqDecoderTrace> {
        let stopped = || Error::Argument("a decode that nobody stops was stopped".to_owned());
        self.run(pool, ids, || false)?.ok_or_else(stopped)
    }

    fn run(&self, pool: &Pool, ids: &[u32], stop: impl Fn() -> bool) -> Result<Option<VqDecoderTrace>> {
        let expected = self.grid * self.grid;
        if ids.len() != expected {
            return Err(Error::Argument(format!("a picture of this model has {expected} ids, not {}", ids.len())));
        }
        let mut codes = Vec::with_capacity(expected * self.codebook.dim());
        for (i, &id) in ids.iter().enumerate() {
            let row = self.codebook.row(id).ok_or_else(|| {
                Error::Argument(format!("id {id} at position {i} is outside the codebook of {} codes", self.codebook.len()))
            })?;
            codes.extend_from_slice(row);
        }
        let mut arena = Arena::default();
        let mut latents = arena.take(self.grid, self.grid, self.post_quant.outputs());
        self.post_quant.forward(pool, &codes, &mut latents.data);
        let traced = latents.data.clone();

        let x = self.conv_in.forward(pool, &mut arena, &latents);
        arena.give(latents);
        let mut x: Map = self.middle.forward(pool, &mut arena, x);
        for level in &self.levels {
            for (block, attention) in &level.blocks {
                if stop() {
                    return Ok(None);
                }
                x = block.forward(pool, &mut arena, x);
                if let Some(attention) = attention {
                    x = attention.forward(pool, &mut arena, x);
                }
            }
            if let Some(upsample) = &level.upsample {
                let double = upsample.forward(pool, &mut arena, &x);
                arena.give(std::mem::replace(&mut x, double));
            }
        }
        let normed = self.norm_out.forward(pool, &mut arena, &x, true);
        let pixels = self.conv_out.forward(pool, &mut arena, &normed).data;
        finite("a painted pixel", &pixels)?;
        Ok(Some(VqDecoderTrace { codes, latents: traced, pixels }))
    }
}
