//! Frames from a peer that has a sound certificate and sends what it likes: under a right checksum, in the right epoch. A
//! sequence that it does not name must go on as if nothing had happened.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use janus_model::llama::Span;
use janus_wire::frame;
use janus_wire::v1::{Frame, FrameBody, Ids, Input, Kind, Mode, Piece, Sampling, SlotOp, Unit, piece, slot_op};
use janus_worker::stage::{Compute, Features, SampleJob, StageCore};
use prost::Message;

const SLOTS: usize = 8;
/// The slot that is not the peer's.
const VICTIM: u32 = 3;
const PIPELINE: u64 = 1;
const EPOCH: u64 = 7;
/// Most positions that a slot may reserve.
const ROOM: usize = 4096;

/// A model of two layers whose rows are one number. A position's result is the sum of all before it, so that whatever
/// touches a sequence shows. It holds its caller to the contract of [`Compute`].
#[derive(Default)]
struct Sums {
    kept: HashMap<usize, (usize, Vec<f32>)>,
}

impl Compute for Sums {
    fn hidden(&self) -> usize {
        1
    }
    fn layers(&self) -> Range<usize> {
        0..1
    }
    fn total_layers(&self) -> usize {
        1
    }
    fn open(&mut self, slot: usize, capacity: usize) -> Result<(), String> {
        assert!(slot < 2 * SLOTS);
        if capacity > ROOM {
            return Err(format!("{capacity} positions are more than {ROOM}"));
        }
        assert!(self.kept.insert(slot, (capacity, Vec::new())).is_none(), "it was open");
        Ok(())
    }
    fn close(&mut self, slot: usize) {
        self.kept.remove(&slot);
    }
    fn truncate(&mut self, slot: usize, length: usize) -> Result<(), String> {
        let (_, kept) = self.kept.get_mut(&slot).unwrap();
        assert!(length <= kept.len());
        kept.truncate(length);
        Ok(())
    }
    fn copy(&mut self, from: usize, to: usize, length: usize) -> Result<(), String> {
        assert_ne!(from, to);
        let prefix = self.kept.get(&from).unwrap().1[..length].to_vec();
        let (capacity, kept) = self.kept.get_mut(&to).unwrap();
        assert!(kept.is_empty() && length <= *capacity);
        *kept = prefix;
        Ok(())
    }
    fn shrink(&mut self, slot: usize, length: usize) -> Result<(), String> {
        self.truncate(slot, length)?;
        self.kept.get_mut(&slot).unwrap().0 = length;
        Ok(())
    }
    fn embed(&mut self, input: &Input, _: &Features, out: &mut Vec<f32>) -> Result<(), String> {
        for piece in &input.pieces {
            match &piece.piece {
                Some(piece::Piece::Text(ids) | piece::Piece::Image(ids)) => {
                    out.extend(ids.ids.iter().map(|id| (*id % 1024) as f32));
                }
                Some(piece::Piece::Features(_)) => return Err("the features are not here".to_owned()),
                None => return Err("a piece says nothing".to_owned()),
            }
        }
        Ok(())
    }
    fn forward(&mut self, spans: &[Span], x: &mut [f32]) -> Result<(), String> {
        assert_eq!(spans.iter().map(|span| span.rows).sum::<usize>(), x.len());
        let mut rest = x;
        for span in spans {
            let (rows, after) = rest.split_at_mut(span.rows);
            rest = after;
            let (capacity, kept) = self.kept.get_mut(&span.slot).unwrap();
            assert_eq!(span.start, kept.len());
            for row in rows {
                kept.push(*row);
                *row = kept.iter().sum();
            }
            assert!(kept.len() <= *capacity);
        }
        Ok(())
    }
    fn sample(&mut self, jobs: &[SampleJob], rows: &[f32], out: &mut Vec<Result<u32, String>>) {
        let mut rest = rows;
        let drawn = jobs.iter().map(|job| {
            let (mine, after) = rest.split_at(if job.kind == Kind::Pair { 2 } else { 1 });
            rest = after;
            Ok(mine[0] as u32 % 1024)
        });
        out.extend(drawn);
        assert!(rest.is_empty());
    }
    fn weight_bytes(&self) -> usize {
        0
    }
    fn kv_bytes(&self) -> usize {
        self.kept.values().map(|(capacity, _)| 4 * capacity).sum()
    }
}

fn text(ids: &[u32]) -> Input {
    Input { pieces: vec![Piece { piece: Some(piece::Piece::Text(Ids { ids: ids.to_vec() })) }] }
}

