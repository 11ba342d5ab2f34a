//! The numbers of a model, whatever layout they were written in.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{Files, Result, config};

/// Which program's files these are. Tensor names, some defaults and the image sizing rule depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// deepseek-ai's own: `model_type` is `multi_modality`.
    Original,
    /// The transformers port: `model_type` is `janus`, as written by transformers 4.x or 5.x.
    Transformers,
}

/// The type the weights are said to be stored in; the weight files decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredDtype {
    /// `float32`, also where nothing is said.
    F32,
    /// `float16`.
    F16,
    /// `bfloat16`.
    BF16,
}

/// Everything a checkpoint's configuration says that matters to inference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelSpec {
    /// Whose files these are.
    pub layout: Layout,
    /// The language model.
    pub llm: LlamaSpec,
    /// The tower that looks at pictures.
    pub vision: SiglipSpec,
    /// From vision features to the language model's width.
    pub aligner: ProjectorSpec,
    /// From generation embeddings (one per code) to the language model's width.
    pub gen_aligner: ProjectorSpec,
    /// From the last hidden state to logits over the codebook.
    pub gen_head: ImageHeadSpec,
    /// The tokeniser of pictures.
    pub vq: VqSpec,
    /// How a picture is prepared for the vision tower.
    pub preprocess: PreprocessSpec,
    /// Sampling defaults.
    pub generation: GenerationDefaults,
    /// The declared type of the weights; informative.
    pub dtype: StoredDtype,
    /// Whether the text head may be taken from the embedding. It says nothing if the file has its own `lm_head.weight`:
    /// transformers 5 sets it by default and Janus' heads are not tied.
    pub tie_word_embeddings: bool,
    /// Id of the image placeholder (`image_token_id`), checked against the tokeniser; only the transformers layout has it.
    pub image_token_id: Option<u32>,
    /// Whether a chat starts with [`crate::DEFAULT_SYSTEM_PROMPT`] (`use_default_system_prompt` of processor_config.json).
    pub system_prompt: bool,
}

/// A Llama language model: pre-norm blocks, rotary positions without scaling, SiLU gate, no biases.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LlamaSpec {
    /// Width of the residual stream (`hidden_size`).
    pub hidden: usize,
    /// Blocks (`num_hidden_layers`).
    pub layers: usize,
    /// Query heads (`num_attention_heads`).
    pub heads: usize,
    /// Key and value heads (`num_key_value_heads`); divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Width of the MLP (`intermediate_size`).
    pub intermediate: usize,
    /// Rows of embedding and text head; at least the tokeniser's vocabulary.
    pub vocab: usize,
    /// Longest sequence in positions (`max_position_embeddings`).
    pub max_positions: usize,
    /// Epsilon of RMSNorm.
    pub rms_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
}

/// The SigLIP vision transformer: pre-norm blocks with biases, exact GELU, learned positions, final LayerNorm applied.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SiglipSpec {
    /// Width of the residual stream.
    pub width: usize,
    /// Blocks; all of them are used.
    pub layers: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
    /// Width of the MLP.
    pub mlp: usize,
    /// Side of a patch in pixels; divides `image_size`.
    pub patch: usize,
    /// Side of the square picture in pixels.
    pub image_size: usize,
    /// Epsilon of LayerNorm.
    pub layer_norm_eps: f32,
    /// Mean and deviation of a second normalisation inside the tower (`pixel_mean`, `pixel_std` of the original layout).
    pub pixel_norm: Option<([f32; 3], [f32; 3])>,
}

/// A stack of linear layers with biases and exact GELU between them (`mlp_gelu`).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProjectorSpec {
    /// Number of linear layers.
    pub depth: usize,
    /// Width in.
    pub input: usize,
    /// Width out, and of everything between.
    pub hidden: usize,
}

/// The head over image codes: linear, exact GELU, linear, with biases.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageHeadSpec {
    /// Width between the two layers (`image_token_embed`).
    pub embed: usize,
    /// Number of codes.
    pub vocab: usize,
}

