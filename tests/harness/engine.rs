//! The stages of one model in this thread, and the smallest scheduler that can join, leave, chunk and replay.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::sync::Arc;

use janus_model::llama::{Span, Workspace};
use janus_model::{Checkpoint, KvDtype, Pool, WeightFormat, sha256_of_ids};
use janus_wire::v1::{Ids, Input, Kind, Piece, Sampling, piece};
use janus_worker::stage::{Compute, Features, ModelCompute, SampleJob};
use sha2::{Digest, Sha256};

/// All stages, one after the other.
pub struct Engine {
    stages: Vec<ModelCompute>,
    hidden: usize,
}

impl Engine {
    pub fn load(checkpoint: &Checkpoint, stages: usize, threads: usize, format: WeightFormat, kv: KvDtype) -> Self {
        let (pool, workspace) = (Arc::new(Pool::new(threads)), Arc::new(Workspace::default()));
        let layers = checkpoint.spec.llm.layers;
        let load = |i: usize| {
            let range = i * layers / stages..(i + 1) * layers / stages;
            ModelCompute::load(checkpoint, pool.clone(), range, format, kv, 8).unwrap().sharing(workspace.clone())
        };
        Engine { stages: (0..stages).map(load).collect(), hidden: checkpoint.spec.llm.hidden }
    }
}

/// One picture or answer to draw.
#[derive(Clone)]
pub struct Request {
    kind: Kind,
    /// Prompt ids of each branch.
    branches: Vec<Vec<u32>>,
    sampling: Sampling,
    /// Ids to draw.
    count: usize,
}

impl Request {
    /// A guided picture with a prompt of `longest` positions, a text, and six others of any kind, all of them random.
    pub fn eight(checkpoint: &Checkpoint, longest: usize, count: usize) -> Vec<Self> {
        let (words, mut random) = (checkpoint.spec.llm.vocab as u64, Random(11));
        let one = |i: usize| {
            let kind = match i {
                0 => Kind::Pair,
                1 => Kind::Text,
                _ => [Kind::Pair, Kind::Unguided, Kind::Text][random.below(3) as usize],
            };
            let length = if i == 0 { longest } else { 2 + random.below(longest as u64 - 1) as usize };
            let branches = if kind == Kind::Pair { 2 } else { 1 };
            let mut prompt = || (0..length).map(|_| random.below(words) as u32).collect();
            Request {
                kind,
                branches: (0..branches).map(|_| prompt()).collect(),
                sampling: Sampling {
                    temperature: if i == 2 { 0.0 } else { 1.0 },
                    top_k: if i == 3 { 20 } else { 0 },
                    top_p: if i == 4 { 0.9 } else { 1.0 },
                    cfg_weight: 5.0,
                    seed: random.below(u64::MAX),
                },
                count: if i == 0 { count } else { 1 + random.below(count as u64) as usize },
            }
        };
        (0..8).map(one).collect()
    }
}

/// What a request got: its ids, their digest, and one over the bits of the rows they were drawn from.
#[derive(Debug, PartialEq, Eq)]
pub struct Drawn {
    ids: Vec<u32>,
    sha256: String,
    rows: String,
}

/// When requests join, how many positions of each go into one frame, and after how many ids the KV is thrown away.
pub struct Plan {
    pub joins: Vec<usize>,
    pub chunks: Vec<usize>,
    pub replay: Option<usize>,
}

impl Plan {
    /// All at once, `chunk` positions a frame.
    pub fn chunks(chunk: usize) -> Self {
        Plan { joins: Vec::new(), chunks: vec![chunk], replay: None }
    }

    /// The requests join at random steps with random chunks, and leave when they are done.
    pub fn crowd(requests: &[Request]) -> Self {
        let mut random = Random(23);
        let joins = requests.iter().map(|_| random.below(6) as usize).collect();
        Plan { joins, chunks: requests.iter().map(|_| 1 + random.below(64) as usize).collect(), replay: None }
    }
}

#[derive(Default)]
struct Progress {
    ids: Vec<u32>,
    /// Positions in the KV.
    fed: usize,
    open: bool,
    replayed: bool,
    rows: Sha256,
}

