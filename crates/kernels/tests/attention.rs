//! Attention against plain loops, ragged against one by one, chunked against whole, bit for bit.
#![allow(clippy::unwrap_used)]

mod common;

use common::{everywhere, same_bits, values};
use janus_kernels::{
    AttnRow, Error, KvDtype, KvSlots, Pool, Rows, attention, attention_full, bf16_to_f32, f32_to_bf16, math,
};
use proptest::prelude::*;

/// One (row, head) by the book.
fn oracle(q: &[f32], keys: &[Vec<f32>], vals: &[Vec<f32>]) -> Vec<f32> {
    let scale = 1.0 / (q.len() as f32).sqrt();
    let score = |k: &Vec<f32>| q.iter().zip(k).fold(0.0_f32, |sum, (&q, &k)| q.mul_add(k, sum)) * scale;
    let scores: Vec<f32> = keys.iter().map(score).collect();
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|s| math::exp(s - largest)).collect();
    let mut lanes = [0.0_f32; 16];
    weights.iter().enumerate().for_each(|(i, w)| lanes[i % 16] += w);
    for width in [8, 4, 2, 1] {
        (0..width).for_each(|i| lanes[i] += lanes[i + width]);
    }
    (0..q.len()).map(|d| weights.iter().zip(vals).fold(0.0_f32, |sum, (&w, v)| w.mul_add(v[d], sum)) / lanes[0]).collect()
}

struct Case {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    dtype: KvDtype,
    lens: Vec<usize>,
}

impl Case {
    fn rounded(&self, x: Vec<f32>) -> Vec<f32> {
        match self.dtype {
            KvDtype::F32 => x,
            KvDtype::Bf16 => x.into_iter().map(|x| bf16_to_f32(f32_to_bf16(x))).collect(),
        }
    }

    /// k or v of one (slot, position) of layer 1.
    fn stored(&self, kind: u64, slot: usize, position: usize) -> Vec<f32> {
        values(kind * 1_000_003 + slot as u64 * 4099 + position as u64, self.kv_heads * self.dim)
    }

    fn cache(&self) -> KvSlots {
        let mut kv = KvSlots::new(self.lens.len(), 2, self.kv_heads, self.dim, self.dtype);
        for (slot, &len) in self.lens.iter().enumerate() {
            kv.allocate(slot, len).unwrap();
            for position in 0..len {
                let junk = vec![f32::NAN; self.kv_heads * self.dim];
                kv.append(0, slot, position, &junk, &junk).unwrap();
                kv.append(1, slot, position, &self.stored(1, slot, position), &self.stored(2, slot, position)).unwrap();
            }
        }
        kv
    }

    fn expected(&self, q: &[f32], row: AttnRow) -> Vec<f32> {
        let of = |kind, position, head: usize| {
            let all = self.rounded(self.stored(kind, row.slot, position));
            all[head * self.dim..(head + 1) * self.dim].to_vec()
        };
        (0..self.heads)
            .flat_map(|head| {
                let kv_head = head * self.kv_heads / self.heads;
                let keys: Vec<_> = (0..=row.position).map(|p| of(1, p, kv_head)).collect();
                let vals: Vec<_> = (0..=row.position).map(|p| of(2, p, kv_head)).collect();
                oracle(&q[head * self.dim..(head + 1) * self.dim], &keys, &vals)
            })
            .collect()
    }

