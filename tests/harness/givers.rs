//! Nodes that give weights away, honestly or not; and their records in the store.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use janus_cluster::{Keys, Member, Txn};
use janus_spec::Files;
use janus_wire::v1::weights_client::WeightsClient;
use janus_wire::v1::weights_server::{Weights, WeightsServer};
use janus_wire::v1::{ManifestRequest, ManifestResponse, ReadRequest, ReadResponse};
use janus_wire::{Listener, MAX_NODE_MESSAGE, PROTOCOL, Security};
use janus_worker::weights::WeightsService;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::etcd_process::Etcd;
use crate::support::tiny;

const CLUSTER: &str = "janus";

/// How a giver gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Manner {
    Honest,
    /// Large tensors stop after so many bytes, and nothing follows.
    StopsAt(usize),
    /// One bit of every tensor is another one.
    Lies,
    /// One digest of the list is another one.
    Forges,
}

/// One question for a tensor.
#[derive(Debug, Clone)]
pub struct Asked {
    pub tensor: String,
    pub offset: u64,
}

/// A giver of tiny-a in this process; it ends when this is dropped.
pub struct Giver {
    pub address: String,
    pub digest: String,
    service: Service,
    _shutdown: DropGuard,
}

#[derive(Clone)]
struct Service {
    honest: WeightsService,
    manner: Arc<Mutex<Manner>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// The tensor that was stopped.
    stopped: Arc<watch::Sender<Option<String>>>,
}

impl Giver {
    pub async fn start(manner: Manner) -> Giver {
        let checkpoint = janus_model::Checkpoint::open(Files::open_dir(tiny("transformers")).unwrap()).unwrap();
        let (digest, tensors) = checkpoint.digests(1).unwrap();
        let honest = WeightsService::new(CLUSTER, "tiny-a", Arc::new(checkpoint), digest, &tensors).unwrap();
        let service = Service {
            honest,
            manner: Arc::new(Mutex::new(manner)),
            asked: Arc::default(),
            stopped: Arc::new(watch::channel(None).0),
        };
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.address().to_string();
        let over = CancellationToken::new();
        let server = WeightsServer::new(service.clone()).max_encoding_message_size(MAX_NODE_MESSAGE);
        let router = janus_wire::server(&Security::Plain).unwrap().add_service(server);
        let until = over.clone();
        tokio::spawn(async move { router.serve_with_incoming_shutdown(listener.incoming(), until.cancelled_owned()).await });
        Giver { address, digest: digest.to_string(), service, _shutdown: over.drop_guard() }
    }

    pub fn behave(&self, manner: Manner) {
        *self.service.manner.lock().unwrap() = manner;
    }

    /// What was asked since the last time.
    pub fn reads(&self) -> Vec<Asked> {
        std::mem::take(&mut self.service.asked.lock().unwrap())
    }

    /// Waits until a tensor was stopped.
    pub async fn reached(&self) -> String {
        let mut stopped = self.service.stopped.subscribe();
        stopped.wait_for(Option::is_some).await.unwrap().clone().unwrap()
    }
}

#[tonic::async_trait]
impl Weights for Service {
    type ReadStream = ReceiverStream<Result<ReadResponse, Status>>;

    async fn manifest(&self, request: Request<ManifestRequest>) -> Result<Response<ManifestResponse>, Status> {
        let mut answer = self.honest.manifest(request).await?;
        if *self.manner.lock().unwrap() == Manner::Forges {
            answer.get_mut().tensors[3].digest = vec![7; 32].into();
        }
        Ok(answer)
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let (tensor, offset) = (request.get_ref().tensor.clone(), request.get_ref().offset);
        self.asked.lock().unwrap().push(Asked { tensor: tensor.clone(), offset });
        let manner = *self.manner.lock().unwrap();
        let mut honest = self.honest.read(request).await?.into_inner();
        let (sender, receiver) = mpsc::channel(1);
        let stopped = self.stopped.clone();
        tokio::spawn(async move {
            let mut left = if let Manner::StopsAt(most) = manner { most } else { usize::MAX };
            while let Some(part) = honest.next().await {
                let mut part = part.unwrap();
                if manner == Manner::Lies {
                    let mut bytes = part.data.to_vec();
                    bytes[0] ^= 1;
                    part.data = Bytes::from(bytes);
                }
                let stops = part.data.len() > left;
                part.data.truncate(left);
                left -= part.data.len();
                if sender.send(Ok(part)).await.is_err() {
                    return;
                }
                if stops {
                    stopped.send_replace(Some(tensor));
                    return sender.closed().await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Writes a giver's record into the store: a member that can do nothing but give.
pub async fn announce(etcd: &Etcd, name: &str, giver: &Giver) {
    let member = Member {
        id: name.to_owned(),
        incarnation: "0".repeat(32),
        address: giver.address.clone(),
        model: giver.digest.clone(),
        ..Member::default()
    };
    let key = Keys::new(CLUSTER).unwrap().member(name);
    let store = crate::etcd_process::ready(&etcd.config()).await;
    store.commit(Txn::new().put(key, member.encode().unwrap())).await.unwrap().done("record").unwrap();
}

pub async fn client(address: &str) -> WeightsClient<Channel> {
    let channel = janus_wire::connect(address, &Security::Plain).await.unwrap();
    WeightsClient::new(channel).max_decoding_message_size(MAX_NODE_MESSAGE)
}

pub fn manifest_of(cluster: &str, model: &str) -> ManifestRequest {
    ManifestRequest { protocol: PROTOCOL, cluster: cluster.to_owned(), model: model.to_owned() }
}

pub fn read_of(manifest: &ManifestResponse, tensor: &str, offset: u64) -> ReadRequest {
    ReadRequest {
        protocol: PROTOCOL,
        cluster: CLUSTER.to_owned(),
        model_digest: manifest.digest.clone(),
        tensor: tensor.to_owned(),
        offset,
    }
}
