//! `janus eval shapes`: how well a model paints and answers in the world of coloured shapes.
//!
//! Three measurements over the held-out lists of [`suite`]: pictures painted for prompts are looked at pixel by pixel
//! ([`look`], [`score`]); answers about drawn pictures ([`scene`]) are compared with the right ones; and drawn pictures
//! ([`layout`]) go through the VQ encoder and decoder and are looked at too, which bounds what any painter using that
//! codebook could reach. [`report`] counts it up and [`table`] prints GenEval's table and POPE's figures.
//!
//! Real benchmarks have scorers of their own: [`files`] reads their prompts and questions ([`prompts`], [`questions`]) and writes
//! what those read.
//!
//! What is measured stands behind [`Subject`], so that nothing here cares where the model runs; [`drive`] puts the
//! engine of this process there.

mod crew;
mod drive;
mod files;
#[cfg(test)]
mod fixtures;
mod job;
mod layout;
mod look;
mod prompts;
mod questions;
mod report;
mod scene;
mod score;
mod suite;
mod table;

use janus_model::image::Rgb8;

pub(crate) use drive::run;
pub(crate) use report::{Report, Settings};

use self::layout::{Dice, scene_for};
use self::report::{Answered, Painted, Rebuilt};
use crate::failure::{Failure, Outcome};

/// The model under measurement, wherever it runs.
pub(crate) trait Subject {
    /// Paints a batch: a text and the seed of its picture each. One picture per entry, in order.
    fn paint(&mut self, batch: &[(&str, u64)]) -> Outcome<Vec<Rgb8>>;

    /// Answers a question about a picture, greedily; only the words, without special tokens.
    fn answer(&mut self, picture: &Rgb8, question: &str) -> Outcome<String>;

    /// The picture after the VQ encoder and decoder.
    fn reconstruct(&mut self, picture: &Rgb8) -> Outcome<Rgb8>;
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Prompts per category and questions per kind; `None`: all of the lists.
    pub(crate) limit: Option<usize>,
    /// Added to every prompt's own seed.
    pub(crate) seed: u64,
    /// Pictures painted together, at least 1.
    pub(crate) batch: usize,
}

/// How far a measurement has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// "pictures", "answers" or "reconstructions".
    pub(crate) what: &'static str,
    /// How many are done.
    pub(crate) done: usize,
    /// How many there will be.
    pub(crate) total: usize,
}

/// Measures a subject; `progress` hears of every step.
pub(crate) fn measure(
    subject: &mut dyn Subject,
    options: &Options,
    settings: Settings,
    progress: &mut dyn FnMut(Progress),
) -> Outcome<Report> {
    let painted = paint(subject, options, progress)?;
    let answered = ask(subject, options, progress)?;
    let rebuilt = rebuild(subject, options, progress)?;
    Ok(Report::new(settings, painted, answered, rebuilt))
}

fn paint(subject: &mut dyn Subject, options: &Options, progress: &mut dyn FnMut(Progress)) -> Outcome<Vec<Painted>> {
    let prompts = suite::prompts(options.limit)?;
    let mut painted = Vec::with_capacity(prompts.len());
    for chunk in prompts.chunks(options.batch.max(1)) {
        let batch: Vec<(&str, u64)> = chunk.iter().map(|p| (p.prompt.as_str(), options.seed.wrapping_add(p.seed))).collect();
        let pictures = subject.paint(&batch)?;
        if pictures.len() != batch.len() {
            let message = format!("{} pictures came back for {} prompts", pictures.len(), batch.len());
            return Err(Failure::Broken(message));
        }
        for ((prompt, picture), (_, seed)) in chunk.iter().zip(&pictures).zip(&batch) {
            painted.push(Painted::new(prompt, *seed, score::judge(picture, prompt)));
        }
        progress(Progress { what: "pictures", done: painted.len(), total: prompts.len() });
    }
    Ok(painted)
}

fn ask(subject: &mut dyn Subject, options: &Options, progress: &mut dyn FnMut(Progress)) -> Outcome<Vec<Answered>> {
    let questions = suite::questions(options.limit)?;
    let mut answered = Vec::with_capacity(questions.len());
    for question in &questions {
        let said = subject.answer(&scene::draw(&question.objects), &question.question)?;
        answered.push(Answered::new(question, said.trim()));
        progress(Progress { what: "answers", done: answered.len(), total: questions.len() });
    }
    Ok(answered)
}

