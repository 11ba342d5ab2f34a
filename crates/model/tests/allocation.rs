//! A steady decode step allocates nothing: both embeddings, all layers, both heads, guidance and sampling, in every
//! format.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../kernels/tests/counting/mod.rs"]
mod counting;

use std::sync::atomic::Ordering;

use common::{Llm, checkpoint};
use counting::ALLOCATIONS;
use janus_kernels::{KvDtype, WeightFormat};
use janus_model::llama::Span;
use janus_model::{ImageSampling, guidance, sampling::sample};

/// Rows of four pairs, and steps.
const ROWS: usize = 8;
const STEPS: usize = 120;

#[test]
fn a_steady_step_from_ids_to_ids_allocates_nothing() {
    let checkpoint = checkpoint("transformers");
    for (format, kv) in [
        (WeightFormat::Bf16, KvDtype::Bf16),
        (WeightFormat::F32, KvDtype::F32),
        (WeightFormat::Q8, KvDtype::F32),
        (WeightFormat::Q4, KvDtype::Bf16),
    ] {
        let mut llm = Llm::load_as(&checkpoint, &[2, 4], format, kv);
        (0..ROWS).for_each(|slot| llm.open(slot, STEPS));
        let vocab = checkpoint.spec.gen_head.vocab;
        let mut x = Vec::new();
        let mut ids = [0; ROWS];
        let mut guided = vec![0.0; vocab];
        let mut spans = Vec::with_capacity(ROWS);
        let sampling = ImageSampling { temperature: 0.9, top_k: Some(20), top_p: Some(0.9), seed: 4 };
        let mut quiet = 0;
        // A thread's own scratch grows when it first gets a task of a kind, which may be late: steady means it stays quiet.
        for step in 0..STEPS {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            spans.clear();
            spans.extend((0..ROWS).map(|slot| Span { slot, start: step, rows: 1 }));
            x.clear();
            llm.embeddings.text(&ids[..ROWS / 2], &mut x).unwrap();
            llm.embeddings.image(&llm.pool, &ids[ROWS / 2..], &mut x).unwrap();
            for stage in &mut llm.stages {
                stage.forward(&llm.pool, &spans, &mut x).unwrap();
            }
            let logits = llm.heads.image_logits(&llm.pool, &x);
            for (pair, logits) in logits.chunks_exact(2 * vocab).enumerate() {
                let (cond, uncond) = logits.split_at(vocab);
                guidance(cond, uncond, 5.0, &mut guided);
                let id = sample(&guided, &sampling, (step * ROWS + pair) as u64).unwrap();
                ids[2 * pair..2 * pair + 2].fill(id);
            }
            let vocab = llm.heads.text_logits(&llm.pool, &x).len() / ROWS;
            assert_eq!(vocab, checkpoint.spec.llm.vocab);
            quiet = if ALLOCATIONS.load(Ordering::Relaxed) == before { quiet + 1 } else { 0 };
        }
        assert!(quiet >= 20, "{}: only the last {quiet} of {STEPS} steps were free of allocation", format.name());
    }
}
