//! `janus eval geneval|pictures|pope|mme|vqav2`: the prompts or questions of a real benchmark in, and what its own scorer reads
//! out. What is there already is not made again, so an interrupted run goes on where it was.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use janus_model::image::{Limits, Orientation, Rgb8};
use janus_wire::v1::{self, job_item};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::crew;
use super::job::{self, Errand, Made};
use super::prompts::{self, Prompt};
use super::questions::{self, answer_files};
use crate::args::{Asking, EvalAsk, EvalPaint};
use crate::failure::{Failure, Outcome};
use crate::jobs::client::Client;
use crate::local::Needs;
use crate::session::Session;
use crate::{ask, output, terminal};

/// Samples of a prompt that GenEval counts.
const GENEVAL_SAMPLES: usize = 4;
/// In a folder of pictures: what they were painted with.
const SETTINGS: &str = "janus-eval.json";
/// Beside them, or behind the name of the file of answers: which job makes them.
const MEMORY: &str = "janus-eval.job";
/// Requests at once.
const PARALLEL: usize = 4;

/// Results of other settings are not mixed with these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Settings {
    /// Digest of the model.
    model: String,
    numerics: String,
    cfg_weight: Option<f32>,
    temperature: f32,
    seed: u64,
    max_tokens: Option<u32>,
    suffix: Option<String>,
}

fn cannot(path: &Path, error: &std::io::Error) -> Failure {
    Failure::mistake(format!("{}: cannot be written: {error}", path.display()))
}

fn differ(place: &Path, found: &Settings, ours: &Settings) -> Failure {
    Failure::mistake(format!(
        "--to {}: it holds results of other settings ({} there, {} now); give another place, or the same settings",
        place.display(),
        json!(found),
        json!(ours)
    ))
}

