//! A steady decode step's kernels don't allocate.
#![allow(clippy::unwrap_used)]

mod counting;

use std::sync::atomic::Ordering;

use counting::ALLOCATIONS;
use janus_kernels::{
    AttnRow, KvDtype, KvSlots, Packed, Pool, RopeTable, Rows, WeightFormat, add_rms_norm, attention, gelu_erf, guidance,
    linear, sample, silu_mul,
};

const WIDTH: usize = 128;
const HEADS: usize = 4;

#[test]
fn a_steady_step_allocates_nothing() {
    let pool = Pool::new(2);
    let weight = |n: usize, format| Packed::pack_f32(n, WIDTH, &vec![0.01; n * WIDTH], format).unwrap();
    let layers = [WeightFormat::Bf16, WeightFormat::F32, WeightFormat::Q8, WeightFormat::Q4]
        .map(|format| (weight(3 * WIDTH, format), weight(WIDTH, format), weight(2 * WIDTH, format)));
    let mut kv = KvSlots::new(6, layers.len(), HEADS, WIDTH / HEADS, KvDtype::Bf16);
    (0..6).for_each(|slot| kv.allocate(slot, 200).unwrap());
    let rope = RopeTable::new(WIDTH / HEADS, 10_000.0, 200);
    let norm = vec![1.0; WIDTH];
    let mut buffers = [3, 1, 2, 1, 1].map(|width| vec![0.5_f32; 6 * WIDTH * width]);
    let mut residual = vec![0.5_f32; 6 * WIDTH];
    let mut logits = vec![0.0_f32; WIDTH];
    let mut rows = Vec::with_capacity(6);
    let mut quiet = 0;
    // A worker's own scratch grows when it first gets a task of a kind, which may be late: steady means it stays quiet.
    for position in 0..200 {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        rows.clear();
        rows.extend((0..6).map(|slot| AttnRow { slot, position }));
        let [qkv, mixed, gate_up, inner, out] = &mut buffers;
        for (layer, (first, second, third)) in layers.iter().enumerate() {
            add_rms_norm(&mut residual, mixed, &norm, 1e-6, out);
            linear(&pool, out, first, None, qkv);
            rope.apply_rows(&pool, qkv, 3 * WIDTH, 2 * HEADS, &rows);
            let (k, v) = (Rows::new(&qkv[WIDTH..], 3 * WIDTH), Rows::new(&qkv[2 * WIDTH..], 3 * WIDTH));
            kv.append_rows(&pool, layer, &rows, k, v).unwrap();
            attention(&pool, Rows::new(qkv, 3 * WIDTH), &rows, HEADS, &kv, layer, mixed);
            linear(&pool, mixed, second, Some(&norm), out);
            linear(&pool, out, third, None, gate_up);
            silu_mul(gate_up, WIDTH, inner);
            gelu_erf(inner);
        }
        guidance(&inner[..WIDTH], &inner[WIDTH..2 * WIDTH], 5.0, &mut logits);
        sample(&logits, 1.0, 0, 1.0, 1, position as u64);
        sample(&logits, 0.8, 50, 0.9, 1, position as u64);
        quiet = if ALLOCATIONS.load(Ordering::Relaxed) == before { quiet + 1 } else { 0 };
    }
    assert!(quiet >= 20, "only the last {quiet} of 200 steps were free of allocation");
}
