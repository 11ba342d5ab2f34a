//! Everything in one process, without a network: the parts of a checkpoint put together to paint and to answer.
//!
//! Rows of all requests share every step; because each row's bits depend on nothing but that row, a picture is
//! the same alone and in company.

use janus_kernels::{KvDtype, Pool, WeightFormat};
use janus_spec::{GenerationPrompt, ModelSpec, Prompt, Tokenizer};

use crate::error::{Error, Result};
use crate::image::{self, Rgb8};
use crate::llama::{Embeddings, Heads, LlamaRange, SlotId, Span};
use crate::sampling::{ImageSampling, sample};
use crate::siglip::VisionEncoder;
use crate::vq::{VqDecoder, VqEncoder};
use crate::weights::Checkpoint;

/// KV slots: two for each picture painted at once.
const SLOTS: usize = 2 * 4096;

/// Positions a prompt is fed in at a time.
const PREFILL_CHUNK: usize = 64;

/// How to compute.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineOptions {
    /// Threads; all the process may use if `None`.
    pub threads: Option<usize>,
    /// Weight format of the language model; as stored if `None`.
    pub weights: Option<WeightFormat>,
    /// Element type of the KV cache.
    pub kv: Option<KvDtype>,
}

/// One picture to paint.
#[derive(Debug, Clone)]
pub struct PaintRequest {
    /// Both branches of the prompt.
    pub prompt: GenerationPrompt,
    /// Ids of the upper part of a picture to keep; the rest is painted.
    pub keep: Vec<u32>,
    /// Guidance weight `w` in `u + w (c - u)`; 1 means the conditional branch alone.
    pub cfg_weight: f32,
    /// How ids are drawn.
    pub sampling: ImageSampling,
}

/// One question.
#[derive(Debug, Clone)]
pub struct AskRequest {
    /// The whole conversation, pictures expanded.
    pub prompt: Prompt,
    /// Stop after this many tokens.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: ImageSampling,
}

/// A loaded model.
pub struct Engine {
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    format: WeightFormat,
    pool: Pool,
    embeddings: Embeddings,
    llm: LlamaRange,
    heads: Heads,
    vision: Option<VisionEncoder>,
    vq_encoder: Option<VqEncoder>,
    vq_decoder: Option<VqDecoder>,
}

/// What a unit of work is. Half a pair cannot be expressed.
enum Rows {
    /// A guided picture: conditional and unconditional slot, always in this order.
    Pair { cond: SlotId, uncond: SlotId, weight: f32 },
    /// A picture at guidance weight 1: one slot.
    Unguided(SlotId),
}

impl Rows {
    fn slots(&self) -> Vec<SlotId> {
        match *self {
            Rows::Pair { cond, uncond, .. } => vec![cond, uncond],
            Rows::Unguided(slot) => vec![slot],
        }
    }
}

impl Engine {
    /// Loads the language model; towers are loaded when they are first needed.
    pub fn load(checkpoint: Checkpoint, options: EngineOptions) -> Result<Self> {
        janus_kernels::check_cpu()?;
        let tokenizer = Tokenizer::load(&checkpoint.files, &checkpoint.spec)?;
        let format = options.weights.unwrap_or_else(|| checkpoint.native_format());
        let pool = Pool::new(options.threads.unwrap_or_else(janus_kernels::default_threads));
        let layers = 0..checkpoint.spec.llm.layers;
        Ok(Engine {
            embeddings: Embeddings::load(&checkpoint, format)?,
            llm: LlamaRange::load(&checkpoint, layers, format, options.kv.unwrap_or(KvDtype::F32), SLOTS)?,
            heads: Heads::load(&checkpoint, format)?,
            checkpoint,
            tokenizer,
            format,
            pool,
            vision: None,
            vq_encoder: None,
            vq_decoder: None,
        })
    }

    /// What the checkpoint says.
    pub fn spec(&self) -> &ModelSpec {
        &self.checkpoint.spec
    }

