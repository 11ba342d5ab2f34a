//! One hop: a frame of rows from the end of one stage's layers to the beginning of the next one's, through the real
//! services, links and compute threads on loopback. The stages compute nothing and tell the time instead.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use janus_model::llama::Span;
use janus_wire::v1::stage_client::StageClient;
use janus_wire::v1::{
    ConfigureRequest, FrameBody, Ids, Input, Kind, LinkMessage, Mode, Piece, Role, Sampling, SlotOp, Unit, link_message,
    piece, slot_op,
};
use janus_wire::{Identity, Listener, Security, frame};
use janus_worker::stage::{Compute, Features, SampleJob, StageService};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, Outcome};
use crate::session;

/// Frames that are timed, after some to warm up.
const FRAMES: usize = 1000;
const WARM_UP: usize = 100;
/// Both nodes are idle this long between two frames, as they are while others compute.
const IDLE: Duration = Duration::from_millis(1);

/// When each frame passed a stage.
type Times = Arc<Mutex<Vec<Instant>>>;

/// A stage that holds one layer and notes when its rows come by.
struct Clock {
    hidden: usize,
    layer: usize,
    passed: Times,
}

impl Compute for Clock {
    fn hidden(&self) -> usize {
        self.hidden
    }
    fn layers(&self) -> Range<usize> {
        self.layer..self.layer + 1
    }
    fn total_layers(&self) -> usize {
        2
    }
    fn open(&mut self, _row_slot: usize, _capacity: usize) -> Result<(), String> {
        Ok(())
    }
    fn close(&mut self, _row_slot: usize) {}
    fn truncate(&mut self, _row_slot: usize, _length: usize) -> Result<(), String> {
        Ok(())
    }
    fn copy(&mut self, _from: usize, _to: usize, _length: usize) -> Result<(), String> {
        Ok(())
    }
    fn shrink(&mut self, _row_slot: usize, _length: usize) -> Result<(), String> {
        Ok(())
    }
    fn embed(&mut self, input: &Input, _features: &Features, out: &mut Vec<f32>) -> Result<(), String> {
        for piece in &input.pieces {
            if let Some(piece::Piece::Image(ids)) = &piece.piece {
                out.resize(out.len() + ids.ids.len() * self.hidden, 0.5);
            }
        }
        Ok(())
    }
    fn forward(&mut self, _spans: &[Span], _x: &mut [f32]) -> Result<(), String> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        Ok(())
    }
    fn sample(&mut self, jobs: &[SampleJob], _rows: &[f32], out: &mut Vec<Result<u32, String>>) {
        out.extend(jobs.iter().map(|_| Ok(1)));
    }
    fn weight_bytes(&self) -> usize {
        0
    }
    fn kv_bytes(&self) -> usize {
        0
    }
}

/// Milliseconds of a hop of `rows` rows (an even number) of `hidden` values: the median and the 99th percentile.
pub(super) fn hop(hidden: usize, rows: usize) -> Outcome<(f64, f64)> {
    let runtime = session::runtime()?;
    let shutdown = CancellationToken::new();
    let timed = runtime.block_on(timed(hidden, rows, &shutdown));
    shutdown.cancel();
    let (left, reached) = timed?;
    let mut hops: Vec<f64> = left.iter().zip(&reached).skip(WARM_UP).map(|(l, r)| (*r - *l).as_secs_f64() * 1e3).collect();
    hops.sort_by(f64::total_cmp);
    Ok((hops[hops.len() / 2], hops[hops.len() * 99 / 100]))
}

async fn timed(hidden: usize, rows: usize, shutdown: &CancellationToken) -> Outcome<(Vec<Instant>, Vec<Instant>)> {
    let identity = Identity {
        cluster: "bench".to_owned(),
        numerics: "clock".to_owned(),
        model: [0; 32],
        node: format!("bench-{}", std::process::id()),
    };
    let pairs = (rows / 2).max(1) as u32;
    let times: [Times; 2] = Default::default();
    let mut nodes = Vec::new();
    for (layer, passed) in times.iter().enumerate() {
        let compute = Clock { hidden, layer, passed: passed.clone() };
        let service =
            StageService::start(identity.clone(), Security::Plain, compute, pairs as usize, 1 << 20, shutdown.clone())
                .map_err(broken)?;
        let listener = Listener::bind("127.0.0.1:0").await.map_err(broken)?;
        let address = listener.address().to_string();
        let mut server = janus_wire::server(&Security::Plain).map_err(broken)?;
        let router = server.add_service(service.server());
        let until = shutdown.clone().cancelled_owned();
        tokio::spawn(async move { router.serve_with_incoming_shutdown(listener.incoming(), until).await });
        let channel = janus_wire::connect(&address, &Security::Plain).await.map_err(broken)?;
        nodes.push((StageClient::new(channel), address));
    }
    let [(first, _), (last, address)] = nodes.as_mut_slice() else {
        return Err(Failure::Broken("two stages were to start".to_owned()));
    };
    let hello = |layer| identity.hello(Role::Coordinator, 1, 1, layer..layer + 1);
    let end = ConfigureRequest { hello: Some(hello(1)), ..ConfigureRequest::default() };
    last.configure(end).await.map_err(broken)?;
    let next = ConfigureRequest { hello: Some(hello(0)), next: address.clone(), next_first_layer: 1, next_end_layer: 2 };
    first.configure(next).await.map_err(broken)?;
    let mut results = last.results(hello(1)).await.map_err(broken)?.into_inner();
    results.message().await.map_err(broken)?;
    let (frames, stream) = mpsc::channel(4);
    let say = |message| LinkMessage { message: Some(message) };
    frames.send(say(link_message::Message::Hello(hello(0)))).await.map_err(broken)?;
    let mut answers = first.link(tokio_stream::wrappers::ReceiverStream::new(stream)).await.map_err(broken)?.into_inner();
    answers.message().await.map_err(broken)?;

    for sequence in 0..(WARM_UP + FRAMES) as u64 {
        tokio::time::sleep(IDLE).await;
        let slots = if sequence == 0 { (0..pairs).map(open).collect() } else { Vec::new() };
        let units = (0..pairs).map(|slot| unit(slot, sequence as u32)).collect();
        let body = FrameBody { pipeline: 1, epoch: 1, sequence, slots, units, ..FrameBody::default() };
        let sealed = frame::seal(&body, bytes::Bytes::new());
        frames.send(say(link_message::Message::Frame(sealed))).await.map_err(broken)?;
        if results.message().await.map_err(broken)?.is_none() {
            return Err(Failure::Broken("the stages ended their results".to_owned()));
        }
    }
    let [left, reached] = times.map(|times| std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner)));
    Ok((left, reached))
}

fn open(slot: u32) -> SlotOp {
    let sampling = Some(Sampling { top_p: 1.0, cfg_weight: 5.0, ..Sampling::default() });
    let capacity = (WARM_UP + FRAMES) as u32;
    let op = slot_op::Op::Open(slot_op::Open { kind: Kind::Pair.into(), capacity, sampling, ..slot_op::Open::default() });
    SlotOp { slot, generation: 1, op: Some(op) }
}

/// One position of a pair.
fn unit(slot: u32, start: u32) -> Unit {
    let input = || Input { pieces: vec![Piece { piece: Some(piece::Piece::Image(Ids { ids: vec![1] })) }] };
    Unit {
        slot,
        generation: 1,
        kind: Kind::Pair.into(),
        mode: Mode::Decode.into(),
        start,
        positions: 1,
        inputs: vec![input(), input()],
        sample: Some(start),
        ..Unit::default()
    }
}

fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::Broken(error.to_string())
}