/// The VQ-16 autoencoder: residual blocks, GroupNorm(32, 1e-6), swish, attention at the lowest resolution only.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VqSpec {
    /// Channels at full resolution (`ch`, `base_channels`).
    pub channels: usize,
    /// Channels per level as multiples of `channels`, full resolution first; every level but the last halves the side.
    pub multipliers: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub res_blocks: usize,
    /// Channels at the bottom, before `quant_conv` (`z_channels`, `latent_channels`).
    pub latent: usize,
    /// Width of a code.
    pub embed_dim: usize,
    /// Number of codes, at most 65,536.
    pub codebook: usize,
    /// Side of the square picture in pixels.
    pub image_size: usize,
    /// Side of the square of codes.
    pub grid: usize,
}

/// How the shorter side of a resized picture is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SizeRule {
    /// `int(short / long * size)`: the original code (image_processing_vlm.py).
    Truncate,
    /// `round(short * (size / long))`, half to even: transformers (image_processing_janus.py).
    HalfEven,
}

/// How a picture becomes pixel values: longer side to `image_size` (bicubic, antialiased), shorter side in proportion but
/// at least `min_size`, padded to a centred square, scaled, normalised.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PreprocessSpec {
    /// Side of the result in pixels.
    pub image_size: usize,
    /// Least length of the shorter side in pixels.
    pub min_size: usize,
    /// Colour of the padding: `int(mean * 255)`, as both programs compute it (the key in the file is ignored by both).
    pub background: [u8; 3],
    /// Subtracted after scaling, if `do_normalize`.
    pub mean: [f32; 3],
    /// Divided by after that, if `do_normalize`.
    pub std: [f32; 3],
    /// Whether mean and deviation are applied. Early copies of Janus-1.3B say false.
    pub do_normalize: bool,
    /// From bytes to 0..1; 1/255.
    pub rescale_factor: f64,
    /// How the shorter side is rounded.
    pub rounding: SizeRule,
}

/// What is used where the caller says nothing: generation_config.json, else the original code's values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerationDefaults {
    /// Guidance weight of pictures (`guidance_scale`); 5 if unsaid.
    pub cfg_weight: f32,
    /// Temperature of pictures; 1 if unsaid, 0 (always the best code) if the file says `do_sample: false`.
    pub temperature: f32,
    /// Codes considered; only if the file says so (transformers' implicit 50 is not applied).
    pub top_k: Option<usize>,
    /// Probability mass considered; only if the file says so.
    pub top_p: Option<f32>,
    /// Temperature of text; 0, as in both references.
    pub text_temperature: f32,
    /// Longest answer in tokens (`max_new_tokens`); 512 if unsaid.
    pub text_max_tokens: usize,
    /// Pad id by generation_config.json. transformers fills the unconditional prompt with it, so in its layout it
    /// outranks the tokeniser's.
    pub pad_token_id: Option<u32>,
}

impl SiglipSpec {
    /// Patches along one side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch
    }

    /// Patches of a picture: positions it takes in a prompt.
    pub fn tokens(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }
}

impl VqSpec {
    /// Picture pixels along one side of a code: 16 for VQ-16.
    pub fn factor(&self) -> usize {
        1 << (self.multipliers.len() - 1)
    }

    /// Codes of one picture.
    pub fn tokens(&self) -> usize {
        self.grid * self.grid
    }
}

impl ModelSpec {
    /// Reads and checks `config.json`, `preprocessor_config.json`, `processor_config.json` and `generation_config.json`.
    ///
    /// # Errors
    /// A file is missing or broken, a number is impossible, or something is asked for that is not implemented; the
    /// message names file, key and value.
    pub fn load(files: &Files) -> Result<ModelSpec> {
        config::load(files)
    }

    /// Codes of one picture, and positions of one picture in a prompt: 576 for the published models.
    pub fn image_tokens(&self) -> usize {
        self.vision.tokens()
    }

    /// SHA-256 over everything that decides bits (not the layout's name, sampling defaults or declared type).
    pub fn fingerprint(&self) -> [u8; 32] {
        let maths = (&self.llm, &self.vision, &self.aligner, &self.gen_aligner, &self.gen_head, &self.vq, &self.preprocess);
        // Plain numbers, lists and unit variants always serialise.
        Sha256::digest(serde_json::to_vec(&maths).unwrap_or_default()).into()
    }
}
