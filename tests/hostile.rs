//! Callers who mean harm, against `janus serve` as a process: every method hears a hundred of them, answers each with a
//! clear error, and nobody else notices. `JANUS_SEED` repeats a run.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "harness/client.rs"]
mod client;
#[path = "hostile/http2.rs"]
mod http2;
#[path = "hostile/inputs.rs"]
mod inputs;
#[path = "harness/served.rs"]
mod served;
mod support;

use std::time::{Duration, Instant};

use client::{Ask, Numbers, paint};
use inputs::{Answer, METHODS, UNASKED, hostile};
use janus_wire::v1::DescribeModelRequest;
use janus_wire::v1::inference_client::InferenceClient;
use served::Served;

/// Of each method.
const INPUTS: usize = 100;
/// Resident memory may grow by this many kB: the pictures of recent requests are kept, and the largest message has 72 MiB.
const GROWTH: u64 = 500_000;

fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = std::env::var("JANUS_SEED").map_or(u64::from(now), |seed| seed.parse().unwrap());
    println!("JANUS_SEED={seed}");
    seed
}

/// How long a call of somebody else takes, again and again: the median and the 90th percentile.
async fn latency(served: &Served, calls: usize) -> (Duration, Duration) {
    let mut client = InferenceClient::new(served.channel().await);
    let mut times = Vec::new();
    for _ in 0..calls {
        let begun = Instant::now();
        client.describe(DescribeModelRequest::default()).await.unwrap();
        times.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    times.sort();
    (times[times.len() / 2], times[times.len() * 9 / 10])
}

async fn picture(served: &Served) -> Vec<Vec<u8>> {
    let mut client = client::client(served.channel().await);
    Ask::Paint(paint("a red circle")).answer(&mut client, || {}).await.unwrap().sha256
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_hostile_inputs_to_every_method_get_a_hundred_clear_errors() {
    let mut random = Numbers(seed());
    let served = Served::start(&["--threads", "1"]);
    let expected = picture(&served).await;
    let (quiet, memory) = (latency(&served, 200).await, served.resident());
    let mut refused = 0;
    for method in METHODS {
        let attack = async {
            let mut codes = std::collections::BTreeMap::<String, usize>::new();
            for i in 0..INPUTS {
                let input = hostile(method, i, &mut random);
                let what = input.what;
                let answer = input.send(&served).await;
                *codes.entry(answer.kind()).or_default() += 1;
                assert!(answer.is_clear(method), "{method}, {what} (input {i}): {answer:?}");
                refused += usize::from(!matches!(answer, Answer::Ok) && !UNASKED.contains(&method));
            }
            codes
        };
        let (codes, busy) = tokio::join!(attack, latency(&served, 60));
        println!(
            "{method}: {codes:?}; others {:.1?} (p90 {:.1?}), before {:.1?} (p90 {:.1?})",
            busy.0, busy.1, quiet.0, quiet.1
        );
        // The attack computes on the same cores; more than that nobody may notice.
        assert!(busy.0 < 3 * quiet.0 + Duration::from_millis(50), "{method}: {busy:?}, before {quiet:?}");
    }
    assert!(refused >= (METHODS.len() - UNASKED.len()) * INPUTS * 9 / 10, "only {refused} were refused");
    assert_eq!(picture(&served).await, expected);
    let grown = served.resident().saturating_sub(memory);
    println!("resident memory grew by {grown} kB");
    assert!(grown < GROWTH, "resident memory grew by {grown} kB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_abuses_http2_ends_and_others_do_not_notice() {
    let served = Served::start(&["--threads", "1"]);
    let quiet = latency(&served, 100).await;
    let attacks: Vec<_> = http2::ATTACKS
        .into_iter()
        .map(|(what, attack)| {
            let address = served.address.clone();
            tokio::task::spawn_blocking(move || {
                let begun = Instant::now();
                let ended = attack(&address);
                println!("{what}: ended after {:.1?}", begun.elapsed());
                (what, ended)
            })
        })
        .collect();
    let busy = latency(&served, 100).await;
    for attack in attacks {
        let (what, ended) = attack.await.unwrap();
        assert!(ended, "{what}: the connection still stands");
    }
    assert!(busy.0 < 3 * quiet.0 + Duration::from_millis(50), "{busy:?}, before {quiet:?}");
    picture(&served).await;
}
