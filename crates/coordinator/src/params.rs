//! What clients may ask for: every field is checked before anything is queued, and a refusal names the field.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use janus_spec::GenerationDefaults;
use janus_wire::status::{invalid, shown};
use janus_wire::v1::{GenerateImageRequest, Priority, RequestHeader, Sampling};
use tonic::Status;

use crate::schedule::Band;

/// Pictures of one request.
pub(crate) const MAX_PICTURES: u32 = 256;
/// Largest guidance weight: far above anything that still paints, far below what overflows a logit.
pub const MAX_CFG_WEIGHT: f32 = 1e6;
/// Longest prompt in bytes; the tokeniser sees nothing longer.
pub(crate) const MAX_PROMPT: usize = 1 << 20;

/// A request's header, checked.
pub(crate) struct Header {
    pub(crate) id: String,
    pub(crate) band: Band,
}

pub(crate) fn header(header: Option<RequestHeader>, model: &str) -> Result<Header, Status> {
    let header =
        header.ok_or_else(|| invalid("header", "is missing; a request needs a request_id of its caller's choice"))?;
    let id = header.request_id;
    if id.is_empty() || id.len() > 128 || !id.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(invalid("header.request_id", "must be 1 to 128 printable ASCII characters without spaces"));
    }
    if !header.model.is_empty() && header.model != model {
        return Err(Status::not_found(format!("header.model: `{}` is not served here; `{model}` is", shown(&header.model))));
    }
    let band = match Priority::try_from(header.priority) {
        Ok(Priority::Unspecified | Priority::Interactive) => Band::Interactive,
        Ok(Priority::Batch) => Band::Batch,
        Err(_) => return Err(invalid("header.priority", format!("{} is unknown", header.priority))),
    };
    Ok(Header { id, band })
}

/// Time left until a request's deadline; `None` for no deadline.
pub(crate) fn left(header: Option<&RequestHeader>) -> Result<Option<Duration>, Status> {
    let at = match header.map_or(0, |h| h.deadline_unix_ms) {
        0 => return Ok(None),
        at => Duration::from_millis(at),
    };
    match at.checked_sub(Duration::from_millis(now_unix_ms())) {
        Some(left) => Ok(Some(left)),
        None => Err(Status::deadline_exceeded("header.deadline_unix_ms is in the past")),
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
}

/// Sampling of a picture; what the request leaves open is the checkpoint's.
pub(crate) fn image_sampling(request: &GenerateImageRequest, defaults: &GenerationDefaults) -> Result<Sampling, Status> {
    let cfg_weight = request.cfg_weight.unwrap_or(defaults.cfg_weight);
    if !(0.0..=MAX_CFG_WEIGHT).contains(&cfg_weight) {
        return Err(invalid("cfg_weight", format!("{cfg_weight} must be a number from 0 to {MAX_CFG_WEIGHT}")));
    }
    let top_k = request.top_k.or(defaults.top_k.map(|k| k as u32));
    let top_p = request.top_p.or(defaults.top_p);
    sampling(request.temperature.unwrap_or(defaults.temperature), top_k, top_p, request.seed)
        .map(|sampling| Sampling { cfg_weight, ..sampling })
}

/// Refuses what nothing can be sampled with; `field` says what a parameter is called.
pub(crate) fn check_sampling(
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    field: impl Fn(&str) -> String,
) -> Result<(), Status> {
    if let Some(t) = temperature.filter(|t| !(t.is_finite() && *t >= 0.0)) {
        return Err(invalid(&field("temperature"), format!("{t} must be a finite number of at least 0")));
    }
    if top_k == Some(0) {
        return Err(invalid(&field("top_k"), "0 leaves nothing to sample from; leave it out for all ids"));
    }
    match top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
        Some(p) => Err(invalid(&field("top_p"), format!("{p} must be above 0 and at most 1"))),
        None => Ok(()),
    }
}

/// Sampling without guidance.
pub(crate) fn sampling(temperature: f32, top_k: Option<u32>, top_p: Option<f32>, seed: u64) -> Result<Sampling, Status> {
    check_sampling(Some(temperature), top_k, top_p, str::to_owned)?;
    let top_p = top_p.unwrap_or(1.0);
    Ok(Sampling { temperature, top_k: top_k.unwrap_or(0), top_p, seed, cfg_weight: 1.0 })
}
