//! Refusals, losses and callers that leave, against a coordinator that does what it is told.

use std::time::Duration;

use janus_wire::{LEADER, status};
use serde_json::{Value, json};
use tonic::Status;

use super::fake::{Fake, Turn};
use super::{Door, http};

fn hello(stream: bool) -> Value {
    json!({ "messages": [{ "role": "user", "content": "hello" }], "stream": stream })
}

/// The text of a stream of chunks, which must have ended well.
fn streamed(body: &str) -> String {
    let events: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(*last, "[DONE]", "{body}");
    let chunks = chunks.iter().map(|chunk| serde_json::from_str::<Value>(chunk).unwrap());
    chunks.map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn a_refusal_keeps_its_kind_and_says_when_to_come_back() {
    let cases = [
        (Status::unauthenticated("which key?"), 401, "authentication_error", Some("invalid_api_key"), None),
        (Status::permission_denied("not yours"), 403, "permission_error", Some("permission_denied"), None),
        (Status::not_found("nothing there"), 404, "invalid_request_error", Some("not_found"), None),
        (Status::already_exists("twice"), 409, "invalid_request_error", Some("already_exists"), None),
        (
            status::exhausted("full", Duration::from_millis(2500)),
            429,
            "rate_limit_error",
            Some("rate_limit_exceeded"),
            Some("3"),
        ),
        (Status::deadline_exceeded("late"), 504, "server_error", Some("timeout"), None),
        (Status::data_loss("broken weights"), 500, "server_error", None, None),
    ];
    let (client, said) = (http(), "what the coordinator says");
    for stream in [false, true] {
        let turns = cases.iter().map(|(status, ..)| Turn::Refuse(status.clone()));
        let fake = Fake::new(turns);
        let door = Door::open(&fake.serve().await).await;
        for (status, http_status, kind, code, retry) in &cases {
            let response = client.post(door.at("/v1/chat/completions")).json(&hello(stream)).send().await.unwrap();
            assert_eq!(response.status(), *http_status, "{status}");
            let after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(after.as_deref(), *retry, "{status}");
            assert!(response.headers()["x-request-id"].to_str().unwrap().starts_with("req-"));
            let body: Value = response.json().await.unwrap();
            assert_eq!(body["error"]["message"], status.message(), "{said}");
            assert_eq!((&body["error"]["type"], &body["error"]["code"]), (&json!(kind), &json!(code)), "{status}");
        }
    }
}

#[tokio::test]
async fn a_refusal_has_the_names_of_this_door() {
    let cases = [
        (Status::not_found("header.model: `a` is not served here; `b` is"), "model_not_found", "model"),
        (Status::already_exists("header.request_id: `a` is in use with other parameters"), "already_exists", "x-request-id"),
        (status::invalid("messages[0].parts[1].image", "is empty"), "invalid_value", "messages[0].content[1].image_url"),
        (
            status::blame("messages[0].parts[1].image", Status::invalid_argument("image: no picture")),
            "invalid_value",
            "messages[0].content[1].image_url",
        ),
    ];
    let fake = Fake::new(cases.iter().map(|(status, ..)| Turn::Refuse(status.clone())));
    let door = Door::open(&fake.serve().await).await;
    for (status, code, param) in &cases {
        let response = http().post(door.at("/v1/chat/completions")).json(&hello(false)).send().await.unwrap();
        let body: Value = response.json().await.unwrap();
        let (_, rest) = status.message().split_once(": ").unwrap();
        assert_eq!(body["error"]["message"], format!("{param}: {rest}"));
        assert_eq!((&body["error"]["code"], &body["error"]["param"]), (&json!(code), &json!(param)));
    }
}

#[tokio::test]
async fn the_credential_and_the_request_id_reach_the_coordinator() {
    let fake = Fake::new([Turn::Say(&["hi"]), Turn::Say(&["hi"])]);
    let door = Door::open(&fake.serve().await).await;
    let client = http();
    let ask = client.post(door.at("/v1/chat/completions")).json(&hello(false));
    let with = ask.try_clone().unwrap().bearer_auth("sk-secret").send().await.unwrap();
    let without = ask.send().await.unwrap();
    let calls = fake.calls.lock().unwrap().clone();
    assert_eq!(calls[0].authorization.as_deref(), Some("Bearer sk-secret"));
    assert_eq!(calls[1].authorization, None);
    for (call, response) in calls.iter().zip([with, without]) {
        let id = &call.request.header.as_ref().unwrap().request_id;
        assert_eq!(response.headers()["x-request-id"].to_str().unwrap(), id);
    }
}

#[tokio::test]
async fn an_answer_goes_on_at_the_next_coordinator_and_repeats_nothing() {
    let lost = || Status::unavailable("this coordinator ends");
    for stream in [false, true] {
        let next = Fake::new([Turn::Say(&["one ", "two ", "thr", "ee"])]);
        let named = next.serve().await;
        let mut standby = lost();
        standby.metadata_mut().insert(LEADER, named.parse().unwrap());
        // It breaks twice: once in the middle of what the next one says in other pieces, once by a standby's word.
        let first = Fake::new([Turn::Break(&["one", " two t"], lost()), Turn::Refuse(standby)]);
        let door = Door::open(&first.serve().await).await;
        let response = http().post(door.at("/v1/chat/completions")).json(&hello(stream)).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let body = response.text().await.unwrap();
        let text = match stream {
            true => streamed(&body),
            false => serde_json::from_str::<Value>(&body).unwrap()["choices"][0]["message"]["content"]
                .as_str()
                .unwrap()
                .to_owned(),
        };
        assert_eq!(text, "one two three");
        let ids: Vec<String> = [&first, &next]
            .iter()
            .flat_map(|fake| fake.calls.lock().unwrap().clone())
            .map(|call| call.request.header.unwrap().request_id)
            .collect();
        assert_eq!(ids.len(), 3);
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }
}

#[tokio::test]
async fn an_answer_that_begins_again_takes_back_what_it_can_and_says_so_where_it_cannot() {
    for (stream, before) in [(false, &["one", " two t"][..]), (true, &["", ""]), (true, &["one"])] {
        let lost = Status::unavailable("this coordinator ends");
        let fake = Fake::new([Turn::Break(before, lost), Turn::Restart(&["uno ", "due"])]);
        let door = Door::open(&fake.serve().await).await;
        let response = http().post(door.at("/v1/chat/completions")).json(&hello(stream)).send().await.unwrap();
        let body = response.text().await.unwrap();
        match (stream, before.concat().is_empty()) {
            (false, _) => {
                let body: Value = serde_json::from_str(&body).unwrap();
                assert_eq!(body["choices"][0]["message"]["content"], "uno due");
                assert_eq!(body["system_fingerprint"], "another");
            }
            (true, true) => assert_eq!(streamed(&body), "uno due"),
            (true, false) => {
                assert!(body.contains("event: error\n") && body.contains("ask again"), "{body}");
                assert!(!body.contains("uno") && !body.contains("[DONE]"), "{body}");
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_fails_later_ends_with_an_error_event() {
    let fake = Fake::new([Turn::Break(&["one"], Status::data_loss("nothing finite"))]);
    let door = Door::open(&fake.serve().await).await;
    let response = http().post(door.at("/v1/chat/completions")).json(&hello(true)).send().await.unwrap();
    let body = response.text().await.unwrap();
    let last = body.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("event: error\n") && last.contains(r#""message":"nothing finite""#), "{body}");
    assert!(!body.contains("[DONE]"));
}

#[tokio::test]
async fn a_caller_that_leaves_ends_its_request() {
    for stream in [false, true] {
        let fake = Fake::new([Turn::Hang(&["one"])]);
        let door = Door::open(&fake.serve().await).await;
        let asking = tokio::spawn(http().post(door.at("/v1/chat/completions")).json(&hello(stream)).send());
        fake.heard_by(1).await;
        match stream {
            true => drop(asking.await.unwrap().unwrap()),
            false => asking.abort(),
        }
        tokio::time::timeout(Duration::from_secs(60), fake.heard_by(0)).await.expect("the coordinator still works for it");
    }
}

#[tokio::test]
async fn without_a_coordinator_it_is_alive_and_not_ready() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (door, client) = (Door::open(&nobody.to_string()).await, http());
    assert_eq!(client.get(door.at("/healthz")).send().await.unwrap().status(), 200);
    for path in ["/readyz", "/v1/models"] {
        let response = client.get(door.at(path)).send().await.unwrap();
        assert_eq!(response.status(), 503, "{path}");
        assert!(response.headers().contains_key("retry-after"));
        let body: Value = response.json().await.unwrap();
        assert!(body["error"]["message"].as_str().unwrap().contains(&nobody.to_string()), "{body}");
    }
    let fake = Fake::new([]);
    let both = format!("{nobody},{}", fake.serve().await);
    let door = Door::open(&both).await;
    assert_eq!(client.get(door.at("/readyz")).send().await.unwrap().status(), 200);
}
