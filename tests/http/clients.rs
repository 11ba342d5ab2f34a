//! The packages that people use, against a real model; and a fuzzer that knows the OpenAPI document.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use super::Door;
use super::jobs::FakeJobs;
use super::served::Served;
use super::support::{janus, repository};

/// Runs a program that must succeed; gives back what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{command:?}: {e}; Debian: python3 python3-venv nodejs npm"));
    let (said, out) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{command:?}:\n{out}\n{said}");
    out.into_owned()
}

fn within(seconds: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.arg(seconds).arg(program);
    command
}

/// A folder of programs that stays from one run to the next, made by `make` when its list of packages is new.
fn installed(name: &str, list: &Path, make: impl FnOnce(&Path)) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let (wanted, stamp) = (std::fs::read(list).unwrap(), dir.join("installed"));
    if std::fs::read(&stamp).ok().as_ref() != Some(&wanted) {
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        make(&dir);
        std::fs::write(&stamp, wanted).unwrap();
    }
    dir
}

/// The folder of Python's programs.
pub fn python() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let list = repository().join("tests/python/requirements-doors.txt");
        let dir = installed("doors-python", &list, |dir| {
            run(within("120", "python3").args(["-m", "venv"]).arg(dir));
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
            run(within("300", dir.join("bin/python")).args(pip).arg(&list));
        });
        dir.join("bin")
    })
}

/// The folder with Node's packages.
fn node() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let list = repository().join("tests/node/package.json");
        installed("doors-node", &list, |dir| {
            std::fs::copy(&list, dir.join("package.json")).unwrap();
            run(within("300", "npm").args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(dir));
        })
    })
}

/// Python runs `script` from this repository's tests.
fn python_runs(script: &str, args: &[&str]) -> String {
    let script = repository().join("tests/python").join(script);
    run(within("240", python().join("python")).arg(script).args(args))
}

/// Node runs `script`, which finds its packages beside itself.
fn node_runs(script: &str, args: &[&str]) -> String {
    let here = node().join(script);
    std::fs::copy(repository().join("tests/node").join(script), &here).unwrap();
    run(within("240", "node").arg(here).args(args))
}

#[test]
fn the_python_package_drives_every_endpoint_that_answers_at_once() {
    let served = Served::start(&["--stages", "2"]);
    let said: Value = serde_json::from_str(&python_runs("doors.py", &[&served.http(), "64"])).unwrap();
    // What it got is what the command line paints.
    let dir = tempfile::tempdir().unwrap();
    let run = janus(dir.path(), &["generate", "a red circle left of a blue square", "--seed", "7", "-n", "2", "--json"]);
    let painted: Value = serde_json::from_str(&run.stdout).unwrap();
    let ids: Vec<&Value> = painted["images"].as_array().unwrap().iter().map(|image| &image["sha256"]).collect();
    assert_eq!(said["pictures"]["ids"].as_array().unwrap().iter().collect::<Vec<_>>(), ids);
}

#[test]
fn the_node_package_drives_every_endpoint_that_answers_at_once() {
    let served = Served::start(&[]);
    node_runs("doors.mjs", &[&served.http(), "64"]);
}

#[test]
fn batches_are_done_by_a_real_model() {
    let served = Served::start(&[]);
    let url = served.http();
    python_runs("batches.py", &[&url, "real"]);
    node_runs("batches.mjs", &[&url]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_used_for_another_batch_is_refused_by_the_names_of_this_door() {
    let served = Served::start(&[]);
    let (url, client) = (served.http(), super::http());
    let upload = async |prompt: &str| {
        let body = serde_json::json!({ "prompt": prompt });
        let line = serde_json::json!({ "custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": body });
        let form = format!(
            "--edge\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--edge\r\n\
             content-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n{line}\r\n--edge--\r\n"
        );
        let request = client.post(format!("{url}/v1/files")).header("content-type", "multipart/form-data; boundary=edge");
        let file: Value = request.body(form).send().await.unwrap().json().await.unwrap();
        file["id"].as_str().unwrap().to_owned()
    };
    let make = async |file: &str, key: &str| {
        let endpoint = "/v1/images/generations";
        let batch = serde_json::json!({ "input_file_id": file, "endpoint": endpoint, "completion_window": "24h" });
        let request = client.post(format!("{url}/v1/batches")).header("idempotency-key", key).json(&batch);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    let (one, other) = (upload("a red circle").await, upload("a blue square").await);
    let (first, again) = (make(&one, "k1").await, make(&one, "k1").await);
    assert_eq!((first.0, again.0), (200, 200), "{first:?} {again:?}");
    assert_eq!(first.1["id"], again.1["id"]);
    let (status, said) = make(&other, "k1").await;
    let (message, param) = (said["error"]["message"].as_str().unwrap(), said["error"]["param"].as_str());
    assert_eq!((status, param), (409, Some("idempotency-key")), "{said}");
    assert!(message.starts_with("idempotency-key: `k1` ") && !message.contains("openai/"), "{message}");
    let (status, said) = make(&one, &"k".repeat(2000)).await;
    assert_eq!((status, said["error"]["param"].as_str()), (400, Some("idempotency-key")), "{said}");
    assert!(said["error"]["message"].as_str().unwrap().starts_with("idempotency-key: "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_packages_drive_files_and_batches_through_their_life() {
    for script in ["batches.py", "batches.mjs"] {
        // One that breaks off the first download: it goes on where it was.
        let fake = FakeJobs::default();
        let door = Door::open(&fake.serve().await).await;
        let url = door.url.clone();
        let drive = move || match script.ends_with(".py") {
            true => python_runs(script, &[&url]),
            false => node_runs(script, &[&url]),
        };
        tokio::task::spawn_blocking(drive).await.unwrap();
        assert!(fake.broke(), "no download was broken off");
    }
}

#[test]
fn a_fuzzer_that_knows_the_document_finds_no_failure() {
    let served = Served::start(&[]);
    let document = format!("{}/openapi.json", served.http());
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    let dir = tempfile::tempdir().unwrap();
    let mut fuzzer = within("300", python().join("schemathesis"));
    fuzzer.current_dir(dir.path()).args(["run", &document, "--checks", checks, "--phases", "coverage,fuzzing"]);
    fuzzer.args(["--max-examples", "40", "--seed", "1", "--request-timeout", "60", "--generation-database", "none"]);
    let said = run(&mut fuzzer);
    assert!(said.contains("generated") && said.contains("passed"), "{said}");
}

/// The block of README.md that is fenced as `python` and imports openai.
fn readme() -> String {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let mut blocks = readme.split("```python\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.find(|block| block.contains("import OpenAI")).expect("README.md lost its openai program").to_owned()
}

#[test]
fn the_program_of_the_readme_runs_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(&[]);
    let program = readme();
    assert!(program.lines().count() <= 20);
    // Only the address is another one than the usual, which may be taken here.
    let usual = "http://127.0.0.1:8080";
    assert!(program.contains(usual));
    std::fs::write(dir.path().join("program.py"), program.replace(usual, &served.http())).unwrap();
    let said = run(within("120", python().join("python")).arg("program.py").current_dir(dir.path()));
    assert!(said.contains("red"), "{said}");
    let picture = image::open(dir.path().join("picture.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (64, 64));
}
