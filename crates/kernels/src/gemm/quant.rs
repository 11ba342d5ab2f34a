//! q4 and q8 weights with activations of 8 and 16 bits. A block of inputs (32 of q4, 16 of q8) is an exact integer dot
//! product, so its order and instructions don't matter; the chain over blocks, `sum = fma(dot, weight scale * row scale,
//! sum)`, is the canonical one. `linear` quantises the rows, then walks the panels.

mod dot;

use self::dot::Dot;
use super::{AHEAD, BEYOND};
use crate::isa::simd_fn;
use crate::math;
use crate::packed::{BLOCK, PANEL, Packed, Q4_BLOCK, Q8_BITS, Q8_BLOCK, Q8_INPUTS, Q8_LOW, SCALES, WeightFormat};
use crate::simd::lanes_fn;

/// Bytes of a block's codes: 32 of 8 bits for q4, 16 of 16 bits for q8.
pub(crate) const CODES: usize = 32;

/// Inputs of a block.
pub(crate) fn inputs(format: WeightFormat) -> usize {
    if format == WeightFormat::Q8 { Q8_INPUTS } else { BLOCK }
}

/// Quantised rows, block by block: codes, the scale, and the sum of the codes for each row.
#[derive(Clone, Copy)]
pub(crate) struct Codes {
    pub(crate) codes: *mut u8,
    pub(crate) scales: *mut f32,
    pub(crate) sums: *mut i32,
    pub(crate) rows: usize,
}

// SAFETY: tasks write disjoint rows while quantising and only read while walking.
unsafe impl Sync for Codes {}
// SAFETY: as above.
unsafe impl Send for Codes {}

impl Codes {
    /// Quantises `x`, row `row`: symmetric, to the nearest whole number, ties to even, of -127..=127 for q4 and of
    /// -32767..=32767 for q8; the last block is padded with zeros.
    ///
    /// # Safety
    /// The three parts hold `rows` rows of as many blocks; no other thread touches this row.
    pub(crate) unsafe fn quantise(&self, format: WeightFormat, row: usize, x: &[f32]) {
        for (block, x) in x.chunks(inputs(format)).enumerate() {
            let at = block * self.rows + row;
            let mut padded = [0.0; BLOCK];
            padded[..x.len()].copy_from_slice(x);
            // SAFETY: by the contract; codes are aligned to a line.
            unsafe {
                let codes = self.codes.add(at * CODES);
                (*self.scales.add(at), *self.sums.add(at)) = match format {
                    WeightFormat::Q8 => quantise_16(&padded, &mut *codes.cast()),
                    _ => quantise_8(&padded, &mut *codes.cast()),
                };
            }
        }
    }
}

/// Adding it leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

simd_fn! {
    fn quantise_8(x: &[f32; BLOCK], codes: &mut [i8; BLOCK]) -> (f32, i32) {
        let largest = math::largest(x);
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let mut sum = 0;
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (x * inverse + ROUND).to_bits() as i8;
            sum += i32::from(*code);
        }
        (largest / 127.0, sum)
    }
}

simd_fn! {
    fn quantise_16(x: &[f32; BLOCK], codes: &mut [i16; Q8_INPUTS]) -> (f32, i32) {
        let largest = math::largest(x);
        let inverse = if largest > 0.0 { 32767.0 / largest } else { 0.0 };
        let mut sum = 0;
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (x * inverse + ROUND).to_bits() as i16;
            sum += i32::from(*code);
        }
        (largest / 32767.0, sum)
    }
}

/// A product over rows `first..first + count` of `codes`; `out` row-major from the first of them, `w.n()` long.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) codes: Codes,
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) w: &'a Packed,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) out: *mut f32,
}

