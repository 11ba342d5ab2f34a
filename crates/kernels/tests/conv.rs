//! Convolutions against plain loops, bit for bit; Winograd against itself bit for bit and against direct closely.
#![allow(clippy::unwrap_used)]

mod common;

use common::{everywhere, same_bits, values};
use janus_kernels::{ConvSpec, PackedConv, Pad, Pool, WeightFormat, conv2d};
use proptest::prelude::*;

struct Case {
    h: usize,
    w: usize,
    cin: usize,
    cout: usize,
    spec: ConvSpec,
}

impl Case {
    fn input(&self) -> Vec<f32> {
        values(11, self.h * self.w * self.cin)
    }

    fn weights(&self) -> Vec<f32> {
        values(12, self.cout * self.cin * self.spec.kh * self.spec.kw)
    }

    fn packed(&self) -> PackedConv {
        PackedConv::pack_oihw(self.cout, self.cin, self.spec, &self.weights(), WeightFormat::F32).unwrap()
    }

    fn residual(&self) -> Vec<f32> {
        let (oh, ow) = self.spec.out_size(self.h, self.w);
        values(13, oh * ow * self.cout)
    }

    /// One chain over (ky, kx, channel), then the bias, then the residual.
    fn oracle(&self) -> Vec<f32> {
        let Case { h, w, cin, cout, spec } = *self;
        let (x, weights, bias, residual) = (self.input(), self.weights(), values(14, cout), self.residual());
        let scale = if spec.upsample2x { 2 } else { 1 };
        let (oh, ow) = spec.out_size(h, w);
        let mut out = Vec::new();
        for (oy, ox, o) in (0..oh * ow * cout).map(|i| (i / cout / ow, i / cout % ow, i % cout)) {
            let mut sum = 0.0_f32;
            for (ky, kx) in (0..spec.kh * spec.kw).map(|i| (i / spec.kw, i % spec.kw)) {
                let y = (oy * spec.stride + ky) as isize - spec.pad.top as isize;
                let x_ = (ox * spec.stride + kx) as isize - spec.pad.left as isize;
                let inside = y >= 0 && x_ >= 0 && (y as usize) < h * scale && (x_ as usize) < w * scale;
                for c in 0..cin {
                    let at = if inside { (y as usize / scale * w + x_ as usize / scale) * cin + c } else { 0 };
                    let value = if inside { x[at] } else { 0.0 };
                    sum = value.mul_add(weights[((o * cin + c) * spec.kh + ky) * spec.kw + kx], sum);
                }
            }
            out.push(sum + bias[o] + residual[out.len()]);
        }
        out
    }

    fn run(&self, pool: &Pool, packed: &PackedConv) -> Vec<f32> {
        let (oh, ow) = self.spec.out_size(self.h, self.w);
        let mut out = vec![f32::NAN; oh * ow * self.cout];
        let (bias, residual) = (values(14, self.cout), self.residual());
        conv2d(pool, &self.input(), self.h, self.w, packed, Some(&bias), Some(&residual), &mut out);
        out
    }

    fn check(&self) {
        let (packed, expected) = (self.packed(), self.oracle());
        everywhere(|isa, pool| {
            let (h, w, cin, cout) = (self.h, self.w, self.cin, self.cout);
            same_bits(&self.run(pool, &packed), &expected)
                .unwrap_or_else(|error| panic!("{isa:?} {h} x {w}, {cin} -> {cout}, {:?}: {error}", self.spec));
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn every_geometry_gives_the_oracles_bits(
        h in 3_usize..12, w in 3_usize..12, cin in 1_usize..20, cout in 1_usize..40, kernel in 1_usize..4,
        stride in 1_usize..3, pad in 0_usize..2, upsample2x: bool,
    ) {
        let spec = ConvSpec { kh: kernel, kw: kernel, stride, pad: Pad::all(pad), upsample2x, winograd: false };
        Case { h, w, cin, cout, spec }.check();
    }
}

#[test]
fn the_models_geometries_give_the_oracles_bits() {
    let down = ConvSpec { stride: 2, pad: Pad::BOTTOM_RIGHT, ..ConvSpec::SAME_3X3 };
    let patches = ConvSpec { kh: 4, kw: 4, stride: 4, pad: Pad::all(0), ..ConvSpec::SAME_3X3 };
    Case { h: 13, w: 9, cin: 33, cout: 3, spec: ConvSpec::SAME_3X3 }.check();
    Case { h: 8, w: 10, cin: 16, cout: 32, spec: down }.check();
    Case { h: 12, w: 12, cin: 3, cout: 40, spec: patches }.check();
    Case { h: 12, w: 11, cin: 48, cout: 64, spec: ConvSpec { upsample2x: true, ..ConvSpec::SAME_3X3 } }.check();
    Case { h: 5, w: 5, cin: 70, cout: 33, spec: ConvSpec::POINTWISE }.check();
    assert_eq!(down.out_size(384, 384), (192, 192));
}

#[test]
fn winograd_is_close_to_direct_and_the_same_everywhere() {
    for (h, w, upsample2x) in [(12, 16, false), (13, 9, false), (30, 7, true)] {
        let spec = ConvSpec { winograd: true, upsample2x, ..ConvSpec::SAME_3X3 };
        let case = Case { h, w, cin: 32, cout: 48, spec };
        let (packed, direct) = (case.packed(), case.oracle());
        let mut first: Option<Vec<f32>> = None;
        everywhere(|isa, pool| {
            let out = case.run(pool, &packed);
            let first = first.get_or_insert_with(|| out.clone());
            same_bits(&out, first).unwrap_or_else(|error| panic!("{isa:?} {h} x {w}: {error}"));
        });
        let size = direct.iter().map(|x| x * x).sum::<f32>().sqrt();
        let off = first.unwrap().iter().zip(&direct).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
        assert!(off / size < 3e-6, "relative error {}", off / size);
    }
}
