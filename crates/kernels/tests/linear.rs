//! `linear` against the plain triple loop, bit for bit.
#![allow(clippy::unwrap_used)]

mod common;

use common::{everywhere, same_bits, values};
use janus_kernels::{Packed, Pool, WeightFormat, bf16_to_f32, f32_to_bf16, linear, widen_first};
use proptest::prelude::*;

fn check(m: usize, n: usize, k: usize, format: WeightFormat, with_bias: bool, seed: u64) {
    let x = values(seed, m * k);
    let mut w = values(seed + 1, n * k);
    if format == WeightFormat::Bf16 {
        w.iter_mut().for_each(|w| *w = bf16_to_f32(f32_to_bf16(*w)));
    }
    let bias = with_bias.then(|| values(seed + 2, n));
    let packed = Packed::pack_f32(n, k, &w, format).unwrap();
    let expected = common::linear(&x, &w, bias.as_deref(), n, k);
    for widened in [true, false] {
        // For other tests at the same time it is only a matter of speed.
        widen_first(Some(widened));
        everywhere(|isa, pool| {
            let mut out = vec![f32::NAN; m * n];
            linear(pool, &x, &packed, bias.as_deref(), &mut out);
            if let Err(error) = same_bits(&out, &expected) {
                let threads = pool.threads();
                panic!("{m} x {n} x {k} {format:?} on {isa:?} with {threads} threads, widened first {widened}: {error}");
            }
        });
    }
    widen_first(None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn every_path_gives_the_oracles_bits(
        m in 1_usize..20, n in 1_usize..140, k in 1_usize..600, bf16: bool, bias: bool, seed in 0_u64..1 << 32,
    ) {
        check(m, n, k, if bf16 { WeightFormat::Bf16 } else { WeightFormat::F32 }, bias, seed);
    }
}

#[test]
fn many_rows_give_the_oracles_bits() {
    for (m, n, k) in [(32, 33, 257), (97, 64, 300), (105, 32, 130), (200, 37, 513), (400, 70, 64)] {
        check(m, n, k, WeightFormat::Bf16, true, m as u64);
        check(m, n, k, WeightFormat::F32, false, m as u64);
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let (n, k) = (96, 320);
    let packed = Packed::pack_f32(n, k, &values(1, n * k), WeightFormat::Bf16).unwrap();
    let x = values(2, 64 * k);
    everywhere(|isa, pool| {
        let mut all = vec![0.0; 64 * n];
        linear(pool, &x, &packed, None, &mut all);
        for row in [0, 1, 31, 63] {
            let mut alone = vec![0.0; n];
            linear(pool, &x[row * k..(row + 1) * k], &packed, None, &mut alone);
            same_bits(&alone, &all[row * n..(row + 1) * n]).unwrap_or_else(|error| panic!("{isa:?} row {row}: {error}"));
        }
    });
}

/// One block of activations by the book: scale, codes up to `most`.
fn quantise(x: &[f32], most: f32) -> (f32, Vec<i64>) {
    let largest = x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    let inverse = if largest > 0.0 { most / largest } else { 0.0 };
    (largest / most, x.iter().map(|x| (x * inverse).round_ties_even() as i64).collect())
}

/// Quantised weights are read back as value = scale * code; the scale of a block is what makes its codes whole.
fn check_quantised(m: usize, n: usize, k: usize, format: WeightFormat, seed: u64) {
    let (x, w, bias) = (values(seed, m * k), values(seed + 1, n * k), values(seed + 2, n));
    let packed = Packed::pack_f32(n, k, &w, format).unwrap();
    let (inputs, most) = if format == WeightFormat::Q8 { (16, 32767.0) } else { (32, 127.0) };
    let expected: Vec<f32> = (0..m * n)
        .map(|i| {
            let (x, output) = (&x[i / n * k..][..k], i % n);
            let mut sum = 0.0_f32;
            for (block, x) in x.chunks(inputs).enumerate() {
                let (scale, codes) = quantise(x, most);
                let weight = |i: usize| packed.quantum(output, block * inputs + i);
                let dot: i64 = codes.iter().enumerate().map(|(i, x)| x * i64::from(weight(i).1)).sum();
                sum = (dot as i32 as f32).mul_add(weight(0).0 * scale, sum);
            }
            sum + bias[output]
        })
        .collect();
    everywhere(|isa, pool| {
        let mut out = vec![f32::NAN; m * n];
        linear(pool, &x, &packed, Some(&bias), &mut out);
        same_bits(&out, &expected).unwrap_or_else(|error| panic!("{m} x {n} x {k} {format:?} on {isa:?}: {error}"));
    });
}

/// No weight is further from what it was than half a step of the coarsest scale that may be taken.
#[test]
fn q8_weights_are_the_nearest_of_their_scale() {
    let (n, k) = (40, 300);
    let w = values(8, n * k);
    let packed = Packed::pack_f32(n, k, &w, WeightFormat::Q8).unwrap();
    for (row, w) in w.chunks_exact(k).enumerate() {
        let mut stored = vec![0.0; k];
        packed.row_f32(row, &mut stored);
        for (stored, w) in stored.chunks(16).zip(w.chunks(16)) {
            let most = w.iter().fold(0.0_f32, |max, w| max.max(w.abs())) / 510.0 * 1.13;
            assert!(stored.iter().zip(w).all(|(a, b)| (a - b).abs() <= most), "{stored:?} is not {w:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn quantised_paths_give_the_oracles_bits(
        m in 1_usize..20, n in 1_usize..100, k in 1_usize..400, q4: bool, seed in 0_u64..1 << 32,
    ) {
        check_quantised(m, n, k, if q4 { WeightFormat::Q4 } else { WeightFormat::Q8 }, seed);
    }
}

#[test]
fn many_quantised_rows_give_the_oracles_bits() {
    for m in [14, 15, 28, 29, 43, 64, 97, 130] {
        check_quantised(m, 40, 300, WeightFormat::Q8, 5);
    }
    check_quantised(130, 40, 96, WeightFormat::Q4, 6);
}

#[test]
fn quantised_products_are_close_to_exact_ones() {
    let (m, n, k) = (20, 90, 500);
    let (x, w) = (values(1, m * k), values(2, n * k));
    let exact = common::linear(&x, &w, None, n, k);
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    // Rounding to 8 and to 4 bits, as root mean square: uniform values lose more to 4 bits than a model's weights do.
    for (format, most) in [(WeightFormat::Q8, 0.003), (WeightFormat::Q4, 0.12)] {
        let packed = Packed::pack_f32(n, k, &w, format).unwrap();
        let mut out = vec![0.0; m * n];
        linear(&Pool::new(1), &x, &packed, None, &mut out);
        let off = norm(&mut exact.iter().zip(&out).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
        assert!(off < most, "{format:?}: {off}");
    }
}

#[test]
fn extreme_codes_do_not_saturate() {
    // All codes at their ends: the largest sums the integer paths ever see.
    for format in [WeightFormat::Q8, WeightFormat::Q4] {
        for (a, b) in [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)] {
            let packed = Packed::pack_f32(33, 64, &vec![a; 33 * 64], format).unwrap();
            let mut row = vec![0.0; 64];
            packed.row_f32(32, &mut row);
            let x = vec![b; 64];
            everywhere(|isa, pool| {
                let mut out = vec![0.0; 33];
                linear(pool, &x, &packed, None, &mut out);
                let expected = 64.0 * row[0] * b;
                assert!(out.iter().all(|o| (o - expected).abs() < 1e-4 * expected.abs()), "{format:?} {isa:?}: {out:?}");
            });
        }
    }
}

#[test]
fn not_a_number_cannot_be_quantised() {
    let rows = [0.0, f32::NAN];
    assert!(Packed::pack_f32(1, 2, &rows, WeightFormat::Q8).is_err());
    assert!(Packed::pack_f32(1, 2, &rows, WeightFormat::Bf16).is_ok());
}
