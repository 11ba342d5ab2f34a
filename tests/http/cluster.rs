//! The door in front of real processes, some of which are killed.

use std::time::Instant;

use serde_json::{Value, json};

use super::http;
use super::support::janus;
use super::up::{LONG, Up, free_ports, signal};

const PROMPT: &str = "a red circle left of a blue square";

/// A cluster with a door: its URL too.
fn up(args: &[&str]) -> (Up, String) {
    let address = format!("127.0.0.1:{}", free_ports());
    let mut up = Up::slow(2, &[&["--http", &address][..], args].concat());
    assert_eq!(up.part().line(), format!("http {address}"));
    (up, format!("http://{address}"))
}

/// What the command line paints.
fn undisturbed(seed: &str) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let painted: Value =
        serde_json::from_str(&janus(dir.path(), &["generate", PROMPT, "--seed", seed, "--json"]).stdout).unwrap();
    painted["images"][0].clone()
}

#[tokio::test]
async fn a_stream_of_ids_goes_on_after_its_coordinator_is_killed() {
    let (up, url) = up(&["--coordinators", "2"]);
    let expected = undisturbed("5");
    let wanted = json!({ "prompt": PROMPT, "seed": 5, "stream": true, "stream_ids": true });
    let mut response = http().post(format!("{url}/v1/images/generations")).json(&wanted).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let (mut text, mut ids, mut completed, mut killed) = (String::new(), Vec::new(), None, false);
    while let Some(piece) = response.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&piece).unwrap());
        while let Some(end) = text.find("\n\n") {
            let event: String = text.drain(..end + 2).collect();
            let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")) else { continue };
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(data["error"], Value::Null);
            match data["type"].as_str().unwrap() {
                "image_generation.progress" => ids.extend(data["ids"].as_array().unwrap().clone()),
                "image_generation.completed" => completed = Some(data["sha256"].clone()),
                _ => {}
            }
        }
        if ids.len() > 10 && !killed {
            killed = true;
            let leader = up.status().await["leader"].as_str().unwrap().to_owned();
            signal(up.pid(&leader).await, "KILL");
        }
    }
    assert!(killed);
    // Every id once, and those of an undisturbed picture.
    assert_eq!(Value::from(ids), expected["tokens"], "{}", up.tail());
    assert_eq!(completed.as_ref(), Some(&expected["sha256"]));
}

#[tokio::test]
async fn a_door_that_dies_is_opened_again() {
    let (up, url) = up(&[]);
    let before = up.pid("gateway").await;
    signal(before, "KILL");
    let until = Instant::now() + LONG;
    loop {
        let alive = http().get(format!("{url}/readyz")).send().await.is_ok_and(|response| response.status() == 200);
        if alive && up.parts().get("gateway").is_some_and(|pid| *pid != before) {
            break;
        }
        assert!(Instant::now() < until, "{}", up.tail());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let wanted = json!({ "prompt": PROMPT, "seed": 6 });
    let painted: Value =
        http().post(format!("{url}/v1/images/generations")).json(&wanted).send().await.unwrap().json().await.unwrap();
    assert_eq!(painted["data"][0]["sha256"], undisturbed("6")["sha256"], "{painted}");
}
