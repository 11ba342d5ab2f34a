//! How a picture is prepared: preprocessor_config.json of both layouts.

use super::read;
use crate::json::{Neutral, Section};
use crate::{Error, Files, PreprocessSpec, Result, SizeRule};

const FILE: &str = "preprocessor_config.json";

/// Both programs' defaults are CLIP's statistics, not Janus': a file that omits them means these.
const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Steps that are always taken, and ones that never are.
const RULES: &[(&str, Neutral)] = &[
    ("do_resize", Neutral::On),
    ("do_rescale", Neutral::On),
    ("do_pad", Neutral::On),
    ("do_center_crop", Neutral::Off),
    ("do_flip_channel_order", Neutral::Off),
    // PIL's number for bicubic.
    ("resample", Neutral::Number(3.0)),
    ("image_processor_type", Neutral::Text(PROCESSORS)),
];

const PROCESSORS: &[&str] =
    &["VLMImageProcessor", "JanusImageProcessor", "JanusImageProcessorFast", "JanusImageProcessorPil"];

/// transformers 5 nests the section in processor_config.json, and looks there first.
pub(super) fn load(files: &Files, processor: Option<&Section<'_>>, rounding: SizeRule) -> Result<PreprocessSpec> {
    if rounding == SizeRule::HalfEven
        && let Some(processor) = processor
        && let Some(nested) = processor.find_section("image_processor")?
    {
        return build(&nested, rounding);
    }
    let value = read(files, FILE)?.ok_or_else(|| Error::MissingFile { file: FILE.into(), place: files.display() })?;
    build(&Section::root(FILE, &value)?, rounding)
}

fn build(section: &Section<'_>, rounding: SizeRule) -> Result<PreprocessSpec> {
    section.refuse_unless(RULES)?;
    let image_size = match rounding {
        SizeRule::Truncate => section.dim("image_size")?,
        SizeRule::HalfEven => square(section)?,
    };
    let mean = section.find_rgb("image_mean")?.unwrap_or(CLIP_MEAN);
    let std = section.find_rgb("image_std")?.unwrap_or(CLIP_STD);
    let mut background = [0; 3];
    for (channel, mean) in background.iter_mut().zip(mean) {
        let byte = (mean * 255.0).trunc();
        if !(0.0..=255.0).contains(&byte) {
            return Err(section.bad("image_mean", "three numbers from 0 to 1 (the padding has this colour)"));
        }
        *channel = byte as u8;
    }
    Ok(PreprocessSpec {
        image_size,
        min_size: section.dim_or("min_size", 14)?,
        background,
        mean: mean.map(|v| v as f32),
        std: std.map(|v| v as f32),
        do_normalize: section.find_flag("do_normalize")?.unwrap_or(true),
        rescale_factor: section.number_or("rescale_factor", 1.0 / 255.0)?,
        rounding,
    })
}

/// `size` is `{height, width}`, both the same; some tools write one number.
fn square(section: &Section<'_>) -> Result<usize> {
    if section.get("size").is_some_and(serde_json::Value::is_number) {
        return section.dim("size");
    }
    let Some(size) = section.find_section("size")? else { return Ok(384) };
    let (height, width) = (size.dim("height")?, size.dim("width")?);
    if height == width { Ok(height) } else { Err(section.unsupported("size", "a square")) }
}
