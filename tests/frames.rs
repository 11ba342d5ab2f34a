//! A stage by hand: right frames give the reference's ids, wrong ones are refused, loudly, without harm to others.
// One stage is a list of one range.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init, missing_docs)]

#[path = "harness/client.rs"]
mod client;
#[path = "frames/hellos.rs"]
mod hellos;
#[path = "frames/hostile.rs"]
mod hostile;
#[path = "frames/panics.rs"]
mod panics;
#[path = "harness/stage.rs"]
mod stage;
#[path = "frames/stuck.rs"]
mod stuck;
mod support;
#[path = "frames/units.rs"]
mod units;

use std::time::Duration;

use bytes::Bytes;
use janus_wire::frame;
use janus_wire::v1::{Frame, FrameBody, Kind, LogsRequest, Mode, UnitResult, slot_op};
use stage::{Hand, Line, PIPELINE, close, copy, decode, holding, image, keep, open, rows, text, truncate};
use support::golden_ids;
use tonic::Code;

/// A picture of the reference: what goes in, and what comes out.
struct Golden {
    cond: Vec<u32>,
    uncond: Vec<u32>,
    ids: Vec<u32>,
}

impl Golden {
    fn new() -> Self {
        let ids = |tensor| golden_ids("generate_pro_1_cfg5", tensor).into_iter().map(|id| id as u32).collect();
        Golden { cond: ids("cond_ids"), uncond: ids("uncond_ids"), ids: ids("image_ids") }
    }

    fn prompt(&self) -> u32 {
        self.cond.len() as u32
    }

    fn open(&self, slot: u32, generation: u32) -> janus_wire::v1::SlotOp {
        open(slot, generation, Kind::Pair, self.prompt() + 15)
    }

    /// The whole prompt, after which the first id is drawn.
    fn prefill(&self, slot: u32, generation: u32) -> janus_wire::v1::Unit {
        rows(slot, generation, Mode::Prefill, 0, vec![text(&self.cond), text(&self.uncond)], Some(0))
    }

    /// The step that draws id `i`, from 1.
    fn decode(&self, slot: u32, generation: u32, i: usize) -> janus_wire::v1::Unit {
        decode(slot, generation, self.prompt() + i as u32 - 1, self.ids[i - 1], i as u32)
    }
}

fn id(results: &[UnitResult]) -> u32 {
    let [result] = results else { panic!("{results:?} is not one result") };
    assert_eq!(result.refused, "");
    result.id.unwrap()
}

/// Paints the reference's picture in slot 0 of a fresh epoch.
async fn paints(hand: &mut Hand) {
    let golden = Golden::new();
    assert_eq!(id(&hand.step(vec![golden.open(0, 1)], vec![golden.prefill(0, 1)]).await), golden.ids[0]);
    for i in 1..golden.ids.len() {
        assert_eq!(id(&hand.step(vec![], vec![golden.decode(0, 1, i)]).await), golden.ids[i], "id {i}");
    }
}

#[tokio::test]
async fn right_frames_paint_the_references_picture_over_any_number_of_stages() {
    for layers in [&[0..4][..], &[0..2, 2..4], &[0..1, 1..3, 3..4], &[0..1, 1..2, 2..3, 3..4]] {
        let mut line = Line::start(layers).await;
        // Slots are held for as long as the link lasts.
        let mut hand = line.connect(1).await;
        paints(&mut hand).await;
        assert_eq!(line.refused().await, vec![(0, 0); layers.len()]);
        for node in &mut line.0 {
            let seen = node.describe().await;
            assert_eq!((seen.frames, seen.open_slots), (16, 1));
            assert!(seen.kv_bytes > 0);
        }
    }
}

