//! Pixels as rows of the product: each task arranges a chunk of them straight from the picture (padding, stride and
//! upsampling are only addresses) and walks all panels.

use std::cell::RefCell;

use super::Call;
use crate::aligned::AlignedBuf;
use crate::gemm::CHUNK;
use crate::gemm::arrange::{Source, arrange};
use crate::gemm::walk::{Job, walk};
use crate::isa::isa;
use crate::packed::Packed;
use crate::pool::{Pool, Shards};

thread_local! {
    static ARRANGED: RefCell<AlignedBuf<f32>> = const { RefCell::new(AlignedBuf::empty()) };
}

/// Output pixels as rows of `kh * kw * cin` inputs.
pub(super) struct Im2col<'a>(pub(super) &'a Call<'a>);

impl Source for Im2col<'_> {
    fn run(&self, row: usize, at: usize, most: usize, from: &mut [*const f32]) -> usize {
        let Call { spec, cin, ow, .. } = *self.0;
        let (tap, channel) = (at / cin, at % cin);
        let (ky, kx) = (tap / spec.kw, tap % spec.kw);
        let (mut oy, mut ox) = (row / ow, row % ow);
        for from in from.iter_mut() {
            let pixel = self.0.pixel(oy * spec.stride + ky, ox * spec.stride + kx);
            *from = pixel.wrapping_add(channel);
            ox += 1;
            if ox == ow {
                (oy, ox) = (oy + 1, 0);
            }
        }
        most.min(cin - channel)
    }
}

pub(super) fn run(pool: &Pool, call: &Call<'_>, weights: &Packed, out: &mut [f32]) {
    let (k, isa) = (weights.k(), isa());
    let rows = call.oh * call.ow;
    // Deep inputs take half a chunk, so that it still fits the second-level cache.
    let chunk = if k > 2304 { CHUNK / 2 } else { CHUNK };
    let source = Im2col(call);
    let pointer = |x: Option<&[f32]>, at: usize| x.map_or(std::ptr::null(), |x| x[at..].as_ptr());
    let to = Shards(out.as_mut_ptr());
    pool.run(rows.div_ceil(chunk), |task| {
        let row = task * chunk;
        let count = chunk.min(rows - row);
        ARRANGED.with_borrow_mut(|scratch| {
            let x = scratch.reserve(count * k).as_mut_ptr();
            let job = Job {
                x,
                rows: count,
                w: weights,
                bias: pointer(call.bias, 0),
                residual: pointer(call.residual, row * call.cout),
                out: to.ptr().wrapping_add(row * call.cout),
            };
            // SAFETY: shapes were checked; the scratch holds the chunk; tasks own disjoint rows of `out`.
            unsafe {
                arrange(isa, &source, row, count, k, x);
                walk(isa, &job, 0, weights.panels());
            }
        });
    });
}
