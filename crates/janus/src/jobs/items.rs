//! Files of items: one JSON object a line. A file is read twice, line by line: first to find every mistake in it before
//! anything is sent, then to send it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use janus_coordinator::MAX_CFG_WEIGHT;
use janus_wire::v1::{AskItem, JobItem, PaintItem, job_item};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::failure::{Failure, Outcome};

/// Longest line in bytes.
const MAX_LINE: usize = 2 << 20;
/// Pictures of one item.
const MAX_PICTURES: u32 = 256;

/// A line, as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    prompt: Option<String>,
    n: Option<u32>,
    seed: Option<u64>,
    cfg_weight: Option<f32>,
    temperature: Option<f32>,
    question: Option<String>,
    images: Option<Vec<PathBuf>>,
}

/// What was found in a file.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) items: u64,
    pub(crate) paints: bool,
    pub(crate) asks: bool,
    /// Digests of all files that questions are about, by their names in the items.
    pub(crate) files: BTreeMap<PathBuf, Blob>,
    /// SHA-256 of the whole file.
    pub(crate) digest: [u8; 32],
}

/// A file that a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    /// Where it is.
    pub(crate) path: PathBuf,
    pub(crate) sha256: [u8; 32],
}

/// The items of a file, one after the other.
pub(crate) struct Items {
    path: PathBuf,
    lines: BufReader<File>,
    number: usize,
}

impl Items {
    pub(crate) fn open(path: &Path) -> Outcome<Items> {
        let bad = |error: std::io::Error| Failure::mistake(format!("{}: cannot be read: {error}", path.display()));
        let file = File::open(path).map_err(bad)?;
        if !file.metadata().map_err(bad)?.is_file() {
            return Err(Failure::mistake(format!("{}: is not a file; it is read twice", path.display())));
        }
        Ok(Items { path: path.to_owned(), lines: BufReader::new(file), number: 0 })
    }

    fn mistake(&self, what: impl std::fmt::Display) -> Failure {
        Failure::mistake(format!("{}:{}: {what}", self.path.display(), self.number))
    }

