//! Measures the matrix product at Janus-Pro-1B shapes against this machine's floors: `cargo run --release --example
//! speed -p janus-kernels`. Ratios within one run are what counts.
#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;
use std::time::Instant;

use janus_kernels::{Isa, Packed, Pool, WeightFormat, force_isa, linear, measure};

fn main() {
    let pool = &Pool::new(std::env::args().nth(4).map_or_else(janus_kernels::default_threads, |n| n.parse().unwrap()));
    let bandwidth = measure::read_bandwidth_gb_s(pool);
    println!("threads {} read {bandwidth:.1} GB/s", pool.threads());
    let (n, k) = (5632, 2048);
    let rows: Vec<f32> = (0..n * k).map(|i| ((i * 7919) % 1000) as f32 * 1e-3 - 0.5).collect();
    let formats: Vec<WeightFormat> = match std::env::args().nth(1).as_deref() {
        Some("q8") => vec![WeightFormat::Q8],
        Some("q4") => vec![WeightFormat::Q4],
        Some("f32") => vec![WeightFormat::F32],
        _ => vec![WeightFormat::Bf16],
    };
    for format in formats {
        // Enough copies that no cache holds them, as in a step over many layers.
        let copies: Vec<Packed> = (0..8).map(|_| Packed::pack_f32(n, k, &rows, format).unwrap()).collect();
        let only = std::env::args().nth(2);
        for isa in Isa::available().into_iter().skip(1) {
            if only.as_deref().is_some_and(|name| name != isa.name()) {
                continue;
            }
            force_isa(Some(isa));
            let peak = measure::fma_peak_gflops(pool);
            let sizes = match std::env::args().nth(3) {
                Some(m) if !m.is_empty() => vec![m.parse().unwrap()],
                _ => vec![1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 576],
            };
            for m in sizes {
                let x: Vec<f32> = (0..m * k).map(|i| ((i * 104_729) % 1000) as f32 * 1e-3 - 0.5).collect();
                let mut out = vec![0.0; m * n];
                let mut best = f64::INFINITY;
                for round in 0..(if m > 100 { 3 } else { 6 }) {
                    let start = seconds(pool.threads());
                    let times = if m > 100 { 1 } else { copies.len() };
                    for w in &copies[..times] {
                        linear(pool, &x, w, None, &mut out);
                    }
                    if round > 0 {
                        best = best.min((seconds(pool.threads()) - start) / times as f64);
                    }
                }
                let gflops = (2 * m * n * k) as f64 / best / 1e9;
                let gb = copies[0].bytes() as f64 / best / 1e9;
                println!(
                    "{:6} {:4} {m:4} rows {:8.3} ms  {gb:5.1} GB/s = {:.2} of read, {gflops:6.1} GFLOP/s = {:.2} of {peak:.0}",
                    isa.name(),
                    format.name(),
                    best * 1e3,
                    gb / bandwidth,
                    gflops / peak
                );
            }
        }
        force_isa(None);
    }
}

/// Seconds: of this thread's CPU for one thread (a busy machine shows less), of the clock for more.
fn seconds(threads: usize) -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    if threads == 1 { measure::thread_seconds() } else { START.get_or_init(Instant::now).elapsed().as_secs_f64() }
}
