//! Pictures before and after the model: files to 8-bit RGB, RGB to the tower's input, the decoder's output to a PNG.
//!
//! The order in which a picture passes through: [`open`] or [`decode`] reads any supported file the way Pillow's
//! `convert("RGB")` would; [`fit_square`] (understanding) or [`crop_square`] (VQ encoding) brings it to the model's
//! size; [`normalise`] makes floats of it. On the way back [`from_unit_range`] turns the VQ decoder's output into
//! bytes and [`write_png`] into a file. Everything here is a pure function of its input except [`open`] and
//! [`write_png`]. The reference is Pillow together with the processors of the two published implementations; the
//! parity tests compare byte by byte.

mod decode;
mod gif;
mod orient;
mod pixels;
mod resample;
mod square;
mod write;

use std::path::PathBuf;

pub use decode::{Orientation, decode, open};
pub use pixels::{from_unit_range, normalise, vq_pixels};
pub use resample::resize_bicubic;
pub use square::{crop_square, fit_square, fitted_sides};
pub use write::{encode_png, write_png};

/// An 8-bit RGB picture.
#[derive(Clone, PartialEq, Eq)]
pub struct Rgb8 {
    /// Columns, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
    /// `height * width * 3` bytes, row by row from the top left, R G B.
    pub data: Vec<u8>,
}

impl Rgb8 {
    /// A picture over ready bytes; fails unless `data` holds exactly `width * height * 3` of them and neither is zero.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Self> {
        if width == 0 || height == 0 {
            return Err(Error::NoPixels { width: width as u64, height: height as u64 });
        }
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if expected != Some(data.len()) {
            return Err(Error::WrongLength { width, height, found: data.len() });
        }
        Ok(Self { width, height, data })
    }

    /// A picture of one colour. Both sides must be at least 1 for the other functions to make sense of it.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Self { width, height, data: colour.repeat(width * height) }
    }

    /// The colour at column `x`, row `y`; panics outside the picture, like indexing.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.data[at], self.data[at + 1], self.data[at + 2]]
    }
}

impl std::fmt::Debug for Rgb8 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rgb8({}x{})", self.width, self.height)
    }
}

/// How much of a stranger's picture we are ready to hold. Checked against the header, before any pixel is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file (default 64 MiB).
    pub max_bytes: usize,
    /// Width times height (default 64 Mi pixels; Janus looks at 384 x 384 of them).
    pub max_pixels: u64,
    /// Either side in pixels (default 65,535, what a JPEG can express).
    pub max_side: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 64 << 20, max_pixels: 64 << 20, max_side: 65_535 }
    }
}

/// Why a picture could not be read, made or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The same error with the file it is about.
    #[error("picture {}: {reason}", path.display())]
    File {
        /// As the caller wrote it.
        path: PathBuf,
        /// What is wrong with it.
        reason: Box<Error>,
    },
    /// The operating system would not read or write.
    #[error("cannot {doing}: {error}")]
    Io {
        /// "read the file" and the like.
        doing: &'static str,
        /// The system's own words.
        error: std::io::Error,
    },
    /// Nothing in it.
    #[error("the file is empty (0 bytes); give a PNG, JPEG, GIF, WebP or BMP picture")]
    Empty,
    /// More bytes than [`Limits::max_bytes`].
    #[error("the file has more than {limit} bytes, the most that is read; give a smaller picture")]
    TooManyBytes {
        /// The limit that was passed.
        limit: usize,
    },
    /// Not one of the five formats.
    #[error("not a picture this program can read; give a PNG, JPEG, GIF, WebP or BMP file")]
    UnknownFormat,
    /// The header claims more than [`Limits::max_pixels`] or [`Limits::max_side`].
    #[error(
        "the {format} header claims {width} x {height} pixels; at most {max_pixels} pixels and {max_side} on a side \
         are decoded: scale the picture down"
    )]
    TooLarge {
        /// "PNG" and the like.
        format: &'static str,
        /// Columns claimed.
        width: u64,
        /// Rows claimed.
        height: u64,
        /// The limit on their product.
        max_pixels: u64,
        /// The limit on each.
        max_side: u32,
    },
    /// A side of zero.
    #[error("a picture of {width} x {height} pixels has nothing in it; both sides must be at least 1")]
    NoPixels {
        /// Columns.
        width: u64,
        /// Rows.
        height: u64,
    },
    /// Cut short or damaged.
    #[error("broken or truncated {format}: {detail}; save the picture again or give another")]
    Broken {
        /// "PNG" and the like.
        format: &'static str,
        /// The decoder's words.
        detail: String,
    },
    /// A valid file of a kind that is not decoded (arithmetic-coded JPEG and the like).
    #[error("this kind of {format} is not supported: {detail}; convert it to PNG")]
    Unsupported {
        /// "JPEG" and the like.
        format: &'static str,
        /// The decoder's words.
        detail: String,
    },
    /// Bytes or floats that are not three per pixel.
    #[error("{found} values cannot be a picture of {width} x {height} pixels with 3 channels")]
    WrongLength {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
        /// Values given.
        found: usize,
    },
    /// The decoder's output is not a number somewhere.
    #[error("the painted picture has NaN at column {x}, row {y}, channel {channel}: the weights or the ids are broken")]
    NotANumber {
        /// Column.
        x: usize,
        /// Row.
        y: usize,
        /// 0 red, 1 green, 2 blue.
        channel: usize,
    },
    /// The PNG encoder refused.
    #[error("cannot encode a PNG: {0}")]
    Encode(String),
}

/// Results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;
