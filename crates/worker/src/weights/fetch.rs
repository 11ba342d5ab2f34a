//! Taking tensors from whoever has them, when they are first read.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use futures_util::future::BoxFuture;
use janus_model::weights::{TensorDigest, Tensors};
use janus_model::{Checkpoint, Digest};
use janus_wire::v1::weights_client::WeightsClient;
use janus_wire::v1::{ManifestRequest, ManifestResponse, ReadRequest};
use janus_wire::{MAX_NODE_MESSAGE, PROTOCOL, Security};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use super::disk::{Folder, Incomplete};
use crate::Error;

/// Who may have the checkpoint of this digest (hex), or any if it is empty: addresses, the cluster's leader first.
pub type Peers = Arc<dyn Fn(String) -> BoxFuture<'static, Vec<String>> + Send + Sync>;

/// A peer that sends nothing for so long is left for another.
const SILENCE: Duration = Duration::from_secs(20);
/// Pause between two rounds over the peers.
const PAUSE: Duration = Duration::from_millis(500);
/// Rounds in a row that bring nothing.
const ROUNDS: u32 = 120;

/// How peers are asked. Its runtime has a thread of its own: whoever waits for a tensor may hold up any other.
pub(super) struct Ask {
    pub(super) cluster: String,
    pub(super) security: Security,
    pub(super) peers: Peers,
    runtime: Option<Runtime>,
    clients: tokio::sync::Mutex<HashMap<String, WeightsClient<Channel>>>,
    /// Who sent bytes that were not the tensor's.
    liars: Mutex<HashSet<String>>,
}

impl Drop for Ask {
    fn drop(&mut self) {
        // It may be dropped on a thread of another runtime, which must not wait.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Ask {
    pub(super) fn new(cluster: &str, security: Security, peers: Peers) -> Result<Ask, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("weights")
            .enable_all()
            .build()
            .map_err(|e| Error::Weights(format!("no runtime: {e}")))?;
        Ok(Ask {
            cluster: cluster.to_owned(),
            security,
            peers,
            runtime: Some(runtime),
            clients: tokio::sync::Mutex::default(),
            liars: Mutex::default(),
        })
    }

