//! deepseek-ai's layout (`model_type` `multi_modality`): modeling_vlm.py and what it builds.
//!
//! The published files say little: SigLIP's and the VQ model's dimensions are fixed by the code. Smaller checkpoints write
//! them as extra keys in `params`, under the names of the code's own arguments.

use super::{Rest, llama};
use crate::json::{Neutral, Section};
use crate::{ImageHeadSpec, Layout, ModelSpec, ProjectorSpec, Result, SiglipSpec, VqSpec};

pub(super) fn build(config: &Section<'_>, rest: Rest) -> Result<ModelSpec> {
    let language = config.section("language_config")?;
    let vision = vision(&config.section("vision_config")?)?;
    let vq = vq(&config.section("gen_vision_config")?, vision.image_size)?;
    let llm = llama::read(&language)?;
    Ok(ModelSpec {
        layout: Layout::Original,
        aligner: projector(&config.section("aligner_config")?)?,
        gen_aligner: projector(&config.section("gen_aligner_config")?)?,
        gen_head: image_head(&config.section("gen_head_config")?, llm.hidden)?,
        llm,
        vision,
        vq,
        preprocess: rest.preprocess,
        generation: rest.generation,
        dtype: rest.dtype,
        tie_word_embeddings: language.find_flag("tie_word_embeddings")?.unwrap_or(false),
        image_token_id: None,
        system_prompt: rest.system_prompt,
    })
}

/// CLIPVisionTower over a SigLIP model (clip_encoder.py, siglip_vit.py).
fn vision(section: &Section<'_>) -> Result<SiglipSpec> {
    section.require_text("cls", "CLIPVisionTower")?;
    let params = section.section("params")?;
    params.refuse_unless(&[
        ("model_name", Neutral::Text(&["siglip_large_patch16_384"])),
        ("select_feature", Neutral::Text(&["same"])),
        ("ignore_head", Neutral::On),
        ("class_token", Neutral::Off),
        ("num_classes", Neutral::Off),
    ])?;
    // The code's default is -2, one layer less: absent is not the same as -1.
    if params.get("select_layer").and_then(serde_json::Value::as_i64) != Some(-1) {
        return Err(params.unsupported("select_layer", "-1"));
    }
    let fixed = SiglipSpec::large();
    let width = params.dim_or("width", fixed.width)?;
    Ok(SiglipSpec {
        width,
        layers: params.dim_or("layers", fixed.layers)?,
        heads: params.dim_or("heads", fixed.heads)?,
        mlp: super::mlp_width(&params, width)?,
        patch: params.dim_or("patch_size", fixed.patch)?,
        image_size: params.side_or("image_size", 336)?,
        layer_norm_eps: fixed.layer_norm_eps,
        // As in the code: only both together.
        pixel_norm: params
            .find_rgb("pixel_mean")?
            .zip(params.find_rgb("pixel_std")?)
            .map(|(mean, std)| (narrow(mean), narrow(std))),
    })
}

/// MlpProjector (projector.py).
fn projector(section: &Section<'_>) -> Result<ProjectorSpec> {
    section.require_text("cls", "MlpProjector")?;
    let params = section.section("params")?;
    params.require_text("projector_type", "mlp_gelu")?;
    Ok(ProjectorSpec { depth: params.dim_or("depth", 1)?, input: params.dim("input_dim")?, hidden: params.dim("n_embed")? })
}

/// vision_head (modeling_vlm.py).
fn image_head(section: &Section<'_>, hidden: usize) -> Result<ImageHeadSpec> {
    section.require_text("cls", "vision_head")?;
    let params = section.section("params")?;
    if params.dim("n_embed")? != hidden {
        return Err(params.bad("n_embed", &format!("hidden_size {hidden}")));
    }
    Ok(ImageHeadSpec { embed: params.dim("image_token_embed")?, vocab: params.dim("image_token_size")? })
}

/// VQ-16 (vq_model.py). The generation embedding has the codebook's shape.
fn vq(section: &Section<'_>, image_size: usize) -> Result<VqSpec> {
    section.require_text("cls", "VQ-16")?;
    let params = section.section("params")?;
    params.refuse_unless(&[
        ("codebook_l2_norm", Neutral::On),
        ("double_latent", Neutral::Off),
        ("double_z", Neutral::Off),
        ("attn_resolutions", Neutral::Off),
        ("use_attn", Neutral::On),
        ("attn_type", Neutral::Text(&["vanilla"])),
        ("norm_type", Neutral::Text(&["group"])),
        ("resamp_with_conv", Neutral::On),
        ("in_channels", Neutral::Number(3.0)),
        ("out_channels", Neutral::Number(3.0)),
    ])?;
    let fixed = VqSpec::vq16();
    let multipliers = params.find_dims("ch_mult")?;
    let multipliers = multipliers.or(params.find_dims("encoder_ch_mult")?).unwrap_or(fixed.multipliers);
    for key in ["encoder_ch_mult", "decoder_ch_mult"] {
        if params.find_dims(key)?.is_some_and(|own| own != multipliers) {
            return Err(params.unsupported(key, "the same levels in encoder and decoder"));
        }
    }
    let (codebook, embed_dim) = (params.dim("image_token_size")?, params.dim("n_embed")?);
    for (key, value) in [("codebook_size", codebook), ("codebook_embed_dim", embed_dim)] {
        if params.dim_or(key, value)? != value {
            return Err(params.bad(key, &value.to_string()));
        }
    }
    let grid = super::codes_per_side(image_size, multipliers.len());
    Ok(VqSpec {
        channels: params.dim_or("ch", fixed.channels)?,
        multipliers,
        res_blocks: params.dim_or("num_res_blocks", fixed.res_blocks)?,
        latent: params.dim_or("z_channels", fixed.latent)?,
        embed_dim,
        codebook,
        image_size,
        grid,
    })
}

fn narrow(rgb: [f64; 3]) -> [f32; 3] {
    rgb.map(|v| v as f32)
}
