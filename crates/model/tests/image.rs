//! Parity of `janus_model::image` with Pillow and both reference processors, and what it says to bad files.

#![allow(clippy::unwrap_used)] // a test may panic, also in its builders

use std::path::{Path, PathBuf};

use janus_model::image::{
    Error, Limits, Orientation, Rgb8, crop_square, decode, encode_png, fit_square, from_unit_range, normalise, open,
    write_png,
};
use janus_spec::{PreprocessSpec, SizeRule};
use safetensors::{Dtype, SafeTensors};

const BACKGROUND: [u8; 3] = [127; 3];
const SIZE: usize = 64;
const MIN_SIZE: usize = 14;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-a/golden")
}

fn by_pillow() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pillow")
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    found.sort();
    found
}

fn read(bytes: &[u8]) -> Result<Rgb8, Error> {
    decode(bytes, Orientation::Ignore, &Limits::default())
}

/// A `[3, height, width]` tensor of bytes as a picture.
fn tensor(set: &SafeTensors, name: &str) -> Option<Rgb8> {
    let view = set.tensor(name).ok()?;
    assert_eq!(view.dtype(), Dtype::U8, "{name}");
    let (height, width) = (view.shape()[1], view.shape()[2]);
    let planes: Vec<&[u8]> = view.data().chunks_exact(height * width).collect();
    let data = (0..height * width).flat_map(|i| [planes[0][i], planes[1][i], planes[2][i]]).collect();
    Some(Rgb8::new(width, height, data).unwrap())
}

/// PNGs (and all lossless formats) must be equal byte by byte, JPEGs within the decoders' freedom.
fn assert_same(name: &str, got: &Rgb8, want: &Rgb8) {
    assert_eq!((got.width, got.height), (want.width, want.height), "{name}");
    let gaps: Vec<u32> = got.data.iter().zip(&want.data).map(|(a, b)| u32::from(a.abs_diff(*b))).collect();
    let (sum, max) = (gaps.iter().sum::<u32>(), gaps.iter().max().copied().unwrap_or(0));
    if name.ends_with(".jpg") {
        let mean = f64::from(sum) / gaps.len() as f64;
        assert!(mean <= 1.0 && max <= 8, "{name}: mean {mean}, max {max} of 255");
    } else {
        assert_eq!(max, 0, "{name}: {} of {} bytes differ", gaps.iter().filter(|g| **g > 0).count(), gaps.len());
    }
}

#[test]
fn every_golden_picture_fits_as_both_references_fit_it() {
    for (file, tensor_suffix, rule) in [
        ("preprocess_original.safetensors", "original_u8", SizeRule::Truncate),
        ("preprocess_transformers.safetensors", "transformers_pil_u8", SizeRule::HalfEven),
    ] {
        let bytes = std::fs::read(golden().join(file)).unwrap();
        let set = SafeTensors::deserialize(&bytes).unwrap();
        let pictures = files(&golden().join("images"));
        assert_eq!(pictures.len(), 16);
        for (name, picture) in pictures {
            let want = tensor(&set, &format!("{name}/{tensor_suffix}")).unwrap_or_else(|| panic!("{file}: {name}"));
            let got = fit_square(&read(&picture).unwrap(), SIZE, MIN_SIZE, BACKGROUND, rule);
            assert_same(&name, &got, &want);
        }
    }
}

#[test]
fn opened_files_equal_transformers_load_image() {
    let bytes = std::fs::read(golden().join("preprocess_transformers.safetensors")).unwrap();
    let set = SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    for (name, _) in files(&golden().join("images")) {
        if let Some(want) = tensor(&set, &format!("{name}/rgb_by_transformers_load_image_u8")) {
            let got = open(&golden().join("images").join(&name), &Limits::default()).unwrap();
            assert_same(&name, &got, &want);
            compared += 1;
        }
    }
    assert_eq!(compared, 7, "among them exif6_90x60.jpg, which must be turned");
}

#[test]
fn every_kind_of_file_reads_as_pillow_reads_it() {
    let mut compared = 0;
    for (name, _) in files(&by_pillow()).iter().filter(|(name, _)| name.ends_with(".rgb.png")) {
        let source = name.strip_suffix(".rgb.png").unwrap();
        let want = open(&by_pillow().join(name), &Limits::default()).unwrap();
        let got = open(&by_pillow().join(source), &Limits::default()).unwrap();
        assert_same(source, &got, &want);
        compared += 1;
    }
    assert_eq!(compared, 43);
}

#[test]
fn orientation_is_ignored_when_asked_to_be() {
    let bytes = std::fs::read(by_pillow().join("exif6.png")).unwrap();
    let stored = decode(&bytes, Orientation::Ignore, &Limits::default()).unwrap();
    let seen = decode(&bytes, Orientation::Apply, &Limits::default()).unwrap();
    assert_eq!((stored.width, stored.height), (7, 9));
    assert_eq!((seen.width, seen.height), (9, 7));
}

