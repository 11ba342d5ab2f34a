//! Connecting a pipeline: every stage is told its neighbour, from the last to the first; then the coordinator takes both
//! ends.

use std::ops::Range;
use std::time::Duration;

use janus_wire::v1::stage_client::StageClient;
use janus_wire::v1::{ConfigureRequest, LinkAnswer, LinkMessage, ResultMessage, Role, link_message, result_message};
use janus_wire::{Error, Identity, MAX_NODE_MESSAGE, Security};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

/// Frames that wait for the first stage to take them.
const QUEUE: usize = 4;
/// A stage that does not answer within this is not there. Longer than a stage waits for its next one.
const ANSWER: Duration = Duration::from_secs(4);

/// A stage worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageNode {
    /// Its name.
    pub node: String,
    /// `host:port`.
    pub address: String,
    /// The layers it holds.
    pub layers: Range<usize>,
}

/// The stages of one pipeline in one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Larger than every one before; its upper half is the coordinator's fencing epoch.
    pub epoch: u64,
    /// In order of their layers.
    pub stages: Vec<StageNode>,
    /// Distinct compute pools (machines) among them.
    pub pools: usize,
}

/// Both ends of a connected pipeline.
pub(crate) struct Ends {
    pub(crate) frames: mpsc::Sender<LinkMessage>,
    pub(crate) answers: Streaming<LinkAnswer>,
    pub(crate) results: Streaming<ResultMessage>,
    /// All stages know how to copy positions from slot to slot.
    pub(crate) copies: bool,
}

/// Why a pipeline could not be connected, and at which of its stages.
#[derive(Debug)]
pub(crate) struct Unconnected {
    pub(crate) stage: Option<usize>,
    pub(crate) error: Error,
}

/// A client of the stage at `address`.
pub(crate) async fn stage_client(address: &str, security: &Security) -> Result<StageClient<Channel>, Error> {
    let client = StageClient::new(janus_wire::connect(address, &security.to(janus_wire::tls::Role::Stage)).await?);
    Ok(client.max_decoding_message_size(MAX_NODE_MESSAGE).max_encoding_message_size(MAX_NODE_MESSAGE))
}

/// A call's answer, or an error that names the node.
async fn answered<T>(node: &StageNode, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Error> {
    let refused = |reason: String| Error::Connect { address: node.address.clone(), reason };
    match tokio::time::timeout(ANSWER, call).await {
        Ok(answer) => answer.map(Response::into_inner).map_err(|status| refused(status.message().to_owned())),
        Err(_) => Err(refused("it does not answer".to_owned())),
    }
}

async fn message<T>(node: &StageNode, stream: &mut Streaming<T>) -> Result<Option<T>, Error> {
    answered(node, async { stream.message().await.map(Response::new) }).await
}

/// Connects the stages for a new epoch.
pub(crate) async fn connect(
    placement: &Placement,
    identity: &Identity,
    security: &Security,
    pipeline: u64,
) -> Result<Ends, Unconnected> {
    let stages = &placement.stages;
    let hello = |node: &StageNode| identity.hello(Role::Coordinator, pipeline, placement.epoch, node.layers.clone());
    let at = |stage: usize| move |error: Error| Unconnected { stage: Some(stage), error };

    let mut clients = Vec::new();
    for (i, node) in stages.iter().enumerate() {
        clients.push(stage_client(&node.address, security).await.map_err(at(i))?);
    }
    let mut copies = true;
    for (i, client) in clients.iter_mut().enumerate().rev() {
        let next = stages.get(i + 1);
        let request = ConfigureRequest {
            hello: Some(hello(&stages[i])),
            next: next.map(|n| n.address.clone()).unwrap_or_default(),
            next_first_layer: next.map_or(0, |n| n.layers.start as u32),
            next_end_layer: next.map_or(0, |n| n.layers.end as u32),
        };
        let answer = answered(&stages[i], client.configure(request)).await.map_err(at(i))?;
        identity.check(answer.hello.as_ref()).map_err(at(i))?;
        copies &= answer.copies;
    }
    let (Some(last), Some(last_client)) = (stages.last(), clients.last_mut()) else {
        let error = Error::Connect { address: "the pipeline".to_owned(), reason: "it has no stages".to_owned() };
        return Err(Unconnected { stage: None, error });
    };
    let at_last = at(stages.len() - 1);
    let mut results = answered(last, last_client.results(hello(last))).await.map_err(at_last)?;
    match message(last, &mut results).await.map_err(at_last)?.and_then(|m| m.message) {
        Some(result_message::Message::Hello(hello)) => identity.check(Some(&hello)).map_err(at_last)?,
        _ => return Err(at_last(Error::Frame("the last stage did not begin with a hello".to_owned()))),
    }

    let (frames, receiver) = mpsc::channel(QUEUE);
    let first = LinkMessage { message: Some(link_message::Message::Hello(hello(&stages[0]))) };
    frames.try_send(first).map_err(|_| at(0)(Error::Frame("the link is full before it began".to_owned())))?;
    let mut answers = answered(&stages[0], clients[0].link(ReceiverStream::new(receiver))).await.map_err(at(0))?;
    let answer = message(&stages[0], &mut answers).await.map_err(at(0))?.and_then(|a| a.hello);
    identity.check(answer.as_ref()).map_err(at(0))?;
    Ok(Ends { frames, answers, results, copies })
}
