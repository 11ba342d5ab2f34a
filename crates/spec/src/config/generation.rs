//! Sampling defaults: generation_config.json, where a checkpoint has one.

use super::read;
use crate::json::{Neutral, Section};
use crate::{Files, GenerationDefaults, Layout, Result};

const FILE: &str = "generation_config.json";

/// Ways of decoding that are not implemented; a file that asks for them would be answered with something else.
const RULES: &[(&str, Neutral)] = &[
    ("num_beams", Neutral::Number(1.0)),
    ("num_beam_groups", Neutral::Number(1.0)),
    ("penalty_alpha", Neutral::Off),
    ("repetition_penalty", Neutral::Number(1.0)),
    ("encoder_repetition_penalty", Neutral::Number(1.0)),
    ("no_repeat_ngram_size", Neutral::Off),
    ("bad_words_ids", Neutral::Off),
    ("suppress_tokens", Neutral::Off),
    ("begin_suppress_tokens", Neutral::Off),
    ("sequence_bias", Neutral::Off),
    ("typical_p", Neutral::Number(1.0)),
    ("min_p", Neutral::Off),
    ("epsilon_cutoff", Neutral::Off),
    ("eta_cutoff", Neutral::Off),
    ("top_h", Neutral::Off),
];

pub(super) fn load(files: &Files, layout: Layout) -> Result<GenerationDefaults> {
    let original = GenerationDefaults::original();
    let Some(value) = read(files, FILE)? else { return Ok(original) };
    let section = Section::root(FILE, &value)?;
    section.refuse_unless(RULES)?;

    let greedy = section.find_flag("do_sample")? == Some(false);
    let temperature = section.number_or("temperature", 1.0)?;
    if temperature < 0.0 {
        return Err(section.bad("temperature", "a number from 0"));
    }
    // 0 and 1 are how these two are switched off.
    let top_k = match section.get("top_k") {
        Some(k) if k.as_u64() == Some(0) => None,
        _ => section.find_dim("top_k")?,
    };
    let top_p = section.find_number("top_p")?;
    if top_p.is_some_and(|p| p <= 0.0 || p > 1.0) {
        return Err(section.bad("top_p", "a number above 0 and up to 1"));
    }
    Ok(GenerationDefaults {
        cfg_weight: section.number_or("guidance_scale", f64::from(original.cfg_weight))? as f32,
        temperature: if greedy { 0.0 } else { temperature as f32 },
        top_k,
        top_p: top_p.filter(|p| *p < 1.0).map(|p| p as f32),
        text_temperature: original.text_temperature,
        text_max_tokens: section.dim_or("max_new_tokens", original.text_max_tokens)?,
        pad_token_id: match layout {
            Layout::Original => None,
            Layout::Transformers => section.find_id("pad_token_id")?,
        },
    })
}
