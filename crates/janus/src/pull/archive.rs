//! PyTorch's archive (a zip file without compression) by its directory alone: where each entry lies, and enough of the rest
//! that the file, with holes instead of tensors, can be opened.

use std::collections::HashMap;
use std::ops::Range;

use crate::failure::{Failure, Outcome};
use crate::local::broken;

/// What is fetched from the end at first: the directory of 1,000 tensors has 80 KB.
const TAIL: u64 = 128 << 10;
/// Longest directory.
const MAX_DIRECTORY: u64 = 16 << 20;
const END: [u8; 4] = *b"PK\x05\x06";
const END_64: [u8; 4] = *b"PK\x06\x06";
const ENTRY: [u8; 4] = *b"PK\x01\x02";
const LOCAL: [u8; 4] = *b"PK\x03\x04";
const LOCAL_LENGTH: usize = 30;
/// "Look in the 64-bit field."
const LARGE: u64 = 0xffff_ffff;

/// An archive without its tensors.
pub(crate) struct Archive {
    spans: HashMap<String, Range<u64>>,
    frame: Vec<(u64, Vec<u8>)>,
}

struct Entry {
    name: String,
    offset: u64,
}

impl Archive {
    /// Reads the directory and the pickle of an archive of `size` bytes. Gives back how many bytes were read, too.
    pub(crate) async fn read(read: impl AsyncFn(Range<u64>) -> Outcome<Vec<u8>>, size: u64) -> Outcome<(Archive, u64)> {
        let wrong = |reason: &str| Failure::mistake(format!("pytorch_model.bin is no archive of PyTorch: {reason}"));
        let from = size.saturating_sub(TAIL);
        let mut tail = read(from..size).await?;
        let mut came = tail.len() as u64;
        let directory = directory(&tail, size).map_err(|e| wrong(&e))?;
        if directory.end > size || directory.start > directory.end || size - directory.start > MAX_DIRECTORY {
            return Err(wrong("its directory cannot be where it says"));
        }
        let mut start = from;
        if directory.start < from {
            let mut longer = read(directory.start..from).await?;
            came += longer.len() as u64;
            longer.append(&mut tail);
            (tail, start) = (longer, directory.start);
        }
        let skip = (directory.start - start) as usize;
        let length = (directory.end - directory.start) as usize;
        let mut entries = entries(tail.get(skip..skip + length).unwrap_or_default()).map_err(|e| wrong(&e))?;
        entries.sort_by_key(|entry| entry.offset);
        let ends = entries.iter().skip(1).map(|entry| entry.offset).chain([directory.start]).collect::<Vec<_>>();
        // Headers of entries without content: whoever opens the archive looks at all of them.
        let mut frame: Vec<(u64, Vec<u8>)> = entries.iter().map(|entry| (entry.offset, local_header(&entry.name))).collect();
        let mut spans = HashMap::new();
        for (entry, end) in entries.into_iter().zip(ends) {
            if end < entry.offset + LOCAL_LENGTH as u64 {
                return Err(wrong("two of its entries overlap"));
            }
            if entry.name.ends_with("data.pkl") {
                let bytes = read(entry.offset..end).await?;
                came += bytes.len() as u64;
                frame.push((entry.offset, bytes));
            }
            if spans.insert(entry.name.clone(), entry.offset..end).is_some() {
                return Err(broken(format!("pytorch_model.bin has two entries `{}`", entry.name)));
            }
        }
        frame.push((start, tail));
        Ok((Archive { spans, frame }, came))
    }

    /// Bytes that must be there, and where; later ones count.
    pub(crate) fn frame(&self) -> &[(u64, Vec<u8>)] {
        &self.frame
    }

    /// Header and content of an entry.
    pub(crate) fn span(&self, entry: &str) -> Option<Range<u64>> {
        self.spans.get(entry).cloned()
    }
}

