//! Janus' mathematics on the CPU: checkpoints to pictures and answers, without a network and without a runtime.
//!
//! Reading order: [`weights`] opens a checkpoint and hands out checked tensors; [`llama`] is the language model as a
//! range of layers, with the embeddings of the first and the heads of the last stage; [`siglip`] looks at pictures;
//! [`vq`] turns pictures into codebook ids and back; [`image`] prepares pictures as the reference does; [`sampling`]
//! draws ids. The nodes of a cluster (`janus-worker`) put these together.

mod error;
pub mod image;
pub mod llama;
mod nn;
pub mod sampling;
pub mod siglip;
pub mod vq;
pub mod weights;

pub use error::{Error, Result};
pub use janus_kernels::{Isa, KvDtype, Pool, WeightFormat, choose_isa, default_threads, force_isa, guidance, isa, measure};
pub use sampling::ImageSampling;
pub use weights::{Checkpoint, Digest};

use sha2::Digest as _;

/// The SHA-256 that stands for a picture: over its ids as little-endian u16, in hexadecimal.
pub fn sha256_of_ids(ids: &[u32]) -> String {
    let mut hash = sha2::Sha256::new();
    for &id in ids {
        hash.update((id as u16).to_le_bytes());
    }
    Digest(hash.finalize().into()).to_string()
}

/// Refuses a processor that cannot compute our bits, by name.
///
/// # Errors
/// [`Error::Kernel`].
pub fn check_cpu() -> Result<()> {
    Ok(janus_kernels::check_cpu().map(drop)?)
}
