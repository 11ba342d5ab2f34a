//! Units that do not fit their slot, in one frame with a unit that does.

use super::*;
use crate::stage::{Node, soon};
use janus_wire::v1::{FeatureSpan, Input, Piece, PutFeaturesRequest, SlotOp, Unit, piece};

/// Slot 0, generation 3: a pair with room for 72 positions that holds the first 4 of a prompt.
/// Slot 1, generation 1: the reference's picture, of which the first id is drawn.
async fn prepared(line: &mut Line, epoch: u64) -> Hand {
    let golden = Golden::new();
    let mut hand = line.connect(epoch).await;
    let ops = vec![open(0, 3, Kind::Pair, 72), golden.open(1, 1)];
    let results = hand.step(ops, vec![first_four(0), golden.prefill(1, 1)]).await;
    assert_eq!((results[0].refused.as_str(), results[0].length, results[1].id), ("", 4, Some(golden.ids[0])));
    hand
}

fn first_four(slot: u32) -> Unit {
    let golden = Golden::new();
    rows(slot, 3, Mode::Prefill, 0, vec![text(&golden.cond[..4]), text(&golden.uncond[..4])], None)
}

/// `count` more positions of slot 0.
fn more(count: usize) -> Unit {
    rows(0, 3, Mode::Prefill, 4, vec![text(&vec![7; count]), text(&vec![7; count])], None)
}

fn with(change: impl FnOnce(&mut Unit)) -> Unit {
    let mut unit = more(2);
    change(&mut unit);
    unit
}

fn features(handle: &'static [u8], count: u32) -> Input {
    let span = FeatureSpan { handle: Bytes::from_static(handle), first: 0, count };
    Input { pieces: vec![Piece { piece: Some(piece::Piece::Features(span)) }] }
}

fn misfits() -> Vec<(Unit, &'static str)> {
    vec![
        (with(|u| u.generation = 2), "its generation is 2, the slot's is 3"),
        (with(|u| u.start = 5), "it starts at 5, the slot holds 4 positions"),
        (with(|u| u.start = 3), "it starts at 3, the slot holds 4 positions"),
        (with(|u| u.inputs.truncate(1)), "it has 1 branches of input, Pair takes 2 here"),
        (with(|u| (u.kind, _) = (Kind::Unguided.into(), u.inputs.pop())), "it is Unguided, the slot was opened for Pair"),
        (with(|u| u.mode = Mode::Decode.into()), "it has 2 positions; Decode takes 1 to 1"),
        (more(65), "it has 65 positions; Prefill takes 1 to 64"),
        (with(|u| u.mode = Mode::Replay.into()), "it replays without a truncate before it"),
        (with(|u| u.mode = 9), "its mode is unknown"),
        (with(|u| u.positions = 0), "it has 0 positions"),
        (with(|u| u.inputs[1] = text(&[7])), "branch 1 has 1 positions of input, not 2"),
        (with(|u| u.slot = 40), "its slot is not open"),
        (with(|u| u.slot = u32::MAX), "its slot is not open"),
        (with(|u| u.inputs[1] = text(&[7, 60_000])), "60000"),
        (with(|u| u.inputs[1] = features(b"nowhere", 2)), "the picture's features are not here"),
    ]
}

#[tokio::test]
async fn a_unit_that_does_not_fit_its_slot_is_refused_alone_and_counted() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let golden = Golden::new();
    let mut hand = prepared(&mut line, 1).await;
    for (i, (unit, reason)) in misfits().into_iter().enumerate() {
        let results = hand.step(vec![], vec![unit, golden.decode(1, 1, i + 1)]).await;
        assert!(results[0].refused.contains(reason), "{reason}: {:?}", results[0]);
        assert_eq!((results[0].id, results[1].refused.as_str()), (None, ""), "{reason}");
        assert_eq!(results[1].id, Some(golden.ids[i + 1]), "{reason} harmed another unit");
        assert_eq!(line.refused().await, [(0, i as u64 + 1), (0, 0)], "{reason}");
    }
    // None of them changed the slot.
    assert_eq!(hand.step(vec![], vec![more(2)]).await[0].length, 6);
}

#[tokio::test]
async fn a_slot_takes_one_unit_of_a_frame() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let golden = Golden::new();
    let mut hand = prepared(&mut line, 1).await;
    let mut second = more(2);
    second.start = 6;
    let results = hand.step(vec![], vec![more(2), second, golden.decode(1, 1, 1)]).await;
    assert_eq!((results[0].refused.as_str(), results[0].length), ("", 6));
    assert_eq!(results[1].refused, "its slot is twice in one frame");
    assert_eq!(results[2].id, Some(golden.ids[1]));
}

#[tokio::test]
async fn a_slot_takes_no_more_than_it_was_opened_for() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let golden = Golden::new();
    let mut hand = prepared(&mut line, 1).await;
    assert_eq!(hand.step(vec![], vec![more(64)]).await[0].length, 68);
    let mut beyond = more(5);
    beyond.start = 68;
    let results = hand.step(vec![], vec![beyond, golden.decode(1, 1, 1)]).await;
    assert_eq!((results[0].refused.as_str(), results[1].id), ("the slot has room for 72 positions", Some(golden.ids[1])));
}

#[tokio::test]
async fn a_slot_operation_that_does_not_fit_is_counted_and_harms_nobody() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let golden = Golden::new();
    let mut hand = prepared(&mut line, 1).await;
    let misfits = [
        open(0, 4, Kind::Pair, 8),
        open(2, 1, Kind::Unspecified, 8),
        open(2, 1, Kind::Pair, 100_000),
        open(64, 1, Kind::Pair, 8),
        truncate(0, 2, 0),
        truncate(0, 3, 5),
        SlotOp { slot: 0, generation: 3, op: None },
    ];
    let count = misfits.len() as u64;
    let results = hand.step(misfits.to_vec(), vec![more(2), golden.decode(1, 1, 1)]).await;
    assert_eq!((results[0].length, results[1].id), (6, Some(golden.ids[1])));
    assert_eq!(line.refused().await, [(0, count); 2]);
    // A generation that was here once does not come back.
    hand.step(vec![close(0, 3), open(0, 3, Kind::Pair, 8), open(0, 2, Kind::Pair, 8)], vec![]).await;
    assert_eq!(line.refused().await, [(0, count + 2); 2]);
    assert_eq!(line.0[0].describe().await.open_slots, 1);
}

#[tokio::test]
async fn features_are_taken_under_their_handle_and_only_whole_finite_ones() {
    let mut node = Node::start(crate::stage::model(0..2)).await;
    let put = |handle: &'static [u8], rows, numbers: Vec<f32>| PutFeaturesRequest {
        hello: Some(node.hello(1)),
        handle: Bytes::from_static(handle),
        rows,
        features: frame::to_bytes(&numbers),
    };
    let good = put(b"h", 2, vec![0.5; 128]);
    let bad =
        [put(b"h", 2, vec![0.5; 127]), put(b"h", 0, vec![]), put(b"", 2, vec![0.5; 128]), put(b"h", 2, vec![f32::NAN; 128])];
    for request in bad {
        let status = soon(node.client.put_features(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    assert_eq!(node.describe().await.feature_entries, 0);
    soon(node.client.put_features(good)).await.unwrap();
    assert_eq!(node.describe().await.feature_entries, 1);
}
