//! What the ledger costs etcd: the real ledger and the real records of token logs against a real etcd, for an hour of a
//! cluster that has 2,000 pictures under way all the time, in compressed time.
//!
//! A small simulation says what happens when: pictures are admitted at random moments, 20 a second, each lives for 100 s and
//! draws 576 ids, all of them have slots (32 pipelines of 64), and every 10 s each pipeline writes its record and etcd is
//! compacted. Time is compressed by leaving out the waiting alone: changes that fall into one of the ledger's 25 ms are handed
//! over together, as they would meet there, and the next ones when etcd has them. So etcd sees the same transactions in the
//! same order as in an hour, and has less time to tidy up between them.
//!
//! `JANUS_ETCD_SECONDS=3600` simulates the hour; three minutes of it say how the database grows.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../crates/cluster/tests/etcd_process/mod.rs"]
mod etcd_process;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use etcd_client::Client;
use etcd_process::{Etcd, Version, ready};
use janus_cluster::Keys;
use janus_coordinator::ledger::{GATHER, Ledger, Rounds, name};
use janus_wire::v1::{AdmittedRequest, GenerateImageRequest, RequestHeader, admitted_request};
use tokio_util::sync::CancellationToken;

/// Pictures that are under way.
const PICTURES: usize = 2_000;
const PIPELINES: u64 = 32;
/// Seconds that a picture takes, and its ids.
const LIFE: f64 = 100.0;
const IDS: usize = 576;
const CODEBOOK: u64 = 16_384;
/// Seconds between two records.
const LOG_EVERY: f64 = 10.0;

/// The bounds: transactions and changed keys a second, and bytes.
const MOST_WRITES: f64 = 50.0;
const MOST_BYTES: u64 = 256 << 20;

/// splitmix64.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

struct Picture {
    number: u64,
    born: f64,
    ends: f64,
}

impl Picture {
    fn key(&self) -> String {
        format!("tenant-{}/req-{:032x}", self.number % 10, mix(self.number))
    }

    fn request(&self) -> AdmittedRequest {
        let prompt = "a watercolour of a lighthouse on a cliff at dusk, waves, gulls, warm light in the windows".to_owned();
        let header = Some(RequestHeader { request_id: self.key(), ..RequestHeader::default() });
        let request = GenerateImageRequest { header, prompt, n: 1, seed: self.number, ..GenerateImageRequest::default() };
        AdmittedRequest {
            tenant: format!("tenant-{}", self.number % 10),
            request: Some(admitted_request::Request::Image(request)),
            admitted_unix_ms: 1_800_000_000_000 + self.number,
            model: vec![7; 32].into(),
            numerics: "cpu-k1-bf16-kv-f32".to_owned(),
            ..AdmittedRequest::default()
        }
    }

    /// Its ids so far; they cannot be compressed.
    fn log(&self, now: f64) -> Vec<u32> {
        let known = ((now - self.born) / LIFE * IDS as f64) as u64;
        (0..known.min(IDS as u64 - 1)).map(|i| (mix(self.number << 20 | i) % CODEBOOK) as u32).collect()
    }
}

/// What etcd says of itself.
#[derive(Debug, Clone, Copy)]
struct Figures {
    revision: i64,
    proposals: u64,
    bytes: u64,
}

