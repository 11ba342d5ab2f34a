//! `janus eval` on files in the formats of real benchmarks: what comes out is what their scorers read, an interrupted run goes
//! on, and results of different settings do not mix.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "harness/served.rs"]
mod served;
mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use served::Served;
use support::{binary, janus, names, text, tiny};
use tempfile::{TempDir, tempdir};

fn run(dir: &Path, args: &[&str]) -> Value {
    let run = janus(dir, &[&["eval"], args, &["--json"]].concat());
    assert_eq!(run.code, Some(0), "{args:?}: {run:?}");
    // At an endpoint it says which job it is.
    assert!(run.stderr.lines().all(|line| line.starts_with("janus: job ")), "{args:?}: {run:?}");
    serde_json::from_str(&run.stdout).unwrap()
}

fn refused(dir: &Path, args: &[&str]) -> String {
    let run = janus(dir, &[&["eval"], args].concat());
    assert_eq!(run.code, Some(2), "{run:?}");
    run.stderr
}

fn modified(path: &Path) -> std::time::SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap()
}

/// Two of GenEval's prompts.
fn geneval() -> TempDir {
    let dir = tempdir().unwrap();
    let line =
        |text: &str| json!({"tag": "single_object", "include": [{"class": "x", "count": 1}], "prompt": text}).to_string();
    let lines = [line("a red circle"), line("a blue square")].join("\n");
    std::fs::write(dir.path().join("metadata.jsonl"), lines + "\n").unwrap();
    dir
}

#[test]
fn geneval_gets_the_folders_that_its_scorer_reads_and_the_pictures_that_generate_paints() {
    let dir = geneval();
    let report = run(dir.path(), &["geneval", "metadata.jsonl", "--to", "out", "-n", "2", "--seed", "7"]);
    assert_eq!((&report["total"], &report["made"]), (&json!(4), &json!(4)));
    let out = dir.path().join("out");
    assert_eq!(names(&out), ["00000", "00001", "janus-eval.json"]);
    assert_eq!(names(&out.join("00001")), ["metadata.jsonl", "samples"]);
    assert_eq!(names(&out.join("00001/samples")), ["0000.png", "0001.png"]);
    let metadata: Value = serde_json::from_slice(&std::fs::read(out.join("00001/metadata.jsonl")).unwrap()).unwrap();
    assert_eq!(metadata["prompt"], "a blue square");
    let alone = janus(dir.path(), &["generate", "a blue square", "--seed", "8", "-o", "alone.png"]);
    assert_eq!(alone.code, Some(0), "{alone:?}");
    let picture = |path: &str| std::fs::read(dir.path().join(path)).unwrap();
    assert!(picture("out/00001/samples/0001.png") == picture("alone.png"), "the same seed paints the same picture");

    // What is missing is painted, and nothing else.
    let (kept, lost) = (out.join("00000/samples/0001.png"), out.join("00001/samples/0001.png"));
    let (before, bytes) = (modified(&kept), std::fs::read(&lost).unwrap());
    std::fs::remove_file(&lost).unwrap();
    let args = ["geneval", "metadata.jsonl", "--to", "out", "-n", "2", "--seed", "7"];
    let report = run(dir.path(), &args);
    assert_eq!((&report["total"], &report["made"]), (&json!(4), &json!(1)));
    assert_eq!(modified(&kept), before);
    assert_eq!(std::fs::read(&lost).unwrap(), bytes);
    let words = refused(dir.path(), &["geneval", "metadata.jsonl", "--to", "out", "-n", "2", "--seed", "8"]);
    assert!(words.contains("other settings") && words.contains("\"seed\":8"), "{words}");
}

