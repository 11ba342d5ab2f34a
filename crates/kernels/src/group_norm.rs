//! GroupNorm with optional swish over NHWC pictures, for the VQ coder. Sums are taken per channel over segments of
//! 512 pixels (16 interleaved lanes over the pixels), then over the segments, then over the group's channels, each
//! by the 16-way tree: the same order for any number of threads.

use std::cell::RefCell;

use crate::aligned::AlignedBuf;
use crate::isa::simd_fn;
use crate::math;
use crate::pool::{Pool, Shards};

const SEGMENT: usize = 512;
const LANES: usize = 16;

thread_local! {
    static PARTIAL: RefCell<AlignedBuf<f32>> = const { RefCell::new(AlignedBuf::empty()) };
    static SUMS: RefCell<AlignedBuf<f32>> = const { RefCell::new(AlignedBuf::empty()) };
}

/// Normalises each of `groups` groups of channels of `x` (`[pixels, channels]`) to mean 0 and variance 1, scales by
/// `weight`, adds `bias` (per channel), and applies swish if asked. `out` is shaped like `x`.
///
/// # Panics
/// If the shapes differ or `groups` doesn't divide the channels.
#[allow(clippy::too_many_arguments)]
pub fn group_norm_swish(
    pool: &Pool,
    x: &[f32],
    groups: usize,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    swish: bool,
    out: &mut [f32],
) {
    let channels = weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(channels) && bias.len() == channels, "group_norm: shapes differ");
    assert!(channels.is_multiple_of(groups), "group_norm: groups");
    let pixels = x.len() / channels;
    PARTIAL.with_borrow_mut(|partial| {
        let segments = pixels.div_ceil(SEGMENT);
        let scratch = partial.reserve((segments + 4) * channels);
        let (partial, rest) = scratch.split_at_mut(segments * channels);
        let (shift, rest) = rest.split_at_mut(channels);
        let (scale, rest) = rest.split_at_mut(channels);
        let (mean, sums) = rest.split_at_mut(channels);
        let count = (pixels * (channels / groups)) as f32;
        mean.fill(0.0);
        for pass in 0..2 {
            let to = Shards(partial.as_mut_ptr());
            pool.run(segments, |segment| {
                let first = segment * SEGMENT * channels;
                let part = &x[first..x.len().min(first + SEGMENT * channels)];
                // SAFETY: each segment's sums are written by one task.
                let out = unsafe { to.part(segment * channels, channels) };
                SUMS.with_borrow_mut(|lanes| segment_sums(part, mean, pass == 1, lanes.reserve(LANES * channels), out));
            });
            fold_segments(partial, sums);
            let per = channels / groups;
            for (group, sums) in sums.chunks_exact(per).enumerate() {
                let sum = math::reduce16(sums, |sum, value| sum + value) / count;
                if pass == 0 {
                    mean[group * per..(group + 1) * per].fill(sum);
                } else {
                    scale[group * per..(group + 1) * per].fill(1.0 / (sum + eps).sqrt());
                }
            }
        }
        // (x - mean) * inverse * weight + bias as one fma per value.
        for channel in 0..channels {
            scale[channel] *= weight[channel];
            shift[channel] = (-mean[channel]).mul_add(scale[channel], bias[channel]);
        }
        let (scale, shift) = (&*scale, &*shift);
        pool.map_rows(x, channels, out, channels, |x, out| normalise(x, scale, shift, swish, out));
    });
}

simd_fn! {
    /// Per channel, the sum of `x` or of `(x - mean)^2` over one segment's pixels; `lanes` is scratch.
    fn segment_sums(x: &[f32], mean: &[f32], squares: bool, lanes: &mut [f32], out: &mut [f32]) {
        let channels = mean.len();
        lanes.fill(0.0);
        for (pixel, x) in x.chunks_exact(channels).enumerate() {
            let lane = &mut lanes[pixel % LANES * channels..][..channels];
            if squares {
                for ((sum, &x), &mean) in lane.iter_mut().zip(x).zip(mean) {
                    *sum = (x - mean).mul_add(x - mean, *sum);
                }
            } else {
                for (sum, &x) in lane.iter_mut().zip(x) {
                    *sum += x;
                }
            }
        }
        fold_rows(lanes, channels, out);
    }
}

/// Folds 16 rows of per-channel sums into `out` by the tree.
#[inline(always)]
fn fold_rows(lanes: &mut [f32], channels: usize, out: &mut [f32]) {
    let mut width = LANES / 2;
    while width > 0 {
        let (low, high) = lanes.split_at_mut(width * channels);
        for (low, &high) in low.iter_mut().zip(&*high) {
            *low += high;
        }
        width /= 2;
    }
    out.copy_from_slice(&lanes[..channels]);
}

fn fold_segments(partial: &[f32], sums: &mut [f32]) {
    let channels = sums.len();
    for (channel, sum) in sums.iter_mut().enumerate() {
        let mut lanes = [0.0_f32; LANES];
        for (segment, values) in partial.chunks_exact(channels).enumerate() {
            lanes[segment % LANES] += values[channel];
        }
        *sum = math::fold16(lanes);
    }
}

simd_fn! {
    fn normalise(x: &[f32], scale: &[f32], shift: &[f32], swish: bool, out: &mut [f32]) {
        let channels = scale.len();
        for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            for (((out, &x), &scale), &shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
                let value = x.mul_add(scale, shift);
                *out = if swish { math::silu(value) } else { value };
            }
        }
    }
}
