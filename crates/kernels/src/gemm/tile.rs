//! The inner loop: `R` rows times up to 32 outputs, accumulators in registers, one step of `k` at a time.

use super::BEYOND;
use crate::packed::PANEL;
use crate::simd::Lanes;

/// How one step (32 outputs at one `k`) is stored.
pub(crate) trait Step {
    /// Bytes from one step to the next.
    const BYTES: usize;
    /// Vectors `pair` and `pair + 16 / N` of the step at `step`.
    ///
    /// # Safety
    /// As [`Lanes`]; `step` is valid for `BYTES`.
    unsafe fn pair<L: Lanes>(step: *const u8, pair: usize) -> (L, L);
}

/// 32 floats.
pub(crate) struct F32Step;
/// 16 u32 of two bf16.
pub(crate) struct Bf16Step;

impl Step for F32Step {
    const BYTES: usize = 4 * PANEL;
    #[inline(always)]
    unsafe fn pair<L: Lanes>(step: *const u8, pair: usize) -> (L, L) {
        let step = step.cast::<f32>();
        // SAFETY: both vectors lie inside the step.
        unsafe { (L::load(step.add(pair * L::N)), L::load(step.add(pair * L::N + PANEL / 2))) }
    }
}

impl Step for Bf16Step {
    const BYTES: usize = 2 * PANEL;
    #[inline(always)]
    unsafe fn pair<L: Lanes>(step: *const u8, pair: usize) -> (L, L) {
        // SAFETY: the 2 N halves lie inside the step.
        unsafe { L::bf16_pair(step.cast::<u16>().add(pair * 2 * L::N)) }
    }
}

/// What a tile reads and writes. Row `r` of `x` is at `x + r * x_row`, one float per step; in packed tiles the `R`
/// values of a step lie side by side. `out` rows lie `out_row` apart and have 32 lanes.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    pub(crate) x: *const f32,
    pub(crate) x_row: usize,
    pub(crate) w: *const u8,
    pub(crate) k: usize,
    pub(crate) out: *mut f32,
    pub(crate) out_row: usize,
    /// Where the chains continue from, rows `partial_row` apart; null: they start at 0.
    pub(crate) partial: *const f32,
    pub(crate) partial_row: usize,
    /// 32 values added after the last step, or null.
    pub(crate) bias: *const f32,
    /// Rows like `out`, added after the bias, or null.
    pub(crate) residual: *const f32,
    /// Where to prefetch from while computing; need not be valid.
    pub(crate) fetch: *const u8,
    /// Bytes `fetch` moves on at each step.
    pub(crate) fetch_step: usize,
}

/// Stand-in for a tile whose panel is cut by the number of outputs: 32 whole lanes here, `lanes` of them copied back.
pub(crate) struct Cut {
    out: [f32; MOST * PANEL],
    residual: [f32; MOST * PANEL],
    bias: [f32; PANEL],
    lanes: usize,
}

impl Cut {
    pub(crate) fn new(lanes: usize) -> Self {
        Self { out: [0.0; MOST * PANEL], residual: [0.0; MOST * PANEL], bias: [0.0; PANEL], lanes }
    }

    /// A copy of `tile` that works in here.
    ///
    /// # Safety
    /// `tile`'s pointers are valid for `rows` rows of `lanes` lanes.
    pub(crate) unsafe fn enter(&mut self, tile: &Tile, rows: usize) -> Tile {
        let lanes = self.lanes;
        let mut inner = *tile;
        // SAFETY: by the contract; the buffers here hold MOST rows of a whole panel.
        unsafe {
            if !tile.residual.is_null() {
                for row in 0..rows {
                    let to = self.residual.as_mut_ptr().add(row * PANEL);
                    std::ptr::copy_nonoverlapping(tile.residual.add(row * tile.out_row), to, lanes);
                }
                inner.residual = self.residual.as_ptr();
            }
            if !tile.bias.is_null() {
                std::ptr::copy_nonoverlapping(tile.bias, self.bias.as_mut_ptr(), lanes);
                inner.bias = self.bias.as_ptr();
            }
        }
        (inner.out, inner.out_row) = (self.out.as_mut_ptr(), PANEL);
        inner
    }

