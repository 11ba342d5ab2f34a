//! The seam between a stage and what it computes with: the real model, or an exact toy in tests.

use std::ops::Range;
use std::sync::Arc;

use janus_kernels::{KvDtype, Pool, WeightFormat};
use janus_model::llama::{Embeddings, Heads, LlamaRange, Span, Workspace};
use janus_model::{Checkpoint, ImageSampling, sampling::sample};
use janus_wire::v1::{Input, Kind, Sampling, piece::Piece};

use super::Features;

/// One id to draw, at the last stage.
#[derive(Debug, Clone)]
pub struct SampleJob {
    /// A pair has two rows, everything else one.
    pub kind: Kind,
    /// How.
    pub sampling: Sampling,
    /// The index of the id: the generator's counter.
    pub index: u32,
}

/// Rows and KV memory of a layer range. A unit's branch `b` lives in row slot `2 * slot + b`.
pub trait Compute: Send + 'static {
    /// Width of a row.
    fn hidden(&self) -> usize;
    /// Layers held.
    fn layers(&self) -> Range<usize>;
    /// Layers of the whole model.
    fn total_layers(&self) -> usize;
    /// Called on the thread that will compute, when a place in a pipeline begins.
    fn begin(&mut self) {}
    /// Reserves memory for `capacity` positions of a row slot.
    fn open(&mut self, row_slot: usize, capacity: usize) -> Result<(), String>;
    /// Frees a row slot.
    fn close(&mut self, row_slot: usize);
    /// Forgets positions from `length` on.
    fn truncate(&mut self, row_slot: usize, length: usize) -> Result<(), String>;
    /// Gives row slot `to` the first `length` positions of row slot `from`.
    fn copy(&mut self, from: usize, to: usize, length: usize) -> Result<(), String>;
    /// Forgets positions from `length` on and gives their memory back.
    fn shrink(&mut self, row_slot: usize, length: usize) -> Result<(), String>;
    /// First stage: appends the rows of one branch to `out`.
    fn embed(&mut self, input: &Input, features: &Features, out: &mut Vec<f32>) -> Result<(), String>;
    /// Runs the layers over the rows of all spans in place.
    fn forward(&mut self, spans: &[Span], x: &mut [f32]) -> Result<(), String>;
    /// Last stage: draws the id of every job from its hidden rows, which follow one another, and appends them to `out`.
    fn sample(&mut self, jobs: &[SampleJob], rows: &[f32], out: &mut Vec<Result<u32, String>>);
    /// Bytes of weights held.
    fn weight_bytes(&self) -> usize;
    /// Bytes of weights that every step reads: those of the layers, without tables and heads.
    fn layer_bytes(&self) -> usize {
        self.weight_bytes()
    }
    /// Bytes of KV memory reserved.
    fn kv_bytes(&self) -> usize;
}

/// Makes what a stage computes with, for any range of layers; keeps the layers it has loaded until it is told otherwise.
pub trait Loader<C>: Send + Sync + 'static {
    /// Layers of the whole model.
    fn total_layers(&self) -> usize;
    /// Width of a row.
    fn hidden(&self) -> usize;
    /// Loads what is missing of `range`. May take minutes; runs on a thread that may wait.
    fn load(&self, range: Range<usize>) -> Result<C, String>;
    /// Lets go of everything outside `range`.
    fn keep(&self, range: Range<usize>);
    /// Bytes of weights held.
    fn bytes(&self) -> usize;
}

/// The real model.
pub struct ModelCompute {
    pool: Arc<Pool>,
    total_layers: usize,
    hidden: usize,
    llm: LlamaRange,
    embeddings: Option<Arc<Embeddings>>,
    heads: Option<Heads>,
    drawing: Drawing,
}

/// Rows and logits of the ids to draw; they only ever grow, so a steady step allocates nothing.
#[derive(Default)]
struct Drawing {
    image_rows: Vec<f32>,
    text_rows: Vec<f32>,
    text: Vec<f32>,
    guided: Vec<f32>,
}

impl ModelCompute {
    /// Loads layers `range` and, at either end, embeddings and heads. `slots` units can be open at once.
    pub fn load(
        checkpoint: &Checkpoint,
        pool: Arc<Pool>,
        range: Range<usize>,
        weights: WeightFormat,
        kv: KvDtype,
        slots: usize,
    ) -> Result<Self, janus_model::Error> {
        let total_layers = checkpoint.spec.llm.layers;
        Ok(ModelCompute {
            embeddings: (range.start == 0).then(|| Embeddings::load(checkpoint, weights)).transpose()?.map(Arc::new),
            heads: (range.end == total_layers).then(|| Heads::load(checkpoint, weights)).transpose()?,
            llm: LlamaRange::load(checkpoint, range, weights, kv, 2 * slots)?,
            hidden: checkpoint.spec.llm.hidden,
            total_layers,
            pool,
            drawing: Drawing::default(),
        })
    }
}

impl ModelCompute {
    pub(super) fn of(
        pool: Arc<Pool>,
        spec: &janus_spec::LlamaSpec,
        llm: LlamaRange,
        embeddings: Option<Arc<Embeddings>>,
        heads: Option<Heads>,
    ) -> Self {
        let (total_layers, hidden) = (spec.layers, spec.hidden);
        ModelCompute { pool, total_layers, hidden, llm, embeddings, heads, drawing: Drawing::default() }
    }

    /// Computes in `workspace`, with the other stages of this process.
    pub fn sharing(mut self, workspace: Arc<Workspace>) -> Self {
        self.llm = self.llm.sharing(workspace);
        self
    }
}