    /// The next line that is not empty, and its bytes.
    fn line(&mut self, bytes: &mut Vec<u8>) -> Outcome<Option<Line>> {
        loop {
            bytes.clear();
            self.number += 1;
            let limit = MAX_LINE as u64 + 1;
            let read = self.lines.by_ref().take(limit).read_until(b'\n', bytes);
            let read = read.map_err(|error| self.mistake(format!("cannot be read: {error}")))?;
            if read == 0 {
                return Ok(None);
            }
            if bytes.len() > MAX_LINE {
                return Err(self.mistake(format!("a line has at most {MAX_LINE} bytes")));
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let parsed = serde_json::from_slice::<Line>(bytes).map_err(|error| {
                let text = error.to_string();
                let what = text.split(" at line ").next().unwrap_or(&text);
                self.mistake(format!("{what} (column {})", error.column()))
            });
            return parsed.map(Some);
        }
    }

    /// The next item; files are named by their digests in `files`.
    pub(crate) fn next(&mut self, files: &BTreeMap<PathBuf, Blob>) -> Outcome<Option<JobItem>> {
        let mut bytes = Vec::new();
        let Some(line) = self.line(&mut bytes)? else { return Ok(None) };
        let named = |path: &PathBuf| {
            let blob = files.get(path).map(|blob| blob.sha256.to_vec().into());
            blob.ok_or_else(|| self.mistake("the file changed while it was read"))
        };
        let work = match (&line.prompt, &line.question) {
            (Some(prompt), _) => job_item::Work::Paint(PaintItem {
                prompt: prompt.clone(),
                n: line.n.unwrap_or(1),
                seed: line.seed.unwrap_or(0),
                cfg_weight: line.cfg_weight,
                temperature: line.temperature,
                ..PaintItem::default()
            }),
            (None, question) => job_item::Work::Ask(AskItem {
                question: question.clone().unwrap_or_default(),
                images: line.images.iter().flatten().map(named).collect::<Outcome<_>>()?,
                ..AskItem::default()
            }),
        };
        Ok(Some(JobItem { id: line.id, work: Some(work) }))
    }

    /// What is wrong with a line, if anything.
    fn check(&self, line: &Line) -> Outcome {
        let legal = |b: u8| (b' '..=b'~').contains(&b) && b != b'/';
        if !(1..=128).contains(&line.id.len()) || !line.id.bytes().all(legal) {
            return Err(self.mistake("id: must be 1 to 128 printable ASCII characters without `/`"));
        }
        match (&line.prompt, &line.question) {
            (Some(_), Some(_)) => return Err(self.mistake("an item has a `prompt` or a `question`, not both")),
            (None, None) => return Err(self.mistake("an item has a `prompt` or a `question`")),
            (Some(_), None) if line.images.is_some() => {
                return Err(self.mistake("`images` belong to a `question`, not to a `prompt`"));
            }
            (None, Some(_)) => {
                let of_prompts = [
                    ("n", line.n.is_some()),
                    ("seed", line.seed.is_some()),
                    ("cfg_weight", line.cfg_weight.is_some()),
                    ("temperature", line.temperature.is_some()),
                ];
                if let Some((name, _)) = of_prompts.iter().find(|(_, there)| *there) {
                    return Err(self.mistake(format!("`{name}` belongs to a `prompt`, not to a `question`")));
                }
            }
            _ => {}
        }
        if line.n.is_some_and(|n| !(1..=MAX_PICTURES).contains(&n)) {
            return Err(self.mistake(format!("n: must be from 1 to {MAX_PICTURES}")));
        }
        if line.cfg_weight.is_some_and(|w| !(0.0..=MAX_CFG_WEIGHT).contains(&w)) {
            return Err(self.mistake(format!("cfg_weight: must be a number from 0 to {MAX_CFG_WEIGHT}")));
        }
        if line.temperature.is_some_and(|t| !(t.is_finite() && t >= 0.0)) {
            return Err(self.mistake("temperature: must be a finite number of at least 0"));
        }
        Ok(())
    }
}

/// Reads a whole file, and every file that it names.
pub(crate) fn survey(path: &Path) -> Outcome<Survey> {
    let (mut items, mut survey) = (Items::open(path)?, Survey::default());
    let (mut seen, mut digest, mut bytes): (HashSet<String>, _, _) = (HashSet::new(), Sha256::new(), Vec::new());
    while let Some(line) = items.line(&mut bytes)? {
        items.check(&line)?;
        digest.update(&bytes);
        if seen.contains(&line.id) {
            return Err(items.mistake(format!("id: `{}` is there twice", line.id)));
        }
        survey.items += 1;
        if survey.items > janus_coordinator::jobs::MAX_ITEMS {
            return Err(items.mistake(format!("a job has at most {} items", janus_coordinator::jobs::MAX_ITEMS)));
        }
        survey.paints |= line.prompt.is_some();
        survey.asks |= line.images.as_ref().is_some_and(|images| !images.is_empty());
        for file in line.images.into_iter().flatten() {
            if let Entry::Vacant(place) = survey.files.entry(file) {
                let blob = blob(path, place.key()).map_err(|what| items.mistake(what))?;
                place.insert(blob);
            }
        }
        seen.insert(line.id);
    }
    if survey.items == 0 {
        return Err(Failure::mistake(format!("{}: there is no item in it", path.display())));
    }
    survey.digest = digest.finalize().into();
    Ok(survey)
}

/// A file that is named in `items`.
fn blob(items: &Path, file: &Path) -> Result<Blob, String> {
    let beside = items.parent().map(|folder| folder.join(file)).filter(|path| path.is_file());
    let path = beside.unwrap_or_else(|| file.to_owned());
    janus_model::image::open(&path, &janus_model::image::Limits::default()).map_err(|error| error.to_string())?;
    let mut hash = Sha256::new();
    let mut reader = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    std::io::copy(&mut reader, &mut hash).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Blob { path, sha256: hash.finalize().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey_of(text: &str) -> Outcome<Survey> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("items.jsonl");
        std::fs::write(&path, text).unwrap();
        survey(&path)
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        let good = "{\"id\":\"a\",\"prompt\":\"x\"}\n\n";
        for (line, says) in [
            (r#"{"id":"b","prompt":"x","size":3}"#, "unknown field `size`"),
            (r#"{"id":"a","prompt":"x"}"#, "`a` is there twice"),
            (r#"{"prompt":"x"}"#, "missing field `id`"),
            (r#"{"id":"b"}"#, "a `prompt` or a `question`"),
            (r#"{"id":"b","prompt":"x","question":"y"}"#, "not both"),
            (r#"{"id":"b","question":"y","seed":1}"#, "`seed` belongs to a `prompt`"),
            (r#"{"id":"b","prompt":"y","images":[]}"#, "`images` belong to a `question`"),
            (r#"{"id":"b/c","prompt":"y"}"#, "without `/`"),
            (r#"{"id":"b","prompt":"y","n":0}"#, "n: must be"),
            (r#"{"id":"b","prompt":"y","n":-1}"#, "invalid value"),
            (r#"{"id":"b","prompt":"y","cfg_weight":-1}"#, "cfg_weight: must be"),
            (r#"{"id":"b","prompt":"y","temperature":-1}"#, "temperature: must be"),
            (r#"{"id":"b","question":"y","images":["no-such.png"]}"#, "no-such.png"),
            (r#"["b"]"#, "invalid length"),
            ("not JSON", "expected"),
        ] {
            let failure = survey_of(&format!("{good}{line}\n")).unwrap_err();
            let text = failure.to_string();
            assert!(matches!(failure, Failure::Mistake(_)), "{text}");
            assert!(text.contains("items.jsonl:3: ") && text.contains(says), "{line}: {text}");
        }
        assert!(survey_of("\n \n").unwrap_err().to_string().contains("there is no item"));
        let long = format!("{{\"id\":\"a\",\"prompt\":\"{}\"}}", "x".repeat(MAX_LINE));
        assert!(survey_of(&long).unwrap_err().to_string().contains("items.jsonl:1: a line has at most"));
    }

    #[test]
    fn what_is_left_out_has_its_usual_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("items.jsonl");
        std::fs::write(&path, "{\"id\":\"a\",\"prompt\":\"x\"}\n{\"id\":\"b\",\"question\":\"what?\"}").unwrap();
        let found = survey(&path).unwrap();
        assert_eq!((found.items, found.paints, found.asks, found.files.len()), (2, true, false, 0));
        let mut items = Items::open(&path).unwrap();
        let first = items.next(&found.files).unwrap().unwrap();
        let paint = PaintItem { prompt: "x".into(), n: 1, ..PaintItem::default() };
        assert_eq!(first, JobItem { id: "a".into(), work: Some(job_item::Work::Paint(paint)) });
        assert_eq!(items.next(&found.files).unwrap().unwrap().id, "b");
        assert!(items.next(&found.files).unwrap().is_none());
    }
}
