//! Weight files: an index over every tensor of a checkpoint and reads of single tensors by name.
//!
//! Safetensors are read with plain positioned reads, only the bytes asked for: no memory map, so a file that
//! shrinks under us is an error and not a signal, and no page of another stage's layers is ever touched.
//! PyTorch pickles go through candle's reader, which interprets the opcodes and executes nothing.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::pickle::PthTensors;
use janus_spec::Files;

use super::apart::Tensors;
use super::{TensorDecl, TensorDigest, header, pickle, random};
use crate::error::{Error, Result};

/// Longest header we read: candle's and safetensors' own limit.
const MAX_HEADER: u64 = 100_000_000;

/// Element types that weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

/// One tensor as a file declares it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) dtype: std::result::Result<Dtype, String>,
    pub(crate) shape: Vec<usize>,
    file: usize,
    /// Byte offset in the file (safetensors only).
    offset: u64,
}

enum Body {
    File(File),
    Memory(&'static [u8]),
    Pickle(PthTensors),
    /// Filled from this seed.
    Random(u64),
    /// Somewhere else until they are needed.
    Apart(Arc<dyn Tensors>),
}

struct WeightFile {
    name: String,
    body: Body,
}

/// All weight files of a checkpoint.
pub(crate) struct Source {
    files: Vec<WeightFile>,
    entries: HashMap<String, Entry>,
}

impl Source {
    /// Finds and indexes `model.safetensors`, sharded safetensors, `pytorch_model.bin` or sharded pickles,
    /// in this order of preference.
    pub(crate) fn open(files: &Files) -> Result<Self> {
        let mut source = Source { files: Vec::new(), entries: HashMap::new() };
        if let Some(names) = shards(files, "model.safetensors")? {
            for name in names {
                source.add_safetensors(files, &name)?;
            }
        } else if let Some(names) = shards(files, "pytorch_model.bin")? {
            for name in names {
                source.add_pickle(files, &name)?;
            }
        } else {
            return Err(Error::WeightFile {
                file: files.display(),
                reason: "no weights found: expected model.safetensors, model.safetensors.index.json, pytorch_model.bin or \
                         pytorch_model.bin.index.json"
                    .to_owned(),
            });
        }
        Ok(source)
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Reads elements `[start, start + count)` of the flattened tensor as stored bytes.
    pub(crate) fn read(&self, name: &str, entry: &Entry, start: usize, count: usize) -> Result<Vec<u8>> {
        let dtype = entry.dtype.clone().map_err(|found| Error::Dtype { name: name.to_owned(), found })?;
        let file = &self.files[entry.file];
        let fail =
            |reason: String| Error::WeightFile { file: file.name.clone(), reason: format!("tensor `{name}`: {reason}") };
        let (skip, length) = (start * dtype.size(), count * dtype.size());
        match &file.body {
            Body::File(handle) => {
                let mut bytes = vec![0; length];
                handle
                    .read_exact_at(&mut bytes, entry.offset + skip as u64)
                    .map_err(|e| fail(format!("cannot be read: {e}")))?;
                Ok(bytes)
            }
            Body::Memory(all) => {
                let from = entry.offset as usize + skip;
                Ok(all[from..from + length].to_vec())
            }
            Body::Pickle(reader) => {
                let tensor = pickle::quietly(|| reader.get(name))
                    .map_err(fail)?
                    .ok_or_else(|| fail("vanished from the file".to_owned()))?;
                let bytes = tensor_bytes(&tensor).map_err(|e| fail(e.to_string()))?;
                Ok(bytes[skip..skip + length].to_vec())
            }
            Body::Apart(tensors) => tensors.read(name, skip as u64, length).map_err(fail),
            Body::Random(seed) => Ok(random::bytes(name, &entry.shape, *seed, start, count)),
        }
    }

    /// The tensors of an architecture, filled from a seed, as bf16.
    pub(crate) fn random(tensors: Vec<TensorDecl>, seed: u64) -> Self {
        let entry = |t: TensorDecl| (t.name, Entry { dtype: Ok(Dtype::Bf16), shape: t.shape, file: 0, offset: 0 });
        let files = vec![WeightFile { name: "random weights".to_owned(), body: Body::Random(seed) }];
        Source { files, entries: tensors.into_iter().map(entry).collect() }
    }

    /// Tensors under their canonical names that are read from elsewhere.
    pub(crate) fn apart(tensors: &[TensorDigest], from: Arc<dyn Tensors>) -> Self {
        let entry = |t: &TensorDigest| {
            (t.tensor.name.clone(), Entry { dtype: Ok(t.dtype), shape: t.tensor.shape.clone(), file: 0, offset: 0 })
        };
        let files = vec![WeightFile { name: "weights of the cluster".to_owned(), body: Body::Apart(from) }];
        Source { files, entries: tensors.iter().map(entry).collect() }
    }

    /// The file that holds a tensor, and where in it.
    pub(crate) fn storage(&self, name: &str, entry: &Entry) -> Option<(&str, Storage)> {
        let file = &self.files[entry.file];
        let storage = match (&file.body, &entry.dtype) {
            (Body::Pickle(reader), _) => Storage::Entry(reader.tensor_infos().get(name)?.path.clone()),
            (Body::File(_), Ok(dtype)) => {
                let length = entry.shape.iter().product::<usize>() * dtype.size();
                Storage::Bytes(entry.offset..entry.offset + length as u64)
            }
            _ => return None,
        };
        Some((&file.name, storage))
    }

    /// Whether an entry's bytes are on this machine.
    pub(crate) fn is_here(&self, name: &str, entry: &Entry) -> bool {
        match &self.files[entry.file].body {
            Body::Apart(tensors) => tensors.holds(name),
            _ => true,
        }
    }

    fn add_safetensors(&mut self, files: &Files, name: &str) -> Result<()> {
        let fail = |reason: String| Error::WeightFile { file: name.to_owned(), reason };
        let (body, size) = match files {
            Files::Embedded(list) => {
                let bytes =
                    list.iter().find(|(n, _)| *n == name).map(|(_, b)| *b).ok_or_else(|| fail("is missing".to_owned()))?;
                (Body::Memory(bytes), bytes.len() as u64)
            }
            Files::Dir(dir) => {
                let file = File::open(dir.join(name)).map_err(|e| fail(format!("cannot be opened: {e}")))?;
                let size = file.metadata().map_err(|e| fail(e.to_string()))?.len();
                (Body::File(file), size)
            }
        };
        let read = |offset: u64, length: u64| -> Result<Vec<u8>> {
            let mut bytes = vec![0; length as usize];
            match &body {
                Body::Memory(all) => bytes.copy_from_slice(&all[offset as usize..(offset + length) as usize]),
                Body::File(file) => {
                    file.read_exact_at(&mut bytes, offset).map_err(|e| fail(format!("header cannot be read: {e}")))?;
                }
                Body::Pickle(_) | Body::Random(_) | Body::Apart(_) => {
                    return Err(fail("is not a safetensors file".to_owned()));
                }
            }
            Ok(bytes)
        };
        if size < 8 {
            return Err(fail(format!("is truncated: {size} bytes hold no safetensors header")));
        }
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&read(0, 8)?);
        let header_size = u64::from_le_bytes(prefix);
        if header_size > MAX_HEADER || header_size > size - 8 {
            return Err(fail(format!(
                "claims a header of {header_size} bytes, but the file has {size}: truncated or not safetensors"
            )));
        }
        let (index, data) = (self.files.len(), 8 + header_size);
        for (tensor, info) in header::parse(&read(8, header_size)?, size - data).map_err(fail)? {
            let dtype = match info.dtype {
                safetensors::Dtype::F32 => Ok(Dtype::F32),
                safetensors::Dtype::F16 => Ok(Dtype::F16),
                safetensors::Dtype::BF16 => Ok(Dtype::Bf16),
                other => Err(format!("{other:?}")),
            };
            let entry = Entry { dtype, shape: info.shape, file: index, offset: data + info.data_offsets.0 as u64 };
            self.insert(name, &tensor, entry)?;
        }
        self.files.push(WeightFile { name: name.to_owned(), body });
        Ok(())
    }