#[test]
fn pixel_values_equal_the_references() {
    let spec = PreprocessSpec {
        image_size: SIZE,
        min_size: MIN_SIZE,
        background: BACKGROUND,
        mean: [0.5; 3],
        std: [0.5; 3],
        do_normalize: true,
        rescale_factor: 0.00392156862745098,
        rounding: SizeRule::Truncate,
    };
    let picture = read(&std::fs::read(golden().join("images/rgb_97x61.png")).unwrap()).unwrap();
    let fitted = fit_square(&picture, spec.image_size, spec.min_size, spec.background, spec.rounding);
    let got = normalise(&fitted, &spec);
    for (file, name) in [
        ("preprocess_original.safetensors", "rgb_97x61.png/original"),
        ("preprocess_transformers.safetensors", "rgb_97x61.png/transformers_pil"),
    ] {
        let bytes = std::fs::read(golden().join(file)).unwrap();
        let set = SafeTensors::deserialize(&bytes).unwrap();
        let view = set.tensor(name).unwrap();
        let want: Vec<f32> = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let plane = SIZE * SIZE;
        let wrong = (0..plane * 3).filter(|&i| got[i] != want[(i % 3) * plane + i / 3]).count();
        assert_eq!(wrong, 0, "{name}");
    }
}

#[test]
fn decoded_pixels_become_the_golden_bytes() {
    let mut compared = 0;
    for (name, bytes) in files(&golden()).iter().filter(|(n, _)| n.starts_with("generate_") && n.ends_with("tensors")) {
        let set = SafeTensors::deserialize(bytes).unwrap();
        let Ok(decoded) = set.tensor("decoded") else {
            continue;
        };
        let Ok(want) = set.tensor("decoded_u8_truncated") else {
            continue;
        };
        let plane = SIZE * SIZE;
        let value = |i: usize| f32::from_le_bytes(decoded.data()[i * 4..i * 4 + 4].try_into().unwrap());
        let pixels: Vec<f32> = (0..plane * 3).map(|i| value((i % 3) * plane + i / 3)).collect();
        let got = from_unit_range(&pixels, SIZE, SIZE).unwrap();
        let chw = want.shape().first() == Some(&1) && want.shape()[1] == 3 || want.shape()[0] == 3;
        let at = |i: usize| {
            if chw { want.data()[(i % 3) * plane + i / 3] } else { want.data()[i] }
        };
        let wrong = (0..plane * 3).filter(|&i| got.data[i] != at(i)).count();
        assert_eq!(wrong, 0, "{name}");
        compared += 1;
    }
    assert!(compared > 0);
}

#[test]
fn broken_files_are_refused_by_name() {
    let png = std::fs::read(golden().join("images/rgb_97x61.png")).unwrap();
    let jpeg = std::fs::read(golden().join("images/rgb_333x500.jpg")).unwrap();
    let gif = std::fs::read(by_pillow().join("clear.gif")).unwrap();
    let webp = std::fs::read(by_pillow().join("lossy.webp")).unwrap();
    let bmp = std::fs::read(by_pillow().join("rgb24.bmp")).unwrap();
    for (kind, whole) in [("PNG", png), ("JPEG", jpeg), ("GIF", gif), ("WebP", webp), ("BMP", bmp)] {
        assert!(read(&whole).is_ok(), "{kind}");
        for part in 1..8 {
            let cut = &whole[..whole.len() * part / 8];
            let message = read(cut).expect_err(kind).to_string();
            assert!(message.contains(kind), "{kind} cut to {} bytes: {message}", cut.len());
        }
    }
    assert!(matches!(read(&[]), Err(Error::Empty)));
    assert!(matches!(read(b"a text file, not a picture\n"), Err(Error::UnknownFormat)));
    assert!(matches!(read(&[0x89, b'P']), Err(Error::UnknownFormat)));
}

#[test]
fn a_jpeg_without_its_end_marker_is_truncated() {
    for name in ["rgb_444.jpg", "progressive_420.jpg", "restart.jpg", "cmyk.jpg"] {
        let whole = std::fs::read(by_pillow().join(name)).unwrap();
        let message = read(&whole[..whole.len() - 2]).expect_err(name).to_string();
        assert!(message.contains("truncated JPEG"), "{name}: {message}");
        let mut trailing = whole.clone();
        trailing.extend_from_slice(b"bytes some cameras append");
        assert_eq!(read(&trailing).unwrap(), read(&whole).unwrap(), "{name}");
    }
}

/// A PNG of nothing but a header and an empty data chunk.
fn png_claiming(width: u32, height: u32) -> Vec<u8> {
    let mut png = encode_png(&Rgb8::filled(1, 1, [0; 3])).unwrap();
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 })
    })
}

