//! From configuration files to a [`ModelSpec`]: one module per layout, and the parts both share.

mod generation;
mod llama;
mod original;
mod preprocess;
mod transformers;

use serde_json::Value;

use crate::json::{self, Neutral, Section};
use crate::{Files, Layout, ModelSpec, Result, StoredDtype};

const CONFIG: &str = "config.json";
const PROCESSOR: &str = "processor_config.json";

pub(crate) fn load(files: &Files) -> Result<ModelSpec> {
    let value = json::parse(CONFIG, &files.require(CONFIG)?)?;
    let config = Section::root(CONFIG, &value)?;
    let layout = layout(&config)?;
    config.refuse_unless(&[("quantization_config", Neutral::Off), ("compression_config", Neutral::Off)])?;

    let processor = read(files, PROCESSOR)?;
    let processor = processor.as_ref().map(|value| Section::root(PROCESSOR, value)).transpose()?;
    let system_prompt = match (&processor, layout) {
        (Some(processor), Layout::Transformers) => processor.find_flag("use_default_system_prompt")?.unwrap_or(true),
        _ => true,
    };

    let (rounding, build): (_, fn(&Section<'_>, Rest) -> Result<ModelSpec>) = match layout {
        Layout::Original => (crate::SizeRule::Truncate, original::build),
        Layout::Transformers => (crate::SizeRule::HalfEven, transformers::build),
    };
    let rest = Rest {
        preprocess: preprocess::load(files, processor.as_ref(), rounding)?,
        generation: generation::load(files, layout)?,
        dtype: dtype(&config)?,
        system_prompt,
    };
    let spec = build(&config, rest)?;
    spec.validate()?;
    if let Some(processor) = &processor {
        check_processor(processor, &spec)?;
    }
    Ok(spec)
}

/// What does not come from the layout's own sections.
struct Rest {
    preprocess: crate::PreprocessSpec,
    generation: crate::GenerationDefaults,
    dtype: StoredDtype,
    system_prompt: bool,
}

fn read(files: &Files, name: &str) -> Result<Option<Value>> {
    files.read(name)?.map(|bytes| json::parse(name, &bytes)).transpose()
}

/// The layout by `model_type`; `architectures`, where given, must agree.
fn layout(config: &Section<'_>) -> Result<Layout> {
    let (layout, class) = match config.find_text("model_type")? {
        None => return Err(config.missing("model_type")),
        Some("multi_modality") => (Layout::Original, "MultiModalityCausalLM"),
        Some("janus") => (Layout::Transformers, "JanusForConditionalGeneration"),
        Some(_) => return Err(config.unsupported("model_type", "multi_modality, janus")),
    };
    match config.get("architectures") {
        None => Ok(layout),
        Some(Value::Array(list)) if list.is_empty() || list.iter().any(|name| name.as_str() == Some(class)) => Ok(layout),
        Some(_) => Err(config.unsupported("architectures", class)),
    }
}

/// 4.x writes `torch_dtype`, 5.x `dtype`.
fn dtype(config: &Section<'_>) -> Result<StoredDtype> {
    for key in ["dtype", "torch_dtype"] {
        match config.find_text(key)?.map(|name| name.trim_start_matches("torch.")) {
            None => {}
            Some("float32") => return Ok(StoredDtype::F32),
            Some("float16") => return Ok(StoredDtype::F16),
            Some("bfloat16") => return Ok(StoredDtype::BF16),
            Some(_) => return Err(config.unsupported(key, "float32, float16, bfloat16")),
        }
    }
    Ok(StoredDtype::F32)
}

/// The number of placeholders per picture is fixed by the tower, and prompts are built in one format.
fn check_processor(processor: &Section<'_>, spec: &ModelSpec) -> Result<()> {
    let tokens = spec.image_tokens();
    if processor.find_dim("num_image_tokens")?.is_some_and(|n| n != tokens) {
        return Err(processor.bad("num_image_tokens", &format!("{tokens}, the patches of the vision tower")));
    }
    if spec.layout == Layout::Original {
        let rules = [("add_special_token", Neutral::Off), ("sft_format", Neutral::Text(&["deepseek"]))];
        processor.refuse_unless(&rules)?;
    }
    Ok(())
}

/// Width of the vision MLP: `int(width * mlp_ratio)`, in both programs.
fn mlp_width(section: &Section<'_>, width: usize) -> Result<usize> {
    let mlp = width as f64 * section.number_or("mlp_ratio", 4.0)?;
    if !(1.0..=json::MAX_DIM as f64).contains(&mlp) {
        return Err(section.bad("mlp_ratio", "a ratio that gives a usable width"));
    }
    Ok(mlp as usize)
}

/// Codes along one side: every level of the VQ model but the last halves the picture.
fn codes_per_side(image_size: usize, levels: usize) -> usize {
    u32::try_from(levels.saturating_sub(1)).ok().and_then(|halvings| image_size.checked_shr(halvings)).unwrap_or(0)
}
