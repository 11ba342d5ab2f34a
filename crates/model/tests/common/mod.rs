//! Golden outputs of both reference implementations (tests/data/tiny-a/README.md) and comparisons with them.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::path::PathBuf;

use janus_kernels::{KvDtype, Pool, WeightFormat};
use janus_model::Checkpoint;
use janus_model::llama::{Embeddings, Heads, LlamaRange, Span};
use janus_spec::{Files, Tokenizer};
use safetensors::SafeTensors;

/// The same weights in three forms.
pub const FORMS: [&str; 3] = ["transformers", "original-safetensors", "original-bin"];

pub fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-a").join(path)
}

pub fn checkpoint(form: &str) -> Checkpoint {
    Checkpoint::open(Files::open_dir(data(form)).unwrap()).unwrap()
}

/// Tensors of one golden file.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(name: &str) -> Self {
        Golden(std::fs::read(data("golden").join(format!("{name}.safetensors"))).unwrap())
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().shape().to_vec()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.bytes(name).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.bytes(name).as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect()
    }

    pub fn u8(&self, name: &str) -> Vec<u8> {
        self.bytes(name)
    }
}

/// `[channels, height, width]` to `[height, width, channels]`.
pub fn to_hwc<T: Copy>(chw: &[T], channels: usize) -> Vec<T> {
    let pixels = chw.len() / channels;
    (0..pixels).flat_map(|p| (0..channels).map(move |c| chw[c * pixels + p])).collect()
}

/// Asserts that every value is within `bound` times the reference's largest absolute value.
pub fn assert_close(what: &str, ours: &[f32], reference: &[f32], bound: f32) {
    assert_eq!(ours.len(), reference.len(), "{what}: length");
    let largest = reference.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let (at, worst) = ours
        .iter()
        .zip(reference)
        .map(|(a, b)| (a - b).abs())
        .enumerate()
        .fold((0, 0.0), |best, (i, d)| if d > best.1 || d.is_nan() { (i, d) } else { best });
    let relative = worst / largest;
    assert!(relative <= bound, "{what}: off by {worst} at {at}, which is {relative:.1e} of the largest value {largest}");
}

/// The language model of a checkpoint, split into stages of layers at the given ends.
pub struct Llm {
    pub pool: Pool,
    pub embeddings: Embeddings,
    pub stages: Vec<LlamaRange>,
    pub heads: Heads,
    pub hidden: usize,
}

impl Llm {
    pub fn load(checkpoint: &Checkpoint, ends: &[usize]) -> Self {
        let format = checkpoint.native_format();
        Self::load_as(checkpoint, ends, format, KvDtype::F32)
    }

    pub fn load_as(checkpoint: &Checkpoint, ends: &[usize], format: WeightFormat, kv: KvDtype) -> Self {
        let mut first = 0;
        let mut stages = Vec::new();
        for &end in ends {
            stages.push(LlamaRange::load(checkpoint, first..end, format, kv, 64).unwrap());
            first = end;
        }
        Llm {
            pool: Pool::new(2),
            embeddings: Embeddings::load(checkpoint, format).unwrap(),
            stages,
            heads: Heads::load(checkpoint, format).unwrap(),
            hidden: checkpoint.spec.llm.hidden,
        }
    }

    /// Rows of text ids.
    pub fn text(&self, ids: &[u32]) -> Vec<f32> {
        let mut rows = Vec::new();
        self.embeddings.text(ids, &mut rows).unwrap();
        rows
    }

    /// Rows of image ids.
    pub fn image(&self, ids: &[u32]) -> Vec<f32> {
        let mut rows = Vec::new();
        self.embeddings.image(&self.pool, ids, &mut rows).unwrap();
        rows
    }

    pub fn open(&mut self, slot: usize, capacity: usize) {
        self.stages.iter_mut().for_each(|s| s.open(slot, capacity).unwrap());
    }

    /// All stages over the spans; returns what left each stage.
    pub fn forward(&mut self, spans: &[Span], mut x: Vec<f32>) -> Vec<Vec<f32>> {
        let mut out = Vec::new();
        for stage in &mut self.stages {
            stage.forward(&self.pool, spans, &mut x).unwrap();
            out.push(x.clone());
        }
        out
    }

    /// One slot, rows at its end; returns the last stage's rows.
    pub fn feed(&mut self, slot: usize, x: Vec<f32>) -> Vec<f32> {
        let span = Span { slot, start: self.stages[0].length(slot), rows: x.len() / self.hidden };
        self.forward(&[span], x).pop().unwrap()
    }
}

/// The prompt's input rows: text embeddings with the picture features of `vision.safetensors` in their places.
pub fn understanding_input(form: &str, llm: &Llm, ids: &[u32], pictures: &[usize]) -> Vec<f32> {
    let checkpoint = checkpoint(form);
    let tokenizer = Tokenizer::load(&checkpoint.files, &checkpoint.spec).unwrap();
    let aligned = Golden::open("vision").f32("aligned");
    let per_picture = aligned.len() / 2;
    let mut x = llm.text(ids);
    let places: Vec<usize> = (0..ids.len()).filter(|&i| ids[i] == tokenizer.special().image_placeholder).collect();
    let features: Vec<f32> =
        pictures.iter().flat_map(|&p| aligned[p * per_picture..(p + 1) * per_picture].iter().copied()).collect();
    assert_eq!(features.len(), places.len() * llm.hidden);
    for (place, row) in places.iter().zip(features.chunks_exact(llm.hidden)) {
        x[place * llm.hidden..(place + 1) * llm.hidden].copy_from_slice(row);
    }
    x
}
