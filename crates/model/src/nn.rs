//! The few layers that every part shares: affine maps, the two-layer projector, layer norm.

use janus_kernels::{Packed, Pool, WeightFormat, gelu_erf, layer_norm, linear};
use janus_spec::ProjectorSpec;

use crate::error::Result;
use crate::weights::Checkpoint;

/// `y = x W^T + b` with a packed weight; rows of `x` are independent.
pub(crate) struct Linear {
    weight: Packed,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// `<name>.weight` of shape `[n, k]` and `<name>.bias` of shape `[n]`.
    pub(crate) fn load(checkpoint: &Checkpoint, name: &str, n: usize, k: usize, format: WeightFormat) -> Result<Self> {
        Self::fused(checkpoint, &[name], n, k, format)
    }

    /// Several affine maps of the same input, `n` outputs each, side by side.
    pub(crate) fn fused(checkpoint: &Checkpoint, names: &[&str], n: usize, k: usize, format: WeightFormat) -> Result<Self> {
        let weights: Vec<String> = names.iter().map(|name| format!("{name}.weight")).collect();
        let parts: Vec<(&str, usize)> = weights.iter().map(|name| (name.as_str(), n)).collect();
        let mut bias = Vec::with_capacity(n * names.len());
        for name in names {
            bias.extend(checkpoint.f32(&format!("{name}.bias"), &[n])?);
        }
        Ok(Linear { weight: checkpoint.packed(&parts, k, format)?, bias: Some(bias) })
    }

    /// Outputs per row.
    pub(crate) fn outputs(&self) -> usize {
        self.weight.n()
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, |b| 4 * b.len())
    }

    /// `out` is `[rows, n]` for `x` of `[rows, k]`.
    pub(crate) fn forward(&self, pool: &Pool, x: &[f32], out: &mut [f32]) {
        linear(pool, x, &self.weight, self.bias.as_deref(), out);
    }
}

/// Layer normalisation with its affine.
pub(crate) struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl LayerNorm {
    pub(crate) fn load(checkpoint: &Checkpoint, name: &str, width: usize, eps: f32) -> Result<Self> {
        let weight = checkpoint.f32(&format!("{name}.weight"), &[width])?;
        let bias = checkpoint.f32(&format!("{name}.bias"), &[width])?;
        Ok(LayerNorm { weight, bias, eps })
    }

    pub(crate) fn forward(&self, pool: &Pool, x: &[f32], out: &mut [f32]) {
        let width = self.weight.len();
        pool.map_rows(x, width, out, width, |x, out| layer_norm(x, &self.weight, &self.bias, self.eps, out));
    }
}

/// `MlpProjector` of type `mlp_gelu`: affine maps with a GELU between each two (projector.py:39-45).
pub(crate) struct Projector {
    layers: Vec<Linear>,
}

impl Projector {
    pub(crate) fn load(checkpoint: &Checkpoint, name: &str, spec: &ProjectorSpec, format: WeightFormat) -> Result<Self> {
        let mut layers = vec![Linear::load(checkpoint, &format!("{name}.fc1"), spec.hidden, spec.input, format)?];
        for i in 0..spec.depth.saturating_sub(1) {
            layers.push(Linear::load(checkpoint, &format!("{name}.hidden_layers.{i}"), spec.hidden, spec.hidden, format)?);
        }
        Ok(Projector { layers })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.layers.iter().map(Linear::bytes).sum()
    }

    /// Projects `rows` rows of `x`; `scratch` and `out` are resized to `[rows, hidden]`.
    pub(crate) fn forward(&self, pool: &Pool, x: &[f32], rows: usize, scratch: &mut Vec<f32>, out: &mut Vec<f32>) {
        let hidden = self.layers[0].outputs();
        scratch.resize(rows * hidden, 0.0);
        out.resize(rows * hidden, 0.0);
        self.layers[0].forward(pool, x, out);
        for layer in &self.layers[1..] {
            pool.each_row(out, hidden, gelu_erf);
            std::mem::swap(scratch, out);
            layer.forward(pool, scratch, out);
        }
    }
}
