//! Building blocks of the VQ autoencoder (deepseek-ai/Janus vq_model.py), over pictures laid out `[height, width,
//! channels]`: so a 1x1 convolution is a matrix product over pixels and a 3x3 one gathers nine short rows.

use janus_kernels::{
    ConvSpec, PackedConv, Pad, Pool, Rows, WeightFormat, add_assign, attention_full, conv2d, group_norm_swish,
};

use crate::error::Result;
use crate::nn::Linear;
use crate::weights::Checkpoint;

/// GroupNorm groups and epsilon (vq_model.py `Normalize`).
const GROUPS: usize = 32;
const EPS: f32 = 1e-6;

/// A feature map `[height, width, channels]`.
pub(super) struct Map {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    pub(super) data: Vec<f32>,
}

/// How convolutions are computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConvKind {
    /// Precision of the packed weights.
    pub(super) format: WeightFormat,
    /// Winograd's form for 3x3 kernels; only where nothing is decided by comparing what comes out.
    pub(super) winograd: bool,
}

/// Buffers that outlive a layer, so that a decode touches fresh memory only once per size.
#[derive(Default)]
pub(super) struct Arena(Vec<Vec<f32>>);

impl Arena {
    pub(super) fn take(&mut self, height: usize, width: usize, channels: usize) -> Map {
        let length = height * width * channels;
        // The smallest buffer that is large enough, else the largest one, to be grown.
        let best = (0..self.0.len()).min_by_key(|&i| {
            let capacity = self.0[i].capacity();
            (capacity < length, if capacity < length { usize::MAX - capacity } else { capacity })
        });
        let mut data = best.map(|i| self.0.swap_remove(i)).unwrap_or_default();
        data.resize(length, 0.0);
        Map { height, width, channels, data }
    }

    pub(super) fn give(&mut self, map: Map) {
        self.0.push(map.data);
    }
}

/// Normalisation over groups of channels and all pixels, then an affine, then (or not) `x * sigmoid(x)`.
pub(super) struct GroupNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl GroupNorm {
    pub(super) fn load(checkpoint: &Checkpoint, name: &str, channels: usize) -> Result<Self> {
        let weight = checkpoint.f32(&format!("{name}.weight"), &[channels])?;
        let bias = checkpoint.f32(&format!("{name}.bias"), &[channels])?;
        Ok(GroupNorm { weight, bias })
    }

    pub(super) fn forward(&self, pool: &Pool, arena: &mut Arena, x: &Map, swish: bool) -> Map {
        let mut out = arena.take(x.height, x.width, x.channels);
        group_norm_swish(pool, &x.data, GROUPS, &self.weight, &self.bias, EPS, swish, &mut out.data);
        out
    }
}

/// What a 3x3 convolution does to the size of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resize {
    /// Same size.
    Keep,
    /// Half: stride 2 after one row and column of zeros below and right (vq_model.py:440-444).
    Half,
    /// Twice: after nearest upsampling by two.
    Double,
}

/// A 3x3 convolution.
pub(super) struct Conv3 {
    conv: PackedConv,
    bias: Vec<f32>,
}

impl Conv3 {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        name: &str,
        (input, output): (usize, usize),
        resize: Resize,
        kind: ConvKind,
    ) -> Result<Self> {
        let weight = checkpoint.f32(&format!("{name}.weight"), &[output, input, 3, 3])?;
        let bias = checkpoint.f32(&format!("{name}.bias"), &[output])?;
        let same = ConvSpec { winograd: kind.winograd, ..ConvSpec::SAME_3X3 };
        let spec = match resize {
            Resize::Keep => same,
            Resize::Half => ConvSpec { stride: 2, pad: Pad::BOTTOM_RIGHT, ..same },
            Resize::Double => ConvSpec { upsample2x: true, ..same },
        };
        Ok(Conv3 { conv: PackedConv::pack_oihw(output, input, spec, &weight, kind.format)?, bias })
    }

    pub(super) fn bytes(&self) -> usize {
        self.conv.bytes() + 4 * self.bias.len()
    }

    pub(super) fn forward(&self, pool: &Pool, arena: &mut Arena, x: &Map) -> Map {
        self.apply(pool, arena, x, None)
    }

    /// With `residual` added to the result.
    pub(super) fn forward_add(&self, pool: &Pool, arena: &mut Arena, x: &Map, residual: &Map) -> Map {
        self.apply(pool, arena, x, Some(&residual.data))
    }

    fn apply(&self, pool: &Pool, arena: &mut Arena, x: &Map, residual: Option<&[f32]>) -> Map {
        let (height, width) = self.conv.spec().out_size(x.height, x.width);
        let mut out = arena.take(height, width, self.conv.cout());
        conv2d(pool, &x.data, x.height, x.width, &self.conv, Some(&self.bias), residual, &mut out.data);
        out
    }
}

