//! A client in another language, of nothing but the protos.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "harness/served.rs"]
mod served;
mod support;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use served::Served;
use support::{golden_json, ids, json, repository, text, tiny};

/// Runs a program that must succeed; gives back what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; Debian: python3 and python3-venv"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A virtual environment with gRPC's tools. It stays from one run to the next, until its list of packages is new.
fn environment() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let list = repository().join("tests/python/requirements.txt");
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("grpc-python");
        let (wanted, stamp) = (std::fs::read(&list).unwrap(), dir.join("installed"));
        if std::fs::read(&stamp).ok().as_ref() != Some(&wanted) {
            let _ = std::fs::remove_dir_all(&dir);
            run(Command::new("timeout").args(["120", "python3", "-m", "venv"]).arg(&dir));
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
            run(Command::new("timeout").arg("240").arg(dir.join("bin/python")).args(pip).arg(list));
            std::fs::write(stamp, wanted).unwrap();
        }
        dir
    })
}

/// An interpreter with gRPC and the stubs of our protos in `dir`.
fn python(dir: &Path) -> Command {
    let python = environment().join("bin/python");
    let here = repository().join("tests/python");
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

/// The body of README.md's block that is fenced as `language` and has `word` in it.
fn block(language: &str, word: &str) -> String {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let mut blocks = readme.split("```").filter_map(|block| block.strip_prefix(&format!("{language}\n")));
    blocks.find(|block| block.contains(word)).unwrap_or_else(|| panic!("README.md lost its {word}")).to_owned()
}

#[test]
fn the_client_in_the_readme_paints_a_picture() {
    let program = block("python", "import grpc");
    assert!(program.lines().filter(|line| !line.is_empty()).count() <= 10, "it is said to have ten lines:\n{program}");
    let served = Served::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    symlink(repository().join("proto"), dir.path().join("proto")).unwrap();
    let path = format!("{}:{}", environment().join("bin").display(), std::env::var("PATH").unwrap());
    let within = |program: &str| {
        let mut command = Command::new("timeout");
        command.args(["240", program]).current_dir(dir.path()).env("PATH", &path);
        command
    };
    // What is installed already satisfies it.
    run(within("sh").args(["-euc", &block("sh", "grpc_tools.protoc")]));
    let (usual, here) = ("127.0.0.1:7070", served.address.as_str());
    assert!(program.contains(usual), "{program}");
    let said = run(within("python3").args(["-c", &program.replace(usual, here)]));
    assert!(said.lines().all(|line| line.ends_with("of 64 ids")) && said.contains("64 of 64"), "{said}");

    let painted = std::fs::read(dir.path().join("circle.ppm")).unwrap();
    let generate = ["generate", "a red circle", "--seed", "7", "--endpoint", here, "-o", "circle.png", "--json"];
    json(dir.path(), &generate);
    let expected = image::open(dir.path().join("circle.png")).unwrap().into_rgb8();
    let (width, height) = expected.dimensions();
    let pixels = painted.strip_prefix(format!("P6 {width} {height} 255 ").as_bytes());
    assert!(pixels == Some(expected.as_raw().as_slice()), "it is the picture that everybody gets");
}
