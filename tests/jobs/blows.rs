//! A job whose cluster is killed: a coordinator, a stage, everything at once. Its manifest is that of a run that nobody
//! disturbed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::support::{binary, names};
use crate::up::{Up, ready, signal};

/// How long a job may go without any progress.
const PATIENCE: Duration = Duration::from_secs(150);

/// What pictures of `shapes` are of.
fn items(dir: &Path, count: usize) {
    let (colours, shapes) = (["red", "green", "blue", "yellow"], ["circle", "square", "triangle"]);
    let item = |i: usize| {
        let (colour, shape) = (colours[i % 4], shapes[i / 4 % 3]);
        match i % 50 {
            // A prompt that nobody can paint fails in the same words, whatever happens.
            49 => json!({ "id": format!("i{i}"), "prompt": "a <begin_of_image>" }),
            48 => json!({ "id": format!("i{i}"), "question": format!("Is a {shape} {colour}?"), "images": [] }),
            _ => json!({ "id": format!("i{i}"), "prompt": format!("a {colour} {shape}"), "seed": i }),
        }
    };
    let lines: Vec<String> = (0..count).map(|i| item(i).to_string()).collect();
    std::fs::write(dir.join("items.jsonl"), lines.join("\n")).unwrap();
}

/// One line of JSON from a verb that may wait for long; if there is none, what it said instead.
fn jobs(dir: &Path, args: &[&str]) -> Result<Value, String> {
    let mut command = std::process::Command::new("timeout");
    command.arg("900").arg(binary()).arg("jobs").args(args).current_dir(dir);
    let output = command.output().unwrap();
    serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("{args:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// Waits until so many items are done; how many there are then.
async fn reaches(dir: &Path, up: &Up, id: &str, items: u64) -> u64 {
    let (mut heard, mut last) = (Instant::now(), 0);
    loop {
        let get = ["get", id, "--endpoint", up.endpoints.as_str()];
        if let Ok(job) = jobs(dir, &get) {
            let done = job["succeeded"].as_u64().unwrap() + job["failed"].as_u64().unwrap();
            if done >= items {
                return done;
            }
            if done > last {
                (heard, last) = (Instant::now(), done);
            }
        }
        assert!(heard.elapsed() < PATIENCE, "{last} of {items} items are done.\n{}", up.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// All files of a result, by name.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |name: &String| (name.clone(), std::fs::read(dir.join("pictures").join(name)).unwrap());
    names(&dir.join("pictures")).iter().map(read).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_coordinator_stage_and_everything_changes_no_byte_of_the_results() {
    let count = std::env::var("JANUS_JOB_ITEMS").map_or(1000, |text| text.parse().unwrap());
    let dir = tempdir().unwrap();
    items(dir.path(), count);
    let begun = Instant::now();
    let whole = jobs(dir.path(), &["submit", "items.jsonl", "--out", "whole"]).unwrap();
    assert_eq!(whole["failed"], count as u64 / 50, "{whole}");
    println!("undisturbed, in one process: {count} items in {:.1} s", begun.elapsed().as_secs_f64());

    let mut up = Up::start(&["--stages", "2", "--coordinators", "2", "--ttl", "2"]);
    let begun = Instant::now();
    let job = jobs(dir.path(), &["submit", "items.jsonl", "--endpoint", &up.endpoints]).unwrap();
    let id = job["job"].as_str().unwrap();
    let total = count as u64;
    // (percent, who)
    for (percent, victim) in [(20, "coordinator"), (40, "stage"), (60, "everything")] {
        let done = reaches(dir.path(), &up, id, total * percent / 100).await;
        assert!(done < total, "the blow at {percent} % fell too late");
        match victim {
            "coordinator" => {
                let leader = up.until("somebody leads", |status| status["leader"] != "").await;
                signal(up.pid(leader["leader"].as_str().unwrap()).await, "KILL");
            }
            "stage" => signal(up.pid("stage-1").await, "KILL"),
            _ => {
                up.kill_all();
                up.start_again();
            }
        }
        println!("{victim} killed at {done} of {total} items");
    }
    reaches(dir.path(), &up, id, total).await;
    let watched = jobs(dir.path(), &["watch", id, "--endpoint", &up.endpoints]).unwrap();
    println!("killed three times: {count} items in {:.1} s", begun.elapsed().as_secs_f64());
    assert_eq!(watched["status"], "succeeded", "{watched}");
    for key in ["total", "succeeded", "failed", "cancelled"] {
        assert_eq!(watched[key], whole[key], "{key}: {watched}");
    }
    jobs(dir.path(), &["results", id, "--out", "killed", "--endpoint", &up.endpoints]).unwrap();
    let manifest = |out: &str| std::fs::read_to_string(dir.path().join(out).join("manifest.jsonl")).unwrap();
    let (expected, found) = (manifest("whole"), manifest("killed"));
    for (expected, found) in expected.lines().zip(found.lines()) {
        assert_eq!(found, expected);
    }
    assert!(expected == found, "the manifests differ in length");
    assert!(files(&dir.path().join("whole")) == files(&dir.path().join("killed")), "pictures differ");
    // What the server keeps is what was downloaded, and nothing half-written.
    let kept = up.dir().join("state/jobs/jobs").join(id).join("output");
    assert_eq!(std::fs::read_to_string(kept.join("manifest.jsonl")).unwrap(), expected);
    assert!(files(&kept) == files(&dir.path().join("killed")), "{:?}", names(&kept.join("pictures")));
    assert!(ready(&up.status().await));
}
