//! What the values of flags may be.

use clap::ValueEnum;
use janus_coordinator::MAX_CFG_WEIGHT;
use serde::Deserialize;

/// Pictures of one call: they share every step, and each has a place in the engine's table of sequences.
const MAX_COUNT: usize = 1024;
/// Requests that a program makes at once; each has a connection.
const MAX_PARALLEL: usize = 256;
/// More than any machine has.
const MAX_THREADS: usize = 1024;

/// Published sizes, and the model inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    #[value(name = "janus-1.3b")]
    Janus1_3b,
    #[value(name = "janus-pro-1b")]
    JanusPro1b,
    #[value(name = "janus-pro-7b")]
    JanusPro7b,
    Shapes,
}

impl Arch {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Arch::Janus1_3b => "janus-1.3b",
            Arch::JanusPro1b => "janus-pro-1b",
            Arch::JanusPro7b => "janus-pro-7b",
            Arch::Shapes => "shapes",
        }
    }
}

/// Weight formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Weights {
    Bf16,
    Q8,
    Q4,
    F32,
}

impl Weights {
    pub(crate) fn name(self) -> &'static str {
        janus_model::WeightFormat::from(self).name()
    }
}

impl Kv {
    pub(crate) fn name(self) -> &'static str {
        janus_model::KvDtype::from(self).name()
    }
}

impl From<Weights> for janus_model::WeightFormat {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::Bf16 => Self::Bf16,
            Weights::Q8 => Self::Q8,
            Weights::Q4 => Self::Q4,
            Weights::F32 => Self::F32,
        }
    }
}

/// Element types of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kv {
    Bf16,
    F32,
}

impl From<Kv> for janus_model::KvDtype {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::Bf16 => Self::Bf16,
            Kv::F32 => Self::F32,
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Phase {
    LlmStep,
    Prefill,
    Siglip,
    VqDecode,
    Sample,
    Hop,
    Picture,
}

pub(super) fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("must be a whole number of at least 1".to_owned()),
    }
}

fn up_to(most: usize, text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if (1..=most).contains(&n) => Ok(n),
        _ => Err(format!("must be a whole number from 1 to {most}")),
    }
}

pub(super) fn sha256(text: &str) -> Result<String, String> {
    match text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("must be 64 hexadecimal digits".to_owned()),
    }
}

fn two(text: &str, between: char) -> Option<(usize, usize)> {
    let (a, b) = text.split_once(between)?;
    let (a, b) = (a.parse().ok()?, b.parse().ok()?);
    (a < b).then_some((a, b))
}

pub(super) fn stage_of(text: &str) -> Result<(usize, usize), String> {
    two(text, '/').ok_or_else(|| "must be a stage and how many there are, like 0/2 and 1/2".to_owned())
}

pub(super) fn layer_range(text: &str) -> Result<(usize, usize), String> {
    two(text, ':').ok_or_else(|| "must be a first layer and the one after the last, like 0:12".to_owned())
}

pub(super) fn parallel(text: &str) -> Result<usize, String> {
    up_to(MAX_PARALLEL, text)
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    up_to(MAX_COUNT, text)
}

pub(super) fn threads(text: &str) -> Result<usize, String> {
    up_to(MAX_THREADS, text)
}

pub(super) fn instruction_set(text: &str) -> Result<janus_model::Isa, String> {
    let available = janus_model::Isa::available();
    available.iter().copied().find(|isa| isa.name() == text).ok_or_else(|| {
        let names: Vec<&str> = available.iter().map(|isa| isa.name()).collect();
        format!("this machine has {}", names.join(", "))
    })
}

pub(super) fn not_negative(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(x),
        _ => Err("must be a finite number of at least 0".to_owned()),
    }
}

pub(super) fn guidance(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(w) if (0.0..=MAX_CFG_WEIGHT).contains(&w) => Ok(w),
        _ => Err(format!("must be a number from 0 to {MAX_CFG_WEIGHT}")),
    }
}

pub(super) fn fraction(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(x),
        _ => Err("must be above 0 and at most 1".to_owned()),
    }
}
