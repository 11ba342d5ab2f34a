//! The checkpoint digest: what two processes compare to know that they hold the same model.

use std::fmt;

use sha2::{Digest as _, Sha256};

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
    /// Its digest.
    pub digest: Digest,
}

impl Checkpoint {
    /// Digest of one tensor, so that a part of a checkpoint can be verified alone.
    pub fn tensor_digest(&self, tensor: &TensorDecl) -> Result<Digest> {
        let (dtype, bytes) = self.stored_bytes(tensor)?;
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
        hash.update(&bytes);
        Ok(Digest(hash.finalize().into()))
    }

    /// The digests of all tensors and the digest of the checkpoint: SHA-256 over what the configuration and the
    /// tokeniser say and the per-tensor digests in inventory order. Names are canonical, so the same weights in
    /// safetensors and in a pickle agree. Reads every weight once, on `threads` threads.
    pub fn digests(&self, threads: usize) -> Result<(Digest, Vec<TensorDigest>)> {
        let tensors = inventory(&self.spec);
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || -> Result<Vec<(usize, Digest)>> {
            let mut done = Vec::new();
            loop {
                let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some(tensor) = tensors.get(i) else { return Ok(done) };
                done.push((i, self.tensor_digest(tensor)?));
            }
        };
        let mut all = std::thread::scope(|scope| -> Result<Vec<(usize, Digest)>> {
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

        let mut hash = Sha256::new();
        hash.update(b"janus-checkpoint-1\0");
        hash.update(self.spec.fingerprint());
        hash.update(Sha256::digest(self.files.read("tokenizer.json")?.unwrap_or_default()));
        for (_, digest) in &all {
            hash.update(digest.0);
        }
        let listed =
            tensors.iter().zip(all).map(|(tensor, (_, digest))| TensorDigest { tensor: tensor.clone(), digest }).collect();
        Ok((Digest(hash.finalize().into()), listed))
    }
}
