//! `janus bench`: how fast this machine computes Janus, as a fraction of what its memory and its arithmetic allow.
//!
//! Weights are random unless `--model` names a checkpoint: speed does not depend on what they mean.

mod hop;
mod picture;

use std::sync::Arc;
use std::time::Instant;

use janus_model::llama::{Embeddings, Heads, LlamaRange, Span};
use janus_model::siglip::VisionEncoder;
use janus_model::vq::{VqDecoder, WINOGRAD};
use janus_model::{
    Checkpoint, ImageSampling, KvDtype, Pool, WeightFormat, choose_isa, guidance, isa, measure, sampling::sample,
};
use janus_spec::{Layout, ModelSpec};
use janus_worker::Device;
use serde::Serialize;

use crate::args::{Arch, Bench, Phase};
use crate::failure::{Failure, Outcome};
use crate::{checkpoint, output};

/// Positions a step is measured at.
const CONTEXTS: [usize; 3] = [32, 330, 620];
/// Positions of a prefill measurement, and of one chunk.
const PREFILL: (usize, usize) = (576, 64);

#[derive(Serialize)]
struct Report {
    read_gb_s: f64,
    fma_gflop_s: f64,
    arch: String,
    numerics: String,
    results: Vec<Measurement>,
}

#[derive(Serialize)]
struct Measurement {
    phase: &'static str,
    weights: &'static str,
    rows: usize,
    context: usize,
    stages: usize,
    ms: f64,
    bytes: u64,
    flops: u64,
    fraction_of_floor: f64,
}

pub(crate) fn run(args: Bench) -> Outcome {
    let source = match &args.model {
        Some(model) => Weights::Files(model.clone()),
        None => spec(args.arch).map_or_else(|| Weights::Files("shapes".to_owned()), |spec| Weights::Random(Box::new(spec))),
    };
    let checkpoint = source.open()?;
    if let Some(dir) = &args.save {
        for (name, layout) in [("original", Layout::Original), ("transformers", Layout::Transformers)] {
            let dir = dir.join(name);
            std::fs::create_dir_all(&dir).map_err(|e| Failure::mistake(format!("--save {}: {e}", dir.display())))?;
            checkpoint.save_weights(&dir, layout)?;
        }
        return Ok(());
    }
    if args.stages > checkpoint.spec.llm.layers {
        return Err(Failure::mistake(format!(
            "--stages {}: the model has {} layers",
            args.stages, checkpoint.spec.llm.layers
        )));
    }
    if let Some(isa) = args.isa {
        choose_isa(isa);
    }
    let pool = Arc::new(Pool::new(args.threads.unwrap_or_else(janus_model::default_threads)));
    let weights = args.weights.map_or_else(|| checkpoint.native_format(), WeightFormat::from);
    let kv = KvDtype::from(args.kv);
    let arch = args.model.clone().unwrap_or_else(|| args.arch.name().to_owned());
    let mut bench = Runner {
        read: measure::read_bandwidth_gb_s(&pool),
        peak: measure::fma_peak_gflops(&pool),
        weights,
        kv,
        stages: args.stages,
        device: args.device,
        pool,
        source,
        checkpoint,
        results: Vec::new(),
        json: args.json,
    };
    if !args.json {
        let threads = bench.pool.threads();
        output::print_line(&format!(
            "{arch}: {threads} threads, {}, reads {:.1} GB/s, multiplies and adds {:.0} GFLOP/s, {}",
            isa().name(),
            bench.read,
            bench.peak,
            args.device.numerics(weights, kv)
        ));
        output::print_line("phase       weights  rows  context        ms       GB/s    GFLOP/s  of the floor");
    }
    let wants = |phase| args.phase.is_empty() || args.phase.contains(&phase);
    if wants(Phase::LlmStep) || wants(Phase::Prefill) || wants(Phase::Sample) {
        bench.language(&args.rows, wants)?;
    }
    if wants(Phase::Siglip) {
        bench.siglip()?;
    }
    if wants(Phase::VqDecode) {
        bench.vq_decode()?;
    }
    if wants(Phase::Hop) {
        bench.hop(&args.rows)?;
    }
    if wants(Phase::Picture) {
        bench.pictures(&args.pictures)?;
    }
    if args.json {
        let report = Report {
            read_gb_s: bench.read,
            fma_gflop_s: bench.peak,
            arch,
            numerics: args.device.numerics(weights, kv),
            results: bench.results,
        };
        output::print_json(&report)?;
    }
    Ok(())
}

