//! The matrix product everything else leans on: `out = x W^T + bias`, each output one fused-multiply-add chain over
//! the inputs in order, whatever the number of rows, threads or the instruction set.

use std::cell::RefCell;

use crate::aligned::AlignedBuf;
use crate::gemm::CHUNK;
use crate::gemm::arrange::{Dense, arrange};
use crate::gemm::quant::{self, CODES, Codes};
use crate::gemm::walk::{Job, walk};
use crate::isa::isa;
use crate::packed::{PANEL, Packed, WeightFormat};
use crate::pool::{Pool, Shards};

/// Rows of the product a thread is calling for, as its format wants them. Grows to the largest product and stays.
struct Scratch {
    arranged: AlignedBuf<f32>,
    codes: AlignedBuf<u8>,
    scales: AlignedBuf<f32>,
    sums: AlignedBuf<i32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            arranged: AlignedBuf::empty(),
            codes: AlignedBuf::empty(),
            scales: AlignedBuf::empty(),
            sums: AlignedBuf::empty(),
        })
    };
}

/// `out[m, n] = sum over k of x[m, k] * w[n, k]`, plus `bias[n]` added last. Row-major `x` (`m * k`) and `out`
/// (`m * n`); `m` from 1 up. Float formats: one chain over `k` starting at 0. Quantised formats: `x` is quantised per
/// row and block (`Q8`: 16 bits, 16 inputs; `Q4`: 8 bits, 32 inputs), block sums are exact integers, and the chain runs over
/// the blocks.
///
/// # Panics
/// If the shapes differ.
pub fn linear(pool: &Pool, x: &[f32], w: &Packed, bias: Option<&[f32]>, out: &mut [f32]) {
    let rows = x.len() / w.k();
    assert!(x.len() == rows * w.k() && out.len() == rows * w.n(), "linear: shapes differ");
    assert!(bias.is_none_or(|bias| bias.len() == w.n()), "linear: bias length");
    if rows == 0 {
        return;
    }
    match w.format() {
        WeightFormat::F32 | WeightFormat::Bf16 => {
            SCRATCH.with_borrow_mut(|scratch| float(pool, x, rows, w, bias, out, scratch.arranged.reserve(x.len())));
        }
        WeightFormat::Q8 | WeightFormat::Q4 => {
            SCRATCH.with_borrow_mut(|scratch| quantised(pool, x, rows, w, bias, out, scratch));
        }
    }
}

/// A grid of row chunks and contiguous ranges of panels, several tasks per thread so that a late one costs little.
fn float(pool: &Pool, x: &[f32], rows: usize, w: &Packed, bias: Option<&[f32]>, out: &mut [f32], scratch: &mut [f32]) {
    let (n, k, isa) = (w.n(), w.k(), isa());
    let source = Dense { x: x.as_ptr(), k };
    let chunks = rows.div_ceil(CHUNK);
    let arranged = Shards(scratch.as_mut_ptr());
    pool.run(chunks, |chunk| {
        let row = chunk * CHUNK;
        let count = CHUNK.min(rows - row);
        // SAFETY: tasks write disjoint rows of the scratch, which holds them all.
        unsafe { arrange(isa, &source, row, count, k, arranged.part(row * k, count * k).as_mut_ptr()) };
    });
    let panels = w.panels();
    let per = panels.div_ceil((pool.threads() * 8).div_ceil(chunks));
    let ranges = panels.div_ceil(per);
    let to = Shards(out.as_mut_ptr());
    pool.run(chunks * ranges, |task| {
        let (row, first) = (task / ranges * CHUNK, task % ranges * per);
        let count = CHUNK.min(rows - row);
        // SAFETY: the chunk lies inside the arranged rows and inside `out`.
        unsafe {
            let job = Job {
                x: arranged.ptr().add(row * k),
                rows: count,
                w,
                bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
                residual: std::ptr::null(),
                out: to.ptr().add(row * n),
            };
            // Tasks own disjoint rows and panels of `out`.
            walk(isa, &job, first, (first + per).min(panels));
        }
    });
}

/// The same grid, over rows quantised first.
fn quantised(pool: &Pool, x: &[f32], rows: usize, w: &Packed, bias: Option<&[f32]>, out: &mut [f32], scratch: &mut Scratch) {
    let (n, k, isa) = (w.n(), w.k(), isa());
    let blocks = rows * k.div_ceil(quant::inputs(w.format()));
    let codes = Codes {
        codes: scratch.codes.reserve(blocks * CODES).as_mut_ptr(),
        scales: scratch.scales.reserve(blocks).as_mut_ptr(),
        sums: scratch.sums.reserve(blocks).as_mut_ptr(),
        rows,
    };
    pool.run(rows.div_ceil(8), |task| {
        for row in task * 8..rows.min((task + 1) * 8) {
            // SAFETY: the three parts hold all rows' blocks; each row is written by one task.
            unsafe { codes.quantise(w.format(), row, &x[row * k..(row + 1) * k]) };
        }
    });
    let panels = w.panels();
    let chunks = rows.div_ceil(CHUNK);
    let per = panels.div_ceil((pool.threads() * 8).div_ceil(chunks));
    let ranges = panels.div_ceil(per);
    let to = Shards(out.as_mut_ptr());
    pool.run(chunks * ranges, |task| {
        let (first, panel) = (task / ranges * CHUNK, task % ranges * per);
        let count = CHUNK.min(rows - first);
        let mut sums = [0.0; CHUNK * PANEL];
        // SAFETY: the chunk lies inside the quantised rows and inside `out`; tasks own disjoint rows and panels.
        unsafe {
            let job = quant::Job { codes, first, count, w, bias, out: to.ptr().add(first * n) };
            quant::walk(isa, &job, panel, (panel + per).min(panels), sums.as_mut_ptr());
        }
    });
}
