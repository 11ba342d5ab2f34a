//! Who makes units: the seam between jobs and the request path. Tests put a toy here.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use janus_wire::v1;
use tonic::{Code, Status};

/// A picture that was painted.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Row-major RGB bytes.
    pub rgb: Bytes,
    /// SHA-256 of its ids.
    pub sha256: [u8; 32],
}

/// A question that was answered.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The whole answer.
    pub text: String,
    /// Why it ended.
    pub finish_reason: v1::FinishReason,
    /// Tokens that were read and drawn.
    pub usage: v1::Usage,
}

/// Makes units. The same request always gives the same bits; one that is dropped is given up.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Paints one picture.
    async fn paint(&self, tenant: &Arc<str>, request: v1::GenerateImageRequest) -> Result<Picture, Status>;

    /// Answers a question.
    async fn answer(&self, tenant: &Arc<str>, request: v1::ChatRequest) -> Result<Answer, Status>;
}

/// Pauses before a unit is tried again.
pub(super) const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often a unit is tried whose failure may have been an accident.
const ATTEMPTS: u32 = 5;

/// What a failure means for its unit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is tried again: the cluster is at fault.
    Again,
    /// It cannot be made.
    Failed,
}

/// Whether a unit that failed for the `attempt`th time is tried again.
pub(super) fn judge(status: &Status, attempt: u32) -> Verdict {
    match status.code() {
        // What was asked for is at fault, or the weights: the same bits would come again.
        Code::InvalidArgument | Code::OutOfRange | Code::NotFound | Code::DataLoss => Verdict::Failed,
        Code::Internal | Code::Unknown if attempt >= ATTEMPTS => Verdict::Failed,
        _ => Verdict::Again,
    }
}

/// The picture as a PNG file's bytes: the same for the same pixels.
pub(super) fn encode_png(picture: &Picture) -> Result<Bytes, String> {
    let expected = 3 * u64::from(picture.width) * u64::from(picture.height);
    if picture.rgb.len() as u64 != expected {
        return Err(format!("a picture of {} bytes instead of {expected}", picture.rgb.len()));
    }
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Default, FilterType::Adaptive)
        .write_image(&picture.rgb, picture.width, picture.height, ExtendedColorType::Rgb8)
        .map_err(|error| error.to_string())?;
    Ok(bytes.into())
}
