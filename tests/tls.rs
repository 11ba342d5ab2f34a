//! TLS: who is let in, who is not and what he hears, and certificates that change under way. The servers are real
//! processes; their logs are what an operator would read.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../crates/cluster/tests/etcd_process/mod.rs"]
mod etcd_process;
#[path = "harness/papers.rs"]
mod papers;
mod support;
#[path = "harness/up.rs"]
mod up;

#[path = "tls/certs.rs"]
mod certs;
#[path = "tls/cluster.rs"]
mod cluster;
#[path = "tls/doors.rs"]
mod doors;
#[path = "tls/reload.rs"]
mod reload;

use std::path::Path;
use std::time::{Duration, Instant};

use janus_wire::tls::Files;
use papers::flags;
use up::Part;

/// How long anything may take on a busy machine.
const LONG: Duration = up::LONG;

/// A stage that serves with these certificates. There is no etcd for it, which it bears.
fn worker(dir: &Path, files: &Files) -> (Part, String) {
    let mut args: Vec<String> =
        ["worker", "--role", "stage", "--name", "stage-0", "--threads", "1", "--etcd", "http://127.0.0.1:1"]
            .map(str::to_owned)
            .to_vec();
    args.extend(flags(files));
    let part = Part::start(dir, "worker", &args);
    let line = part.line();
    let address = line.rsplit(' ').next().unwrap().to_owned();
    (part, address)
}

/// A single process that serves with these certificates.
fn server(dir: &Path, files: Option<&Files>) -> (Part, String) {
    let mut args: Vec<String> = ["serve", "--listen", "127.0.0.1:0", "--threads", "1"].map(str::to_owned).to_vec();
    args.extend(files.map(flags).unwrap_or_default());
    let part = Part::start(dir, "serve", &args);
    let address = part.line().strip_prefix("ready ").unwrap().to_owned();
    (part, address)
}

/// Asks again until it is so.
async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let end = Instant::now() + LONG;
    while !so().await {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
