//! Quantising one weight row into its panel: blocks of 16 or 32 inputs, symmetric, one bf16 scale each. The scale is
//! rounded before the values are, so they make up for its rounding.

use crate::isa::simd_fn;
use crate::math;

use super::{PANEL, Q4_BLOCK, Q8_BITS, Q8_BLOCK, Q8_INPUTS, Q8_LOW, SCALES, bf16_to_f32, f32_to_bf16};

/// Inputs of a q4 block, and activations that share a scale.
pub(crate) const BLOCK: usize = 32;

/// The value in the low (`half` 0) or high (1) nibble of a q4 byte.
#[inline(always)]
pub(crate) fn q4_value(byte: u8, half: usize) -> i32 {
    i32::from(byte >> (4 * half) & 15) - 8
}

/// Writes row `lane` of a q8 panel, which is all zeros there.
pub(super) fn store_q8(row: &[f32], lane: usize, panel: &mut [u8]) {
    for (values, block) in row.chunks(Q8_INPUTS).zip(panel.chunks_exact_mut(Q8_BLOCK)) {
        let mut padded = [0.0_f32; Q8_INPUTS];
        padded[..values.len()].copy_from_slice(values);
        let mut whole = [0; Q8_INPUTS];
        let scale = block_q8(&padded, &mut whole);
        block[2 * lane..2 * lane + 2].copy_from_slice(&scale.to_le_bytes());
        for (i, &code) in whole.iter().enumerate() {
            let [low, ninth] = (code + 256).to_le_bytes();
            let at = lane * 2 + i % 2;
            block[Q8_LOW + i / 2 * 2 * PANEL + at] = low;
            block[Q8_BITS + at] |= ninth << (7 - i / 2);
        }
    }
}

/// Writes row `lane` of a q4 panel, which is all zeros there.
pub(super) fn store_q4(row: &[f32], lane: usize, panel: &mut [u8]) {
    for (values, block) in row.chunks(BLOCK).zip(panel.chunks_exact_mut(Q4_BLOCK)) {
        let mut padded = [0.0_f32; BLOCK];
        padded[..values.len()].copy_from_slice(values);
        let mut whole = [0; BLOCK];
        let scale = block_q4(&padded, &mut whole);
        let (scales, codes) = block.split_at_mut(SCALES);
        scales[2 * lane..2 * lane + 2].copy_from_slice(&scale.to_le_bytes());
        for (i, &code) in whole.iter().enumerate() {
            codes[(i / 8 * PANEL + lane) * 4 + i % 4] |= ((code + 8) as u8) << (4 * (i / 4 % 2));
        }
    }
}

/// The nearest whole number, ties to even, for small values.
#[inline(always)]
fn round(value: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    (value + ROUND) - ROUND
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

simd_fn! {
    /// Scale: that of least squared error among sixteen bf16s, the smallest not below the largest size over 255. Codes: the
    /// nearest of -255..=255.
    fn block_q8(block: &[f32; Q8_INPUTS], codes: &mut [i16; Q8_INPUTS]) -> u16 {
        let largest = math::largest(block);
        let exact = largest / 255.0;
        let near = f32_to_bf16(exact);
        let least = if bf16_to_f32(near) < exact { near + 1 } else { near };
        let mut best = (f32::INFINITY, 0_u16);
        for candidate in least..least + 16 {
            let scale = bf16_to_f32(candidate);
            let inverse = inverse(scale);
            let mut errors = [0.0_f32; Q8_INPUTS];
            for (error, &value) in errors.iter_mut().zip(block) {
                let off = round(value * inverse).mul_add(-scale, value);
                *error = off * off;
            }
            let error = math::fold16(errors);
            if error < best.0 {
                best = (error, candidate);
            }
        }
        let inverse = inverse(bf16_to_f32(best.1));
        for (code, value) in codes.iter_mut().zip(block) {
            *code = round(value * inverse).clamp(-255.0, 255.0) as i16;
        }
        best.1
    }
}

simd_fn! {
    /// Scale: that of least squared error among nine that map the largest value to -8 (the side with one code more) or
    /// clip or spare it a little. Codes: the nearest of -8..=7.
    fn block_q4(block: &[f32; BLOCK], codes: &mut [i8; BLOCK]) -> u16 {
        let largest = math::largest(block);
        let extreme = if block.contains(&largest) { largest } else { -largest };
        let mut best = (f32::INFINITY, 0_u16);
        for step in 0..9 {
            let candidate = f32_to_bf16(extreme / -(6.8 + 0.2 * step as f32));
            let scale = bf16_to_f32(candidate);
            let inverse = inverse(scale);
            let mut errors = [0.0_f32; BLOCK];
            for (error, &value) in errors.iter_mut().zip(block) {
                let off = round(value * inverse).clamp(-8.0, 7.0).mul_add(-scale, value);
                *error = off * off;
            }
            let error = math::reduce16(&errors, |sum, error| sum + error);
            if error < best.0 {
                best = (error, candidate);
            }
        }
        let inverse = inverse(bf16_to_f32(best.1));
        for (code, value) in codes.iter_mut().zip(block) {
            *code = round(value * inverse).clamp(-8.0, 7.0) as i8;
        }
        best.1
    }
}
