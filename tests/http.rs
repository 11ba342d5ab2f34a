//! The HTTP door: driven with the packages that people use, and with everything that they would not send.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

#[path = "http/clients.rs"]
mod clients;
#[path = "http/cluster.rs"]
mod cluster;
#[path = "../crates/cluster/tests/etcd_process/mod.rs"]
mod etcd_process;
#[path = "http/fake.rs"]
mod fake;
#[path = "http/jobs.rs"]
mod jobs;
#[path = "http/losses.rs"]
mod losses;
#[path = "harness/served.rs"]
mod served;
#[path = "http/shapes.rs"]
mod shapes;
mod support;
#[path = "harness/up.rs"]
mod up;

use janus_gateway::{Gateway, Options};
use janus_wire::{Listener, Security};
use tokio_util::sync::CancellationToken;

/// A gateway in this process; it ends when this is dropped.
struct Door {
    url: String,
    over: CancellationToken,
}

impl Door {
    async fn open(endpoints: &str) -> Door {
        let options = Options { endpoints: endpoints.to_owned(), security: Security::Plain, ..Options::default() };
        Door::open_with(options).await
    }

    async fn open_with(options: Options) -> Door {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let (url, over) = (format!("http://{}", listener.address()), CancellationToken::new());
        tokio::spawn(Gateway::new(options).unwrap().serve(listener, Security::Plain, over.clone()));
        Door { url, over }
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

/// A client that gives up in the end.
fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(std::time::Duration::from_secs(120)).build().unwrap()
}
