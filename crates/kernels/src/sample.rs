//! Choosing the next id from a row of logits: a pure function of (logits, parameters, seed, position). The last
//! stage calls it once per sequence and step.

use std::cell::RefCell;

use crate::isa::simd_fn;
use crate::math;

#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    order: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Samples an id. `temperature` 0 is the argmax with ties to the lower id. Otherwise, in the order of the reference's
/// warpers: keep the `top_k` largest logits (0 keeps all; ties to the lower id), then the fewest most likely of them
/// whose probabilities reach `top_p` (1 keeps all). The id is found by inverse CDF: one uniform number from
/// (seed, position) against the running f64 sum of `exp((logit - max) / temperature)` over the kept ids in id order.
/// NaN logits are never chosen.
///
/// # Panics
/// If `logits` is empty.
pub fn sample(logits: &[f32], temperature: f32, top_k: usize, top_p: f32, seed: u64, position: u64) -> u32 {
    assert!(!logits.is_empty(), "sample: no logits");
    if temperature <= 0.0 {
        return argmax(logits);
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { weights, order } = scratch;
        weights.clear();
        weights.extend_from_slice(logits);
        to_weights(weights, temperature);
        if (top_k > 0 && top_k < logits.len()) || top_p < 1.0 {
            keep_most_likely(weights, order, logits, top_k, top_p);
        }
        let total: f64 = weights.iter().fold(0.0, |sum, &weight| sum + f64::from(weight));
        let target = uniform(seed, position) * total;
        let (mut sum, mut last) = (0.0_f64, None);
        for (id, &weight) in weights.iter().enumerate() {
            if weight > 0.0 {
                sum += f64::from(weight);
                last = Some(id as u32);
                if sum > target {
                    break;
                }
            }
        }
        last.unwrap_or_else(|| argmax(logits))
    })
}

/// Index of the largest value, ties to the lower index; NaN never wins.
pub fn argmax(x: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0_usize);
    for (index, &value) in x.iter().enumerate() {
        if value > best.0 {
            best = (value, index);
        }
    }
    best.1 as u32
}

simd_fn! {
    /// Unnormalised probabilities in place; NaN become 0.
    fn to_weights(x: &mut [f32], temperature: f32) {
        let largest = math::max(x);
        for value in x {
            let weight = math::exp((*value - largest) / temperature);
            *value = if weight >= 0.0 { weight } else { 0.0 };
        }
    }
}

/// Zeroes the weight of every id outside top-k and, among those left, outside top-p.
fn keep_most_likely(weights: &mut [f32], order: &mut Vec<u32>, logits: &[f32], top_k: usize, top_p: f32) {
    let before = |&a: &u32, &b: &u32| {
        let (a, b) = (a as usize, b as usize);
        weights[b].total_cmp(&weights[a]).then(logits[b].total_cmp(&logits[a])).then(a.cmp(&b))
    };
    order.clear();
    order.extend(0..weights.len() as u32);
    let kept = if top_k > 0 { top_k.min(order.len()) } else { order.len() };
    if kept < order.len() {
        order.select_nth_unstable_by(kept - 1, before);
    }
    let mut most = kept;
    if top_p < 1.0 {
        order[..kept].sort_unstable_by(before);
        let total: f64 = order[..kept].iter().fold(0.0, |sum, &id| sum + f64::from(weights[id as usize]));
        let wanted = f64::from(top_p) * total;
        let mut sum = 0.0_f64;
        most = 0;
        while most < kept && (most == 0 || sum < wanted) {
            sum += f64::from(weights[order[most] as usize]);
            most += 1;
        }
    }
    for &id in &order[most..] {
        weights[id as usize] = 0.0;
    }
}

/// A uniform number in [0, 1) with 53 random bits, from Philox4x32-10 keyed by `seed` at counter `position`.
pub fn uniform(seed: u64, position: u64) -> f64 {
    let [a, b, _, _] = philox([position as u32, (position >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
    bits as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Philox4x32-10 (Salmon et al., SC 2011, section 4.1): ten rounds of a keyed bijection on a counter.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        // kat_vectors of the authors' Random123 library.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn temperature_zero_takes_the_lowest_of_equals() {
        assert_eq!(sample(&[1.0, 3.0, f32::NAN, 3.0], 0.0, 0, 1.0, 1, 1), 1);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, f32::NEG_INFINITY];
        let mut counts = [0_u32; 4];
        for position in 0..60_000 {
            counts[sample(&logits, 1.0, 0, 1.0, 7, position) as usize] += 1;
        }
        let total: f64 = [0.0_f64, 1.0, 2.0].iter().map(|x| x.exp()).sum();
        for (id, &count) in counts[..3].iter().enumerate() {
            let expected = (id as f64).exp() / total * 60_000.0;
            assert!((f64::from(count) - expected).abs() < 4.0 * expected.sqrt(), "{id}: {count} vs {expected}");
        }
        assert_eq!(counts[3], 0);
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits: Vec<f32> = [0.1, 0.4, 0.2, 0.3_f32].iter().map(|p| p.ln()).collect();
        let drawn = |top_k, top_p| {
            let mut seen = [false; 4];
            (0..2_000).for_each(|position| seen[sample(&logits, 1.0, top_k, top_p, 3, position) as usize] = true);
            seen
        };
        assert_eq!(drawn(2, 1.0), [false, true, false, true]);
        assert_eq!(drawn(0, 0.65), [false, true, false, true]);
        assert_eq!(drawn(0, 0.8), [false, true, true, true]);
        // top-p counts within what top-k left: 0.4 of 0.7 is above 0.5.
        assert_eq!(drawn(2, 0.5), [false, true, false, false]);
        assert_eq!(drawn(0, 0.0), [false, true, false, false]);
    }

    #[test]
    fn portable_vectors() {
        let logits: Vec<f32> = (0..500_u32).map(|i| (i * 7919 % 1009) as f32 * 0.01 - 5.0).collect();
        let draw = |temperature, top_k, top_p| {
            let id = |position| sample(&logits, temperature, top_k, top_p, 0x1234_5678_9abc_def0, position);
            [0, 1, 2, 575].map(id)
        };
        let got = [draw(1.0, 0, 1.0), draw(0.7, 50, 1.0), draw(1.3, 0, 0.9), draw(1.0, 20, 0.5)];
        assert_eq!(got, [[20, 100, 264, 192], [20, 99, 264, 198], [20, 106, 264, 192], [33, 66, 277, 132]]);
    }

    #[test]
    fn equal_logits_at_the_edge_of_top_k_keep_the_lower_ids() {
        assert!((0..500).all(|position| sample(&[1.0; 8], 1.0, 3, 1.0, 5, position) < 3));
    }
}
