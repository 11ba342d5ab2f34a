//! The VQ-16 autoencoder: pictures to codebook ids and back (deepseek-ai/Janus vq_model.py).

mod decoder;
mod encoder;
mod layers;
mod palette;

pub use decoder::{VqDecoder, VqDecoderTrace};
pub use encoder::{VqEncoder, VqEncoderTrace};
pub use palette::PaletteFit;

use crate::error::{Error, Result};
use crate::weights::Checkpoint;

/// The codebook with every row l2-normalised: what both the search and the look-up use.
struct Codebook {
    rows: Vec<f32>,
    dim: usize,
}

impl Codebook {
    fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let spec = &checkpoint.spec.vq;
        let (codes, dim) = (spec.codebook, spec.embed_dim);
        let mut rows = checkpoint.f32("model.vqmodel.quantize.embedding.weight", &[codes, dim])?;
        for row in rows.chunks_exact_mut(dim) {
            row.copy_from_slice(&Self::normalise(row));
        }
        Ok(Codebook { rows, dim })
    }

    /// `x / max(|x|, 1e-12)`, torch's `F.normalize`.
    fn normalise(x: &[f32]) -> Vec<f32> {
        let norm = x.iter().fold(0.0_f32, |sum, v| v.mul_add(*v, sum)).sqrt().max(1e-12);
        x.iter().map(|v| v / norm).collect()
    }

    fn rows(&self) -> &[f32] {
        &self.rows
    }

    fn row(&self, id: u32) -> Option<&[f32]> {
        let start = (id as usize).checked_mul(self.dim)?;
        self.rows.get(start..start.checked_add(self.dim)?)
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn len(&self) -> usize {
        self.rows.len() / self.dim
    }

    fn bytes(&self) -> usize {
        4 * self.rows.len()
    }
}

fn check_pixels(pixels: &[f32], size: usize) -> Result<()> {
    match pixels.len() == 3 * size * size {
        true => Ok(()),
        false => Err(Error::Argument(format!(
            "the VQ encoder takes {size}x{size} pixels of 3 channels, not {} values",
            pixels.len()
        ))),
    }
}

/// Whether decoders use Winograd's form of the 3x3 convolutions. Part of the numerics: pixels change with it by
/// rounding, ids never.
pub const WINOGRAD: bool = true;
