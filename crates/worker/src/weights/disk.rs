//! A checkpoint's folder in the cache: one file per tensor, whole and verified, or on its way.
//!
//! ```text
//! <digest>/manifest            as it came
//! <digest>/config.json ...     the files beside the weights
//! <digest>/tensors/NAME        verified before it got this name
//! <digest>/tensors/NAME.incomplete
//! ```
//!
//! Processes of one machine may share it: who fetches a tensor holds a lock on its incomplete file.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use janus_model::Digest;
use janus_model::weights::{TensorDigest, TensorHash};
use janus_spec::Files;
use janus_wire::v1::ManifestResponse;
use prost::Message;

use super::manifest;
use crate::Error;

const MANIFEST: &str = "manifest";
const BUFFER: usize = 1 << 20;

pub(super) fn cannot(path: &Path, source: std::io::Error) -> Error {
    Error::Cache { path: path.display().to_string(), source }
}

/// The folder of one checkpoint.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// What an earlier start left there, if it can still be read.
    pub(super) fn find(cache: &Path, digest: &str) -> Option<(Folder, ManifestResponse)> {
        let folder = Folder(cache.join(digest));
        let bytes = fs::read(folder.0.join(MANIFEST)).ok()?;
        Some((folder, ManifestResponse::decode(&bytes[..]).ok()?))
    }

    /// Files of a manifest in a folder that nobody else sees yet.
    pub(super) fn draft(cache: &Path, manifest: &ManifestResponse) -> Result<Folder, Error> {
        // Containers that share a cache may share process ids, too.
        let number = RandomState::new().build_hasher().finish();
        let folder = Folder(cache.join(format!(".draft-{number:016x}")));
        let tensors = folder.0.join("tensors");
        fs::create_dir_all(&tensors).map_err(|e| cannot(&tensors, e))?;
        manifest::write_files(manifest, &folder.0)?;
        let path = folder.0.join(MANIFEST);
        fs::write(&path, manifest.encode_to_vec()).map_err(|e| cannot(&path, e))?;
        Ok(folder)
    }

    /// Gives a draft that proved itself its name. Another process may have been faster with the same; what is there and
    /// damaged gives way, its tensors excepted.
    pub(super) fn publish(self, cache: &Path, digest: &Digest) -> Result<Folder, Error> {
        let to = Folder(cache.join(digest.to_string()));
        if fs::rename(&self.0, &to.0).is_ok() {
            return Ok(to);
        }
        for entry in fs::read_dir(&self.0).map_err(|e| cannot(&self.0, e))?.flatten() {
            if entry.path().is_file() {
                fs::rename(entry.path(), to.0.join(entry.file_name())).map_err(|e| cannot(&to.0, e))?;
            }
        }
        fs::create_dir_all(to.0.join("tensors")).map_err(|e| cannot(&to.0, e))?;
        self.discard();
        Ok(to)
    }

    /// Removes a draft.
    pub(super) fn discard(&self) {
        let _ = fs::remove_dir_all(&self.0);
    }

    pub(super) fn files(&self) -> Files {
        Files::Dir(self.0.clone())
    }

    fn tensor(&self, name: &str) -> PathBuf {
        self.0.join("tensors").join(name)
    }

    /// A tensor that is there, compared with its digest; one that does not fit is removed.
    pub(super) fn verified(&self, tensor: &TensorDigest) -> Result<bool, Error> {
        let path = self.tensor(&tensor.tensor.name);
        let Ok(mut file) = File::open(&path) else { return Ok(false) };
        let mut hash = TensorHash::new(&tensor.tensor, tensor.dtype);
        let length = feed(&mut file, &mut hash).map_err(|e| cannot(&path, e))?;
        if length == tensor.bytes() && hash.finish() == tensor.digest {
            return Ok(true);
        }
        tracing::warn!(path = %path.display(), "a tensor in the cache is damaged; it is fetched again");
        fs::remove_file(&path).map_err(|e| cannot(&path, e))?;
        Ok(false)
    }

    /// A file that a tensor is fetched into; waits while another process fetches it. `None` if that one brought it.
    pub(super) fn claim(&self, tensor: &TensorDigest) -> Result<Option<Incomplete>, Error> {
        let whole = self.tensor(&tensor.tensor.name);
        let path = self.tensor(&format!("{}.incomplete", tensor.tensor.name));
        let disk = |e: std::io::Error| cannot(&path, e);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(disk)?;
        file.lock().map_err(disk)?;
        if whole.exists() {
            let _ = fs::remove_file(&path);
            return Ok(None);
        }
        let mut incomplete = Incomplete {
            whole,
            path,
            file,
            length: 0,
            hash: TensorHash::new(&tensor.tensor, tensor.dtype),
            tensor: tensor.clone(),
        };
        incomplete.length = feed(&mut incomplete.file, &mut incomplete.hash).map_err(|e| cannot(&incomplete.path, e))?;
        // Whole elements: that is what can be asked for.
        let rest = incomplete.length % tensor.dtype.size() as u64;
        if incomplete.length > tensor.bytes() || rest != 0 {
            incomplete.clear()?;
        }
        Ok(Some(incomplete))
    }

    /// A part of a tensor that is there.
    pub(super) fn read(&self, name: &str, offset: u64, length: usize) -> Result<Vec<u8>, String> {
        use std::os::unix::fs::FileExt;
        let path = self.tensor(name);
        let mut bytes = vec![0; length];
        let read = File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, offset));
        read.map(|()| bytes).map_err(|e| format!("{}: {e}", path.display()))
    }
}

fn feed(file: &mut File, hash: &mut TensorHash) -> std::io::Result<u64> {
    let (mut buffer, mut total) = (vec![0; BUFFER], 0);
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(total);
        }
        hash.update(&buffer[..count]);
        total += count as u64;
    }
}

/// A tensor on its way, locked.
pub(super) struct Incomplete {
    whole: PathBuf,
    path: PathBuf,
    file: File,
    tensor: TensorDigest,
    hash: TensorHash,
    pub(super) length: u64,
}

impl Incomplete {
    pub(super) fn is_full(&self) -> bool {
        self.length == self.tensor.bytes()
    }

    /// Adds bytes; more than the tensor has are refused.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.length + bytes.len() as u64 > self.tensor.bytes() {
            return Err(Error::Invalid(format!("more bytes than `{}` has", self.tensor.tensor.name)));
        }
        self.file.write_all(bytes).map_err(|e| cannot(&self.path, e))?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Starts over.
    pub(super) fn clear(&mut self) -> Result<(), Error> {
        self.length = 0;
        self.hash = TensorHash::new(&self.tensor.tensor, self.tensor.dtype);
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map(drop).map_err(|e| cannot(&self.path, e))
    }

    /// Whether all bytes are there and are the tensor's; then it gets its name.
    pub(super) fn finish(&mut self) -> Result<bool, Error> {
        if self.hash.clone().finish() != self.tensor.digest {
            return Ok(false);
        }
        let named = self.file.sync_data().and_then(|()| fs::rename(&self.path, &self.whole));
        named.map(|()| true).map_err(|e| cannot(&self.whole, e))
    }
}
