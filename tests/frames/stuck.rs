//! A neighbour that is alive, takes the link and then takes nothing more.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::stage::{Node, identity, soon};
use janus_wire::Listener;
use janus_wire::v1::stage_server::{Stage, StageServer};
use janus_wire::v1::{self, ConfigureRequest, Hello, LinkAnswer, LinkMessage, ResultMessage, Role, link_message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

type Answers = ReceiverStream<Result<LinkAnswer, Status>>;

/// A last stage that answers the hello of a link and never reads a frame of it.
#[derive(Clone, Default)]
struct Deaf(Arc<Mutex<Vec<Streaming<LinkMessage>>>>);

#[tonic::async_trait]
impl Stage for Deaf {
    type LinkStream = Answers;
    type ResultsStream = ReceiverStream<Result<ResultMessage, Status>>;

    async fn link(&self, request: Request<Streaming<LinkMessage>>) -> Result<Response<Answers>, Status> {
        let mut incoming = request.into_inner();
        let Some(link_message::Message::Hello(hello)) = incoming.message().await?.unwrap().message else { panic!() };
        let (answers, stream) = mpsc::channel(1);
        let ours = identity().hello(Role::Stage, hello.pipeline, hello.epoch, 2..4);
        answers.send(Ok(LinkAnswer { hello: Some(ours) })).await.unwrap();
        // Neither half ends by itself.
        tokio::spawn(async move { answers.closed().await });
        self.0.lock().unwrap().push(incoming);
        Ok(Response::new(ReceiverStream::new(stream)))
    }
    async fn results(&self, _: Request<Hello>) -> Result<Response<Self::ResultsStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn configure(&self, _: Request<ConfigureRequest>) -> Result<Response<v1::ConfigureResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn prepare(&self, _: Request<v1::PrepareRequest>) -> Result<Response<v1::PrepareResponse>, Status> {
        Ok(Response::new(v1::PrepareResponse::default()))
    }

    async fn logs(&self, _: Request<v1::LogsRequest>) -> Result<Response<v1::LogsResponse>, Status> {
        Ok(Response::new(v1::LogsResponse::default()))
    }

    async fn put_features(&self, _: Request<v1::PutFeaturesRequest>) -> Result<Response<v1::PutFeaturesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn describe(&self, _: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

impl Deaf {
    /// Serves with windows so narrow that a few frames fill them.
    async fn serve(&self) -> (String, DropGuard) {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.address().to_string();
        let server = janus_wire::server(&janus_wire::Security::Plain).unwrap();
        let mut server = server.initial_stream_window_size(1 << 16).initial_connection_window_size(1 << 16);
        let shutdown = CancellationToken::new();
        let (router, until) = (server.add_service(StageServer::new(self.clone())), shutdown.clone());
        tokio::spawn(router.serve_with_incoming_shutdown(listener.incoming(), until.cancelled_owned()));
        (address, shutdown.drop_guard())
    }
}

/// Frames that are sent to a stage whose neighbour takes nothing; a dozen fill everything on the way.
const FRAMES: u64 = 200;

/// Makes `deaf` the neighbour of the first stage in `epoch` and sends frames until nothing moves any more.
async fn jam(first: &mut Node, deaf: &str, epoch: u64) -> (mpsc::Sender<LinkMessage>, Streaming<LinkAnswer>) {
    let mut request = ConfigureRequest { hello: Some(first.hello(epoch)), next: deaf.to_owned(), ..Default::default() };
    (request.next_first_layer, request.next_end_layer) = (2, 4);
    soon(first.client.configure(request)).await.unwrap();
    let hello = first.hello(epoch);
    let (frames, mut answers) = first.link(link_message::Message::Hello(hello)).await.unwrap();
    soon(answers.message()).await.unwrap();
    let before = first.describe().await.frames;
    for sequence in 0..FRAMES {
        // 64 positions of a pair: 32 KiB of activations for the neighbour.
        let unit = rows(0, 1, Mode::Prefill, 0, vec![text(&[7; 64]), text(&[7; 64])], None);
        let slots = vec![if sequence == 0 { open(0, 1, Kind::Pair, 64) } else { truncate(0, 1, 0) }];
        let body = FrameBody { pipeline: PIPELINE, epoch, sequence, slots, units: vec![unit], ..FrameBody::default() };
        let message = LinkMessage { message: Some(link_message::Message::Frame(frame::seal(&body, Bytes::new()))) };
        soon(frames.send(message)).await.unwrap();
    }
    // Whether a stage will never move again cannot be awaited, only believed after a while.
    let (mut applied, mut same) = (0, 0);
    while same < 5 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = first.describe().await.frames - before;
        same = if now == applied && now > 0 { same + 1 } else { 0 };
        applied = now;
    }
    assert!(applied < FRAMES / 2, "the neighbour took {applied} frames");
    (frames, answers)
}

#[tokio::test]
async fn a_neighbour_that_takes_nothing_keeps_no_stage_from_a_newer_epoch_and_leaves_nothing() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let deaf = Deaf::default();
    let (address, _serving) = deaf.serve().await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let mut settled = 0;
    for round in 0..6 {
        let (frames, mut answers) = jam(&mut line.0[0], &address, 2 * round + 1).await;
        // The next epoch has a sound neighbour. It begins at once, and the jammed link hears of its own end.
        let mut hand = line.connect(2 * round + 2).await;
        paints(&mut hand).await;
        let status = soon(answers.message()).await.unwrap_err();
        assert!(status.message().contains("epoch is over"), "{status:?}");
        let seen = line.0[0].describe().await;
        assert_eq!((seen.open_slots, seen.refused_frames), (1, 0));
        drop((hand, frames, answers));
        // The deaf neighbour lets go of what it holds when the process ends, not before: nothing may count on it.
        if round == 1 {
            settled = quiet(tasks, usize::MAX).await;
        }
    }
    let left = quiet(tasks, settled).await;
    assert!(left <= settled, "{settled} tasks were alive after two jams, {left} after six");
    assert_eq!(deaf.0.lock().unwrap().len(), 6);
}

/// Waits until as few tasks are alive as `most`, or until none has ended for a while.
async fn quiet(tasks: impl Fn() -> usize, most: usize) -> usize {
    let mut least = tasks();
    let mut unchanged = 0;
    while unchanged < 20 && (least > most || most == usize::MAX) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        unchanged = if tasks() < least { 0 } else { unchanged + 1 };
        least = least.min(tasks());
    }
    least
}
