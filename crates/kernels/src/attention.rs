//! Softmax attention in canonical order. Per (row, head): every score one chain over the head's dimensions, times
//! `1 / sqrt(head_dim)`; the largest; `exp(score - largest)`; their sum by the 16-way tree at absolute key positions;
//! every output one chain over the keys in order, divided by the sum. So a row depends on its own slot's keys alone.
//! `model` calls [`attention`] per layer of the LLM and [`attention_full`] in the vision models.

mod head;

use std::cell::RefCell;

use self::head::{Keys, Queries, head};
use crate::aligned::AlignedBuf;
use crate::gemm::arrange::transpose;
use crate::gemm::tile::MOST;
use crate::isa::isa;
use crate::kv::{KvDtype, KvSlots};
use crate::packed::PANEL;
use crate::pool::{Pool, Shards};

/// One query row of a ragged batch: it attends to keys `0..=position` of its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttnRow {
    /// KV slot of the row's sequence.
    pub slot: usize,
    /// The row's own position, written to the slot already.
    pub position: usize,
}

/// A view of row-major data whose rows lie `stride` apart, so that q can be read out of a fused q, k, v product.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Row `i` starts at `data[i * stride]`.
    pub fn new(data: &'a [f32], stride: usize) -> Self {
        Self { data, stride }
    }

    pub(crate) fn row(&self, index: usize, width: usize) -> &'a [f32] {
        &self.data[index * self.stride..][..width]
    }

    pub(crate) fn holds(&self, rows: usize, width: usize) -> bool {
        rows == 0 || self.data.len() >= (rows - 1) * self.stride + width
    }
}

thread_local! {
    static SCRATCH: RefCell<AlignedBuf<f32>> = const { RefCell::new(AlignedBuf::empty()) };
    static PANELS: RefCell<AlignedBuf<f32>> = const { RefCell::new(AlignedBuf::empty()) };
    static GROUPS: RefCell<Vec<(usize, usize)>> = const { RefCell::new(Vec::new()) };
}

/// Causal attention of `rows` (any mix of slots and positions) over layer `layer` of `kv`. `q` holds
/// `rows.len()` rows of `heads * head_dim` (rotated); `out` is row-major of the same shape. `kv_heads` divides
/// `heads`, head `h` reads kv head `h * kv_heads / heads`. Neighbouring rows of one slot share the reading of its keys.
///
/// # Panics
/// If shapes differ or a row's position wasn't written.
pub fn attention(pool: &Pool, q: Rows<'_>, rows: &[AttnRow], heads: usize, kv: &KvSlots, layer: usize, out: &mut [f32]) {
    let (layers, kv_heads, dim, width) = kv.shape();
    assert!(
        layer < layers && heads.is_multiple_of(kv_heads) && out.len() == rows.len() * heads * dim,
        "attention: shapes differ"
    );
    assert!(q.holds(rows.len(), heads * dim), "attention: q is too short");
    for row in rows {
        assert!(row.position < kv.len(row.slot), "attention: {row:?} was never written");
    }
    let (isa, scale, size) = (isa(), 1.0 / (dim as f32).sqrt(), kv.dtype().size());
    let to = Shards(out.as_mut_ptr());
    GROUPS.with_borrow_mut(|groups| {
        split_by_slot(rows, groups);
        let groups = &*groups;
        pool.run(groups.len() * heads, |task| {
            let ((first, count), at) = (groups[task / heads], task % heads);
            let Some(slot) = kv.slot(rows[first].slot) else { return };
            let mut queries = Queries { rows: count, ..Queries::EMPTY };
            for (r, row) in rows[first..first + count].iter().enumerate() {
                queries.q[r] = q.row(first + r, heads * dim)[at * dim..].as_ptr();
                queries.out[r] = to.ptr().wrapping_add(((first + r) * heads + at) * dim);
                queries.lens[r] = row.position + 1;
            }
            let base = (layer * kv_heads + at * kv_heads / heads) * slot.padded * size;
            let keys = Keys {
                keys: slot.keys.bytes().wrapping_add(base * dim),
                values: slot.values.bytes().wrapping_add(base * width),
                value_panel: slot.padded * PANEL * size,
                dim,
                bf16: kv.dtype() == KvDtype::Bf16,
            };
            SCRATCH.with_borrow_mut(|scratch| {
                let scratch = scratch.reserve(Queries::scratch(dim, slot.padded)).as_mut_ptr();
                // SAFETY: rows and slots were checked; each (row, head) is written by one task.
                unsafe { head(isa, &queries, &keys, scale, scratch) };
            });
        });
    });
}

