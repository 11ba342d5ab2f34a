//! A checkpoint's weights: which tensors the architecture needs ([`inventory`]), where either layout keeps them,
//! and reading them checked (shape, element type, no NaN) one tensor, or one band of rows, at a time.
//!
//! Everything that computes is built from here; a stage that owns layers 8 to 16 asks for their tensors and no
//! other byte of the file is read.

mod apart;
mod digest;
mod header;
mod inventory;
mod names;
mod pickle;
mod random;
mod save;
mod source;

use half::{bf16, f16};
use janus_kernels::{Packed, PackedBuilder, WeightFormat};
use janus_spec::{Files, ModelSpec};

pub use apart::Tensors;
pub use digest::{Digest, TensorDigest, TensorHash, checkpoint_digest};
pub use inventory::{Part, TensorDecl, inventory};
pub use source::{Dtype, Storage};

use crate::error::{Error, Result};
use names::Location;
use source::{Entry, Source};

/// Rows are read in bands of about this many bytes, so that packing a large matrix needs little beside its result.
const BAND_BYTES: usize = 4 << 20;

/// An opened checkpoint: its specification and an index over its tensors. Cheap; no weights are read yet.
pub struct Checkpoint {
    /// What config.json says.
    pub spec: ModelSpec,
    /// The files themselves (tokeniser, configuration).
    pub files: Files,
    source: Source,
    /// What was known before any weight was there.
    known: Option<(Digest, Vec<TensorDigest>)>,
}

/// Numbers of one tensor as stored.
enum Stored {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Checkpoint {
    /// Opens a checkpoint and checks that every tensor the architecture needs is there with the right shape.
    pub fn open(files: Files) -> Result<Self> {
        let checkpoint = Checkpoint::open_part(files)?;
        for tensor in inventory(&checkpoint.spec) {
            checkpoint.locate(&tensor.name, &tensor.shape)?;
        }
        Ok(checkpoint)
    }

    /// Opens a checkpoint of which some tensors may be missing; [`holds`](Self::holds) says which are there.
    ///
    /// # Errors
    /// Files that cannot be read, or lie.
    pub fn open_part(files: Files) -> Result<Self> {
        let spec = ModelSpec::load(&files)?;
        let source = Source::open(&files)?;
        Ok(Checkpoint { spec, files, source, known: None })
    }

    /// A checkpoint of `spec` whose weights come from a seed: it computes as fast as a real one and means nothing.
    pub fn random(spec: ModelSpec, seed: u64) -> Self {
        let spec = ModelSpec { layout: janus_spec::Layout::Transformers, ..spec };
        let source = Source::random(inventory(&spec), seed);
        Checkpoint { spec, files: Files::Embedded(&[]), source, known: None }
    }

    /// The format weights are computed in unless the user asks for another: as stored, which loses nothing
    /// (bf16 stays bf16; f16 and f32 become f32).
    pub fn native_format(&self) -> WeightFormat {
        let name = "model.language_model.norm.weight";
        match self.find(name).map(|(_, entry)| &entry.dtype) {
            Some(Ok(Dtype::Bf16)) => WeightFormat::Bf16,
            _ => WeightFormat::F32,
        }
    }

    /// What everything but the language model's layers and heads is computed in when those are in `format`: towers,
    /// aligners and tables are never quantised, they stay as stored.
    pub fn unquantised(&self, format: WeightFormat) -> WeightFormat {
        match format {
            WeightFormat::Q8 | WeightFormat::Q4 => self.native_format(),
            WeightFormat::F32 | WeightFormat::Bf16 => format,
        }
    }

    /// How the tensor is stored; `None` if it is absent.
    pub fn dtype_of(&self, name: &str) -> Option<Dtype> {
        self.find(name).and_then(|(_, entry)| entry.dtype.clone().ok())
    }

    /// A whole tensor as f32, in row-major order of `shape`.
    ///
    /// # Errors
    /// Missing tensor, other shape, unreadable bytes, NaN or infinity; each names the tensor.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let (location, entry) = self.locate(name, shape)?;
        let count: usize = shape.iter().product();
        let mut out = Vec::with_capacity(count);
        let band = if self.source.is_pickle(entry) { count } else { BAND_BYTES / 4 };
        for start in (0..count).step_by(band.max(1)) {
            match self.read(&location, entry, shape, start, band.min(count - start))? {
                Stored::F32(values) => out.extend(values),
                Stored::Bf16(values) => out.extend(values.into_iter().map(|b| bf16::from_bits(b).to_f32())),
            }
        }
        Ok(out)
    }

