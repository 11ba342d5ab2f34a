//! `janus jobs` as people and scripts type it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use janus_wire::Listener;
use serde_json::{Value, json};
use tempfile::tempdir;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::served::Served;
use crate::support::{binary, janus, names, repository};

/// A file of `count` items that paint, with a question at its end.
fn items(dir: &Path, count: usize) {
    let picture = repository().join("tests/data/tiny-a/golden/images/rgb_64x64.png");
    std::fs::copy(picture, dir.join("photo.png")).unwrap();
    let paint = |i: usize| json!({ "id": format!("p{i}"), "prompt": "a red circle", "seed": i }).to_string();
    let mut lines: Vec<String> = (0..count).map(paint).collect();
    lines.push(json!({ "id": "q", "question": "What is in the picture?", "images": ["photo.png"] }).to_string());
    std::fs::write(dir.join("items.jsonl"), lines.join("\n")).unwrap();
}

fn answer(dir: &Path, args: &[&str]) -> Value {
    let run = janus(dir, args);
    assert_eq!(run.code, Some(0), "{args:?}: {}", run.stderr);
    assert_eq!(run.stdout.lines().count(), 1, "{args:?}: {}", run.stdout);
    serde_json::from_str(&run.stdout).unwrap()
}

fn manifest(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("manifest.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_job_runs_here_and_its_results_are_those_of_generate() {
    let dir = tempdir().unwrap();
    items(dir.path(), 3);
    let job = answer(dir.path(), &["jobs", "submit", "items.jsonl", "--out", "out", "--json"]);
    assert_eq!((&job["status"], &job["total"], &job["succeeded"]), (&json!("succeeded"), &json!(4), &json!(4)), "{job}");
    assert_eq!((&job["failed"], &job["cancelled"]), (&json!(0), &json!(0)));
    let out = dir.path().join("out");
    assert_eq!(names(&out), ["manifest.jsonl", "pictures"]);
    let lines = manifest(&out);
    assert_eq!(lines.iter().map(|l| l["id"].as_str().unwrap()).collect::<Vec<_>>(), ["p0", "p1", "p2", "q"]);
    let alone = answer(dir.path(), &["generate", "a red circle", "--seed", "2", "-o", "alone.png", "--json"]);
    assert_eq!(lines[2]["sha256"], alone["images"][0]["sha256"]);
    let file = |path: &Path| std::fs::read(path).unwrap();
    assert!(file(&out.join(lines[2]["path"].as_str().unwrap())) == file(&dir.path().join("alone.png")));
    assert!(!lines[3]["text"].as_str().unwrap().is_empty());
}

/// Somebody who refuses everything as a standby does, before any item has come, and says who leads.
async fn standby(leader: String) -> String {
    let refuse = move || {
        let leader = leader.parse().unwrap();
        async move {
            let mut status = Status::unavailable("another one leads");
            status.metadata_mut().insert(janus_wire::LEADER, leader);
            status.into_http::<axum::body::Body>()
        }
    };
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.address().to_string();
    let server = Server::builder().add_routes(Routes::from(axum::Router::new().fallback(refuse)));
    tokio::spawn(server.serve_with_incoming(listener.incoming()));
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_a_standby_does_not_take_go_to_the_leader() {
    let dir = tempdir().unwrap();
    // More than may be on their way at once.
    let item = |i: usize| json!({ "id": format!("p{i}"), "prompt": "a red circle" }).to_string();
    std::fs::write(dir.path().join("items.jsonl"), (0..3000).map(item).collect::<Vec<_>>().join("\n")).unwrap();
    let served = Served::start(&[]);
    let endpoint = standby(served.address.clone()).await;
    let submitted = tokio::task::spawn_blocking(move || {
        let submit = ["jobs", "submit", "items.jsonl", "--key", "one", "--endpoint", &endpoint];
        let jobs: Vec<Value> = (0..8).map(|_| answer(dir.path(), &submit)["job"].clone()).collect();
        assert!(jobs.iter().all(|job| job.is_string() && *job == jobs[0]), "{jobs:?}");
    });
    submitted.await.unwrap();
}

#[test]
fn a_job_that_is_stopped_here_goes_on_where_it_was() {
    let dir = tempdir().unwrap();
    items(dir.path(), 40);
    let args = ["jobs", "submit", "items.jsonl", "--out"];
    answer(dir.path(), &[&args[..], &["whole"]].concat());
    let mut child = Command::new(binary())
        .args(args)
        .arg("out")
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let out = dir.path().join("out");
    // Pictures are there before the job is done.
    let begun = || walk(&out.join(".janus-jobs")).iter().filter(|name| name.ends_with(".png")).count();
    let until = Instant::now() + Duration::from_secs(90);
    while begun() < 8 {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "it painted {} pictures", begun());
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.join("manifest.jsonl").exists());
    let job = answer(dir.path(), &[&args[..], &["out"]].concat());
    assert_eq!(job["succeeded"], 41, "{job}");
    assert_eq!(names(&out), ["manifest.jsonl", "pictures"]);
    let whole = dir.path().join("whole");
    for name in walk(&whole) {
        assert!(std::fs::read(whole.join(&name)).unwrap() == std::fs::read(out.join(&name)).unwrap(), "{name}");
    }
}

/// Names of all files below a folder.
fn walk(dir: &Path) -> Vec<String> {
    let (mut found, mut left) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = left.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path().is_dir() {
                true => left.push(entry.path()),
                false => found.push(entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_server_with_state_keeps_its_jobs_when_it_is_started_again() {
    let dir = tempdir().unwrap();
    items(dir.path(), 30);
    let state = dir.path().join("state").to_str().unwrap().to_owned();
    let served = Served::start(&["--state", &state]);
    let submit = ["jobs", "submit", "items.jsonl", "--key", "k", "--endpoint"];
    let job = answer(dir.path(), &[&submit[..], &[&served.address]].concat());
    assert_eq!(job.as_object().unwrap().keys().collect::<Vec<_>>(), ["job"]);
    let id = job["job"].as_str().unwrap();
    let pictures = dir.path().join("state/jobs/jobs").join(id).join("output/pictures");
    let until = Instant::now() + Duration::from_secs(90);
    while std::fs::read_dir(&pictures).map_or(0, Iterator::count) < 5 {
        assert!(Instant::now() < until, "it paints nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Killed, not asked to end.
    drop(served);
    let served = Served::start(&["--state", &state]);
    let at = ["--endpoint", served.address.as_str()];
    assert_eq!(answer(dir.path(), &[&submit[..], &[&served.address]].concat()), job);
    let ended = answer(dir.path(), &[&["jobs", "watch", id][..], &at].concat());
    assert_eq!((&ended["status"], &ended["succeeded"]), (&json!("succeeded"), &json!(31)), "{ended}");
    assert_eq!(answer(dir.path(), &[&["jobs", "get", id][..], &at].concat()), ended);
    let listed = answer(dir.path(), &[&["jobs", "list", "--json"][..], &at].concat());
    assert_eq!(listed["jobs"], json!([ended]));
    answer(dir.path(), &[&["jobs", "results", id, "--out", "got"][..], &at].concat());
    let printed = janus(dir.path(), &[&["jobs", "results", id][..], &at].concat()).stdout;
    assert_eq!(std::fs::read_to_string(dir.path().join("got/manifest.jsonl")).unwrap(), printed);
    assert_eq!(names(&dir.path().join("got/pictures")).len(), 30);
    let rest = janus(dir.path(), &[&["jobs", "results", id, "--first", "29"][..], &at].concat()).stdout;
    assert_eq!(rest.lines().collect::<Vec<_>>(), printed.lines().skip(29).collect::<Vec<_>>());
    let deleted = answer(dir.path(), &[&["jobs", "delete", id][..], &at].concat());
    assert_eq!(deleted, job);
    let gone = janus(dir.path(), &[&["jobs", "get", id][..], &at].concat());
    assert_eq!((gone.code, gone.stderr.contains(id)), (Some(2), true), "{gone:?}");
}

#[test]
fn mistakes_are_named_before_anything_is_started() {
    let dir = tempdir().unwrap();
    items(dir.path(), 1);
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("unknown.jsonl", "{\"id\":\"a\",\"prompt\":\"x\"}\n{\"id\":\"b\",\"prompt\":\"x\",\"sede\":1}\n");
    write("twice.jsonl", "{\"id\":\"a\",\"prompt\":\"x\"}\n\n{\"id\":\"a\",\"prompt\":\"x\"}\n");
    write("empty.jsonl", "\n");
    write("file", "");
    let picture = "{\"id\":\"a\",\"question\":\"x\",\"images\":[\"file\"]}";
    write("picture.jsonl", picture);
    for (args, says) in [
        (vec!["unknown.jsonl", "--out", "o"], "unknown.jsonl:2: unknown field `sede`"),
        (vec!["twice.jsonl", "--out", "o"], "twice.jsonl:3: id: `a` is there twice"),
        (vec!["empty.jsonl", "--out", "o"], "empty.jsonl: there is no item in it"),
        (vec!["picture.jsonl", "--out", "o"], "picture.jsonl:1: "),
        (vec!["missing.jsonl", "--out", "o"], "missing.jsonl: cannot be read"),
        (vec!["items.jsonl", "--out", "file/o"], "--out file/o: cannot be written"),
        (vec!["items.jsonl"], "--out"),
        (vec!["items.jsonl", "--out", "o", "--priority", "soon"], "soon"),
        (vec!["items.jsonl", "--out", "o", "--model", "no-such-model"], "no-such-model"),
        (vec!["items.jsonl", "--endpoint", ""], "--endpoint is empty"),
    ] {
        let run = janus(dir.path(), &[&["jobs", "submit"][..], &args].concat());
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{args:?}: {run:?}");
        assert!(run.stderr.contains(says), "{args:?}: {}", run.stderr);
    }
    let nobody = janus(dir.path(), &["jobs", "get", "x", "--endpoint", "127.0.0.1:1"]);
    assert_eq!(nobody.code, Some(1), "{nobody:?}");
}
