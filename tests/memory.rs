//! Loading takes little more memory than what is kept: no stage reads what it does not own, nothing is held twice.
//! Measured in processes of their own, whose peak the system knows.
#![allow(clippy::unwrap_used, missing_docs)]

use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use janus_model::{Checkpoint, KvDtype, Pool, WeightFormat};
use janus_spec::{Files, Layout, ModelSpec};
use janus_worker::stage::{Compute, ModelCompute};
use serde_json::{Value, json};

/// Says what a child process is to load: `DIR FIRST END FORMAT`.
const TASK: &str = "JANUS_TEST_LOADS";

/// Two layers as wide as those of Janus-Pro-1B, half its words, and hardly any towers.
fn write_checkpoint(dir: &Path) {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-a/original-safetensors");
    std::fs::copy(tiny.join("preprocessor_config.json"), dir.join("preprocessor_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(tiny.join("config.json")).unwrap()).unwrap();
    let llm = &mut config["language_config"];
    (llm["hidden_size"], llm["intermediate_size"], llm["num_hidden_layers"]) = (json!(2048), json!(5632), json!(2));
    (llm["num_attention_heads"], llm["num_key_value_heads"], llm["vocab_size"]) = (json!(16), json!(16), json!(51_200));
    config["aligner_config"]["params"]["n_embed"] = json!(2048);
    config["gen_aligner_config"]["params"]["n_embed"] = json!(2048);
    config["gen_head_config"]["params"]["image_token_embed"] = json!(2048);
    config["gen_head_config"]["params"]["n_embed"] = json!(2048);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let spec = ModelSpec::load(&Files::open_dir(dir).unwrap()).unwrap();
    Checkpoint::random(spec, 3).save_weights(dir, Layout::Original).unwrap();
}

/// Peak resident bytes of this process so far.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// The child's side; nothing to do in the parent.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<&str> = task.split(' ').collect();
    let [dir, first, end, format] = words[..] else { panic!("{task}") };
    let format = [WeightFormat::Bf16, WeightFormat::Q4].into_iter().find(|f| f.name() == format).unwrap();
    let checkpoint = Checkpoint::open(Files::open_dir(dir).unwrap()).unwrap();
    let before = peak();
    let range = first.parse().unwrap()..end.parse().unwrap();
    let stage = ModelCompute::load(&checkpoint, Arc::new(Pool::new(2)), range, format, KvDtype::Bf16, 8).unwrap();
    println!("\nloaded {before} {} {}", peak(), stage.weight_bytes());
}

/// (Peak before, peak after, bytes kept) of a process that loads these layers.
fn load(dir: &Path, range: Range<usize>, format: &str) -> (usize, usize, usize) {
    let task = format!("{} {} {} {format}", dir.display(), range.start, range.end);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(TASK, task)
        .output()
        .unwrap();
    let out = String::from_utf8(child.stdout).unwrap();
    let line = out.lines().find_map(|line| line.strip_prefix("loaded ")).unwrap_or_else(|| panic!("{out}"));
    let numbers: Vec<usize> = line.split(' ').map(|n| n.parse().unwrap()).collect();
    (numbers[0], numbers[1], numbers[2])
}

#[test]
fn loading_peaks_at_little_more_than_what_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path());
    let mut kept_by_stage = Vec::new();
    for (range, format) in [(0..2, "bf16"), (0..1, "bf16"), (1..2, "bf16"), (0..2, "q4")] {
        let (before, peak, kept) = load(dir.path(), range.clone(), format);
        let what = format!("layers {range:?} in {format}: peak {peak}, kept {kept}, {before} before");
        println!("{what}");
        assert!(peak * 10 <= kept * 11, "{what}");
        kept_by_stage.push(kept);
    }
    assert_eq!(kept_by_stage[0], kept_by_stage[1] + kept_by_stage[2], "two stages hold the weights once between them");
}
