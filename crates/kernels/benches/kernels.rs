//! Criterion benches of the kernels a step and a prompt spend their time in: `cargo bench --bench kernels`. For floors and
//! fractions of them there are `janus bench` and `--example speed`; these watch one kernel from change to change.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use janus_kernels::{
    AttnRow, ConvSpec, KvDtype, KvSlots, Packed, PackedConv, Pool, Rows, WeightFormat, attention, conv2d, gelu_erf, linear,
    rms_norm, sample, silu_mul,
};

/// Of Janus-Pro-1B.
const HIDDEN: usize = 2048;
const INNER: usize = 5632;
const HEADS: usize = 16;

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1000) as f32 * 1e-3 - 0.5).collect()
}

fn products(c: &mut Criterion) {
    let pool = Pool::global();
    let weight = values(HIDDEN * INNER);
    for format in [WeightFormat::Bf16, WeightFormat::F32, WeightFormat::Q8, WeightFormat::Q4] {
        let packed = Packed::pack_f32(INNER, HIDDEN, &weight, format).unwrap();
        let mut group = c.benchmark_group(format!("linear {} {HIDDEN} to {INNER}", format.name()));
        for rows in [1, 2, 8, 16, 64] {
            let (x, mut out) = (values(rows * HIDDEN), vec![0.0; rows * INNER]);
            group.throughput(Throughput::Elements((2 * rows * HIDDEN * INNER) as u64));
            group.bench_with_input(BenchmarkId::from_parameter(rows), &rows, |b, _| {
                b.iter(|| linear(pool, black_box(&x), &packed, None, &mut out));
            });
        }
        group.finish();
    }
}

fn attending(c: &mut Criterion) {
    let pool = Pool::global();
    let dim = HIDDEN / HEADS;
    let mut group = c.benchmark_group("attention of two rows");
    for dtype in [KvDtype::Bf16, KvDtype::F32] {
        for context in [32, 620] {
            let mut kv = KvSlots::new(2, 1, HEADS, dim, dtype);
            let row = values(HIDDEN);
            for slot in 0..2 {
                kv.allocate(slot, context).unwrap();
                (0..context).for_each(|position| kv.append(0, slot, position, &row, &row).unwrap());
            }
            let rows: Vec<AttnRow> = (0..2).map(|slot| AttnRow { slot, position: context - 1 }).collect();
            let (q, mut out) = (values(2 * HIDDEN), vec![0.0; 2 * HIDDEN]);
            group.bench_function(format!("{} {context}", dtype.name()), |b| {
                b.iter(|| attention(pool, Rows::new(black_box(&q), HIDDEN), &rows, HEADS, &kv, 0, &mut out));
            });
        }
    }
    group.finish();
}

fn rows(c: &mut Criterion) {
    let (x, weight, mut out) = (values(2 * HIDDEN), values(HIDDEN), vec![0.0; 2 * HIDDEN]);
    c.bench_function("rms_norm of two rows", |b| b.iter(|| rms_norm(black_box(&x), &weight, 1e-6, &mut out)));
    let (gate_up, mut inner) = (values(4 * INNER), vec![0.0; 2 * INNER]);
    c.bench_function("silu_mul of two rows", |b| b.iter(|| silu_mul(black_box(&gate_up), INNER, &mut inner)));
    let mut gelu = values(2 * HIDDEN);
    c.bench_function("gelu_erf of two rows", |b| b.iter(|| gelu_erf(black_box(&mut gelu))));
    let logits = values(16_384);
    c.bench_function("sample of 16384", |b| b.iter(|| sample(black_box(&logits), 1.0, 0, 1.0, 1, 7)));
}

fn convolutions(c: &mut Criterion) {
    let pool = Pool::global();
    let mut group = c.benchmark_group("conv 3x3 at 96x96");
    group.sample_size(10);
    for (name, input, output, winograd) in
        [("128 to 128", 128, 128, false), ("128 to 128 winograd", 128, 128, true), ("128 to 3", 128, 3, false)]
    {
        let spec = ConvSpec { winograd, ..ConvSpec::SAME_3X3 };
        let conv = PackedConv::pack_oihw(output, input, spec, &values(9 * input * output), WeightFormat::Bf16).unwrap();
        let (x, mut out) = (values(96 * 96 * input), vec![0.0; 96 * 96 * output]);
        group.bench_function(name, |b| b.iter(|| conv2d(pool, black_box(&x), 96, 96, &conv, None, None, &mut out)));
    }
    group.finish();
}

criterion_group!(benches, products, attending, rows, convolutions);
criterion_main!(benches);
