//! Metrics: what is documented is served, a real Prometheus understands it, and its numbers add up.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use janus_wire::v1::{DetokenizeRequest, TokenizeRequest};
use tokio::net::TcpStream;

use crate::client::{self, Ask, chat, header, paint};
use crate::prometheus::{Prometheus, free_range, get, program};
use crate::support::{janus, repository};
use crate::up::{LONG, Part, Up, signal, stages};
use crate::{IDS, connect};

/// Names in the tables of deploy/METRICS.md.
fn documented() -> BTreeSet<String> {
    let text = std::fs::read_to_string(repository().join("deploy/METRICS.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('|').next());
    let names = rows.flat_map(|cell| cell.split(',').map(|name| name.trim().trim_matches('`').to_owned()));
    names.collect()
}

/// Names that a scrape has.
fn served(text: &str) -> impl Iterator<Item = String> + '_ {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split(' ').next().unwrap().to_owned()).filter(|name| name != "target_info")
}

async fn scrape(address: &str) -> String {
    let (status, text) = client::soon(get(address, "/metrics")).await.unwrap();
    assert_eq!(status, 200, "{text}");
    text
}

/// What promtool has against a scrape.
fn lint(text: &str) -> String {
    let mut child = Command::new(program("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    format!("{}{}", if output.status.success() { "" } else { "it fails: " }, String::from_utf8_lossy(&said))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_documented_is_served_and_nothing_else() {
    let first = free_range(8);
    let metrics = format!("127.0.0.1:{first}");
    let http = format!("127.0.0.1:{}", free_range(1));
    let up = Up::slow(2, &["--spares", "1", "--coordinators", "2", "--metrics", &metrics, "--http", &http]);
    assert_eq!(client::soon(get(&http, "/healthz")).await.unwrap().0, 200);
    // Two coordinators, three stages, an encoder, a decoder and a gateway.
    let ports: Vec<String> = (first..first + 8).map(|port| format!("127.0.0.1:{port}")).collect();
    let mut client = connect(&leader(&up).await).await;
    let png = std::fs::read(crate::support::tiny("golden/images/rgb_64x64.png")).unwrap();
    for _ in 0..2 {
        Ask::Chat(chat("What is it?", std::slice::from_ref(&png), 2)).answer(&mut client, || ()).await.unwrap();
    }
    let image = Some(client::picture(png));
    let ids = client.tokenize(TokenizeRequest { header: header(), image }).await.unwrap().into_inner().tokens;
    client.detokenize(DetokenizeRequest { header: header(), tokens: ids }).await.unwrap();
    // A stage is lost in the middle of a picture.
    let victim = up.pid(&stages(&up.status().await)[0]).await;
    let mut events = 0;
    let lose = || {
        events += 1;
        if events == 8 {
            signal(victim, "KILL");
        }
    };
    Ask::Paint(paint("a red circle")).answer(&mut client, lose).await.unwrap();

    let documented = documented();
    let until = Instant::now() + LONG;
    // The stage that was lost serves again when it is back.
    let (all, texts) = loop {
        let mut texts = Vec::new();
        for port in &ports {
            if let Ok((200, text)) = get(port, "/metrics").await {
                texts.push(text);
            }
        }
        let all: BTreeSet<String> = texts.iter().flat_map(|text| served(text)).collect();
        let missing = documented.iter().filter(|name| !all.contains(*name));
        let missing: Vec<_> = missing.collect();
        if texts.len() == ports.len() && missing.is_empty() {
            break (all, texts);
        }
        assert!(Instant::now() < until, "{} of 8 parts answer; never served: {missing:?}\n{}", texts.len(), up.tail());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let unknown: Vec<_> = all.difference(&documented).collect();
    assert!(unknown.is_empty(), "deploy/METRICS.md does not name {unknown:?}");
    for text in &texts {
        assert_eq!(lint(text), "");
        assert!(text.contains("service_version"), "{text}");
    }
    let leading = texts.iter().filter(|text| text.contains("\njanus_leader 1\n")).count();
    assert_eq!(leading, 1, "leaders");
    let lost = texts.iter().any(|text| text.contains("\njanus_pipeline_failovers_total{pipeline=\"1\"} 1\n"));
    assert!(lost, "nobody counted the loss");
}

/// Where the leader is.
async fn leader(up: &Up) -> String {
    let status = up.status().await;
    let id = status["leader"].as_str().unwrap();
    let at: usize = id.strip_prefix("coordinator-").unwrap().parse().unwrap();
    up.endpoints.split(',').nth(at).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_scrapes_every_part_and_its_numbers_add_up() {
    let first = free_range(6);
    let metrics = format!("127.0.0.1:{first}");
    let up = Up::start(&["--stages", "2", "--metrics", &metrics]);
    let ports: Vec<String> = (first..first + 5).map(|port| format!("127.0.0.1:{port}")).collect();
    let prometheus = Prometheus::start(&ports);
    prometheus.until("sum(up{job=\"janus\"})", 5.0).await;
    let mut client = connect(&up.endpoints).await;
    Ask::Paint(paint("a red circle")).answer(&mut client, || ()).await.unwrap();

    let ok = "sum(janus_requests_total{operation=\"generate_content\",outcome=\"ok\"})";
    prometheus.until(ok, 1.0).await;
    prometheus.until("sum(janus_requests_open)", 0.0).await;
    // The first id comes with the prompt, each other one costs a step of two rows; the canary has one id.
    prometheus.until("sum(janus_pipeline_rows_total{mode=\"decode\"})", 2.0 * (IDS - 1) as f64).await;
    let rows = prometheus.ask("sum(janus_pipeline_rows_total)").await.unwrap();
    for stage in ["stage-0", "stage-1"] {
        prometheus.until(&format!("sum(janus_stage_rows_total{{node=\"{stage}\"}})"), rows).await;
    }
    let canary = prometheus.ask("sum(janus_pipeline_rows_total) - sum(janus_tenant_rows_total{tenant=\"local\"})").await;
    assert_eq!(canary, Some(2.0), "rows of nobody");
    // Both stages hold all layers between them, and let go of what they held for the picture.
    prometheus.until("sum(janus_stage_end_layer - janus_stage_first_layer)", 6.0).await;
    prometheus.until("sum(janus_stage_slots_open)", 0.0).await;
    let count = |name: &str| format!("sum({name}_count{{gen_ai_operation_name=\"generate_content\"}})");
    for name in ["request_duration", "time_to_first_token", "time_per_output_token"] {
        prometheus.until(&count(&format!("gen_ai_server_{name}_seconds")), 1.0).await;
    }
    let paced =
        "sum(gen_ai_server_time_per_output_token_seconds_sum) * 63 < sum(gen_ai_server_request_duration_seconds_sum)";
    assert!(prometheus.ask(paced).await.is_some(), "the ids took longer than the picture");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn visitors_who_say_nothing_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let served = Part::start(dir.path(), "serve", &["serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    let address = loop {
        if let Some(address) = served.line().strip_prefix("metrics ") {
            break address.to_owned();
        }
    };
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    let began = Instant::now();
    assert!(scrape(&address).await.contains("janus_pipeline_ready{pipeline=\"1\"} 1"));
    assert!(began.elapsed() > Duration::from_secs(1), "all of them were let in at once");
    assert_eq!(client::soon(get(&address, "/")).await.unwrap().0, 404);
}

#[test]
fn addresses_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (flags, words) in [
        (["--metrics", "nowhere"], "--metrics"),
        (["--metrics", &taken], &taken[..]),
        (["--otlp", "collector"], "--otlp collector"),
        (["--otlp", "https://127.0.0.1:4317"], "OTEL_EXPORTER_OTLP_CERTIFICATE"),
        (["--log-format", "xml"], "xml"),
    ] {
        let run = janus(dir.path(), &[&["serve", "--listen", "127.0.0.1:0"][..], &flags].concat());
        assert_eq!(run.code, Some(2), "{run:?}");
        assert!(run.stderr.contains(words), "{run:?}");
    }
}
