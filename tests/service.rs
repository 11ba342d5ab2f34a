//! What clients can get wrong over gRPC, and what they cannot do to each other.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "harness/client.rs"]
mod client;
#[path = "harness/cluster.rs"]
mod cluster;
#[path = "service/fair.rs"]
mod fair;
#[path = "harness/stage.rs"]
mod stage;
#[path = "service/stops.rs"]
mod stops;
mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use client::{Answer, Ask, Client, chat, header, paint, picture, soon};
use cluster::Cluster;
use janus_wire::Security;
use janus_wire::v1::{self, *};
use sha2::{Digest, Sha256};
use support::tiny;
use tonic::{Code, Status};
use tonic_types::StatusExt;

fn photo() -> Vec<u8> {
    std::fs::read(tiny("golden/images/rgb_64x64.png")).unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

async fn refusal(client: &mut Client, ask: Ask) -> Status {
    let mut events = match soon(ask.begin(client)).await {
        Ok(events) => events,
        Err(status) => return status,
    };
    let mut answer = Answer::default();
    loop {
        match soon(events.next(&mut answer)).await {
            Ok(true) => {}
            Ok(false) => panic!("it was answered"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn who_asks_a_leader_whose_driver_has_ended_is_told_to_come_back() {
    let cluster = Cluster::start(64).await;
    let mut client = cluster.client().await;
    cluster.driving.cancel();
    soon(cluster.driver.ended()).await;
    for ask in [Ask::Paint(paint("a red boat")), Ask::Chat(chat("What is a river?", &[], 4))] {
        let status = refusal(&mut client, ask).await;
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.get_details_retry_info().is_some_and(|retry| retry.retry_delay.is_some()), "{status:?}");
    }
}

/// INVALID_ARGUMENT whose message and details name the field.
fn blames(status: &Status, field: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
    assert!(status.message().len() < 500, "{field}: {}", status.message());
    let details = status.get_details_bad_request().unwrap_or_else(|| panic!("{field}: no details: {status:?}"));
    assert_eq!(details.field_violations.iter().map(|v| v.field.as_str()).collect::<Vec<_>>(), [field]);
    assert!(!details.field_violations[0].description.is_empty());
}

fn painted(change: impl FnOnce(&mut GenerateImageRequest)) -> Ask {
    let mut request = paint("a red boat");
    change(&mut request);
    Ask::Paint(request)
}

fn asked(change: impl FnOnce(&mut ChatRequest)) -> Ask {
    let mut request = chat("What is it?", &[], 4);
    change(&mut request);
    Ask::Chat(request)
}

fn head(change: impl FnOnce(&mut RequestHeader)) -> Option<RequestHeader> {
    let mut header = header().unwrap();
    change(&mut header);
    Some(header)
}

fn says(role: &str, text: &str) -> Message {
    Message { role: role.into(), parts: vec![Part { part: Some(part::Part::Text(text.into())) }] }
}

#[tokio::test]
async fn a_field_that_cannot_be_used_is_named_in_message_and_details() {
    let cluster = Cluster::start(64).await;
    let mut client = cluster.client().await;
    let image = || Some(picture(photo()));
    let long = "word ".repeat(1200);
    let huge = "x".repeat((1 << 20) + 1);
    for (ask, field) in [
        (painted(|r| r.header = None), "header"),
        (painted(|r| r.header = head(|h| h.request_id = String::new())), "header.request_id"),
        (painted(|r| r.header = head(|h| h.request_id = "a b".into())), "header.request_id"),
        (painted(|r| r.header = head(|h| h.request_id = "x".repeat(129))), "header.request_id"),
        (painted(|r| r.header = head(|h| h.request_id = "\u{e9}".into())), "header.request_id"),
        (painted(|r| r.header = head(|h| h.priority = 9)), "header.priority"),
        (painted(|r| r.n = 257), "n"),
        (painted(|r| r.partial_images = 4), "partial_images"),
        (painted(|r| r.temperature = Some(f32::NAN)), "temperature"),
        (painted(|r| r.temperature = Some(-1.0)), "temperature"),
        (painted(|r| r.temperature = Some(f32::INFINITY)), "temperature"),
        (painted(|r| r.cfg_weight = Some(f32::NAN)), "cfg_weight"),
        (painted(|r| r.cfg_weight = Some(-0.5)), "cfg_weight"),
        (painted(|r| r.top_p = Some(0.0)), "top_p"),
        (painted(|r| r.top_p = Some(1.5)), "top_p"),
        (painted(|r| r.top_p = Some(f32::NAN)), "top_p"),
        (painted(|r| r.top_k = Some(0)), "top_k"),
        (painted(|r| r.prompt = "  \n".into()), "prompt"),
        (painted(|r| r.prompt = long.clone()), "prompt"),
        (painted(|r| r.prompt = huge.clone()), "prompt"),
        (painted(|r| r.prompt = "a <begin_of_image>".into()), "prompt"),
        (painted(|r| r.raw_prompt = true), "prompt"),
        (painted(|r| r.keep_rows = 1), "keep_rows"),
        (painted(|r| (r.init_image, r.keep_rows) = (image(), 5)), "keep_rows"),
        (painted(|r| (r.init_image, r.keep_rows) = (Some(picture(b"no picture".to_vec())), 1)), "init_image"),
        (painted(|r| r.init_image = Some(v1::Image::default())), "init_image"),
        (asked(|r| r.header = None), "header"),
        (asked(|r| r.temperature = Some(f32::NAN)), "temperature"),
        (asked(|r| r.top_k = Some(0)), "top_k"),
        (asked(|r| r.top_p = Some(-1.0)), "top_p"),
        (asked(|r| r.max_tokens = Some(0)), "max_tokens"),
        (asked(|r| r.stop = vec!["a".into(); 5]), "stop"),
        (asked(|r| r.stop = vec![String::new()]), "stop"),
        (asked(|r| r.messages[0].role = "robot".into()), "messages[0].role"),
        (asked(|r| r.messages[0].parts[0].part = None), "messages[0].parts[0]"),
        (asked(|r| r.messages = vec![says("user", " ")]), "messages"),
        (asked(|r| r.messages = vec![says("assistant", "I said so")]), "messages"),
        (asked(|r| r.messages = vec![says("user", &long)]), "messages"),
        (asked(|r| r.messages = vec![says("user", &huge)]), "messages"),
        (asked(|r| r.messages.clear()), "raw_prompt"),
        (asked(|r| (r.raw_prompt, _) = ("<image_placeholder> what?".into(), r.messages.clear())), "raw_images"),
        (Ask::Chat(chat("What?", &[b"no picture".to_vec()], 4)), "messages[0].parts[0].image"),
        (Ask::Chat(chat("What?", &[Vec::new()], 4)), "messages[0].parts[0].image"),
        (Ask::Chat(chat("What?", &[photo()[..100].to_vec()], 4)), "messages[0].parts[0].image"),
    ] {
        blames(&refusal(&mut client, ask).await, field);
    }
    assert_eq!(cluster.coordinator.requests().0, 0);
}

#[tokio::test]
async fn pictures_and_ids_are_checked_before_they_are_turned_into_each_other() {
    let cluster = Cluster::start(64).await;
    let mut client = cluster.client().await;
    let tokenize = |image| TokenizeRequest { header: header(), image };
    for (image, field) in [
        (None, "image"),
        (Some(v1::Image::default()), "image"),
        (Some(picture(b"GIF89a, or so it says".to_vec())), "image"),
        (Some(v1::Image { data: photo().into(), sha256: vec![1; 31].into() }), "image"),
        (Some(v1::Image { data: photo().into(), sha256: vec![1; 32].into() }), "image"),
    ] {
        blames(&soon(client.tokenize(tokenize(image))).await.unwrap_err(), field);
    }
    let detokenize = |tokens| DetokenizeRequest { header: header(), tokens };
    for tokens in [vec![], vec![1; 15], vec![1; 17], [vec![1; 15], vec![64]].concat(), vec![u32::MAX; 16]] {
        blames(&soon(client.detokenize(detokenize(tokens))).await.unwrap_err(), "tokens");
    }
    let ids = soon(client.tokenize(tokenize(Some(picture(photo()))))).await.unwrap().into_inner().tokens;
    let picture = soon(client.detokenize(detokenize(ids))).await.unwrap().into_inner();
    assert_eq!((picture.width, picture.height, picture.rgb.len()), (64, 64, 64 * 64 * 3));
}

#[tokio::test]
async fn what_is_not_here_is_not_found() {
    let cluster = Cluster::start(64).await;
    let mut client = cluster.client().await;
    let found = |status: Status, named: &str| {
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        assert!(status.message().contains(named), "{status:?}");
    };
    found(
        refusal(&mut client, painted(|r| r.header = head(|h| h.model = "gpt".into()))).await,
        "`gpt` is not served here; `tiny-a` is",
    );
    let request_id = "nobody-knows".to_owned();
    found(soon(client.cancel(CancelRequest { request_id })).await.unwrap_err(), "nobody-knows");
    let digest = Sha256::digest(photo()).to_vec();
    let by_digest = || Some(v1::Image { sha256: digest.clone().into(), ..v1::Image::default() });
    let tokenize = |image| TokenizeRequest { header: header(), image };
    found(soon(client.tokenize(tokenize(by_digest()))).await.unwrap_err(), "send its bytes");
    let sent = soon(client.tokenize(tokenize(Some(picture(photo()))))).await.unwrap().into_inner();
    // Once its bytes were here, its digest is enough, for every kind of request.
    assert_eq!(soon(client.tokenize(tokenize(by_digest()))).await.unwrap().into_inner(), sent);
    let ask = painted(|r| (r.init_image, r.keep_rows) = (by_digest(), 4));
    assert_eq!(ask.answer(&mut client, || {}).await.unwrap().tokens, [sent.tokens]);
    let mut question = chat("What?", &[], 4);
    question.messages[0].parts.push(Part { part: Some(part::Part::Image(by_digest().unwrap())) });
    assert!(!Ask::Chat(question).answer(&mut client, || {}).await.unwrap().tokens[0].is_empty());
}

#[tokio::test]
async fn a_deadline_is_kept_before_during_and_for_every_kind_of_request() {
    let mut cluster = Cluster::start(1024).await;
    let mut client = cluster.client().await;
    let past = || head(|h| h.deadline_unix_ms = now() - 1);
    let mut statuses = vec![
        refusal(&mut client, painted(|r| r.header = past())).await,
        refusal(&mut client, asked(|r| r.header = past())).await,
        soon(client.tokenize(TokenizeRequest { header: past(), image: Some(picture(photo())) })).await.unwrap_err(),
        soon(client.detokenize(DetokenizeRequest { header: past(), tokens: vec![1; 16] })).await.unwrap_err(),
    ];
    // 4096 ids in 60 ms are too many for any machine.
    let begun = std::time::Instant::now();
    let midway = painted(|r| (r.header, r.n) = (head(|h| h.deadline_unix_ms = now() + 60), 256));
    statuses.push(refusal(&mut client, midway).await);
    assert!(begun.elapsed() > Duration::from_millis(50));
    for status in statuses {
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!(status.message().contains("deadline"), "{status:?}");
    }
    cluster.is_empty_soon().await;
    let enough = painted(|r| r.header = head(|h| h.deadline_unix_ms = now() + 60_000));
    assert_eq!(enough.answer(&mut client, || {}).await.unwrap().tokens.len(), 1);
}

#[tokio::test]
async fn a_request_id_names_one_request() {
    let mut cluster = Cluster::start(1024).await;
    let mut client = cluster.client().await;
    let header = header();
    let ask = |n, seed| painted(|r| (r.header, r.n, r.seed) = (header.clone(), n, seed));
    let mut first = ask(3, 5).begin(&mut client).await.unwrap();
    // Another seed, another count, another kind of request.
    for other in [ask(3, 6), ask(2, 5), asked(|r| r.header = header.clone())] {
        let status = refusal(&mut client, other).await;
        assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
        assert!(status.message().contains(&header.as_ref().unwrap().request_id), "{status:?}");
    }
    // The same request joins, while it runs and after it is complete, and gets everything from the start.
    let second = ask(3, 5).answer(&mut client.clone(), || {}).await.unwrap();
    let mut answer = Answer::default();
    while soon(first.next(&mut answer)).await.unwrap() {}
    assert_eq!(answer, second);
    assert_eq!(ask(3, 5).answer(&mut client, || {}).await.unwrap(), second);
    assert_eq!((second.sha256.len(), cluster.coordinator.requests()), (3, (0, 1)));
    assert!(second.sha256.iter().zip(&second.tokens).all(|(digest, ids)| {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| (*id as u16).to_le_bytes()).collect();
        digest == &Sha256::digest(bytes).to_vec()
    }));
    cluster.is_empty_soon().await;
}

/// Eight pictures have 16 rows: they go through the stages of one process together, not one after the other.
#[tokio::test]
async fn eight_pictures_share_the_microbatches_of_one() {
    let mut sent = Vec::new();
    for n in [1, 8] {
        let cluster = Cluster::start(64).await;
        let before = cluster.driver.history().1;
        let request = painted(|r| r.n = n);
        request.answer(&mut cluster.client().await, || {}).await.unwrap();
        sent.push(cluster.driver.history().1 - before);
    }
    // Their prompts take some more frames, of at most 64 positions.
    assert!(sent[1] <= sent[0] + 8, "one picture took {} microbatches, eight took {}", sent[0], sent[1]);
}

#[tokio::test]
async fn encoders_and_decoders_refuse_a_peer_that_differs_by_name() {
    let cluster = Cluster::start(64).await;
    let channel = |address: String| async move { janus_wire::connect(&address, &Security::Plain).await.unwrap() };
    let mut encoder = encoder_client::EncoderClient::new(channel(cluster.encoder.clone()).await);
    let mut decoder = decoder_client::DecoderClient::new(channel(cluster.decoder.clone()).await);
    type Change = fn(&mut Hello);
    let changes: [(Change, &str); 4] = [
        (|h| h.protocol = 2, "protocol version is 2"),
        (|h| h.cluster = "other".into(), "cluster is `other`"),
        (|h| h.numerics = "gpu-1".into(), "numerics id is `gpu-1`"),
        (|h| h.model_digest = vec![8; 32].into(), "model digest is 0808"),
    ];
    for (change, reason) in changes {
        let mut hello = stage::identity().hello(v1::Role::Coordinator, 0, 0, 0..0);
        change(&mut hello);
        let hello = Some(hello);
        let understand = UnderstandRequest { hello: hello.clone(), ..UnderstandRequest::default() };
        let tokenize = EncodeIdsRequest { hello: hello.clone(), ..EncodeIdsRequest::default() };
        let decode = DecodeRequest { hello, ..DecodeRequest::default() };
        for status in [
            soon(encoder.understand(understand)).await.unwrap_err(),
            soon(encoder.tokenize(tokenize)).await.unwrap_err(),
            soon(decoder.decode(decode)).await.unwrap_err(),
        ] {
            assert_eq!(status.code(), Code::FailedPrecondition, "{reason}: {status:?}");
            assert!(status.message().contains(reason), "{reason}: {}", status.message());
        }
    }
}
