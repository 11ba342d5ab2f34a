//! 2-D convolution over NHWC pictures as the same matrix product: each output one chain over (ky, kx, channel) in
//! that order, padding included as zeros. SigLIP's patch embedding and the VQ coder call it.
//!
//! * `direct`: pixels are rows, gathered while they are arranged.
//! * `thin`: a few output channels; pixels become the lanes.
//! * `winograd`: four times fewer multiplications in another (fixed) order, on request.

mod direct;
mod thin;
mod winograd;

use crate::Error;
use crate::packed::{Packed, PackedBuilder, WeightFormat};
use crate::pool::Pool;

/// Zero rows and columns around a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pad {
    /// Rows above.
    pub top: usize,
    /// Columns to the left.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Pad {
    /// The same on all sides.
    pub const fn all(size: usize) -> Self {
        Self { top: size, left: size, bottom: size, right: size }
    }

    /// VQ's downsampling: one row below, one column to the right.
    pub const BOTTOM_RIGHT: Self = Self { top: 0, left: 0, bottom: 1, right: 1 };
}

/// The geometry of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvSpec {
    /// Kernel height.
    pub kh: usize,
    /// Kernel width.
    pub kw: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Padding, applied after upsampling.
    pub pad: Pad,
    /// Double the picture (nearest neighbour) while reading it.
    pub upsample2x: bool,
    /// Winograd F(4x4, 3x3) in a fixed order: other bits than direct, so for VQ decode only. Needs a 3x3 kernel of
    /// stride 1; ignored for others.
    pub winograd: bool,
}

impl ConvSpec {
    /// A 3x3 kernel, stride 1, padding 1.
    pub const SAME_3X3: Self = Self { kh: 3, kw: 3, stride: 1, pad: Pad::all(1), upsample2x: false, winograd: false };
    /// A 1x1 kernel.
    pub const POINTWISE: Self = Self { kh: 1, kw: 1, stride: 1, pad: Pad::all(0), upsample2x: false, winograd: false };

    /// Output (height, width) for a picture of `h` x `w`.
    pub fn out_size(&self, h: usize, w: usize) -> (usize, usize) {
        let scale = if self.upsample2x { 2 } else { 1 };
        let side = |size: usize, before: usize, after: usize, kernel: usize| {
            (size * scale + before + after).saturating_sub(kernel) / self.stride + 1
        };
        (side(h, self.pad.top, self.pad.bottom, self.kh), side(w, self.pad.left, self.pad.right, self.kw))
    }
}

/// A convolution's weights, packed the way its geometry wants them.
pub struct PackedConv {
    spec: ConvSpec,
    cin: usize,
    cout: usize,
    weights: Weights,
    /// What padding reads.
    zeros: Vec<f32>,
}

enum Weights {
    /// A matrix of `cout` outputs and `kh * kw * cin` inputs.
    Direct(Packed),
    /// The same, row-major.
    Thin(Vec<f32>),
    /// Transformed kernels.
    Winograd(winograd::Kernels),
}

impl PackedConv {
    /// Packs weights in PyTorch's order `[cout, cin, kh, kw]`, from f32.
    ///
    /// # Errors
    /// [`Error::Shape`] if `weights` doesn't fit; [`Error::NotRepresentable`] for a quantised format, which
    /// convolutions don't take.
    pub fn pack_oihw(cout: usize, cin: usize, spec: ConvSpec, weights: &[f32], format: WeightFormat) -> Result<Self, Error> {
        let area = spec.kh * spec.kw;
        if weights.len() != cout * cin * area {
            return Err(Error::Shape { what: "conv weight", expected: cout * cin * area, got: weights.len() });
        }
        if matches!(format, WeightFormat::Q8 | WeightFormat::Q4) {
            return Err(Error::NotRepresentable { row: 0, format });
        }
        let weights = if spec.winograd && winograd::fits(&spec, cin, cout) {
            Weights::Winograd(winograd::Kernels::new(cout, cin, weights)?)
        } else {
            let mut rows = vec![0.0; weights.len()];
            for (weights, row) in weights.chunks_exact(area * cin).zip(rows.chunks_exact_mut(area * cin)) {
                for (channel, taps) in weights.chunks_exact(area).enumerate() {
                    for (tap, &value) in taps.iter().enumerate() {
                        row[tap * cin + channel] = value;
                    }
                }
            }
            if cout <= thin::MOST {
                Weights::Thin(rows)
            } else {
                let mut builder = PackedBuilder::new(cout, area * cin, format);
                rows.chunks_exact(area * cin).try_for_each(|row| builder.push_row_f32(row))?;
                Weights::Direct(builder.finish()?)
            }
        };
        Ok(Self { spec, cin, cout, weights, zeros: vec![0.0; cin] })
    }

    /// Geometry.
    pub fn spec(&self) -> &ConvSpec {
        &self.spec
    }

    /// Input channels.
    pub fn cin(&self) -> usize {
        self.cin
    }

    /// Output channels.
    pub fn cout(&self) -> usize {
        self.cout
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.weights {
            Weights::Direct(packed) => packed.bytes(),
            Weights::Thin(rows) => rows.len() * 4,
            Weights::Winograd(kernels) => kernels.bytes(),
        }
    }
}

/// One convolution under way: what every path needs.
#[derive(Clone, Copy)]
struct Call<'a> {
    x: &'a [f32],
    h: usize,
    w: usize,
    spec: ConvSpec,
    cin: usize,
    cout: usize,
    /// Output size.
    oh: usize,
    ow: usize,
    zeros: &'a [f32],
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
}

impl Call<'_> {
    /// The channels of the (upsampled, padded) input at (`y`, `x`), counted from the padding's corner.
    #[inline(always)]
    fn pixel(&self, y: usize, x: usize) -> *const f32 {
        let (y, x) = (y.wrapping_sub(self.spec.pad.top), x.wrapping_sub(self.spec.pad.left));
        let shift = usize::from(self.spec.upsample2x);
        if y < self.h << shift && x < self.w << shift {
            self.x[((y >> shift) * self.w + (x >> shift)) * self.cin..].as_ptr()
        } else {
            self.zeros.as_ptr()
        }
    }
}

/// Convolves `x` (`h * w * cin`, NHWC) into `out` (`out_size * cout`), adding `bias` per channel and then `residual`
/// (shaped like `out`) if given.
///
/// # Panics
/// If the shapes differ.
#[allow(clippy::too_many_arguments)]
pub fn conv2d(
    pool: &Pool,
    x: &[f32],
    h: usize,
    w: usize,
    conv: &PackedConv,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    out: &mut [f32],
) {
    let PackedConv { spec, cin, cout, ref zeros, .. } = *conv;
    let (oh, ow) = spec.out_size(h, w);
    assert!(x.len() == h * w * cin && out.len() == oh * ow * cout, "conv2d: shapes differ");
    assert!(residual.is_none_or(|residual| residual.len() == out.len()), "conv2d: residual shape");
    assert!(bias.is_none_or(|bias| bias.len() == cout), "conv2d: bias length");
    let call = Call { x, h, w, spec, cin, cout, oh, ow, zeros, bias, residual };
    match &conv.weights {
        Weights::Direct(packed) => direct::run(pool, &call, packed, out),
        Weights::Thin(rows) => thin::run(pool, &call, rows, out),
        Weights::Winograd(kernels) => winograd::run(pool, &call, kernels, out),
    }
}
