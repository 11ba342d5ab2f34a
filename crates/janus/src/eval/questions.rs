//! Question files of benchmarks, and the answer files that their scorers read.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::prompts::read;
use crate::args::Asking;
use crate::failure::{Failure, Outcome};

/// One question about one picture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Question {
    /// Below the folder of pictures.
    pub(crate) picture: String,
    pub(crate) text: String,
    /// What the answer file repeats.
    record: Value,
    /// Which file its answer goes to.
    file: PathBuf,
}

fn wrong(file: &Path, what: impl std::fmt::Display) -> Failure {
    Failure::mistake(format!("{}: {what}", file.display()))
}

/// The questions of a benchmark's file, or of MME's folder of files.
pub(crate) fn questions(kind: Asking, from: &Path) -> Outcome<Vec<Question>> {
    let found = match kind {
        Asking::Pope => pope(from)?,
        Asking::Vqav2 => vqav2(from)?,
        Asking::Mme => mme(from)?,
    };
    // It becomes a path.
    let leads_out = |name: &str| Path::new(name).components().any(|c| !matches!(c, std::path::Component::Normal(_)));
    match found.iter().find(|question| question.picture.is_empty() || leads_out(&question.picture)) {
        Some(question) => Err(wrong(from, format!("`{}` is no name of a picture", question.picture))),
        None if found.is_empty() => Err(wrong(from, "holds no questions")),
        None => Ok(found),
    }
}

/// One object a line: `question_id`, `image`, `text`.
fn pope(file: &Path) -> Outcome<Vec<Question>> {
    let text = read(file)?;
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let record: Value = serde_json::from_str(line).map_err(|e| wrong(file, format!("line {}: {e}", i + 1)))?;
        let (Some(picture), Some(text)) = (record["image"].as_str(), record["text"].as_str()) else {
            return Err(wrong(file, format!("line {}: there is no `image` and `text`", i + 1)));
        };
        let (picture, text) = (picture.to_owned(), text.to_owned());
        found.push(Question { picture, text, record, file: PathBuf::new() });
    }
    Ok(found)
}

/// `questions` with `question_id`, `image_id`, `question`; pictures are named as COCO names those of `data_subtype`.
fn vqav2(file: &Path) -> Outcome<Vec<Question>> {
    let object: Value = serde_json::from_str(&read(file)?).map_err(|e| wrong(file, e))?;
    let subset = object["data_subtype"].as_str().unwrap_or("val2014");
    let mut found = Vec::new();
    for (i, record) in object["questions"].as_array().into_iter().flatten().enumerate() {
        let picture = match (record["image"].as_str(), record["image_id"].as_u64()) {
            (Some(name), _) => name.to_owned(),
            (None, Some(id)) => format!("COCO_{}_{id:012}.jpg", subset.replace("test-dev2015", "test2015")),
            (None, None) => return Err(wrong(file, format!("questions[{i}] has no `image_id`"))),
        };
        let text = record["question"].as_str().ok_or_else(|| wrong(file, format!("questions[{i}] has no `question`")))?;
        if record["question_id"].is_null() {
            return Err(wrong(file, format!("questions[{i}] has no `question_id`")));
        }
        found.push(Question { picture, text: text.to_owned(), record: record.clone(), file: PathBuf::new() });
    }
    Ok(found)
}

/// A file for each task; a line is picture, question and truth with tabs between. Pictures are in a folder of the task's
/// name.
fn mme(dir: &Path) -> Outcome<Vec<Question>> {
    let entries = std::fs::read_dir(dir).map_err(|e| wrong(dir, format!("is no folder of question files: {e}")))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let task = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        for (i, line) in read(&file)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let [picture, text, _truth] = line.split('\t').collect::<Vec<_>>()[..] else {
                return Err(wrong(
                    &file,
                    format!("line {}: expected picture, question and truth, with tabs between", i + 1),
                ));
            };
            found.push(Question {
                picture: format!("{task}/{picture}"),
                text: text.to_owned(),
                record: json!(line),
                file: format!("{task}.txt").into(),
            });
        }
    }
    Ok(found)
}

