//! Every tensor that inference uses, with its canonical name and the shape config.json implies: the one list
//! behind the completeness check, the digests, `janus inspect` and the byte counts per part.

use janus_spec::{ModelSpec, VqSpec};

/// The part of the model a tensor belongs to; parts are what nodes load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Token embeddings, generation embeddings and the generation aligner: the first stage.
    Embeddings,
    /// One transformer layer of the LLM.
    Layer(usize),
    /// Final norm, text head and image head: the last stage.
    Heads,
    /// SigLIP tower and understanding aligner.
    Vision,
    /// VQ encoder with `quant_conv`.
    VqEncoder,
    /// The codebook, shared by VQ encoder and decoder.
    Codebook,
    /// VQ decoder with `post_quant_conv`.
    VqDecoder,
}

/// A tensor the architecture needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDecl {
    /// Name in the transformers layout.
    pub name: String,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Who loads it.
    pub part: Part,
}

struct List(Vec<TensorDecl>);

impl List {
    fn add(&mut self, part: Part, name: impl Into<String>, shape: &[usize]) {
        self.0.push(TensorDecl { name: name.into(), shape: shape.to_vec(), part });
    }

    fn affine(&mut self, part: Part, name: &str, shape: &[usize]) {
        self.add(part, format!("{name}.weight"), shape);
        self.add(part, format!("{name}.bias"), &shape[..1]);
    }

    fn projector(&mut self, part: Part, name: &str, depth: usize, input: usize, hidden: usize) {
        self.affine(part, &format!("{name}.fc1"), &[hidden, input]);
        for i in 0..depth.saturating_sub(1) {
            self.affine(part, &format!("{name}.hidden_layers.{i}"), &[hidden, hidden]);
        }
    }

    fn res_block(&mut self, part: Part, name: &str, input: usize, output: usize) {
        self.affine(part, &format!("{name}.norm1"), &[input]);
        self.affine(part, &format!("{name}.conv1"), &[output, input, 3, 3]);
        self.affine(part, &format!("{name}.norm2"), &[output]);
        self.affine(part, &format!("{name}.conv2"), &[output, output, 3, 3]);
        if input != output {
            self.affine(part, &format!("{name}.nin_shortcut"), &[output, input, 1, 1]);
        }
    }

    fn attention(&mut self, part: Part, name: &str, channels: usize) {
        self.affine(part, &format!("{name}.norm"), &[channels]);
        for side in ["q", "k", "v", "proj_out"] {
            self.affine(part, &format!("{name}.{side}"), &[channels, channels, 1, 1]);
        }
    }

    fn middle(&mut self, part: Part, name: &str, channels: usize) {
        self.res_block(part, &format!("{name}.mid.block_1"), channels, channels);
        self.attention(part, &format!("{name}.mid.attn_1"), channels);
        self.res_block(part, &format!("{name}.mid.block_2"), channels, channels);
    }

    fn vq_encoder(&mut self, vq: &VqSpec) {
        let (part, root) = (Part::VqEncoder, "model.vqmodel.encoder");
        self.affine(part, &format!("{root}.conv_in"), &[vq.channels, 3, 3, 3]);
        let mut channels = vq.channels;
        let levels = vq.multipliers.len();
        for (level, multiplier) in vq.multipliers.iter().enumerate() {
            let output = vq.channels * multiplier;
            for block in 0..vq.res_blocks {
                self.res_block(part, &format!("{root}.down.{level}.block.{block}"), channels, output);
                channels = output;
                if level + 1 == levels {
                    self.attention(part, &format!("{root}.down.{level}.attn.{block}"), channels);
                }
            }
            if level + 1 != levels {
                self.affine(part, &format!("{root}.down.{level}.downsample.conv"), &[channels, channels, 3, 3]);
            }
        }
        self.middle(part, root, channels);
        self.affine(part, &format!("{root}.norm_out"), &[channels]);
        self.affine(part, &format!("{root}.conv_out"), &[vq.latent, channels, 3, 3]);
        self.affine(part, "model.vqmodel.quant_conv", &[vq.embed_dim, vq.latent, 1, 1]);
    }