#[test]
fn folders_for_fid_are_the_same_from_an_endpoint_with_many_requests_at_once() {
    let dir = tempdir().unwrap();
    let prompts = ["a red circle", "two green squares", "a yellow star", "a blue triangle", "a red square"];
    let mjhq: Value =
        prompts.iter().enumerate().map(|(i, p)| (format!("id{i}"), json!({"category": "food", "prompt": p}))).collect();
    std::fs::write(dir.path().join("meta_data.json"), mjhq.to_string()).unwrap();
    run(dir.path(), &["pictures", "meta_data.json", "--to", "here", "--parallel", "1"]);
    let served = Served::start(&["--stages", "2"]);
    let there = ["pictures", "meta_data.json", "--to", "there", "--parallel", "5", "--endpoint", &served.address];
    assert_eq!(run(dir.path(), &there)["made"], 5);
    assert_eq!(names(&dir.path().join("there/food")), ["id0.png", "id1.png", "id2.png", "id3.png", "id4.png"]);
    for name in names(&dir.path().join("here/food")) {
        let picture = |folder: &str| std::fs::read(dir.path().join(folder).join("food").join(&name)).unwrap();
        assert!(picture("here") == picture("there"), "{name}");
    }
}

/// The jobs that a server has, newest first: how they stand, and their items.
fn jobs(dir: &Path, served: &Served) -> Vec<(String, u64)> {
    let said = support::json(dir, &["jobs", "list", "--endpoint", &served.address, "--json"]);
    let all = said["jobs"].as_array().unwrap().iter();
    all.map(|job| (job["status"].as_str().unwrap().to_owned(), job["total"].as_u64().unwrap())).collect()
}

fn done(items: u64) -> (String, u64) {
    ("succeeded".to_owned(), items)
}

#[test]
fn an_endpoint_gets_a_job_whose_results_are_those_of_requests() {
    let dir = geneval();
    let served = Served::start(&[]);
    let here = ["geneval", "metadata.jsonl", "--to", "here", "-n", "2", "--seed", "7"];
    run(dir.path(), &here);
    let there = ["geneval", "metadata.jsonl", "--to", "there", "-n", "2", "--seed", "7", "--endpoint", &served.address];
    let report = run(dir.path(), &there);
    assert_eq!((&report["total"], &report["made"]), (&json!(4), &json!(4)));
    assert_eq!(jobs(dir.path(), &served), [done(2)]);
    let (here, folder) = (dir.path().join("here"), dir.path().join("there"));
    assert_eq!(names(&folder), ["00000", "00001", "janus-eval.json"], "nothing else is left");
    let picture =
        |folder: &Path, prompt: u32, i: u32| std::fs::read(folder.join(format!("{prompt:05}/samples/{i:04}.png"))).unwrap();
    for (prompt, i) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        assert!(picture(&here, prompt, i) == picture(&folder, prompt, i), "picture {i} of prompt {prompt}");
    }
    // A job of what is missing: the second picture of one prompt.
    std::fs::remove_file(folder.join("00001/samples/0001.png")).unwrap();
    assert_eq!(run(dir.path(), &there)["made"], 1);
    assert_eq!(jobs(dir.path(), &served), [done(1), done(2)]);
    assert!(picture(&here, 1, 1) == picture(&folder, 1, 1), "its seed is that of the second picture");
    assert_eq!(run(dir.path(), &there)["made"], 0);
    assert_eq!(jobs(dir.path(), &served).len(), 2, "no job of nothing");

    let images = dir.path().join("images");
    std::fs::create_dir(&images).unwrap();
    std::fs::copy(tiny("golden/images/rgb_64x64.png"), images.join("a.png")).unwrap();
    std::fs::copy(tiny("golden/images/rgb_97x61.png"), images.join("b.png")).unwrap();
    let question =
        |id: u32, image: &str| json!({"question_id": id, "image": image, "text": "is there a circle?"}).to_string();
    let lines = [question(1, "a.png"), question(2, "b.png"), question(3, "a.png")].join("\n");
    std::fs::write(dir.path().join("pope.jsonl"), lines).unwrap();
    let ask = |to: &str, more: &[&str]| {
        let args = ["pope", "pope.jsonl", "--images", "images", "--max-tokens", "4", "--suffix", "Yes or no?", "--to", to];
        run(dir.path(), &[&args, more].concat());
        std::fs::read_to_string(dir.path().join(to)).unwrap()
    };
    assert_eq!(ask("there.jsonl", &["--endpoint", &served.address]), ask("here.jsonl", &[]));
    assert_eq!(jobs(dir.path(), &served)[0], done(3));
    assert_eq!(names(dir.path()).iter().filter(|name| name.contains("jsonl.")).count(), 0, "no journal is left");
}

