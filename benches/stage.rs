//! A stage that computes nothing: it takes frames and answers them at once, or after a pause.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use janus_wire::frame;
use janus_wire::v1::stage_server::{Stage, StageServer};
use janus_wire::v1::{
    ConfigureRequest, ConfigureResponse, DescribeRequest, DescribeResponse, FrameBody, Hello, LinkAnswer, LinkMessage,
    LogsRequest, LogsResponse, Mode, PrepareRequest, PrepareResponse, PutFeaturesRequest, PutFeaturesResponse,
    ResultMessage, Role, StepResult, UnitResult, link_message, result_message,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::identity;

/// The id it draws; no end of sentence.
const DRAWN: u32 = 65;

/// When what happened.
#[derive(Default)]
pub struct Instants {
    /// By the sequence number of a frame: when it was there, opened, its rows read.
    pub arrivals: HashMap<u64, Instant>,
    /// From the moment the result of a unit was sent to the moment its next frame was there.
    pub turns: Vec<Duration>,
    /// By slot: when its result was sent.
    answered: HashMap<u32, Instant>,
}

/// The service; everything it saw is in its instants.
#[derive(Clone)]
pub struct ToyStage {
    layers: usize,
    pause: Duration,
    instants: Arc<Mutex<Instants>>,
    results: mpsc::UnboundedSender<StepResult>,
    taker: Arc<Mutex<Option<mpsc::UnboundedReceiver<StepResult>>>>,
    arrived: mpsc::UnboundedSender<u64>,
}

impl ToyStage {
    /// A stage that says it holds all `layers` and takes `pause` for a frame; the sequence numbers of frames that came are
    /// told to the receiver.
    pub fn new(layers: usize, pause: Duration) -> (Self, mpsc::UnboundedReceiver<u64>) {
        let (results, taker) = mpsc::unbounded_channel();
        let (arrived, heard) = mpsc::unbounded_channel();
        let taker = Arc::new(Mutex::new(Some(taker)));
        (ToyStage { layers, pause, instants: Arc::default(), results, taker, arrived }, heard)
    }

    /// As a tonic service.
    pub fn server(self) -> StageServer<Self> {
        StageServer::new(self)
            .max_decoding_message_size(janus_wire::MAX_NODE_MESSAGE)
            .max_encoding_message_size(janus_wire::MAX_NODE_MESSAGE)
    }

    /// Takes what was seen so far.
    pub fn take(&self) -> Instants {
        std::mem::take(&mut self.instants.lock().unwrap())
    }

    fn hello(&self) -> Hello {
        identity().hello(Role::Stage, 1, 1, 0..self.layers)
    }

    /// Notes a frame's arrival.
    fn note(&self, body: &FrameBody, now: Instant) {
        let mut instants = self.instants.lock().unwrap();
        instants.arrivals.insert(body.sequence, now);
        let first = body.units.iter().find(|unit| unit.mode() == Mode::Decode);
        if let Some(answered) = first.and_then(|unit| instants.answered.get(&unit.slot).copied()) {
            instants.turns.push(now - answered);
        }
        let _ = self.arrived.send(body.sequence);
    }

    /// Computes, so to speak, and answers.
    async fn answer(&self, body: FrameBody) {
        if !self.pause.is_zero() {
            tokio::time::sleep(self.pause).await;
        }
        let mut result =
            StepResult { pipeline: body.pipeline, epoch: body.epoch, sequence: body.sequence, ..StepResult::default() };
        result.microbatch = body.microbatch;
        result.units.extend(body.units.iter().map(|unit| UnitResult {
            slot: unit.slot,
            generation: unit.generation,
            length: unit.start + unit.positions,
            id: unit.sample.map(|_| DRAWN),
            refused: String::new(),
        }));
        let now = Instant::now();
        self.instants.lock().unwrap().answered.extend(body.units.iter().map(|unit| (unit.slot, now)));
        let _ = self.results.send(result);
    }
}

type Results = Pin<Box<dyn Stream<Item = Result<ResultMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Stage for ToyStage {
    type LinkStream = ReceiverStream<Result<LinkAnswer, Status>>;
    type ResultsStream = Results;

    async fn configure(&self, _: Request<ConfigureRequest>) -> Result<Response<ConfigureResponse>, Status> {
        Ok(Response::new(ConfigureResponse { hello: Some(self.hello()), copies: false }))
    }

    async fn link(&self, request: Request<Streaming<LinkMessage>>) -> Result<Response<Self::LinkStream>, Status> {
        let (answers, stream) = mpsc::channel(1);
        let _ = answers.send(Ok(LinkAnswer { hello: Some(self.hello()) })).await;
        let (mut incoming, stage) = (request.into_inner(), self.clone());
        let (frames, mut computing) = mpsc::unbounded_channel();
        let computer = self.clone();
        tokio::spawn(async move {
            while let Some(body) = computing.recv().await {
                computer.answer(body).await;
            }
        });
        tokio::spawn(async move {
            // The answering half stays open for as long as frames come.
            let _answers = answers;
            while let Ok(Some(message)) = incoming.message().await {
                if let Some(link_message::Message::Frame(sealed)) = message.message {
                    let body = frame::open(&sealed).expect("a sound frame");
                    let mut rows = Vec::new();
                    frame::read_rows(&sealed.activations, &mut rows).expect("whole rows");
                    stage.note(&body, Instant::now());
                    let _ = frames.send(body);
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn results(&self, _: Request<Hello>) -> Result<Response<Self::ResultsStream>, Status> {
        let taken = self.taker.lock().unwrap().take();
        let results = taken.ok_or_else(|| Status::failed_precondition("the results are taken"))?;
        let hello = tokio_stream::once(ResultMessage { message: Some(result_message::Message::Hello(self.hello())) });
        let results = UnboundedReceiverStream::new(results)
            .map(|result| ResultMessage { message: Some(result_message::Message::Result(result)) });
        Ok(Response::new(Box::pin(hello.chain(results).map(Ok))))
    }

    async fn prepare(&self, _: Request<PrepareRequest>) -> Result<Response<PrepareResponse>, Status> {
        Ok(Response::new(PrepareResponse::default()))
    }

    async fn logs(&self, _: Request<LogsRequest>) -> Result<Response<LogsResponse>, Status> {
        Ok(Response::new(LogsResponse::default()))
    }

    async fn put_features(&self, _: Request<PutFeaturesRequest>) -> Result<Response<PutFeaturesResponse>, Status> {
        Err(Status::unimplemented("a toy has no features"))
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(DescribeResponse::default()))
    }
}
