//! Whole pictures, prompt to pixels, through a cluster in this process.

use std::time::Instant;

use janus_model::{Checkpoint, KvDtype, WeightFormat};
use janus_wire::v1;
use janus_worker::Device;

use crate::failure::Outcome;
use crate::local::{Needs, Options};
use crate::session::Session;

/// What is painted.
const PROMPT: &str = "a red circle left of a blue square";

/// How to run the cluster.
pub(super) struct Setting {
    pub(super) stages: usize,
    pub(super) threads: usize,
    pub(super) device: Device,
    pub(super) weights: WeightFormat,
    pub(super) kv: KvDtype,
}

/// Paints as many pictures at once as each of `counts` says; milliseconds and positions of the prompt for each.
pub(super) fn pictures(checkpoint: Checkpoint, setting: &Setting, counts: &[usize]) -> Outcome<Vec<(f64, usize)>> {
    let options = Options {
        listen: "127.0.0.1:0".to_owned(),
        security: janus_wire::Security::Plain,
        model: "bench".to_owned(),
        stages: setting.stages,
        threads: Some(setting.threads),
        device: setting.device,
        weights: Some(setting.weights),
        kv: setting.kv,
        counts: false,
        operator: None,
        needs: Needs { vq_decoder: true, ..Needs::NONE },
        jobs: None,
    };
    let mut session = Session::start(checkpoint, options)?;
    let mut measured = Vec::new();
    for &n in counts {
        let started = Instant::now();
        let request = v1::GenerateImageRequest {
            prompt: PROMPT.to_owned(),
            n: n as u32,
            seed: 1,
            temperature: Some(1.0),
            cfg_weight: Some(5.0),
            ..v1::GenerateImageRequest::default()
        };
        let (prompt, _, _) = session.paint(request, |_, _| {})?;
        measured.push((started.elapsed().as_secs_f64() * 1e3, prompt.len()));
    }
    Ok(measured)
}