impl Compute for ModelCompute {
    fn begin(&mut self) {
        self.pool.pin();
    }

    fn hidden(&self) -> usize {
        self.hidden
    }

    fn layers(&self) -> Range<usize> {
        self.llm.layers()
    }

    fn total_layers(&self) -> usize {
        self.total_layers
    }

    fn open(&mut self, row_slot: usize, capacity: usize) -> Result<(), String> {
        self.llm.open(row_slot, capacity).map_err(|e| e.to_string())
    }

    fn close(&mut self, row_slot: usize) {
        self.llm.close(row_slot);
    }

    fn truncate(&mut self, row_slot: usize, length: usize) -> Result<(), String> {
        self.llm.truncate(row_slot, length).map_err(|e| e.to_string())
    }

    fn copy(&mut self, from: usize, to: usize, length: usize) -> Result<(), String> {
        self.llm.copy(from, to, length).map_err(|e| e.to_string())
    }

    fn shrink(&mut self, row_slot: usize, length: usize) -> Result<(), String> {
        self.llm.shrink(row_slot, length).map_err(|e| e.to_string())
    }

    fn embed(&mut self, input: &Input, features: &Features, out: &mut Vec<f32>) -> Result<(), String> {
        let Some(embeddings) = &self.embeddings else {
            return Err("this stage holds no embeddings".to_owned());
        };
        for piece in &input.pieces {
            match &piece.piece {
                Some(Piece::Text(ids)) => embeddings.text(&ids.ids, out).map_err(|e| e.to_string())?,
                Some(Piece::Image(ids)) => embeddings.image(&self.pool, &ids.ids, out).map_err(|e| e.to_string())?,
                Some(Piece::Features(span)) => {
                    let rows = features.get(&span.handle).ok_or_else(|| super::core::FEATURES_MISSING.to_owned())?;
                    let first = span.first as usize * self.hidden;
                    let part = first
                        .checked_add(span.count as usize * self.hidden)
                        .and_then(|end| rows.get(first..end))
                        .ok_or_else(|| {
                            format!("features have {} rows, fewer than were asked for", rows.len() / self.hidden)
                        })?;
                    out.extend_from_slice(part);
                }
                None => return Err("an input piece says nothing".to_owned()),
            }
        }
        Ok(())
    }

    fn forward(&mut self, spans: &[Span], x: &mut [f32]) -> Result<(), String> {
        self.llm.forward(&self.pool, spans, x).map_err(|e| e.to_string())
    }

    fn sample(&mut self, jobs: &[SampleJob], rows: &[f32], out: &mut Vec<Result<u32, String>>) {
        let Some(heads) = &mut self.heads else {
            return out.extend(jobs.iter().map(|_| Err("this stage holds no heads".to_owned())));
        };
        // All image rows go through the image head together, all text rows through the text head: each is read once.
        let hidden = self.hidden;
        let Drawing { image_rows, text_rows, text, guided } = &mut self.drawing;
        image_rows.clear();
        text_rows.clear();
        text.clear();
        let mut rest = rows;
        for job in jobs {
            let (mine, others) = rest.split_at(hidden * branches(job.kind));
            rest = others;
            let side = if job.kind == Kind::Text { &mut *text_rows } else { &mut *image_rows };
            side.extend_from_slice(mine);
        }
        // Width of a row of logits; whatever there is none of has no rows.
        let width = |logits: usize, rows: usize| (logits * hidden).checked_div(rows).unwrap_or(1);
        if !text_rows.is_empty() {
            text.extend_from_slice(heads.text_logits(&self.pool, text_rows));
        }
        let vocab = width(text.len(), text_rows.len());
        let image: &[f32] = if image_rows.is_empty() { &[] } else { heads.image_logits(&self.pool, image_rows) };
        let codes = width(image.len(), image_rows.len());
        let (mut image, mut text) = (image.chunks_exact(codes), text.chunks_exact(vocab));
        let mut draw = |job: &SampleJob| -> Option<Result<u32, String>> {
            let drawn = match job.kind {
                Kind::Text => sample(text.next()?, &parameters(&job.sampling), job.index.into()),
                Kind::Pair => {
                    let (cond, uncond) = (image.next()?, image.next()?);
                    guided.resize(cond.len(), 0.0);
                    janus_kernels::guidance(cond, uncond, job.sampling.cfg_weight, guided);
                    sample(guided, &parameters(&job.sampling), job.index.into())
                }
                _ => sample(image.next()?, &parameters(&job.sampling), job.index.into()),
            };
            Some(drawn.map_err(|e| e.to_string()))
        };
        out.extend(jobs.iter().map(|job| draw(job).unwrap_or_else(|| Err("its logits are missing".to_owned()))));
    }

    fn weight_bytes(&self) -> usize {
        let ends = self.embeddings.as_ref().map_or(0, |e| e.bytes()) + self.heads.as_ref().map_or(0, Heads::bytes);
        ends + self.llm.bytes()
    }

    fn layer_bytes(&self) -> usize {
        self.llm.bytes()
    }

    fn kv_bytes(&self) -> usize {
        self.llm.cache_bytes()
    }
}

/// Rows a unit has per position.
pub fn branches(kind: Kind) -> usize {
    if kind == Kind::Pair { 2 } else { 1 }
}

fn parameters(sampling: &Sampling) -> ImageSampling {
    ImageSampling {
        temperature: sampling.temperature,
        top_k: (sampling.top_k > 0).then_some(sampling.top_k as usize),
        top_p: (sampling.top_p < 1.0).then_some(sampling.top_p),
        seed: sampling.seed,
    }
}
