//! One head of attention for a few rows that share keys: scores, softmax weights and the weighted sum of values, the two
//! products as register tiles.

use crate::gemm::AHEAD;
use crate::gemm::arrange::interleave;
use crate::gemm::tile::{Bf16Step, F32Step, MOST, Step, Tile, narrow, wide};
use crate::math;
use crate::packed::PANEL;
use crate::simd::{Lanes, lanes_fn};

/// Keys and values of one head in panels: keys as panels of 32 keys x `dim` steps, one after the other; values as panels
/// of 32 dimensions, steps by key, `value_panel` bytes apart.
#[derive(Clone, Copy)]
pub(crate) struct Keys {
    pub(crate) keys: *const u8,
    pub(crate) values: *const u8,
    pub(crate) value_panel: usize,
    /// Values per key, and keys a panel step apart.
    pub(crate) dim: usize,
    /// Whether steps are bf16 rather than f32.
    pub(crate) bf16: bool,
}

/// Up to [`MOST`] query rows; row `r` attends to the first `lens[r]` keys.
#[derive(Clone, Copy)]
pub(crate) struct Queries {
    pub(crate) q: [*const f32; MOST],
    pub(crate) out: [*mut f32; MOST],
    pub(crate) lens: [usize; MOST],
    pub(crate) rows: usize,
}

impl Queries {
    pub(crate) const EMPTY: Self =
        Self { q: [std::ptr::null(); MOST], out: [std::ptr::null_mut(); MOST], lens: [0; MOST], rows: 0 };

    fn longest(&self) -> usize {
        self.lens[..self.rows].iter().fold(0, |most, &len| most.max(len))
    }

    fn shortest(&self) -> usize {
        self.lens[..self.rows].iter().fold(usize::MAX, |least, &len| least.min(len))
    }

    /// Floats of scratch [`head`] needs for rows of `dim` values that see up to `keys` keys.
    pub(crate) fn scratch(dim: usize, keys: usize) -> usize {
        MOST * (2 * keys.next_multiple_of(PANEL) + 2 * dim.next_multiple_of(PANEL))
    }
}

lanes_fn! {
    /// Attention of `queries` over `keys`, times `scale` before the softmax.
    ///
    /// # Safety
    /// All pointers are valid for the shapes; `scratch` holds [`Queries::scratch`] floats.
    pub(crate) unsafe fn head(queries: &Queries, keys: &Keys, scale: f32, scratch: *mut f32) = head_with;
}

#[inline(always)]
unsafe fn head_with<L: Lanes>(queries: &Queries, keys: &Keys, scale: f32, scratch: *mut f32) {
    // SAFETY: forwarded.
    unsafe {
        if keys.bf16 {
            steps::<L, Bf16Step>(queries, keys, scale, scratch);
        } else {
            steps::<L, F32Step>(queries, keys, scale, scratch);
        }
    }
}

#[inline(always)]
unsafe fn steps<L: Lanes, W: Step>(queries: &Queries, keys: &Keys, scale: f32, scratch: *mut f32) {
    let (rows, dim) = (queries.rows, keys.dim);
    let (longest, shared) = (queries.longest(), queries.shortest());
    let padded = longest.next_multiple_of(PANEL);
    let width = dim.next_multiple_of(PANEL);
    let single = rows <= L::WIDE_ROWS;
    let null = std::ptr::null::<f32>();
    // SAFETY: the four parts lie in the scratch one after the other; shapes by the contract.
    unsafe {
        let scores = scratch;
        let weights = scores.add(MOST * padded);
        let query = weights.add(MOST * padded);
        let sums = query.add(MOST * width);
        if single {
            for r in 0..rows {
                std::ptr::copy_nonoverlapping(queries.q[r], query.add(r * dim), dim);
            }
        } else {
            interleave::<L>(&queries.q[..rows], dim, query);
        }
        let mut tile = Tile {
            x: query.cast_const(),
            x_row: dim,
            w: keys.keys,
            k: dim,
            out: scores,
            out_row: padded,
            partial: null,
            partial_row: 0,
            bias: null,
            residual: null,
            fetch: keys.keys.wrapping_add(AHEAD),
            fetch_step: W::BYTES,
        };
        for _ in 0..padded / PANEL {
            run::<L, W>(&tile, rows, single);
            tile.w = tile.w.wrapping_add(dim * W::BYTES);
            tile.fetch = tile.fetch.wrapping_add(dim * W::BYTES);
            tile.out = tile.out.wrapping_add(PANEL);
        }

        let mut totals = [0.0_f32; MOST];
        for r in 0..rows {
            let row = std::slice::from_raw_parts_mut(scores.add(r * padded), queries.lens[r]);
            totals[r] = weigh(row, scale);
        }

        // All rows over the keys they share, then each over the rest of its own.
        let x = if single {
            scores
        } else {
            let mut from = [null; MOST];
            for r in 0..rows {
                from[r] = scores.add(r * padded);
            }
            interleave::<L>(&from[..rows], shared, weights);
            weights
        };
        for panel in 0..width / PANEL {
            let w = keys.values.add(panel * keys.value_panel);
            let tile = Tile {
                x,
                x_row: padded,
                w,
                k: shared,
                out: sums.add(panel * PANEL),
                out_row: width,
                partial: null,
                partial_row: 0,
                bias: null,
                residual: null,
                fetch: w.wrapping_add(AHEAD),
                fetch_step: W::BYTES,
            };
            run::<L, W>(&tile, rows, single);
            for r in 0..rows {
                if queries.lens[r] > shared {
                    let rest = Tile {
                        x: scores.add(r * padded + shared),
                        w: w.add(shared * W::BYTES),
                        k: queries.lens[r] - shared,
                        out: sums.add(r * width + panel * PANEL),
                        partial: sums.add(r * width + panel * PANEL),
                        partial_row: width,
                        ..tile
                    };
                    wide::<L, W>(&rest, 1);
                }
            }
        }
        for r in 0..rows {
            let sums = std::slice::from_raw_parts(sums.add(r * width), dim);
            let out = std::slice::from_raw_parts_mut(queries.out[r], dim);
            for (out, &sum) in out.iter_mut().zip(sums) {
                *out = sum / totals[r];
            }
        }
    }
}

#[inline(always)]
unsafe fn run<L: Lanes, W: Step>(tile: &Tile, rows: usize, single: bool) {
    // SAFETY: forwarded.
    unsafe {
        if single {
            wide::<L, W>(tile, rows);
        } else {
            narrow::<L, W>(tile, rows, L::NARROW);
        }
    }
}

/// Turns raw scores into `exp(score * scale - largest)` and returns their sum.
#[inline(always)]
fn weigh(scores: &mut [f32], scale: f32) -> f32 {
    for score in &mut *scores {
        *score *= scale;
    }
    let largest = math::max(scores);
    for score in &mut *scores {
        *score = math::exp(*score - largest);
    }
    math::reduce16(scores, |sum, value| sum + value)
}
