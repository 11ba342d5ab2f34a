//! The per-row kernels, GroupNorm and RoPE against plain loops, bit for bit on every instruction set.
#![allow(clippy::unwrap_used)]

mod common;

use common::{everywhere, same_bits, values};
use janus_kernels::{
    AttnRow, Isa, RopeTable, add_assign, add_rms_norm, force_isa, gelu_erf, group_norm_swish, guidance, layer_norm, math,
    nearest_code, rms_norm, silu_mul, softmax, swish,
};

/// The 16-way tree.
fn tree(x: impl Iterator<Item = f32>, step: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    x.enumerate().for_each(|(i, x)| lanes[i % 16] = step(lanes[i % 16], x));
    for width in [8, 4, 2, 1] {
        (0..width).for_each(|i| lanes[i] += lanes[i + width]);
    }
    lanes[0]
}

fn add(sum: f32, x: f32) -> f32 {
    sum + x
}

fn square(sum: f32, x: f32) -> f32 {
    x.mul_add(x, sum)
}

/// Widths around the vector lengths, and a real one.
const WIDTHS: [usize; 8] = [1, 7, 8, 15, 16, 17, 100, 2048];

fn check(what: &str, expected: &[f32], run: impl Fn(&mut [f32])) {
    everywhere(|isa, _| {
        let mut out = vec![f32::NAN; expected.len()];
        run(&mut out);
        same_bits(&out, expected).unwrap_or_else(|error| panic!("{what} of {} on {isa:?}: {error}", expected.len()));
    });
}

#[test]
fn norms() {
    for width in WIDTHS {
        let (x, y) = (values(1, 3 * width), values(5, 3 * width));
        let (w, b) = (values(2, width), values(3, width));
        let rms = |x: &[f32]| -> Vec<f32> {
            let inverse = 1.0 / (tree(x.iter().copied(), square) / width as f32 + 1e-6).sqrt();
            x.iter().zip(&w).map(|(x, w)| x * inverse * w).collect()
        };
        let expected: Vec<f32> = x.chunks(width).flat_map(rms).collect();
        check("rms_norm", &expected, |out| rms_norm(&x, &w, 1e-6, out));

        let sum: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        let expected: Vec<f32> = sum.chunks(width).flat_map(rms).collect();
        check("add_rms_norm", &expected, |out| {
            let mut residual = x.clone();
            add_rms_norm(&mut residual, &y, &w, 1e-6, out);
            same_bits(&residual, &sum).unwrap();
        });

        let layer = |x: &[f32]| -> Vec<f32> {
            let mean = tree(x.iter().copied(), add) / width as f32;
            let var = tree(x.iter().map(|x| x - mean), square) / width as f32;
            let inverse = 1.0 / (var + 1e-5).sqrt();
            x.iter().zip(&w).zip(&b).map(|((x, w), b)| ((x - mean) * inverse).mul_add(*w, *b)).collect()
        };
        let expected: Vec<f32> = x.chunks(width).flat_map(layer).collect();
        check("layer_norm", &expected, |out| layer_norm(&x, &w, &b, 1e-5, out));
    }
}

#[test]
fn elementwise() {
    for width in WIDTHS {
        let (x, y) = (values(1, 2 * width), values(2, 2 * width));
        let map = |f: fn(f32) -> f32| x.iter().map(|&x| f(4.0 * x)).collect::<Vec<f32>>();
        let times_4 = |out: &mut [f32]| out.iter_mut().zip(&x).for_each(|(out, x)| *out = 4.0 * x);
        check("gelu_erf", &map(math::gelu), |out| {
            times_4(out);
            gelu_erf(out);
        });
        check("swish", &map(math::silu), |out| {
            times_4(out);
            swish(out);
        });
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        check("add_assign", &expected, |out| {
            out.copy_from_slice(&x);
            add_assign(out, &y);
        });
        let expected: Vec<f32> = x.iter().zip(&y).map(|(c, u)| u + 5.0 * (c - u)).collect();
        check("guidance", &expected, |out| guidance(&x, &y, 5.0, out));
        let (gate, up) = x.split_at(width);
        let expected: Vec<f32> = gate.iter().zip(up).map(|(&g, u)| math::silu(g) * u).collect();
        check("silu_mul", &expected, |out| silu_mul(&x, width, out));

        let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = x.iter().map(|x| math::exp(x - largest)).collect();
        let sum = tree(weights.iter().copied(), add);
        let expected: Vec<f32> = weights.iter().map(|w| w / sum).collect();
        check("softmax", &expected, |out| {
            out.copy_from_slice(&x);
            softmax(out);
        });
    }
}

