//! Quantising one weight row into its panel: blocks of 32 inputs, symmetric, one bf16 scale each. The scale is
//! rounded before the values are, so they make up for its rounding.

use super::{PANEL, Q4_BLOCK, Q8_BLOCK, SCALES, WeightFormat, bf16_to_f32, f32_to_bf16};

/// Inputs that share a scale.
pub(crate) const BLOCK: usize = 32;

/// The value in the low (`half` 0) or high (1) nibble of a q4 byte.
#[inline(always)]
pub(crate) fn q4_value(byte: u8, half: usize) -> i32 {
    i32::from(byte >> (4 * half) & 15) - 8
}

/// Writes row `lane` of a panel.
pub(super) fn store_row(format: WeightFormat, row: &[f32], lane: usize, panel: &mut [u8]) {
    let size = if format == WeightFormat::Q8 { Q8_BLOCK } else { Q4_BLOCK };
    for (values, block) in row.chunks(BLOCK).zip(panel.chunks_exact_mut(size)) {
        let mut padded = [0.0_f32; BLOCK];
        padded[..values.len()].copy_from_slice(values);
        let (scales, codes) = block.split_at_mut(SCALES);
        let scale = if format == WeightFormat::Q8 { scale_q8(&padded) } else { scale_q4(&padded) };
        scales[2 * lane..2 * lane + 2].copy_from_slice(&scale.to_le_bytes());
        for (i, &value) in padded.iter().enumerate() {
            if format == WeightFormat::Q8 {
                codes[(i / 4 * PANEL + lane) * 4 + i % 4] = round(value, bf16_to_f32(scale), -127, 127) as i8 as u8;
            } else {
                let code = (round(value, bf16_to_f32(scale), -8, 7) + 8) as u8;
                codes[(i / 8 * PANEL + lane) * 4 + i % 4] |= code << (4 * (i / 4 % 2));
            }
        }
    }
}

fn round(value: f32, scale: f32, least: i32, most: i32) -> i32 {
    if scale == 0.0 { 0 } else { ((value / scale).round_ties_even() as i32).clamp(least, most) }
}

/// The largest size over 127, rounded up to a bf16.
fn scale_q8(block: &[f32; BLOCK]) -> u16 {
    let largest = block.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
    let exact = largest / 127.0;
    let near = f32_to_bf16(exact);
    if bf16_to_f32(near) < exact { near + 1 } else { near }
}

/// The scale of least squared error among candidates that map the largest value near -8 or 7, either sign.
fn scale_q4(block: &[f32; BLOCK]) -> u16 {
    let extreme = block.iter().fold(0.0_f32, |max, &value| if value.abs() > max.abs() { value } else { max });
    let mut best = (f32::INFINITY, 0_u16);
    for step in 0..9 {
        // The extreme value goes to -8 (the side with one code more), or is clipped or spared a little.
        let scale = f32_to_bf16(extreme / -(6.8 + 0.2 * step as f32));
        let mut error = 0.0_f32;
        for &value in block {
            let off = value - bf16_to_f32(scale) * round(value, bf16_to_f32(scale), -8, 7) as f32;
            error += off * off;
        }
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}
