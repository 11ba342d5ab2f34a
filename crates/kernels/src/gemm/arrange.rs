//! Rows in the order tiles read them: groups of some rows ([`shape`]), the values of one step side by side.
//! So few rows that one pass over the weights does ([`Lanes::WIDE_ROWS`]) are used as they come.

use super::tile::{MOST, shape, split};
use crate::packed::PANEL;
use crate::simd::{Lanes, lanes_fn};

/// Where rows come from: a matrix, or a picture seen through a convolution.
pub(crate) trait Source: Sync {
    /// Points `from[r]` at input `at` of row `row + r` for each of `from` and returns how many inputs, at most `most`,
    /// lie side by side from there in all of them.
    fn run(&self, row: usize, at: usize, most: usize, from: &mut [*const f32]) -> usize;
}

/// Rows of a row-major matrix of `k` columns.
pub(crate) struct Dense {
    pub(crate) x: *const f32,
    pub(crate) k: usize,
}

// SAFETY: only read, and the matrix outlives the job.
unsafe impl Sync for Dense {}

impl Source for Dense {
    fn run(&self, row: usize, at: usize, most: usize, from: &mut [*const f32]) -> usize {
        for (r, from) in from.iter_mut().enumerate() {
            *from = self.x.wrapping_add((row + r) * self.k + at);
        }
        most
    }
}

lanes_fn! {
    /// Writes rows `row..row + rows` of `source`, `k` inputs each, to `to` in tile order.
    ///
    /// # Safety
    /// `source` has these rows and `to` holds `rows * k` values.
    pub(crate) unsafe fn arrange(source: &dyn Source, row: usize, rows: usize, k: usize, to: *mut f32) = arrange_with;
}

#[inline(always)]
unsafe fn arrange_with<L: Lanes>(source: &dyn Source, row: usize, rows: usize, k: usize, to: *mut f32) {
    let (groups, large, of_large) = if rows <= L::WIDE_ROWS { (rows, 1, rows) } else { split(rows, shape::<L>(rows).0) };
    let mut done = 0;
    for group in 0..groups {
        let size = if group < of_large { large } else { large - 1 };
        let mut from = [std::ptr::null(); MOST];
        let mut at = 0;
        while at < k {
            let len = source.run(row + done, at, k - at, &mut from[..size]);
            // SAFETY: the group's place in `to` is `size * k` values from `done * k` on.
            unsafe { interleave::<L>(&from[..size], len, to.add(done * k + at * size)) };
            at += len;
        }
        done += size;
    }
}

/// `to[i * rows + r] = from[r][i]` for `len` values of each row.
///
/// # Safety
/// As [`Lanes`]; each row holds `len` values and `to` as many for all.
#[inline(always)]
pub(crate) unsafe fn interleave<L: Lanes>(from: &[*const f32], len: usize, to: *mut f32) {
    let rows = from.len();
    let whole = if rows < 4 { 0 } else { len / 4 * 4 };
    // SAFETY: each row holds `len` floats and `to` holds `rows * len`.
    unsafe {
        if rows == 1 {
            return std::ptr::copy_nonoverlapping(from[0], to, len);
        }
        for i in (0..whole).step_by(4) {
            let mut r = 0;
            loop {
                let four = [from[r].add(i), from[r + 1].add(i), from[r + 2].add(i), from[r + 3].add(i)];
                L::transpose4(four, to.add(i * rows + r), rows);
                if r + 4 == rows {
                    break;
                }
                // The last four may overlap the ones before: the same values again.
                r = (r + 4).min(rows - 4);
            }
        }
        for i in whole..len {
            for (r, from) in from.iter().enumerate() {
                *to.add(i * rows + r) = *from.add(i);
            }
        }
    }
}

lanes_fn! {
    /// Transposes `into` rows of `len` values, of which `rows` lie `stride` apart from `from` on and the rest repeat the
    /// first: `to[i * into + r]` is value `i` of row `r`. `into` is at most 32, a multiple of 4.
    ///
    /// # Safety
    /// `rows` rows are valid at `from` and `into * len` values at `to`.
    pub(crate) unsafe fn transpose(
        from: *const f32, stride: usize, rows: usize, into: usize, len: usize, to: *mut f32,
    ) = transpose_with;
}

#[inline(always)]
unsafe fn transpose_with<L: Lanes>(from: *const f32, stride: usize, rows: usize, into: usize, len: usize, to: *mut f32) {
    let mut pointers = [from; PANEL];
    for (r, pointer) in pointers[..rows].iter_mut().enumerate() {
        *pointer = from.wrapping_add(r * stride);
    }
    // SAFETY: by the contract.
    unsafe { interleave::<L>(&pointers[..into], len, to) };
}
