//! What a checkpoint consists of, as a message.

use std::path::Path;

use janus_model::weights::{Dtype, TensorDigest, inventory};
use janus_model::{Checkpoint, Digest};
use janus_spec::{Files, ModelSpec};
use janus_wire::v1::{ElementType, ManifestResponse, ModelFile, TensorRecord};

use super::disk::cannot;
use crate::Error;

/// Longest sum of the files beside the weights; the published ones have 5 MB.
const MAX_FILES: usize = 48 << 20;

fn element_type(dtype: Dtype) -> ElementType {
    match dtype {
        Dtype::F32 => ElementType::F32,
        Dtype::F16 => ElementType::F16,
        Dtype::Bf16 => ElementType::Bf16,
    }
}

/// Whether a file belongs to the checkpoint beside its weights.
fn is_small(name: &str) -> bool {
    (name.ends_with(".json") || name.ends_with(".jinja")) && !name.ends_with(".index.json") && is_plain(name)
}

/// A name that stays in its folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

/// Describes a checkpoint whose digests are known.
pub(super) fn describe(
    checkpoint: &Checkpoint,
    name: &str,
    digest: Digest,
    tensors: &[TensorDigest],
) -> Result<ManifestResponse, Error> {
    let spec = |e: janus_spec::Error| Error::Model(e.into());
    let (mut files, mut total) = (Vec::new(), 0);
    for name in checkpoint.files.names().map_err(spec)?.into_iter().filter(|name| is_small(name)) {
        let Some(content) = checkpoint.files.read(&name).map_err(spec)? else { continue };
        total += content.len();
        files.push(ModelFile { name, content: content.into_owned().into() });
    }
    if total > MAX_FILES {
        return Err(Error::Weights(format!(
            "{}: its small files have {total} bytes, more than the {MAX_FILES} that are given to other nodes",
            checkpoint.files.display()
        )));
    }
    let record = |tensor: &TensorDigest| TensorRecord {
        name: tensor.tensor.name.clone(),
        element_type: element_type(tensor.dtype).into(),
        digest: tensor.digest.0.to_vec().into(),
    };
    Ok(ManifestResponse {
        digest: digest.0.to_vec().into(),
        name: name.to_owned(),
        files,
        tensors: tensors.iter().map(record).collect(),
    })
}

/// Writes the files beside the weights into a folder.
pub(super) fn write_files(manifest: &ManifestResponse, dir: &Path) -> Result<(), Error> {
    for file in &manifest.files {
        if !is_small(&file.name) {
            return Err(Error::Weights(format!("the manifest holds a file `{}`, which no checkpoint has", file.name)));
        }
        let path = dir.join(&file.name);
        std::fs::write(&path, &file.content).map_err(|e| cannot(&path, e))?;
    }
    Ok(())
}

/// The digest it claims, and its tensors in the shapes that the configuration in `files` gives them.
pub(super) fn read(manifest: &ManifestResponse, files: &Files) -> Result<(Digest, Vec<TensorDigest>), Error> {
    let spec = ModelSpec::load(files).map_err(|e| Error::Model(e.into()))?;
    let bad = |what: String| Error::Weights(format!("the manifest is not one: {what}"));
    let tensors = inventory(&spec);
    if tensors.len() != manifest.tensors.len() {
        return Err(bad(format!("it lists {} tensors, its configuration has {}", manifest.tensors.len(), tensors.len())));
    }
    let mut listed = Vec::with_capacity(tensors.len());
    for (tensor, record) in tensors.into_iter().zip(&manifest.tensors) {
        let dtype = match record.element_type() {
            ElementType::F32 => Dtype::F32,
            ElementType::F16 => Dtype::F16,
            ElementType::Bf16 => Dtype::Bf16,
            ElementType::Unspecified => return Err(bad(format!("`{}` has no element type", record.name))),
        };
        if record.name != tensor.name {
            return Err(bad(format!("it lists `{}` where `{}` is expected", record.name, tensor.name)));
        }
        let digest = digest(&record.digest).ok_or_else(|| bad(format!("`{}` has no digest", record.name)))?;
        listed.push(TensorDigest { tensor, dtype, digest });
    }
    let claimed = digest(&manifest.digest).ok_or_else(|| bad("it has no digest".to_owned()))?;
    Ok((claimed, listed))
}

fn digest(bytes: &[u8]) -> Option<Digest> {
    Some(Digest(bytes.try_into().ok()?))
}
