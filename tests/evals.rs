//! `janus eval` on files in the formats of real benchmarks: what comes out is what their scorers read, an interrupted run goes
//! on, and results of different settings do not mix.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "harness/served.rs"]
mod served;
mod support;

use std::path::Path;

use serde_json::{Value, json};
use served::Served;
use support::{janus, names, text, tiny};
use tempfile::{TempDir, tempdir};

fn run(dir: &Path, args: &[&str]) -> Value {
    support::json(dir, &[&["eval"], args, &["--json"]].concat())
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
