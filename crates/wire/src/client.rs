//! Where the coordinator is: clients know several addresses, one of them leads, and another one does after a loss.

use std::time::Duration;

use http::Uri;
use tokio::sync::Mutex;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::status::unavailable;
use crate::{Error, LEADER, Security};

/// Pause before the next address is tried.
pub const PAUSE: Duration = Duration::from_millis(200);
/// When a caller that found nobody should come back.
const RETRY: Duration = Duration::from_secs(2);
/// A health check that is not answered within this is a no.
const HEALTH: Duration = Duration::from_secs(5);

/// The coordinators of a cluster, shared by all requests of a client.
pub struct Coordinators {
    addresses: Vec<String>,
    security: Security,
    seat: Mutex<Seat>,
}

/// Who is asked at the moment.
#[derive(Default)]
struct Seat {
    /// Index of the address that is asked.
    at: usize,
    /// A leader that a standby named; asked first.
    named: Option<String>,
    channel: Option<Channel>,
    /// Counts changes: only the first caller that noticed a loss acts on it.
    generation: u64,
}

/// A connection to whoever is taken for the leader.
#[derive(Clone)]
pub struct Lead {
    /// For clients of any service.
    pub channel: Channel,
    generation: u64,
}

/// Whether a request goes on somewhere after this: its connection broke, or who answered cannot lead it now.
pub fn is_lost(status: &Status) -> bool {
    // A status with a source was not said by the server.
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

impl Coordinators {
    /// The coordinators of a list `A,B,..`; nothing is connected yet.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn new(list: &str, security: Security) -> Result<Self, Error> {
        let addresses: Vec<String> =
            list.split(',').map(str::trim).filter(|address| !address.is_empty()).map(str::to_owned).collect();
        let bad = |address: &str| Error::Address { address: address.to_owned(), reason: "expected host:port".to_owned() };
        if addresses.is_empty() {
            return Err(bad(list));
        }
        for address in &addresses {
            let url = if address.contains("://") { address.clone() } else { format!("http://{address}") };
            let uri: Uri = url.parse().map_err(|_| bad(address))?;
            if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none() {
                return Err(bad(address));
            }
        }
        Ok(Coordinators { addresses, security, seat: Mutex::default() })
    }

    /// The connection in use, or a new one to the first address that answers.
    ///
    /// # Errors
    /// UNAVAILABLE, with what every address said.
    pub async fn lead(&self) -> Result<Lead, Status> {
        let mut seat = self.seat.lock().await;
        let mut reasons = Vec::new();
        // The named one, then everybody once.
        for _ in 0..=self.addresses.len() {
            if let Some(channel) = &seat.channel {
                return Ok(Lead { channel: channel.clone(), generation: seat.generation });
            }
            let address = seat.named.as_ref().unwrap_or(&self.addresses[seat.at]);
            match crate::connect(address, &self.security).await {
                Ok(channel) => seat.channel = Some(channel),
                Err(error) => {
                    reasons.push(error.to_string());
                    self.next(&mut seat);
                }
            }
        }
        match &seat.channel {
            Some(channel) => Ok(Lead { channel: channel.clone(), generation: seat.generation }),
            None => {
                reasons.dedup();
                Err(unavailable(format!("no coordinator answers: {}", reasons.join("; ")), RETRY))
            }
        }
    }

    /// Looks elsewhere from now on, because `lead` ended with `status`: at the leader it names, else at the next address.
    pub async fn lost(&self, lead: &Lead, status: &Status) {
        let mut seat = self.seat.lock().await;
        if seat.generation != lead.generation {
            return;
        }
        match status.metadata().get(LEADER).and_then(|leader| leader.to_str().ok()) {
            Some(leader) => {
                seat.named = Some(leader.to_owned());
                seat.channel = None;
                seat.generation += 1;
            }
            None => self.next(&mut seat),
        }
    }

    /// A call that changes nothing, made again for `patience` while no coordinator can answer it.
    ///
    /// # Errors
    /// What the leader answered; UNAVAILABLE if there was none in time.
    pub async fn call<R, F>(&self, patience: Duration, call: impl Fn(Channel) -> F) -> Result<R, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let until = tokio::time::Instant::now() + patience;
        loop {
            let status = match self.lead().await {
                Ok(lead) => match call(lead.channel.clone()).await {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) if is_lost(&status) => {
                        self.lost(&lead, &status).await;
                        status
                    }
                    Err(status) => return Err(status),
                },
                Err(status) => status,
            };
            if tokio::time::Instant::now() + PAUSE > until {
                return Err(status);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether some coordinator leads a pipeline that can generate.
    ///
    /// # Errors
    /// UNAVAILABLE if none does.
    pub async fn ready(&self) -> Result<(), Status> {
        let mut last = unavailable("no coordinator is ready", RETRY);
        for _ in 0..=self.addresses.len() {
            let lead = self.lead().await?;
            let check = async { HealthClient::new(lead.channel.clone()).check(HealthCheckRequest::default()).await };
            let answer = tokio::time::timeout(HEALTH, check).await;
            match answer {
                Ok(Ok(health)) if health.get_ref().status() == ServingStatus::Serving => return Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(status)) => last = unavailable(status.message(), RETRY),
                Err(_) => last = unavailable("a coordinator does not answer", RETRY),
            }
            self.lost(&lead, &last).await;
        }
        Err(last)
    }

    fn next(&self, seat: &mut Seat) {
        if seat.named.take().is_none() {
            seat.at = (seat.at + 1) % self.addresses.len();
        }
        seat.channel = None;
        seat.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_is_refused_by_name() {
        assert!(Coordinators::new("127.0.0.1:7070, http://b:1", Security::Plain).is_ok());
        for (list, named) in [("", ""), ("a:1,nonsense", "nonsense"), ("http://b", "http://b")] {
            let error = Coordinators::new(list, Security::Plain).err().unwrap();
            assert!(matches!(&error, Error::Address { address, .. } if address == named), "{error}");
        }
    }

    #[tokio::test]
    async fn a_named_leader_is_asked_first_and_forgotten_when_it_is_lost() {
        let leader = crate::Listener::bind("127.0.0.1:0").await.unwrap();
        let standby = crate::Listener::bind("127.0.0.1:0").await.unwrap();
        let (at, named) = (standby.address().to_string(), leader.address().to_string());
        let serve = |listener: crate::Listener| {
            let router = tonic::transport::Server::builder().add_service(tonic_health::server::health_reporter().1);
            tokio::spawn(router.serve_with_incoming(listener.incoming()))
        };
        let (leading, _standing) = (serve(leader), serve(standby));
        let coordinators = Coordinators::new(&at, Security::Plain).unwrap();
        let first = coordinators.lead().await.unwrap();
        let mut status = Status::unavailable("stands by");
        status.metadata_mut().insert(LEADER, named.parse().unwrap());
        coordinators.lost(&first, &status).await;
        let second = coordinators.lead().await.unwrap();
        assert_eq!(coordinators.seat.lock().await.named.as_deref(), Some(named.as_str()));
        // Somebody who noticed the first loss late changes nothing.
        coordinators.lost(&first, &Status::unavailable("gone")).await;
        assert_eq!(coordinators.seat.lock().await.generation, second.generation);
        leading.abort();
        coordinators.lost(&second, &Status::unavailable("gone")).await;
        coordinators.lead().await.unwrap();
        assert_eq!(coordinators.seat.lock().await.named, None);
    }
}
