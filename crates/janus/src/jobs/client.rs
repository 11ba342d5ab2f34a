//! A client of jobs that finds the leader, and finds it again after a loss.

use std::time::{Duration, Instant};

use janus_wire::v1::Job;
use janus_wire::v1::jobs_client::JobsClient;
use janus_wire::{LEADER, MAX_CLIENT_MESSAGE, Security};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::args::JobsServer as Server;
use crate::credential::signed;
use crate::failure::{Failure, Outcome};
use crate::session::failure;

/// How long a cluster that was there may be without a leader.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two rounds over the endpoints.
const PAUSE: Duration = Duration::from_millis(200);

impl Server {
    /// A client of the cluster.
    pub(crate) fn client(&self) -> Outcome<Client> {
        Client::new(&self.endpoint, self.tls.security()?)
    }
}

/// Coordinators of one cluster.
pub(crate) struct Client {
    /// The one that led last first.
    endpoints: Vec<String>,
    security: Security,
    client: Option<JobsClient<Channel>>,
    /// Somebody answered before: a silence may pass.
    known: bool,
}

impl Client {
    pub(crate) fn new(endpoints: &str, security: Security) -> Outcome<Client> {
        let endpoints: Vec<String> =
            endpoints.split(',').map(str::trim).filter(|e| !e.is_empty()).map(str::to_owned).collect();
        match endpoints.is_empty() {
            true => Err(Failure::mistake("--endpoint is empty: give host:port")),
            false => Ok(Client { endpoints, security, client: None, known: false }),
        }
    }

    async fn connected(&mut self) -> Result<JobsClient<Channel>, Failure> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let channel = janus_wire::connect(&self.endpoints[0], &self.security).await.map_err(|error| match error {
            janus_wire::Error::Address { .. } => Failure::mistake(format!("--endpoint: {error}")),
            error => Failure::Broken(format!("--endpoint: {error}")),
        })?;
        let client = JobsClient::new(channel).max_decoding_message_size(MAX_CLIENT_MESSAGE);
        self.client = Some(client.clone());
        Ok(client)
    }

    /// Makes a call, again and again while its coordinator is being replaced. What it changes it may change twice.
    pub(crate) async fn call<T>(
        &mut self,
        mut call: impl AsyncFnMut(JobsClient<Channel>) -> Result<T, Status>,
    ) -> Outcome<T> {
        let (begun, mut tried) = (Instant::now(), 0);
        loop {
            let failed = match self.connected().await {
                Err(mistake @ Failure::Mistake(_)) => return Err(mistake),
                Err(failed) => failed,
                Ok(client) => match call(client).await {
                    Ok(answer) => {
                        self.known = true;
                        return Ok(answer);
                    }
                    Err(status) if is_lost(&status) => {
                        // Who says that it does not lead is there, and so is its cluster.
                        self.known |= std::error::Error::source(&status).is_none();
                        self.lose(&status);
                        failure(status)
                    }
                    Err(status) => return Err(failure(status)),
                },
            };
            tried += 1;
            let round = tried % self.endpoints.len() == 0;
            if (round && !self.known) || begun.elapsed() > PATIENCE {
                return Err(failed);
            }
            if self.client.is_none() {
                self.endpoints.rotate_left(1);
            }
            if round {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Forgets a coordinator that was lost, or does not lead; the leader that it names is asked next.
    fn lose(&mut self, status: &Status) {
        self.client = None;
        if let Some(leader) = status.metadata().get(LEADER).and_then(|leader| leader.to_str().ok()) {
            self.endpoints.retain(|known| known != leader);
            // It comes to the front when the next one is taken.
            self.endpoints.insert(self.endpoints.len().min(1), leader.to_owned());
        }
    }

    /// Follows a job to its end; `on_news` hears how it stands.
    pub(crate) async fn follow(&mut self, id: &str, mut on_news: impl FnMut(&Job)) -> Outcome<Job> {
        loop {
            let request = janus_wire::v1::WatchJobRequest { job: id.to_owned() };
            let mut last = None;
            let watched = self
                .call(async |mut client| {
                    let mut events = client.watch(signed(request.clone())).await?.into_inner();
                    loop {
                        match events.message().await {
                            Ok(Some(job)) => {
                                on_news(&job);
                                last = Some(job);
                            }
                            Ok(None) => return Ok(()),
                            // After any news, patience begins anew.
                            Err(_) if last.is_some() => return Ok(()),
                            Err(status) => return Err(status),
                        }
                    }
                })
                .await;
            watched?;
            if let Some(job) = last.filter(super::has_ended) {
                return Ok(job);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Whether the call may work elsewhere, or a little later.
fn is_lost(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}
