//! What has to hold between the numbers. Each number alone was checked where it was read.

use crate::json::MAX_DIM;
use crate::{Error, ModelSpec, Result};

/// More parameters than any model this engine could hold; a lying configuration ends here, before anything is allocated.
const MAX_PARAMETERS: u64 = 1 << 40;
const MAX_LAYERS: usize = 1024;
const MAX_HEAD_DIM: usize = 1024;
const MAX_IMAGE_SIZE: usize = 4096;
const MAX_LEVELS: usize = 8;
/// Longest stack of a projector, most residual blocks of a level.
const MAX_DEPTH: usize = 32;
/// Ids are hashed and logged as 16-bit numbers.
const MAX_CODEBOOK: usize = 1 << 16;
/// Groups of every GroupNorm in the VQ model.
const GROUPS: usize = 32;

/// Keys are named as transformers names them; the original layout has the same names for the language model.
fn check(holds: bool, key: &str, value: impl ToString, expected: impl ToString) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::BadValue {
        file: "config.json".into(),
        key: key.into(),
        value: value.to_string(),
        expected: expected.to_string(),
    })
}

fn within(key: &str, value: usize, most: usize) -> Result<()> {
    check((1..=most).contains(&value), key, value, format!("a whole number from 1 to {most}"))
}

fn epsilon(key: &str, value: f32) -> Result<()> {
    check(value > 0.0 && value < 1.0, key, value, "a number between 0 and 1")
}

impl ModelSpec {
    /// Checks that the numbers fit each other and are small enough for every product of them to be computed.
    ///
    /// # Errors
    /// [`Error::BadValue`] with the first number that does not fit.
    pub fn validate(&self) -> Result<()> {
        self.check_llm()?;
        self.check_vision()?;
        self.check_vq()?;
        self.check_joints()?;
        let parameters = self.parameters();
        check(parameters <= MAX_PARAMETERS, "number of parameters", parameters, format!("at most {MAX_PARAMETERS}"))
    }

    fn check_llm(&self) -> Result<()> {
        let llm = &self.llm;
        within("hidden_size", llm.hidden, MAX_DIM)?;
        within("intermediate_size", llm.intermediate, MAX_DIM)?;
        within("vocab_size", llm.vocab, MAX_DIM)?;
        within("max_position_embeddings", llm.max_positions, MAX_DIM)?;
        within("num_hidden_layers", llm.layers, MAX_LAYERS)?;
        within("num_attention_heads", llm.heads, MAX_DIM)?;
        within("num_key_value_heads", llm.kv_heads, llm.heads)?;
        check(
            llm.hidden.is_multiple_of(llm.heads),
            "num_attention_heads",
            llm.heads,
            format!("a divisor of hidden_size {}", llm.hidden),
        )?;
        let heads = llm.heads;
        check(
            heads.is_multiple_of(llm.kv_heads),
            "num_key_value_heads",
            llm.kv_heads,
            format!("a divisor of num_attention_heads {heads}"),
        )?;
        let expected = format!("an even number up to {MAX_HEAD_DIM}");
        check(
            (2..=MAX_HEAD_DIM).contains(&llm.head_dim) && llm.head_dim.is_multiple_of(2),
            "head_dim",
            llm.head_dim,
            expected,
        )?;
        within("num_attention_heads * head_dim", llm.heads * llm.head_dim, MAX_DIM)?;
        epsilon("rms_norm_eps", llm.rms_eps)?;
        check(llm.rope_theta.is_finite() && llm.rope_theta > 0.0, "rope_theta", llm.rope_theta, "a positive number")
    }

    fn check_vision(&self) -> Result<()> {
        let vision = &self.vision;
        within("vision width", vision.width, MAX_DIM)?;
        within("vision layers", vision.layers, MAX_LAYERS)?;
        within("vision heads", vision.heads, MAX_DIM)?;
        within("vision MLP width", vision.mlp, MAX_DIM)?;
        within("patch_size", vision.patch, MAX_IMAGE_SIZE)?;
        within("image_size", vision.image_size, MAX_IMAGE_SIZE)?;
        check(
            vision.width.is_multiple_of(vision.heads),
            "vision heads",
            vision.heads,
            format!("a divisor of the width {}", vision.width),
        )?;
        let size = vision.image_size;
        check(size.is_multiple_of(vision.patch), "image_size", size, format!("a multiple of patch_size {}", vision.patch))?;
        epsilon("layer_norm_eps", vision.layer_norm_eps)?;
        let deviation_holds = vision.pixel_norm.is_none_or(|(mean, std)| spreads(&mean, &std));
        check(deviation_holds, "pixel_std", format!("{:?}", vision.pixel_norm), "three numbers above 0")
    }