    fn add_pickle(&mut self, files: &Files, name: &str) -> Result<()> {
        let fail = |reason: String| Error::WeightFile { file: name.to_owned(), reason };
        let Files::Dir(dir) = files else {
            return Err(fail("pickled weights cannot be embedded".to_owned()));
        };
        let path: PathBuf = dir.join(name);
        let size = std::fs::metadata(&path).map_err(|e| fail(format!("cannot be opened: {e}")))?.len();
        let reader = pickle::open(&path).map_err(fail)?;
        let index = self.files.len();
        for (tensor, info) in reader.tensor_infos() {
            let dtype = match info.dtype {
                candle_core::DType::F32 => Ok(Dtype::F32),
                candle_core::DType::F16 => Ok(Dtype::F16),
                candle_core::DType::BF16 => Ok(Dtype::Bf16),
                other => Err(format!("{other:?}")),
            };
            let shape = info.layout.dims().to_vec();
            let bytes = shape.iter().try_fold(info.dtype.size_in_bytes() as u64, |n, &d| n.checked_mul(d as u64));
            if bytes.is_none_or(|bytes| bytes > size) {
                return Err(fail(format!("lies about `{tensor}`: shape {shape:?} is larger than the file of {size} bytes")));
            }
            self.insert(name, tensor, Entry { dtype, shape, file: index, offset: 0 })?;
        }
        self.files.push(WeightFile { name: name.to_owned(), body: Body::Pickle(reader) });
        Ok(())
    }