/// Where weights come from; opened anew for a cluster, which owns its checkpoint.
enum Weights {
    Files(String),
    Random(Box<ModelSpec>),
}

impl Weights {
    fn open(&self) -> Outcome<Checkpoint> {
        match self {
            Weights::Files(model) => Ok(Checkpoint::open(checkpoint::files(model)?)?),
            Weights::Random(spec) => {
                let mut checkpoint = Checkpoint::random((**spec).clone(), 1);
                // Words have to become ids somehow; which ids does not change the speed.
                checkpoint.files = checkpoint::files("shapes")?;
                Ok(checkpoint)
            }
        }
    }
}

/// `None` for `shapes`, whose weights are here.
fn spec(arch: Arch) -> Option<ModelSpec> {
    match arch {
        Arch::Janus1_3b => Some(ModelSpec::janus_1_3b()),
        Arch::JanusPro1b => Some(ModelSpec::janus_pro_1b()),
        Arch::JanusPro7b => Some(ModelSpec::janus_pro_7b()),
        Arch::Shapes => None,
    }
}

struct Runner {
    read: f64,
    peak: f64,
    weights: WeightFormat,
    kv: KvDtype,
    stages: usize,
    device: Device,
    pool: Arc<Pool>,
    source: Weights,
    checkpoint: Checkpoint,
    results: Vec<Measurement>,
    json: bool,
}

/// The language model with what surrounds it.
struct Language {
    embeddings: Embeddings,
    stages: Vec<LlamaRange>,
    heads: Heads,
}

impl Runner {
    fn language(&mut self, rows: &[usize], wants: impl Fn(Phase) -> bool) -> Outcome {
        let layers = self.checkpoint.spec.llm.layers;
        let most = rows.iter().copied().max().unwrap_or(2);
        let mut stages = Vec::new();
        for i in 0..self.stages {
            let range = i * layers / self.stages..(i + 1) * layers / self.stages;
            stages.push(LlamaRange::load(&self.checkpoint, range, self.weights, self.kv, most)?);
        }
        let mut language = Language {
            embeddings: Embeddings::load(&self.checkpoint, self.weights)?,
            stages,
            heads: Heads::load(&self.checkpoint, self.weights)?,
        };
        for &rows in rows {
            for context in CONTEXTS {
                if wants(Phase::LlmStep) && context < self.checkpoint.spec.llm.max_positions {
                    self.step(&mut language, rows, context)?;
                }
            }
            if wants(Phase::Sample) {
                self.sample(rows);
            }
        }
        if wants(Phase::Prefill) {
            self.prefill(&mut language)?;
        }
        Ok(())
    }

    /// One id for every picture: embeddings of the ids before, all layers, image head, guidance, sampling.
    fn step(&mut self, model: &mut Language, rows: usize, context: usize) -> Outcome {
        let pairs = (rows / 2).max(1);
        let spec = &self.checkpoint.spec;
        let vocab = spec.gen_head.vocab;
        let pool = self.pool.clone();
        let spans: Vec<Span> = (0..rows).map(|slot| Span { slot, start: context - 1, rows: 1 }).collect();
        for slot in 0..rows {
            for stage in &mut model.stages {
                stage.open(slot, context)?;
                stage.pretend(slot, context - 1)?;
            }
        }
        let sampling = ImageSampling { temperature: 1.0, top_k: None, top_p: None, seed: 1 };
        let mut guided = vec![0.0; vocab];
        let mut ids = vec![1_u32; rows];
        let mut x = Vec::new();
        let milliseconds = best(|| {
            x.clear();
            model.embeddings.image(&pool, &ids, &mut x)?;
            for stage in &mut model.stages {
                stage.forward(&pool, &spans, &mut x)?;
                for slot in 0..rows {
                    stage.truncate(slot, context - 1)?;
                }
            }
            let logits = model.heads.image_logits(&pool, &x);
            for (pair, logits) in logits.chunks(2 * vocab).enumerate().take(pairs) {
                let (cond, uncond) = logits.split_at(vocab);
                guidance(cond, if uncond.is_empty() { cond } else { uncond }, 5.0, &mut guided);
                let id = sample(&guided, &sampling, pair as u64)?;
                ids[pair * rows / pairs..(pair + 1) * rows / pairs].fill(id);
            }
            Ok(())
        })?;
        for stage in &mut model.stages {
            (0..rows).for_each(|slot| stage.close(slot));
        }
        let weights = model.stages.iter().map(LlamaRange::bytes).sum::<usize>() + model.heads.image_bytes();
        let memory = spec.kv_bytes_per_position(self.kv.size()) as usize * context * rows;
        let llm = &spec.llm;
        let per_row = 2 * (spec.llm.layer_parameters() as usize * llm.layers + head_parameters(spec))
            + 4 * llm.layers * llm.heads * llm.head_dim * context;
        self.record("llm_step", rows, context, milliseconds, weights + memory, per_row * rows);
        Ok(())
    }