/// norm, swish, conv, norm, swish, conv, plus the input (through a 1x1 convolution where channels change).
pub(super) struct ResBlock {
    norm1: GroupNorm,
    conv1: Conv3,
    norm2: GroupNorm,
    conv2: Conv3,
    shortcut: Option<Linear>,
}

impl ResBlock {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        name: &str,
        (input, output): (usize, usize),
        kind: ConvKind,
    ) -> Result<Self> {
        let part = |tail: &str| format!("{name}.{tail}");
        Ok(ResBlock {
            norm1: GroupNorm::load(checkpoint, &part("norm1"), input)?,
            conv1: Conv3::load(checkpoint, &part("conv1"), (input, output), Resize::Keep, kind)?,
            norm2: GroupNorm::load(checkpoint, &part("norm2"), output)?,
            conv2: Conv3::load(checkpoint, &part("conv2"), (output, output), Resize::Keep, kind)?,
            shortcut: match input == output {
                true => None,
                false => Some(Linear::load(checkpoint, &part("nin_shortcut"), output, input, kind.format)?),
            },
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.conv1.bytes() + self.conv2.bytes() + self.shortcut.as_ref().map_or(0, Linear::bytes)
    }

    pub(super) fn forward(&self, pool: &Pool, arena: &mut Arena, x: Map) -> Map {
        let normed = self.norm1.forward(pool, arena, &x, true);
        let inner = self.conv1.forward(pool, arena, &normed);
        arena.give(normed);
        let normed = self.norm2.forward(pool, arena, &inner, true);
        arena.give(inner);
        let residual = match &self.shortcut {
            None => x,
            Some(shortcut) => {
                let mut mapped = arena.take(x.height, x.width, shortcut.outputs());
                shortcut.forward(pool, &x.data, &mut mapped.data);
                arena.give(x);
                mapped
            }
        };
        let out = self.conv2.forward_add(pool, arena, &normed, &residual);
        arena.give(normed);
        arena.give(residual);
        out
    }
}

/// Attention over all pixels with one head as wide as the channels, plus the input.
pub(super) struct AttentionBlock {
    norm: GroupNorm,
    qkv: Linear,
    projection: Linear,
}

impl AttentionBlock {
    pub(super) fn load(checkpoint: &Checkpoint, name: &str, channels: usize, format: WeightFormat) -> Result<Self> {
        let part = |tail: &str| format!("{name}.{tail}");
        Ok(AttentionBlock {
            norm: GroupNorm::load(checkpoint, &part("norm"), channels)?,
            qkv: Linear::fused(checkpoint, &[&part("q"), &part("k"), &part("v")], channels, channels, format)?,
            projection: Linear::load(checkpoint, &part("proj_out"), channels, channels, format)?,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.qkv.bytes() + self.projection.bytes()
    }

    pub(super) fn forward(&self, pool: &Pool, arena: &mut Arena, mut x: Map) -> Map {
        let pixels = x.height * x.width;
        let mut normed = self.norm.forward(pool, arena, &x, false);
        let mut qkv = arena.take(x.height, x.width, 3 * x.channels);
        self.qkv.forward(pool, &normed.data, &mut qkv.data);
        let [q, k, v] = [0, 1, 2].map(|part| Rows::new(&qkv.data[part * x.channels..], 3 * x.channels));
        attention_full(pool, q, k, v, pixels, 1, x.channels, &mut normed.data);
        arena.give(qkv);
        let mut projected = arena.take(x.height, x.width, x.channels);
        self.projection.forward(pool, &normed.data, &mut projected.data);
        add_assign(&mut x.data, &projected.data);
        arena.give(normed);
        arena.give(projected);
        x
    }
}

/// res, attention, res at the lowest resolution.
pub(super) struct Middle(ResBlock, AttentionBlock, ResBlock);

impl Middle {
    pub(super) fn load(checkpoint: &Checkpoint, root: &str, channels: usize, kind: ConvKind) -> Result<Self> {
        let part = |tail: &str| format!("{root}.mid.{tail}");
        Ok(Middle(
            ResBlock::load(checkpoint, &part("block_1"), (channels, channels), kind)?,
            AttentionBlock::load(checkpoint, &part("attn_1"), channels, kind.format)?,
            ResBlock::load(checkpoint, &part("block_2"), (channels, channels), kind)?,
        ))
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.bytes() + self.1.bytes() + self.2.bytes()
    }

    pub(super) fn forward(&self, pool: &Pool, arena: &mut Arena, x: Map) -> Map {
        let x = self.0.forward(pool, arena, x);
        let x = self.1.forward(pool, arena, x);
        self.2.forward(pool, arena, x)
    }
}
