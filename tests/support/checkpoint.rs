//! Copies of tiny-a whose files can be replaced one by one.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::tiny;

/// A folder of links to the files of one form; whatever is written replaces the link.
pub struct Checkpoint {
    dir: tempfile::TempDir,
}

impl Checkpoint {
    pub fn copy(form: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(tiny(form)).unwrap() {
            let source = entry.unwrap().path();
            std::os::unix::fs::symlink(&source, dir.path().join(source.file_name().unwrap())).unwrap();
        }
        Checkpoint { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.file(name);
        if path.symlink_metadata().is_ok() {
            std::fs::remove_file(&path).unwrap();
        }
        std::fs::write(path, bytes).unwrap();
    }

    /// Cuts a file to its first `length` bytes.
    pub fn cut(&self, name: &str, length: usize) {
        let bytes = std::fs::read(self.file(name)).unwrap();
        self.write(name, &bytes[..length]);
    }

    /// Sets the value at a dotted path of a JSON file.
    pub fn set(&self, name: &str, key: &str, value: Value) {
        let mut root: Value = serde_json::from_slice(&std::fs::read(self.file(name)).unwrap()).unwrap();
        let place = key.split('.').fold(&mut root, |at, part| &mut at[part]);
        *place = value;
        self.write(name, root.to_string());
    }

    pub fn edit_safetensors(&self, edit: impl FnOnce(&mut Safetensors)) {
        let name = "model.safetensors";
        let mut file = Safetensors::read(&self.file(name));
        edit(&mut file);
        self.write(name, file.to_bytes());
    }

    /// Rewrites the archive with whatever `edit` makes of each entry; `None` leaves it out.
    pub fn edit_archive(&self, method: CompressionMethod, edit: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) {
        let name = "pytorch_model.bin";
        let mut archive = ZipArchive::new(std::fs::File::open(self.file(name)).unwrap()).unwrap();
        let mut out = ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for i in 0..archive.len() {
            let mut entry = archive.by_index(i).unwrap();
            let entry_name = String::from_utf8(entry.name_raw().to_vec()).unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if let Some(bytes) = edit(&entry_name, bytes) {
                out.start_file(entry_name, SimpleFileOptions::default().compression_method(method)).unwrap();
                out.write_all(&bytes).unwrap();
            }
        }
        self.write(name, out.finish().unwrap().into_inner());
    }

    /// Puts another pickle into the archive.
    pub fn set_pickle(&self, pickle: &[u8]) {
        let replaced = |name: &str, bytes| Some(if name.ends_with("data.pkl") { pickle.to_vec() } else { bytes });
        self.edit_archive(CompressionMethod::Stored, replaced);
    }
}

/// A safetensors file taken apart.
pub struct Safetensors {
    pub header: Map<String, Value>,
    pub data: Vec<u8>,
}

impl Safetensors {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        Safetensors { header: serde_json::from_slice(header).unwrap(), data: data.to_vec() }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        with_header(&Value::Object(self.header.clone()).to_string(), &self.data)
    }

    fn place(&self, name: &str) -> std::ops::Range<usize> {
        let offsets = &self.header[name]["data_offsets"];
        let at = |i: usize| offsets[i].as_u64().unwrap() as usize;
        at(0)..at(1)
    }

    pub fn tensor(&self, name: &str) -> &[u8] {
        &self.data[self.place(name)]
    }

    /// Overwrites all elements of a bf16 tensor.
    pub fn fill(&mut self, name: &str, bits: u16) {
        let place = self.place(name);
        self.data[place].as_chunks_mut::<2>().0.fill(bits.to_le_bytes());
    }

    /// Overwrites an element of a bf16 tensor.
    pub fn set(&mut self, name: &str, index: usize, bits: u16) {
        let start = self.place(name).start + 2 * index;
        self.data[start..start + 2].copy_from_slice(&bits.to_le_bytes());
    }
}

/// A safetensors file with this header, whatever it says.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}
