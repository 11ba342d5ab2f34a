//! Stages in this process, and a coordinator played by hand: whatever it sends, right or wrong, is written in the test.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use janus_model::{Checkpoint, KvDtype, Pool};
use janus_spec::Files;
use janus_wire::v1::stage_client::StageClient;
use janus_wire::v1::{self, *};
use janus_wire::{Identity, Listener, Security, frame};
use janus_worker::stage::{Compute, ModelCompute, StageService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;
use tonic::transport::server::Router;
use tonic::{Status, Streaming};

/// Units that the stages of tests can hold at once.
pub const SLOTS: usize = 64;
pub const PIPELINE: u64 = 1;

/// Nothing in these tests takes long.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.unwrap()
}

pub fn identity() -> Identity {
    Identity { cluster: "test".into(), numerics: "toy-1".into(), model: [7; 32], node: "by-hand".into() }
}

pub fn tiny_a() -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-a/transformers");
    Checkpoint::open(Files::open_dir(path).unwrap()).unwrap()
}

pub fn model(layers: Range<usize>) -> ModelCompute {
    let checkpoint = tiny_a();
    let format = checkpoint.native_format();
    ModelCompute::load(&checkpoint, Arc::new(Pool::new(1)), layers, format, KvDtype::F32, SLOTS).unwrap()
}

/// Serves on a free loopback port until `shutdown`; gives back the address.
pub async fn serve(add: impl FnOnce(&mut tonic::transport::Server) -> Router, shutdown: &CancellationToken) -> String {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.address().to_string();
    let router = add(&mut janus_wire::server(&Security::Plain).unwrap());
    let until = shutdown.clone().cancelled_owned();
    tokio::spawn(router.serve_with_incoming_shutdown(listener.incoming(), until));
    address
}

/// A stage that serves; it ends when this is dropped.
pub struct Node {
    pub layers: Range<usize>,
    pub address: String,
    pub client: StageClient<Channel>,
    _shutdown: DropGuard,
}

impl Node {
    pub async fn start(compute: impl Compute) -> Self {
        let layers = compute.layers();
        let shutdown = CancellationToken::new();
        let service = StageService::start(identity(), Security::Plain, compute, SLOTS, 1 << 20, shutdown.clone()).unwrap();
        let address = serve(|server| server.add_service(service.server()), &shutdown).await;
        let client = StageClient::new(janus_wire::connect(&address, &Security::Plain).await.unwrap());
        Node { layers, address, client, _shutdown: shutdown.drop_guard() }
    }

    pub fn hello(&self, epoch: u64) -> Hello {
        identity().hello(Role::Coordinator, PIPELINE, epoch, self.layers.clone())
    }

    /// The same stage over a connection of its own; that one ends with the first.
    pub async fn another(&self) -> Node {
        let client = StageClient::new(janus_wire::connect(&self.address, &Security::Plain).await.unwrap());
        let _shutdown = CancellationToken::new().drop_guard();
        Node { layers: self.layers.clone(), address: self.address.clone(), client, _shutdown }
    }

    pub async fn describe(&mut self) -> DescribeResponse {
        soon(self.client.describe(DescribeRequest {})).await.unwrap().into_inner()
    }

    /// Begins a link with `message`; the other end of the channel is the caller's to feed.
    pub async fn link(
        &mut self,
        message: link_message::Message,
    ) -> Result<(mpsc::Sender<LinkMessage>, Streaming<LinkAnswer>), Status> {
        let (frames, receiver) = mpsc::channel(16);
        frames.try_send(LinkMessage { message: Some(message) }).unwrap();
        let answers = soon(self.client.link(ReceiverStream::new(receiver))).await?;
        Ok((frames, answers.into_inner()))
    }
}

/// The stages of one pipeline, in order.
pub struct Line(pub Vec<Node>);

impl Line {
    /// Stages of the real model with these layers.
    pub async fn start(layers: &[Range<usize>]) -> Self {
        let mut nodes = Vec::new();
        for range in layers {
            nodes.push(Node::start(model(range.clone())).await);
        }
        Line(nodes)
    }

    pub async fn configure(&mut self, epoch: u64) -> Result<(), Status> {
        let mut next: Option<(String, Range<usize>)> = None;
        for node in self.0.iter_mut().rev() {
            let (address, layers) = next.unwrap_or((String::new(), 0..0));
            let request = ConfigureRequest {
                hello: Some(node.hello(epoch)),
                next: address,
                next_first_layer: layers.start as u32,
                next_end_layer: layers.end as u32,
            };
            soon(node.client.configure(request)).await?;
            next = Some((node.address.clone(), node.layers.clone()));
        }
        Ok(())
    }

    /// Configures a new epoch and takes both ends.
    pub async fn connect(&mut self, epoch: u64) -> Hand {
        self.configure(epoch).await.unwrap();
        let last = self.0.last_mut().unwrap();
        let hello = last.hello(epoch);
        let mut results = soon(last.client.results(hello)).await.unwrap().into_inner();
        assert!(matches!(soon(results.message()).await.unwrap().unwrap().message, Some(result_message::Message::Hello(_))));
        let first = &mut self.0[0];
        let hello = first.hello(epoch);
        let (frames, mut answers) = first.link(link_message::Message::Hello(hello)).await.unwrap();
        assert_eq!(soon(answers.message()).await.unwrap().unwrap().hello.unwrap().epoch, epoch);
        Hand { frames, answers, results, epoch, sequence: 0 }
    }