    /// The checkpoint's tokeniser.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Paints all requests in step; returns the ids of each, row-major. `on_step(i)` is called after the ids at
    /// position `i` of every picture are known.
    pub fn paint(&mut self, requests: &[PaintRequest], mut on_step: impl FnMut(usize)) -> Result<Vec<Vec<u32>>> {
        let total = self.spec().image_tokens();
        let mut units = Vec::with_capacity(requests.len());
        let mut ids: Vec<Vec<u32>> = Vec::with_capacity(requests.len());
        let mut next: Vec<Vec<f32>> = Vec::with_capacity(requests.len());
        for request in requests {
            self.check_paint(request, total)?;
            let capacity = request.prompt.cond.len() + total;
            let first = 2 * units.len();
            let unit = match request.cfg_weight {
                1.0 => Rows::Unguided(first),
                weight => Rows::Pair { cond: first, uncond: first + 1, weight },
            };
            for slot in unit.slots() {
                self.llm.open(slot, capacity)?;
            }
            let branches = [&request.prompt.cond, &request.prompt.uncond];
            let mut logits = Vec::new();
            for (slot, prompt) in unit.slots().into_iter().zip(branches) {
                let mut input = self.embeddings.text(prompt)?;
                input.extend(self.embeddings.image(&self.pool, &request.keep)?);
                let last = self.prefill(slot, &input)?;
                logits.extend(self.heads.image_logits(&self.pool, &last).iter());
            }
            next.push(logits);
            ids.push(request.keep.clone());
            units.push(unit);
        }

        let start = requests.iter().map(|r| r.keep.len()).min().unwrap_or(total);
        for position in start..total {
            let mut spans = Vec::new();
            let mut input = Vec::new();
            for (i, unit) in units.iter().enumerate() {
                if ids[i].len() != position {
                    continue;
                }
                let logits = guided(unit, &next[i]);
                let id = sample(&logits, &requests[i].sampling, position as u64)?;
                ids[i].push(id);
                if position + 1 == total {
                    continue;
                }
                let row = self.embeddings.image(&self.pool, &[id])?;
                for slot in unit.slots() {
                    spans.push(Span { slot, start: self.llm.length(slot), rows: 1 });
                    input.extend_from_slice(&row);
                }
            }
            if !spans.is_empty() {
                self.llm.forward(&self.pool, &spans, &mut input)?;
                let logits = self.heads.image_logits(&self.pool, &input).to_vec();
                let vocab = self.checkpoint.spec.gen_head.vocab;
                let mut rows = logits.chunks_exact(vocab);
                for (i, unit) in units.iter().enumerate() {
                    if ids[i].len() == position + 1 {
                        next[i] = rows.by_ref().take(unit.slots().len()).flatten().copied().collect();
                    }
                }
            }
            on_step(position);
        }
        for unit in &units {
            for slot in unit.slots() {
                self.llm.close(slot);
            }
        }
        Ok(ids)
    }

    /// Answers one question; `images` fill the prompt's places in order. `on_text` gets the answer as it grows.
    /// Returns the answer's tokens without EOS.
    pub fn ask(&mut self, request: &AskRequest, images: &[Rgb8], mut on_text: impl FnMut(&str)) -> Result<Vec<u32>> {
        let prompt = &request.prompt;
        if prompt.images.len() != images.len() {
            return Err(Error::Argument(format!(
                "the prompt has places for {} pictures, but {} were given",
                prompt.images.len(),
                images.len()
            )));
        }
        let hidden = self.spec().llm.hidden;
        let mut input = self.embeddings.text(&prompt.ids)?;
        for (range, picture) in prompt.images.iter().zip(images) {
            let features = self.vision_features(picture)?;
            input[range.start * hidden..range.end * hidden].copy_from_slice(&features);
        }
        let room = self.spec().llm.max_positions - prompt.ids.len().min(self.spec().llm.max_positions);
        let limit = request.max_tokens.min(room);
        let slot = 0;
        self.llm.open(slot, prompt.ids.len() + limit)?;
        let mut last = self.prefill(slot, &input)?;
        let eos = self.tokenizer.special().eos;
        let mut stream = self.tokenizer.stream_decoder();
        let mut tokens = Vec::new();
        while tokens.len() < limit {
            let logits = self.heads.text_logits(&self.pool, &last);
            let id = sample(logits, &request.sampling, tokens.len() as u64)?;
            if id == eos {
                break;
            }
            tokens.push(id);
            if let Some(text) = stream.push(&self.tokenizer, id)? {
                on_text(&text);
            }
            if tokens.len() < limit {
                last = self.embeddings.text(&[id])?;
                let start = self.llm.length(slot);
                self.llm.forward(&self.pool, &[Span { slot, start, rows: 1 }], &mut last)?;
            }
        }
        on_text(&stream.finish(&self.tokenizer)?);
        self.llm.close(slot);
        Ok(tokens)
    }

