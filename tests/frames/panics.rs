//! A computation that panics or fails costs its link or its units, never the worker.

use std::ops::Range;

use super::*;
use crate::stage::Node;
use janus_model::llama::Span;
use janus_wire::v1::{Input, piece};
use janus_worker::stage::{Compute, Features, SampleJob};

/// The id that makes it panic, and the one that makes it fail.
const PANIC: u32 = 666;
const FAIL: u32 = 13;

/// A model of one layer whose rows are one number: the id.
struct Toy;

impl Compute for Toy {
    fn hidden(&self) -> usize {
        1
    }
    fn layers(&self) -> Range<usize> {
        0..1
    }
    fn total_layers(&self) -> usize {
        1
    }
    fn open(&mut self, _: usize, _: usize) -> Result<(), String> {
        Ok(())
    }
    fn close(&mut self, _: usize) {}
    fn truncate(&mut self, _: usize, _: usize) -> Result<(), String> {
        Ok(())
    }
    fn copy(&mut self, _from: usize, _to: usize, _length: usize) -> Result<(), String> {
        Ok(())
    }
    fn shrink(&mut self, _row_slot: usize, _length: usize) -> Result<(), String> {
        Ok(())
    }
    fn embed(&mut self, input: &Input, _: &Features, out: &mut Vec<f32>) -> Result<(), String> {
        for piece in &input.pieces {
            if let Some(piece::Piece::Text(ids) | piece::Piece::Image(ids)) = &piece.piece {
                out.extend(ids.ids.iter().map(|id| *id as f32));
            }
        }
        Ok(())
    }
    fn forward(&mut self, _: &[Span], x: &mut [f32]) -> Result<(), String> {
        assert!(!x.contains(&(PANIC as f32)), "as the test wants it");
        if x.contains(&(FAIL as f32)) { Err("it cannot compute this".to_owned()) } else { Ok(()) }
    }
    fn sample(&mut self, jobs: &[SampleJob], rows: &[f32], out: &mut Vec<Result<u32, String>>) {
        out.extend(jobs.iter().zip(rows.chunks(2)).map(|(_, pair)| Ok(pair[0] as u32 + 1)));
    }
    fn weight_bytes(&self) -> usize {
        0
    }
    fn kv_bytes(&self) -> usize {
        0
    }
}

fn pair(slot: u32, id: u32) -> janus_wire::v1::Unit {
    rows(slot, 1, Mode::Prefill, 0, vec![text(&[id]), text(&[id])], Some(0))
}

#[tokio::test]
async fn a_panic_costs_its_link_and_the_next_epoch_works() {
    let mut line = Line(vec![Node::start(Toy).await]);
    for epoch in [1, 3] {
        let mut hand = line.connect(epoch).await;
        let ops = vec![open(0, 1, Kind::Pair, 8), open(1, 1, Kind::Pair, 8)];
        let body = hand.body(ops.clone(), vec![pair(0, PANIC)]);
        hand.send(frame::seal(&body, Bytes::new())).await;
        let status = hand.end().await;
        assert_eq!(status.code(), Code::Internal, "{status:?}");
        assert!(status.message().contains("panicked"), "{status:?}");
        assert_eq!(line.0[0].describe().await.end_layer, 1);
        let mut hand = line.connect(epoch + 1).await;
        assert_eq!(id(&hand.step(ops, vec![pair(0, 41)]).await), 42);
    }
}

#[tokio::test]
async fn a_computation_that_fails_costs_the_units_of_its_frame() {
    let mut line = Line(vec![Node::start(Toy).await]);
    let mut hand = line.connect(1).await;
    let ops = (0..3).map(|slot| open(slot, 1, Kind::Pair, 8)).collect();
    let results = hand.step(ops, vec![pair(0, FAIL), pair(1, 5)]).await;
    assert!(results.iter().all(|r| r.refused == "it cannot compute this" && r.length == 0), "{results:?}");
    assert_eq!(line.refused().await, [(0, 2)]);
    assert_eq!(line.0[0].describe().await.open_slots, 1);
    assert_eq!(id(&hand.step(vec![], vec![pair(2, 41)]).await), 42);
}
