//! Winograd's F(4x4, 3x3) (Lavin and Gray 2015, section 4): tiles of 4x4 outputs from 6x6 inputs, 36 products per
//! channel pair instead of 144. Each of the 36 is one chain over the channels, the transforms a fixed sequence, so
//! results are exact in our sense but not the direct path's: VQ decode may use it, nothing whose bits select ids may.

use std::cell::RefCell;

use super::{Call, ConvSpec};
use crate::Error;
use crate::aligned::AlignedBuf;
use crate::gemm::arrange::{Dense, arrange};
use crate::gemm::walk::{Job, walk};
use crate::isa::isa;
use crate::packed::{Packed, WeightFormat};
use crate::pool::{Pool, Shards};
use crate::simd::{Lanes, lanes_fn};

/// Outputs along a tile's side, inputs along it, and points.
const OUT: usize = 4;
const IN: usize = 6;
const POINTS: usize = IN * IN;
/// Tiles done together.
const TILES: usize = 48;

/// Kernel transform: `G g G^T` evaluates a kernel at the points 0, 1, -1, 2, -2 and infinity.
const G: [[f64; 3]; IN] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

/// Whether this path takes a convolution: 3x3, stride 1, whole vectors of channels on both sides.
pub(super) fn fits(spec: &ConvSpec, cin: usize, cout: usize) -> bool {
    spec.kh == 3 && spec.kw == 3 && spec.stride == 1 && cin.is_multiple_of(16) && cout.is_multiple_of(16)
}

/// The 36 transformed kernels, each a `cout` x `cin` matrix, rounded once to f32.
pub(super) struct Kernels(Vec<Packed>);

impl Kernels {
    pub(super) fn new(cout: usize, cin: usize, oihw: &[f32]) -> Result<Self, Error> {
        let mut points = vec![vec![0.0_f32; cout * cin]; POINTS];
        for (pair, kernel) in oihw.chunks_exact(9).enumerate() {
            for (i, left) in G.iter().enumerate() {
                for (j, right) in G.iter().enumerate() {
                    let mut sum = 0.0;
                    for (y, left) in left.iter().enumerate() {
                        for (x, right) in right.iter().enumerate() {
                            sum += left * right * f64::from(kernel[y * 3 + x]);
                        }
                    }
                    points[i * IN + j][pair] = sum as f32;
                }
            }
        }
        let pack = |rows: &Vec<f32>| Packed::pack_f32(cout, cin, rows, WeightFormat::F32);
        points.iter().map(pack).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(Packed::bytes).sum()
    }
}

thread_local! {
    static SCRATCH: RefCell<AlignedBuf<f32>> = const { RefCell::new(AlignedBuf::empty()) };
}

pub(super) fn run(pool: &Pool, call: &Call<'_>, kernels: &Kernels, out: &mut [f32]) {
    let isa = isa();
    let (cin, cout) = (call.cin, call.cout);
    let across = call.ow.div_ceil(OUT);
    let tiles = across * call.oh.div_ceil(OUT);
    let to = Shards(out.as_mut_ptr());
    pool.run(tiles.div_ceil(TILES), |task| {
        let first = task * TILES;
        let count = TILES.min(tiles - first);
        SCRATCH.with_borrow_mut(|scratch| {
            let scratch = scratch.reserve(TILES * (POINTS * (cin + cout) + cin));
            let (inputs, rest) = scratch.split_at_mut(TILES * POINTS * cin);
            let (sums, arranged) = rest.split_at_mut(TILES * POINTS * cout);
            for tile in 0..count {
                let (ty, tx) = ((first + tile) / across, (first + tile) % across);
                // SAFETY: the scratch holds `TILES` rows of each point.
                unsafe { transform_input(isa, call, ty * OUT, tx * OUT, &mut inputs[tile * cin..]) };
            }
            for (point, w) in kernels.0.iter().enumerate() {
                let source = Dense { x: inputs[point * TILES * cin..].as_ptr(), k: cin };
                let null = std::ptr::null();
                let out = sums[point * TILES * cout..].as_mut_ptr();
                let job = Job { x: arranged.as_ptr(), rows: count, w, bias: null, residual: null, out };
                // SAFETY: `count` rows of cin and of cout lie at these places of the scratch.
                unsafe {
                    arrange(isa, &source, 0, count, cin, arranged.as_mut_ptr());
                    walk(isa, &job, 0, w.panels());
                }
            }
            for tile in 0..count {
                let (ty, tx) = ((first + tile) / across, (first + tile) % across);
                // SAFETY: tasks own disjoint tiles of `out`.
                unsafe { transform_output(isa, call, ty * OUT, tx * OUT, &sums[tile * cout..], to.ptr()) };
            }
        });
    });
}

