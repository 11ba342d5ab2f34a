//! What being seen costs: the same pictures from a server that nobody looks at and from one with all of it, in turns.

use std::time::{Duration, Instant};

use crate::client::{Ask, Client, paint, soon};
use crate::collector::Collector;
use crate::connect;
use crate::prometheus::get;
use crate::up::Part;

/// Pictures of one turn.
const PICTURES: u32 = 8;

async fn turn(client: &mut Client) -> Duration {
    let mut request = paint("a red circle");
    request.n = PICTURES;
    let began = Instant::now();
    Ask::Paint(request).answer(client, || ()).await.unwrap();
    began.elapsed()
}

/// A server, its client, and where its metrics are.
async fn serve(dir: &tempfile::TempDir, title: &str, flags: &[&str]) -> (Part, Client, Option<String>) {
    let usual = ["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let part = Part::start(dir.path(), title, &[&usual, flags].concat());
    let address = part.line().strip_prefix("ready ").unwrap().to_owned();
    assert!(part.line().starts_with("http "));
    let metrics = (!flags.is_empty()).then(|| part.line().strip_prefix("metrics ").unwrap().to_owned());
    let client = connect(&address).await;
    (part, client, metrics)
}

/// `JANUS_COST_ROUNDS` measures for longer. The bound is for busy machines; benches/README.md has the figure of a quiet one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn being_seen_costs_little() {
    let rounds = std::env::var("JANUS_COST_ROUNDS").ok().map_or(15, |rounds| rounds.parse().unwrap());
    let (collector, url) = Collector::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (_plain, mut plain, _) = serve(&dir, "plain", &[]).await;
    let (_seen, mut seen, metrics) = serve(&dir, "seen", &["--metrics", "127.0.0.1:0", "--otlp", &url]).await;
    let metrics = metrics.unwrap();
    let scraping = tokio::spawn(async move {
        loop {
            let _ = soon(get(&metrics, "/metrics")).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    turn(&mut plain).await;
    turn(&mut seen).await;
    let mut ratios = Vec::new();
    for round in 0..rounds {
        // Who begins takes turns too.
        let (first, second) = if round % 2 == 0 { (&mut plain, &mut seen) } else { (&mut seen, &mut plain) };
        let (a, b) = (turn(first).await.as_secs_f64(), turn(second).await.as_secs_f64());
        ratios.push(if round % 2 == 0 { b / a } else { a / b });
    }
    scraping.abort();
    ratios.sort_by(f64::total_cmp);
    let at = |part: f64| ratios[((ratios.len() - 1) as f64 * part).round() as usize];
    println!(
        "{rounds} rounds of {PICTURES} pictures: being seen takes {:+.1} % (quartiles {:+.1} %, {:+.1} %)",
        100.0 * (at(0.5) - 1.0),
        100.0 * (at(0.25) - 1.0),
        100.0 * (at(0.75) - 1.0)
    );
    let pushed = |c: &Collector| c.metrics().iter().any(|(_, name)| name == "janus.stage.rows").then_some(());
    collector.until("metrics of the server that is seen", pushed).await;
    assert!(at(0.5) < 1.25, "{ratios:?}");
}
