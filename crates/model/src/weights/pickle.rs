//! PyTorch's `pytorch_model.bin`: a zip archive with a pickle that names the tensors. candle's reader interprets the
//! opcodes and executes nothing; this file looks at a pickle before candle does, because candle copies what a pickle
//! repeats and recurses into what it nests, so that a kilobyte could ask for a terabyte or for the whole stack.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use candle_core::pickle::PthTensors;
use zip::{CompressionMethod, ZipArchive};

/// Longest pickle we read; the published ones have 0.3 MB.
const MAX_PICKLE: u64 = 16 << 20;
/// Most objects a pickle may make, copies included, long texts counted by the piece.
const MAX_OBJECTS: u64 = 1 << 22;
/// Deepest nesting; a state dict needs seven levels.
const MAX_DEPTH: u32 = 64;

/// Opens an archive whose every pickle is harmless to candle's reader.
pub(super) fn open(path: &Path) -> Result<PthTensors, String> {
    require_zip(path)?;
    let file = File::open(path).map_err(|e| format!("cannot be opened: {e}"))?;
    let broken = |e: zip::result::ZipError| format!("is truncated or damaged: {e}");
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    let mut pickles = 0;
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(broken)?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        if entry.compression() != CompressionMethod::Stored {
            return Err(format!("holds `{name}` compressed, which PyTorch never does"));
        }
        if !name.ends_with("data.pkl") {
            continue;
        }
        let mut bytes = Vec::new();
        entry.take(MAX_PICKLE + 1).read_to_end(&mut bytes).map_err(|e| format!("`{name}` cannot be read: {e}"))?;
        if bytes.len() as u64 > MAX_PICKLE {
            return Err(format!("`{name}` is larger than {MAX_PICKLE} bytes"));
        }
        Machine::new(&bytes).run().map_err(|reason| format!("`{name}` is not a pickle of tensors: {reason}"))?;
        pickles += 1;
    }
    if pickles == 0 {
        return Err("holds no data.pkl: not a PyTorch checkpoint".to_owned());
    }
    quietly(|| PthTensors::new(path, None))
}

/// Only the zip form (PyTorch 1.6 and later) is read.
fn require_zip(path: &Path) -> Result<(), String> {
    let mut magic = [0; 4];
    match File::open(path).and_then(|mut file| file.read_exact(&mut magic)) {
        Err(e) => Err(format!("is truncated: {e}")),
        Ok(()) if &magic == b"PK\x03\x04" => Ok(()),
        Ok(()) => Err("is not a PyTorch zip archive (saved by PyTorch older than 1.6, truncated, or a pointer to a file \
                       that was never downloaded)"
            .to_owned()),
    }
}

/// Runs candle's pickle reader so that neither its errors' backtraces nor a panic on a hostile file get out.
pub(super) fn quietly<T>(read: impl FnOnce() -> candle_core::Result<T>) -> Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => {
            let text = e.to_string();
            Err(format!("is damaged: {}", text.lines().next().unwrap_or("unreadable")))
        }
        Err(_) => Err("is damaged: the pickle reader gave up".to_owned()),
    }
}

/// How large an object on the stack is.
#[derive(Clone, Copy)]
struct Object {
    objects: u64,
    depth: u32,
}

const ATOM: Object = Object { objects: 1, depth: 1 };

