//! The real links on a simulated network: coordinator, driver, stages and clients as they are, with HTTP/2 and its
//! keep-alive, on hosts of the crate `turmoil` whose clock, network and order follow from a seed. A model of hashes
//! computes. Messages are late, held back, or lost in one direction or both; hosts crash and come back. Whatever happens,
//! every request that was not given up ends once, with the ids it would have had alone, and nothing is left of any.
//!
//! `JANUS_LINKS_SEEDS=2000 cargo test --release --workspace --test links` tries more seeds, `JANUS_LINKS_SEED=7` one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "links/callers.rs"]
mod callers;
#[path = "sim/dice.rs"]
mod dice;
#[path = "links/hosts.rs"]
mod hosts;
#[path = "links/network.rs"]
mod network;
#[path = "links/seen.rs"]
mod seen;
#[allow(dead_code)]
#[path = "sim/toy.rs"]
mod toy;
#[path = "links/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use world::{Outcome, history};

/// A failing seed goes here, and stays.
const FAILED_SEEDS: [u64; 0] = [];
/// Seeds that are tried unless the environment says otherwise.
const SEEDS: u64 = 200;

#[test]
fn every_request_ends_once_with_the_ids_it_has_alone_whatever_the_links_do() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seeds: Vec<u64> = match number("JANUS_LINKS_SEED") {
        Some(seed) => vec![seed],
        None => FAILED_SEEDS.into_iter().chain(1..=number("JANUS_LINKS_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let outcomes = histories(&seeds);
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    println!(
        "{} histories of {} s: {} blows, {} placements, {} of them ready, {} requests, {} calls begun again, {} resumptions",
        outcomes.len(),
        sum(|o| o.seconds),
        sum(|o| o.blows),
        sum(|o| o.placements),
        sum(|o| o.ready),
        sum(|o| o.requests),
        sum(|o| o.again),
        sum(|o| o.resumed),
    );
    // A simulation in which nothing breaks would prove nothing.
    let count = outcomes.len() as u64;
    assert!(count < 100 || (sum(|o| o.ready) > 2 * count && sum(|o| o.resumed) > count && sum(|o| o.again) > count));
}

#[test]
fn a_seed_has_one_history() {
    for seed in [1, 2, 3] {
        let ((_, one), (_, other)) = (history(seed), history(seed));
        for (first, second) in one.iter().zip(&other) {
            assert_eq!(first, second, "seed {seed} has two histories");
        }
        assert_eq!(one.len(), other.len());
    }
}

fn histories(seeds: &[u64]) -> Vec<Outcome> {
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let worker = || {
        let mut outcomes = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) else { break };
            match catch_unwind(AssertUnwindSafe(|| history(*seed))) {
                Ok((outcome, _)) => outcomes.push(outcome),
                Err(_) => {
                    failed.store(true, Ordering::Relaxed);
                    eprintln!("seed {seed} failed: put it into FAILED_SEEDS");
                }
            }
        }
        outcomes
    };
    // A simulation belongs to one thread.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    });
    assert!(!failed.load(Ordering::Relaxed), "a seed failed; it is named above");
    outcomes
}