    fn sample(&mut self, rows: usize) {
        let vocab = self.checkpoint.spec.gen_head.vocab;
        let logits: Vec<f32> = (0..vocab).map(|i| ((i * 7919) % 1000) as f32 / 200.0).collect();
        let sampling = ImageSampling { temperature: 1.0, top_k: None, top_p: None, seed: 1 };
        let pairs = (rows / 2).max(1);
        let mut guided = vec![0.0; vocab];
        let milliseconds = best(|| {
            for pair in 0..pairs {
                guidance(&logits, &logits, 5.0, &mut guided);
                sample(&guided, &sampling, pair as u64)?;
            }
            Ok(())
        });
        self.record("sample", rows, 0, milliseconds.unwrap_or(f64::NAN), pairs * 3 * 4 * vocab, pairs * 20 * vocab);
    }

    /// A prompt of 576 positions in chunks.
    fn prefill(&mut self, model: &mut Language) -> Outcome {
        let spec = self.checkpoint.spec.clone();
        let hidden = spec.llm.hidden;
        let positions = PREFILL.0.min(spec.llm.max_positions);
        let pool = self.pool.clone();
        let rows: Vec<f32> = (0..positions * hidden).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        let milliseconds = best(|| {
            for stage in &mut model.stages {
                stage.open(0, positions)?;
            }
            for (i, chunk) in rows.chunks(PREFILL.1 * hidden).enumerate() {
                let mut x = chunk.to_vec();
                let span = Span { slot: 0, start: i * PREFILL.1, rows: x.len() / hidden };
                for stage in &mut model.stages {
                    stage.forward(&pool, &[span], &mut x)?;
                }
            }
            model.stages.iter_mut().for_each(|stage| stage.close(0));
            Ok(())
        })?;
        let bytes = model.stages.iter().map(LlamaRange::bytes).sum::<usize>() * positions.div_ceil(PREFILL.1);
        let attention = 2 * spec.llm.layers * spec.llm.heads * spec.llm.head_dim * positions * positions;
        let flops = 2 * positions * spec.llm.layer_parameters() as usize * spec.llm.layers + attention;
        self.record("prefill", positions, positions, milliseconds, bytes, flops);
        Ok(())
    }

    fn siglip(&mut self) -> Outcome {
        let spec = self.checkpoint.spec.clone();
        let tower = VisionEncoder::load(&self.checkpoint, self.weights)?;
        let size = spec.vision.image_size;
        let pixels: Vec<f32> = (0..3 * size * size).map(|i| ((i * 7919) % 255) as f32 / 127.5 - 1.0).collect();
        let pool = self.pool.clone();
        let milliseconds = best(|| tower.encode(&pool, &pixels).map(drop))?;
        let tokens = spec.vision.tokens();
        let parameters = (spec.vision.parameters() + spec.aligner.parameters()) as usize;
        let flops = 2 * parameters * tokens + 4 * spec.vision.layers * spec.vision.width * tokens * tokens;
        self.record("siglip", tokens, 0, milliseconds, tower.bytes(), flops);
        Ok(())
    }

    fn vq_decode(&mut self) -> Outcome {
        let spec = self.checkpoint.spec.clone();
        let decoder = VqDecoder::load(&self.checkpoint, self.weights, WINOGRAD)?;
        let ids: Vec<u32> = (0..spec.image_tokens() as u32).map(|i| i * 31 % spec.vq.codebook as u32).collect();
        let pool = self.pool.clone();
        let milliseconds = best(|| decoder.decode(&pool, &ids).map(drop))?;
        self.record("vq_decode", 1, 0, milliseconds, decoder.bytes(), decoder_flops(&spec));
        Ok(())
    }

    /// Frames of a step's rows between two stages: the median and, with context 99, the 99th percentile.
    fn hop(&mut self, rows: &[usize]) -> Outcome {
        let hidden = self.checkpoint.spec.llm.hidden;
        for &rows in rows {
            let rows = rows.next_multiple_of(2);
            let (median, late) = hop::hop(hidden, rows)?;
            self.record("hop", rows, 50, median, 4 * rows * hidden, 0);
            self.record("hop", rows, 99, late, 4 * rows * hidden, 0);
        }
        Ok(())
    }