fn number(bytes: &[u8], at: usize, length: usize) -> Result<u64, String> {
    let field = bytes.get(at..at + length).ok_or("it is truncated")?;
    Ok(field.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// Where the directory is, by the archive's last bytes.
fn directory(tail: &[u8], size: u64) -> Result<Range<u64>, String> {
    let end = tail.windows(4).rposition(|w| w == END).ok_or("its end is not one of a zip file")?;
    let (length, offset) = (number(tail, end + 12, 4)?, number(tail, end + 16, 4)?);
    if length != LARGE && offset != LARGE && number(tail, end + 10, 2)? != 0xffff {
        return Ok(offset..offset.saturating_add(length));
    }
    // Then a locator of 20 bytes stands before it, which says where the larger record is.
    let locator = end.checked_sub(20).ok_or("it is truncated")?;
    let record = number(tail, locator + 8, 8)?;
    let at = record.checked_sub(size - tail.len() as u64).ok_or("its directory cannot be where it says")? as usize;
    if tail.get(at..at.saturating_add(4)) != Some(&END_64) {
        return Err("its 64-bit end is missing".to_owned());
    }
    let (length, offset) = (number(tail, at + 40, 8)?, number(tail, at + 48, 8)?);
    Ok(offset..offset.saturating_add(length))
}

fn entries(mut directory: &[u8]) -> Result<Vec<Entry>, String> {
    let mut found = Vec::new();
    while !directory.is_empty() {
        if !directory.starts_with(&ENTRY) {
            return Err("its directory is damaged".to_owned());
        }
        let [name, extra, comment] = [28, 30, 32].map(|at| number(directory, at, 2).map(|n| n as usize));
        let (name, extra, comment) = (name?, extra?, comment?);
        let text = directory.get(46..46 + name).ok_or("it is truncated")?;
        let fields = directory.get(46 + name..46 + name + extra).ok_or("it is truncated")?;
        let mut offset = number(directory, 42, 4)?;
        if offset == LARGE {
            // Sizes come first, those that did not fit either.
            let before = [20, 24].iter().filter(|at| number(directory, **at, 4) == Ok(LARGE)).count();
            offset = wide(fields, 8 * before)?;
        }
        found.push(Entry { name: String::from_utf8_lossy(text).into_owned(), offset });
        directory = directory.get(46 + name + extra + comment..).ok_or("it is truncated")?;
    }
    match found.is_empty() {
        true => Err("it is empty".to_owned()),
        false => Ok(found),
    }
}

/// Eight bytes of the 64-bit extra field.
fn wide(mut fields: &[u8], at: usize) -> Result<u64, String> {
    loop {
        let (id, length) = (number(fields, 0, 2)?, number(fields, 2, 2)? as usize);
        let content = fields.get(4..4 + length).ok_or("it is truncated")?;
        if id == 1 {
            return number(content, at, 8);
        }
        fields = &fields[4 + length..];
    }
}

/// The header of an entry that is stored as it is.
fn local_header(name: &str) -> Vec<u8> {
    let mut header = vec![0; LOCAL_LENGTH];
    header[..4].copy_from_slice(&LOCAL);
    header[4] = 20;
    header[26..28].copy_from_slice(&(name.len() as u16).to_le_bytes());
    header.extend(name.as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_beyond_32_bits_are_found() {
        let mut entry = ENTRY.to_vec();
        entry.resize(46, 0);
        entry[20..24].fill(0xff);
        entry[24..28].fill(0xff);
        entry[42..46].fill(0xff);
        entry[28..30].copy_from_slice(&3u16.to_le_bytes());
        entry[30..32].copy_from_slice(&32u16.to_le_bytes());
        entry.extend(b"a/b");
        // Another field first.
        entry.extend([9, 0, 0, 0]);
        entry.extend([1, 0, 24, 0]);
        [7u64, 7, 5 << 32].iter().for_each(|n| entry.extend(n.to_le_bytes()));
        let found = entries(&entry).unwrap();
        assert_eq!((found[0].name.as_str(), found[0].offset), ("a/b", 5 << 32));
        for cut in 1..entry.len() {
            assert!(entries(&entry[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_directory_of_64_bits_is_found() {
        let size = 10_000u64 + 200;
        let mut tail = vec![0; 102];
        tail[..4].copy_from_slice(&END_64);
        tail[40..48].copy_from_slice(&77u64.to_le_bytes());
        tail[48..56].copy_from_slice(&9_000u64.to_le_bytes());
        let locator = tail.len() - 42;
        tail[locator + 8..locator + 16].copy_from_slice(&(size - 102).to_le_bytes());
        let end = tail.len() - 22;
        tail[end..end + 4].copy_from_slice(&END);
        tail[end + 10..end + 20].fill(0xff);
        assert_eq!(directory(&tail, size).unwrap(), 9_000..9_077);
        assert!(directory(&tail[10..], size).is_err());
        assert!(directory(b"nothing of the kind", 19).is_err());
    }
}