    fn insert(&mut self, file: &str, tensor: &str, entry: Entry) -> Result<()> {
        if self.entries.insert(tensor.to_owned(), entry).is_some() {
            return Err(Error::WeightFile { file: file.to_owned(), reason: format!("tensor `{tensor}` appears twice") });
        }
        Ok(())
    }
}

/// The files that hold the weights named `single`: itself, or the shards of `<single>.index.json`.
fn shards(files: &Files, single: &str) -> Result<Option<Vec<String>>> {
    let present = files.names()?;
    if present.iter().any(|name| name == single) {
        return Ok(Some(vec![single.to_owned()]));
    }
    let index_name = format!("{single}.index.json");
    let Some(text) = files.read(&index_name)? else {
        return Ok(None);
    };
    let fail = |reason: String| Error::WeightFile { file: index_name.clone(), reason };
    let index: serde_json::Value = serde_json::from_slice(&text).map_err(|e| fail(format!("is not JSON: {e}")))?;
    let map =
        index.get("weight_map").and_then(|m| m.as_object()).ok_or_else(|| fail("has no object `weight_map`".to_owned()))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| fail(format!("`weight_map.{tensor}` is not a file name")))?;
        // A shard lives beside its index; anything else would let a checkpoint name files of the host.
        if file.is_empty() || file.contains(['/', '\\']) || file.starts_with('.') {
            return Err(fail(format!("`weight_map.{tensor}` names `{file}`, which is not a plain file name")));
        }
        if !present.iter().any(|name| name == file) {
            return Err(fail(format!("`weight_map.{tensor}` names `{file}`, which is not there")));
        }
        names.insert(file.to_owned());
    }
    if names.is_empty() {
        return Err(fail("names no files".to_owned()));
    }
    Ok(Some(names.into_iter().collect()))
}

/// Little-endian bytes of a CPU tensor in row-major order.
fn tensor_bytes(tensor: &candle_core::Tensor) -> candle_core::Result<Vec<u8>> {
    let flat = tensor.flatten_all()?;
    Ok(match flat.dtype() {
        candle_core::DType::BF16 => flat.to_vec1::<half::bf16>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        candle_core::DType::F16 => flat.to_vec1::<half::f16>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => flat.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
    })
}

impl Source {
    pub(crate) fn is_pickle(&self, entry: &Entry) -> bool {
        matches!(self.files[entry.file].body, Body::Pickle(_))
    }
}

/// Where a file keeps a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// These bytes of it.
    Bytes(std::ops::Range<u64>),
    /// An entry of its archive.
    Entry(String),
}
