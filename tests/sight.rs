//! What can be seen of a cluster: metrics that a real Prometheus reads, traces that a collector gets, log lines, and
//! `janus top` in a terminal.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "harness/client.rs"]
mod client;
#[path = "../crates/cluster/tests/etcd_process/mod.rs"]
mod etcd_process;
mod support;
#[path = "harness/up.rs"]
mod up;

#[path = "sight/collector.rs"]
mod collector;
#[path = "sight/logs.rs"]
mod logs;
#[path = "sight/metrics.rs"]
mod metrics;
#[path = "sight/prometheus.rs"]
mod prometheus;
#[path = "sight/top.rs"]
mod top;
#[path = "sight/traces.rs"]
mod traces;

use client::Client;
use janus_wire::Security;

/// Ids of a picture of `shapes`.
const IDS: u64 = 64;

async fn connect(address: &str) -> Client {
    let first = address.split(',').next().unwrap();
    client::client(janus_wire::connect(first, &Security::Plain).await.unwrap())
}
