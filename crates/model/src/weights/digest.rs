//! The checkpoint digest: what two processes compare to know that they hold the same model.

use std::fmt;

use sha2::{Digest as _, Sha256};

use janus_spec::{Files, ModelSpec};

use super::{Checkpoint, Dtype, TensorDecl, inventory};
use crate::error::Result;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The digest of one tensor: SHA-256 over name, element type, shape and bytes.
#[derive(Debug, Clone)]
pub struct TensorDigest {
    /// The tensor.
    pub tensor: TensorDecl,
    /// How it is stored.
    pub dtype: Dtype,
    /// Its digest.
    pub digest: Digest,
}

impl TensorDigest {
    /// Bytes of the tensor as stored.
    pub fn bytes(&self) -> u64 {
        self.tensor.shape.iter().product::<usize>() as u64 * self.dtype.size() as u64
    }
}

/// The digest of one tensor in the making, for bytes that come piece by piece.
#[derive(Clone)]
pub struct TensorHash(Sha256);

impl TensorHash {
    /// Nothing but name, element type and shape yet.
    pub fn new(tensor: &TensorDecl, dtype: Dtype) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"janus-tensor-1\0");
        hash.update(tensor.name.as_bytes());
        hash.update([
            0,
            match dtype {
                Dtype::F32 => 0,
                Dtype::F16 => 1,
                Dtype::Bf16 => 2,
            },
        ]);
        for &dim in &tensor.shape {
            hash.update((dim as u64).to_le_bytes());
        }
        TensorHash(hash)
    }

    /// The next bytes as stored.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// The digest of a checkpoint: SHA-256 over what the configuration and the tokeniser say and the per-tensor digests in
/// inventory order. Whoever has the files and a list of digests can tell whether they are of the checkpoint they want.
///
/// # Errors
/// The tokeniser cannot be read.
pub fn checkpoint_digest(spec: &ModelSpec, files: &Files, tensors: &[TensorDigest]) -> Result<Digest> {
    let mut hash = Sha256::new();
    hash.update(b"janus-checkpoint-1\0");
    hash.update(spec.fingerprint());
    hash.update(Sha256::digest(files.read("tokenizer.json")?.unwrap_or_default()));
    for tensor in tensors {
        hash.update(tensor.digest.0);
    }
    Ok(Digest(hash.finalize().into()))
}

impl Checkpoint {
    /// Digest of one tensor and how it is stored, so that a part of a checkpoint can be verified alone.
    ///
    /// # Errors
    /// As [`stored`](Self::stored).
    pub fn tensor_digest(&self, tensor: &TensorDecl) -> Result<(Dtype, Digest)> {
        let (dtype, bytes) = self.stored(tensor, 0, tensor.shape.iter().product())?;
        let mut hash = TensorHash::new(tensor, dtype);
        hash.update(&bytes);
        Ok((dtype, hash.finish()))
    }

    /// The digests of all tensors and the digest of the checkpoint ([`checkpoint_digest`]). Names are canonical, so the
    /// same weights in safetensors and in a pickle agree. Reads every weight once, on `threads` threads; where the
    /// weights are fetched when they are needed, the digests were there first.
    ///
    /// # Errors
    /// Unreadable weights.
    pub fn digests(&self, threads: usize) -> Result<(Digest, Vec<TensorDigest>)> {
        if let Some(known) = &self.known {
            return Ok(known.clone());
        }
        let tensors = inventory(&self.spec);
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || -> Result<Vec<(usize, (Dtype, Digest))>> {
            let mut done = Vec::new();
            loop {
                let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some(tensor) = tensors.get(i) else { return Ok(done) };
                done.push((i, self.tensor_digest(tensor)?));
            }
        };
        let mut all = std::thread::scope(|scope| -> Result<Vec<(usize, (Dtype, Digest))>> {
            let workers: Vec<_> = (1..threads.max(1)).map(|_| scope.spawn(work)).collect();
            let mut all = work()?;
            for worker in workers {
                match worker.join() {
                    Ok(part) => all.extend(part?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(all)
        })?;
        all.sort_by_key(|(i, _)| *i);

        let listed: Vec<_> = tensors
            .iter()
            .zip(all)
            .map(|(tensor, (_, (dtype, digest)))| TensorDigest { tensor: tensor.clone(), dtype, digest })
            .collect();
        Ok((checkpoint_digest(&self.spec, &self.files, &listed)?, listed))
    }
}