lanes_fn! {
    /// Computes outputs of panels `first..last` for all rows; `sums` is scratch for 32 floats a row.
    ///
    /// # Safety
    /// `job`'s pointers are valid for its shapes and no other thread touches those outputs.
    pub(crate) unsafe fn walk(job: &Job<'_>, first: usize, last: usize, sums: *mut f32) = walk_with;
}

#[inline(always)]
unsafe fn walk_with<L: Dot>(job: &Job<'_>, first: usize, last: usize, sums: *mut f32) {
    // SAFETY: forwarded.
    unsafe {
        match job.w.format() {
            WeightFormat::Q8 => panels::<L, true>(job, first, last, sums),
            _ => panels::<L, false>(job, first, last, sums),
        }
    }
}

#[inline(always)]
unsafe fn panels<L: Dot, const Q8: bool>(job: &Job<'_>, first: usize, last: usize, sums: *mut f32) {
    let size = if Q8 { Q8_BLOCK } else { Q4_BLOCK };
    let n = job.w.n();
    for index in first..last {
        let panel = job.w.panel(index);
        // SAFETY: by the contract.
        unsafe {
            std::ptr::write_bytes(sums, 0, job.count * PANEL);
            for (block, weights) in panel.chunks_exact(size).enumerate() {
                let mut row = 0;
                while row < job.count {
                    let rows = if job.count - row <= L::WIDE { job.count - row } else { L::TALL.min(job.count - row) };
                    let at = block * job.codes.rows + job.first + row;
                    let to = sums.add(row * PANEL);
                    // The first rows to touch a block ask for a later one; the others for what is here already.
                    let ahead = if row == 0 { AHEAD } else { 0 };
                    rows_of::<L, Q8>(weights.as_ptr(), &job.codes, at, rows, ahead, to);
                    row += rows;
                }
            }
            let lanes = PANEL.min(n - index * PANEL);
            for row in 0..job.count {
                let from = std::slice::from_raw_parts(sums.add(row * PANEL), lanes);
                let to = std::slice::from_raw_parts_mut(job.out.add(row * n + index * PANEL), lanes);
                match job.bias {
                    None => to.copy_from_slice(from),
                    Some(bias) => {
                        let bias = &bias[index * PANEL..][..lanes];
                        for ((to, &from), &bias) in to.iter_mut().zip(from).zip(bias) {
                            *to = from + bias;
                        }
                    }
                }
            }
        }
    }
}

/// One block for `rows` rows: whole panels for up to `L::WIDE` rows, two vectors at a time for up to `L::TALL`.
#[inline(always)]
unsafe fn rows_of<L: Dot, const Q8: bool>(
    block: *const u8,
    codes: &Codes,
    at: usize,
    rows: usize,
    ahead: usize,
    sums: *mut f32,
) {
    macro_rules! wide {
        ($($r:literal)*) => {
            match (rows, PANEL / L::N) {
                $(($r, 2) if $r <= L::WIDE => return tile::<L, $r, 2, Q8>(block, codes, at, 0, ahead, sums),)*
                $(($r, 4) if $r <= L::WIDE => return tile::<L, $r, 4, Q8>(block, codes, at, 0, ahead, sums),)*
                $(($r, 8) if $r <= L::WIDE => return tile::<L, $r, 8, Q8>(block, codes, at, 0, ahead, sums),)*
                _ => {}
            }
        };
    }
    macro_rules! tall {
        ($($r:literal)*) => {
            match rows {
                $($r if $r <= L::TALL && $r > L::WIDE => {
                    for vector in (0..PANEL / L::N).step_by(2) {
                        tile::<L, $r, 2, Q8>(block, codes, at, vector, ahead, sums);
                    }
                })*
                _ => unreachable!("tile of {rows} rows"),
            }
        };
    }
    // SAFETY: forwarded.
    unsafe {
        wide!(1 2 3 4 5 6 7 8);
        tall!(2 3 4);
    }
}

/// Asks for the line at `at`, and for one further on if this one is `ahead` itself.
#[inline(always)]
unsafe fn fetch<L: Dot>(at: *const u8, ahead: usize) {
    // SAFETY: forwarded.
    unsafe {
        L::prefetch(at);
        if ahead > 0 {
            L::prefetch_far(at.wrapping_add(BEYOND));
        }
    }
}

/// `R` rows times `V` vectors of outputs from `vector` on.
#[inline(always)]
unsafe fn tile<L: Dot, const R: usize, const V: usize, const Q8: bool>(
    block: *const u8,
    codes: &Codes,
    at: usize,
    vector: usize,
    ahead: usize,
    sums: *mut f32,
) {
    // SAFETY: by the contract of `walk`.
    unsafe {
        let x = codes.codes.add(at * CODES);
        let mut acc = [[L::start(); V]; R];
        fetch::<L>(block.wrapping_add(ahead), ahead);
        if Q8 {
            fetch::<L>(block.wrapping_add(ahead + Q8_BITS), ahead);
            let mut bits = [L::widen(block.add(Q8_BITS + vector * L::N * 2)); V];
            for v in 1..V {
                bits[v] = L::widen(block.add(Q8_BITS + (vector + v) * L::N * 2));
            }
            let low = block.add(Q8_LOW + vector * L::N * 2);
            for two in 0..Q8_INPUTS / 2 {
                for v in 0..V {
                    let at = (two * PANEL + v * L::N) * 2;
                    if v * L::N % 32 == 0 {
                        fetch::<L>(low.wrapping_add(ahead + at), ahead);
                    }
                    bits[v] = L::double(bits[v]);
                    let w = L::join(low.add(at), bits[v]);
                    for r in 0..R {
                        acc[r][v] = L::dot9(acc[r][v], w, x.add(r * CODES + two * 4).cast());
                    }
                }
            }
        } else {
            let weights = block.add(SCALES + vector * L::N * 4);
            for double in 0..BLOCK / 8 {
                for v in 0..V {
                    let at = (double * PANEL + v * L::N) * 4;
                    if v * L::N % 16 == 0 {
                        fetch::<L>(weights.wrapping_add(ahead + at), ahead);
                    }
                    let (low, high) = L::nibbles(weights.add(at));
                    for r in 0..R {
                        let x = x.add(r * CODES + double * 8).cast::<i8>();
                        acc[r][v] = L::dot(acc[r][v], low, x);
                        acc[r][v] = L::dot(acc[r][v], high, x.add(4));
                    }
                }
            }
        }
        for r in 0..R {
            let scale = L::splat(codes.scales.add(at + r));
            let sum = *codes.sums.add(at + r);
            for v in 0..V {
                let lane = (vector + v) * L::N;
                let dot = if Q8 { L::total9(acc[r][v], sum) } else { L::total(acc[r][v], sum) };
                let weight = L::bf16(block.cast::<u16>().add(lane));
                let to = sums.add(r * PANEL + lane);
                L::load(to).fma(dot, weight.mul(scale)).store(to);
            }
        }
    }
}
