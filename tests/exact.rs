//! Promise 1 where the bits are made: ids, their SHA-256 and the hidden rows they are drawn from are equal however the
//! layers are split, the prompt is chunked, the batch is filled, the KV came to be, and on every instruction set.
//! The same over real processes is in `pipeline.rs`, over frames in `frames.rs`.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "harness/engine.rs"]
mod engine;

use std::path::Path;

use engine::{Drawn, Engine, Plan, Request, run};
use janus_model::{Checkpoint, Isa, KvDtype, WeightFormat, force_isa};
use janus_spec::{Files, ModelSpec};

const FORMATS: [WeightFormat; 4] = [WeightFormat::Bf16, WeightFormat::F32, WeightFormat::Q8, WeightFormat::Q4];
const KVS: [KvDtype; 2] = [KvDtype::Bf16, KvDtype::F32];

/// A model, and how much of it a test can afford.
struct Subject {
    name: &'static str,
    checkpoint: Checkpoint,
    /// Positions of the longest prompt, and ids drawn after it.
    prompt: usize,
    count: usize,
    /// Formats that go through every variation; the others only through company and replay.
    formats: &'static [WeightFormat],
}

impl Subject {
    fn requests(&self) -> Vec<Request> {
        Request::eight(&self.checkpoint, self.prompt, self.count)
    }

    fn engine(&self, stages: usize, threads: usize, format: WeightFormat, kv: KvDtype) -> Engine {
        Engine::load(&self.checkpoint, stages, threads, format, kv)
    }

    fn layers(&self) -> usize {
        self.checkpoint.spec.llm.layers
    }
}

fn opened(path: &str) -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    Checkpoint::open(Files::open_dir(path).unwrap()).unwrap()
}

fn tiny() -> Subject {
    let checkpoint = opened("data/tiny-a/transformers");
    Subject { name: "tiny-a", checkpoint, prompt: 75, count: 12, formats: &FORMATS }
}

fn shapes() -> Subject {
    let checkpoint = opened("../crates/janus/shapes/checkpoint");
    Subject { name: "shapes", checkpoint, prompt: 70, count: 8, formats: &[WeightFormat::Bf16] }
}

/// Two layers as wide as those of Janus-Pro-1B, with fewer words than it knows.
fn wide() -> Subject {
    let mut spec = ModelSpec::janus_pro_1b();
    spec.llm.layers = 2;
    spec.llm.vocab = 1024;
    let checkpoint = Checkpoint::random(spec, 5);
    Subject { name: "Janus-Pro-1B widths", checkpoint, prompt: 9, count: 3, formats: &[WeightFormat::Bf16] }
}

/// What each request gives alone, in one stage, on one thread, its prompt in whole frames.
fn alone(subject: &Subject, requests: &[Request], format: WeightFormat, kv: KvDtype) -> Vec<Drawn> {
    let mut engine = subject.engine(1, 1, format, kv);
    requests.iter().map(|request| run(&mut engine, std::slice::from_ref(request), &Plan::chunks(64)).remove(0)).collect()
}

fn holds(subject: &Subject) {
    let requests = subject.requests();
    let pair = &requests[..1];
    for &format in &FORMATS {
        for kv in KVS {
            let every = subject.formats.contains(&format);
            if !every && kv == KvDtype::F32 {
                continue;
            }
            let what = format!("{} {} kv {}", subject.name, format.name(), kv.name());
            let expected = alone(subject, &requests, format, kv);
            let one = &expected[..1];
            let mut engine = subject.engine(subject.layers().min(2), 2, format, kv);
            assert_eq!(run(&mut engine, &requests, &Plan::crowd(&requests)), expected, "{what}: among seven others");
            for known in [1, subject.count - 1] {
                let plan = Plan { replay: Some(known), ..Plan::chunks(7) };
                assert_eq!(run(&mut engine, pair, &plan), one, "{what}: KV rebuilt after {known} ids");
            }
            if !every {
                continue;
            }
            for chunk in [1, 7, 64] {
                assert_eq!(run(&mut engine, pair, &Plan::chunks(chunk)), one, "{what}: chunks of {chunk}");
            }
            for stages in [1, 3, 4].into_iter().filter(|n| *n <= subject.layers()) {
                let mut engine = subject.engine(stages, 1 + stages % 2, format, kv);
                assert_eq!(run(&mut engine, pair, &Plan::chunks(7)), one, "{what}: {stages} stages");
            }
        }
    }
}

/// Every instruction set of this machine against plain code, `mul_add` by `mul_add`.
fn machines_agree(subject: &Subject, kvs: &[KvDtype]) {
    let requests = subject.requests();
    for format in FORMATS {
        for &kv in kvs {
            let mut engine = subject.engine(1, 2, format, kv);
            let mut drawn = Vec::new();
            for isa in Isa::available() {
                force_isa(Some(isa));
                drawn.push((isa, run(&mut engine, &requests[..2], &Plan::chunks(7))));
            }
            force_isa(None);
            assert!(drawn.len() > 1, "nothing to compare on this machine");
            for (isa, drawn_here) in &drawn[1..] {
                assert_eq!(drawn_here, &drawn[0].1, "{} {} {}", subject.name, format.name(), isa.name());
            }
        }
    }
}

#[test]
fn tiny_a_is_the_same_however_it_is_computed() {
    holds(&tiny());
}

#[test]
fn shapes_is_the_same_however_it_is_computed() {
    holds(&shapes());
}

#[test]
fn the_widths_of_janus_pro_1b_are_the_same_however_they_are_computed() {
    holds(&wide());
}

#[test]
fn every_instruction_set_draws_the_same_ids() {
    machines_agree(&Subject { prompt: 9, count: 3, ..tiny() }, &KVS);
    machines_agree(&Subject { prompt: 6, count: 2, ..shapes() }, &KVS);
}

#[test]
fn every_instruction_set_draws_the_same_ids_at_the_widths_of_janus_pro_1b() {
    machines_agree(&Subject { prompt: 2, count: 2, ..wide() }, &[KvDtype::Bf16]);
}
