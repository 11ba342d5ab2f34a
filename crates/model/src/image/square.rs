//! The two ways a picture becomes square: scaled and padded for understanding, cropped for the VQ encoder.

use janus_spec::SizeRule;

use super::{Rgb8, resize_bicubic};

/// The sides a picture of `width` x `height` gets before padding: the long one `size`, the short one by the layout's
/// own rule and at least `min_size` (config key `min_size`; a very long picture is stretched a little).
///
/// Source: `VLMImageProcessor.resize` of the original repository (truncates `short / long * size`),
/// `JanusImageProcessor.resize` of transformers (rounds `short * (size / long)` half to even). The two differ by a
/// pixel in about a third of all pictures.
pub fn fitted_sides(width: usize, height: usize, size: usize, min_size: usize, rule: SizeRule) -> (usize, usize) {
    let long = width.max(height) as f64;
    let size = size as f64;
    let side = |side: usize| {
        let scaled = match rule {
            SizeRule::Truncate => side as f64 / long * size,
            SizeRule::HalfEven => (side as f64 * (size / long)).round_ties_even(),
        };
        (scaled as usize).max(min_size).max(1)
    };
    (side(width), side(height))
}

/// Understanding input: long side to `size` with Pillow's bicubic, then centred on a square of `background`, the
/// odd pixel of padding at the right or the bottom. The square's side is `size` (or `min_size` if that is larger).
pub fn fit_square(picture: &Rgb8, size: usize, min_size: usize, background: [u8; 3], rule: SizeRule) -> Rgb8 {
    let (width, height) = fitted_sides(picture.width, picture.height, size, min_size, rule);
    let scaled = resize_bicubic(picture, width, height);
    if width == height {
        return scaled;
    }
    let side = width.max(height);
    let (left, top) = ((side - width) / 2, (side - height) / 2);
    let mut square = Rgb8::filled(side, side, background);
    let target_rows = square.data.chunks_exact_mut(side * 3).skip(top);
    for (target, source) in target_rows.zip(scaled.data.chunks_exact(width * 3)) {
        target[left * 3..(left + width) * 3].copy_from_slice(source);
    }
    square
}

/// VQ input: the largest centred square (left and top offsets rounded down), then Pillow's bicubic to `size`.
pub fn crop_square(picture: &Rgb8, size: usize) -> Rgb8 {
    let side = picture.width.min(picture.height);
    let (left, top) = ((picture.width - side) / 2, (picture.height - side) / 2);
    let mut data = Vec::with_capacity(side * side * 3);
    for row in picture.data.chunks_exact(picture.width * 3).skip(top).take(side) {
        data.extend_from_slice(&row[left * 3..(left + side) * 3]);
    }
    resize_bicubic(&Rgb8 { width: side, height: side, data }, size, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_rules_differ_where_the_references_do() {
        let both = |w, h| [SizeRule::Truncate, SizeRule::HalfEven].map(|rule| fitted_sides(w, h, 384, 14, rule));
        assert_eq!(both(640, 480), [(384, 288); 2]);
        assert_eq!(both(131, 130), [(384, 381), (384, 381)]);
        assert_eq!(both(333, 500), [(255, 384), (256, 384)]);
        // Exactly half: 384 * 3 / 256 = 4.5 is below min_size; 384 * 11 / 256 = 16.5 goes to the even 16.
        assert_eq!(both(256, 11), [(384, 16); 2]);
        assert_eq!(both(256, 13), [(384, 19), (384, 20)]);
        assert_eq!(both(10_000, 1), [(384, 14); 2]);
    }

    #[test]
    fn padding_puts_the_odd_pixel_last() {
        let picture = Rgb8::filled(4, 1, [9, 9, 9]);
        let square = fit_square(&picture, 4, 1, [1, 2, 3], SizeRule::Truncate);
        let greys: Vec<bool> = (0..4).map(|y| square.pixel(0, y) == [9, 9, 9]).collect();
        assert_eq!(greys, [false, true, false, false]);
        assert_eq!(square.pixel(3, 3), [1, 2, 3]);
    }

    #[test]
    fn cropping_keeps_the_middle() {
        let picture = Rgb8 { width: 5, height: 2, data: (0..10).flat_map(|i| [i, 0, 0]).collect() };
        let reds: Vec<u8> = crop_square(&picture, 2).data.iter().step_by(3).copied().collect();
        assert_eq!(reds, [1, 2, 6, 7]);
    }
}
