//! `janus eval`: a session stands model, the report goes to stdout.

use indicatif::ProgressBar;
use janus_model::image::{Rgb8, encode_png};
use janus_wire::v1;

use super::{Options, Progress, Settings, Subject, files, measure};
use crate::args::{Asking, Eval, EvalShapes, Suite};
use crate::failure::Outcome;
use crate::local::Needs;
use crate::session::Session;
use crate::{ask, output, terminal};

/// Pictures asked for together; the scheduler decides how they share steps.
const BATCH: usize = 1;
/// The answers are single words; a longer one is wrong anyway.
const ANSWER_TOKENS: u32 = 8;

/// The verb.
pub(crate) fn run(args: Eval) -> Outcome {
    match args.suite {
        Suite::Shapes(args) => shapes(args),
        Suite::Geneval(args) => files::paint(args, true),
        Suite::Pictures(args) => files::paint(args, false),
        Suite::Pope(args) => files::answer(args, Asking::Pope),
        Suite::Mme(args) => files::answer(args, Asking::Mme),
        Suite::Vqav2(args) => files::answer(args, Asking::Vqav2),
    }
}

fn shapes(args: EvalShapes) -> Outcome {
    let session = Session::open(&args.compute, Needs::ALL)?;
    let model = session.model.model.clone();
    let cfg_weight = args.cfg_weight.unwrap_or(session.model.cfg_weight);
    let temperature = args.temperature.unwrap_or(session.model.temperature);
    let mut subject = Remote { session, cfg_weight, temperature };

    let settings = Settings { model, cfg_weight, temperature, seed: args.seed };
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

/// A model behind a session, painting at fixed settings.
struct Remote {
    session: Session,
    cfg_weight: f32,
    temperature: f32,
}

impl Subject for Remote {
    fn paint(&mut self, batch: &[(&str, u64)]) -> Outcome<Vec<Rgb8>> {
        let mut pictures = Vec::with_capacity(batch.len());
        for &(text, seed) in batch {
            let request = v1::GenerateImageRequest {
                prompt: text.to_owned(),
                n: 1,
                seed,
                temperature: Some(self.temperature),
                cfg_weight: Some(self.cfg_weight),
                ..v1::GenerateImageRequest::default()
            };
            let (_, painted, _) = self.session.paint(request, |_, _| {})?;
            pictures.extend(painted.into_iter().map(|p| p.picture));
        }
        Ok(pictures)
    }

    fn answer(&mut self, picture: &Rgb8, question: &str) -> Outcome<String> {
        let image = v1::Image { data: encode_png(picture)?.into(), ..v1::Image::default() };
        let request = v1::ChatRequest {
            messages: vec![ask::question(question.to_owned(), vec![image])],
            max_tokens: Some(ANSWER_TOKENS),
            temperature: Some(0.0),
            ..v1::ChatRequest::default()
        };
        Ok(self.session.ask(request, |_| {})?.1.text)
    }

    fn reconstruct(&mut self, picture: &Rgb8) -> Outcome<Rgb8> {
        let ids = self.session.tokenize(encode_png(picture)?)?;
        self.session.detokenize(ids)
    }
}
