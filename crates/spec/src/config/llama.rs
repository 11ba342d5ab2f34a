//! The language model's section, which is a `LlamaConfig` in both layouts.

use crate::json::{Neutral, Section};
use crate::{LlamaSpec, Result};

/// Switches of Llama and of its relatives that would change the maths.
const RULES: &[(&str, Neutral)] = &[
    ("model_type", Neutral::Text(&["llama"])),
    ("hidden_act", Neutral::Text(&["silu", "swish"])),
    ("attention_bias", Neutral::Off),
    ("qkv_bias", Neutral::Off),
    ("mlp_bias", Neutral::Off),
    ("use_qk_norm", Neutral::Off),
    ("qk_norm", Neutral::Off),
    ("use_sliding_window", Neutral::Off),
    ("sliding_window", Neutral::Off),
    ("attention_chunk_size", Neutral::Off),
    ("pretraining_tp", Neutral::Number(1.0)),
    ("partial_rotary_factor", Neutral::Number(1.0)),
    ("attention_multiplier", Neutral::Off),
    ("attn_logit_softcapping", Neutral::Off),
    ("final_logit_softcapping", Neutral::Off),
    ("embedding_multiplier", Neutral::Number(1.0)),
    ("residual_multiplier", Neutral::Number(1.0)),
    ("logits_scaling", Neutral::Number(1.0)),
    ("logit_scale", Neutral::Number(1.0)),
    ("num_experts", Neutral::Off),
    ("num_local_experts", Neutral::Off),
    ("n_routed_experts", Neutral::Off),
    ("quantization_config", Neutral::Off),
];

/// Missing keys have the defaults of `LlamaConfig` (configuration_llama.py): Janus-Pro-7B relies on nearly all of them.
pub(super) fn read(config: &Section<'_>) -> Result<LlamaSpec> {
    config.refuse_unless(RULES)?;
    let hidden = config.dim_or("hidden_size", 4096)?;
    let heads = config.dim_or("num_attention_heads", 32)?;
    Ok(LlamaSpec {
        hidden,
        layers: config.dim_or("num_hidden_layers", 32)?,
        heads,
        kv_heads: config.dim_or("num_key_value_heads", heads)?,
        head_dim: config.dim_or("head_dim", hidden / heads)?,
        intermediate: config.dim_or("intermediate_size", 11008)?,
        vocab: config.dim_or("vocab_size", 32000)?,
        max_positions: config.dim_or("max_position_embeddings", 2048)?,
        rms_eps: config.number_or("rms_norm_eps", 1e-6)? as f32,
        rope_theta: rope_theta(config)?,
    })
}

/// The base of the rotary frequencies: a key of its own in 4.x, inside `rope_parameters` in 5.x. Scaling is refused.
fn rope_theta(config: &Section<'_>) -> Result<f64> {
    let mut theta = config.find_number("rope_theta")?;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(rope) = config.find_section(key)? else { continue };
        rope.refuse_unless(&[
            ("rope_type", Neutral::Text(&["default"])),
            ("type", Neutral::Text(&["default"])),
            ("partial_rotary_factor", Neutral::Number(1.0)),
        ])?;
        let known = ["rope_type", "type", "partial_rotary_factor", "rope_theta"];
        if let Some(other) = rope.keys().find(|k| !known.contains(k)) {
            return Err(rope.unsupported(other, "no scaling"));
        }
        let inner = rope.find_number("rope_theta")?;
        if theta.is_some() && inner.is_some() && theta != inner {
            return Err(rope.bad("rope_theta", "the same as rope_theta beside it"));
        }
        theta = theta.or(inner);
    }
    Ok(theta.unwrap_or(10000.0))
}