type Fault = (&'static str, fn(&mut FrameBody), fn(&mut Frame));

#[tokio::test]
async fn a_frame_that_is_not_the_next_one_ends_its_link_and_is_counted() {
    let faults: [Fault; 7] = [
        ("its sequence number is 2, expected 1", |body| body.sequence = 2, |_| {}),
        ("its sequence number is 0, expected 1", |body| body.sequence = 0, |_| {}),
        ("epoch", |body| body.epoch -= 1, |_| {}),
        ("epoch", |body| body.epoch += 1, |_| {}),
        ("its pipeline is 9, expected 1", |body| body.pipeline = 9, |_| {}),
        ("checksum is", |_| {}, |frame| frame.crc32c ^= 1),
        ("1 numbers of activations came, but its units have 0", |_| {}, |frame| *frame = add_activations(frame, &[1.0])),
    ];
    let mut line = Line::start(&[0..2, 2..4]).await;
    let golden = Golden::new();
    let mut epoch = 1;
    for (i, (reason, in_body, in_frame)) in faults.into_iter().enumerate() {
        let mut hand = line.connect(epoch).await;
        hand.step(vec![golden.open(0, 1)], vec![golden.prefill(0, 1)]).await;
        let mut body = hand.body(vec![], vec![golden.decode(0, 1, 1)]);
        in_body(&mut body);
        let mut frame = frame::seal(&body, Bytes::new());
        in_frame(&mut frame);
        hand.send(frame).await;
        let status = hand.end().await;
        assert_eq!(status.code(), Code::FailedPrecondition, "{reason}: {status:?}");
        assert!(status.message().contains(reason), "{reason}: {}", status.message());
        assert_eq!(line.refused().await, [(i as u64 + 1, 0), (0, 0)], "{reason}");
        epoch += 1;
        paints(&mut line.connect(epoch).await).await;
        epoch += 1;
    }
}

/// The frame with other activations, under a right checksum.
fn add_activations(frame: &Frame, rows: &[f32]) -> Frame {
    frame::seal(&frame::open(frame).unwrap(), frame::to_bytes(rows))
}

#[tokio::test]
async fn activations_that_are_not_the_units_rows_end_the_link_between_stages_too() {
    let mut line = Line::start(&[2..4]).await;
    let golden = Golden::new();
    let mut unit = golden.prefill(0, 1);
    (unit.positions, unit.inputs) = (2, Vec::new());
    for (epoch, numbers, fits) in
        [(1, 4 * 64, true), (2, 3 * 64, false), (3, 5 * 64, false), (4, 4 * 64 - 1, false), (5, 0, false)]
    {
        let mut hand = line.connect(epoch).await;
        let body = hand.body(vec![golden.open(0, 1)], vec![unit.clone()]);
        hand.send(frame::seal(&body, frame::to_bytes(&vec![0.5; numbers]))).await;
        if fits {
            assert!(hand.result().await.units[0].id.is_some());
            continue;
        }
        let status = hand.end().await;
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("of activations came, but its units have 256"), "{}", status.message());
        assert_eq!(line.refused().await, [(epoch - 1, 0)]);
    }
}

#[tokio::test]
async fn a_frame_of_an_epoch_that_ended_is_not_applied_even_if_its_link_let_it_through() {
    use janus_worker::stage::{Features, StageCore};
    let mut core = StageCore::new(stage::model(0..4), 4);
    let features = Features::new(1 << 20);
    core.begin(PIPELINE, 2);
    let golden = Golden::new();
    let body = |epoch| FrameBody { pipeline: PIPELINE, epoch, slots: vec![golden.open(0, 1)], ..FrameBody::default() };
    let late = core.apply(body(1), &[], &features).err().unwrap();
    assert!(late.to_string().contains("its epoch is 1"), "{late}");
    assert_eq!(core.open_slots(), 0);
    assert!(core.apply(body(2), &[], &features).is_ok());
    assert_eq!(core.open_slots(), 1);
}

#[tokio::test]
async fn a_replay_after_a_truncate_rebuilds_the_same_bits() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let golden = Golden::new();
    for (epoch, keep) in [(1, 0), (2, 10), (3, golden.prompt()), (4, golden.prompt() + 3)] {
        let mut hand = line.connect(epoch).await;
        hand.step(vec![golden.open(0, 1)], vec![golden.prefill(0, 1)]).await;
        for i in 1..6 {
            hand.step(vec![], vec![golden.decode(0, 1, i)]).await;
        }
        let branch = |prompt: &[u32]| {
            let kept = prompt.get(keep as usize..).unwrap_or_default();
            let mut input = text(kept);
            input.pieces.extend(image(&golden.ids[(keep as usize).saturating_sub(prompt.len())..6]).pieces);
            input.pieces.retain(|piece| piece != &text(&[]).pieces[0]);
            input
        };
        let again = rows(0, 1, Mode::Replay, keep, vec![branch(&golden.cond), branch(&golden.uncond)], Some(6));
        assert_eq!(id(&hand.step(vec![truncate(0, 1, keep)], vec![again]).await), golden.ids[6], "from {keep}");
        assert_eq!(id(&hand.step(vec![], vec![golden.decode(0, 1, 7)]).await), golden.ids[7], "after {keep}");
        assert_eq!(line.refused().await, [(0, 0); 2]);
    }
}

