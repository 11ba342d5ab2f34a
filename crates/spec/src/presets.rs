//! The published models without their files: for plans, benches and tests.

use crate::{
    GenerationDefaults, ImageHeadSpec, Layout, LlamaSpec, ModelSpec, PreprocessSpec, ProjectorSpec, SiglipSpec, SizeRule,
    StoredDtype, VqSpec,
};

impl ModelSpec {
    /// deepseek-ai/Janus-1.3B. The same dimensions as Janus-Pro-1B; its tokeniser has no role tokens.
    pub fn janus_1_3b() -> ModelSpec {
        published(small_llama())
    }

    /// deepseek-ai/Janus-Pro-1B.
    pub fn janus_pro_1b() -> ModelSpec {
        published(small_llama())
    }

    /// deepseek-ai/Janus-Pro-7B.
    pub fn janus_pro_7b() -> ModelSpec {
        published(LlamaSpec { hidden: 4096, layers: 30, heads: 32, kv_heads: 32, intermediate: 11008, ..small_llama() })
    }
}

impl SiglipSpec {
    /// `siglip_large_patch16_384` (siglip_vit.py).
    pub(crate) fn large() -> SiglipSpec {
        SiglipSpec {
            width: 1024,
            layers: 24,
            heads: 16,
            mlp: 4096,
            patch: 16,
            image_size: 384,
            layer_norm_eps: 1e-6,
            pixel_norm: None,
        }
    }
}

impl VqSpec {
    /// `VQ-16` (vq_model.py).
    pub(crate) fn vq16() -> VqSpec {
        VqSpec {
            channels: 128,
            multipliers: vec![1, 1, 2, 2, 4],
            res_blocks: 2,
            latent: 256,
            embed_dim: 8,
            codebook: 16384,
            image_size: 384,
            grid: 24,
        }
    }
}

impl GenerationDefaults {
    /// The original code's values (generation_inference.py, and the README for text).
    pub(crate) fn original() -> GenerationDefaults {
        GenerationDefaults {
            cfg_weight: 5.0,
            temperature: 1.0,
            top_k: None,
            top_p: None,
            text_temperature: 0.0,
            text_max_tokens: 512,
            pad_token_id: None,
        }
    }
}

fn small_llama() -> LlamaSpec {
    LlamaSpec {
        hidden: 2048,
        layers: 24,
        heads: 16,
        kv_heads: 16,
        head_dim: 128,
        intermediate: 5632,
        vocab: 102_400,
        max_positions: 16384,
        rms_eps: 1e-6,
        rope_theta: 10000.0,
    }
}

fn published(llm: LlamaSpec) -> ModelSpec {
    let hidden = llm.hidden;
    ModelSpec {
        layout: Layout::Original,
        llm,
        vision: SiglipSpec::large(),
        aligner: ProjectorSpec { depth: 2, input: 1024, hidden },
        gen_aligner: ProjectorSpec { depth: 2, input: 8, hidden },
        gen_head: ImageHeadSpec { embed: hidden, vocab: 16384 },
        vq: VqSpec::vq16(),
        preprocess: PreprocessSpec {
            image_size: 384,
            min_size: 14,
            background: [127; 3],
            mean: [0.5; 3],
            std: [0.5; 3],
            do_normalize: true,
            rescale_factor: 1.0 / 255.0,
            rounding: SizeRule::Truncate,
        },
        generation: GenerationDefaults::original(),
        dtype: StoredDtype::BF16,
        tie_word_embeddings: false,
        image_token_id: None,
        system_prompt: true,
    }
}
