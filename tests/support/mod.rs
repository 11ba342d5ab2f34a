//! Running the real binary, the golden data, and checkpoints to be damaged.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

pub mod checkpoint;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The same weights in three forms.
pub const FORMS: [&str; 3] = ["transformers", "original-safetensors", "original-bin"];

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A file or folder of the reference data.
pub fn tiny(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-a").join(path)
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The program under test, from the folder that this test was built into.
pub fn binary() -> PathBuf {
    let built = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("janus");
    assert!(
        built.is_file(),
        "{} is missing: run `cargo build --release --workspace` first, or `tests/run`",
        built.display()
    );
    built
}

/// What a run of the program left.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program in `dir`. It gets a minute and 8 GiB of addresses: a lying file must cost neither.
pub fn janus<A: AsRef<OsStr>>(dir: &Path, args: &[A]) -> Run {
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 8388608; exec timeout 60 \"$0\" \"$@\""])
        .arg(binary())
        .args(args)
        .current_dir(dir)
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs the program, which must succeed in silence; gives back its one line of JSON.
pub fn json<A: AsRef<OsStr> + std::fmt::Debug>(dir: &Path, args: &[A]) -> Value {
    let run = janus(dir, args);
    assert_eq!(run.code, Some(0), "{args:?}: {}", run.stderr);
    assert_eq!(run.stderr, "", "{args:?}");
    assert_eq!(run.stdout.lines().count(), 1, "{args:?}: {}", run.stdout);
    serde_json::from_str(&run.stdout).unwrap()
}

/// Names, sizes and times of everything below a folder.
pub fn listing(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        found.push(format!("{} {} {:?}", path.display(), meta.len(), meta.modified().unwrap()));
        if meta.is_dir() {
            found.extend(listing(&path));
        }
    }
    found.sort();
    found
}

/// Names of the files in a folder.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A JSON file of the reference data.
pub fn golden_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(tiny("golden").join(name)).unwrap()).unwrap()
}

/// Values of a golden tensor, each of `N` bytes.
fn golden<const N: usize>(file: &str, tensor: &str) -> Vec<[u8; N]> {
    let file = checkpoint::Safetensors::read(&tiny("golden").join(format!("{file}.safetensors")));
    file.tensor(tensor).as_chunks::<N>().0.to_vec()
}

pub fn golden_ids(file: &str, tensor: &str) -> Vec<u64> {
    golden::<8>(file, tensor).into_iter().map(u64::from_le_bytes).collect()
}

pub fn golden_f32(file: &str, tensor: &str) -> Vec<f32> {
    golden::<4>(file, tensor).into_iter().map(f32::from_le_bytes).collect()
}

/// Unsigned numbers of a JSON list.
pub fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list")).iter().map(|id| id.as_u64().unwrap()).collect()
}

/// A prompt of `prompts.json`: its text and its ids, pictures expanded.
pub fn prompt(name: &str) -> (String, Vec<u64>) {
    let all = golden_json("prompts.json");
    let prompt = &all["prompts"][name];
    (prompt["text"].as_str().unwrap().to_owned(), ids(&prompt["ids"]))
}