    /// So many whole pictures at once: the floor is that of their steps and of their decoding.
    fn pictures(&mut self, counts: &[usize]) -> Outcome {
        let (stages, threads, device) = (self.stages, self.pool.threads(), self.device);
        let setting = picture::Setting { stages, threads, device, weights: self.weights, kv: self.kv };
        let measured = picture::pictures(self.source.open()?, &setting, counts)?;
        let spec = self.checkpoint.spec.clone();
        let (layer, head) = (spec.llm.layer_parameters() as usize * spec.llm.layers, head_parameters(&spec));
        let tokens = spec.image_tokens();
        let per_weight = match self.weights {
            WeightFormat::F32 => 4.0,
            WeightFormat::Bf16 => 2.0,
            WeightFormat::Q8 => 1.0 + 1.0 / 8.0 + 2.0 / 16.0,
            WeightFormat::Q4 => 0.5 + 2.0 / 32.0,
        };
        for (&n, (milliseconds, prompt)) in counts.iter().zip(measured) {
            let (rows, context) = (2 * n, prompt + tokens);
            let weights = ((layer + head) as f64 * per_weight) as usize * tokens;
            let memory = spec.kv_bytes_per_position(self.kv.size()) as usize * rows * tokens * (prompt + context) / 2;
            let flops = 2 * (layer + head) * rows * tokens
                + 2 * layer * 2 * prompt
                + 2 * spec.llm.layers * spec.llm.heads * spec.llm.head_dim * (prompt + context) * tokens * rows
                + decoder_flops(&spec) * n;
            self.record("picture", rows, context, milliseconds, weights + memory, flops);
        }
        Ok(())
    }

    fn record(&mut self, phase: &'static str, rows: usize, context: usize, ms: f64, bytes: usize, flops: usize) {
        let floor_ms = (bytes as f64 / self.read / 1e6).max(flops as f64 / self.peak / 1e6);
        let result = Measurement {
            phase,
            weights: match phase {
                "siglip" | "vq_decode" => self.checkpoint.unquantised(self.weights).name(),
                _ => self.weights.name(),
            },
            rows,
            context,
            stages: self.stages,
            ms,
            bytes: bytes as u64,
            flops: flops as u64,
            fraction_of_floor: floor_ms / ms,
        };
        if !self.json {
            output::print_line(&format!(
                "{phase:10}  {:7}  {rows:4}  {context:7}  {ms:8.2}  {:9.1}  {:9.1}  {:12.2}",
                result.weights,
                bytes as f64 / ms / 1e6,
                flops as f64 / ms / 1e6,
                result.fraction_of_floor
            ));
        }
        self.results.push(result);
    }
}

fn head_parameters(spec: &ModelSpec) -> usize {
    let hidden = spec.llm.hidden;
    hidden * spec.gen_head.embed + spec.gen_head.embed * spec.gen_head.vocab + hidden * (hidden + spec.gen_aligner.input)
}

/// Floating-point operations of the decoder's convolutions in their direct form.
fn decoder_flops(spec: &ModelSpec) -> usize {
    use janus_model::weights::{Part, inventory};
    let (grid, levels) = (spec.vq.grid, spec.vq.multipliers.len());
    let area = |name: &str| -> usize {
        let level = name.split(".up.").nth(1).and_then(|t| t.split('.').next()).and_then(|t| t.parse::<usize>().ok());
        let side = match level {
            Some(level) if name.contains(".upsample.") => grid << (level + 1),
            Some(level) => grid << level,
            None if name.contains("decoder.conv_out") => grid << (levels - 1),
            None => grid,
        };
        side * side
    };
    let tensors = inventory(spec);
    let weights = tensors.iter().filter(|t| t.part == Part::VqDecoder && t.shape.len() == 4);
    weights.map(|t| 2 * t.shape.iter().product::<usize>() * area(&t.name)).sum()
}

/// The best of several runs in milliseconds, after one to warm up: at least three, for about a second.
fn best(mut run: impl FnMut() -> janus_model::Result<()>) -> Outcome<f64> {
    run()?;
    let started = Instant::now();
    let mut best = f64::INFINITY;
    for round in 0.. {
        let begin = Instant::now();
        run()?;
        best = best.min(begin.elapsed().as_secs_f64() * 1e3);
        if round >= 2 && started.elapsed().as_secs_f64() > 1.0 {
            break;
        }
    }
    Ok(best)
}
