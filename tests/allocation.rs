//! What a stage computes in a steady step allocates nothing, from the ids that come in to the ids that are drawn.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../crates/kernels/tests/counting/mod.rs"]
mod counting;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use counting::ALLOCATIONS;
use janus_model::llama::Span;
use janus_model::{Checkpoint, KvDtype, Pool, WeightFormat};
use janus_spec::Files;
use janus_wire::v1::{Ids, Input, Kind, Piece, Sampling, piece};
use janus_worker::stage::{Compute, Features, ModelCompute, SampleJob};

const STEPS: usize = 120;

#[test]
fn a_steady_step_of_a_stage_allocates_nothing() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-a/transformers");
    let checkpoint = Checkpoint::open(Files::open_dir(path).unwrap()).unwrap();
    let (pool, features) = (Arc::new(Pool::new(2)), Features::new(0));
    let mut stage = ModelCompute::load(&checkpoint, pool, 0..4, WeightFormat::Bf16, KvDtype::Bf16, 3).unwrap();
    // A guided picture, one without guidance, an answer; the second branch of the latter two is empty.
    let kinds = [Kind::Pair, Kind::Unguided, Kind::Text];
    let rows = [0, 1, 2, 4];
    rows.iter().for_each(|&slot| stage.open(slot, STEPS).unwrap());
    let sampling = Sampling { temperature: 0.9, top_k: 20, top_p: 0.9, cfg_weight: 5.0, seed: 4 };
    let image = |id| Input { pieces: vec![Piece { piece: Some(piece::Piece::Image(Ids { ids: vec![id] })) }] };
    let text = |id| Input { pieces: vec![Piece { piece: Some(piece::Piece::Text(Ids { ids: vec![id] })) }] };
    let mut inputs = [image(1), image(1), image(2), text(3)];
    let (mut x, mut drawn, mut spans) = (Vec::new(), Vec::new(), Vec::with_capacity(rows.len()));
    let mut quiet = 0;
    // A thread's own scratch grows when it first gets a task of a kind, which may be late: steady means it stays quiet.
    for step in 0..STEPS {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        x.clear();
        drawn.clear();
        spans.clear();
        inputs.iter().for_each(|input| stage.embed(input, &features, &mut x).unwrap());
        spans.extend(rows.iter().map(|&slot| Span { slot, start: step, rows: 1 }));
        stage.forward(&spans, &mut x).unwrap();
        let jobs = kinds.map(|kind| SampleJob { kind, sampling, index: step as u32 });
        stage.sample(&jobs, &x, &mut drawn);
        for (input, unit) in inputs.iter_mut().zip([0, 0, 1, 2]) {
            let id: &Result<u32, String> = &drawn[unit];
            match input.pieces[0].piece.as_mut().unwrap() {
                piece::Piece::Image(ids) | piece::Piece::Text(ids) => ids.ids[0] = *id.as_ref().unwrap(),
                piece::Piece::Features(_) => unreachable!(),
            }
        }
        quiet = if ALLOCATIONS.load(Ordering::Relaxed) == before { quiet + 1 } else { 0 };
    }
    assert!(quiet >= 20, "only the last {quiet} of {STEPS} steps were free of allocation");
}
