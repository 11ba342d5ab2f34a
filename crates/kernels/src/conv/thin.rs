//! A few output channels (VQ's 128 -> 3): a panel of outputs would be nearly empty, so the roles change. 32 pixels are
//! the lanes and the channels' weights the rows of a tile: the same chains, the factors of each product swapped.

use std::cell::RefCell;

use super::Call;
use super::direct::Im2col;
use crate::aligned::AlignedBuf;
use crate::gemm::arrange::{Dense, Source, arrange, interleave};
use crate::gemm::tile::{self, F32Step, Tile, narrow, wide};
use crate::isa::isa;
use crate::packed::PANEL;
use crate::pool::{Pool, Shards};
use crate::simd::{Lanes, lanes_fn};

/// Most output channels taken here: the rows of one tile of the narrowest instruction set.
pub(super) const MOST: usize = 6;
const _: () = assert!(MOST <= tile::MOST);

thread_local! {
    static WEIGHTS: RefCell<AlignedBuf<f32>> = const { RefCell::new(AlignedBuf::empty()) };
    static PIXELS: RefCell<AlignedBuf<f32>> = const { RefCell::new(AlignedBuf::empty()) };
}

pub(super) fn run(pool: &Pool, call: &Call<'_>, rows: &[f32], out: &mut [f32]) {
    let isa = isa();
    let (cout, pixels) = (call.cout, call.oh * call.ow);
    let k = rows.len() / cout;
    WEIGHTS.with_borrow_mut(|scratch| {
        let weights = scratch.reserve(rows.len());
        // SAFETY: `rows` is cout rows of k, as many as the scratch holds.
        unsafe { arrange(isa, &Dense { x: rows.as_ptr(), k }, 0, cout, k, weights.as_mut_ptr()) };
        let weights = &*weights;
        let to = Shards(out.as_mut_ptr());
        let panels = pixels.div_ceil(PANEL);
        let per = panels.div_ceil(pool.threads() * 16);
        pool.run(panels.div_ceil(per), |task| {
            PIXELS.with_borrow_mut(|scratch| {
                let scratch = scratch.reserve(call.cin * PANEL).as_mut_ptr();
                for first in (task * per * PANEL..pixels.min((task + 1) * per * PANEL)).step_by(PANEL) {
                    let count = PANEL.min(pixels - first);
                    let mut sums = [0.0; MOST * PANEL];
                    // SAFETY: the pixels exist; scratch holds one tap of a panel, sums one tile.
                    unsafe { panel(isa, &Im2col(call), first, count, weights, cout, k, scratch, &mut sums) };
                    for pixel in 0..count {
                        let at = (first + pixel) * cout;
                        // SAFETY: tasks own disjoint pixels of `out`.
                        let out = unsafe { to.part(at, cout) };
                        for (channel, out) in out.iter_mut().enumerate() {
                            let mut sum = sums[channel * PANEL + pixel];
                            if let Some(bias) = call.bias {
                                sum += bias[channel];
                            }
                            if let Some(residual) = call.residual {
                                sum += residual[at + channel];
                            }
                            *out = sum;
                        }
                    }
                }
            });
        });
    });
}

lanes_fn! {
    /// Sums of `count` pixels from `first` on: `sums[channel * 32 + pixel]`, one tap's channels after the other.
    ///
    /// # Safety
    /// `weights` are arranged for this instruction set; `scratch` holds 32 values per channel of a tap.
    unsafe fn panel(
        source: &Im2col<'_>, first: usize, count: usize, weights: &[f32], cout: usize, k: usize, scratch: *mut f32,
        sums: &mut [f32; MOST * PANEL],
    ) = panel_with;
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn panel_with<L: Lanes>(
    source: &Im2col<'_>,
    first: usize,
    count: usize,
    weights: &[f32],
    cout: usize,
    k: usize,
    scratch: *mut f32,
    sums: &mut [f32; MOST * PANEL],
) {
    let single = cout <= L::WIDE_ROWS;
    let mut at = 0;
    while at < k {
        let mut from = [std::ptr::null(); PANEL];
        let len = source.run(first, at, k - at, &mut from[..count]);
        let whole = from[0];
        from[count..].fill(whole);
        // SAFETY: by the contract; a run never exceeds one tap.
        unsafe {
            interleave::<L>(&from, len, scratch);
            let out = sums.as_mut_ptr();
            let tile = Tile {
                x: weights.as_ptr().add(at * if single { 1 } else { cout }),
                x_row: k,
                w: scratch.cast_const().cast(),
                k: len,
                out,
                out_row: PANEL,
                partial: if at > 0 { out.cast_const() } else { std::ptr::null() },
                partial_row: PANEL,
                bias: std::ptr::null(),
                residual: std::ptr::null(),
                fetch: scratch.cast_const().cast(),
                fetch_step: 0,
            };
            if single {
                wide::<L, F32Step>(&tile, cout);
            } else {
                narrow::<L, F32Step>(&tile, cout, L::NARROW);
            }
        }
        at += len;
    }
}
