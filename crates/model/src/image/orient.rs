//! The camera's note on which way is up: EXIF tag 274, or `tiff:Orientation` in XMP when EXIF has none (as Pillow).

use image::ImageDecoder;
use image::metadata::Orientation;

use super::Rgb8;

/// The orientation (1 to 8, EXIF numbering) a file carries; 1, "as stored", where it carries none or nonsense.
pub(super) fn tag(decoder: &mut impl ImageDecoder) -> u8 {
    let exif = decoder.exif_metadata().ok().flatten();
    if let Some(found) = exif.and_then(|chunk| Orientation::from_exif_chunk(strip_prefix(&chunk))) {
        return found.to_exif();
    }
    decoder.xmp_metadata().ok().flatten().and_then(|xmp| xmp_tag(&xmp)).unwrap_or(1)
}

/// WebP and PNG files often keep the prefix that only JPEG segments should have.
fn strip_prefix(chunk: &[u8]) -> &[u8] {
    chunk.strip_prefix(b"Exif\0\0").unwrap_or(chunk)
}

/// Finds `tiff:Orientation="6"` or `<tiff:Orientation>6<` without an XML parser.
fn xmp_tag(xmp: &[u8]) -> Option<u8> {
    const KEY: &[u8] = b"tiff:Orientation";
    let at = xmp.windows(KEY.len()).position(|w| w == KEY)? + KEY.len();
    let digit = match xmp.get(at..)? {
        [b'=', b'"', digit, ..] | [b'>', digit, ..] => *digit,
        _ => return None,
    };
    (b'1'..=b'8').contains(&digit).then(|| digit - b'0')
}

/// The picture as it is meant to be seen. `tag` in EXIF's numbering; other values leave it alone.
pub(super) fn turned(picture: Rgb8, tag: u8) -> Rgb8 {
    if !(2..=8).contains(&tag) {
        return picture;
    }
    let (w, h) = (picture.width, picture.height);
    let (width, height) = if tag >= 5 { (h, w) } else { (w, h) };
    let mut data = Vec::with_capacity(picture.data.len());
    for y in 0..height {
        for x in 0..width {
            let (sx, sy) = match tag {
                2 => (w - 1 - x, y),
                3 => (w - 1 - x, h - 1 - y),
                4 => (x, h - 1 - y),
                5 => (y, x),
                6 => (y, h - 1 - x),
                7 => (w - 1 - y, h - 1 - x),
                _ => (w - 1 - y, x),
            };
            data.extend_from_slice(&picture.pixel(sx, sy));
        }
    }
    Rgb8 { width, height, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 x 2, the red channel counts 0 to 5.
    fn counted() -> Rgb8 {
        Rgb8 { width: 3, height: 2, data: (0..6).flat_map(|i| [i, 0, 0]).collect() }
    }

    #[test]
    fn every_tag_turns_as_the_exif_standard_says() {
        let reds = |tag| {
            let t = turned(counted(), tag);
            (t.width, t.data.iter().step_by(3).copied().collect::<Vec<_>>())
        };
        assert_eq!(reds(1), (3, vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(reds(2), (3, vec![2, 1, 0, 5, 4, 3]));
        assert_eq!(reds(3), (3, vec![5, 4, 3, 2, 1, 0]));
        assert_eq!(reds(4), (3, vec![3, 4, 5, 0, 1, 2]));
        assert_eq!(reds(5), (2, vec![0, 3, 1, 4, 2, 5]));
        assert_eq!(reds(6), (2, vec![3, 0, 4, 1, 5, 2]));
        assert_eq!(reds(7), (2, vec![5, 2, 4, 1, 3, 0]));
        assert_eq!(reds(8), (2, vec![2, 5, 1, 4, 0, 3]));
        assert_eq!(reds(77), (3, vec![0, 1, 2, 3, 4, 5]));
    }

    #[test]
    fn xmp_is_read_in_both_spellings() {
        assert_eq!(xmp_tag(br#"<x tiff:Orientation="6"/>"#), Some(6));
        assert_eq!(xmp_tag(b"<tiff:Orientation>3</tiff:Orientation>"), Some(3));
        assert_eq!(xmp_tag(br#"<x tiff:Orientation="9"/>"#), None);
        assert_eq!(xmp_tag(b"nothing here"), None);
    }
}
