//! Bytes to the model's floats and back, in the order of operations of the references.

use janus_spec::PreprocessSpec;

use super::{Error, Result, Rgb8};

/// The vision tower's input, `[height, width, 3]` row-major: `((byte * rescale_factor) - mean) / std`; without the
/// last two steps if the checkpoint says `do_normalize: false`. The product is taken in `f64` and rounded to `f32`, the
/// rest is `f32`: bit for bit the original processor and transformers' PIL one.
pub fn normalise(picture: &Rgb8, spec: &PreprocessSpec) -> Vec<f32> {
    let mut values = Vec::with_capacity(picture.data.len());
    for pixel in picture.data.chunks_exact(3) {
        for (channel, &byte) in pixel.iter().enumerate() {
            let value = (f64::from(byte) * spec.rescale_factor) as f32;
            values.push(match spec.do_normalize {
                true => (value - spec.mean[channel]) / spec.std[channel],
                false => value,
            });
        }
    }
    values
}

/// The VQ decoder's output, `[height, width, 3]` row-major with values about -1 to 1, as bytes:
/// `trunc(clip((x + 1) / 2 * 255, 0, 255))`. NaN is an error (it would silently become black).
pub fn from_unit_range(pixels: &[f32], width: usize, height: usize) -> Result<Rgb8> {
    if let Some(at) = pixels.iter().position(|v| v.is_nan()) {
        let (pixel, width) = (at / 3, width.max(1));
        return Err(Error::NotANumber { x: pixel % width, y: pixel / width, channel: at % 3 });
    }
    let bytes = pixels.iter().map(|v| ((v + 1.0) / 2.0 * 255.0).clamp(0.0, 255.0) as u8);
    Rgb8::new(width, height, bytes.collect())
}

/// A picture as the VQ encoder takes it: `[height, width, 3]`, `(x / 255 - 0.5) / 0.5`.
pub fn vq_pixels(picture: &Rgb8) -> Vec<f32> {
    picture.data.iter().map(|&v| (f32::from(v) / 255.0 - 0.5) / 0.5).collect()
}

#[cfg(test)]
mod tests {
    use janus_spec::SizeRule;

    use super::*;

    fn spec(do_normalize: bool) -> PreprocessSpec {
        PreprocessSpec {
            image_size: 1,
            min_size: 1,
            background: [127; 3],
            mean: [0.5, 0.25, 0.0],
            std: [0.5, 0.25, 1.0],
            do_normalize,
            rescale_factor: 1.0 / 255.0,
            rounding: SizeRule::Truncate,
        }
    }

    #[test]
    fn normalisation_is_per_channel_and_can_be_off() {
        let picture = Rgb8 { width: 1, height: 1, data: vec![255, 0, 0] };
        assert_eq!(normalise(&picture, &spec(true)), [1.0, -1.0, 0.0]);
        assert_eq!(normalise(&picture, &spec(false)), [1.0, 0.0, 0.0]);
    }

    #[test]
    fn unit_range_truncates_and_clips() {
        let values = [-1.0, 1.0, 0.0, -7.0, f32::INFINITY, 0.999];
        let picture = from_unit_range(&values, 2, 1).expect("six values");
        assert_eq!(picture.data, [0, 255, 127, 0, 255, 254]);
    }

    #[test]
    fn nan_is_named_by_its_place() {
        let mut values = [0.0; 12];
        values[10] = f32::NAN;
        let message = from_unit_range(&values, 2, 2).expect_err("NaN").to_string();
        assert!(message.contains("column 1, row 1, channel 1"), "{message}");
    }

    #[test]
    fn a_wrong_number_of_values_is_refused() {
        assert!(matches!(from_unit_range(&[0.0; 11], 2, 2), Err(Error::WrongLength { found: 11, .. })));
        assert!(matches!(from_unit_range(&[], 0, 2), Err(Error::NoPixels { .. })));
    }
}