/// Runs a pickle's opcodes over sizes instead of objects.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// `None` is a mark.
    stack: Vec<Option<Object>>,
    memo: HashMap<u32, Object>,
    made: u64,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Machine { bytes, at: 0, stack: Vec::new(), memo: HashMap::new(), made: 0 }
    }

    fn run(&mut self) -> Result<(), String> {
        loop {
            let start = self.at;
            match self.take(1)?[0] {
                b'.' => return self.pop().map(drop),
                0x80 => drop(self.take(1)?),
                b'c' => self.global()?,
                b'(' => self.stack.push(None),
                b')' | b'}' | b']' | b'N' | 0x88 | 0x89 => self.push(ATOM)?,
                b'K' => self.number(1)?,
                b'M' => self.number(2)?,
                b'J' => self.number(4)?,
                b'G' => self.number(8)?,
                0x8a => {
                    let length = self.take(1)?[0];
                    self.number(usize::from(length))?;
                }
                b'X' => {
                    let length = self.u32()? as usize;
                    self.take(length)?;
                    self.push(Object { objects: 1 + length as u64 / 64, depth: 1 })?;
                }
                b'q' => {
                    let id = u32::from(self.take(1)?[0]);
                    self.put(id)?;
                }
                b'r' => {
                    let id = self.u32()?;
                    self.put(id)?;
                }
                b'h' => {
                    let id = u32::from(self.take(1)?[0]);
                    self.get(id)?;
                }
                b'j' => {
                    let id = self.u32()?;
                    self.get(id)?;
                }
                b't' | b'd' => self.wrap_to_mark()?,
                0x85 | b'Q' => self.wrap(1)?,
                0x86 | b'R' | b'b' | 0x81 => self.wrap(2)?,
                0x87 => self.wrap(3)?,
                b'a' => self.extend(1)?,
                b's' => self.extend(2)?,
                b'e' | b'u' => {
                    let count = self.since_mark()?;
                    let items = self.stack.split_off(self.stack.len() - count);
                    self.stack.pop();
                    self.stack.extend(items);
                    self.extend(count)?;
                }
                other => return Err(format!("opcode {other:#04x} at byte {start} has no place in one")),
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("it is truncated at byte {}", self.bytes.len()))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, String> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn number(&mut self, size: usize) -> Result<(), String> {
        self.take(size)?;
        self.push(ATOM)
    }

    /// A name of Python's; what tensors are made of is known.
    fn global(&mut self) -> Result<(), String> {
        let rest = &self.bytes[self.at..];
        let mut lines = rest.split_inclusive(|b| *b == b'\n');
        let (module, name) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        self.take(module.len() + name.len())?;
        let text = |line: &[u8]| String::from_utf8_lossy(line).trim_end().to_owned();
        let (module, name) = (text(module), text(name));
        let known = ["collections", "__torch__", "torch"].contains(&module.as_str()) || module.starts_with("torch.");
        if !known {
            return Err(format!("it asks for `{module}.{name}`"));
        }
        self.push(ATOM)
    }

    /// A new object, or a copy of one.
    fn push(&mut self, object: Object) -> Result<(), String> {
        self.count(object.objects)?;
        self.place(object)
    }

    fn count(&mut self, made: u64) -> Result<(), String> {
        self.made = self.made.saturating_add(made);
        if self.made > MAX_OBJECTS { Err(format!("it unfolds into more than {MAX_OBJECTS} objects")) } else { Ok(()) }
    }

    fn place(&mut self, object: Object) -> Result<(), String> {
        if object.depth > MAX_DEPTH {
            return Err(format!("it nests deeper than {MAX_DEPTH} levels"));
        }
        self.stack.push(Some(object));
        Ok(())
    }

    fn pop(&mut self) -> Result<Object, String> {
        self.stack.pop().flatten().ok_or_else(|| format!("nothing is left on its stack at byte {}", self.at))
    }

    fn put(&mut self, id: u32) -> Result<(), String> {
        let object = self.pop()?;
        self.stack.push(Some(object));
        self.memo.insert(id, object);
        self.count(object.objects)
    }

    fn get(&mut self, id: u32) -> Result<(), String> {
        let object = *self.memo.get(&id).ok_or_else(|| format!("it recalls {id}, which it never stored"))?;
        self.push(object)
    }

    /// Objects above the topmost mark.
    fn since_mark(&self) -> Result<usize, String> {
        let above = self.stack.iter().rev().position(Option::is_none);
        above.ok_or_else(|| format!("no mark is left at byte {}", self.at))
    }

    fn wrap_to_mark(&mut self) -> Result<(), String> {
        let count = self.since_mark()?;
        let mark = self.stack.len() - count - 1;
        self.stack.remove(mark);
        self.wrap(count)
    }

    /// The topmost `count` objects become parts of a new one.
    fn wrap(&mut self, count: usize) -> Result<(), String> {
        let mut whole = ATOM;
        for _ in 0..count {
            let part = self.pop()?;
            whole = Object { objects: whole.objects + part.objects, depth: whole.depth.max(part.depth + 1) };
        }
        self.count(1)?;
        self.place(whole)
    }

    /// The topmost `count` objects become parts of the container below them.
    fn extend(&mut self, count: usize) -> Result<(), String> {
        self.wrap(count)?;
        let parts = self.pop()?;
        let container = self.pop()?;
        self.place(Object { objects: container.objects + parts.objects, depth: container.depth.max(parts.depth) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(bytes: &[u8]) -> Result<(), String> {
        Machine::new(bytes).run()
    }

    #[test]
    fn ordinary_pickles_pass() {
        // {'a': (1, 2)}, with a memo, as protocol 2 writes it.
        verdict(b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01K\x02\x86q\x02s.").unwrap();
        // An OrderedDict of one pair.
        verdict(b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(X\x01\x00\x00\x00aNu.").unwrap();
    }

    #[test]
    fn bombs_and_calls_are_refused() {
        let mut doubling = b"\x80\x02)q\x00".to_vec();
        (0..60).for_each(|_| doubling.extend(b"h\x00\x86q\x00"));
        assert!(verdict(&doubling).unwrap_err().contains("objects"));
        let deep = [&[b')'][..], &[0x85; 1000], b"."].concat();
        assert!(verdict(&deep).unwrap_err().contains("deeper"));
        assert!(verdict(b"cos\nsystem\n(X\x02\x00\x00\x00lstR.").unwrap_err().contains("`os.system`"));
        assert!(verdict(b"\x80\x02\x93.").unwrap_err().contains("opcode 0x93 at byte 2"));
        assert!(verdict(b"X\xff\xff\xff\xffabc").unwrap_err().contains("truncated"));
        for broken in [&b""[..], b"(", b".", b"t.", b"h\x07.", b"\x85.", b"(u.", b"c"] {
            verdict(broken).unwrap_err();
        }
    }
}
