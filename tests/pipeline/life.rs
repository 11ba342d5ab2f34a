//! The life of a serving process: ready, healthy, small, and gone when it is asked to go.

use std::process::Command;
use std::time::Duration;

use super::*;
use crate::client::soon;
use crate::support::binary;
use janus_wire::v1::DescribeModelRequest;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

/// The model that this program brings along.
fn serve_shapes(stages: &str) -> Served {
    Served::start(&["--stages", stages])
}

async fn health(served: &Served, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    let mut client = HealthClient::new(served.channel().await);
    soon(client.check(request)).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn a_process_that_says_ready_is_healthy_and_says_what_it_serves() {
    let served = serve(3, 1);
    assert!(served.address.starts_with("127.0.0.1:"));
    for service in ["janus.v1.Inference", "janus.v1.Jobs", "janus.v1.Cluster", ""] {
        assert_eq!(health(&served, service).await, ServingStatus::Serving, "`{service}`");
    }
    let model = soon(client(served.channel().await).describe(DescribeModelRequest::default())).await.unwrap().into_inner();
    assert_eq!((model.stages, model.image_size, model.grid, model.codebook), (3, 64, 4, 64));
    assert_eq!((model.model, model.digest.len()), (text(&tiny("transformers")), 32));
    assert!(model.numerics.starts_with("cpu-k"), "{}", model.numerics);
}

/// The services that reflection names, in one version of its protocol.
macro_rules! listed {
    ($served:expr, $version:ident) => {{
        use $version::server_reflection_request::MessageRequest;
        use $version::server_reflection_response::MessageResponse;
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let request = $version::ServerReflectionRequest { host: String::new(), message_request };
        let channel = $served.channel().await;
        let mut client = $version::server_reflection_client::ServerReflectionClient::new(channel);
        let mut answers = soon(client.server_reflection_info(tokio_stream::iter([request]))).await.unwrap().into_inner();
        let answer = soon(answers.message()).await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
        list.service.into_iter().map(|s| s.name).collect::<Vec<_>>()
    }};
}

#[tokio::test]
async fn reflection_lists_the_public_service_and_no_internal_one() {
    let served = serve(1, 1);
    // Python's tools still ask the old way.
    for names in [listed!(served, v1), listed!(served, v1alpha)] {
        assert!(names.iter().any(|name| name == "janus.v1.Inference"), "{names:?}");
        assert!(!names.iter().any(|name| name == "janus.v1.Stage"), "{names:?}");
    }
}

#[tokio::test]
async fn more_stages_take_no_more_memory() {
    let mut resident = Vec::new();
    for stages in ["1", "4"] {
        let served = serve_shapes(stages);
        let mut client = client(served.channel().await);
        let mut request = paint("a red circle");
        request.seed = 1;
        Ask::Paint(request).answer(&mut client, || {}).await.unwrap();
        resident.push(served.resident());
    }
    assert!(resident[1] * 10 <= resident[0] * 11, "{resident:?} kB");
}

#[tokio::test]
async fn a_signal_lets_running_pictures_finish_and_takes_no_new_ones() {
    let mut served = serve_shapes("2");
    let mut client = client(served.channel().await);
    let mut request = paint("a red circle");
    request.n = 8;
    let (said, mut heard) = mpsc::unbounded_channel();
    let mut painter = client.clone();
    let running =
        tokio::spawn(async move { Ask::Paint(request).answer(&mut painter, || said.send(()).unwrap_or(())).await });
    // Queued, started, and the first ids.
    for _ in 0..4 {
        soon(heard.recv()).await.unwrap();
    }
    served.terminate();
    let refused = async {
        loop {
            match Ask::Chat(chat("What is it?", &[], 1)).begin(&mut client).await {
                Ok(_) => {}
                Err(status) => break status,
            }
        }
    };
    let refused = soon(refused).await;
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "the server is shutting down"));
    assert!(!running.is_finished(), "the picture was over too soon to see anything");
    assert_eq!(health(&served, "janus.v1.Inference").await, ServingStatus::NotServing);
    let answer = running.await.unwrap().unwrap();
    assert_eq!(answer.tokens.len(), 8);
    assert_eq!(served.wait(Duration::from_secs(20)).code(), Some(0));
}

#[tokio::test]
async fn an_idle_process_goes_at_once() {
    let mut served = serve(2, 1);
    served.terminate();
    assert_eq!(served.wait(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn a_port_that_others_can_reach_must_be_meant() {
    let run = |args: &[&str]| {
        let model = text(&tiny("transformers"));
        let output =
            Command::new("timeout").arg("60").arg(binary()).args(["serve", "--model", &model]).args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap(), output.stdout)
    };
    let (code, said, out) = run(&["--listen", "0.0.0.0:0"]);
    assert_eq!((code, out.as_slice()), (Some(2), &b""[..]));
    assert!(said.contains("--insecure") && said.contains("0.0.0.0"), "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, said, _) = run(&["--listen", &address]);
    assert_eq!(code, Some(2));
    assert!(said.contains(&address), "{said}");
    assert_eq!(run(&["--stages", "5"]).0, Some(2));
}
