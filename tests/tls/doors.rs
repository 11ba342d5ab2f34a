//! Who comes in by which door, and what the others hear.

use std::io::{Read, Write};
use std::net::TcpStream;

use janus_wire::v1::decoder_client::DecoderClient;
use janus_wire::v1::inference_client::InferenceClient;
use janus_wire::v1::node_client::NodeClient;
use janus_wire::v1::stage_client::StageClient;
use janus_wire::v1::*;
use janus_wire::{Security, tls};
use tempfile::tempdir;
use tonic::{Code, Status};

use super::*;
use papers::{Authority, LONG_LIFE, security};

/// Why nobody answers.
async fn refusal(address: &str, security: &Security) -> String {
    match janus_wire::connect(address, security).await {
        Ok(_) => "it was let in".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_reaches_nothing_of_a_worker_and_both_sides_say_why() {
    let dir = tempdir().unwrap();
    let (ours, theirs) = (Authority::new(&dir.path().join("ours")), Authority::new(&dir.path().join("theirs")));
    let (worker, address) = worker(dir.path(), &ours.role("stage"));
    let disguised = Files { authority: ours.ca(), ..theirs.role("coordinator") };
    let elsewhere = ours.issue("elsewhere", &["janus://other/coordinator/c"], LONG_LIFE);
    let nameless = ours.issue("nameless", &[], LONG_LIFE);
    let cases = [
        ("nobody", ours.anonymous(), "it wants a certificate", "it showed no certificate"),
        ("who believes others", security(theirs.role("coordinator")), "not signed by our authority", "does not believe our"),
        ("whom others signed", security(disguised), "another authority signed it", "not signed by our authority"),
        ("another cluster", security(elsewhere), "of another cluster than ours, `other`", ""),
        ("a client", security(ours.role("client")), "a role that has no business there", "client/client-0, and only"),
        ("a gateway", security(ours.role("gateway")), "a role that has no business there", "gateway/gateway-0, and only"),
        ("who has no name", security(nameless), "no business there", "names no role"),
    ];
    for (who, security, hears, logged) in cases {
        let heard = refusal(&address, &security).await;
        assert!(heard.contains(hears), "{who}: {heard}");
        worker.says(logged).await;
    }
    let inside = janus_wire::connect(&address, &security(ours.role("coordinator"))).await.unwrap();
    let answer = NodeClient::new(inside).identify(IdentifyRequest {}).await.unwrap().into_inner();
    assert_eq!(answer.id, "stage-0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_cannot_act_as_coordinator_nor_an_encoder_as_stage() {
    let dir = tempdir().unwrap();
    let ours = Authority::new(dir.path());
    let (_worker, address) = worker(dir.path(), &ours.role("stage"));
    let called = |role: &'static str| {
        let (address, security) = (address.clone(), security(ours.role(role)));
        async move {
            let channel = janus_wire::connect(&address, &security).await.unwrap();
            let mut stage = StageClient::new(channel.clone());
            let mut node = NodeClient::new(channel);
            let link = tokio_stream::iter([LinkMessage::default()]);
            let codes: [Result<(), Status>; 8] = [
                stage.configure(ConfigureRequest::default()).await.map(drop),
                stage.prepare(PrepareRequest::default()).await.map(drop),
                stage.logs(LogsRequest::default()).await.map(drop),
                stage.results(Hello::default()).await.map(drop),
                stage.link(link).await.map(drop),
                stage.put_features(PutFeaturesRequest::default()).await.map(drop),
                node.drain(DrainNodeRequest::default()).await.map(drop),
                node.identify(IdentifyRequest {}).await.map(drop),
            ];
            codes.map(|code| match code {
                Err(status) if status.code() == Code::PermissionDenied => {
                    assert!(status.message().contains(&format!("your certificate is janus://janus/{role}/")), "{status}");
                    false
                }
                // The call itself makes no sense; it was looked at.
                _ => true,
            })
        }
    };
    assert_eq!(called("coordinator").await, [true, true, true, true, true, false, true, true]);
    assert_eq!(called("stage").await, [false, false, false, false, true, false, false, true]);
    assert_eq!(called("encoder").await, [false, false, false, false, false, true, false, true]);
    assert_eq!(called("decoder").await, [false, false, false, false, false, false, false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_the_wrong_role_or_cluster_is_left_at_once() {
    let dir = tempdir().unwrap();
    let ours = Authority::new(dir.path());
    let (_worker, address) = worker(dir.path(), &ours.role("stage"));
    let coordinator = security(ours.role("coordinator"));
    let heard = refusal(&address, &coordinator.to(tls::Role::Decoder)).await;
    assert!(heard.contains("janus://janus/stage/stage-0, and only decoder may be there"), "{heard}");
    let elsewhere = security(ours.issue("elsewhere", &["janus://other/coordinator/c"], LONG_LIFE));
    let heard = refusal(&address, &elsewhere).await;
    assert!(heard.contains("of another cluster than ours, `other`"), "{heard}");
    assert!(refusal(&address, &coordinator.to(tls::Role::Stage)).await.contains("let in"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_need_no_certificate_at_the_public_door_and_a_strangers_does_not_open_it() {
    let dir = tempdir().unwrap();
    let (ours, theirs) = (Authority::new(&dir.path().join("ours")), Authority::new(&dir.path().join("theirs")));
    let (server, address) = server(dir.path(), Some(&ours.role("coordinator")));
    for security in [ours.anonymous(), security(ours.role("client")), security(ours.role("gateway"))] {
        let channel = janus_wire::connect(&address, &security).await.unwrap();
        assert_eq!(
            InferenceClient::new(channel).describe(DescribeModelRequest::default()).await.unwrap().get_ref().model,
            "shapes"
        );
    }
    let disguised = Files { authority: ours.ca(), ..theirs.role("client") };
    assert!(refusal(&address, &security(disguised)).await.contains("another authority signed it"));
    server.says("not signed by our authority").await;
    // By another name than the certificate's, whatever the authority: 127.0.0.2 is this machine too.
    let port = address.rsplit(':').next().unwrap();
    let heard = refusal(&format!("127.0.0.2:{port}"), &ours.anonymous()).await;
    assert!(heard.contains("127.0.0.2") || heard.contains("refused"), "{heard}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_url_of_a_picture_begins_as_its_request_did() {
    let dir = tempdir().unwrap();
    let ours = Authority::new(dir.path());
    let files = ours.role("coordinator");
    let mut args: Vec<String> =
        ["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--threads", "1"].map(str::to_owned).to_vec();
    args.extend(flags(&files));
    let server = super::Part::start(dir.path(), "serve", &args);
    assert!(server.line().starts_with("ready "));
    let address = server.line().strip_prefix("http ").unwrap().to_owned();
    let port = address.rsplit(':').next().unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority = reqwest::Certificate::from_pem(&std::fs::read(ours.ca()).unwrap()).unwrap();
    let builder = || reqwest::Client::builder().no_proxy().tls_certs_only([authority.clone()]);
    // A client of HTTP/2 sends no Host; the name it asks by is whatever it calls us.
    for (client, version) in [
        (builder().http1_only().build().unwrap(), reqwest::Version::HTTP_11),
        (builder().build().unwrap(), reqwest::Version::HTTP_2),
    ] {
        let base = format!("https://localhost:{port}");
        let wanted = serde_json::json!({ "prompt": "a red circle", "seed": 1, "response_format": "url" });
        let request = client.post(format!("{base}/v1/images/generations")).header("x-forwarded-host", "evil.example");
        let response = request.json(&wanted).send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, version));
        let painted: serde_json::Value = response.json().await.unwrap();
        let url = painted["data"][0]["url"].as_str().unwrap();
        assert!(url.starts_with(&format!("{base}/v1/images/results/")), "{url}");
        let picture = client.get(url).send().await.unwrap();
        assert_eq!((picture.status().as_u16(), &picture.headers()["content-type"]), (200, &"image/png".parse().unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_expires_is_refused_from_then_on() {
    let dir = tempdir().unwrap();
    let ours = Authority::new(dir.path());
    let (worker, address) = worker(dir.path(), &ours.role("stage"));
    let brief = security(ours.issue("brief", &["janus://janus/coordinator/c"], Duration::from_secs(4)));
    until("the certificate expires", async || refusal(&address, &brief).await.contains("it has expired")).await;
    worker.says("its certificate has expired").await;
    // And nobody starts with one that has.
    let refused = Security::files(ours.expired("expired", &["janus://janus/coordinator/c"])).unwrap_err().to_string();
    assert!(refused.contains("expired.pem: expired on"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_client_at_a_tls_port_and_a_tls_client_at_a_plain_one_hear_what_is_wrong() {
    let dir = tempdir().unwrap();
    let ours = Authority::new(dir.path());
    let (encrypted, address) = server(dir.path(), Some(&ours.role("coordinator")));
    let words = "this port speaks TLS";
    // gRPC: the connection stands before anything is said.
    let status = match janus_wire::connect(&address, &Security::Plain).await {
        Ok(channel) => InferenceClient::new(channel).describe(DescribeModelRequest::default()).await.unwrap_err(),
        Err(error) => Status::unavailable(error.to_string()),
    };
    let mut said = status.to_string();
    let mut source = std::error::Error::source(&status);
    while let Some(inner) = source {
        said = format!("{said}: {inner}");
        source = inner.source();
    }
    assert!(said.contains(words), "{said}");
    // A browser or curl.
    let mut plain = TcpStream::connect(&address).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(words), "{answer}");
    encrypted.says("it does not speak TLS").await;
    // The program says it in one line.
    let run = support::janus(dir.path(), &["status", "--endpoint", &address]);
    assert!(run.code != Some(0) && run.stderr.contains(words), "{run:?}");

    let bare = dir.path().join("bare");
    std::fs::create_dir(&bare).unwrap();
    let (bare, address) = server(&bare, None);
    let heard = refusal(&address, &ours.anonymous()).await;
    assert!(heard.contains("it does not speak TLS"), "{heard}");
    bare.says("the other side speaks TLS").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_finishes_a_handshake_holds_up_nobody_and_is_cut() {
    let dir = tempdir().unwrap();
    let ours = Authority::new(dir.path());
    let (worker, address) = worker(dir.path(), &ours.role("stage"));
    let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(&address).unwrap()).collect();
    // The beginning of a handshake of which nothing more comes.
    let dripping: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.write_all(&[0x16, 3, 1, 2, 0, 1]).unwrap();
            stream
        })
        .collect();
    let begun = Instant::now();
    let channel = janus_wire::connect(&address, &security(ours.role("coordinator"))).await.unwrap();
    NodeClient::new(channel).identify(IdentifyRequest {}).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "it took {:?}", begun.elapsed());
    for mut stream in silent.into_iter().chain(dripping) {
        stream.set_read_timeout(Some(LONG)).unwrap();
        // Cut: the end, or a reset.
        assert!(!matches!(stream.read(&mut [0; 64]), Ok(1..)), "it was answered");
    }
    worker.says("it did not finish its TLS handshake").await;
}

#[tokio::test]
async fn what_is_not_there_is_not_answered_by_a_worker() {
    let dir = tempdir().unwrap();
    let ours = Authority::new(dir.path());
    let (_worker, address) = worker(dir.path(), &ours.role("stage"));
    let channel = janus_wire::connect(&address, &security(ours.role("coordinator"))).await.unwrap();
    let status = DecoderClient::new(channel.clone()).decode(DecodeRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    let status = InferenceClient::new(channel).describe(DescribeModelRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
}
