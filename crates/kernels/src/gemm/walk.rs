//! All panels of a weight over up to [`CHUNK`](super::CHUNK) arranged rows. With few rows this is a walk through memory
//! at its own speed, each weight read once; with many, the panel's block and the rows stay in cache and arithmetic is
//! the limit. Weights are widened in registers either way.

use std::mem::MaybeUninit;

use super::tile::{Bf16Step, Cut, F32Step, Step, Tile, narrow, shape, split, wide};
use super::{AHEAD, CHUNK};
use crate::isa::widens_first;
use crate::packed::{PANEL, Packed, WeightFormat};
use crate::simd::{Lanes, lanes_fn};

/// Steps of `k` done for all rows before the next when there are several groups of rows, or one: a block of weights and
/// the next one, being prefetched, stay in the first-level cache.
const BLOCK_K: (usize, usize) = (128, 64);

/// From so many groups of rows on a block of bf16 weights is widened once for all of them, on CPUs that gain by it.
const WIDEN: usize = 3;

/// What a walk keeps between blocks of `k`, in the first-level cache: rows of the outputs lie too regularly far apart for
/// it. Alignment keeps vectors within lines.
#[repr(align(64))]
struct Kept {
    /// The chains so far: 32 lanes a row.
    partial: [MaybeUninit<f32>; CHUNK * PANEL],
    /// A block of weights as floats.
    block: [MaybeUninit<f32>; BLOCK_K.0 * PANEL],
}

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
    let k = job.w.k();
    let (most, pairs) = shape::<L>(job.rows);
    let (groups, _, _) = split(job.rows, most);
    let single = job.rows <= L::WIDE_ROWS;
    // Also one pass: a group that fits the registers with a whole panel.
    let once = single || (groups == 1 && PANEL / 2 / L::N == pairs);
    let block = match groups {
        _ if once => k.max(1),
        1 => BLOCK_K.1,
        _ => BLOCK_K.0,
    };
    // Groups of few rows want every register for their chains, and few are widened for often enough.
    let widens = W::BYTES < F32Step::BYTES && groups >= WIDEN && pairs == L::NARROW && widens_first();
    let mut kept = MaybeUninit::<Kept>::uninit();
    // SAFETY: only addresses are taken; both parts are written before they are read.
    let (partial, widened) = unsafe {
        let kept = kept.as_mut_ptr();
        ((&raw mut (*kept).partial).cast::<f32>(), (&raw mut (*kept).block).cast::<f32>())
    };
    for index in first..last {
        let weights = job.w.panel(index).as_ptr();
        for start in (0..k.max(1)).step_by(block) {
            let steps = block.min(k - start);
            // Each group's pass asks for its share of what comes next, so that memory is busy throughout.
            let fetch = weights.wrapping_add(start * W::BYTES + if once { AHEAD } else { block * W::BYTES });
            let part = Part { index, start, steps, single, fetch, fetch_step: W::BYTES / groups, partial };
            // SAFETY: the part lies inside job's shapes; the widened block holds as many steps.
            unsafe {
                let weights = weights.add(start * W::BYTES);
                if widens {
                    widen::<L, W>(weights, steps, widened);
                    part_of::<L, F32Step>(job, &part, widened.cast_const().cast());
                } else {
                    part_of::<L, W>(job, &part, weights);
                }
            }
        }
    }
}

/// `steps` steps of `k` of one panel from `start` on.
struct Part {
    index: usize,
    start: usize,
    steps: usize,
    single: bool,
    fetch: *const u8,
    fetch_step: usize,
    partial: *mut f32,
}

/// All groups of rows over one part of the weights, which is at `weights`.
#[inline(always)]
unsafe fn part_of<L: Lanes, W: Step>(job: &Job<'_>, part: &Part, weights: *const u8) {
    let (n, k) = (job.w.n(), job.w.k());
    let (most, pairs) = shape::<L>(job.rows);
    let (groups, large, of_large) = split(job.rows, most);
    let offset = part.index * PANEL;
    let lanes = PANEL.min(n - offset);
    let null = std::ptr::null::<f32>();
    let done = part.start + part.steps == k;
    let (mut row, mut fetch) = (0, part.fetch);
    for group in 0..groups {
        let rows = if group < of_large { large } else { large - 1 };
        let at = row * n + offset;
        // SAFETY: rows and panel lie inside job's shapes.
        unsafe {
            let partial = part.partial.add(row * PANEL);
            let tile = Tile {
                x: job.x.add(row * k + part.start * if part.single { 1 } else { rows }),
                x_row: k,
                w: weights,
                k: part.steps,
                out: if done { job.out.add(at) } else { partial },
                out_row: if done { n } else { PANEL },
                partial: if part.start > 0 { partial } else { null },
                partial_row: PANEL,
                bias: if done && !job.bias.is_null() { job.bias.add(offset) } else { null },
                residual: if done && !job.residual.is_null() { job.residual.add(at) } else { null },
                fetch,
                fetch_step: part.fetch_step,
            };
            if lanes == PANEL || !done {
                either::<L, W>(&tile, rows, pairs, part.single);
            } else {
                let mut edge = Cut::new(lanes);
                either::<L, W>(&edge.enter(&tile, rows), rows, pairs, part.single);
                edge.leave(&tile, rows);
            }
        }
        row += rows;
        fetch = fetch.wrapping_add(part.steps * part.fetch_step);
    }
}

/// Writes `steps` steps at `weights` to `to` as floats.
#[inline(always)]
unsafe fn widen<L: Lanes, W: Step>(weights: *const u8, steps: usize, to: *mut f32) {
    let half = PANEL / 2 / L::N;
    for step in 0..steps {
        for pair in 0..half {
            // SAFETY: by the caller's contract.
            unsafe {
                let (low, high) = W::pair::<L>(weights.add(step * W::BYTES), pair);
                let to = to.add(step * PANEL + pair * L::N);
                low.store(to);
                high.store(to.add(PANEL / 2));
            }
        }
    }
}

#[inline(always)]
unsafe fn either<L: Lanes, W: Step>(tile: &Tile, rows: usize, pairs: usize, single: bool) {
    // SAFETY: forwarded.
    unsafe {
        if single {
            wide::<L, W>(tile, rows);
        } else {
            narrow::<L, W>(tile, rows, pairs);
        }
    }
}
