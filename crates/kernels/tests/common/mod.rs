//! The oracle: plain loops that say what each kernel means, and random inputs from a fixed generator.
#![allow(dead_code, unreachable_pub)]

use janus_kernels::{Isa, Pool, force_isa, uniform};

/// `len` values in about -2..2, a function of `seed`, with some exact zeros and negative zeros among them.
pub fn values(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let u = uniform(seed, i);
            if u < 0.01 { if u < 0.005 { 0.0 } else { -0.0 } } else { (4.0 * u - 2.0) as f32 }
        })
        .collect()
}

/// `out[m, n]`, each one fused chain over k, the bias added last.
pub fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, n: usize, k: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for x in x.chunks_exact(k) {
        for (i, w) in w.chunks_exact(k).enumerate() {
            assert!(i < n);
            let mut sum = 0.0_f32;
            for (&x, &w) in x.iter().zip(w) {
                sum = x.mul_add(w, sum);
            }
            out.push(bias.map_or(sum, |bias| sum + bias[i]));
        }
    }
    out
}

/// Calls `check` on every instruction set of this machine, with pools of 1, 2 and 3 threads.
pub fn everywhere(mut check: impl FnMut(Isa, &Pool)) {
    for threads in 1..=3 {
        let pool = Pool::new(threads);
        for isa in Isa::available() {
            force_isa(Some(isa));
            check(isa, &pool);
        }
    }
    force_isa(None);
}

/// Same bits, or the index of the first that differ.
pub fn same_bits(got: &[f32], expected: &[f32]) -> Result<(), String> {
    if got.len() != expected.len() {
        return Err(format!("{} values, expected {}", got.len(), expected.len()));
    }
    match got.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits()) {
        None => Ok(()),
        Some(at) => Err(format!("value {at}: {} instead of {}", got[at], expected[at])),
    }
}
