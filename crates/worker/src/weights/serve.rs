//! Giving a checkpoint away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use janus_model::weights::TensorDigest;
use janus_model::{Checkpoint, Digest};
use janus_wire::v1::weights_server::{Weights, WeightsServer};
use janus_wire::v1::{ManifestRequest, ManifestResponse, ReadRequest, ReadResponse};
use janus_wire::{Guarded, MAX_NODE_MESSAGE, PROTOCOL, status};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::manifest;
use crate::Error;

/// Tensors that are given away at once; who comes then is sent elsewhere.
const READERS: usize = 8;
/// Bytes of one message.
const CHUNK: usize = 1 << 20;
/// A reader that takes nothing for so long has gone.
const STALLED: Duration = Duration::from_secs(30);
/// When it is worth asking again.
const AGAIN: Duration = Duration::from_secs(1);

/// The service of a node that has a checkpoint, or parts of one.
#[derive(Clone)]
pub struct WeightsService(Arc<Inner>);

struct Inner {
    cluster: String,
    checkpoint: Arc<Checkpoint>,
    digest: Digest,
    tensors: HashMap<String, TensorDigest>,
    manifest: ManifestResponse,
    readers: Arc<Semaphore>,
}

impl WeightsService {
    /// Gives away `checkpoint`, which this node was told to call `name`, to the nodes of `cluster`.
    ///
    /// # Errors
    /// Files that cannot be read, or are too large to be sent.
    pub fn new(
        cluster: &str,
        name: &str,
        checkpoint: Arc<Checkpoint>,
        digest: Digest,
        tensors: &[TensorDigest],
    ) -> Result<Self, Error> {
        let manifest = manifest::describe(&checkpoint, name, digest, tensors)?;
        Ok(WeightsService(Arc::new(Inner {
            cluster: cluster.to_owned(),
            checkpoint,
            digest,
            tensors: tensors.iter().map(|tensor| (tensor.tensor.name.clone(), tensor.clone())).collect(),
            manifest,
            readers: Arc::new(Semaphore::new(READERS)),
        })))
    }

    /// As a tonic service.
    pub fn server(self) -> Guarded<WeightsServer<Self>> {
        Guarded(WeightsServer::new(self).max_encoding_message_size(MAX_NODE_MESSAGE))
    }
}

impl Inner {
    fn check(&self, protocol: u32, cluster: &str) -> Result<(), Status> {
        if protocol != PROTOCOL {
            let text = format!("protocol version is {protocol}, this node's is {PROTOCOL}");
            return Err(Status::failed_precondition(text));
        }
        if cluster != self.cluster {
            return Err(Status::failed_precondition(format!("cluster is `{cluster}`, this node's is `{}`", self.cluster)));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Weights for WeightsService {
    type ReadStream = ReceiverStream<Result<ReadResponse, Status>>;

    async fn manifest(&self, request: Request<ManifestRequest>) -> Result<Response<ManifestResponse>, Status> {
        let (request, inner) = (request.into_inner(), &self.0);
        inner.check(request.protocol, &request.cluster)?;
        let (name, digest) = (&inner.manifest.name, inner.digest.to_string());
        if !request.model.is_empty() && request.model != *name && request.model != digest {
            let text = format!("the model here is `{name}`, digest {digest}, not `{}`", request.model);
            return Err(Status::failed_precondition(text));
        }
        Ok(Response::new(inner.manifest.clone()))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let (request, inner) = (request.into_inner(), self.0.clone());
        inner.check(request.protocol, &request.cluster)?;
        if request.model_digest[..] != inner.digest.0 {
            return Err(Status::failed_precondition(format!("the model here has digest {}", inner.digest)));
        }
        let tensor = inner.tensors.get(&request.tensor).filter(|tensor| inner.checkpoint.holds(&tensor.tensor)).cloned();
        let tensor = tensor.ok_or_else(|| Status::not_found(format!("tensor `{}` is not here", request.tensor)))?;
        let size = tensor.dtype.size() as u64;
        if request.offset > tensor.bytes() || request.offset % size != 0 {
            return Err(status::invalid(
                "offset",
                format!("{} is no element's of {} bytes", request.offset, tensor.bytes()),
            ));
        }
        let Ok(permit) = inner.readers.clone().try_acquire_owned() else {
            return Err(status::exhausted(format!("{READERS} tensors are being read from here already"), AGAIN));
        };
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(async move {
            let _permit = permit;
            let failed = give(&inner, &tensor, (request.offset / size) as usize, &sender).await;
            if let Err(status) = failed {
                let _ = sender.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Sends elements from `first` on, as fast as they are taken.
async fn give(
    inner: &Arc<Inner>,
    tensor: &TensorDigest,
    first: usize,
    sender: &mpsc::Sender<Result<ReadResponse, Status>>,
) -> Result<(), Status> {
    let count: usize = tensor.tensor.shape.iter().product();
    // A pickle gives whole tensors only.
    let step = if inner.checkpoint.reads_ranges(&tensor.tensor) { CHUNK / tensor.dtype.size() } else { count.max(1) };
    for start in (first..count).step_by(step) {
        let (from, decl) = (inner.clone(), tensor.tensor.clone());
        let read = move || from.checkpoint.stored(&decl, start, step.min(count - start));
        let read = tokio::task::spawn_blocking(read).await;
        let read = read.map_err(|_| Status::internal(format!("reading `{}` panicked", tensor.tensor.name)))?;
        let (_, bytes) = read.map_err(|e| Status::data_loss(e.to_string()))?;
        let mut bytes = Bytes::from(bytes);
        while !bytes.is_empty() {
            let data = bytes.split_to(CHUNK.min(bytes.len()));
            match sender.send_timeout(Ok(ReadResponse { data }), STALLED).await {
                Ok(()) => {}
                Err(mpsc::error::SendTimeoutError::Closed(_)) => return Ok(()),
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                    return Err(Status::deadline_exceeded(format!("nothing was taken for {} s", STALLED.as_secs())));
                }
            }
        }
    }
    Ok(())
}
