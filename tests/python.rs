//! A client in another language, of nothing but the protos.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "harness/served.rs"]
mod served;
mod support;

use std::path::Path;
use std::process::Command;

use served::Served;
use support::{golden_json, ids, json, repository, text, tiny};

/// Runs a program that must succeed; gives back what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; Debian: python3 and python3-venv"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// An interpreter with gRPC and the stubs of our protos, all in `dir`.
fn python(dir: &Path) -> Command {
    run(Command::new("timeout").args(["120", "python3", "-m", "venv"]).arg(dir));
    let python = dir.join("bin/python");
    let here = repository().join("tests/python");
    let pip = ["240", python.to_str().unwrap(), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    run(Command::new("timeout").args(pip).arg(here.join("requirements.txt")));
    let protos = ["frame", "nodes", "inference"].map(|name| format!("janus/v1/{name}.proto"));
    let mut protoc = Command::new("timeout");
    protoc.arg("60").arg(&python).args(["-m", "grpc_tools.protoc", "-I"]).arg(repository().join("proto"));
    let out = |kind: &str| format!("--{kind}={}", dir.display());
    run(protoc.args([out("python_out"), out("grpc_python_out")]).args(protos));
    let mut command = Command::new("timeout");
    command.arg("120").arg(python).arg(here.join("client.py")).env("PYTHONPATH", dir);
    command
}

#[test]
fn a_python_client_paints_a_picture_and_asks_a_question() {
    let dir = tempfile::tempdir().unwrap();
    let model = text(&tiny("transformers"));
    let served = Served::start(&["--model", &model, "--stages", "2"]);
    let photo = text(&tiny("golden/images/rgb_64x64.png"));
    let (prompt, question) = ("a red boat", "What is in the picture?");
    let said = run(python(dir.path()).args([&served.address, prompt, question, &photo]));
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();

    let at = ["--endpoint", &served.address, "--json"];
    let painted = json(dir.path(), &[&["generate", prompt, "--temperature", "0", "-o", "x.png"][..], &at].concat());
    for key in ["tokens", "sha256"] {
        assert_eq!(said["image"][key], painted["images"][0][key]);
    }
    assert_eq!(ids(&said["image"]["tokens"]), ids(&golden_json("generate.json")["generate_pro_2_cfg5"]["image_ids"]));
    let asked = json(dir.path(), &[&["ask", question, "--image", &photo, "--max-tokens", "24"][..], &at].concat());
    assert_eq!(said["answer"]["tokens"], asked["tokens"]);
    assert!(!ids(&said["answer"]["tokens"]).is_empty());
}