    /// A whole tensor in its stored bf16.
    ///
    /// # Errors
    /// As [`f32`](Self::f32); also if it is stored in another type.
    pub fn bf16(&self, name: &str, shape: &[usize]) -> Result<Vec<bf16>> {
        let (location, entry) = self.locate(name, shape)?;
        let count: usize = shape.iter().product();
        let mut out = Vec::with_capacity(count);
        let band = if self.source.is_pickle(entry) { count } else { BAND_BYTES / 2 };
        for start in (0..count).step_by(band.max(1)) {
            match self.read(&location, entry, shape, start, band.min(count - start))? {
                Stored::Bf16(values) => out.extend(values.into_iter().map(bf16::from_bits)),
                Stored::F32(_) => {
                    return Err(Error::Dtype { name: location.name, found: "another type than BF16".to_owned() });
                }
            }
        }
        Ok(out)
    }

    /// Packs the rows of several `[n_i, k]` weights, one below the other, into one GEMM operand (fused q, k, v;
    /// gate and up). Trailing dimensions of size 1 are ignored, so a 1x1 convolution is a matrix.
    pub fn packed(&self, parts: &[(&str, usize)], k: usize, format: WeightFormat) -> Result<Packed> {
        let n = parts.iter().map(|(_, n)| n).sum();
        let mut builder = PackedBuilder::new(n, k, format);
        for &(name, rows) in parts {
            self.for_each_band(name, rows, k, |band| match band {
                Stored::F32(values) => values.chunks_exact(k).try_for_each(|row| builder.push_row_f32(row)),
                Stored::Bf16(values) => values.chunks_exact(k).try_for_each(|row| builder.push_row_bf16(row)),
            })?;
        }
        Ok(builder.finish()?)
    }

