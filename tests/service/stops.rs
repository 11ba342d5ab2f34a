//! Stop strings over gRPC, with the tokens of a real tokeniser.

use super::*;
use janus_wire::v1::{ChatToken, FinishReason};

/// The tokens of an answer and its end.
async fn heard(client: &mut Client, stop: &[&str]) -> (Vec<ChatToken>, ChatDone) {
    let mut request = chat("What is a river?", &[], 24);
    request.stop = stop.iter().map(ToString::to_string).collect();
    let mut events = soon(client.chat(request)).await.unwrap().into_inner();
    let mut tokens = Vec::new();
    loop {
        match soon(events.message()).await.unwrap().unwrap().event.unwrap() {
            chat_event::Event::Token(token) => tokens.push(token),
            chat_event::Event::Done(done) => return (tokens, done),
            _ => {}
        }
    }
}

fn text(tokens: &[ChatToken]) -> String {
    tokens.iter().map(|t| t.text.as_str()).collect()
}

#[tokio::test]
async fn an_answer_ends_before_a_stop_string_even_one_over_several_tokens() {
    let mut cluster = Cluster::start(64).await;
    let mut client = cluster.client().await;
    let (tokens, whole) = heard(&mut client, &[]).await;
    let mut over_several = 0;
    for i in 1..tokens.len() {
        let (Some(last), Some(first)) = (tokens[i - 1].text.chars().last(), tokens[i].text.chars().next()) else { continue };
        let stop = format!("{last}{first}");
        let (said, done) = heard(&mut client, &[&stop, "never said"]).await;
        let cut = whole.text.find(&stop).unwrap();
        let drawn = (1..=tokens.len()).find(|&n| text(&tokens[..n]).contains(&stop)).unwrap();
        assert_eq!((done.text.as_str(), done.finish_reason()), (&whole.text[..cut], FinishReason::Stop), "{stop:?}");
        // The ids that spell it are there and counted.
        assert_eq!(done.tokens, whole.tokens[..drawn], "{stop:?}");
        assert_eq!(done.done.unwrap().usage.unwrap().output_tokens as usize, drawn);
        assert_eq!(said.iter().map(|t| t.id).collect::<Vec<_>>(), done.tokens);
        assert_eq!(text(&said), done.text, "{stop:?} was given away and taken back");
        over_several += usize::from(drawn == i + 1);
    }
    cluster.is_empty_soon().await;
    assert!(over_several > 3, "the answer has too few tokens with text: {:?}", whole.text);
}

#[tokio::test]
async fn text_that_only_began_like_a_stop_string_is_there_in_the_end() {
    let cluster = Cluster::start(64).await;
    let mut client = cluster.client().await;
    let (_, whole) = heard(&mut client, &[]).await;
    let tail: String = whole.text.chars().skip(whole.text.chars().count() - 2).collect();
    let (said, done) = heard(&mut client, &[&format!("{tail}\u{1}")]).await;
    assert_eq!(done, whole);
    assert_eq!(text(&said) + &tail, done.text);
}
