//! RGB to PNG, in memory or as a file that is either whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use super::{Error, Result, Rgb8};

/// The picture as a PNG file's bytes: 8-bit RGB, no metadata, the same bytes for the same pixels.
pub fn encode_png(picture: &Rgb8) -> Result<Vec<u8>> {
    let checked = Rgb8::new(picture.width, picture.height, picture.data.clone())?;
    let side = |n: usize| u32::try_from(n).map_err(|_| Error::Encode(format!("a side of {n} pixels is too long")));
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Default, FilterType::Adaptive)
        .write_image(&checked.data, side(checked.width)?, side(checked.height)?, ExtendedColorType::Rgb8)
        .map_err(|error| Error::Encode(error.to_string()))?;
    Ok(bytes)
}

/// Writes a PNG to a temporary file beside `path` and renames it there, so that no reader ever sees half a picture
/// and a failure leaves whatever was at `path`. Errors name the file.
pub fn write_png(path: &Path, picture: &Rgb8) -> Result<()> {
    let named = |reason| Error::File { path: path.to_owned(), reason: Box::new(reason) };
    let bytes = encode_png(picture).map_err(named)?;
    let (temporary, file) = create_beside(path).map_err(|error| named(Error::Io { doing: "write there", error }))?;
    fill(file, &bytes).and_then(|()| fs::rename(&temporary, path)).map_err(|error| {
        // The write has failed already; what matters is that error, not whether the tidying worked.
        let _ = fs::remove_file(&temporary);
        named(Error::Io { doing: "write there", error })
    })
}

fn fill(mut file: File, bytes: &[u8]) -> std::io::Result<()> {
    file.write_all(bytes)?;
    file.sync_all()
}

/// A new file in the same directory, so that the rename stays within one file system.
fn create_beside(path: &Path) -> std::io::Result<(PathBuf, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "this is no file name"));
    };
    if path.is_dir() {
        return Err(std::io::Error::new(std::io::ErrorKind::IsADirectory, "this is a directory"));
    }
    loop {
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{}.part", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(hidden);
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            opened => return Ok((temporary, opened?)),
        }
    }
}