#[tokio::test]
async fn copied_positions_are_those_that_would_be_computed() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let golden = Golden::new();
    let mut hand = line.connect(1).await;
    hand.step(vec![golden.open(0, 1)], vec![golden.prefill(0, 1)]).await;
    hand.step(vec![], vec![golden.decode(0, 1, 1)]).await;
    let prompt = golden.prompt();
    // Of each branch all but the last, some, nothing: what is left is fed, and the first id is the reference's.
    let mut slot = 1;
    let mut paints = async |hand: &mut Hand, from: (u32, u32), held: [u32; 2]| {
        slot += 1;
        let mut ops = vec![golden.open(slot, 1)];
        ops.extend((0..2).filter(|b| held[*b] > 0).map(|b| copy(slot, 1, b as u32, from, held[b])));
        let start = held[0].min(held[1]);
        let mut unit = holding(golden.prefill(slot, 1), held);
        (unit.start, unit.positions) = (start, prompt - start);
        unit.held = held.iter().map(|held| held - start).collect();
        assert_eq!(id(&hand.step(ops, vec![unit]).await), golden.ids[0], "{held:?} copied");
        for i in 1..4 {
            assert_eq!(id(&hand.step(vec![], vec![golden.decode(slot, 1, i)]).await), golden.ids[i], "{held:?} copied");
        }
    };
    for held in [[prompt - 1; 2], [0, prompt - 1], [prompt - 1, 0], [3, 7], [1, 0]] {
        paints(&mut hand, (0, 1), held).await;
    }
    // The unit is over; its prompt is not.
    let before = line.0[0].describe().await;
    hand.step(vec![keep(0, 1, prompt)], vec![]).await;
    let after = line.0[0].describe().await;
    assert_eq!(after.open_slots, before.open_slots - 1);
    assert!(after.kv_bytes < before.kv_bytes);
    paints(&mut hand, (0, 1), [prompt - 1; 2]).await;
    hand.step((0..9).map(|slot| close(slot, 1)).collect(), vec![]).await;
    assert_eq!(line.refused().await, [(0, 0); 2]);
    assert_eq!(line.0[1].describe().await.kv_bytes, 0);
}

#[tokio::test]
async fn what_cannot_be_copied_or_kept_is_refused_and_nothing_is_spoilt() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let golden = Golden::new();
    let prompt = golden.prompt();
    let mut epoch = 0;
    let mut fresh = async || {
        epoch += 1;
        let mut hand = line.connect(epoch).await;
        hand.step(vec![golden.open(0, 3)], vec![golden.prefill(0, 3)]).await;
        hand
    };
    let whole = |slot| golden.prefill(slot, 1);
    let shorter = |held: [u32; 2]| {
        let start = held[0].min(held[1]);
        let mut unit = holding(whole(1), held);
        (unit.start, unit.positions, unit.held) = (start, prompt - start, held.iter().map(|held| held - start).collect());
        unit
    };
    // None of these is done, so the unit that counts on it is refused, and one that does not is not.
    for op in [
        copy(1, 1, 0, (0, 2), 4),
        copy(1, 1, 0, (1, 1), 4),
        copy(1, 1, 0, (7, 1), 4),
        copy(1, 1, 0, (99, 1), 4),
        copy(1, 1, 2, (0, 3), 4),
        copy(1, 2, 0, (0, 3), 4),
        copy(1, 1, 0, (0, 3), prompt + 1),
        keep(1, 1, 1),
        keep(1, 2, 0),
    ] {
        let (said, mut hand) = (format!("{op:?}"), fresh().await);
        let answer = hand.step(vec![golden.open(1, 1), op], vec![shorter([4, 0])]).await;
        assert!(answer[0].refused.starts_with("it leaves out 4 positions of branch 0"), "{said}: {answer:?}");
        assert_eq!(id(&hand.step(vec![], vec![whole(1)]).await), golden.ids[0], "{said}");
    }
    // What was fed is not replaced.
    let mut hand = fresh().await;
    let ops = vec![golden.open(1, 1), copy(1, 1, 0, (0, 3), 4), copy(1, 1, 0, (0, 3), 5)];
    assert_eq!(id(&hand.step(ops, vec![shorter([4, 0])]).await), golden.ids[0]);
    hand.step(vec![copy(1, 1, 1, (0, 3), 4)], vec![]).await;
    assert_eq!(id(&hand.step(vec![], vec![golden.decode(1, 1, 1)]).await), golden.ids[1]);
    // Rows that are left out without having been copied, an id without a row, and a kept slot that goes on.
    for (op, unit, reason) in [
        (copy(2, 1, 0, (0, 3), 4), shorter([3, 0]), "it leaves out 3 positions of branch 0, which holds 4"),
        (copy(2, 1, 0, (0, 3), prompt), shorter([prompt, 0]), "an id is asked for, but branch 0 has no row"),
        (keep(0, 3, 5), shorter([0, 0]), "the slot has room for"),
    ] {
        let slot = if reason.contains("room") { 0 } else { 2 };
        let mut unit = unit;
        (unit.slot, unit.generation) = if slot == 0 { (0, 3) } else { (2, 1) };
        unit.start = if slot == 0 { 5 } else { unit.start };
        let answer = fresh().await.step(vec![golden.open(2, 1), op], vec![unit]).await;
        assert!(answer[0].refused.contains(reason), "{reason}: {answer:?}");
    }
}

