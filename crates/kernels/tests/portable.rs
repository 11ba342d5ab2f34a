//! One digest of bits per kernel, the same on every machine: what lets all CPUs of a weight format share one numerics
//! id. A change here changes pictures, and goes with a new `kernel_version`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{everywhere, values};
use janus_kernels::{
    AttnRow, ConvSpec, KvDtype, KvSlots, Packed, PackedConv, Pool, RopeTable, Rows, WeightFormat, attention, attention_full,
    conv2d, gelu_erf, group_norm_swish, guidance, layer_norm, linear, rms_norm, silu_mul, softmax,
};

/// FNV-1a over the bits.
fn digest(values: &[f32]) -> u64 {
    values
        .iter()
        .flat_map(|value| value.to_bits().to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn product(pool: &Pool, format: WeightFormat) -> Vec<f32> {
    let packed = Packed::pack_f32(70, 300, &values(1, 70 * 300), format).unwrap();
    let mut out = vec![0.0; 9 * 70];
    linear(pool, &values(2, 9 * 300), &packed, Some(&values(3, 70)), &mut out);
    out
}

fn attended(pool: &Pool, dtype: KvDtype) -> Vec<f32> {
    let (heads, dim, len) = (2, 48, 77);
    let rows: Vec<AttnRow> = (0..len).map(|position| AttnRow { slot: 0, position }).collect();
    let mut qkv = values(4, len * 3 * heads * dim);
    let stride = 3 * heads * dim;
    RopeTable::new(dim, 10_000.0, len).apply_rows(pool, &mut qkv, stride, 2 * heads, &rows);
    let mut kv = KvSlots::new(1, 1, heads, dim, dtype);
    kv.allocate(0, len).unwrap();
    let view = |part: usize| Rows::new(&qkv[part * heads * dim..], stride);
    kv.append_rows(pool, 0, &rows, view(1), view(2)).unwrap();
    let mut out = vec![0.0; 2 * len * heads * dim];
    let (causal, full) = out.split_at_mut(len * heads * dim);
    attention(pool, view(0), &rows, heads, &kv, 0, causal);
    attention_full(pool, view(0), view(1), view(2), len, heads, dim, full);
    out
}

fn convolved(pool: &Pool, spec: ConvSpec, cout: usize) -> Vec<f32> {
    let conv = PackedConv::pack_oihw(cout, 32, spec, &values(5, cout * 32 * 9), WeightFormat::F32).unwrap();
    let (oh, ow) = spec.out_size(9, 10);
    let mut out = vec![0.0; oh * ow * cout];
    conv2d(pool, &values(6, 9 * 10 * 32), 9, 10, &conv, Some(&values(7, cout)), None, &mut out);
    out
}

fn rows(pool: &Pool) -> Vec<f32> {
    let (x, w, b) = (values(8, 600), values(9, 100), values(10, 100));
    let mut out = vec![0.0; 5 * 600 + 300];
    let (norms, rest) = out.split_at_mut(1200);
    rms_norm(&x, &w, 1e-6, &mut norms[..600]);
    layer_norm(&x, &w, &b, 1e-6, &mut norms[600..]);
    let (guided, rest) = rest.split_at_mut(600);
    guidance(&x, &norms[..600], 5.0, guided);
    softmax(guided);
    let (grouped, rest) = rest.split_at_mut(600);
    group_norm_swish(pool, &x, 4, &w, &b, 1e-6, true, grouped);
    let (activated, gated) = rest.split_at_mut(600);
    activated.copy_from_slice(&x);
    gelu_erf(activated);
    silu_mul(&x, 100, gated);
    out
}

#[test]
fn every_machine_has_these_bits() {
    let upsampled = ConvSpec { upsample2x: true, ..ConvSpec::SAME_3X3 };
    let winograd = ConvSpec { winograd: true, ..ConvSpec::SAME_3X3 };
    everywhere(|isa, pool| {
        let got = [
            ("f32", digest(&product(pool, WeightFormat::F32))),
            ("bf16", digest(&product(pool, WeightFormat::Bf16))),
            ("q8", digest(&product(pool, WeightFormat::Q8))),
            ("q4", digest(&product(pool, WeightFormat::Q4))),
            ("attention, kv f32", digest(&attended(pool, KvDtype::F32))),
            ("attention, kv bf16", digest(&attended(pool, KvDtype::Bf16))),
            ("conv", digest(&convolved(pool, upsampled, 48))),
            ("conv to 3", digest(&convolved(pool, ConvSpec::SAME_3X3, 3))),
            ("winograd", digest(&convolved(pool, winograd, 48))),
            ("rows", digest(&rows(pool))),
        ];
        assert_eq!(got, EXPECTED, "{isa:?}: {got:#018x?}");
    });
}

const EXPECTED: [(&str, u64); 10] = [
    ("f32", 0xc98d_d541_200a_21ad),
    ("bf16", 0x5d15_8fdd_744b_912b),
    ("q8", 0x5da0_12ef_63b4_9dfe),
    ("q4", 0x31f1_7695_7b34_2bc3),
    ("attention, kv f32", 0x8fe1_07a7_33ef_1968),
    ("attention, kv bf16", 0x079d_debe_a73d_b5e5),
    ("conv", 0xdcb6_dd9c_3139_eb8c),
    ("conv to 3", 0xf862_6f09_0534_44f8),
    ("winograd", 0x40e3_4714_389c_bb4f),
    ("rows", 0x3662_c785_89d2_00b0),
];