/// Draws all requests; those under way share every step.
pub fn run(engine: &mut Engine, requests: &[Request], plan: &Plan) -> Vec<Drawn> {
    let mut progress: Vec<Progress> = requests.iter().map(|_| Progress::default()).collect();
    for step in 0.. {
        let (mut x, mut spans, mut due) = (Vec::new(), Vec::new(), Vec::new());
        for (slot, (request, at)) in requests.iter().zip(&mut progress).enumerate() {
            if at.ids.len() == request.count || step < plan.joins.get(slot).copied().unwrap_or(0) {
                continue;
            }
            if plan.replay == Some(at.ids.len()) && !at.replayed {
                engine.close(slot, request);
                (at.fed, at.open, at.replayed) = (0, false, true);
            }
            if !at.open {
                engine.open(slot, request);
                at.open = true;
            }
            let known = request.branches[0].len() + at.ids.len();
            let rows = plan.chunks[slot % plan.chunks.len()].min(known - at.fed);
            for (branch, prompt) in request.branches.iter().enumerate() {
                let input = input(request.kind, prompt, &at.ids, at.fed..at.fed + rows);
                engine.stages[0].embed(&input, &Features::new(0), &mut x).unwrap();
                spans.push(Span { slot: 2 * slot + branch, start: at.fed, rows });
            }
            at.fed += rows;
            if at.fed == known {
                due.push(slot);
            }
        }
        if spans.is_empty() {
            if progress.iter().zip(requests).all(|(at, request)| at.ids.len() == request.count) {
                break;
            }
            continue;
        }
        for stage in &mut engine.stages {
            stage.forward(&spans, &mut x).unwrap();
        }
        let (mut jobs, mut last) = (Vec::new(), Vec::new());
        let mut row = 0;
        for span in &spans {
            row += span.rows;
            let slot = span.slot / 2;
            if due.contains(&slot) {
                let hidden = &x[(row - 1) * engine.hidden..row * engine.hidden];
                hidden.iter().for_each(|value| progress[slot].rows.update(value.to_bits().to_le_bytes()));
                last.extend_from_slice(hidden);
            }
        }
        for &slot in &due {
            let (kind, sampling) = (requests[slot].kind, requests[slot].sampling);
            jobs.push(SampleJob { kind, sampling, index: progress[slot].ids.len() as u32 });
        }
        let mut drawn = Vec::new();
        engine.stages.last_mut().unwrap().sample(&jobs, &last, &mut drawn);
        for (&slot, id) in due.iter().zip(drawn) {
            progress[slot].ids.push(id.unwrap());
            if progress[slot].ids.len() == requests[slot].count {
                engine.close(slot, &requests[slot]);
            }
        }
    }
    let finished = |at: Progress| Drawn {
        sha256: sha256_of_ids(&at.ids),
        rows: at.rows.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        ids: at.ids,
    };
    progress.into_iter().map(finished).collect()
}

impl Engine {
    fn open(&mut self, slot: usize, request: &Request) {
        let capacity = request.branches[0].len() + request.count;
        for stage in &mut self.stages {
            (0..request.branches.len()).for_each(|branch| stage.open(2 * slot + branch, capacity).unwrap());
        }
    }

    fn close(&mut self, slot: usize, request: &Request) {
        for stage in &mut self.stages {
            (0..request.branches.len()).for_each(|branch| stage.close(2 * slot + branch));
        }
    }
}

/// Positions `range` of a branch: words of the prompt, then what was drawn.
fn input(kind: Kind, prompt: &[u32], ids: &[u32], range: std::ops::Range<usize>) -> Input {
    let middle = prompt.len().clamp(range.start, range.end);
    let words = prompt.get(range.start..middle).unwrap_or_default().to_vec();
    let drawn = ids.get(middle.max(prompt.len()) - prompt.len()..range.end.max(prompt.len()) - prompt.len());
    let drawn = Ids { ids: drawn.unwrap_or_default().to_vec() };
    let after = if kind == Kind::Text { piece::Piece::Text(drawn) } else { piece::Piece::Image(drawn) };
    let pieces = [piece::Piece::Text(Ids { ids: words }), after];
    Input { pieces: pieces.into_iter().map(|piece| Piece { piece: Some(piece) }).collect() }
}

/// Numbers from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}
