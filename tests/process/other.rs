//! Nodes that compute otherwise when no others are left: requests wait for nodes of the first kind, or begin again.

use std::time::Duration;

use janus_coordinator::conduct::GIVEN_UP;
use janus_wire::v1::{ChatRequest, GenerateImageRequest, Image};
use serde_json::Value;

use crate::asks::{begin, end, question, red_circle, undisturbed, undisturbed_with};
use crate::client::{Ask, chat, paint};
use crate::membership::Hand;
use crate::support::{json, text, tiny};
use crate::up::{member, ready, stages};

const SLOW: [&str; 3] = ["--test", "--test-step-delay-ms", "60"];
const PROMPT: &str = "a red circle left of a blue square";
const OTHER: [&str; 2] = ["--weights", "q8"];

/// Hot enough that the least difference shows.
const TEMPERATURE: f32 = 5.0;

/// Pictures, one below rows that are given. They take a while.
fn asks() -> Vec<Ask> {
    let hot = |request| GenerateImageRequest { temperature: Some(TEMPERATURE), ..request };
    let image = Some(Image { data: red_circle().into(), ..Image::default() });
    let two = GenerateImageRequest { n: 2, seed: 0, ..paint(PROMPT) };
    let below = GenerateImageRequest { init_image: image, keep_rows: 3, seed: 5, ..paint("a red circle") };
    vec![Ask::Paint(hot(two)), Ask::Paint(hot(below))]
}

/// One worker that computes, and another one that would compute something else. All of them have these flags.
async fn cluster(coordinator: &[&str], all: &[&str]) -> Hand {
    let mut hand = Hand::start(&[coordinator, all].concat()).await;
    hand.worker("first", &[&SLOW, all].concat());
    hand.worker("other", &[&SLOW, &OTHER[..], all].concat());
    let apart = |s: &Value| ready(s) && stages(s) == ["first"] && member(s, "other")["state"] == "foreign";
    hand.until("the first one computes", apart).await;
    hand
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_leave_requests_begin_again_where_only_other_numerics_are_left() {
    let asks = asks();
    let expected = undisturbed_with(&OTHER, &asks).await;
    assert_ne!(expected[0].tokens, undisturbed(&asks[..1]).await[0].tokens, "nothing would show");
    let flags = ["--stages", "1", "--other-numerics", "restart"];
    let mut hand = cluster(&flags, &[]).await;
    let mut callers = begin(&hand.endpoint, &asks);
    let dir = tempfile::tempdir().unwrap();
    let (path, endpoint) = (dir.path().to_owned(), hand.endpoint.clone());
    let words = tokio::task::spawn_blocking(move || {
        let ask = ["generate", PROMPT, "--seed", "0", "--temperature", "5", "--endpoint", &endpoint];
        json(&path, &[&ask[..], &["--json", "-o", "picture.png"]].concat())
    });
    callers[0].reaches(10).await;
    drop(hand.parts.remove("first"));
    let status = hand.until("the other one computes", |s| ready(s) && stages(s) == ["other"]).await;
    assert_eq!(member(&status, "other")["state"], "serving", "{status:#}");
    callers[0].reaches(5).await;
    assert!(!callers[0].is_finished());
    // Whoever leads next goes on with what it went over to.
    let endpoint = hand.endpoint.clone();
    drop(hand.parts.remove("coordinator"));
    hand.spawn("coordinator", &[&["coordinator", "--name", "coordinator", "--listen", &endpoint][..], &flags].concat());
    let courses = end(callers, &expected, "begun again").await;
    assert!(courses.iter().all(|c| c.restarted == 1 && c.durable), "{courses:?}");
    let words = words.await.unwrap();
    assert_eq!(words["restarted"], 1, "{words}");
    assert_eq!(words["images"][0]["tokens"], serde_json::json!(expected[0].tokens[0]), "the program's picture");
    // The first kind is foreign now: nothing that runs moves.
    hand.worker("first", &SLOW);
    hand.until("the first one is back", |s| member(s, "first")["state"] == "foreign" && ready(s)).await;
    let asks: Vec<Ask> = asks.into_iter().chain([question()]).collect();
    let expected = undisturbed_with(&OTHER, &asks).await;
    end(begin(&hand.endpoint, &asks), &expected, "afterwards").await.iter().for_each(|c| assert_eq!(c.restarted, 0));
}

/// Of a model whose answers take their time, because they make no sense.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_leave_answers_begin_again_as_well() {
    let model = text(&tiny("transformers"));
    let model = ["--model", &model];
    let hot = ChatRequest { temperature: Some(TEMPERATURE), ..chat("What is a river?", &[red_circle()], 48) };
    let asks = [Ask::Chat(hot)];
    let expected = undisturbed_with(&[&OTHER[..], &model].concat(), &asks).await;
    assert_ne!(expected[0].tokens, undisturbed_with(&model, &asks).await[0].tokens, "nothing would show");
    let mut hand = cluster(&["--stages", "1", "--other-numerics", "restart"], &model).await;
    let mut callers = begin(&hand.endpoint, &asks);
    callers[0].reaches(10).await;
    assert!(!callers[0].is_finished());
    drop(hand.parts.remove("first"));
    hand.until("the other one computes", |s| ready(s) && stages(s) == ["other"]).await;
    let courses = end(callers, &expected, "begun again").await;
    assert!(courses.iter().all(|c| c.restarted == 1 && c.durable), "{courses:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_leave_requests_wait_for_nodes_of_their_own_numerics() {
    let asks = asks();
    let expected = undisturbed(&asks).await;
    let mut hand = cluster(&["--stages", "1"], &[]).await;
    let mut callers = begin(&hand.endpoint, &asks);
    callers[0].reaches(10).await;
    drop(hand.parts.remove("first"));
    hand.until("nothing computes", |s| !ready(s) && member(s, "first").is_null()).await;
    tokio::time::sleep(GIVEN_UP + Duration::from_secs(2)).await;
    hand.until("nothing computes still", |s| !ready(s) && member(s, "other")["state"] == "foreign").await;
    hand.worker("again", &SLOW);
    let courses = end(callers, &expected, "after a wait").await;
    assert!(courses.iter().all(|c| c.restarted == 0), "{courses:?}");
}