lanes_fn! {
    /// `B^T d B` of the 6x6 inputs of the tile whose first output is (`y`, `x`): point `p` of channel `c` goes to
    /// `to[p * TILES * cin + c]`.
    ///
    /// # Safety
    /// `to` holds that much.
    unsafe fn transform_input(call: &Call<'_>, y: usize, x: usize, to: &mut [f32]) = transform_input_with;
}

#[inline(always)]
unsafe fn transform_input_with<L: Lanes>(call: &Call<'_>, y: usize, x: usize, to: &mut [f32]) {
    let mut from = [[call.zeros.as_ptr(); IN]; IN];
    for (dy, row) in from.iter_mut().enumerate() {
        for (dx, from) in row.iter_mut().enumerate() {
            *from = call.pixel(y + dy, x + dx);
        }
    }
    for channel in (0..call.cin).step_by(L::N) {
        // SAFETY: pixels hold cin values; `to` by the contract.
        unsafe {
            let mut half = [[L::zero(); IN]; IN];
            for i in 0..IN {
                let mut column = [L::zero(); IN];
                for j in 0..IN {
                    column[j] = L::load(from[j][i].add(channel));
                }
                let column = input_line(column);
                for j in 0..IN {
                    half[j][i] = column[j];
                }
            }
            for j in 0..IN {
                let line = input_line(half[j]);
                for i in 0..IN {
                    line[i].store(to.as_mut_ptr().add((j * IN + i) * TILES * call.cin + channel));
                }
            }
        }
    }
}

/// One line of `B^T`.
#[inline(always)]
unsafe fn input_line<L: Lanes>(d: [L; IN]) -> [L; IN] {
    // SAFETY: by the caller's contract.
    unsafe {
        let (two, four, five) = (L::splat(&2.0), L::splat(&4.0), L::splat(&-5.0));
        let minus_four = L::splat(&-4.0);
        let even = d[4].fma(minus_four, d[2]);
        let odd = d[3].fma(minus_four, d[1]);
        let near = d[4].sub(d[2]);
        let twice = d[3].sub(d[1]).mul(two);
        [
            d[4].fma(five, d[2]).fma(four, d[0]),
            even.add(odd),
            even.sub(odd),
            near.add(twice),
            near.sub(twice),
            d[5].fma(five, d[3]).fma(four, d[1]),
        ]
    }
}

lanes_fn! {
    /// `A^T m A` of one tile's 36 sums, point `p` of channel `c` at `from[p * TILES * cout + c]`, plus bias and residual,
    /// to the tile's outputs that lie inside the picture.
    ///
    /// # Safety
    /// `from` and `out` hold that much; nobody else writes this tile.
    unsafe fn transform_output(call: &Call<'_>, y: usize, x: usize, from: &[f32], out: *mut f32) = transform_output_with;
}

#[inline(always)]
unsafe fn transform_output_with<L: Lanes>(call: &Call<'_>, y: usize, x: usize, from: &[f32], out: *mut f32) {
    let cout = call.cout;
    for channel in (0..cout).step_by(L::N) {
        // SAFETY: by the contract.
        unsafe {
            let mut half = [[L::zero(); IN]; OUT];
            for i in 0..IN {
                let mut column = [L::zero(); IN];
                for j in 0..IN {
                    column[j] = L::load(from.as_ptr().add((j * IN + i) * TILES * cout + channel));
                }
                let column = output_line(column);
                for j in 0..OUT {
                    half[j][i] = column[j];
                }
            }
            for j in 0..OUT.min(call.oh - y) {
                let line = output_line(half[j]);
                for i in 0..OUT.min(call.ow - x) {
                    let at = ((y + j) * call.ow + x + i) * cout + channel;
                    let mut value = line[i];
                    if let Some(bias) = call.bias {
                        value = value.add(L::load(bias.as_ptr().add(channel)));
                    }
                    if let Some(residual) = call.residual {
                        value = value.add(L::load(residual.as_ptr().add(at)));
                    }
                    value.store(out.add(at));
                }
            }
        }
    }
}

/// One line of `A^T`.
#[inline(always)]
unsafe fn output_line<L: Lanes>(m: [L; IN]) -> [L; OUT] {
    // SAFETY: by the caller's contract.
    unsafe {
        let (two, four, eight) = (L::splat(&2.0), L::splat(&4.0), L::splat(&8.0));
        let (sum, difference) = (m[1].add(m[2]), m[1].sub(m[2]));
        let (sum2, difference2) = (m[3].add(m[4]), m[3].sub(m[4]));
        [
            m[0].add(sum).add(sum2),
            difference.fma(two, difference2),
            sum.fma(four, sum2),
            difference.fma(eight, difference2).add(m[5]),
        ]
    }
}