async fn figures(client: &mut Client) -> Figures {
    let status = client.status().await.unwrap();
    let revision = status.header().unwrap().revision();
    Figures { revision, proposals: status.raft_index(), bytes: status.db_size() as u64 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_pictures_cost_etcd_fifty_writes_a_second_and_256_mib_at_most() {
    let seconds = std::env::var("JANUS_ETCD_SECONDS").map_or(180.0, |text| text.parse::<f64>().unwrap());
    // How fast the disk is does not matter here.
    let etcd = Etcd::start_with(Version::V35, &["--unsafe-no-fsync"], None).await;
    let store = ready(&etcd.config()).await;
    let keys = Keys::new("cost").unwrap();
    let epoch = 1;
    let fence = janus_cluster::Txn::new().put(keys.epoch(), b"1".to_vec());
    store.commit(fence).await.unwrap();
    let over = CancellationToken::new();
    let ledger = Ledger::gathering(Duration::from_millis(1), store.clone(), keys.clone(), "cost", epoch, over.clone());
    let mut rounds = Rounds::new(store.clone(), keys.clone(), "cost", epoch, "cpu-k1-bf16-kv-f32");
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();

    // The cluster is full when time begins, and has been for long.
    let rate = PICTURES as f64 / LIFE;
    let mut alive: VecDeque<Picture> = VecDeque::new();
    let mut number = 0;
    while alive.len() < PICTURES {
        let born = -LIFE + number as f64 / rate;
        let picture = Picture { number, born, ends: born + LIFE };
        assert!(ledger.admit(&picture.key(), picture.request()).await);
        alive.push_back(picture);
        number += 1;
    }
    let there = |key: &str| format!("{}.0000", keys.request(&name(key)));
    let begun = Instant::now();
    let before = figures(&mut client).await;
    let (mut most_bytes, mut changes, mut records) = (before.bytes, 0, 0);
    let mut early = None;
    let (mut now, mut comes, mut round) = (0.0_f64, 0.0_f64, 0.0_f64);
    let (mut admitted, mut ended) = (0_u64, 0_u64);
    while now < seconds {
        let goes = alive.front().map_or(f64::MAX, |picture| picture.ends);
        let next = comes.min(goes);
        if round <= next {
            now = round;
            for pipeline in 1..=PIPELINES {
                let mine = alive.iter().filter(|p| p.number % PIPELINES == pipeline - 1);
                let logs: BTreeMap<String, Vec<u32>> =
                    mine.map(|p| (format!("{}#0", p.key()), p.log(now))).filter(|(_, log)| !log.is_empty()).collect();
                rounds.write(pipeline, logs).await;
                records += 1;
            }
            rounds.end().await;
            most_bytes = most_bytes.max(figures(&mut client).await.bytes);
            // Pages are free for others from here on.
            if early.is_none() && now >= seconds / 3.0 {
                early = Some((now, most_bytes));
            }
            round += LOG_EVERY;
            continue;
        }
        // Everything that the ledger would gather with it.
        now = next;
        let until = now + GATHER.as_secs_f64();
        let (mut born, mut gone) = (Vec::new(), Vec::new());
        while comes < until {
            let chance = (mix(number ^ 0xc0ffee) >> 11) as f64 / (1_u64 << 53) as f64;
            born.push(Picture { number, born: comes, ends: comes + LIFE });
            comes -= (1.0 - chance).ln() / rate;
            number += 1;
        }
        while let Some(picture) = alive.pop_front_if(|picture| picture.ends < until) {
            gone.push(picture.key());
        }
        (admitted, ended, changes) = (admitted + born.len() as u64, ended + gone.len() as u64, changes + 1);
        gone.iter().for_each(|key| ledger.forget(key));
        let asked = born.iter().map(|picture| {
            let (key, request) = (picture.key(), picture.request());
            let ledger = ledger.clone();
            async move { assert!(ledger.admit(&key, request).await, "it is not durable") }
        });
        futures_join(asked.collect()).await;
        // An end is not acknowledged: its record goes.
        if let Some(key) = gone.last() {
            while store.get(&there(key)).await.unwrap().is_some() {
                tokio::task::yield_now().await;
            }
        }
        alive.extend(born);
    }
    let after = figures(&mut client).await;
    most_bytes = most_bytes.max(after.bytes);
    let written = (after.revision - before.revision) as f64 / now;
    let proposed = (after.proposals - before.proposals) as f64 / now;
    println!(
        "{now:.0} simulated seconds in {:.0}: {admitted} pictures admitted and {ended} ended, {:.0} under way, {records} records; \
         {written:.1} transactions and {proposed:.1} raft entries a second, the database has {:.1} MiB at most",
        begun.elapsed().as_secs_f64(),
        alive.len(),
        most_bytes as f64 / f64::from(1 << 20),
    );
    assert!(changes > 0 && written > rate, "nothing happened");
    assert!((PICTURES * 8 / 10..PICTURES * 12 / 10).contains(&alive.len()), "{} are under way", alive.len());
    assert!(written <= MOST_WRITES && proposed <= MOST_WRITES, "{written:.1} transactions, {proposed:.1} entries a second");
    let (since, then) = early.unwrap();
    let growth = (most_bytes - then) as f64 / (now - since);
    println!("since second {since:.0} it has grown by {:.0} KiB a minute", growth * 60.0 / 1024.0);
    assert!(most_bytes < MOST_BYTES, "{most_bytes} bytes");
    let after_an_hour = most_bytes as f64 + growth * (3600.0 - now).max(0.0);
    assert!(after_an_hour < MOST_BYTES as f64, "{after_an_hour:.0} bytes after an hour, if it goes on like this");
    // What is there is what is under way.
    let left = store.list(&keys.requests()).await.unwrap().entries.len();
    assert_eq!(left, alive.len());
    over.cancel();
}

/// All of them at once.
async fn futures_join<F: Future<Output = ()> + Send + 'static>(all: Vec<F>) {
    let mut set: tokio::task::JoinSet<()> = all.into_iter().collect();
    while let Some(done) = set.join_next().await {
        done.unwrap();
    }
}
