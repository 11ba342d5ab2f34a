//! Who computes what, and that it never shows in a result.

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::asks::{begin, end, guided, mixed, red_circle, undisturbed};
use crate::membership::Hand;
use crate::support::json as answer;
use crate::up::{Up, member, ready};

/// Pictures, an answer about a picture, a picture's ids, and a picture of ids.
fn everything(endpoint: &[&str]) -> Vec<Value> {
    let dir = tempdir().unwrap();
    std::fs::write(dir.path().join("in.png"), red_circle()).unwrap();
    let ids: Vec<u32> = (0..64).map(|i| i * 7 % 512).collect();
    std::fs::write(dir.path().join("ids.json"), json!({ "tokens": ids }).to_string()).unwrap();
    let ask = |args: &[&str]| answer(dir.path(), &[args, endpoint, &["--json"]].concat());
    let mut answers = vec![
        ask(&["generate", "a red circle left of a blue square", "-n", "2", "-o", "a.png"]),
        ask(&["generate", "a green triangle", "--cfg-weight", "1", "--seed", "3", "-o", "b.png"]),
        ask(&["ask", "What is in the picture?", "--image", "in.png", "--max-tokens", "24"]),
        ask(&["tokenize", "in.png"]),
        ask(&["detokenize", "ids.json", "-o", "c.png"]),
    ];
    for answer in &mut answers {
        let answer = answer.as_object_mut().unwrap();
        // Names of the request, and of what served it.
        ["request", "resumed", "restarted", "model"].iter().for_each(|key| drop(answer.remove(*key)));
    }
    let pixels = |name: &str| json!(image::open(dir.path().join(name)).unwrap().into_rgb8().into_raw());
    answers
        .extend(["a-0.png", "a-1.png", "b.png", "c.png"].iter().filter(|n| dir.path().join(n).exists()).map(|n| pixels(n)));
    answers
}

#[test]
fn one_to_four_stages_give_what_one_process_gives() {
    let expected = everything(&[]);
    std::thread::scope(|scope| {
        for stages in ["1", "2", "3", "4"] {
            let expected = &expected;
            scope.spawn(move || {
                let up = Up::start(&["--stages", stages]);
                assert_eq!(up.try_status().unwrap()["pipelines"][0]["stages"].as_array().unwrap().len().to_string(), stages);
                let answers = everything(&["--endpoint", &up.endpoints]);
                assert!(answers == *expected, "{stages} stages\n{}", up.tail());
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pipelines_share_the_load() {
    let asks: Vec<_> = (0..6).map(|seed| guided("a red circle", 1, seed)).chain(mixed()).collect();
    let expected = undisturbed(&asks).await;
    let up = Up::start(&["--stages", "2", "--pipelines", "2", "--test", "--test-step-delay-ms", "5"]);
    let steps = |status: &Value| -> Vec<u64> {
        let pipelines = status["pipelines"].as_array().unwrap();
        pipelines.iter().map(|pipeline| pipeline["microbatches"].as_u64().unwrap()).collect()
    };
    let before = steps(&up.status().await);
    end(begin(&up.endpoints, &asks), &expected, "two pipelines").await;
    let after = steps(&up.status().await);
    let done: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
    println!("microbatches of two pipelines: {done:?}");
    assert_eq!(done.len(), 2);
    assert!(done[0].min(done[1]) * 3 >= done[0].max(done[1]), "one did nearly all: {done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_follow_memory_and_what_is_missing_is_said() {
    let asks = mixed();
    let expected = undisturbed(&asks).await;
    let mut hand = Hand::start(&["--stages", "2"]).await;
    // A layer and its share of the KV memory are 25 MiB.
    hand.worker("small", &["--memory", "60MiB", "--threads", "1"]);
    hand.worker("tiny", &["--memory", "30MiB", "--role", "stage"]);
    let status = hand
        .until("it says why it cannot start", |s| {
            // Before the second worker is there, the reason is another one.
            let both = s["members"].as_array().is_some_and(|members| members.len() == 2);
            both && s["pipelines"][0]["reason"].as_str().is_some_and(|reason| reason.contains("iB"))
        })
        .await;
    let reason = status["pipelines"][0]["reason"].as_str().unwrap().to_owned();
    println!("too little memory: {reason}");
    assert!(reason.contains("MiB") || reason.contains("GiB"), "{reason}");
    assert_eq!(status["pipelines"][0]["state"], "forming", "{status:#}");

    hand.worker("large", &["--memory", "120MiB", "--threads", "2"]);
    let status = hand.until("two stages run", ready).await;
    let count = |name: &str| {
        let layers = &member(&status, name)["layers"];
        layers[1].as_u64().unwrap_or(0) - layers[0].as_u64().unwrap_or(0)
    };
    assert_eq!((count("large"), count("small"), count("tiny")), (4, 2, 0), "{status:#}");
    end(begin(&hand.endpoint, &asks), &expected, "uneven machines").await;
}
