//! `janus eval` in this process: the engine stands model, the report goes to stdout.

use indicatif::ProgressBar;
use janus_model::image::Rgb8;
use janus_model::{AskRequest, Engine, ImageSampling, PaintRequest};
use janus_spec::{Message, Part, Role};

use super::{Options, Progress, Settings, Subject, measure};
use crate::args::{Eval, EvalShapes, Suite};
use crate::failure::Outcome;
use crate::{checkpoint, output, terminal};

/// Pictures painted in step: enough to share the reading of the weights, little enough for a large model's KV cache.
const BATCH: usize = 16;
/// The answers are single words; a longer one is wrong anyway.
const ANSWER_TOKENS: usize = 8;

/// The verb.
pub(crate) fn run(args: Eval) -> Outcome {
    match args.suite {
        Suite::Shapes(args) => shapes(args),
    }
}

fn shapes(args: EvalShapes) -> Outcome {
    let engine = checkpoint::engine(&args.compute)?;
    let defaults = engine.spec().generation.clone();
    let cfg_weight = args.cfg_weight.unwrap_or(defaults.cfg_weight);
    let temperature = args.temperature.unwrap_or(defaults.temperature);
    let sampling = ImageSampling { temperature, top_k: defaults.top_k, top_p: defaults.top_p, seed: args.seed };
    let mut subject = InProcess { engine, cfg_weight, sampling };

    let settings = Settings { model: args.compute.model, cfg_weight, temperature, seed: args.seed };
    let options = Options { limit: args.limit, seed: args.seed, batch: BATCH };
    let mut bars = Bars::default();
    let report = measure(&mut subject, &options, settings, &mut |progress| bars.show(progress))?;
    if args.json {
        output::print_json(&report)
    } else {
        output::print_line(&report.to_string());
        Ok(())
    }
}

/// One bar after another, a new one for each measurement.
#[derive(Default)]
struct Bars {
    current: Option<(&'static str, ProgressBar)>,
}

impl Bars {
    fn show(&mut self, progress: Progress) {
        let bar = match self.current.take() {
            Some((what, bar)) if what == progress.what => bar,
            _ => terminal::bar(progress.total, progress.what),
        };
        bar.set_position(progress.done as u64);
        if progress.done == progress.total {
            bar.finish_and_clear();
        } else {
            self.current = Some((progress.what, bar));
        }
    }
}

/// The engine of this process, painting at fixed settings.
struct InProcess {
    engine: Engine,
    cfg_weight: f32,
    /// With the seed still to be filled in.
    sampling: ImageSampling,
}

impl Subject for InProcess {
    fn paint(&mut self, batch: &[(&str, u64)]) -> Outcome<Vec<Rgb8>> {
        let mut requests = Vec::with_capacity(batch.len());
        for &(text, seed) in batch {
            requests.push(PaintRequest {
                prompt: self.engine.tokenizer().generation_prompt(text, false)?,
                keep: Vec::new(),
                cfg_weight: self.cfg_weight,
                sampling: ImageSampling { seed, ..self.sampling },
            });
        }
        let painted = self.engine.paint(&requests, |_| {})?;
        painted.iter().map(|ids| Ok(self.engine.decode_ids(ids)?)).collect()
    }

    fn answer(&mut self, picture: &Rgb8, question: &str) -> Outcome<String> {
        let parts = vec![Part::Image, Part::Text(question.to_owned())];
        let prompt = self.engine.tokenizer().chat_prompt(&[Message { role: Role::User, parts }], None)?;
        let sampling = ImageSampling { temperature: 0.0, top_k: None, top_p: None, seed: 0 };
        let request = AskRequest { prompt, max_tokens: ANSWER_TOKENS, sampling };
        let tokens = self.engine.ask(&request, std::slice::from_ref(picture), |_| {})?;
        Ok(self.engine.tokenizer().decode(&tokens, true)?)
    }

    fn reconstruct(&mut self, picture: &Rgb8) -> Outcome<Rgb8> {
        let ids = self.engine.encode_ids(picture)?;
        Ok(self.engine.decode_ids(&ids)?)
    }
}
