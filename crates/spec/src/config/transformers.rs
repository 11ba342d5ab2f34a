//! The transformers layout (`model_type` `janus`): configuration_janus.py of 4.x and 5.x.

use super::{Rest, llama};
use crate::json::{Neutral, Section};
use crate::{ImageHeadSpec, Layout, LlamaSpec, ModelSpec, ProjectorSpec, Result, SiglipSpec, VqSpec};

pub(super) fn build(config: &Section<'_>, rest: Rest) -> Result<ModelSpec> {
    let text = config.section("text_config")?;
    let eyes = config.section("vision_config")?;
    let hands = config.section("vq_config")?;
    let llm = llama::read(&text)?;
    let vision = vision(&eyes)?;
    let vq = vq(&hands, vision.image_size)?;
    let gen_hidden = hands.dim_or("projection_dim", 2048)?;
    // 4.x and the conversion script write `depth`, 5.x reads `num_hidden_layers`.
    let gen_depth = hands.dim_or("num_hidden_layers", hands.dim_or("depth", 2)?)?;
    if hands.dim_or("depth", gen_depth)? != gen_depth {
        return Err(hands.bad("depth", &format!("num_hidden_layers {gen_depth}")));
    }
    let image_token_id = match config.find_id("image_token_id")? {
        Some(id) => Some(id),
        None => config.find_id("image_token_index")?,
    };
    // The class ties by default; see the field for why that is harmless.
    let tied = [config.find_flag("tie_word_embeddings")?, text.find_flag("tie_word_embeddings")?];
    Ok(ModelSpec {
        layout: Layout::Transformers,
        aligner: ProjectorSpec {
            depth: eyes.dim_or("depth", 2)?,
            input: vision.width,
            hidden: eyes.dim_or("projection_dim", 2048)?,
        },
        gen_aligner: ProjectorSpec { depth: gen_depth, input: vq.embed_dim, hidden: gen_hidden },
        gen_head: image_head(&hands, &llm, gen_hidden, vq.codebook)?,
        llm,
        vision,
        vq,
        preprocess: rest.preprocess,
        generation: rest.generation,
        dtype: rest.dtype,
        tie_word_embeddings: tied[0].or(tied[1]).unwrap_or(true),
        image_token_id,
        system_prompt: rest.system_prompt,
    })
}

fn vision(section: &Section<'_>) -> Result<SiglipSpec> {
    section.refuse_unless(&[
        ("model_type", Neutral::Text(&["janus_vision_model"])),
        ("hidden_act", Neutral::Text(&["gelu"])),
        ("attention_bias", Neutral::On),
        ("use_qk_norm", Neutral::Off),
        ("num_channels", Neutral::Number(3.0)),
    ])?;
    let fixed = SiglipSpec::large();
    let width = section.dim_or("hidden_size", fixed.width)?;
    let vision = SiglipSpec {
        width,
        layers: section.dim_or("num_hidden_layers", fixed.layers)?,
        heads: section.dim_or("num_attention_heads", fixed.heads)?,
        mlp: super::mlp_width(section, width)?,
        patch: section.side_or("patch_size", fixed.patch)?,
        image_size: section.side_or("image_size", fixed.image_size)?,
        layer_norm_eps: section.number_or("layer_norm_eps", 1e-6)? as f32,
        pixel_norm: None,
    };
    // Pictures are painted with this many codes (modeling_janus.py), so it cannot differ.
    let tokens = vision.tokens();
    if section.dim_or("num_image_tokens", 576)? != tokens {
        return Err(section.bad("num_image_tokens", &format!("{tokens}, from image_size and patch_size")));
    }
    Ok(vision)
}

/// JanusVQVAEHead: its inner width is `projection_dim`, and it reads the hidden state.
fn image_head(section: &Section<'_>, llm: &LlamaSpec, embed: usize, vocab: usize) -> Result<ImageHeadSpec> {
    if section.dim_or("image_token_embed_dim", 2048)? != llm.hidden {
        return Err(section.bad("image_token_embed_dim", &format!("hidden_size {}", llm.hidden)));
    }
    Ok(ImageHeadSpec { embed, vocab })
}

/// `num_patches` in the file is ignored, as transformers does: it is the vision tower's.
fn vq(section: &Section<'_>, image_size: usize) -> Result<VqSpec> {
    section.refuse_unless(&[
        ("model_type", Neutral::Text(&["janus_vqgan", "janus_vqvae"])),
        ("hidden_act", Neutral::Text(&["gelu"])),
        ("double_latent", Neutral::Off),
        ("in_channels", Neutral::Number(3.0)),
        ("out_channels", Neutral::Number(3.0)),
        ("attn_resolutions", Neutral::Off),
        ("attn_type", Neutral::Text(&["vanilla"])),
    ])?;
    let fixed = VqSpec::vq16();
    let multipliers = section.find_dims("channel_multiplier")?.unwrap_or(fixed.multipliers);
    Ok(VqSpec {
        channels: section.dim_or("base_channels", fixed.channels)?,
        res_blocks: section.dim_or("num_res_blocks", fixed.res_blocks)?,
        latent: section.dim_or("latent_channels", fixed.latent)?,
        embed_dim: section.dim_or("embed_dim", fixed.embed_dim)?,
        codebook: section.dim_or("num_embeddings", fixed.codebook)?,
        grid: super::codes_per_side(image_size, multipliers.len()),
        multipliers,
        image_size,
    })
}