fn rebuild(subject: &mut dyn Subject, options: &Options, progress: &mut dyn FnMut(Progress)) -> Outcome<Vec<Rebuilt>> {
    let prompts = suite::prompts(options.limit)?;
    let mut rebuilt = Vec::with_capacity(prompts.len());
    for prompt in &prompts {
        let drawn = scene::draw(&scene_for(prompt, &mut Dice::new(options.seed.wrapping_add(prompt.seed))));
        let verdict = score::judge(&subject.reconstruct(&drawn)?, prompt);
        rebuilt.push(Rebuilt { category: prompt.category, right: verdict.is_right() });
        progress(Progress { what: "reconstructions", done: rebuilt.len(), total: prompts.len() });
    }
    Ok(rebuilt)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A painter that reads the list, an answerer that knows the answers, and a perfect codebook; each can be broken.
    struct Oracle {
        prompts: Vec<suite::Prompt>,
        questions: Vec<suite::Question>,
        mute: bool,
        always_yes: bool,
        blind: bool,
        batches: Vec<usize>,
    }

    fn oracle() -> Oracle {
        let (prompts, questions) = (suite::prompts(None).expect("prompts"), suite::questions(None).expect("questions"));
        Oracle { prompts, questions, mute: false, always_yes: false, blind: false, batches: Vec::new() }
    }

    impl Subject for Oracle {
        fn paint(&mut self, batch: &[(&str, u64)]) -> Outcome<Vec<Rgb8>> {
            self.batches.push(batch.len());
            let known = |text: &str| self.prompts.iter().find(|p| p.prompt == text).expect("a listed prompt");
            let picture = |(text, seed): &(&str, u64)| scene::draw(&scene_for(known(text), &mut Dice::new(*seed)));
            let count = if self.mute { 0 } else { batch.len() };
            Ok(batch.iter().take(count).map(picture).collect())
        }

        fn answer(&mut self, picture: &Rgb8, question: &str) -> Outcome<String> {
            if self.always_yes {
                return Ok("yes".to_owned());
            }
            let known = |q: &&suite::Question| q.question == question && scene::draw(&q.objects) == *picture;
            Ok(format!(" {}\n", self.questions.iter().find(known).expect("a listed question").answer))
        }

        fn reconstruct(&mut self, picture: &Rgb8) -> Outcome<Rgb8> {
            let blank = Rgb8::filled(picture.width, picture.height, scene::BACKGROUND);
            Ok(if self.blind { blank } else { picture.clone() })
        }
    }

    fn measured(oracle: &mut Oracle, limit: usize) -> Outcome<Report> {
        let options = Options { limit: Some(limit), seed: 11, batch: 4 };
        let settings = Settings { model: "oracle".to_owned(), cfg_weight: 2.0, temperature: 0.7, seed: 11 };
        measure(oracle, &options, settings, &mut |_| {})
    }

    #[test]
    fn an_oracle_scores_everything() {
        let mut oracle = oracle();
        let report = measured(&mut oracle, 6).expect("measured");
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["pictures"]["overall"], 1.0);
        assert_eq!(json["answers"]["overall"]["score"], 1.0);
        assert_eq!(json["vq_ceiling"]["overall"], 1.0);
        assert_eq!(oracle.batches, [4; 9]);
    }

    #[test]
    fn always_yes_is_what_pope_unmasks() {
        let report = measured(&mut Oracle { always_yes: true, ..oracle() }, 120).expect("measured");
        let json = serde_json::to_value(&report).expect("JSON");
        let pope = &json["answers"]["presence"];
        assert_eq!(pope["recall"], 1.0);
        assert_eq!(pope["yes_ratio"], 1.0);
        assert_eq!(pope["accuracy"], pope["precision"]);
        assert!(pope["accuracy"].as_f64().is_some_and(|a| a < 0.7));
    }

    #[test]
    fn a_blind_codebook_shows_in_the_ceiling_alone() {
        let report = measured(&mut Oracle { blind: true, ..oracle() }, 3).expect("measured");
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["vq_ceiling"]["overall"], 0.0);
        assert_eq!(json["pictures"]["overall"], 1.0);
    }

    #[test]
    fn missing_pictures_are_an_error() {
        let error = measured(&mut Oracle { mute: true, ..oracle() }, 3).expect_err("mute").to_string();
        assert!(error.contains("0 pictures came back for 4 prompts"), "{error}");
    }

    #[test]
    fn progress_counts_up_to_the_total_of_each_measurement() {
        let mut heard = Vec::new();
        let options = Options { limit: Some(2), seed: 0, batch: 5 };
        let settings = Settings { model: String::new(), cfg_weight: 1.0, temperature: 0.0, seed: 0 };
        measure(&mut oracle(), &options, settings, &mut |p| heard.push(p)).expect("measured");
        for (what, total) in [("pictures", 12), ("answers", 10), ("reconstructions", 12)] {
            let last = heard.iter().rfind(|p| p.what == what).expect("heard of");
            assert_eq!((last.done, last.total), (total, total));
        }
    }
}