/// Paints for GenEval's scorer, or folders of pictures.
pub(crate) fn paint(args: EvalPaint, geneval: bool) -> Outcome {
    let count = args.count.unwrap_or(if geneval { GENEVAL_SAMPLES } else { 1 });
    let read = if geneval { prompts::geneval } else { prompts::pictures };
    let mut prompts = read(&args.prompts, count)?;
    let work = digest(prompts.iter().map(|prompt| json!([prompt.text, prompt.pictures])));
    prompts.truncate(args.limit.unwrap_or(usize::MAX));
    fs::create_dir_all(&args.to).map_err(|e| cannot(&args.to, &e))?;

    let mut session = Session::open(&args.compute, Needs { vq_decoder: true, ..Needs::NONE })?;
    let settings = Settings {
        model: janus_wire::hello::hex(&session.model.digest),
        numerics: session.model.numerics.clone(),
        cfg_weight: Some(args.cfg_weight.unwrap_or(session.model.cfg_weight)),
        temperature: args.temperature.unwrap_or(session.model.temperature),
        seed: args.seed,
        max_tokens: None,
        suffix: None,
    };
    let written = args.to.join(SETTINGS);
    match fs::read(&written).ok().map(|bytes| serde_json::from_slice::<Settings>(&bytes)) {
        Some(Ok(found)) if found == settings => {}
        Some(Ok(found)) => return Err(differ(&args.to, &found, &settings)),
        Some(Err(e)) => return Err(Failure::mistake(format!("{}: {e}", written.display()))),
        None => output::write_whole(&written, json!(settings).to_string().as_bytes())?,
    }
    let total: usize = prompts.iter().map(|prompt| prompt.pictures.len()).sum();
    let missing: Vec<(usize, &Prompt)> =
        prompts.iter().filter_map(|prompt| Some((first_missing(&args.to, prompt)?, prompt))).collect();
    let to_paint: usize = missing.iter().map(|(first, prompt)| prompt.pictures.len() - first).sum();
    if args.parallel.is_none()
        && let Some(mut client) = job::client(&args.compute)?
    {
        let memory = args.to.join(MEMORY);
        drop(session);
        while !paint_by_job(&mut client, &memory, &work, &args.to, &prompts, &settings)? {}
        return finish(args.json, &args.to, total, to_paint);
    }
    let bar = terminal::bar(total, "pictures");
    bar.set_position((total - to_paint) as u64);
    let work = |session: &mut Session, (first, prompt): &(usize, &Prompt)| {
        let request = v1::GenerateImageRequest {
            prompt: prompt.text.clone(),
            n: (prompt.pictures.len() - first) as u32,
            // Every prompt has the same seeds, as with the benchmarks' own scripts.
            seed: args.seed.wrapping_add(*first as u64),
            temperature: Some(settings.temperature),
            cfg_weight: settings.cfg_weight,
            ..v1::GenerateImageRequest::default()
        };
        Ok(session.paint(request, |_, _| {})?.1)
    };
    crew::each(&mut session, args.parallel.unwrap_or(PARALLEL), &missing, work, |i, painted| {
        let (first, prompt) = missing[i];
        for (picture, painted) in (first..).zip(&painted) {
            keep(&args.to, prompt, picture, &painted.picture)?;
            bar.inc(1);
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    finish(args.json, &args.to, total, to_paint)
}

/// Writes a picture of a prompt, and what goes with it.
fn keep(to: &Path, prompt: &Prompt, picture: usize, painted: &Rgb8) -> Outcome {
    let path = to.join(&prompt.pictures[picture]);
    let beside = prompt.beside.as_ref().map(|(path, text)| (to.join(path), text));
    for path in [&path].into_iter().chain(beside.iter().map(|(path, _)| path)) {
        let folder = path.parent().unwrap_or(to);
        fs::create_dir_all(folder).map_err(|e| cannot(folder, &e))?;
    }
    if let Some((path, text)) = beside {
        output::write_whole(&path, text.as_bytes())?;
    }
    output::write_picture(&path, painted)
}

/// Has a job paint what is missing; false if there is more to do.
fn paint_by_job(
    client: &mut Client,
    memory: &Path,
    work: &str,
    to: &Path,
    prompts: &[Prompt],
    settings: &Settings,
) -> Outcome<bool> {
    let mut items = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let Some(first) = first_missing(to, prompt) else { continue };
        let work = v1::PaintItem {
            prompt: prompt.text.clone(),
            n: (prompt.pictures.len() - first) as u32,
            seed: settings.seed.wrapping_add(first as u64),
            cfg_weight: settings.cfg_weight,
            temperature: Some(settings.temperature),
            ..v1::PaintItem::default()
        };
        items.push(v1::JobItem { id: format!("{i} from {first}"), work: Some(job_item::Work::Paint(work)) });
    }
    if items.is_empty() {
        return Ok(true);
    }
    job::run(client, Errand { memory, work, items, pictures: Vec::new() }, |made: Made<'_>| {
        let strange = || Failure::Broken(format!("the job has an item `{}`, which is none of ours", made.id));
        let (i, first) = made.id.split_once(" from ").ok_or_else(strange)?;
        let (i, first): (usize, usize) = (i.parse().map_err(|_| strange())?, first.parse().map_err(|_| strange())?);
        // One that an earlier run asked for, and this one does not.
        let Some(prompt) = prompts.get(i) else { return Ok(()) };
        let picture = first + made.index;
        if prompt.pictures.get(picture).is_none_or(|path| to.join(path).exists()) {
            return Ok(());
        }
        let painted = janus_model::image::decode(made.png, Orientation::Ignore, &Limits::default())?;
        keep(to, prompt, picture, &painted)
    })
}

/// Of all that is to be done, so that it is known again.
fn digest(parts: impl Iterator<Item = serde_json::Value>) -> String {
    let hash = parts.fold(Sha256::new(), |hash, part| hash.chain_update(part.to_string()).chain_update("\n"));
    janus_wire::hello::hex(&hash.finalize())
}

/// Pictures are made in order, so the first one that is absent says how far it came.
fn first_missing(to: &Path, prompt: &Prompt) -> Option<usize> {
    prompt.pictures.iter().position(|picture| !to.join(picture).exists())
}

/// Answers a benchmark's questions.
pub(crate) fn answer(args: EvalAsk, kind: Asking) -> Outcome {
    let mut questions = questions::questions(kind, &args.questions)?;
    let work = digest(questions.iter().map(|question| json!([question.text, question.picture])));
    questions.truncate(args.limit.unwrap_or(usize::MAX));
    if kind != Asking::Mme && args.to.exists() {
        return Err(Failure::mistake(format!("--to {}: it is there already; give another name", args.to.display())));
    }
    // All of them, before anything is loaded.
    for question in &questions {
        let path = args.images.join(&question.picture);
        if !path.is_file() {
            return Err(Failure::mistake(format!(
                "--images: there is no {}, which `{}` is about",
                path.display(),
                question.text
            )));
        }
    }
    let mut session = Session::open(&args.compute, Needs { vision: true, ..Needs::NONE })?;
    let settings = Settings {
        model: janus_wire::hello::hex(&session.model.digest),
        numerics: session.model.numerics.clone(),
        cfg_weight: None,
        temperature: 0.0,
        seed: 0,
        max_tokens: Some(args.max_tokens as u32),
        suffix: Some(args.suffix.clone()),
    };
    let mut journal = Journal::open(&args.to, &settings)?;
    let missing: Vec<usize> = (0..questions.len()).filter(|i| !journal.answers.contains_key(i)).collect();
    let asked = |i: usize| match args.suffix.is_empty() {
        true => questions[i].text.clone(),
        false => format!("{}\n{}", questions[i].text, args.suffix),
    };
    let picture = |i: usize| args.images.join(&questions[i].picture);
    let by_job = if args.parallel.is_none() { job::client(&args.compute)? } else { None };
    match by_job {
        Some(mut client) => {
            drop(session);
            let memory = Journal::beside(&args.to, ".job");
            while !answer_by_job(&mut client, &memory, &work, &mut journal, questions.len(), &settings, (&asked, &picture))?
            {
            }
        }
        None => answer_here(&mut session, args.parallel, &missing, &mut journal, &settings, (&asked, &picture))?,
    }
    let answers: Vec<String> = journal.answers.values().take(questions.len()).cloned().collect();
    for (path, text) in answer_files(kind, &args.to, &questions, &answers) {
        if kind == Asking::Mme {
            fs::create_dir_all(&args.to).map_err(|e| cannot(&args.to, &e))?;
        }
        output::write_whole(&path, text.as_bytes())?;
    }
    journal.remove()?;
    finish(args.json, &args.to, questions.len(), missing.len())
}

/// A question's text, and its picture's file.
type Questions<'a> = (&'a (dyn Fn(usize) -> String + Sync), &'a (dyn Fn(usize) -> PathBuf + Sync));

/// Answers by requests of this process.
fn answer_here(
    session: &mut Session,
    parallel: Option<usize>,
    missing: &[usize],
    journal: &mut Journal,
    settings: &Settings,
    (text, picture): Questions<'_>,
) -> Outcome {
    let bar = terminal::bar(journal.answers.len() + missing.len(), "answers");
    bar.set_position(journal.answers.len() as u64);
    let work = |session: &mut Session, &i: &usize| {
        let image = v1::Image { data: output::read_picture(&picture(i))?.into(), ..v1::Image::default() };
        let request = v1::ChatRequest {
            messages: vec![ask::question(text(i), vec![image])],
            max_tokens: settings.max_tokens,
            temperature: Some(settings.temperature),
            ..v1::ChatRequest::default()
        };
        Ok(session.ask(request, |_| {})?.1.text.trim().to_owned())
    };
    crew::each(session, parallel.unwrap_or(PARALLEL), missing, work, |i, answer| {
        bar.inc(1);
        journal.add(missing[i], answer)
    })?;
    bar.finish_and_clear();
    Ok(())
}

/// Has a job answer what is missing; false if there is more to do.
fn answer_by_job(
    client: &mut Client,
    memory: &Path,
    work: &str,
    journal: &mut Journal,
    total: usize,
    settings: &Settings,
    (text, picture): Questions<'_>,
) -> Outcome<bool> {
    let missing: Vec<usize> = (0..total).filter(|i| !journal.answers.contains_key(i)).collect();
    if missing.is_empty() {
        return Ok(true);
    }
    let item = |&i: &usize| {
        let ask = v1::AskItem {
            question: text(i),
            max_tokens: settings.max_tokens,
            temperature: Some(settings.temperature),
            ..v1::AskItem::default()
        };
        v1::JobItem { id: i.to_string(), work: Some(job_item::Work::Ask(ask)) }
    };
    let items = missing.iter().map(item).collect();
    let pictures = missing.iter().map(|&i| picture(i)).collect();
    job::run(client, Errand { memory, work, items, pictures }, |made: Made<'_>| {
        let strange = || Failure::Broken(format!("the job has an item `{}`, which is none of ours", made.id));
        let i: usize = made.id.parse().map_err(|_| strange())?;
        match journal.answers.contains_key(&i) {
            true => Ok(()),
            false => journal.add(i, made.text.unwrap_or_default().trim().to_owned()),
        }
    })
}