fn opened(slot: u32, generation: u32) -> SlotOp {
    let sampling = Some(Sampling { top_p: 1.0, cfg_weight: 5.0, ..Sampling::default() });
    let open = slot_op::Open { kind: Kind::Pair.into(), capacity: 64, sampling, prompt: 3, key: "t/r#0".to_owned() };
    SlotOp { slot, generation, op: Some(slot_op::Op::Open(open)) }
}

/// Positions of a pair in slot `slot`.
fn unit(slot: u32, mode: Mode, start: u32, ids: &[u32]) -> Unit {
    Unit {
        slot,
        generation: 1,
        kind: Kind::Pair.into(),
        mode: mode.into(),
        start,
        positions: ids.len() as u32,
        inputs: vec![text(ids), text(ids)],
        sample: Some(0),
        ..Unit::default()
    }
}

fn body(slots: Vec<SlotOp>, units: Vec<Unit>) -> FrameBody {
    FrameBody { pipeline: PIPELINE, epoch: EPOCH, slots, units, ..FrameBody::default() }
}

/// Length-prefixed bodies, one after the other, sealed as a neighbour would; and the bytes as a frame of their own.
pub fn frames(data: &[u8]) {
    if let Ok(frame) = Frame::decode(data) {
        let _ = frame::open(&frame);
    }
    let mut core = StageCore::new(Sums::default(), SLOTS);
    let features = Features::new(1 << 16);
    core.begin(PIPELINE, EPOCH);
    let start = body(vec![opened(VICTIM, 1)], vec![unit(VICTIM, Mode::Prefill, 0, &[5, 6, 7])]);
    assert!(core.apply(start, &[], &features).is_ok());
    let (mut expected, mut length) = (5 + 6 + 7, 3);

    let mut rest = data;
    while let Ok(mut hostile) = FrameBody::decode_length_delimited(&mut rest) {
        // Who owns the link may do to any slot what the protocol allows; this one is watched.
        (hostile.pipeline, hostile.epoch) = (PIPELINE, EPOCH);
        hostile.slots.retain(|op| op.slot != VICTIM);
        hostile.units.retain(|unit| unit.slot != VICTIM);
        let sealed = frame::seal(&hostile, Bytes::new());
        let applied = core.apply(frame::open(&sealed).unwrap(), &sealed.activations, &features);
        assert_eq!(core.violated(), None);
        if let Ok(applied) = applied {
            assert!(applied.result.is_some_and(|result| result.units.len() == applied.body.units.len()));
        }
        let next = body(Vec::new(), vec![unit(VICTIM, Mode::Decode, length, &[1])]);
        let result = core.apply(next, &[], &features).unwrap().result.unwrap();
        (expected, length) = (expected + 1, length + 1);
        assert_eq!((result.units[0].id, result.units[0].refused.as_str()), (Some(expected), ""));
        if rest.is_empty() || length == 64 {
            break;
        }
    }
    assert!(core.open_slots() <= SLOTS && core.compute().kv_bytes() <= 4 * 2 * SLOTS * ROOM);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let close = SlotOp { slot: 0, generation: 1, op: Some(slot_op::Op::Close(slot_op::Close {})) };
    let truncate = SlotOp { slot: 0, generation: 1, op: Some(slot_op::Op::Truncate(1)) };
    let open = || body(vec![opened(0, 1), opened(1, 1)], vec![unit(0, Mode::Prefill, 0, &[1, 2, 3])]);
    let steps = [
        vec![open(), body(vec![], vec![unit(0, Mode::Decode, 3, &[9])]), body(vec![close], vec![])],
        vec![open(), body(vec![truncate], vec![unit(0, Mode::Replay, 1, &[2, 3]), unit(1, Mode::Prefill, 0, &[4])])],
    ];
    let copy = |branch| slot_op::Copy { branch, from_slot: 0, from_generation: 1, from_branch: branch, length: 2 };
    let copied = |branch| SlotOp { slot: 1, generation: 1, op: Some(slot_op::Op::Copy(copy(branch))) };
    let keep = SlotOp { slot: 0, generation: 1, op: Some(slot_op::Op::Keep(2)) };
    let shared = [
        open(),
        body(vec![copied(0), copied(1), keep], vec![unit(1, Mode::Prefill, 2, &[3])]),
        body(vec![], vec![unit(1, Mode::Decode, 3, &[9])]),
    ];
    let steps = steps.into_iter().chain([shared.to_vec()]).collect::<Vec<_>>();
    let lengthened = |bodies: &Vec<FrameBody>| bodies.iter().flat_map(Message::encode_length_delimited_to_vec).collect();
    let mut seeds: Vec<Vec<u8>> = steps.iter().map(lengthened).collect();
    seeds.push(frame::seal(&open(), Bytes::new()).encode_to_vec());
    seeds
}
