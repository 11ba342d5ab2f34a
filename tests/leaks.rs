//! Requests that nobody waits for any more leave nothing behind. JANUS_TEST_CANCELS says how many are tried: 2,000 in CI,
//! and 1,000,000 in about an hour.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "harness/client.rs"]
mod client;
#[path = "harness/cluster.rs"]
mod cluster;
#[path = "harness/stage.rs"]
mod stage;
mod support;

use client::{Answer, Ask, Client, Numbers, chat, paint, picture};
use cluster::Cluster;
use janus_wire::v1::CancelRequest;
use support::tiny;

/// Callers at once.
const CALLERS: u64 = 8;
/// Resident memory may grow by this many kB.
const GROWTH: u64 = 20_000;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A request of some kind that would run for a while.
fn some_request(random: &mut Numbers, photo: &[u8]) -> Ask {
    let mut request = paint("a red boat");
    request.seed = random.below(1000);
    match random.below(4) {
        0 => Ask::Chat(chat("What is in the picture?", &[photo.to_vec()], 200)),
        1 => Ask::Chat(chat("What is a river?", &[], 200)),
        2 => {
            request.n = 1 + random.below(6) as u32;
            Ask::Paint(request)
        }
        _ => {
            (request.init_image, request.keep_rows) = (Some(picture(photo.to_vec())), 1);
            Ask::Paint(request)
        }
    }
}

/// Leaves at a random moment: before the answer begins, after some events, or by asking for the end of it.
async fn leave_midway(ask: Ask, random: &mut Numbers, client: &mut Client) {
    let request_id = ask.id();
    let (patience, way) = (random.below(10), random.below(3));
    if way == 0 {
        // The call itself is dropped after it was polled a few times.
        let mut call = Box::pin(ask.begin(client));
        for _ in 0..patience {
            if poll_once(&mut call).await {
                return;
            }
            tokio::task::yield_now().await;
        }
        return;
    }
    let mut events = ask.begin(client).await.unwrap();
    let mut answer = Answer::default();
    for _ in 0..patience {
        if !client::soon(events.next(&mut answer)).await.unwrap() {
            return;
        }
    }
    if way == 1 {
        client.cancel(CancelRequest { request_id }).await.unwrap();
    }
}

/// Polls once; whether it is ready.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_ready())).await
}

async fn cancel_many(cluster: &Cluster, count: u64, seed: u64) {
    let photo = std::fs::read(tiny("golden/images/rgb_64x64.png")).unwrap();
    let mut callers = Vec::new();
    for caller in 0..CALLERS {
        let (mut client, photo) = (cluster.client().await, photo.clone());
        let mut random = Numbers(seed * CALLERS + caller);
        callers.push(tokio::spawn(async move {
            for _ in 0..count / CALLERS {
                let ask = some_request(&mut random, &photo);
                leave_midway(ask, &mut random, &mut client).await;
            }
        }));
    }
    for caller in callers {
        caller.await.unwrap();
    }
}

/// What is kept of ended requests for later ones is bounded, and nothing else is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_that_are_kept_take_a_bounded_memory_and_change_no_bit() {
    let photo = std::fs::read(tiny("golden/images/rgb_64x64.png")).unwrap();
    let asks: Vec<Ask> = (0..40)
        .map(|i| match i % 4 {
            0 => Ask::Chat(chat("What is in the picture?", std::slice::from_ref(&photo), 5 + i % 3)),
            1 => Ask::Chat(chat(&format!("What is a river, and what is {i}?"), &[], 5)),
            2 => Ask::Paint(paint("a red boat")),
            _ => {
                let mut request = paint(&format!("a house beside a river, {i} trees, and a hill behind"));
                (request.n, request.seed) = (3, i.into());
                Ask::Paint(request)
            }
        })
        .collect();
    let mut answers: Vec<Vec<Answer>> = Vec::new();
    for kept in [0, 4] {
        let mut cluster = Cluster::keeping(1024, kept).await;
        let mut client = cluster.client().await;
        let mut all = Vec::new();
        for ask in &asks {
            all.push(ask.again().answer(&mut client, || {}).await.unwrap());
        }
        cancel_many(&cluster, 200, 3).await;
        let reused = cluster.driver.reused();
        println!("{kept} kept: {reused:?}");
        assert_eq!(reused.units > 0, kept > 0);
        if kept == 0 {
            cluster.is_empty_soon().await;
        } else {
            // Four slots of two rows, of at most 512 positions that take 1,536 bytes each in two layers.
            cluster.is_empty_but_for_soon(4 * 2 * 512 * 1536).await;
        }
        answers.push(all);
    }
    let [never, kept] = &answers[..] else { panic!() };
    for (i, (never, kept)) in never.iter().zip(kept).enumerate() {
        assert_eq!((&never.tokens, &never.sha256), (&kept.tokens, &kept.sha256), "request {i}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_requests_leave_no_slot_no_request_and_no_memory() {
    let count = std::env::var("JANUS_TEST_CANCELS").map_or(2000, |count| count.parse().unwrap());
    let mut cluster = Cluster::start(1024).await;
    // Whatever is bounded may fill first: finished requests that are remembered, pictures, buffers.
    cancel_many(&cluster, 1200, 1).await;
    cluster.is_empty_soon().await;
    let before = resident();
    cancel_many(&cluster, count, 2).await;
    cluster.is_empty_soon().await;
    let after = resident();
    assert!(after < before + GROWTH, "from {before} to {after} kB");
    assert_eq!(cluster.driver.history().0, 1, "the pipeline was lost on the way");
    let answer = Ask::Paint(paint("a red boat")).answer(&mut cluster.client().await, || {}).await.unwrap();
    assert_eq!(answer.tokens[0].len(), 16);
}
