//! Measures the matrix product at the shapes of a Janus-Pro-1B layer against this machine's floors. Words pick what to
//! run (all of each kind otherwise): a format, an instruction set, numbers of rows, `threads=N`, `shape=NxK`.
//!
//! `cargo run --release -p janus-kernels --example speed -- bf16 avx2 2 8 threads=1`
#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;
use std::time::Instant;

use janus_kernels::{Isa, Packed, Pool, WeightFormat, default_threads, force_isa, linear, measure};

/// q, k and v; attention output; gate and up; down.
const SHAPES: [(usize, usize); 4] = [(6144, 2048), (2048, 2048), (11264, 2048), (2048, 5632)];

/// Bytes that even a last-level cache of some hundred megabytes does not keep.
const UNCACHED: usize = 600_000_000;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let value = |key: &str| words.iter().find_map(|word| word.strip_prefix(key).map(str::to_owned));
    let threads = value("threads=").map_or_else(default_threads, |n| n.parse().unwrap());
    let shapes = value("shape=").map_or(SHAPES.to_vec(), |shape| {
        let (n, k) = shape.split_once('x').unwrap();
        vec![(n.parse().unwrap(), k.parse().unwrap())]
    });
    let mut rows: Vec<usize> = words.iter().filter_map(|word| word.parse().ok()).collect();
    if rows.is_empty() {
        rows = vec![1, 2, 4, 6, 8, 12, 16, 32, 576];
    }
    let formats = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Q8, WeightFormat::Q4];
    let picked = |name: &str, names: &[&str]| {
        let named = words.iter().any(|word| names.contains(&word.as_str()));
        !named || words.iter().any(|word| word == name)
    };
    let pool = Pool::new(threads);
    let read = measure::read_bandwidth_gb_s(&pool);
    println!("{threads} threads, reads {read:.1} GB/s");
    for format in formats.into_iter().filter(|format| picked(format.name(), &formats.map(WeightFormat::name))) {
        for &(n, k) in &shapes {
            let weight: Vec<f32> = (0..n * k).map(|i| ((i * 7919) % 1000) as f32 * 1e-3 - 0.5).collect();
            // Enough copies that no cache holds them, as in a step over many layers.
            let first = Packed::pack_f32(n, k, &weight, format).unwrap();
            let copies = (UNCACHED / first.bytes()).max(2);
            let mut weights = vec![first];
            weights.resize_with(copies, || Packed::pack_f32(n, k, &weight, format).unwrap());
            for isa in Isa::available() {
                if isa == Isa::Scalar || !picked(isa.name(), &["avx2", "avx512", "neon"]) {
                    continue;
                }
                force_isa(Some(isa));
                let peak = measure::fma_peak_gflops(&pool);
                for &m in &rows {
                    let best = time(&pool, &weights, m);
                    let gflops = (2 * m * n * k) as f64 / best / 1e9;
                    let gb = weights[0].bytes() as f64 / best / 1e9;
                    println!(
                        "{:6} {:4} {n:5} x {k} {m:4} rows {:8.3} ms {gb:5.1} GB/s ({:.2}) {gflops:6.1} GFLOP/s ({:.2} of {peak:.0})",
                        isa.name(),
                        format.name(),
                        best * 1e3,
                        gb / read,
                        gflops / peak
                    );
                }
            }
            force_isa(None);
        }
    }
}

/// Best time of one product of `m` rows, in seconds.
fn time(pool: &Pool, weights: &[Packed], m: usize) -> f64 {
    let (n, k) = (weights[0].n(), weights[0].k());
    let x: Vec<f32> = (0..m * k).map(|i| ((i * 104_729) % 1000) as f32 * 1e-3 - 0.5).collect();
    let mut out = vec![0.0; m * n];
    let weights = if m > 100 { &weights[..1] } else { weights };
    let mut best = f64::INFINITY;
    for _ in 0..if m > 100 { 3 } else { 8 } {
        let start = seconds(pool.threads());
        for w in weights {
            linear(pool, &x, w, None, &mut out);
        }
        best = best.min((seconds(pool.threads()) - start) / weights.len() as f64);
    }
    best
}

/// Seconds: of this thread's CPU for one thread (a busy machine shows less), of the clock for more.
fn seconds(threads: usize) -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    if threads == 1 { measure::thread_seconds() } else { START.get_or_init(Instant::now).elapsed().as_secs_f64() }
}