    /// SigLIP features `[image tokens, hidden]` of a picture.
    pub fn vision_features(&mut self, picture: &Rgb8) -> Result<Vec<f32>> {
        let rule = &self.checkpoint.spec.preprocess;
        let fitted = image::fit_square(picture, rule.image_size, rule.min_size, rule.background, rule.rounding);
        let pixels = image::normalise(&fitted, rule);
        let encoder = load_once(&mut self.vision, || VisionEncoder::load(&self.checkpoint, self.format))?;
        encoder.encode(&self.pool, &pixels)
    }

    /// VQ ids of a picture, cropped to a centred square and resized.
    pub fn encode_ids(&mut self, picture: &Rgb8) -> Result<Vec<u32>> {
        let fitted = image::crop_square(picture, self.checkpoint.spec.vq.image_size);
        let pixels: Vec<f32> = fitted.data.iter().map(|&v| (f32::from(v) / 255.0 - 0.5) / 0.5).collect();
        let encoder = load_once(&mut self.vq_encoder, || VqEncoder::load(&self.checkpoint, self.format))?;
        encoder.encode(&self.pool, &pixels)
    }

    /// The picture of row-major VQ ids.
    pub fn decode_ids(&mut self, ids: &[u32]) -> Result<Rgb8> {
        let decoder = load_once(&mut self.vq_decoder, || VqDecoder::load(&self.checkpoint, self.format, false))?;
        let pixels = decoder.decode(&self.pool, ids)?;
        let size = self.checkpoint.spec.vq.image_size;
        Ok(image::from_unit_range(&pixels, size, size)?)
    }

    fn check_paint(&self, request: &PaintRequest, total: usize) -> Result<()> {
        let codes = self.spec().gen_head.vocab;
        if request.keep.len() > total {
            return Err(Error::Argument(format!("{} ids to keep, but a picture has {total}", request.keep.len())));
        }
        if let Some(id) = request.keep.iter().find(|&&id| id as usize >= codes) {
            return Err(Error::Argument(format!("id {id} to keep is outside the codebook of {codes} codes")));
        }
        if request.prompt.cond.len() != request.prompt.uncond.len() {
            return Err(Error::Argument("conditional and unconditional prompt differ in length".to_owned()));
        }
        if !request.cfg_weight.is_finite() {
            return Err(Error::Argument(format!("guidance weight {} is not a number", request.cfg_weight)));
        }
        request.sampling.check()
    }

    /// Feeds a prompt in chunks; returns the hidden state of its last position.
    fn prefill(&mut self, slot: SlotId, input: &[f32]) -> Result<Vec<f32>> {
        let hidden = self.checkpoint.spec.llm.hidden;
        let mut last = Vec::new();
        for chunk in input.chunks(PREFILL_CHUNK * hidden) {
            let mut rows = chunk.to_vec();
            let start = self.llm.length(slot);
            self.llm.forward(&self.pool, &[Span { slot, start, rows: chunk.len() / hidden }], &mut rows)?;
            last = rows.split_off(rows.len() - hidden);
        }
        Ok(last)
    }
}

/// The logits to sample from: `u + w (c - u)` for a pair (generation_inference.py:88).
fn guided(unit: &Rows, logits: &[f32]) -> Vec<f32> {
    match unit {
        Rows::Unguided(_) => logits.to_vec(),
        Rows::Pair { weight, .. } => {
            let (cond, uncond) = logits.split_at(logits.len() / 2);
            let mut out = vec![0.0; cond.len()];
            janus_kernels::guidance(cond, uncond, *weight, &mut out);
            out
        }
    }
}

fn load_once<T>(place: &mut Option<T>, load: impl FnOnce() -> Result<T>) -> Result<&T> {
    if place.is_none() {
        *place = Some(load()?);
    }
    place.as_ref().ok_or_else(|| Error::Argument("a part of the model is missing".to_owned()))
}
