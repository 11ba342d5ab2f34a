//! Kernels with one independent result per row: norms, activations, softmax, guidance. Each call handles one or
//! more whole rows on the calling thread; `Pool::map_rows` and `Pool::each_row` spread large ones. The transformer
//! layers of `model` call them between two linears.

use crate::isa::simd_fn;
use crate::math;

simd_fn! {
    /// RMSNorm of each row of `x`: `x / sqrt(mean(x^2) + eps) * weight`. Rows have `weight.len()` values.
    ///
    /// # Panics
    /// If `x` and `out` aren't the same whole number of rows.
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let width = weight.len();
        assert!(x.len() == out.len() && x.len().is_multiple_of(width), "rms_norm: shapes differ");
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let inverse = inverse_rms(x, eps);
            for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
                *out = x * inverse * w;
            }
        }
    }
}

simd_fn! {
    /// `residual += x`, then RMSNorm of the sum into `out`: the two steps between sublayers in one pass.
    ///
    /// # Panics
    /// If the three aren't the same whole number of rows.
    pub fn add_rms_norm(residual: &mut [f32], x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let width = weight.len();
        assert!(x.len() == out.len() && x.len() == residual.len() && x.len().is_multiple_of(width), "add_rms_norm: shapes differ");
        let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width)).zip(residual.chunks_exact_mut(width));
        for ((x, out), sum) in rows {
            for (sum, &x) in sum.iter_mut().zip(x) {
                *sum += x;
            }
            let inverse = inverse_rms(sum, eps);
            for ((out, &x), &w) in out.iter_mut().zip(&*sum).zip(weight) {
                *out = x * inverse * w;
            }
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let squares = math::reduce16(x, |sum, value| value.mul_add(value, sum));
    1.0 / (squares / x.len() as f32 + eps).sqrt()
}

simd_fn! {
    /// LayerNorm of each row of `x`: `(x - mean) / sqrt(var + eps) * weight + bias`, the variance around the mean in a
    /// second pass. Rows have `weight.len()` values.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let width = weight.len();
        assert!(x.len() == out.len() && x.len().is_multiple_of(width) && bias.len() == width, "layer_norm: shapes differ");
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let mean = math::reduce16(x, |sum, value| sum + value) / width as f32;
            let squares = math::reduce16(x, |sum, value| (value - mean).mul_add(value - mean, sum));
            let inverse = 1.0 / (squares / width as f32 + eps).sqrt();
            for (((out, &x), &w), &b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = ((x - mean) * inverse).mul_add(w, b);
            }
        }
    }
}

simd_fn! {
    /// SwiGLU: for each row `[gate | up]` of `gate_up`, `silu(gate) * up`. Rows of `out` have `width` values.
    ///
    /// # Panics
    /// If `gate_up` isn't twice `out`, in whole rows.
    pub fn silu_mul(gate_up: &[f32], width: usize, out: &mut [f32]) {
        assert!(gate_up.len() == 2 * out.len() && out.len().is_multiple_of(width), "silu_mul: shapes differ");
        for (gate_up, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (gate, up) = gate_up.split_at(width);
            for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                *out = math::silu(gate) * up;
            }
        }
    }
}

simd_fn! {
    /// Exact (erf) GELU in place.
    pub fn gelu_erf(x: &mut [f32]) {
        for x in x {
            *x = math::gelu(*x);
        }
    }
}

simd_fn! {
    /// `x * sigmoid(x)` in place.
    pub fn swish(x: &mut [f32]) {
        for x in x {
            *x = math::silu(*x);
        }
    }
}

simd_fn! {
    /// `x += y`: a residual.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_assign(x: &mut [f32], y: &[f32]) {
        assert!(x.len() == y.len(), "add_assign: lengths differ");
        for (x, &y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

simd_fn! {
    /// Classifier-free guidance on one row of logits: `uncond + weight * (cond - uncond)`, each step rounded as the
    /// reference rounds it.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn guidance(cond: &[f32], uncond: &[f32], weight: f32, out: &mut [f32]) {
        assert!(cond.len() == uncond.len() && cond.len() == out.len(), "guidance: lengths differ");
        for ((out, &cond), &uncond) in out.iter_mut().zip(cond).zip(uncond) {
            *out = uncond + weight * (cond - uncond);
        }
    }
}

simd_fn! {
    /// Softmax of one row in place: `exp(x - max) / sum`, the sum by the 16-way tree.
    pub fn softmax(x: &mut [f32]) {
        let max = math::max(x);
        for value in &mut *x {
            *value = math::exp(*value - max);
        }
        let sum = math::reduce16(x, |sum, value| sum + value);
        for value in x {
            *value /= sum;
        }
    }
}

simd_fn! {
    /// Index of the codebook row nearest to `x`: least squared distance (16-way tree over its terms), ties to the
    /// lower index. `codebook` holds rows of `x.len()` values.
    ///
    /// # Panics
    /// If the codebook is empty or not a whole number of rows.
    pub fn nearest_code(x: &[f32], codebook: &[f32]) -> u32 {
        let width = x.len();
        assert!(!codebook.is_empty() && codebook.len().is_multiple_of(width), "nearest_code: shapes differ");
        let (mut best, mut least) = (0_u32, f32::INFINITY);
        for (index, code) in codebook.chunks_exact(width).enumerate() {
            let mut lanes = [0.0_f32; 16];
            for (i, (&a, &b)) in x.iter().zip(code).enumerate() {
                lanes[i % 16] = (a - b).mul_add(a - b, lanes[i % 16]);
            }
            let distance = math::fold16(lanes);
            if distance < least {
                (best, least) = (index as u32, distance);
            }
        }
        best
    }
}