fn finish(json: bool, to: &Path, total: usize, made: usize) -> Outcome {
    if json {
        return output::print_json(&json!({"path": to, "total": total, "made": made}));
    }
    output::print_line(&to.display().to_string());
    Ok(())
}

/// Answers so far, beside the file that they will be in: the settings, then a line for each.
struct Journal {
    path: PathBuf,
    file: File,
    answers: BTreeMap<usize, String>,
}

impl Journal {
    /// The name of the answers with this end.
    fn beside(to: &Path, end: &str) -> PathBuf {
        let mut path = to.as_os_str().to_owned();
        path.push(end);
        PathBuf::from(path)
    }

    fn open(to: &Path, settings: &Settings) -> Outcome<Journal> {
        let path = Journal::beside(to, ".progress");
        let mut file = File::options().create(true).read(true).append(true).open(&path).map_err(|e| cannot(&path, &e))?;
        let mut lines = BufReader::new(&file).lines().map_while(Result::ok);
        let mut answers = BTreeMap::new();
        match lines.next().map(|line| serde_json::from_str::<Settings>(&line)) {
            None => writeln!(file, "{}", json!(settings)).map_err(|e| cannot(&path, &e))?,
            Some(Ok(found)) if found == *settings => {
                // The last line may be torn.
                answers.extend(lines.filter_map(|line| serde_json::from_str::<(usize, String)>(&line).ok()));
                writeln!(file).map_err(|e| cannot(&path, &e))?;
            }
            Some(Ok(found)) => return Err(differ(&path, &found, settings)),
            Some(Err(e)) => return Err(Failure::mistake(format!("{}: is no journal of answers: {e}", path.display()))),
        }
        Ok(Journal { path, file, answers })
    }

    fn add(&mut self, i: usize, answer: String) -> Outcome {
        writeln!(self.file, "{}", json!((i, &answer))).map_err(|e| cannot(&self.path, &e))?;
        self.answers.insert(i, answer);
        Ok(())
    }

    fn remove(self) -> Outcome {
        fs::remove_file(&self.path).map_err(|e| cannot(&self.path, &e))
    }
}
