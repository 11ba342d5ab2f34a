//! Drawing an id from logits: reproducible from (seed, position) alone.

use janus_kernels as kernels;

use crate::error::{Error, Result, finite};

/// How ids are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageSampling {
    /// Divides the logits; 0 takes the likeliest id, the lower one of equals.
    pub temperature: f32,
    /// Only the k likeliest ids.
    pub top_k: Option<usize>,
    /// Only the likeliest ids whose probabilities reach p.
    pub top_p: Option<f32>,
    /// Key of the counter-based generator.
    pub seed: u64,
}

impl ImageSampling {
    /// Refuses parameters that are not numbers or out of range, by name.
    pub fn check(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::Argument(text));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return refuse(format!("temperature {} must be a finite number of at least 0", self.temperature));
        }
        if self.top_k == Some(0) {
            return refuse("top-k 0 leaves nothing to sample from; leave it out for all ids".to_owned());
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => refuse(format!("top-p {p} must be above 0 and at most 1")),
            _ => Ok(()),
        }
    }
}

/// Draws the id at `position` (the index among the generated ids) from `logits`.
///
/// # Errors
/// [`Error::Diverged`] if a logit is NaN or infinite.
pub fn sample(logits: &[f32], sampling: &ImageSampling, position: u64) -> Result<u32> {
    finite("a logit", logits)?;
    let (top_k, top_p) = (sampling.top_k.unwrap_or(0), sampling.top_p.unwrap_or(1.0));
    Ok(kernels::sample(logits, sampling.temperature, top_k, top_p, sampling.seed, position))
}
