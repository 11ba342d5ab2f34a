//! Encoders and decoders: work goes to the one with the least of it, and to another one if that is lost. What they do
//! changes nothing, so it can be done again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use janus_wire::v1::{decoder_client::DecoderClient, encoder_client::EncoderClient};
use janus_wire::{Error, MAX_NODE_MESSAGE, Security, status, tls};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// A node that failed is avoided for this long, if there is another.
const AVOID: Duration = Duration::from_secs(2);
/// Pause after an attempt, doubled up to the second value.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Addresses of the nodes of one role, as they come and go.
pub type Addresses = watch::Receiver<Vec<String>>;

/// Nodes of one role.
pub(crate) struct Pool<T> {
    addresses: Addresses,
    nodes: Mutex<HashMap<String, Node<T>>>,
    make: fn(Channel) -> T,
    security: Security,
    /// How long a call may look for a node that does it.
    patience: Duration,
    role: &'static str,
}

struct Node<T> {
    client: Option<T>,
    /// One count for each call that runs.
    busy: Arc<()>,
    failed: Option<Instant>,
}

impl Pool<EncoderClient<Channel>> {
    pub(crate) fn encoders(addresses: Addresses, security: &Security, patience: Duration) -> Self {
        Pool::new(addresses, &security.to(tls::Role::Encoder), patience, "encoder", |c| {
            EncoderClient::new(c).max_encoding_message_size(MAX_NODE_MESSAGE)
        })
    }
}

impl Pool<DecoderClient<Channel>> {
    pub(crate) fn decoders(addresses: Addresses, security: &Security, patience: Duration) -> Self {
        Pool::new(addresses, &security.to(tls::Role::Decoder), patience, "decoder", |c| {
            DecoderClient::new(c).max_decoding_message_size(MAX_NODE_MESSAGE)
        })
    }
}

impl<T: Clone> Pool<T> {
    fn new(
        addresses: Addresses,
        security: &Security,
        patience: Duration,
        role: &'static str,
        make: fn(Channel) -> T,
    ) -> Self {
        Pool { addresses, nodes: Mutex::default(), make, security: security.clone(), patience, role }
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<String, Node<T>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node to ask: one that did not just fail, with the fewest calls, the first of equals.
    fn choose(&self) -> Option<(String, Arc<()>)> {
        let addresses = self.addresses.borrow().clone();
        let mut nodes = self.nodes();
        nodes.retain(|address, _| addresses.contains(address));
        for address in &addresses {
            nodes.entry(address.clone()).or_insert_with(|| Node { client: None, busy: Arc::default(), failed: None });
        }
        let rank = |address: &&String| {
            let node = nodes.get(*address);
            let failed = node.and_then(|n| n.failed).is_some_and(|at| at.elapsed() < AVOID);
            (failed, node.map_or(0, |n| Arc::strong_count(&n.busy)))
        };
        let best = addresses.iter().min_by_key(rank)?;
        nodes.get(best).map(|node| (best.clone(), node.busy.clone()))
    }

    /// A node without calls that did not just fail.
    fn idle(&self) -> Option<(String, Arc<()>)> {
        let (address, busy) = self.choose()?;
        let nodes = self.nodes();
        let failed = nodes.get(&address)?.failed.is_some_and(|at| at.elapsed() < AVOID);
        // Its own count and ours.
        (!failed && Arc::strong_count(&busy) == 2).then_some((address, busy))
    }

    /// Calls an idle node once, if there is one; how that fails is nobody's concern but the log's.
    pub(crate) async fn call_idle<R, F>(&self, call: impl FnOnce(T) -> F) -> Option<R>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let (address, _busy) = self.idle()?;
        let client = self.client(&address).await.ok()?;
        match call(client).await {
            Ok(answer) => Some(answer.into_inner()),
            Err(status) => {
                tracing::debug!(address, role = self.role, error = status.message(), "an idle node did not do it");
                None
            }
        }
    }

    async fn client(&self, address: &str) -> Result<T, Error> {
        if let Some(client) = self.nodes().get(address).and_then(|n| n.client.clone()) {
            return Ok(client);
        }
        let client = (self.make)(janus_wire::connect(address, &self.security).await?);
        if let Some(node) = self.nodes().get_mut(address) {
            node.client = Some(client.clone());
        }
        Ok(client)
    }

    /// Calls one node after the other until one has done it, or says that it cannot be done.
    pub(crate) async fn call<R, F>(&self, mut call: impl FnMut(T) -> F) -> Result<R, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let until = Instant::now() + self.patience;
        let mut pause = PAUSE.0;
        loop {
            let failure = match self.choose() {
                None => status::unavailable(format!("there is no {} in the cluster", self.role), PAUSE.1),
                Some((address, _busy)) => {
                    let answer = match self.client(&address).await {
                        Ok(client) => call(client).await,
                        Err(error) => Err(status::unavailable(error.to_string(), PAUSE.1)),
                    };
                    match answer {
                        Ok(answer) => return Ok(answer.into_inner()),
                        Err(status) if !elsewhere(&status) => return Err(status),
                        Err(status) => {
                            tracing::info!(address, role = self.role, error = status.message(), "trying another node");
                            if let Some(node) = self.nodes().get_mut(&address) {
                                (node.client, node.failed) = (None, Some(Instant::now()));
                            }
                            status
                        }
                    }
                }
            };
            if Instant::now() + pause > until {
                return Err(failure);
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(PAUSE.1);
        }
    }
}

/// Whether another node, or the same one a little later, may do better.
fn elsewhere(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::FailedPrecondition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_node_without_calls_that_did_not_fail_is_idle() {
        let two = watch::channel(vec!["a:1".to_owned(), "b:1".to_owned()]).1;
        let pool = Pool::decoders(two, &Security::Plain, Duration::ZERO);
        let (first, _busy) = pool.choose().unwrap();
        let (second, busy) = pool.idle().unwrap();
        assert_ne!(first, second);
        assert!(pool.idle().is_none());
        drop(busy);
        assert_eq!(pool.idle().map(|(address, _)| address), Some(second.clone()));
        pool.nodes().get_mut(&second).unwrap().failed = Some(Instant::now());
        assert!(pool.idle().is_none());
    }
}