/// The answer files: paths below `to` (or `to` itself) and what goes into them.
pub(crate) fn answer_files(kind: Asking, to: &Path, questions: &[Question], answers: &[String]) -> Vec<(PathBuf, String)> {
    let pairs = || questions.iter().zip(answers);
    match kind {
        Asking::Pope => {
            let line = |(q, answer): (&Question, &String)| {
                let record = json!({
                    "question_id": q.record["question_id"], "image": q.picture, "question": q.text, "answer": answer,
                });
                format!("{record}\n")
            };
            vec![(to.to_owned(), pairs().map(line).collect())]
        }
        Asking::Vqav2 => {
            let record =
                |(q, answer): (&Question, &String)| json!({"question_id": q.record["question_id"], "answer": answer});
            vec![(to.to_owned(), format!("{}\n", Value::Array(pairs().map(record).collect())))]
        }
        Asking::Mme => {
            let mut files: Vec<(PathBuf, String)> = Vec::new();
            for (q, answer) in pairs() {
                let line = format!("{}\t{}\n", q.record.as_str().unwrap_or_default(), answer.replace(['\t', '\n'], " "));
                match files.last_mut().filter(|(path, _)| *path == to.join(&q.file)) {
                    Some((_, text)) => text.push_str(&line),
                    None => files.push((to.join(&q.file), line)),
                }
            }
            files
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(kind: Asking, files: &[(&str, &str)]) -> (Vec<Question>, Vec<(PathBuf, String)>) {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).unwrap());
        let from = if kind == Asking::Mme { dir.path().to_owned() } else { dir.path().join(files[0].0) };
        let questions = questions(kind, &from).unwrap();
        let answers: Vec<String> = (0..questions.len()).map(|i| format!("yes\t{i}")).collect();
        let files = answer_files(kind, Path::new("out"), &questions, &answers);
        (questions, files)
    }

    #[test]
    fn answers_have_the_form_of_their_scorers() {
        let line =
            r#"{"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a dog?", "label": "yes"}"#;
        let (questions, files) = written(Asking::Pope, &[("q.jsonl", line)]);
        assert_eq!(questions[0].picture, "COCO_val2014_000000310196.jpg");
        let answer: Value = serde_json::from_str(&files[0].1).unwrap();
        assert_eq!((&answer["question"], &answer["answer"]), (&json!("Is there a dog?"), &json!("yes\t0")));

        let vqa =
            r#"{"data_subtype":"val2014","questions":[{"image_id":458752,"question":"What?","question_id":458752000}]}"#;
        let (questions, files) = written(Asking::Vqav2, &[("q.json", vqa)]);
        assert_eq!(questions[0].picture, "COCO_val2014_000000458752.jpg");
        let answers: Value = serde_json::from_str(&files[0].1).unwrap();
        assert_eq!(answers, json!([{"question_id": 458752000, "answer": "yes\t0"}]));

        let tasks = [("color.txt", "1.jpg\tRed?\tYes\n1.jpg\tBlue?\tNo\n"), ("existence.txt", "2.jpg\tDog?\tYes\n")];
        let (questions, files) = written(Asking::Mme, &tasks);
        assert_eq!(questions[2].picture, "existence/2.jpg");
        assert_eq!(files[0], ("out/color.txt".into(), "1.jpg\tRed?\tYes\tyes 0\n1.jpg\tBlue?\tNo\tyes 1\n".to_owned()));
        assert_eq!(files[1].0, Path::new("out/existence.txt"));
    }

    #[test]
    fn a_picture_stays_in_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["../x.jpg", "/etc/x.jpg", ""] {
            let file = dir.path().join("q.jsonl");
            std::fs::write(&file, json!({"question_id": 1, "image": name, "text": "?"}).to_string()).unwrap();
            assert!(questions(Asking::Pope, &file).unwrap_err().to_string().contains("no name of a picture"), "{name}");
        }
    }
}
