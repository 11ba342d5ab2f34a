//! The public service of blobs: what they hold, and their end. They come in by the service of jobs.

use futures_util::TryStreamExt;
use janus_wire::status::{self, invalid};
use janus_wire::v1;
use janus_wire::v1::blobs_server::{Blobs as BlobsService, BlobsServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Error, Jobs, RETRY, blobs};
use crate::auth::Caller;

/// Bytes of one message.
const PIECE: usize = 1 << 20;
/// Messages that wait for a slow reader.
const EVENTS: usize = 4;

impl Jobs {
    /// Its blobs as a tonic service.
    pub fn blobs(self) -> BlobsServer<Self> {
        BlobsServer::new(self)
    }
}

fn ours(error: Error) -> Status {
    match error.is_retryable() {
        true => status::unavailable(error.to_string(), RETRY),
        false => Status::internal(error.to_string()),
    }
}

/// The object of a caller's blob.
fn name<T>(request: &Request<T>, digest: &[u8]) -> Result<String, Status> {
    match digest.len() {
        32 => Ok(blobs::name(&Caller::of(request).tenant, digest)),
        n => Err(invalid("sha256", format!("has {n} bytes, not 32"))),
    }
}

fn unknown(digest: &[u8]) -> Status {
    Status::not_found(format!("sha256: there is no blob {}", janus_wire::hello::hex(digest)))
}

#[tonic::async_trait]
impl BlobsService for Jobs {
    type GetStream = ReceiverStream<Result<v1::GetBlobResponse, Status>>;

    async fn get(&self, request: Request<v1::GetBlobRequest>) -> Result<Response<Self::GetStream>, Status> {
        let digest = &request.get_ref().sha256;
        let name = name(&request, digest)?;
        let found = self.0.objects.stream(&name).await.map_err(ours)?;
        let mut bytes = found.ok_or_else(|| unknown(digest))?;
        let (out, stream) = mpsc::channel(EVENTS);
        let over = self.0.over.clone();
        tokio::spawn(async move {
            let read = async {
                while let Some(mut bytes) = bytes.try_next().await.map_err(ours)? {
                    while !bytes.is_empty() {
                        let data = bytes.split_to(bytes.len().min(PIECE));
                        if out.send(Ok(v1::GetBlobResponse { data })).await.is_err() {
                            return Ok(());
                        }
                    }
                }
                Ok(())
            };
            let read = tokio::select! {
                read = read => read,
                () = over.cancelled() => Err(status::unavailable("this coordinator does not lead any more", RETRY)),
                () = out.closed() => Ok(()),
            };
            if let Err(status) = read {
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn delete(&self, request: Request<v1::DeleteBlobRequest>) -> Result<Response<v1::DeleteBlobResponse>, Status> {
        let digest = &request.get_ref().sha256;
        let name = name(&request, digest)?;
        if !self.0.objects.has(&name).await.map_err(ours)? {
            return Err(unknown(digest));
        }
        self.0.objects.delete(&name).await.map_err(ours)?;
        Ok(Response::new(v1::DeleteBlobResponse {}))
    }
}
