//! Whole clusters of real processes and a real etcd: who computes what, and what happens when any of them is lost.
//!
//! `JANUS_STOP_SECONDS`, `JANUS_AWAY_SECONDS` and `JANUS_SOAK_SECONDS` make frozen processes, outages of the store and
//! the soak last longer than in CI; `JANUS_SEED` repeats a run's random moments.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "harness/caller.rs"]
mod caller;
#[path = "harness/client.rs"]
mod client;
#[path = "../crates/cluster/tests/etcd_process/mod.rs"]
mod etcd_process;
#[path = "harness/served.rs"]
mod served;
mod support;
#[path = "harness/up.rs"]
mod up;

#[path = "process/asks.rs"]
mod asks;
#[path = "process/away.rs"]
mod away;
#[path = "process/blows.rs"]
mod blows;
#[path = "process/layout.rs"]
mod layout;
#[path = "process/life.rs"]
mod life;
#[path = "process/membership.rs"]
mod membership;
#[path = "process/other.rs"]
mod other;
#[path = "process/soak.rs"]
mod soak;
#[path = "process/upgrade.rs"]
mod upgrade;

/// A number of seconds from the environment, or the one for CI.
fn seconds(name: &str, ci: u64) -> std::time::Duration {
    let set = std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number")));
    std::time::Duration::from_secs(set.unwrap_or(ci))
}

/// Random moments that can be had again.
fn numbers(what: &str) -> client::Numbers {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let set = std::env::var("JANUS_SEED").ok().map(|text| text.parse().unwrap());
    let seed = set.unwrap_or_else(|| u64::from(now));
    println!("{what}: JANUS_SEED={seed}");
    client::Numbers(seed)
}
