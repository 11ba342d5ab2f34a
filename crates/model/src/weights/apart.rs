//! Checkpoints whose tensors are elsewhere until they are needed: on peers of the cluster, on a disk that fills up.

use std::sync::Arc;

use janus_spec::{Files, Layout, ModelSpec};

use super::source::Source;
use super::{Checkpoint, Digest, TensorDecl, TensorDigest, checkpoint_digest, inventory};
use crate::error::{Error, Result};

/// Where such tensors come from, under their canonical names.
pub trait Tensors: Send + Sync {
    /// `length` bytes of a tensor as stored, from `offset` on. Whoever answers has verified all of the tensor; it may
    /// wait for the network, so a runtime's thread must not ask.
    ///
    /// # Errors
    /// Why they cannot be had.
    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Vec<u8>, String>;

    /// Whether the tensor is here, so that reading it waits for nobody.
    fn holds(&self, name: &str) -> bool;
}

impl Checkpoint {
    /// A checkpoint of the model `digest` that is told by `files` and `tensors`, and read from `from`.
    ///
    /// # Errors
    /// A configuration that cannot be read, or a list that is not that of the model: then nothing in it is believed.
    pub fn apart(files: Files, digest: Digest, tensors: Vec<TensorDigest>, from: Arc<dyn Tensors>) -> Result<Self> {
        let spec = ModelSpec::load(&files)?;
        check_manifest(&spec, &files, digest, &tensors)?;
        let source = Source::apart(&tensors, from);
        let spec = ModelSpec { layout: Layout::Transformers, ..spec };
        Ok(Checkpoint { spec, files, source, known: Some((digest, tensors)) })
    }

    /// Whether a tensor can be read without waiting for another machine.
    pub fn holds(&self, tensor: &TensorDecl) -> bool {
        match self.locate(&tensor.name, &tensor.shape) {
            Ok((location, entry)) => self.source.is_here(&location.name, entry),
            Err(_) => false,
        }
    }
}

/// Refuses a list of tensors that does not belong to `digest`.
fn check_manifest(spec: &ModelSpec, files: &Files, digest: Digest, tensors: &[TensorDigest]) -> Result<()> {
    let wanted = inventory(spec);
    if tensors.len() != wanted.len() || tensors.iter().zip(&wanted).any(|(have, want)| have.tensor != *want) {
        let reason = "the list of tensors is not that of the configuration".to_owned();
        return Err(Error::WeightFile { file: "manifest".to_owned(), reason });
    }
    let found = checkpoint_digest(spec, files, tensors)?;
    if found != digest {
        let reason = format!("files and tensors have digest {found}, not {digest}");
        return Err(Error::WeightFile { file: "manifest".to_owned(), reason });
    }
    Ok(())
}
