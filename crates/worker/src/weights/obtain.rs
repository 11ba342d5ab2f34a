//! Becoming a node of a checkpoint that is not on the disk: first the manifest, from the cache or from the cluster; the
//! tensors when they are needed.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use janus_model::{Checkpoint, Digest};
use janus_spec::ModelSpec;
use janus_wire::Security;
use janus_wire::v1::ManifestResponse;

use super::disk::Folder;
use super::fetch::{Ask, Fetched, Peers};
use super::manifest;
use crate::Error;

/// Pause between two looks for somebody who has it.
const PAUSE: Duration = Duration::from_millis(500);
/// A digest in hex.
const DIGEST: usize = 64;

/// What is wanted, and from where.
pub struct Wanted {
    /// Name of the cluster.
    pub cluster: String,
    /// The checkpoint's digest in hex, its name as the cluster calls it, or empty: whatever the cluster serves.
    pub model: String,
    /// A part of the same checkpoint that is on the disk.
    pub local: Option<Checkpoint>,
    /// Who may have it.
    pub peers: Peers,
    /// How they are reached.
    pub security: Security,
}

/// A checkpoint whose tensors are fetched into `cache` when they are first read. Waits until somebody in the cluster has
/// it; every other trouble is told.
///
/// # Errors
/// A cache that cannot be written; a part on the disk that is of another model.
pub async fn obtain(cache: &Path, wanted: Wanted) -> Result<Checkpoint, Error> {
    let ask = Arc::new(Ask::new(&wanted.cluster, wanted.security, wanted.peers)?);
    let is_digest = wanted.model.len() == DIGEST && wanted.model.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if let Some((folder, manifest)) = Some(&wanted.model).filter(|_| is_digest).and_then(|d| Folder::find(cache, d)) {
        match read(&folder, &manifest) {
            Ok(known) if known.0.to_string() == wanted.model => return open(ask, folder, known, wanted.local),
            Ok(_) => tracing::warn!("the cache's manifest is of another model; it is fetched again"),
            Err(error) => tracing::warn!(%error, "the cache's manifest is damaged; it is fetched again"),
        }
    }
    let mut told = String::new();
    loop {
        let (from, model) = (ask.clone(), wanted.model.clone());
        let asked = ask.spawn(async move { any_manifest(&from, &model, is_digest).await });
        let answer = tokio::task::spawn_blocking(move || asked.recv()).await;
        let answer =
            answer.ok().and_then(Result::ok).ok_or_else(|| Error::Weights("asking for a manifest panicked".to_owned()))?;
        match answer {
            Ok((peer, manifest)) => match take(cache, &manifest, is_digest.then_some(&wanted.model)) {
                Ok((folder, known)) => return open(ask, folder, known, wanted.local),
                Err(error @ Error::Cache { .. }) => return Err(error),
                // A manifest that does not prove itself.
                Err(error) => ask.accuse(&peer, "manifest", &error.to_string()),
            },
            Err(reason) if reason != told => {
                tracing::warn!(model = wanted.model, reason, "nobody has the model yet; asking again");
                told = reason;
            }
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The manifest of whoever answers first. For a name the leader's word counts; a digest proves itself.
async fn any_manifest(ask: &Ask, model: &str, is_digest: bool) -> Result<(String, ManifestResponse), String> {
    let mut peers = (ask.peers)(if is_digest { model.to_owned() } else { String::new() }).await;
    peers.retain(|peer| !ask.liars().contains(peer));
    let mut reason = "no node of the cluster is known".to_owned();
    for peer in peers {
        match ask.manifest(&peer, model).await {
            Ok(manifest) => return Ok((peer, manifest)),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
}

type Known = (Digest, Vec<janus_model::weights::TensorDigest>);

fn read(folder: &Folder, manifest: &ManifestResponse) -> Result<Known, Error> {
    let known = manifest::read(manifest, &folder.files())?;
    // What proves itself is proved here, before anything has its name.
    let spec = ModelSpec::load(&folder.files()).map_err(|e| Error::Model(e.into()))?;
    let found = janus_model::weights::checkpoint_digest(&spec, &folder.files(), &known.1)?;
    match found == known.0 {
        true => Ok(known),
        false => Err(Error::Weights(format!("it claims digest {} and has {found}", known.0))),
    }
}

/// Puts a manifest into the cache, if it is true and the one that was wanted.
fn take(cache: &Path, manifest: &ManifestResponse, wanted: Option<&String>) -> Result<(Folder, Known), Error> {
    let draft = Folder::draft(cache, manifest)?;
    let known = read(&draft, manifest).and_then(|known| match wanted {
        Some(digest) if *digest != known.0.to_string() => Err(Error::Weights(format!("it has digest {}", known.0))),
        _ => Ok(known),
    });
    match known {
        Ok(known) => Ok((draft.publish(cache, &known.0)?, known)),
        Err(error) => {
            draft.discard();
            Err(error)
        }
    }
}

fn open(ask: Arc<Ask>, folder: Folder, (digest, listed): Known, local: Option<Checkpoint>) -> Result<Checkpoint, Error> {
    let files = folder.files();
    if let Some(local) = &local {
        let spec = ModelSpec::load(&files).map_err(|e| Error::Model(e.into()))?;
        if spec.fingerprint() != local.spec.fingerprint() {
            let place = local.files.display();
            return Err(Error::Invalid(format!("{place} holds another model than the cluster's, whose digest is {digest}")));
        }
    }
    let tensors = listed.iter().map(|tensor| (tensor.tensor.name.clone(), tensor.clone())).collect();
    let fetched = Fetched { ask, folder, digest, tensors, local, places: Mutex::default() };
    Ok(Checkpoint::apart(files, digest, listed, Arc::new(fetched))?)
}
