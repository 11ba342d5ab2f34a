//! Measures the convolutions, norms and attention of one VQ decode to 384 x 384 (channels 128, multipliers 1 1 2 2 4,
//! three residual blocks a level) on random weights: `cargo run --release --example vq -p janus-kernels -- winograd`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Instant;

use janus_kernels::{
    ConvSpec, Isa, PackedConv, Pool, Rows, WeightFormat, attention_full, conv2d, default_threads, force_isa,
    group_norm_swish, measure,
};

struct Decode<'a> {
    pool: &'a Pool,
    winograd: bool,
    spent: BTreeMap<String, (f64, f64)>,
    convs: BTreeMap<String, PackedConv>,
    /// Buffers to use again: fresh ones would cost a page fault every 4 KiB.
    free: Vec<Vec<f32>>,
}

impl Decode<'_> {
    fn now(&self) -> f64 {
        seconds(self.pool.threads())
    }

    fn note(&mut self, what: String, start: f64, gflop: f64) {
        let end = self.now();
        let entry = self.spent.entry(what).or_default();
        entry.0 += end - start;
        entry.1 += gflop;
    }

    fn buffer(&mut self, len: usize) -> Vec<f32> {
        match self.free.iter().position(|free| free.len() == len) {
            Some(index) => self.free.swap_remove(index),
            None => vec![1.0; len],
        }
    }

    fn conv(
        &mut self,
        x: &[f32],
        side: usize,
        cin: usize,
        cout: usize,
        mut spec: ConvSpec,
        skip: Option<&[f32]>,
    ) -> Vec<f32> {
        spec.winograd = self.winograd;
        let up = if spec.upsample2x { "up " } else { "" };
        let name = format!("{up}conv{} {cin:3} -> {cout:3} at {}", spec.kh, spec.out_size(side, side).0);
        let packed = self.convs.remove(&name).unwrap_or_else(|| {
            let count = cout * cin * spec.kh * spec.kw;
            let weights: Vec<f32> = (0..count).map(|i| ((i * 7919) % 1000) as f32 * 2e-5 - 1e-2).collect();
            PackedConv::pack_oihw(cout, cin, spec, &weights, WeightFormat::F32).unwrap()
        });
        let size = spec.out_size(side, side).0;
        let mut out = self.buffer(size * size * cout);
        let start = self.now();
        conv2d(self.pool, x, side, side, &packed, Some(&vec![0.1; cout]), skip, &mut out);
        self.note(name.clone(), start, (2 * size * size * cout * cin * spec.kh * spec.kw) as f64 / 1e9);
        self.convs.insert(name, packed);
        out
    }

    fn norm(&mut self, x: &[f32], channels: usize, swish: bool) -> Vec<f32> {
        let mut out = self.buffer(x.len());
        let start = self.now();
        group_norm_swish(self.pool, x, 32, &vec![1.0; channels], &vec![0.0; channels], 1e-6, swish, &mut out);
        self.note("group norm".into(), start, 0.0);
        out
    }

    fn block(&mut self, x: Vec<f32>, side: usize, cin: usize, cout: usize) -> Vec<f32> {
        let a = self.norm(&x, cin, true);
        let b = self.conv(&a, side, cin, cout, ConvSpec::SAME_3X3, None);
        let c = self.norm(&b, cout, true);
        let skip = if cin == cout { x } else { self.conv(&x, side, cin, cout, ConvSpec::POINTWISE, None) };
        let out = self.conv(&c, side, cout, cout, ConvSpec::SAME_3X3, Some(&skip));
        self.free.extend([a, b, c, skip]);
        out
    }

    fn attend(&mut self, x: Vec<f32>, side: usize, channels: usize) -> Vec<f32> {
        let y = self.norm(&x, channels, false);
        let qkv = self.conv(&y, side, channels, 3 * channels, ConvSpec::POINTWISE, None);
        let mut out = self.buffer(x.len());
        let start = self.now();
        let view = |part: usize| Rows::new(&qkv[part * channels..], 3 * channels);
        attention_full(self.pool, view(0), view(1), view(2), side * side, 1, channels, &mut out);
        self.note("attention".into(), start, (4 * side.pow(4) * channels) as f64 / 1e9);
        let sum = self.conv(&out, side, channels, channels, ConvSpec::POINTWISE, Some(&x));
        self.free.extend([x, y, qkv, out]);
        sum
    }

    fn decode(&mut self) {
        let z = vec![0.25; 24 * 24 * 256];
        let mut x = self.conv(&z, 24, 256, 512, ConvSpec::SAME_3X3, None);
        x = self.block(x, 24, 512, 512);
        x = self.attend(x, 24, 512);
        x = self.block(x, 24, 512, 512);
        let (mut side, mut channels) = (24, 512);
        for (level, next) in [512, 256, 256, 128, 128].into_iter().enumerate() {
            for _ in 0..3 {
                x = self.block(x, side, channels, next);
                channels = next;
                if level == 0 {
                    x = self.attend(x, side, channels);
                }
            }
            if level < 4 {
                let spec = ConvSpec { upsample2x: true, ..ConvSpec::SAME_3X3 };
                let up = self.conv(&x, side, channels, channels, spec, None);
                self.free.push(std::mem::replace(&mut x, up));
                side *= 2;
            }
        }
        let y = self.norm(&x, 128, true);
        let picture = self.conv(&y, side, 128, 3, ConvSpec::SAME_3X3, None);
        self.free.extend([x, y, picture]);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let pool = Pool::new(if has("1") { 1 } else { default_threads() });
    let wanted = Isa::available().into_iter().find(|isa| has(isa.name()));
    force_isa(wanted);
    let mut decode =
        Decode { pool: &pool, winograd: has("winograd"), spent: BTreeMap::new(), convs: BTreeMap::new(), free: Vec::new() };
    decode.decode();
    decode.spent.clear();
    let start = decode.now();
    decode.decode();
    let total = decode.now() - start;
    let peak = measure::fma_peak_gflops(&pool);
    for (name, (seconds, gflop)) in &decode.spent {
        println!("{name:28} {:8.1} ms {:7.1} GFLOP/s", seconds * 1e3, gflop / seconds);
    }
    let gflop: f64 = decode.spent.values().map(|(_, gflop)| gflop).sum();
    println!("{total:.2} s for {gflop:.0} GFLOP (direct) = {:.1} GFLOP/s, peak {peak:.0}", gflop / total);
}

/// Seconds: of this thread's CPU for one thread (a busy machine shows less), of the clock for more.
fn seconds(threads: usize) -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    if threads == 1 { measure::thread_seconds() } else { START.get_or_init(Instant::now).elapsed().as_secs_f64() }
}