    /// Runs `consume` over bands of rows of the `[n, k]` tensor.
    fn for_each_band(
        &self,
        name: &str,
        n: usize,
        k: usize,
        mut consume: impl FnMut(Stored) -> Result<(), janus_kernels::Error>,
    ) -> Result<()> {
        let shape = [n, k];
        let (location, entry) = self.locate(name, &shape)?;
        let pickled = self.source.is_pickle(entry);
        // A pickle hands out whole tensors only.
        let rows = if pickled { n } else { (BAND_BYTES / (4 * k)).max(1) };
        for first in (0..n).step_by(rows) {
            let count = rows.min(n - first);
            consume(self.read(&location, entry, &shape, first * k, count * k)?)?;
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<(Location, &Entry)> {
        let candidates = names::candidates(&self.spec, name);
        candidates.into_iter().find_map(|location| self.source.entry(&location.name).map(|entry| (location, entry)))
    }

    fn locate(&self, name: &str, shape: &[usize]) -> Result<(Location, &Entry)> {
        let Some((location, entry)) = self.find(name) else {
            let name = names::locate(self.spec.layout, name).swap_remove(0).name;
            return Err(Error::MissingTensor { name });
        };
        let parts = location.part.map_or(1, |(_, parts)| parts);
        let mut expected = shape.to_vec();
        if let Some(first) = expected.first_mut() {
            *first *= parts;
        }
        if !same_rows(&entry.shape, &expected) {
            return Err(Error::Shape { name: location.name, found: entry.shape.clone(), expected });
        }
        Ok((location, entry))
    }

    /// Elements `[start, start + count)` of the (part of the) tensor, checked to be numbers that can be computed with.
    fn read(&self, location: &Location, entry: &Entry, shape: &[usize], start: usize, count: usize) -> Result<Stored> {
        let base = location.part.map_or(0, |(part, _)| part * shape.iter().product::<usize>());
        let bytes = self.source.read(&location.name, entry, base + start, count)?;
        check_values(&location.name, &bytes, &entry.dtype, base + start)?;
        Ok(match entry.dtype {
            Ok(Dtype::Bf16) => Stored::Bf16(bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()),
            Ok(Dtype::F16) => {
                Stored::F32(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect())
            }
            _ => Stored::F32(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        })
    }

    /// Elements `[start, start + count)` of a tensor as stored, little-endian, checked like those that are computed with.
    ///
    /// # Errors
    /// As [`f32`](Self::f32), and a range outside the tensor.
    pub fn stored(&self, decl: &TensorDecl, start: usize, count: usize) -> Result<(Dtype, Vec<u8>)> {
        let (location, entry) = self.locate(&decl.name, &decl.shape)?;
        let elements = decl.shape.iter().product::<usize>();
        if start.checked_add(count).is_none_or(|end| end > elements) {
            return Err(Error::Argument(format!("`{}` has {elements} elements, none at {start} + {count}", decl.name)));
        }
        let dtype = entry.dtype.clone().map_err(|found| Error::Dtype { name: location.name.clone(), found })?;
        let base = location.part.map_or(0, |(part, _)| part * elements) + start;
        let bytes = self.source.read(&location.name, entry, base, count)?;
        check_values(&location.name, &bytes, &entry.dtype, base)?;
        Ok((dtype, bytes))
    }

    /// The file that holds a tensor, and where in it; for whoever fetches single tensors of a file. Only the file's
    /// header, or its pickle, has to be there.
    ///
    /// # Errors
    /// The tensor is missing or of another shape or type, or not in a file.
    pub fn storage(&self, decl: &TensorDecl) -> Result<(&str, Storage)> {
        let (location, entry) = self.locate(&decl.name, &decl.shape)?;
        let found = self.source.storage(&location.name, entry);
        found.ok_or_else(|| Error::Argument(format!("tensor `{}` is in no file", location.name)))
    }

    /// Whether a part of a tensor can be read without reading all of it.
    pub fn reads_ranges(&self, decl: &TensorDecl) -> bool {
        self.find(&decl.name).is_some_and(|(_, entry)| !self.source.is_pickle(entry))
    }
}

/// Exponent of the smallest weight that is too large: 2^53, about 9e15. Weights of working models stay below 1e5; the
/// square of this one overflows after a million terms.
const TOO_LARGE: u32 = 53;

/// Refuses a tensor that holds NaN, infinity, or a weight too large to compute with; its first element has index `base`.
fn check_values(name: &str, bytes: &[u8], dtype: &std::result::Result<Dtype, String>, base: usize) -> Result<()> {
    let Some((i, value)) = first_unusable(bytes, dtype) else { return Ok(()) };
    let (name, index) = (name.to_owned(), base + i);
    match value.is_finite() {
        true => Err(Error::TooLarge { name, value, index, limit: (TOO_LARGE as f32).exp2() }),
        false => Err(Error::NotFinite { name, value, index }),
    }
}

/// Index and value of the first element that nothing can be computed with.
fn first_unusable(bytes: &[u8], dtype: &std::result::Result<Dtype, String>) -> Option<(usize, f32)> {
    const EXPONENT: u32 = 127 + TOO_LARGE;
    let (pairs, quads) = (bytes.as_chunks::<2>().0, bytes.as_chunks::<4>().0);
    // NaN and infinity have the largest exponent. An F16 is either of them or at most 65504.
    let value = |i: usize| match dtype {
        Ok(Dtype::Bf16) => bf16::from_le_bytes(pairs[i]).to_f32(),
        Ok(Dtype::F16) => f16::from_le_bytes(pairs[i]).to_f32(),
        _ => f32::from_le_bytes(quads[i]),
    };
    let found = match dtype {
        Ok(Dtype::Bf16) => pairs.iter().position(|b| u32::from(u16::from_le_bytes(*b)) >> 7 & 0xff >= EXPONENT),
        Ok(Dtype::F16) => pairs.iter().position(|b| u16::from_le_bytes(*b) & 0x7c00 == 0x7c00),
        _ => quads.iter().position(|b| u32::from_le_bytes(*b) >> 23 & 0xff >= EXPONENT),
    };
    found.map(|i| (i, value(i)))
}

/// Whether two shapes lay out the same numbers for our purposes: equal up to dimensions of size 1 (`[1, 576, 1024]` and
/// `[576, 1024]`), or a convolution `[n, c, h, w]` read as the matrix `[n, c * h * w]`.
fn same_rows(found: &[usize], expected: &[usize]) -> bool {
    let significant = |shape: &[usize]| shape.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
    let as_matrix = match (found, expected) {
        ([n, rest @ ..], [rows, columns]) => n == rows && rest.iter().product::<usize>() == *columns,
        _ => false,
    };
    as_matrix || significant(found) == significant(expected)
}