#[test]
fn a_run_that_was_interrupted_finds_its_job_again() {
    let dir = tempdir().unwrap();
    let prompts: Vec<String> = (0..12).map(|i| format!("{i} red circles")).collect();
    std::fs::write(dir.path().join("prompts.txt"), prompts.join("\n")).unwrap();
    let served = Served::start(&[]);
    let args = ["pictures", "prompts.txt", "--to", "out", "--endpoint", &served.address];
    let mut child =
        Command::new(binary()).arg("eval").args(args).current_dir(dir.path()).stderr(Stdio::piped()).spawn().unwrap();
    // It says which job it is as soon as there is one.
    let mut said = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let job = said.trim().strip_prefix("janus: job ").unwrap_or_else(|| panic!("{said}")).to_owned();
    assert!(!dir.path().join("out/000000.png").exists(), "it was interrupted too late to be seen");

    let again = janus(dir.path(), &[&["eval"], &args[..], &["--json"]].concat());
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.stderr.contains(&job), "{again:?}");
    assert_eq!(jobs(dir.path(), &served), [done(12)], "nothing was begun anew");
    assert_eq!(names(&dir.path().join("out")).len(), 13);

    // What another benchmark remembered is none of its business, and only what is missing is painted.
    std::fs::remove_file(dir.path().join("out/000003.png")).unwrap();
    let memory = json!({"work": "another benchmark", "key": "k", "job": job});
    std::fs::write(dir.path().join("out/janus-eval.job"), memory.to_string()).unwrap();
    assert_eq!(run(dir.path(), &args)["made"], 1);
    assert_eq!(jobs(dir.path(), &served), [done(1), done(12)]);
}

#[test]
fn items_that_fail_are_said_and_the_others_are_kept() {
    let dir = tempdir().unwrap();
    let prompts = ["a red circle".to_owned(), "circle ".repeat(20_000), "a blue square".to_owned()];
    std::fs::write(dir.path().join("prompts.txt"), prompts.join("\n")).unwrap();
    let served = Served::start(&[]);
    let args = ["eval", "pictures", "prompts.txt", "--to", "out", "--endpoint", &served.address];
    let run = janus(dir.path(), &args);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("1 of 3 items") && run.stderr.contains("failed"), "{run:?}");
    assert_eq!(names(&dir.path().join("out")), ["000000.png", "000002.png", "janus-eval.json"]);
}

