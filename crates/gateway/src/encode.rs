//! Pictures as files.

use axum::http::StatusCode;
use bytes::Bytes;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Problem;

/// Quality of JPEG files, unless the request says another.
const QUALITY: u8 = 95;

/// File formats of pictures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// Every pixel as it was painted.
    #[default]
    Png,
    /// Lossy; `output_compression` is its quality.
    Jpeg,
    /// Lossless.
    Webp,
}

impl Format {
    /// As in `image/png`.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Format::Png => "image/png",
            Format::Jpeg => "image/jpeg",
            Format::Webp => "image/webp",
        }
    }

    /// Of a file's name.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Format::Png => "png",
            Format::Jpeg => "jpeg",
            Format::Webp => "webp",
        }
    }
}

/// Row-major RGB bytes of `size` (width, height) as a file; a thread of its own does it.
pub(crate) async fn encode(format: Format, quality: Option<u8>, size: (u32, u32), rgb: Bytes) -> Result<Bytes, Problem> {
    let broken = |reason: String| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the picture: {reason}"));
    let work = move || -> Result<Bytes, String> {
        let (width, height) = size;
        if rgb.len() as u64 != u64::from(width) * u64::from(height) * 3 {
            return Err(format!("{} bytes are not {width}x{height} pixels", rgb.len()));
        }
        let (mut file, colour) = (Vec::new(), ExtendedColorType::Rgb8);
        let written = match format {
            Format::Png => PngEncoder::new(&mut file).write_image(&rgb, width, height, colour),
            Format::Jpeg => {
                let quality = quality.unwrap_or(QUALITY).max(1);
                JpegEncoder::new_with_quality(&mut file, quality).write_image(&rgb, width, height, colour)
            }
            Format::Webp => WebPEncoder::new_lossless(&mut file).write_image(&rgb, width, height, colour),
        };
        written.map(|()| Bytes::from(file)).map_err(|error| error.to_string())
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| broken(error.to_string()))?.map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lossless_formats_keep_every_pixel_and_lossy_ones_nearly() {
        let rgb: Vec<u8> = (0..16 * 8 * 3).map(|i| (i * 2 % 256) as u8).collect();
        for format in [Format::Png, Format::Jpeg, Format::Webp] {
            let file = encode(format, None, (16, 8), rgb.clone().into()).await.unwrap();
            let read = image::load_from_memory(&file).unwrap().into_rgb8();
            assert_eq!(read.dimensions(), (16, 8));
            let off = read.as_raw().iter().zip(&rgb).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(if format == Format::Jpeg { off < 64 } else { off == 0 }, "{format:?}: {off}");
        }
        assert!(encode(Format::Png, None, (16, 9), rgb.into()).await.is_err());
    }
}
