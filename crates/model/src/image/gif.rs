//! The one thing about a GIF that the decoder leaves to us: what is seen where the first frame does not reach.

/// Where the first frame does not cover the canvas, Pillow shows the transparent colour if there is one, else colour 0;
/// the decoder leaves black. Paints `rgb`, a picture `width` pixels wide; a file it cannot follow stays as decoded.
pub(super) fn paint_border(bytes: &[u8], width: usize, rgb: &mut [u8]) {
    let Some(frame) = first_frame(bytes) else { return };
    for (i, pixel) in rgb.chunks_exact_mut(3).enumerate() {
        if !frame.covers(i % width, i / width) {
            pixel.copy_from_slice(&frame.around);
        }
    }
}

/// The first frame's place on the canvas and the colour around it.
struct Frame {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    around: [u8; 3],
}

impl Frame {
    fn covers(&self, x: usize, y: usize) -> bool {
        (self.left..self.left + self.width).contains(&x) && (self.top..self.top + self.height).contains(&y)
    }
}

/// Walks the blocks before the first frame, remembering the transparent colour a graphic control extension names.
fn first_frame(bytes: &[u8]) -> Option<Frame> {
    let global = palette(bytes, 13, *bytes.get(10)?)?;
    let mut at = 13 + global.len();
    let mut index = 0;
    while *bytes.get(at)? == 0x21 {
        if bytes.get(at + 1) == Some(&0xF9) && bytes.get(at + 3)? & 1 == 1 {
            index = usize::from(*bytes.get(at + 6)?);
        }
        at += 2;
        while let length @ 1.. = usize::from(*bytes.get(at)?) {
            at += 1 + length;
        }
        at += 1;
    }
    if *bytes.get(at)? != 0x2C {
        return None;
    }
    let word = |at: usize| Some(usize::from(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
    let local = palette(bytes, at + 10, *bytes.get(at + 9)?)?;
    let colours = if local.is_empty() { global } else { local };
    let &[r, g, b] = colours.get(index * 3..index * 3 + 3)? else {
        return None;
    };
    Some(Frame { left: word(at + 1)?, top: word(at + 3)?, width: word(at + 5)?, height: word(at + 7)?, around: [r, g, b] })
}

/// The colour table that `flags` announce at `at`; empty if they announce none.
fn palette(bytes: &[u8], at: usize, flags: u8) -> Option<&[u8]> {
    let length = if flags & 0x80 == 0 { 0 } else { 6usize << (flags & 7) };
    bytes.get(at..at + length)
}
