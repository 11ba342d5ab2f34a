//! All panels of a weight over up to [`CHUNK`](super::CHUNK) arranged rows. With few rows this is a walk through memory
//! at its own speed, each weight read once; with many, the panel's block and the rows stay in cache and arithmetic is
//! the limit. Weights are widened in registers either way.

use super::AHEAD;
use super::tile::{Bf16Step, Cut, F32Step, Step, Tile, narrow, split, wide};
use crate::packed::{PANEL, Packed, WeightFormat};
use crate::simd::{Lanes, lanes_fn};

/// Steps of `k` done for all rows before the next when there are several groups of rows, or one: a block of weights and
/// the next one, being prefetched, stay in the first-level cache.
const BLOCK_K: (usize, usize) = (128, 64);

/// A product over `rows` rows in `x`, [arranged](super::arrange); `out` and `residual` row-major, `w.n()` long; `bias`
/// `w.n()` long. `bias` and `residual` may be null.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) x: *const f32,
    pub(crate) rows: usize,
    pub(crate) w: &'a Packed,
    pub(crate) bias: *const f32,
    pub(crate) residual: *const f32,
    pub(crate) out: *mut f32,
}

lanes_fn! {
    /// Computes outputs of panels `first..last` for all rows.
    ///
    /// # Safety
    /// `job`'s pointers are valid for its shapes and no other thread touches those outputs.
    pub(crate) unsafe fn walk(job: &Job<'_>, first: usize, last: usize) = walk_with;
}

#[inline(always)]
unsafe fn walk_with<L: Lanes>(job: &Job<'_>, first: usize, last: usize) {
    // SAFETY: forwarded.
    unsafe {
        match job.w.format() {
            WeightFormat::F32 => steps::<L, F32Step>(job, first, last),
            _ => steps::<L, Bf16Step>(job, first, last),
        }
    }
}

#[inline(always)]
unsafe fn steps<L: Lanes, W: Step>(job: &Job<'_>, first: usize, last: usize) {
    let (n, k) = (job.w.n(), job.w.k());
    let single = job.rows <= L::WIDE_ROWS;
    // Also one pass: a group that fits the registers with a whole panel.
    let once = single || (job.rows <= L::ROWS && PANEL / 2 / L::N == L::NARROW);
    let (groups, large, of_large) = split(job.rows, L::ROWS);
    let block = match groups {
        _ if once => k.max(1),
        1 => BLOCK_K.1,
        _ => BLOCK_K.0,
    };
    let null = std::ptr::null::<f32>();
    for index in first..last {
        let offset = index * PANEL;
        let lanes = PANEL.min(n - offset);
        let weights = job.w.panel(index).as_ptr();
        let mut start = 0;
        loop {
            let steps = block.min(k - start);
            let done = start + steps == k;
            // Each group's pass asks for its share of what comes next, so that memory is busy throughout.
            let fetch_step = W::BYTES / groups;
            let mut fetch = weights.wrapping_add(start * W::BYTES + if once { AHEAD } else { block * W::BYTES });
            let mut row = 0;
            for group in 0..groups {
                let rows = if group < of_large { large } else { large - 1 };
                let at = row * n + offset;
                // SAFETY: rows and panel lie inside job's shapes.
                unsafe {
                    let tile = Tile {
                        x: job.x.add(row * k + start * if single { 1 } else { rows }),
                        x_row: k,
                        w: weights.add(start * W::BYTES),
                        k: steps,
                        out: job.out.add(at),
                        out_row: n,
                        resume: start > 0,
                        bias: if done && !job.bias.is_null() { job.bias.add(offset) } else { null },
                        residual: if done && !job.residual.is_null() { job.residual.add(at) } else { null },
                        fetch,
                        fetch_step,
                    };
                    if lanes == PANEL {
                        either::<L, W>(&tile, rows, single);
                    } else {
                        let mut edge = Cut::new(lanes);
                        either::<L, W>(&edge.enter(&tile, rows), rows, single);
                        edge.leave(&tile, rows);
                    }
                }
                row += rows;
                fetch = fetch.wrapping_add(steps * fetch_step);
            }
            start += steps;
            if start >= k {
                break;
            }
        }
    }
}

#[inline(always)]
unsafe fn either<L: Lanes, W: Step>(tile: &Tile, rows: usize, single: bool) {
    // SAFETY: forwarded.
    unsafe {
        if single {
            wide::<L, W>(tile, rows);
        } else {
            narrow::<L, W>(tile, rows);
        }
    }
}
