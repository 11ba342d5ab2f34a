//! Who may link with whom, and when.

use super::*;
use crate::stage::soon;
use janus_wire::v1::{ConfigureRequest, Hello, Image, LinkAnswer, LinkMessage, link_message};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};
use tonic_prost::prost::Message;

/// A change to a hello, and what the refusal must say.
type Difference = (fn(&mut Hello), &'static str);

fn differences() -> Vec<Difference> {
    vec![
        (|h| h.protocol = 2, "protocol version is 2"),
        (|h| h.cluster = "other".into(), "cluster is `other`"),
        (|h| h.numerics = "gpu-1".into(), "numerics id is `gpu-1`"),
        (|h| h.model_digest = vec![8; 32].into(), "model digest is 0808"),
        (|h| h.first_layer = 1, "this stage holds layers 0..4, not 1..4"),
    ]
}

fn refused(status: Status, reason: &str) {
    assert_eq!(status.code(), Code::FailedPrecondition, "{reason}: {status:?}");
    assert!(status.message().contains(reason), "{reason}: {}", status.message());
}

#[tokio::test]
async fn a_peer_that_differs_is_refused_by_name_on_every_call() {
    let mut line = Line::start(&[0..4]).await;
    line.configure(1).await.unwrap();
    let node = &mut line.0[0];
    for (change, reason) in differences() {
        let mut hello = node.hello(1);
        change(&mut hello);
        let link = node.link(link_message::Message::Hello(hello.clone())).await;
        refused(link.unwrap_err(), reason);
        refused(soon(node.client.results(hello.clone())).await.unwrap_err(), reason);
        hello.epoch = 2;
        let request = ConfigureRequest { hello: Some(hello), ..ConfigureRequest::default() };
        refused(soon(node.client.configure(request)).await.unwrap_err(), reason);
    }
    let nobody = ConfigureRequest::default();
    refused(soon(node.client.configure(nobody)).await.unwrap_err(), "hello is missing");
}

#[tokio::test]
async fn a_refused_stranger_leaves_the_pipeline_as_it_was() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let mut hand = line.connect(1).await;
    let golden = Golden::new();
    hand.step(vec![golden.open(0, 1)], vec![golden.prefill(0, 1)]).await;
    let mut stranger = line.0[0].hello(2);
    stranger.cluster = "other".into();
    let request = ConfigureRequest { hello: Some(stranger), ..ConfigureRequest::default() };
    assert!(soon(line.0[0].client.configure(request)).await.is_err());
    assert_eq!(id(&hand.step(vec![], vec![golden.decode(0, 1, 1)]).await), golden.ids[1]);
}

#[tokio::test]
async fn an_epoch_has_one_link_and_one_taker_of_results() {
    let mut line = Line::start(&[0..4]).await;
    let mut hand = line.connect(1).await;
    let node = &mut line.0[0];
    let hello = node.hello(1);
    refused(node.link(link_message::Message::Hello(hello.clone())).await.unwrap_err(), "this epoch's link is taken");
    refused(soon(node.client.results(hello)).await.unwrap_err(), "they are taken");
    paints(&mut hand).await;
}

#[tokio::test]
async fn an_epoch_that_is_over_can_do_nothing() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let old = line.connect(1).await;
    let mut new = line.connect(2).await;
    refused(old.end().await, "epoch is over");
    for epoch in [1, 2] {
        refused(
            line.configure(epoch).await.unwrap_err(),
            &format!("epoch {epoch} of pipeline 1 is over; this stage is in epoch 2"),
        );
    }
    let node = &mut line.0[0];
    let hello = node.hello(1);
    refused(node.link(link_message::Message::Hello(hello)).await.unwrap_err(), "epoch 1 of pipeline 1 is over");
    let node = &mut line.0[1];
    let hello = node.hello(1);
    refused(soon(node.client.results(hello)).await.unwrap_err(), "epoch 1 of pipeline 1 is over");
    paints(&mut new).await;
}

#[tokio::test]
async fn a_stage_without_a_place_says_so() {
    let mut line = Line::start(&[0..4]).await;
    let node = &mut line.0[0];
    let hello = node.hello(1);
    refused(node.link(link_message::Message::Hello(hello.clone())).await.unwrap_err(), "no place in a pipeline yet");
    refused(soon(node.client.results(hello)).await.unwrap_err(), "no place in a pipeline yet");
}

#[tokio::test]
async fn a_link_is_a_hello_and_then_frames() {
    let mut line = Line::start(&[0..4]).await;
    line.configure(1).await.unwrap();
    let node = &mut line.0[0];
    let status = node.link(link_message::Message::Frame(Frame::default())).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "a link begins with a hello"));
    let hello = link_message::Message::Hello(node.hello(1));
    let (frames, mut answers) = node.link(hello.clone()).await.unwrap();
    soon(answers.message()).await.unwrap();
    soon(frames.send(LinkMessage { message: Some(hello) })).await.unwrap();
    let status = soon(answers.message()).await.unwrap_err();
    assert!(status.message().contains("a second hello"), "{status:?}");
}

#[tokio::test]
async fn the_last_stage_has_no_next_one_and_every_other_has_one() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let hellos = [line.0[0].hello(1), line.0[1].hello(1)];
    for (i, next) in [(0, ""), (1, "127.0.0.1:1")] {
        let request = ConfigureRequest { hello: Some(hellos[i].clone()), next: next.into(), ..ConfigureRequest::default() };
        let status = soon(line.0[i].client.configure(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains("next stage"), "{status:?}");
    }
    let mut request = ConfigureRequest { hello: Some(hellos[0].clone()), ..ConfigureRequest::default() };
    request.next = "127.0.0.1:1".into();
    let status = soon(line.0[0].client.configure(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("127.0.0.1:1"), "{status:?}");
    paints(&mut line.connect(2).await).await;
}

#[tokio::test]
async fn bytes_that_are_no_frame_end_the_link_and_are_counted() {
    let mut line = Line::start(&[0..4]).await;
    line.configure(1).await.unwrap();
    // On the wire these are a hello, and a frame that cannot be read.
    let hello = Image { data: line.0[0].hello(1).encode_to_vec().into(), ..Image::default() };
    let nonsense = Image { sha256: vec![255; 9].into(), ..Image::default() };
    let channel = janus_wire::connect(&line.0[0].address, &janus_wire::Security::Plain).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    soon(grpc.ready()).await.unwrap();
    let codec = tonic_prost::ProstCodec::<Image, LinkAnswer>::default();
    let messages = Request::new(tokio_stream::iter([hello, nonsense]));
    let link = grpc.streaming(messages, PathAndQuery::from_static("/janus.v1.Stage/Link"), codec);
    let mut answers = soon(link).await.unwrap().into_inner();
    assert!(soon(answers.message()).await.unwrap().unwrap().hello.is_some());
    let status = soon(answers.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(line.refused().await, [(1, 0)]);
    paints(&mut line.connect(2).await).await;
}