    /// Runs `work` on the runtime of this, and gives back where its result will be.
    pub(super) fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> mpsc::Receiver<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move {
                let _ = reply.send(work.await);
            });
        }
        answer
    }

    pub(super) fn liars(&self) -> MutexGuard<'_, HashSet<String>> {
        self.liars.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn client(&self, address: &str) -> Result<WeightsClient<Channel>, Error> {
        let mut clients = self.clients.lock().await;
        if let Some(client) = clients.get(address) {
            return Ok(client.clone());
        }
        let channel = janus_wire::connect(address, &self.security).await?;
        let client = WeightsClient::new(channel).max_decoding_message_size(MAX_NODE_MESSAGE);
        clients.insert(address.to_owned(), client.clone());
        Ok(client)
    }

    /// What a peer's checkpoint consists of, if it is `model` (a digest, a name, or empty for any).
    pub(super) async fn manifest(&self, address: &str, model: &str) -> Result<ManifestResponse, Error> {
        let request = ManifestRequest { protocol: PROTOCOL, cluster: self.cluster.clone(), model: model.to_owned() };
        let mut client = self.client(address).await?;
        let answer = tokio::time::timeout(SILENCE, client.manifest(request)).await;
        let answer = answer.map_err(|_| Error::Weights(format!("{address} does not answer")));
        match answer.and_then(|answer| answer.map_err(|status| Error::Weights(format!("{address}: {}", status.message())))) {
            Ok(manifest) => Ok(manifest.into_inner()),
            Err(error) => {
                self.clients.lock().await.remove(address);
                Err(error)
            }
        }
    }

    /// Fills a tensor from one peer, as far as that one brings it.
    async fn read(&self, address: &str, digest: Digest, name: &str, incomplete: &mut Incomplete) -> Result<(), Error> {
        let request = ReadRequest {
            protocol: PROTOCOL,
            cluster: self.cluster.clone(),
            model_digest: digest.0.to_vec().into(),
            tensor: name.to_owned(),
            offset: incomplete.length,
        };
        let mut client = self.client(address).await?;
        let silent = || Error::Weights(format!("{address} is silent"));
        let said = |status: tonic::Status| Error::Weights(format!("{address}: {}", status.message()));
        let answer = tokio::time::timeout(SILENCE, client.read(request)).await.map_err(|_| silent())?;
        let mut stream = answer.map_err(said)?.into_inner();
        while let Some(part) = tokio::time::timeout(SILENCE, stream.message()).await.map_err(|_| silent())?.map_err(said)? {
            incomplete.push(&part.data)?;
        }
        match incomplete.is_full() {
            true => Ok(()),
            false => Err(Error::Weights(format!("{address} ends `{name}` at byte {}", incomplete.length))),
        }
    }

    /// Fetches a tensor until it is whole and fits, from one peer after the other.
    pub(super) async fn fetch(
        &self,
        digest: Digest,
        tensor: &TensorDigest,
        mut incomplete: Incomplete,
    ) -> Result<(), Error> {
        let name = &tensor.tensor.name;
        // Whose bytes these are, as long as they are one's; those of an earlier run are nobody's.
        let mut author: Option<String> = None;
        let (mut idle, mut last) = (0, "nobody has it".to_owned());
        loop {
            let before = incomplete.length;
            let mut peers = (self.peers)(digest.to_string()).await;
            peers.retain(|peer| !self.liars().contains(peer));
            // Not all begin with the same one.
            let turn = tensor.digest.0[0] as usize % peers.len().max(1);
            peers.rotate_left(turn);
            for peer in peers {
                if incomplete.length == 0 {
                    author = Some(peer.clone());
                } else if author.as_ref() != Some(&peer) {
                    author = None;
                }
                if let Err(error) = self.read(&peer, digest, name, &mut incomplete).await {
                    tracing::debug!(peer, tensor = name, %error, "not from this one");
                    if matches!(error, Error::Invalid(_)) {
                        self.accuse(&peer, name, &error.to_string());
                        incomplete.clear()?;
                    }
                    self.clients.lock().await.remove(&peer);
                    last = error.to_string();
                    continue;
                }
                if incomplete.finish()? {
                    return Ok(());
                }
                incomplete.clear()?;
                last = format!("what {peer} sent is not `{name}`");
                match author.take() {
                    Some(liar) => self.accuse(&liar, name, "its bytes have another digest"),
                    None => tracing::warn!(tensor = name, "bytes of several peers do not fit; it is fetched from the begin"),
                }
            }
            idle = if incomplete.length > before { 0 } else { idle + 1 };
            if idle >= ROUNDS {
                return Err(Error::Weights(format!("tensor `{name}` cannot be had from the cluster: {last}")));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub(super) fn accuse(&self, peer: &str, tensor: &str, what: &str) {
        tracing::error!(peer, tensor, what, "a peer gives wrong weights; it is not asked again");
        self.liars().insert(peer.to_owned());
    }
}

/// The tensors of a checkpoint that is in the cache as far as it was needed.
pub(super) struct Fetched {
    pub(super) ask: Arc<Ask>,
    pub(super) folder: Folder,
    pub(super) digest: Digest,
    pub(super) tensors: HashMap<String, TensorDigest>,
    /// A part of the same checkpoint that was on the disk before.
    pub(super) local: Option<Checkpoint>,
    /// Where each tensor that was compared with its digest is.
    pub(super) places: Mutex<HashMap<String, Place>>,
}

/// Where a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Cache,
    Local,
}

impl Fetched {
    fn place(&self, name: &str) -> Option<Place> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    /// Brings a tensor here.
    fn need(&self, name: &str) -> Result<Place, Error> {
        if let Some(place) = self.place(name) {
            return Ok(place);
        }
        let tensor = self.tensors.get(name).ok_or_else(|| Error::Weights(format!("the model has no tensor `{name}`")))?;
        let place = match self.local.as_ref().filter(|local| local.holds(&tensor.tensor)) {
            Some(local) => match local.tensor_digest(&tensor.tensor) {
                Ok(found) if found == (tensor.dtype, tensor.digest) => Place::Local,
                _ => {
                    let place = local.files.display();
                    tracing::warn!(tensor = name, place, "a tensor on the disk is not the cluster's; it is fetched");
                    self.fetched(tensor)?
                }
            },
            None => self.fetched(tensor)?,
        };
        self.places.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), place);
        Ok(place)
    }

    fn fetched(&self, tensor: &TensorDigest) -> Result<Place, Error> {
        while !self.folder.verified(tensor)? {
            // Whoever else had the lock may have brought it; then it is looked at as any other.
            let Some(incomplete) = self.folder.claim(tensor)? else { continue };
            let (ask, digest, wanted) = (self.ask.clone(), self.digest, tensor.clone());
            let fetching = self.ask.spawn(async move { ask.fetch(digest, &wanted, incomplete).await });
            fetching.recv().map_err(|_| Error::Weights(format!("fetching `{}` panicked", tensor.tensor.name)))??;
            return Ok(Place::Cache);
        }
        Ok(Place::Cache)
    }
}

impl Tensors for Fetched {
    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Vec<u8>, String> {
        let place = self.need(name).map_err(|e| e.to_string())?;
        let Some(local) = self.local.as_ref().filter(|_| place == Place::Local) else {
            return self.folder.read(name, offset, length);
        };
        let tensor = &self.tensors[name];
        let size = tensor.dtype.size();
        let read = local.stored(&tensor.tensor, offset as usize / size, length / size);
        read.map(|(_, bytes)| bytes).map_err(|e| e.to_string())
    }

    fn holds(&self, name: &str) -> bool {
        self.place(name).is_some()
    }
}
