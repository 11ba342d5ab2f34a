//! Frames sealed and opened: one checksum over what is said and the numbers that come with it.

use bytes::Bytes;
use prost::Message;

use crate::Error;
use crate::v1::{Frame, FrameBody, Kind, Unit};

/// Most positions of one unit in a prefill or replay frame.
pub const MAX_PREFILL: usize = 64;

/// Puts body and activations under one checksum.
pub fn seal(body: &FrameBody, activations: Bytes) -> Frame {
    let body = Bytes::from(body.encode_to_vec());
    let crc32c = checksum(&body, &activations);
    Frame { body, activations, crc32c }
}

/// Checks a frame's checksum and decodes its body.
///
/// # Errors
/// [`Error::Frame`] if either is damaged.
pub fn open(frame: &Frame) -> Result<FrameBody, Error> {
    let found = checksum(&frame.body, &frame.activations);
    if found != frame.crc32c {
        return Err(Error::Frame(format!("checksum is {found:08x}, but {:08x} was sent", frame.crc32c)));
    }
    FrameBody::decode(frame.body.as_ref()).map_err(|e| Error::Frame(format!("body cannot be read: {e}")))
}

/// Positions of a unit that branch `branch` holds already, so that they have no rows.
pub fn held(unit: &Unit, branch: usize) -> usize {
    unit.held.get(branch).copied().unwrap_or_default().min(unit.positions) as usize
}

/// Rows of a unit, over its branches.
pub fn rows(unit: &Unit) -> usize {
    let branches = if unit.kind() == Kind::Pair { 2 } else { 1 };
    (0..branches).map(|branch| unit.positions as usize - held(unit, branch)).sum()
}

fn checksum(body: &[u8], activations: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(body), activations)
}

/// Rows as little-endian bytes: lossless.
pub fn to_bytes(rows: &[f32]) -> Bytes {
    // One copy that the compiler makes a wide one; pushing numbers one by one took longer than sending them.
    let mut bytes = vec![0; 4 * rows.len()];
    bytes.as_chunks_mut::<4>().0.iter_mut().zip(rows).for_each(|(four, x)| *four = x.to_le_bytes());
    bytes.into()
}

/// Appends the rows in `bytes` to `rows`.
///
/// # Errors
/// [`Error::Frame`] if the length is not a multiple of four.
pub fn read_rows(bytes: &[u8], rows: &mut Vec<f32>) -> Result<(), Error> {
    let (numbers, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(Error::Frame(format!("{} bytes of activations are not whole numbers of four", bytes.len())));
    }
    rows.extend(numbers.iter().map(|b| f32::from_le_bytes(*b)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let body = FrameBody { pipeline: 1, epoch: 2, sequence: 3, ..FrameBody::default() };
        let frame = seal(&body, to_bytes(&[1.0, -2.5]));
        assert_eq!(open(&frame).unwrap(), body);
        for part in 0..2 {
            for bit in 0..8 {
                let mut broken = frame.clone();
                let field = if part == 0 { &mut broken.body } else { &mut broken.activations };
                let mut bytes = field.to_vec();
                bytes[1] ^= 1 << bit;
                *field = bytes.into();
                assert!(open(&broken).unwrap_err().to_string().contains("checksum"));
            }
        }
    }

    #[test]
    fn rows_travel_without_loss() {
        let rows = [0.1_f32, f32::MIN_POSITIVE / 2.0, -0.0, f32::MAX];
        let mut back = Vec::new();
        read_rows(&to_bytes(&rows), &mut back).unwrap();
        assert!(rows.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert!(read_rows(&[1, 2, 3], &mut back).is_err());
    }
}