    fn check_vq(&self) -> Result<()> {
        let vq = &self.vq;
        within("VQ levels", vq.multipliers.len(), MAX_LEVELS)?;
        within("num_res_blocks", vq.res_blocks, MAX_DEPTH)?;
        within("VQ channels", vq.channels, MAX_DIM)?;
        within("VQ latent channels", vq.latent, MAX_DIM)?;
        within("VQ embed_dim", vq.embed_dim, MAX_DIM)?;
        within("codebook size", vq.codebook, MAX_CODEBOOK)?;
        let groups = format!("a multiple of {GROUPS}");
        check(vq.channels.is_multiple_of(GROUPS), "VQ channels", vq.channels, &groups)?;
        for multiplier in &vq.multipliers {
            within("VQ channel multiplier", *multiplier, MAX_DIM)?;
            within("VQ channels of a level", vq.channels * multiplier, MAX_DIM)?;
        }
        within("VQ image size", vq.image_size, MAX_IMAGE_SIZE)?;
        let factor = vq.factor();
        check(
            vq.grid > 0 && vq.grid * factor == vq.image_size,
            "VQ image size",
            vq.image_size,
            format!("{} codes of {factor} pixels", vq.grid),
        )
    }

    /// The joints between the parts: widths that meet, and one grid for eyes and hands.
    fn check_joints(&self) -> Result<()> {
        let (llm, vision, vq) = (&self.llm, &self.vision, &self.vq);
        for (name, aligner) in [("aligner", &self.aligner), ("generation aligner", &self.gen_aligner)] {
            within(&format!("{name} depth"), aligner.depth, MAX_DEPTH)?;
            let expected = format!("hidden_size {}", llm.hidden);
            check(aligner.hidden == llm.hidden, &format!("{name} output width"), aligner.hidden, expected)?;
        }
        check(
            self.aligner.input == vision.width,
            "aligner input width",
            self.aligner.input,
            format!("the vision width {}", vision.width),
        )?;
        let input = self.gen_aligner.input;
        check(
            input == vq.embed_dim,
            "generation aligner input width",
            input,
            format!("the width of a code, {}", vq.embed_dim),
        )?;
        within("image head width", self.gen_head.embed, MAX_DIM)?;
        check(
            self.gen_head.vocab == vq.codebook,
            "image head size",
            self.gen_head.vocab,
            format!("the codebook size {}", vq.codebook),
        )?;
        // A picture is painted with as many codes as the tower has patches.
        let patches = format!("the vision tower's {0}x{0} patches", vision.grid());
        check(vq.grid == vision.grid(), "VQ grid", format!("{0}x{0}", vq.grid), patches)?;
        let size = vision.image_size;
        check(vq.image_size == size, "VQ image size", vq.image_size, format!("image_size {size}"))?;
        let pixels = &self.preprocess;
        check(pixels.image_size == size, "preprocessor image_size", pixels.image_size, format!("image_size {size}"))?;
        within("preprocessor min_size", pixels.min_size, size)?;
        check(
            spreads(&pixels.mean, &pixels.std),
            "preprocessor image_std",
            format!("{:?}", pixels.std),
            "three numbers above 0",
        )?;
        let scale = pixels.rescale_factor;
        check(scale.is_finite() && scale > 0.0, "preprocessor rescale_factor", scale, "a positive number")?;
        // BOS, image start, the picture.
        let least = self.image_tokens() + 2;
        check(
            llm.max_positions >= least,
            "max_position_embeddings",
            llm.max_positions,
            format!("at least {least}, for one picture"),
        )
    }
}

fn spreads(mean: &[f32; 3], std: &[f32; 3]) -> bool {
    mean.iter().all(|m| m.is_finite()) && std.iter().all(|s| s.is_finite() && *s > 0.0)
}