#[test]
fn answers_have_the_form_of_their_scorers_and_go_on_after_an_interruption() {
    let dir = tempdir().unwrap();
    let images = dir.path().join("images");
    std::fs::create_dir(&images).unwrap();
    std::fs::copy(tiny("golden/images/rgb_64x64.png"), images.join("a.png")).unwrap();
    std::fs::copy(tiny("golden/images/rgb_97x61.png"), images.join("COCO_val2014_000000000009.jpg")).unwrap();
    let question =
        |id: u32| json!({"question_id": id, "image": "a.png", "text": "is there a circle?", "label": "yes"}).to_string();
    std::fs::write(dir.path().join("pope.jsonl"), [question(1), question(2), question(3)].join("\n")).unwrap();
    let args = ["pope", "pope.jsonl", "--images", "images", "--to", "answers.jsonl", "--max-tokens", "4"];
    assert_eq!(run(dir.path(), &args)["made"], 3);
    let written = std::fs::read_to_string(dir.path().join("answers.jsonl")).unwrap();
    let answers: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.iter().map(|a| a["question_id"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(answers[0]["question"], "is there a circle?");
    let image = text(&images.join("a.png"));
    let asked = support::json(dir.path(), &["ask", "is there a circle?", "--image", &image, "--max-tokens", "4", "--json"]);
    assert_eq!(answers[0]["answer"], asked["text"]);
    assert!(refused(dir.path(), &args).contains("there already"));

    // As a run leaves it that is interrupted in the middle of its second answer.
    let settings = ["pope", "pope.jsonl", "--images", "images", "--to", "again.jsonl", "--max-tokens", "4", "--limit", "1"];
    let model = support::json(dir.path(), &["inspect", "--json"])["digest"].clone();
    assert_eq!(run(dir.path(), &settings)["made"], 1);
    assert_eq!(names(dir.path()), ["again.jsonl", "answers.jsonl", "images", "pope.jsonl"], "no journal is left");
    let journal = dir.path().join("third.jsonl.progress");
    let head = json!({"model": model, "numerics": "cpu", "cfg_weight": null, "temperature": 0.0, "seed": 0, "max_tokens": 4, "suffix": ""});
    std::fs::write(&journal, format!("{head}\n[0,\"said before\"]\n[1,\"to")).unwrap();
    let third = ["pope", "pope.jsonl", "--images", "images", "--to", "third.jsonl", "--max-tokens", "4"];
    let words = refused(dir.path(), &third);
    assert!(words.contains("other settings"), "{words}");
    // The numerics are the machine's own; take them from the refusal.
    let ours = words.split(" there, ").nth(1).unwrap().split(" now)").next().unwrap();
    std::fs::write(&journal, format!("{ours}\n[0,\"said before\"]\n[1,\"to")).unwrap();
    assert_eq!(run(dir.path(), &third)["made"], 2);
    let written = std::fs::read_to_string(dir.path().join("third.jsonl")).unwrap();
    let third: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&third[0]["answer"], &third[1]["answer"]), (&json!("said before"), &answers[1]["answer"]));

    let vqa = json!({"data_subtype": "val2014", "questions": [{"image_id": 9, "question": "What?", "question_id": 9000}]});
    std::fs::write(dir.path().join("vqa.json"), vqa.to_string()).unwrap();
    run(
        dir.path(),
        &["vqav2", "vqa.json", "--images", "images", "--to", "vqa-answers.json", "--suffix", "Answer with one word."],
    );
    let vqa: Value = serde_json::from_slice(&std::fs::read(dir.path().join("vqa-answers.json")).unwrap()).unwrap();
    assert!(vqa[0]["question_id"] == 9000 && vqa[0]["answer"].is_string(), "{vqa}");

    std::fs::create_dir_all(dir.path().join("mme")).unwrap();
    std::fs::create_dir_all(images.join("color")).unwrap();
    std::fs::copy(images.join("a.png"), images.join("color/a.png")).unwrap();
    std::fs::write(dir.path().join("mme/color.txt"), "a.png\tis there a circle?\tYes\n").unwrap();
    run(dir.path(), &["mme", "mme", "--images", "images", "--to", "mme-answers", "--max-tokens", "4"]);
    let line = std::fs::read_to_string(dir.path().join("mme-answers/color.txt")).unwrap();
    let columns: Vec<&str> = line.trim_end_matches('\n').split('\t').collect();
    assert_eq!(columns, ["a.png", "is there a circle?", "Yes", answers[0]["answer"].as_str().unwrap()]);

    std::fs::write(dir.path().join("lost.jsonl"), json!({"question_id": 1, "image": "b.png", "text": "?"}).to_string())
        .unwrap();
    let words = refused(dir.path(), &["pope", "lost.jsonl", "--images", "images", "--to", "x.jsonl"]);
    assert!(words.contains("b.png") && words.contains("--images"), "{words}");
}
