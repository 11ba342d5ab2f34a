//! The link that brings frames from the previous node, and what takes them on: a link to the next one, or the stream of
//! results.

use std::sync::atomic::Ordering;
use std::time::Duration;

use janus_wire::v1::stage_client::StageClient;
use janus_wire::v1::{self, Hello, LinkMessage, Role, StepResult, link_message};
use janus_wire::{MAX_NODE_MESSAGE, frame, tls};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::{QUEUE, Shared, no_layers};
use crate::Error;
use crate::stage::{Applied, Compute, Order, StageCore};

/// Where a frame goes when this stage is done with it.
pub(super) enum Output {
    Next(mpsc::Sender<LinkMessage>),
    Results(mpsc::Sender<StepResult>),
}

impl<C: Compute> Shared<C> {
    /// Connects to the next stage and watches the link.
    pub(super) async fn connect_next(
        &self,
        request: &v1::ConfigureRequest,
        hello: &Hello,
        over: &CancellationToken,
    ) -> Result<Output, Error> {
        let channel = janus_wire::connect_until(&request.next, &self.security.to(tls::Role::Stage), over.clone()).await?;
        let mut client = StageClient::new(channel).max_decoding_message_size(MAX_NODE_MESSAGE);
        let (sender, receiver) = mpsc::channel(QUEUE);
        let layers = request.next_first_layer as usize..request.next_end_layer as usize;
        let ours = self.identity.hello(Role::Stage, hello.pipeline, hello.epoch, layers);
        let first = LinkMessage { message: Some(link_message::Message::Hello(ours)) };
        sender.try_send(first).map_err(|_| Error::NotReady("the link is full before it began".to_owned()))?;
        let refused = |status: Status| Error::NotReady(format!("{}: {}", request.next, status.message()));
        let mut answers = client.link(ReceiverStream::new(receiver)).await.map_err(refused)?.into_inner();
        let answer = answers.message().await.map_err(refused)?.and_then(|answer| answer.hello);
        self.identity.check(answer.as_ref())?;
        let (watch, next) = (over.clone(), request.next.clone());
        tokio::spawn(async move {
            tokio::select! {
                end = answers.message() => tracing::info!(next, ?end, "link to the next stage ended"),
                () = watch.cancelled() => {}
            }
            watch.cancel();
        });
        Ok(Output::Next(sender))
    }

    /// A frame could not be applied.
    fn refuse(&self) {
        self.refused_frames.fetch_add(1, Ordering::Relaxed);
        self.meter.refused_frame();
    }

    /// Takes frames from the previous node until either side ends or a frame is not the next one.
    pub(super) async fn run_link(
        &self,
        mut incoming: Streaming<LinkMessage>,
        (pipeline, epoch): (u64, u64),
        output: Output,
        over: &CancellationToken,
    ) -> Result<(), Error> {
        let (mut order, mut sequence) = (Order::new(pipeline, epoch), 0);
        loop {
            let message = tokio::select! {
                biased;
                () = over.cancelled() => return Err(broken()),
                () = self.shutdown.cancelled() => return Err(Error::NotReady("this stage is shutting down".to_owned())),
                message = incoming.message() => message,
            };
            let frame = match message {
                Ok(Some(LinkMessage { message: Some(link_message::Message::Frame(frame)) })) => frame,
                Ok(Some(_)) => return Err(Error::Invalid("a second hello, or a message that says nothing".to_owned())),
                // What cannot be read is refused; a neighbour that is gone needs no answer.
                Err(status) if matches!(status.code(), Code::Internal | Code::OutOfRange) => {
                    self.refuse();
                    return Err(Error::Invalid(status.message().to_owned()));
                }
                Ok(None) | Err(_) => return Ok(()),
            };
            let body = order.open(&frame).inspect_err(|_| self.refuse())?;
            let (features, meter) = (self.features.clone(), self.meter.clone());
            let apply = move |core: &mut Option<StageCore<C>>| {
                let core = core.as_mut()?;
                let step = meter.begin(core, &body);
                Some(core.apply(body, &frame.activations, &features).inspect(|applied| meter.end(step, core, applied)))
            };
            let applied = self.thread.call(apply).await?.ok_or_else(no_layers)?;
            let applied = applied.inspect_err(|_| self.refuse())?;
            let delay = self.delay.load(Ordering::Relaxed);
            if delay > 0 {
                tokio::time::sleep(Duration::from_micros(delay)).await;
            }
            // A neighbour that takes nothing must not keep what is over.
            tokio::select! {
                biased;
                () = over.cancelled() => return Err(broken()),
                sent = send_on(applied, sequence, &output) => sent?,
            }
            sequence += 1;
        }
    }
}

/// What a neighbour hears when the pipeline broke elsewhere.
fn broken() -> Error {
    Error::NotReady("the pipeline's epoch is over or the next stage is lost".to_owned())
}

async fn send_on(applied: Applied, sequence: u64, output: &Output) -> Result<(), Error> {
    let Applied { mut body, rows, result } = applied;
    let lost = || Error::NotReady("nobody takes what this stage computed".to_owned());
    match (output, result) {
        (Output::Next(next), _) => {
            body.sequence = sequence;
            let frame = frame::seal(&body, frame::to_bytes(&rows));
            next.send(LinkMessage { message: Some(link_message::Message::Frame(frame)) }).await.map_err(|_| lost())
        }
        (Output::Results(results), Some(mut result)) => {
            result.sequence = sequence;
            results.send(result).await.map_err(|_| lost())
        }
        (Output::Results(_), None) => {
            Err(Error::NotReady("this stage was made the last one, but holds no heads".to_owned()))
        }
    }
}