#[tokio::test]
async fn closing_frees_a_slot_everywhere_and_only_in_its_own_generation() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let golden = Golden::new();
    let mut hand = line.connect(1).await;
    hand.step(vec![golden.open(0, 5)], vec![golden.prefill(0, 5)]).await;
    // Of an older generation, of one to come, and of a slot that is free.
    let closes = vec![close(0, 4), close(0, 6), close(3, 1)];
    assert_eq!(id(&hand.step(closes, vec![golden.decode(0, 5, 1)]).await), golden.ids[1]);
    assert_eq!(id(&hand.step(vec![], vec![golden.decode(0, 5, 2)]).await), golden.ids[2]);
    hand.step(vec![close(0, 5)], vec![]).await;
    for node in &mut line.0 {
        let seen = node.describe().await;
        assert_eq!((seen.open_slots, seen.kv_bytes, seen.refused_units), (0, 0, 0));
    }
    let late = &hand.step(vec![], vec![golden.decode(0, 5, 3)]).await[0];
    assert_eq!(late.refused, "its slot is not open");
}

#[tokio::test]
async fn a_stage_whose_link_ended_holds_no_slots_and_still_knows_what_they_were_fed() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let mut hand = line.connect(1).await;
    let mut opened = open(0, 1, Kind::Pair, 72);
    if let Some(slot_op::Op::Open(open)) = &mut opened.op {
        (open.key, open.prompt) = ("t/r#0".to_owned(), 2);
    }
    let ids = [1, 5, 6, 7];
    hand.step(vec![opened], vec![rows(0, 1, Mode::Prefill, 0, vec![text(&ids), text(&ids)], None)]).await;
    for node in &mut line.0 {
        assert_eq!(node.describe().await.open_slots, 1);
    }
    drop(hand);
    for node in &mut line.0 {
        let freed = async {
            while node.describe().await.open_slots > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        stage::soon(freed).await;
        assert_eq!(node.describe().await.kv_bytes, 0);
    }
    let hello = Some(line.0[0].hello(2));
    let logs = line.0[0].client.logs(LogsRequest { hello }).await.unwrap().into_inner().logs;
    assert_eq!(logs.iter().map(|log| (log.key.as_str(), &log.ids[..])).collect::<Vec<_>>(), [("t/r#0", &[6, 7][..])]);
    // The next epoch begins with nothing.
    line.configure(1 << 32).await.unwrap();
    let hello = Some(line.0[0].hello(1 << 32));
    assert!(line.0[0].client.logs(LogsRequest { hello }).await.unwrap().into_inner().logs.is_empty());
}

#[tokio::test]
async fn the_stages_hold_the_weights_once_between_them() {
    let mut sums = Vec::new();
    for layers in [&[0..4][..], &[0..2, 2..4], &[0..1, 1..3, 3..4], &[0..1, 1..2, 2..3, 3..4]] {
        let mut sum = 0;
        for node in &mut Line::start(layers).await.0 {
            let seen = node.describe().await;
            assert_eq!(seen.first_layer as usize..seen.end_layer as usize, node.layers);
            assert!(seen.weight_bytes > 0);
            sum += seen.weight_bytes;
        }
        sums.push(sum);
    }
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
}