    /// Rows as given, against the oracle, on every path; q lies in wider rows.
    fn check(&self, rows: &[AttnRow]) {
        let kv = self.cache();
        let width = self.heads * self.dim;
        let stride = width + 5;
        let q = values(9, rows.len() * stride);
        let expected: Vec<f32> =
            rows.iter().enumerate().flat_map(|(i, &row)| self.expected(&q[i * stride..][..width], row)).collect();
        everywhere(|isa, pool| {
            let mut out = vec![f32::NAN; rows.len() * width];
            attention(pool, Rows::new(&q, stride), rows, self.heads, &kv, 1, &mut out);
            same_bits(&out, &expected).unwrap_or_else(|error| panic!("{isa:?} {rows:?}: {error}"));
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn ragged_rows_give_the_oracles_bits(
        group in 1_usize..3, kv_heads in 1_usize..3, dim in 1_usize..70, bf16: bool,
        lens in prop::collection::vec(1_usize..100, 1..4), picks in prop::collection::vec(any::<u32>(), 1..12),
    ) {
        let dtype = if bf16 { KvDtype::Bf16 } else { KvDtype::F32 };
        let case = Case { heads: group * kv_heads, kv_heads, dim, dtype, lens };
        let rows: Vec<AttnRow> = picks.iter().map(|&pick| {
            let slot = pick as usize % case.lens.len();
            AttnRow { slot, position: (pick >> 8) as usize % case.lens[slot] }
        }).collect();
        case.check(&rows);
    }
}

#[test]
fn a_prefill_of_one_slot_gives_the_oracles_bits() {
    let case = Case { heads: 2, kv_heads: 2, dim: 64, dtype: KvDtype::Bf16, lens: vec![75] };
    let rows: Vec<AttnRow> = (0..75).map(|position| AttnRow { slot: 0, position }).collect();
    case.check(&rows);
    case.check(&rows[40..]);
}

#[test]
fn chunks_give_the_bits_of_the_whole() {
    let case = Case { heads: 2, kv_heads: 1, dim: 32, dtype: KvDtype::Bf16, lens: vec![70] };
    let kv = case.cache();
    let q = values(4, 70 * 64);
    let rows: Vec<AttnRow> = (0..70).map(|position| AttnRow { slot: 0, position }).collect();
    let pool = Pool::new(2);
    let mut whole = vec![0.0; 70 * 64];
    attention(&pool, Rows::new(&q, 64), &rows, 2, &kv, 1, &mut whole);
    for chunk in [1, 7, 64] {
        let mut out = vec![0.0; 70 * 64];
        for start in (0..70).step_by(chunk) {
            let end = 70.min(start + chunk);
            let part = &mut out[start * 64..end * 64];
            attention(&pool, Rows::new(&q[start * 64..], 64), &rows[start..end], 2, &kv, 1, part);
        }
        same_bits(&out, &whole).unwrap();
    }
}

#[test]
fn full_attention_gives_the_oracles_bits() {
    for (rows, heads, dim) in [(5, 1, 3), (37, 2, 16), (70, 3, 64), (33, 1, 100)] {
        let width = heads * dim;
        let fused = values(rows as u64, rows * 3 * width);
        let of = |part: usize, row: usize, head: usize| fused[(row * 3 + part) * width + head * dim..][..dim].to_vec();
        let mut expected = vec![0.0; rows * width];
        for head in 0..heads {
            let keys: Vec<_> = (0..rows).map(|row| of(1, row, head)).collect();
            let vals: Vec<_> = (0..rows).map(|row| of(2, row, head)).collect();
            for row in 0..rows {
                let out = oracle(&of(0, row, head), &keys, &vals);
                expected[row * width + head * dim..][..dim].copy_from_slice(&out);
            }
        }
        let view = |part: usize| Rows::new(&fused[part * width..], 3 * width);
        everywhere(|isa, pool| {
            let mut out = vec![f32::NAN; rows * width];
            attention_full(pool, view(0), view(1), view(2), rows, heads, dim, &mut out);
            same_bits(&out, &expected).unwrap_or_else(|error| panic!("{isa:?} {rows} x {heads} x {dim}: {error}"));
        });
    }
}

#[test]
fn rows_appended_together_are_rows_appended_one_by_one() {
    for dtype in [KvDtype::F32, KvDtype::Bf16] {
        let case = Case { heads: 2, kv_heads: 2, dim: 40, dtype, lens: vec![37, 3] };
        let one_by_one = case.cache();
        let mut kv = KvSlots::new(2, 2, 2, 40, dtype);
        let rows: Vec<AttnRow> = [(0, 0..20), (1, 0..3), (0, 20..37)]
            .into_iter()
            .flat_map(|(slot, positions)| positions.map(move |position| AttnRow { slot, position }))
            .collect();
        let fused: Vec<f32> = rows
            .iter()
            .flat_map(|row| [case.stored(1, row.slot, row.position), case.stored(2, row.slot, row.position)].concat())
            .collect();
        let pool = Pool::new(2);
        kv.allocate(0, 37).unwrap();
        kv.allocate(1, 3).unwrap();
        let (k, v) = (Rows::new(&fused, 160), Rows::new(&fused[80..], 160));
        // One row too many, out of order: nothing is written.
        let hole = [rows[0], AttnRow { slot: 0, position: 2 }];
        assert!(kv.append_rows(&pool, 1, &hole, k, v).is_err());
        assert_eq!(kv.len(0), 0);
        kv.append_rows(&pool, 1, &rows, k, v).unwrap();
        assert_eq!((kv.len(0), kv.len(1)), (37, 3));
        let q = values(7, rows.len() * 80);
        let [mut a, mut b] = [vec![0.0; q.len()], vec![0.0; q.len()]];
        attention(&pool, Rows::new(&q, 80), &rows, 2, &kv, 1, &mut a);
        attention(&pool, Rows::new(&q, 80), &rows, 2, &one_by_one, 1, &mut b);
        same_bits(&a, &b).unwrap();
    }
}

#[test]
fn a_copied_prefix_is_the_prefix() {
    for dtype in [KvDtype::F32, KvDtype::Bf16] {
        for copied in [1, 31, 32, 33, 64, 70] {
            // A slot with the first positions of another one, whose rest was appended, is that other one.
            let case = Case { heads: 4, kv_heads: 2, dim: 40, dtype, lens: vec![70, 5] };
            let mut kv = case.cache();
            let mut copy = KvSlots::new(3, 2, 2, 40, dtype);
            std::mem::swap(&mut copy, &mut kv);
            let mut table = KvSlots::new(4, 2, 2, 40, dtype);
            for (slot, capacity) in [(0, 70), (1, 5), (2, 100)] {
                table.allocate(slot, capacity).unwrap();
            }
            for position in 0..70 {
                for layer in 0..2 {
                    table.append(layer, 0, position, &case.stored(1, 0, position), &case.stored(2, 0, position)).unwrap();
                }
            }
            table.copy(0, 2, copied).unwrap();
            assert_eq!((table.len(0), table.len(2), table.capacity(2)), (70, copied, 100));
            // The source's own memory may go.
            table.shrink(0, copied).unwrap();
            assert_eq!((table.len(0), table.capacity(0)), (copied, copied));
            table.allocate(3, 70).unwrap();
            table.copy(0, 3, copied).unwrap();
            table.free(0);
            for position in copied..70 {
                for (layer, slot) in [(0, 2), (1, 2), (0, 3), (1, 3)] {
                    table.append(layer, slot, position, &case.stored(1, 0, position), &case.stored(2, 0, position)).unwrap();
                }
            }
            let q = values(3, 4 * 40);
            let pool = Pool::new(2);
            for slot in [2, 3] {
                let [mut a, mut b] = [vec![0.0; q.len()], vec![0.0; q.len()]];
                attention(&pool, Rows::new(&q, 160), &[AttnRow { slot, position: 69 }], 4, &table, 1, &mut a);
                attention(&pool, Rows::new(&q, 160), &[AttnRow { slot: 0, position: 69 }], 4, &copy, 1, &mut b);
                same_bits(&a, &b).unwrap_or_else(|error| panic!("{dtype:?}, {copied} copied: {error}"));
            }
        }
    }
    let mut kv = KvSlots::new(3, 1, 1, 4, KvDtype::F32);
    let x = [0.0; 4];
    kv.allocate(0, 4).unwrap();
    kv.allocate(1, 1).unwrap();
    kv.append(0, 0, 0, &x, &x).unwrap();
    kv.append(0, 0, 1, &x, &x).unwrap();
    assert_eq!(kv.copy(0, 2, 1), Err(Error::NoSuchSlot { slot: 2, slots: 3 }));
    assert_eq!(kv.copy(2, 0, 1), Err(Error::NoSuchSlot { slot: 2, slots: 3 }));
    assert_eq!(kv.copy(0, 1, 3), Err(Error::Position { slot: 0, position: 2, len: 2, capacity: 4 }));
    assert_eq!(kv.copy(0, 1, 2), Err(Error::Position { slot: 1, position: 1, len: 0, capacity: 1 }));
    assert_eq!((kv.len(0), kv.len(1)), (2, 0));
    assert_eq!(kv.shrink(2, 1), Err(Error::NoSuchSlot { slot: 2, slots: 3 }));
}

#[test]
fn slots_refuse_holes_strangers_and_overflow() {
    let mut kv = KvSlots::new(2, 1, 1, 4, KvDtype::F32);
    let x = [0.0; 4];
    assert_eq!(kv.append(0, 0, 0, &x, &x), Err(Error::NoSuchSlot { slot: 0, slots: 2 }));
    assert_eq!(kv.allocate(2, 4), Err(Error::NoSuchSlot { slot: 2, slots: 2 }));
    kv.allocate(0, 2).unwrap();
    assert_eq!(kv.allocate(0, 2), Err(Error::SlotInUse { slot: 0 }));
    assert_eq!(kv.append(0, 0, 1, &x, &x), Err(Error::Position { slot: 0, position: 1, len: 0, capacity: 2 }));
    kv.append(0, 0, 0, &x, &x).unwrap();
    kv.append(0, 0, 1, &x, &x).unwrap();
    assert_eq!(kv.append(0, 0, 2, &x, &x), Err(Error::Position { slot: 0, position: 2, len: 2, capacity: 2 }));
    assert_eq!((kv.len(0), kv.capacity(0)), (2, 2));
    kv.truncate(0, 1).unwrap();
    assert_eq!(kv.len(0), 1);
    kv.append(0, 0, 0, &x, &x).unwrap();
    assert_eq!(kv.bytes(), 32 * (4 + 32) * 4);
    kv.free(0);
    assert_eq!((kv.len(0), kv.bytes()), (0, 0));
    kv.allocate(0, 2).unwrap();
}