    /// Copies the results to where `tile` wanted them.
    ///
    /// # Safety
    /// As [`enter`](Self::enter).
    pub(crate) unsafe fn leave(&self, tile: &Tile, rows: usize) {
        for (row, from) in self.out.chunks_exact(PANEL).take(rows).enumerate() {
            // SAFETY: by the contract.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), tile.out.add(row * tile.out_row), self.lanes) };
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;
/// Most rows any tile has.
pub(crate) const MOST: usize = 14;

/// Runs `P` pairs of vectors from `pair` on for `R` rows.
///
/// # Safety
/// As [`Lanes`], and everything `tile` names is valid for the shapes.
#[inline(always)]
unsafe fn run<L: Lanes, W: Step, const R: usize, const P: usize, const PACKED: bool>(tile: &Tile, pair: usize) {
    let half = PANEL / 2 / L::N;
    let lane = |r: usize, p: usize, h: usize| r * tile.out_row + (pair + p + h * half) * L::N;
    // SAFETY: by the contract.
    unsafe {
        let mut acc = [[[L::zero(); 2]; P]; R];
        if !tile.partial.is_null() {
            for r in 0..R {
                for p in 0..P {
                    for h in 0..2 {
                        acc[r][p][h] = L::load(tile.partial.add(r * tile.partial_row + lane(0, p, h)));
                    }
                }
            }
        }
        let mut w = tile.w;
        let mut x = tile.x;
        let mut fetch = tile.fetch;
        for _ in 0..tile.k {
            L::prefetch(fetch);
            L::prefetch_far(fetch.wrapping_add(BEYOND));
            if W::BYTES > LINE && !PACKED {
                L::prefetch(fetch.wrapping_add(LINE));
                L::prefetch_far(fetch.wrapping_add(LINE + BEYOND));
            }
            fetch = fetch.wrapping_add(tile.fetch_step);
            for p in 0..P {
                let (low, high) = W::pair::<L>(w, pair + p);
                // Splats are loaded again for each pair: kept, they would take the registers of the chains.
                let x = if PACKED && P > L::NARROW { L::anew(x) } else { x };
                for r in 0..R {
                    let value = L::splat(if PACKED { x.add(r) } else { x.add(r * tile.x_row) });
                    acc[r][p][0] = acc[r][p][0].fma(value, low);
                    acc[r][p][1] = acc[r][p][1].fma(value, high);
                }
            }
            w = w.add(W::BYTES);
            x = x.add(if PACKED { R } else { 1 });
        }
        // One plain loop each: whole in registers only if every index is a constant.
        if !tile.bias.is_null() {
            for r in 0..R {
                for p in 0..P {
                    for h in 0..2 {
                        acc[r][p][h] = acc[r][p][h].add(L::load(tile.bias.add(lane(0, p, h))));
                    }
                }
            }
        }
        if !tile.residual.is_null() {
            for r in 0..R {
                for p in 0..P {
                    for h in 0..2 {
                        acc[r][p][h] = acc[r][p][h].add(L::load(tile.residual.add(lane(r, p, h))));
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                for h in 0..2 {
                    acc[r][p][h].store(tile.out.add(lane(r, p, h)));
                }
            }
        }
    }
}

/// All 32 outputs for `rows <= L::WIDE_ROWS` row-major rows in one pass over the steps.
///
/// # Safety
/// As [`Lanes`], and everything `tile` names is valid for the shapes.
#[inline(always)]
pub(crate) unsafe fn wide<L: Lanes, W: Step>(tile: &Tile, rows: usize) {
    // SAFETY: by the contract.
    unsafe {
        match PANEL / 2 / L::N {
            1 => rows_of::<L, W, 1, false>(tile, rows, 0),
            2 => rows_of::<L, W, 2, false>(tile, rows, 0),
            _ => rows_of::<L, W, 4, false>(tile, rows, 0),
        }
    }
}

/// How many rows make the largest group, and over how many pairs of vectors a pass of one goes. A group wants as many chains
/// under way as the multipliers have products (8 at least, and some to spare), and no more than there are registers. In AVX2
/// these numbers of rows would make groups of 3 or 4 with 6 or 8 chains; in groups of up to 3 with the whole panel they have 12
/// (measured with 8 rows: 0.77 of the FMA peak before, 0.92 now).
pub(crate) fn shape<L: Lanes>(rows: usize) -> (usize, usize) {
    match rows {
        3 | 7..=9 if L::LOW_ROWS > 0 => (L::LOW_ROWS, 2 * L::NARROW),
        _ => (L::ROWS, L::NARROW),
    }
}

/// All 32 outputs for a group of packed rows, in as many passes over the steps as `pairs` of each ask for.
///
/// # Safety
/// As [`Lanes`], and everything `tile` names is valid for the shapes; `rows` and `pairs` are as [`shape`] has them.
#[inline(always)]
pub(crate) unsafe fn narrow<L: Lanes, W: Step>(tile: &Tile, rows: usize, pairs: usize) {
    let all = PANEL / 2 / L::N;
    let mut again = *tile;
    again.fetch_step = tile.fetch_step / (all / pairs);
    for pair in (0..all).step_by(pairs) {
        // SAFETY: by the contract.
        unsafe { pass::<L, W>(&again, rows, pairs, pair) };
        again.fetch = again.fetch.wrapping_add(tile.k * again.fetch_step);
    }
}

/// Outputs of `pair` and the rest of its pass, over packed rows.
#[inline(always)]
unsafe fn pass<L: Lanes, W: Step>(tile: &Tile, rows: usize, pairs: usize, pair: usize) {
    // SAFETY: by the contract.
    unsafe {
        match pairs {
            1 if L::NARROW == 1 => rows_of::<L, W, 1, true>(tile, rows, pair),
            2 if L::NARROW == 2 => rows_of::<L, W, 2, true>(tile, rows, pair),
            2 if L::LOW_ROWS > 0 => low_rows_of::<L, W>(tile, rows),
            _ => unreachable!("passes of {pairs} pairs"),
        }
    }
}

/// As [`rows_of`], for the groups of few rows whose one pass has the whole panel.
#[inline(always)]
unsafe fn low_rows_of<L: Lanes, W: Step>(tile: &Tile, rows: usize) {
    // SAFETY: by the contract.
    unsafe {
        match rows {
            1 => run::<L, W, 1, 2, true>(tile, 0),
            2 => run::<L, W, 2, 2, true>(tile, 0),
            3 => run::<L, W, 3, 2, true>(tile, 0),
            _ => unreachable!("tile of {rows} rows"),
        }
    }
}

/// Picks the row count's own loop. Arms no instruction set can reach (P pairs of R rows beyond its registers) vanish.
#[inline(always)]
unsafe fn rows_of<L: Lanes, W: Step, const P: usize, const PACKED: bool>(tile: &Tile, rows: usize, pair: usize) {
    let most = if PACKED { L::ROWS } else { L::WIDE_ROWS };
    macro_rules! arms {
        ($($r:literal)*) => {
            match rows {
                $($r if $r <= most => run::<L, W, $r, P, PACKED>(tile, pair),)*
                _ => unreachable!("tile of {rows} rows"),
            }
        };
    }
    // SAFETY: by the contract.
    unsafe { arms!(1 2 3 4 5 6 7 8 9 10 11 12 13 14) }
}

/// Splits `rows` into the fewest groups of at most `most`, as equal as can be: returns (groups, rows of the first
/// groups, how many groups have that many); the others have one less.
pub(crate) fn split(rows: usize, most: usize) -> (usize, usize, usize) {
    let groups = rows.div_ceil(most);
    let large = rows.div_ceil(groups);
    (groups, large, groups - (large * groups - rows))
}