    /// Frames and units that were refused, by stage.
    pub async fn refused(&mut self) -> Vec<(u64, u64)> {
        let mut refused = Vec::new();
        for node in &mut self.0 {
            let seen = node.describe().await;
            refused.push((seen.refused_frames, seen.refused_units));
        }
        refused
    }
}

/// Both ends of a connected pipeline.
pub struct Hand {
    frames: mpsc::Sender<LinkMessage>,
    answers: Streaming<LinkAnswer>,
    results: Streaming<ResultMessage>,
    pub epoch: u64,
    /// Of the next frame.
    pub sequence: u64,
}

impl Hand {
    /// The next frame's body, as it should be.
    pub fn body(&self, slots: Vec<SlotOp>, units: Vec<Unit>) -> FrameBody {
        let (epoch, sequence) = (self.epoch, self.sequence);
        FrameBody { pipeline: PIPELINE, epoch, sequence, microbatch: 100 + sequence, slots, units, ..FrameBody::default() }
    }

    pub async fn send(&mut self, frame: Frame) {
        let message = LinkMessage { message: Some(link_message::Message::Frame(frame)) };
        soon(self.frames.send(message)).await.unwrap();
        self.sequence += 1;
    }

    /// Sends a correct frame and takes its result.
    pub async fn step(&mut self, slots: Vec<SlotOp>, units: Vec<Unit>) -> Vec<UnitResult> {
        let body = self.body(slots, units);
        self.send(frame::seal(&body, Bytes::new())).await;
        let result = self.result().await;
        assert_eq!((result.epoch, result.sequence, result.microbatch), (body.epoch, body.sequence, body.microbatch));
        result.units
    }

    pub async fn result(&mut self) -> StepResult {
        match soon(self.results.message()).await.unwrap().unwrap().message {
            Some(result_message::Message::Result(result)) => result,
            other => panic!("{other:?} is no result"),
        }
    }

    /// How the link ends; the results end with it.
    pub async fn end(mut self) -> Status {
        let status = soon(self.answers.message()).await.expect_err("the link goes on");
        assert!(soon(self.results.message()).await.is_err(), "the results go on");
        status
    }
}

fn op(slot: u32, generation: u32, op: slot_op::Op) -> SlotOp {
    SlotOp { slot, generation, op: Some(op) }
}

/// Opens a slot whose ids are the likeliest ones, guided with weight 5 if it is a pair.
pub fn open(slot: u32, generation: u32, kind: Kind, capacity: u32) -> SlotOp {
    let sampling = Some(Sampling { top_p: 1.0, cfg_weight: 5.0, ..Sampling::default() });
    op(
        slot,
        generation,
        slot_op::Op::Open(slot_op::Open { kind: kind.into(), capacity, sampling, ..slot_op::Open::default() }),
    )
}

pub fn close(slot: u32, generation: u32) -> SlotOp {
    op(slot, generation, slot_op::Op::Close(slot_op::Close {}))
}

pub fn truncate(slot: u32, generation: u32, length: u32) -> SlotOp {
    op(slot, generation, slot_op::Op::Truncate(length))
}

/// Branch `branch` of `slot` gets the first `length` positions of the same branch of `from`.
pub fn copy(slot: u32, generation: u32, branch: u32, from: (u32, u32), length: u32) -> SlotOp {
    let (from_slot, from_generation) = from;
    let copy = slot_op::Copy { branch, from_slot, from_generation, from_branch: branch, length };
    op(slot, generation, slot_op::Op::Copy(copy))
}

pub fn keep(slot: u32, generation: u32, length: u32) -> SlotOp {
    op(slot, generation, slot_op::Op::Keep(length))
}

/// The same rows, of which the branches hold so many already.
pub fn holding(mut unit: Unit, held: [u32; 2]) -> Unit {
    for (input, held) in unit.inputs.iter_mut().zip(held) {
        let mut left = held as usize;
        for piece in &mut input.pieces {
            if let Some(piece::Piece::Text(ids) | piece::Piece::Image(ids)) = &mut piece.piece {
                let gone = left.min(ids.ids.len());
                ids.ids.drain(..gone);
                left -= gone;
            }
        }
    }
    unit.held = held.to_vec();
    unit
}

pub fn text(ids: &[u32]) -> Input {
    let ids = Ids { ids: ids.to_vec() };
    Input { pieces: vec![Piece { piece: Some(piece::Piece::Text(ids)) }] }
}

pub fn image(ids: &[u32]) -> Input {
    let ids = Ids { ids: ids.to_vec() };
    Input { pieces: vec![Piece { piece: Some(piece::Piece::Image(ids)) }] }
}

/// Rows of a pair from its two branches.
pub fn rows(slot: u32, generation: u32, mode: Mode, start: u32, inputs: Vec<Input>, sample: Option<u32>) -> Unit {
    let positions = |piece: &Piece| match &piece.piece {
        Some(piece::Piece::Text(ids) | piece::Piece::Image(ids)) => ids.ids.len(),
        Some(piece::Piece::Features(span)) => span.count as usize,
        None => 0,
    };
    let positions = inputs.first().map_or(0, |input| input.pieces.iter().map(positions).sum()) as u32;
    let (kind, mode) = (Kind::Pair.into(), mode.into());
    v1::Unit { slot, generation, kind, mode, start, positions, inputs, sample, ..Unit::default() }
}

/// One position of a pair: the id drawn last.
pub fn decode(slot: u32, generation: u32, start: u32, id: u32, sample: u32) -> Unit {
    rows(slot, generation, Mode::Decode, start, vec![image(&[id]), image(&[id])], Some(sample))
}