/// Groups of up to [`MOST`] neighbouring rows of the same slot, as (first, count).
fn split_by_slot(rows: &[AttnRow], groups: &mut Vec<(usize, usize)>) {
    groups.clear();
    for (index, row) in rows.iter().enumerate() {
        match groups.last_mut() {
            Some((first, count)) if *count < MOST_ROWS && rows[*first].slot == row.slot => *count += 1,
            _ => groups.push((index, 1)),
        }
    }
}

/// Rows that share one reading of the keys: whole tiles of the narrowest instruction set.
const MOST_ROWS: usize = 6;
const _: () = assert!(MOST_ROWS <= MOST);

/// Full (bidirectional) attention of `rows` rows over themselves, for SigLIP and the VQ coder's blocks: `q`, `k`, `v`
/// rows of `heads * head_dim`, `out` row-major.
///
/// # Panics
/// If shapes differ.
#[allow(clippy::too_many_arguments)]
pub fn attention_full(
    pool: &Pool,
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    rows: usize,
    heads: usize,
    head_dim: usize,
    out: &mut [f32],
) {
    let all = heads * head_dim;
    assert!(out.len() == rows * all, "attention_full: shapes differ");
    assert!(q.holds(rows, all) && k.holds(rows, all) && v.holds(rows, all), "attention_full: q, k or v is too short");
    let (isa, scale) = (isa(), 1.0 / (head_dim as f32).sqrt());
    let (padded, width) = (rows.next_multiple_of(PANEL), head_dim.next_multiple_of(PANEL));
    let to = Shards(out.as_mut_ptr());
    PANELS.with_borrow_mut(|panels| {
        let panels = panels.reserve(heads * padded * (head_dim + width));
        let (keys, values) = panels.split_at_mut(heads * padded * head_dim);
        let (to_keys, to_values) = (Shards(keys.as_mut_ptr()), Shards(values.as_mut_ptr()));
        pool.run(heads * padded / PANEL, |task| {
            let (at, panel) = (task / (padded / PANEL), task % (padded / PANEL));
            let count = PANEL.min(rows - panel * PANEL);
            let from = k.row(panel * PANEL, all)[at * head_dim..].as_ptr();
            // SAFETY: `count` rows of k lie from there; each task writes its own panel of keys and rows of values.
            unsafe {
                let to = to_keys.part(at * padded * head_dim + panel * PANEL * head_dim, PANEL * head_dim);
                transpose(isa, from, k.stride, count, PANEL, head_dim, to.as_mut_ptr());
                for row in panel * PANEL..panel * PANEL + count {
                    for (part, from) in v.row(row, all)[at * head_dim..][..head_dim].chunks(PANEL).enumerate() {
                        let at = at * padded * width + (part * padded + row) * PANEL;
                        to_values.part(at, from.len()).copy_from_slice(from);
                    }
                }
            }
        });
        let groups = rows.div_ceil(MOST_ROWS);
        let per = groups.div_ceil((pool.threads() * 8).div_ceil(heads));
        let tasks = groups.div_ceil(per);
        pool.run(heads * tasks, |task| {
            let (at, first) = (task / tasks, task % tasks * per);
            let keys = Keys {
                keys: to_keys.ptr().wrapping_add(at * padded * head_dim).cast(),
                values: to_values.ptr().wrapping_add(at * padded * width).cast(),
                value_panel: padded * PANEL * 4,
                dim: head_dim,
                bf16: false,
            };
            SCRATCH.with_borrow_mut(|scratch| {
                let scratch = scratch.reserve(Queries::scratch(head_dim, rows)).as_mut_ptr();
                for row in (first * MOST_ROWS..rows.min((first + per) * MOST_ROWS)).step_by(MOST_ROWS) {
                    let mut queries = Queries { rows: MOST_ROWS.min(rows - row), ..Queries::EMPTY };
                    for r in 0..queries.rows {
                        queries.q[r] = q.row(row + r, all)[at * head_dim..].as_ptr();
                        queries.out[r] = to.ptr().wrapping_add((row + r) * all + at * head_dim);
                        queries.lens[r] = rows;
                    }
                    // SAFETY: shapes were checked; each (row, head) is written by one task.
                    unsafe { head(isa, &queries, &keys, scale, scratch) };
                }
            });
        });
    });
}
