//! What the benches share: nodes with runtimes of their own, a stage that computes nothing, and a table of quantiles.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod stage;

pub use stage::{Instants, ToyStage};

use std::time::Duration;

use janus_wire::tls::{Door, Peer, Pem, Roles};
use janus_wire::{Identity, Listener, Security};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Server;
use tonic::transport::server::Router;

/// Who every node of a bench is.
pub fn identity() -> Identity {
    Identity { cluster: "bench".into(), numerics: "toy-1".into(), model: [7; 32], node: "bench".into() }
}

/// A runtime as a process of its own would have it.
pub fn node(name: &str, threads: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build().unwrap()
}

/// Serves on a free loopback port for as long as the runtime lives; gives back the address.
pub fn serve(runtime: &Runtime, add: impl FnOnce(&mut Server) -> Router) -> String {
    serve_by(&Security::Plain, runtime, add)
}

/// The same, as `security` wants it.
pub fn serve_by(security: &Security, runtime: &Runtime, add: impl FnOnce(&mut Server) -> Router) -> String {
    runtime.block_on(async {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.address().to_string();
        let router = add(&mut janus_wire::server(security).unwrap());
        tokio::spawn(router.serve_with_incoming(listener.behind(security, Door::Nodes)));
        address
    })
}

/// Mutual TLS between nodes that have every role.
pub fn encrypted() -> Security {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (root, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let ca = authority.self_signed(&root).unwrap().pem();
    let mut node = CertificateParams::new(Vec::new()).unwrap();
    let peer = Peer { cluster: "bench".to_owned(), roles: Roles::NODES, name: "bench".to_owned() };
    node.subject_alt_names = peer.uris().into_iter().map(|uri| SanType::URI(uri.try_into().unwrap())).collect();
    let certificate = node.signed_by(&key, &Issuer::new(authority, root)).unwrap().pem();
    let own = Some((certificate.into_bytes(), key.serialize_pem().into_bytes()));
    Security::fixed(&Pem { authority: ca.into_bytes(), own }).unwrap()
}

/// Prints the head of a table of [`row`]s.
pub fn head(what: &str) {
    println!("\n{what:<44} {:>8} {:>9} {:>9} {:>9} {:>9}", "samples", "p50 us", "p90 us", "p99 us", "max us");
}

/// Prints one line; gives back p99.
pub fn row(what: &str, samples: &mut [Duration]) -> Duration {
    assert!(samples.len() >= 100, "{what}: {} samples are too few", samples.len());
    samples.sort();
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize];
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let [p50, p90, p99, most] = [0.5, 0.9, 0.99, 1.0].map(at);
    println!("{what:<44} {:>8} {:>9.1} {:>9.1} {:>9.1} {:>9.1}", samples.len(), us(p50), us(p90), us(p99), us(most));
    p99
}

/// Says whether a bound holds; the program fails with 1 if one that must hold does not.
pub fn bound(what: &str, p99: Duration, aim: Duration, must: Duration) -> bool {
    let verdict = if p99 < aim {
        "ok"
    } else if p99 < must {
        "misses its aim"
    } else {
        "FAILS"
    };
    println!("  {what}: p99 {p99:.0?}, aim < {aim:.0?}, must < {must:.0?}: {verdict}");
    p99 < must
}