#[test]
fn rope_rows_are_rope_row_by_row() {
    let table = RopeTable::new(64, 10_000.0, 300);
    let rows: Vec<AttnRow> = (0..37).map(|i| AttnRow { slot: 0, position: i * 8 }).collect();
    let x = values(3, 37 * 200);
    let mut expected = x.clone();
    force_isa(Some(Isa::Scalar));
    for (row, x) in rows.iter().zip(expected.chunks_exact_mut(200)) {
        table.apply(&mut x[..192], 3, row.position);
    }
    everywhere(|isa, pool| {
        let mut out = x.clone();
        table.apply_rows(pool, &mut out, 200, 3, &rows);
        same_bits(&out, &expected).unwrap_or_else(|error| panic!("{isa:?}: {error}"));
    });
}

/// GroupNorm by the book: per channel over segments of 512 pixels, over the segments, over the group's channels.
fn group_norm(x: &[f32], groups: usize, w: &[f32], b: &[f32]) -> Vec<f32> {
    let channels = w.len();
    let (pixels, per) = (x.len() / channels, channels / groups);
    let reduce = |group: usize, step: &dyn Fn(f32, f32) -> f32| {
        let channel = |c: usize| {
            let of = |segment: usize| {
                let last = pixels.min((segment + 1) * 512);
                tree((segment * 512..last).map(|p| x[p * channels + c]), step)
            };
            tree((0..pixels.div_ceil(512)).map(of), add)
        };
        tree((group * per..(group + 1) * per).map(channel), add) / (pixels * per) as f32
    };
    let mean: Vec<f32> = (0..groups).map(|group| reduce(group, &add)).collect();
    let var = |group: usize| reduce(group, &|sum, x| (x - mean[group]).mul_add(x - mean[group], sum));
    let scale: Vec<f32> = (0..groups).map(|group| 1.0 / (var(group) + 1e-6).sqrt()).collect();
    let one = |i: usize| {
        let (c, group) = (i % channels, i % channels / per);
        let scale = scale[group] * w[c];
        x[i].mul_add(scale, (-mean[group]).mul_add(scale, b[c]))
    };
    (0..x.len()).map(one).collect()
}

#[test]
fn group_norm_gives_the_books_bits() {
    for (pixels, channels, groups) in [(5, 8, 2), (700, 32, 8), (1300, 96, 32)] {
        let (x, w, b) = (values(1, pixels * channels), values(2, channels), values(3, channels));
        let expected = group_norm(&x, groups, &w, &b);
        everywhere(|isa, pool| {
            let mut out = vec![f32::NAN; x.len()];
            group_norm_swish(pool, &x, groups, &w, &b, 1e-6, false, &mut out);
            same_bits(&out, &expected).unwrap_or_else(|error| panic!("{isa:?}: {error}"));
            group_norm_swish(pool, &x, groups, &w, &b, 1e-6, true, &mut out);
            let swished: Vec<f32> = expected.iter().map(|&x| math::silu(x)).collect();
            same_bits(&out, &swished).unwrap_or_else(|error| panic!("swish on {isa:?}: {error}"));
        });
        // And it normalises: mean and variance in f64.
        let per = channels / groups;
        for (pixel, channel) in [(0, 0), (pixels - 1, channels - 1), (pixels / 2, channels / 2)] {
            let group = channel / per;
            let all = |p: usize| x[p * channels + group * per..][..per].iter().map(|&x| f64::from(x));
            let count = (pixels * per) as f64;
            let mean = (0..pixels).flat_map(all).sum::<f64>() / count;
            let var = (0..pixels).flat_map(all).map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
            let at = pixel * channels + channel;
            let exact = (f64::from(x[at]) - mean) / (var + 1e-6).sqrt() * f64::from(w[channel]) + f64::from(b[channel]);
            assert!((f64::from(expected[at]) - exact).abs() < 1e-5, "{exact} {}", expected[at]);
        }
    }
}

#[test]
fn nearest_code_takes_the_lowest_of_equals() {
    let codebook = values(4, 300 * 8);
    everywhere(|_, _| {
        for index in [0, 17, 299] {
            assert_eq!(nearest_code(&codebook[index * 8..(index + 1) * 8], &codebook), index as u32);
        }
        let twice = [&codebook[..80], &codebook[..80]].concat();
        assert_eq!(nearest_code(&codebook[24..32], &twice), 3);
    });
}