#[test]
fn a_header_cannot_make_us_allocate() {
    for (width, height) in [(100_000, 100_000), (70_000, 1), (1, 70_000), (60_000, 60_000)] {
        let message = read(&png_claiming(width, height)).expect_err("too large").to_string();
        assert!(message.contains(&format!("{width} x {height}")), "{message}");
    }
    let mut gif = std::fs::read(by_pillow().join("clear.gif")).unwrap();
    gif[6..10].fill(0xFF);
    assert!(matches!(read(&gif), Err(Error::TooLarge { format: "GIF", .. })));
    let mut bmp = std::fs::read(by_pillow().join("rgb24.bmp")).unwrap();
    bmp[18..22].copy_from_slice(&60_000i32.to_le_bytes());
    bmp[22..26].copy_from_slice(&60_000i32.to_le_bytes());
    assert!(matches!(read(&bmp), Err(Error::TooLarge { format: "BMP", .. })));
    let mut jpeg = std::fs::read(by_pillow().join("rgb_444.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xFF);
    assert!(matches!(read(&jpeg), Err(Error::TooLarge { format: "JPEG", .. })));
    jpeg[frame + 5..frame + 9].fill(0);
    assert!(read(&jpeg).is_err());
}

#[test]
fn within_the_limits_but_beyond_the_data_is_an_error() {
    for (width, height) in [(8_000, 8_000), (2, 1)] {
        let message = read(&png_claiming(width, height)).expect_err("no data for it").to_string();
        assert!(message.contains("PNG"), "{message}");
    }
    for (width, height) in [(0, 5), (5, 0)] {
        assert!(read(&png_claiming(width, height)).is_err());
    }
}

#[test]
fn limits_are_the_callers() {
    let png = std::fs::read(golden().join("images/rgb_97x61.png")).unwrap();
    let limits = |max_bytes, max_pixels, max_side| Limits { max_bytes, max_pixels, max_side };
    let with = |limits| decode(&png, Orientation::Ignore, &limits);
    assert!(with(limits(png.len(), 97 * 61, 97)).is_ok());
    assert!(matches!(with(limits(png.len() - 1, 97 * 61, 97)), Err(Error::TooManyBytes { .. })));
    assert!(matches!(with(limits(png.len(), 97 * 61 - 1, 97)), Err(Error::TooLarge { .. })));
    assert!(matches!(with(limits(png.len(), 97 * 61, 96)), Err(Error::TooLarge { .. })));
}

#[test]
fn file_errors_name_the_file() {
    let dir = tempdir("names");
    let small = Limits { max_bytes: 10, ..Limits::default() };
    let long = dir.join("long.png");
    std::fs::write(&long, vec![1; 11]).unwrap();
    let empty = dir.join("empty.png");
    std::fs::write(&empty, []).unwrap();
    for (path, limits, says) in [
        (dir.join("absent.png"), Limits::default(), "read"),
        (dir.clone(), Limits::default(), "read"),
        (long, small, "more than 10 bytes"),
        (empty, Limits::default(), "empty"),
    ] {
        let message = open(&path, &limits).expect_err("bad file").to_string();
        assert!(message.contains(path.to_str().unwrap()) && message.contains(says), "{message}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_written_png_reads_back_and_leaves_nothing_beside_it() {
    let dir = tempdir("write");
    let picture = read(&std::fs::read(golden().join("images/rgb_97x61.png")).unwrap()).unwrap();
    let path = dir.join("out.png");
    std::fs::write(&path, b"what was there before").unwrap();
    write_png(&path, &picture).unwrap();
    assert_eq!(open(&path, &Limits::default()).unwrap(), picture);
    assert_eq!(encode_png(&picture).unwrap(), std::fs::read(&path).unwrap());

    let missing = dir.join("no/such/folder/out.png");
    let message = write_png(&missing, &picture).expect_err("no folder").to_string();
    assert!(message.contains(missing.to_str().unwrap()), "{message}");
    assert!(write_png(&dir, &picture).is_err());
    let lying = Rgb8 { width: 5, height: 5, data: vec![0; 3] };
    assert!(write_png(&dir.join("lying.png"), &lying).is_err());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "only out.png");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn damaged_files_are_errors_or_pictures_but_never_panics() {
    let small = Limits { max_pixels: 1 << 20, ..Limits::default() };
    let mut state = 7u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for (_, bytes) in files(&by_pillow()).iter().filter(|(name, _)| !name.ends_with(".rgb.png")) {
        for _ in 0..40 {
            let mut damaged = bytes.clone();
            for _ in 0..=next(6) {
                let at = next(damaged.len());
                damaged[at] = next(256) as u8;
            }
            let _ = decode(&damaged, Orientation::Apply, &small);
        }
    }
}

#[test]
fn extreme_shapes_survive_fitting_and_cropping() {
    for (width, height) in [(1, 1), (2, 5_000), (5_000, 2), (383, 384)] {
        let picture = Rgb8::filled(width, height, [10, 20, 30]);
        for rule in [SizeRule::Truncate, SizeRule::HalfEven] {
            let square = fit_square(&picture, 384, MIN_SIZE, BACKGROUND, rule);
            assert_eq!((square.width, square.height), (384, 384), "{width} x {height}");
            assert_eq!(square.pixel(192, 192), [10, 20, 30]);
        }
        assert_eq!(crop_square(&picture, 384), Rgb8::filled(384, 384, [10, 20, 30]));
    }
}

fn tempdir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("janus-image-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}
