//! Clients that ask for too much, that stop reading, or that leave.

use super::*;
use janus_wire::v1::inference_client::InferenceClient;
use tonic::transport::Endpoint;

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused_by_the_transport_and_the_connection_lives() {
    let cluster = Cluster::start(64).await;
    let mut client = cluster.client().await;
    let image = Some(picture(vec![0; janus_wire::MAX_CLIENT_MESSAGE + 1]));
    // Our own client would not even send it.
    let mut careless =
        InferenceClient::new(janus_wire::connect(&cluster.address, &janus_wire::Security::Plain).await.unwrap());
    careless = careless.max_encoding_message_size(usize::MAX);
    let status = soon(careless.tokenize(TokenizeRequest { header: header(), image })).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
    assert!(!painted(|_| {}).answer(&mut careless, || {}).await.unwrap().tokens.is_empty());
    assert!(!painted(|_| {}).answer(&mut client, || {}).await.unwrap().tokens.is_empty());
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused() {
    use tonic::codegen::http::uri::PathAndQuery;
    let cluster = Cluster::start(64).await;
    let channel = janus_wire::connect(&cluster.address, &janus_wire::Security::Plain).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    // A picture's bytes where a request should be: a valid message of another type.
    for (path, code) in [("GenerateImage", Code::Internal), ("NoSuchMethod", Code::Unimplemented)] {
        soon(grpc.ready()).await.unwrap();
        let path = PathAndQuery::try_from(format!("/janus.v1.Inference/{path}")).unwrap();
        let codec = tonic_prost::ProstCodec::<v1::Piece, GenerateImageEvent>::default();
        let odd = v1::Piece {
            piece: Some(piece::Piece::Features(FeatureSpan { handle: vec![255; 9].into(), first: 1, count: 1 })),
        };
        let status = match soon(grpc.server_streaming(tonic::Request::new(odd), path, codec)).await {
            Err(status) => status,
            Ok(answer) => soon(answer.into_inner().message()).await.unwrap_err(),
        };
        assert_eq!(status.code(), code, "{status:?}");
    }
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back_and_takes_requests_again() {
    let mut cluster = Cluster::start(100).await;
    let mut client = cluster.client().await;
    // 64 are open, 100 wait; more than that can only be refused.
    let mut crowd = Vec::new();
    for _ in 0..3 {
        let mut events = painted(|r| r.n = 50).begin(&mut client).await.unwrap();
        assert!(soon(events.next(&mut Answer::default())).await.unwrap());
        crowd.push(events);
    }
    let status = refusal(&mut client, painted(|r| r.n = 256)).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("queue is full"), "{status:?}");
    assert!(status.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    // Those that were taken are complete; the refused one left nothing.
    for mut events in crowd {
        let mut answer = Answer::default();
        while soon(events.next(&mut answer)).await.unwrap() {}
        assert_eq!(answer.tokens.len(), 50);
    }
    cluster.is_empty_soon().await;
    assert!(!painted(|_| {}).answer(&mut client, || {}).await.unwrap().tokens.is_empty());
}

#[tokio::test]
async fn a_consumer_that_stops_reading_holds_up_nobody_else() {
    let mut cluster = Cluster::start(1024).await;
    // So little fits on its way that the server has to wait for this reader.
    let narrow = Endpoint::from_shared(format!("http://{}", cluster.address)).unwrap();
    let narrow = narrow.initial_stream_window_size(1024).connect().await.unwrap();
    let mut slow = client::client(narrow);
    let stalled = |n| painted(move |r| (r.n, r.stream_ids) = (n, true));
    let mut unread = Vec::new();
    for n in [1, 8, 40] {
        unread.push(stalled(n).begin(&mut slow).await.unwrap());
    }
    // On other connections, and on its own.
    for client in [&mut cluster.client().await, &mut slow] {
        for _ in 0..5 {
            assert_eq!(painted(|r| r.n = 4).answer(client, || {}).await.unwrap().tokens.len(), 4);
            assert!(!asked(|_| {}).answer(client, || {}).await.unwrap().tokens.is_empty());
        }
    }
    // Their ids are drawn by now, whether anybody reads them or not; their slots are free.
    for _ in 0..500 {
        if cluster.held().await[1..].iter().all(|count| *count == 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let held = cluster.held().await;
    assert!(held[0] > 0 && held[1..].iter().all(|count| *count == 0), "{held:?}");
    // When it reads again, everything is there.
    let mut answer = Answer::default();
    let mut last = unread.pop().unwrap();
    while soon(last.next(&mut answer)).await.unwrap() {}
    assert_eq!(answer.tokens.len(), 40);
    drop((unread, last, slow));
    cluster.is_empty_soon().await;
}

#[tokio::test]
async fn a_request_ends_with_its_last_reader_and_not_before() {
    let mut cluster = Cluster::start(1024).await;
    let mut client = cluster.client().await;
    let header = header();
    let ask = || painted(|r| (r.header, r.n) = (header.clone(), 60));
    let mut first = ask().begin(&mut client).await.unwrap();
    let mut second = ask().begin(&mut client).await.unwrap();
    assert!(soon(first.next(&mut Answer::default())).await.unwrap());
    drop(first);
    let mut answer = Answer::default();
    while soon(second.next(&mut answer)).await.unwrap() {}
    assert_eq!(answer.tokens.len(), 60);

    let start = cluster.driver.history().1;
    painted(|r| r.n = 256).answer(&mut client, || {}).await.unwrap();
    let middle = cluster.driver.history().1;
    let mut only = painted(|r| r.n = 256).begin(&mut client).await.unwrap();
    assert!(soon(only.next(&mut Answer::default())).await.unwrap());
    drop(only);
    cluster.is_empty_soon().await;
    let (whole, cut) = (middle - start, cluster.driver.history().1 - middle);
    assert!(cut < whole / 2, "{cut} microbatches were sent for nobody, {whole} paint everything");
}

#[tokio::test]
async fn a_cancelled_request_ends_for_all_its_readers_and_can_be_asked_again() {
    let mut cluster = Cluster::start(1024).await;
    let mut client = cluster.client().await;
    let header = header();
    let request_id = header.as_ref().unwrap().request_id.clone();
    let ask = |n| painted(|r| (r.header, r.n) = (header.clone(), n));
    let mut readers = vec![ask(256).begin(&mut client).await.unwrap(), ask(256).begin(&mut client).await.unwrap()];
    assert!(soon(readers[0].next(&mut Answer::default())).await.unwrap());
    soon(client.cancel(CancelRequest { request_id })).await.unwrap();
    for reader in &mut readers {
        let mut answer = Answer::default();
        let status = loop {
            match soon(reader.next(&mut answer)).await {
                Ok(more) => assert!(more, "it was answered"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::Cancelled, "{status:?}");
    }
    cluster.is_empty_soon().await;
    assert_eq!(ask(2).answer(&mut client, || {}).await.unwrap().tokens.len(), 2);
}
