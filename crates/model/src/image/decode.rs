//! Files to RGB with the meaning of Pillow's `convert("RGB")`, bounded before anything is decoded.
//!
//! What that means per kind: alpha is dropped, not composited; a palette index becomes its colour, also the
//! transparent one; grey is repeated; 16-bit grey is *clipped* at 255, while other 16-bit kinds keep their high byte;
//! CMYK is taken as Adobe writes it (inverted); of an animation the first frame counts. Embedded colour profiles and
//! gamma are ignored. The formats themselves are decoded by the `image` crate.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::error::ImageError;
use image::{ColorType, ImageDecoder, ImageFormat, ImageReader};

use super::{Error, Limits, Result, Rgb8, gif, orient};

/// What to do with a camera's note on how the picture is to be turned (EXIF or XMP).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orientation {
    /// Turn it, as a viewer would (and as transformers' `load_image`).
    Apply,
    /// Leave the pixels as stored (as the original code).
    Ignore,
}

/// Reads a picture file, turned the way its EXIF says. Errors name the file.
pub fn open(path: &Path, limits: &Limits) -> Result<Rgb8> {
    read_bounded(path, limits.max_bytes)
        .and_then(|bytes| decode(&bytes, Orientation::Apply, limits))
        .map_err(|reason| Error::File { path: path.to_owned(), reason: Box::new(reason) })
}

fn read_bounded(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let io = |error| Error::Io { doing: "read the file", error };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io)?;
    // One byte more than allowed tells a file at the limit from one beyond it, whatever its metadata claims.
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Decodes a picture held in memory. The header's dimensions are held against `limits` before pixels are allocated.
pub fn decode(bytes: &[u8], orientation: Orientation, limits: &Limits) -> Result<Rgb8> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(Error::TooManyBytes { limit: limits.max_bytes });
    }
    let format = image::guess_format(bytes).map_err(|_| Error::UnknownFormat)?;
    let name = name_of(format).ok_or(Error::UnknownFormat)?;
    let failed = |error| explain(name, error);

    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut allowed = image::Limits::no_limits();
    // 16-bit RGBA is the widest pixel; the rest is room for metadata, which decoders inflate under the same limit.
    allowed.max_alloc = Some(limits.max_pixels.saturating_mul(8).saturating_add(16 << 20));
    reader.limits(allowed.clone());
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    check_size(name, width, height, limits)?;
    if format == ImageFormat::Jpeg && !jpeg_has_end(bytes) {
        let detail = "the file stops before the end of the picture".to_owned();
        return Err(Error::Broken { format: name, detail });
    }
    decoder.set_limits(allowed).map_err(failed)?;

    let turn = match orientation {
        Orientation::Apply => orient::tag(&mut decoder),
        Orientation::Ignore => 1,
    };
    let kind = decoder.color_type();
    let mut raw = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut raw).map_err(failed)?;
    let mut rgb = to_rgb(kind, &raw, png_is_plain_grey(format, bytes))
        .ok_or_else(|| Error::Unsupported { format: name, detail: format!("pixels of type {kind:?}") })?;
    if format == ImageFormat::Gif {
        gif::paint_border(bytes, width as usize, &mut rgb);
    }
    Ok(orient::turned(Rgb8::new(width as usize, height as usize, rgb)?, turn))
}

fn check_size(format: &'static str, width: u32, height: u32, limits: &Limits) -> Result<()> {
    let (w, h) = (u64::from(width), u64::from(height));
    if w == 0 || h == 0 {
        return Err(Error::NoPixels { width: w, height: h });
    }
    if width.max(height) > limits.max_side || w * h > limits.max_pixels {
        let (max_pixels, max_side) = (limits.max_pixels, limits.max_side);
        return Err(Error::TooLarge { format, width: w, height: h, max_pixels, max_side });
    }
    Ok(())
}

/// Raw decoder output to RGB; `None` for a pixel type none of the five formats produces.
fn to_rgb(kind: ColorType, raw: &[u8], plain_grey: bool) -> Option<Vec<u8>> {
    let word = |b: &[u8]| u16::from_ne_bytes([b[0], b[1]]);
    let high = |b: &[u8]| (word(b) >> 8) as u8;
    let clipped = |b: &[u8]| word(b).min(255) as u8;
    let grey = |step: usize, value: &dyn Fn(&[u8]) -> u8| -> Vec<u8> {
        raw.chunks_exact(step).flat_map(|p| [value(p); 3]).collect()
    };
    Some(match kind {
        ColorType::Rgb8 => raw.to_vec(),
        ColorType::Rgba8 => raw.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        ColorType::L8 => grey(1, &|p| p[0]),
        ColorType::La8 => grey(2, &|p| p[0]),
        ColorType::L16 => grey(2, &clipped),
        // Grey with a transparent colour arrives as grey + alpha; to Pillow it is plain 16-bit grey.
        ColorType::La16 if plain_grey => grey(4, &clipped),
        ColorType::La16 => grey(4, &high),
        ColorType::Rgb16 => raw.chunks_exact(2).map(high).collect(),
        ColorType::Rgba16 => raw.chunks_exact(8).flat_map(|p| [high(p), high(&p[2..]), high(&p[4..])]).collect(),
        _ => return None,
    })
}

/// Whether a PNG's header says colour type 0 (grey without an alpha channel).
fn png_is_plain_grey(format: ImageFormat, bytes: &[u8]) -> bool {
    format == ImageFormat::Png && bytes.get(25) == Some(&0)
}

/// Walks a JPEG's segments and says whether an end-of-image marker follows the scan data. The decoder fills missing
/// rows with grey without a word, so a cut file has to be caught here.
fn jpeg_has_end(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let (Some(0xFF), Some(&marker)) = (bytes.get(at), bytes.get(at + 1)) {
        match marker {
            0xD9 => return true,
            0xFF => at += 1,
            0x01 | 0xD0..=0xD7 => at += 2,
            _ => {
                let (Some(&high), Some(&low)) = (bytes.get(at + 2), bytes.get(at + 3)) else {
                    return false;
                };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
                if marker == 0xDA {
                    at = scan_end(bytes, at);
                }
            }
        }
    }
    // A segment that points past the end or a stray byte: only an end marker further on can save it.
    bytes.get(at..).is_some_and(|rest| rest.windows(2).any(|w| w == [0xFF, 0xD9]))
}

/// First marker after entropy-coded data that is neither a stuffed zero nor a restart.
fn scan_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let (Some(&a), Some(&b)) = (bytes.get(at), bytes.get(at + 1)) {
        if a == 0xFF && !matches!(b, 0x00 | 0xFF | 0xD0..=0xD7) {
            return at;
        }
        at += 1;
    }
    bytes.len()
}

fn name_of(format: ImageFormat) -> Option<&'static str> {
    Some(match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Gif => "GIF",
        ImageFormat::WebP => "WebP",
        ImageFormat::Bmp => "BMP",
        _ => return None,
    })
}

fn explain(format: &'static str, error: ImageError) -> Error {
    match error {
        ImageError::Unsupported(error) => Error::Unsupported { format, detail: error.to_string() },
        error => Error::Broken { format, detail: error.to_string() },
    }
}
