//! Connecting a pipeline: every stage is told its neighbour, from the last to the first; then the coordinator takes both
//! ends.

use std::ops::Range;

use janus_wire::v1::stage_client::StageClient;
use janus_wire::v1::{
    ConfigureRequest, LinkMessage, ResultMessage, Role, decoder_client::DecoderClient, encoder_client::EncoderClient,
    link_message, result_message,
};
use janus_wire::{Error, Identity, MAX_NODE_MESSAGE, Security};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Frames that wait for the first stage to take them.
const QUEUE: usize = 4;

/// A stage worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageNode {
    /// `host:port`.
    pub address: String,
    /// The layers it holds.
    pub layers: Range<usize>,
}

/// The nodes of a pipeline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// In order of their layers.
    pub stages: Vec<StageNode>,
    /// Addresses of encoders.
    pub encoders: Vec<String>,
    /// Addresses of decoders.
    pub decoders: Vec<String>,
}

/// Both ends of a connected pipeline.
pub(crate) struct Ends {
    pub(crate) frames: mpsc::Sender<LinkMessage>,
    pub(crate) answers: Streaming<janus_wire::v1::LinkAnswer>,
    pub(crate) results: Streaming<ResultMessage>,
}

/// Connects the stages for a new epoch.
pub(crate) async fn connect(
    nodes: &Nodes,
    identity: &Identity,
    security: &Security,
    pipeline: u64,
    epoch: u64,
) -> Result<Ends, Error> {
    let refused = |node: &StageNode, status: Status| Error::Connect {
        address: node.address.clone(),
        reason: status.message().to_owned(),
    };
    let mut clients = Vec::new();
    for node in &nodes.stages {
        let channel = janus_wire::connect(&node.address, security).await?;
        let client = StageClient::new(channel)
            .max_decoding_message_size(MAX_NODE_MESSAGE)
            .max_encoding_message_size(MAX_NODE_MESSAGE);
        clients.push((node, client));
    }
    let mut next: Option<&StageNode> = None;
    for (node, client) in clients.iter_mut().rev() {
        let request = ConfigureRequest {
            hello: Some(identity.hello(Role::Coordinator, pipeline, epoch, node.layers.clone())),
            next: next.map(|n| n.address.clone()).unwrap_or_default(),
            next_first_layer: next.map_or(0, |n| n.layers.start as u32),
            next_end_layer: next.map_or(0, |n| n.layers.end as u32),
        };
        let answer = client.configure(request).await.map_err(|s| refused(node, s))?.into_inner();
        identity.check(answer.hello.as_ref())?;
        next = Some(node);
    }
    let hello = |node: &StageNode| identity.hello(Role::Coordinator, pipeline, epoch, node.layers.clone());
    let nothing = || Error::Connect { address: "the pipeline".to_owned(), reason: "it has no stages".to_owned() };

    let (node, client) = clients.last_mut().ok_or_else(nothing)?;
    let mut results = client.results(hello(node)).await.map_err(|s| refused(node, s))?.into_inner();
    match results.message().await.map_err(|s| refused(node, s))?.and_then(|m| m.message) {
        Some(result_message::Message::Hello(hello)) => identity.check(Some(&hello))?,
        _ => return Err(Error::Frame("the last stage did not begin with a hello".to_owned())),
    }

    let (node, client) = clients.first_mut().ok_or_else(nothing)?;
    let (frames, receiver) = mpsc::channel(QUEUE);
    let first = LinkMessage { message: Some(link_message::Message::Hello(hello(node))) };
    frames.try_send(first).map_err(|_| Error::Frame("the link is full before it began".to_owned()))?;
    let mut answers = client.link(ReceiverStream::new(receiver)).await.map_err(|s| refused(node, s))?.into_inner();
    let answer = answers.message().await.map_err(|s| refused(node, s))?.and_then(|a| a.hello);
    identity.check(answer.as_ref())?;
    Ok(Ends { frames, answers, results })
}

/// A pool of nodes of one role; work goes to each in turn.
pub(crate) struct Pool<T> {
    nodes: Vec<(String, tokio::sync::OnceCell<T>)>,
    next: std::sync::atomic::AtomicUsize,
    security: Security,
}

impl<T: Clone> Pool<T> {
    pub(crate) fn new(addresses: &[String], security: &Security) -> Self {
        Pool {
            nodes: addresses.iter().map(|a| (a.clone(), tokio::sync::OnceCell::new())).collect(),
            next: std::sync::atomic::AtomicUsize::new(0),
            security: security.clone(),
        }
    }

    async fn pick(&self, make: impl FnOnce(Channel) -> T) -> Result<T, Error> {
        if self.nodes.is_empty() {
            return Err(Error::Connect {
                address: "a node".to_owned(),
                reason: "the pipeline has none of this role".to_owned(),
            });
        }
        let turn = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % self.nodes.len();
        let (address, client) = &self.nodes[turn];
        let connect = || async { janus_wire::connect(address, &self.security).await.map(make) };
        client.get_or_try_init(connect).await.cloned()
    }
}

impl Pool<EncoderClient<Channel>> {
    pub(crate) async fn encoder(&self) -> Result<EncoderClient<Channel>, Error> {
        self.pick(|c| EncoderClient::new(c).max_encoding_message_size(MAX_NODE_MESSAGE)).await
    }
}

impl Pool<DecoderClient<Channel>> {
    pub(crate) async fn decoder(&self) -> Result<DecoderClient<Channel>, Error> {
        self.pick(|c| DecoderClient::new(c).max_decoding_message_size(MAX_NODE_MESSAGE)).await
    }
}