    fn vq_decoder(&mut self, vq: &VqSpec) {
        let (part, root) = (Part::VqDecoder, "model.vqmodel.decoder");
        self.affine(part, "model.vqmodel.post_quant_conv", &[vq.latent, vq.embed_dim, 1, 1]);
        let levels = vq.multipliers.len();
        let mut channels = vq.channels * vq.multipliers.last().copied().unwrap_or(1);
        self.affine(part, &format!("{root}.conv_in"), &[channels, vq.latent, 3, 3]);
        self.middle(part, root, channels);
        // Levels are stored from the lowest resolution up.
        for (up, multiplier) in vq.multipliers.iter().rev().enumerate() {
            let output = vq.channels * multiplier;
            for block in 0..vq.res_blocks + 1 {
                self.res_block(part, &format!("{root}.up.{up}.block.{block}"), channels, output);
                channels = output;
                if up == 0 {
                    self.attention(part, &format!("{root}.up.{up}.attn.{block}"), channels);
                }
            }
            if up + 1 != levels {
                self.affine(part, &format!("{root}.up.{up}.upsample.conv"), &[channels, channels, 3, 3]);
            }
        }
        self.affine(part, &format!("{root}.norm_out"), &[channels]);
        self.affine(part, &format!("{root}.conv_out"), &[3, channels, 3, 3]);
    }
}

/// All tensors of the model, in a fixed order.
pub fn inventory(spec: &ModelSpec) -> Vec<TensorDecl> {
    let mut list = List(Vec::new());
    let (llm, vision, vq) = (&spec.llm, &spec.vision, &spec.vq);
    let hidden = llm.hidden;

    list.add(Part::Embeddings, "model.language_model.embed_tokens.weight", &[llm.vocab, hidden]);
    list.add(Part::Embeddings, "model.generation_embeddings.weight", &[spec.gen_head.vocab, spec.gen_aligner.input]);
    let gen_aligner = &spec.gen_aligner;
    list.projector(Part::Embeddings, "model.generation_aligner", gen_aligner.depth, gen_aligner.input, gen_aligner.hidden);

    let (queries, keys) = (llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim);
    for i in 0..llm.layers {
        let part = Part::Layer(i);
        let name = |tail: &str| format!("model.language_model.layers.{i}.{tail}.weight");
        list.add(part, name("input_layernorm"), &[hidden]);
        list.add(part, name("self_attn.q_proj"), &[queries, hidden]);
        list.add(part, name("self_attn.k_proj"), &[keys, hidden]);
        list.add(part, name("self_attn.v_proj"), &[keys, hidden]);
        list.add(part, name("self_attn.o_proj"), &[hidden, queries]);
        list.add(part, name("post_attention_layernorm"), &[hidden]);
        list.add(part, name("mlp.gate_proj"), &[llm.intermediate, hidden]);
        list.add(part, name("mlp.up_proj"), &[llm.intermediate, hidden]);
        list.add(part, name("mlp.down_proj"), &[hidden, llm.intermediate]);
    }

    list.add(Part::Heads, "model.language_model.norm.weight", &[hidden]);
    list.add(Part::Heads, "lm_head.weight", &[llm.vocab, hidden]);
    list.affine(Part::Heads, "model.generation_head.proj_out", &[spec.gen_head.embed, hidden]);
    list.affine(Part::Heads, "model.generation_head.vision_head", &[spec.gen_head.vocab, spec.gen_head.embed]);

    let root = "model.vision_model";
    let patch = vision.patch;
    list.affine(Part::Vision, &format!("{root}.embeddings.patch_embedding"), &[vision.width, 3, patch, patch]);
    list.add(Part::Vision, format!("{root}.embeddings.position_embedding.weight"), &[vision.tokens(), vision.width]);
    for i in 0..vision.layers {
        let name = |tail: &str| format!("{root}.encoder.layers.{i}.{tail}");
        list.affine(Part::Vision, &name("layer_norm1"), &[vision.width]);
        for side in ["q_proj", "k_proj", "v_proj", "projection_layer"] {
            list.affine(Part::Vision, &name(&format!("self_attn.{side}")), &[vision.width, vision.width]);
        }
        list.affine(Part::Vision, &name("layer_norm2"), &[vision.width]);
        list.affine(Part::Vision, &name("mlp.fc1"), &[vision.mlp, vision.width]);
        list.affine(Part::Vision, &name("mlp.fc2"), &[vision.width, vision.mlp]);
    }
    list.affine(Part::Vision, &format!("{root}.post_layernorm"), &[vision.width]);
    list.projector(Part::Vision, "model.aligner", spec.aligner.depth, spec.aligner.input, spec.aligner.hidden);

    list.vq_encoder(vq);
    list.add(Part::Codebook, "model.vqmodel.quantize.embedding.weight", &[vq.codebook, vq.embed_dim]);
    list.vq_decoder(vq);
    list.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_parameters_of_the_published_models() {
        for (spec, expected) in
            [(ModelSpec::janus_pro_1b(), 2_076_636_811_usize), (ModelSpec::janus_pro_7b(), 7_407_773_323)]
        {
            let total: usize = inventory(&spec).iter().map(|t| t.shape.iter().product::<usize>()).sum();
            assert_eq!(total, expected);
        }
    }
}
