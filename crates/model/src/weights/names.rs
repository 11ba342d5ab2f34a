//! Tensor names. The engine asks for tensors by their name in the transformers layout; this file says where
//! the same numbers live in a deepseek-ai original (source: the mapping of transformers'
//! `convert_janus_weights_to_hf.py`).

use janus_spec::{Layout, ModelSpec};

/// Where a canonical tensor is found in a file: a name, and which of how many equal parts along dimension 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) name: String,
    /// `(part, parts)`: the original fuses q, k and v of the vision tower into one tensor.
    pub(crate) part: Option<(usize, usize)>,
}

/// Candidates, best first, for the canonical `name` in files of `spec`. The text head is the embedding only where the
/// files really lack it and may: both layouts ship it untied.
pub(crate) fn candidates(spec: &ModelSpec, name: &str) -> Vec<Location> {
    let mut found = locate(spec.layout, name);
    if name == "lm_head.weight" && spec.tie_word_embeddings {
        found.extend(locate(spec.layout, "model.language_model.embed_tokens.weight"));
    }
    found
}

/// Candidates, best first, for the canonical (transformers) `name` in `layout`.
pub(crate) fn locate(layout: Layout, name: &str) -> Vec<Location> {
    let whole = |name: String| Location { name, part: None };
    match layout {
        // Files from before transformers 4.52 carry no `model.` prefix.
        Layout::Transformers => match name.strip_prefix("model.") {
            Some(short) => vec![whole(name.to_owned()), whole(short.to_owned())],
            None => vec![whole(name.to_owned())],
        },
        Layout::Original => vec![original(name)],
    }
}

fn original(name: &str) -> Location {
    let whole = |name: String| Location { name, part: None };
    if name == "lm_head.weight" {
        return whole("language_model.lm_head.weight".to_owned());
    }
    let Some(inner) = name.strip_prefix("model.") else {
        return whole(name.to_owned());
    };
    if let Some(rest) = inner.strip_prefix("language_model.") {
        return whole(format!("language_model.model.{rest}"));
    }
    if let Some(rest) = inner.strip_prefix("vision_model.") {
        return vision(rest);
    }
    if let Some(rest) = inner.strip_prefix("vqmodel.") {
        return whole(format!("gen_vision_model.{}", vq(rest)));
    }
    let (module, rest) = inner.split_once('.').unwrap_or((inner, ""));
    match module {
        "aligner" => whole(format!("aligner.{}", projector(rest))),
        "generation_aligner" => whole(format!("gen_aligner.{}", projector(rest))),
        "generation_embeddings" => whole(format!("gen_embed.{rest}")),
        "generation_head" => whole(format!("gen_head.{}", rest.replace("proj_out", "output_mlp_projector"))),
        _ => whole(name.to_owned()),
    }
}

/// `fc1` is layer 0 of the original's Sequential; hidden layer i is layer 2 (i + 1), after the GELU between.
fn projector(rest: &str) -> String {
    if let Some(kind) = rest.strip_prefix("fc1.") {
        return format!("layers.0.{kind}");
    }
    let hidden = rest.strip_prefix("hidden_layers.").and_then(|r| r.split_once('.'));
    match hidden.and_then(|(i, kind)| i.parse::<usize>().ok().map(|i| (i, kind))) {
        Some((i, kind)) => format!("layers.{}.{kind}", 2 * (i + 1)),
        None => rest.to_owned(),
    }
}

fn vision(rest: &str) -> Location {
    const TOWER: &str = "vision_model.vision_tower";
    let whole = |tail: String| Location { name: format!("{TOWER}.{tail}"), part: None };
    if let Some(kind) = rest.strip_prefix("embeddings.patch_embedding.") {
        return whole(format!("patch_embed.proj.{kind}"));
    }
    if rest == "embeddings.position_embedding.weight" {
        return whole("pos_embed".to_owned());
    }
    if let Some(kind) = rest.strip_prefix("post_layernorm.") {
        return whole(format!("norm.{kind}"));
    }
    let Some((layer, tail)) = rest.strip_prefix("encoder.layers.").and_then(|r| r.split_once('.')) else {
        return whole(rest.to_owned());
    };
    for (part, side) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
        if let Some(kind) = tail.strip_prefix("self_attn.").and_then(|t| t.strip_prefix(side)) {
            return Location { name: format!("{TOWER}.blocks.{layer}.attn.qkv{kind}"), part: Some((part, 3)) };
        }
    }
    let tail = tail
        .replace("self_attn.projection_layer", "attn.proj")
        .replace("layer_norm1", "norm1")
        .replace("layer_norm2", "norm2");
    whole(format!("blocks.{layer}.{tail}"))
}

fn vq(rest: &str) -> String {
    rest.replace("encoder.down.", "encoder.conv_blocks.")
        .replace("decoder.up.", "decoder.conv_blocks.")
        .replace(".block.", ".res.")
        .replace("mid.block_1.", "mid.0.")
        .replace("mid.attn_1.", "mid.1.")
        .replace("mid.block_2.", "mid.2.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(name: &str) -> String {
        original(name).name
    }

    #[test]
    fn names_of_the_original_layout() {
        for (canonical, expected) in [
            ("lm_head.weight", "language_model.lm_head.weight"),
            ("model.language_model.layers.3.mlp.up_proj.weight", "language_model.model.layers.3.mlp.up_proj.weight"),
            ("model.language_model.norm.weight", "language_model.model.norm.weight"),
            ("model.aligner.fc1.bias", "aligner.layers.0.bias"),
            ("model.generation_aligner.hidden_layers.0.weight", "gen_aligner.layers.2.weight"),
            ("model.generation_embeddings.weight", "gen_embed.weight"),
            ("model.generation_head.proj_out.weight", "gen_head.output_mlp_projector.weight"),
            ("model.generation_head.vision_head.bias", "gen_head.vision_head.bias"),
            ("model.vision_model.embeddings.patch_embedding.weight", "vision_model.vision_tower.patch_embed.proj.weight"),
            ("model.vision_model.embeddings.position_embedding.weight", "vision_model.vision_tower.pos_embed"),
            ("model.vision_model.encoder.layers.7.layer_norm1.bias", "vision_model.vision_tower.blocks.7.norm1.bias"),
            (
                "model.vision_model.encoder.layers.7.self_attn.projection_layer.weight",
                "vision_model.vision_tower.blocks.7.attn.proj.weight",
            ),
            ("model.vision_model.post_layernorm.weight", "vision_model.vision_tower.norm.weight"),
            ("model.vqmodel.decoder.up.1.block.2.conv1.weight", "gen_vision_model.decoder.conv_blocks.1.res.2.conv1.weight"),
            ("model.vqmodel.encoder.down.4.attn.0.q.bias", "gen_vision_model.encoder.conv_blocks.4.attn.0.q.bias"),
            ("model.vqmodel.decoder.mid.attn_1.proj_out.bias", "gen_vision_model.decoder.mid.1.proj_out.bias"),
            ("model.vqmodel.quantize.embedding.weight", "gen_vision_model.quantize.embedding.weight"),
        ] {
            assert_eq!(plain(canonical), expected);
        }
    }

    #[test]
    fn the_fused_qkv_is_split_in_three() {
        let k = original("model.vision_model.encoder.layers.2.self_attn.k_proj.bias");
        assert_eq!(k.name, "vision_model.vision_tower.blocks.2.attn.qkv.bias");
        assert_eq!(k.part, Some((1, 3)));
    }
}
