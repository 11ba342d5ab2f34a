//! Weights nobody trained: every tensor of an architecture filled from its name and a seed, for measurements and for
//! tests at widths whose checkpoints cannot be shipped.

use half::bf16;

/// Little-endian bf16 of elements `[start, start + count)` of tensor `name` of `shape`.
///
/// Matrices are uniform with the variance that keeps a row's scale, norms are ones, biases are small.
pub(super) fn bytes(name: &str, shape: &[usize], seed: u64, start: usize, count: usize) -> Vec<u8> {
    let fan_in: usize = shape.iter().skip(1).product();
    let (offset, spread) = match (shape.len(), name.ends_with(".bias")) {
        (1, true) => (0.0, 0.02),
        (1, false) => (1.0, 0.02),
        _ => (0.0, (3.0 / fan_in.max(1) as f32).sqrt()),
    };
    let key = name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut out = Vec::with_capacity(2 * count);
    for i in start..start + count {
        // 24 bits of splitmix64 at counter i, to [-1, 1).
        let mut z = key.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = (z >> 40) as f32 / (1 << 23) as f32 - 1.0;
        out.extend_from_slice(&bf16::from_f32(offset + spread * unit).to_le_bytes());
    }
    out
}
