//! One connection to one endpoint at a time, and the next endpoint when it fails. Every call ends in time.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, KvClient, TlsOptions};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::status::{Verdict, explain, judge};
use crate::Error;
use crate::store::{LeaseId, Tls};

/// Longest time one endpoint gets for connecting or for a read before the next one is tried.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pauses between attempts: from, to.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// HTTP/2 pings; etcd closes connections that ping more often than every 5 s.
const PING: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));
/// A page of a listing may hold hundreds of values of the largest size.
pub(super) const MAX_MESSAGE: usize = 1 << 30;

/// Where etcd is and how to get in.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) endpoints: Vec<String>,
    pub(crate) tls: Option<Tls>,
    pub(crate) auth: Option<(String, String)>,
    pub(crate) timeout: Duration,
}

/// Whether a call may be sent again when its answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Doing it twice is as good as doing it once.
    Read,
    /// Doing it twice may be wrong.
    Change,
}

/// A connection that worked a moment ago.
#[derive(Clone)]
pub(super) struct Session {
    /// Shared, because it is large.
    pub(super) client: Arc<Client>,
    number: u64,
}

impl Session {
    pub(super) fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(MAX_MESSAGE)
    }
}

/// The way to etcd.
pub(super) struct Connection {
    access: Access,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    session: Option<Session>,
    /// Which endpoint comes next.
    turn: usize,
    sessions: u64,
}

impl Connection {
    pub(super) fn new(access: Access) -> Result<Connection, Error> {
        check(&access)?;
        Ok(Connection { access, slot: Mutex::default() })
    }

    /// The first session, tried at every endpoint. What only the operator can repair is told at once.
    pub(super) async fn first(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.access.timeout;
        let session = timeout_at(deadline, self.session()).await;
        session.map_err(|_| self.unreachable("no answer in time".to_owned()))?.map(|_| ())
    }

    pub(super) fn describe(&self) -> String {
        format!("etcd at {}", self.access.endpoints.join(","))
    }

    pub(super) fn timeout(&self) -> Duration {
        self.access.timeout
    }

    fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable { store: self.describe(), reason }
    }

    /// Calls etcd: at the next endpoint when one fails, until it is done or time is up.
    pub(super) async fn call<T, F, Fut>(&self, kind: Kind, call: F) -> Result<T, Error>
    where
        F: Fn(Session) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let deadline = Instant::now() + self.access.timeout;
        let mut pause = PAUSES.0;
        let mut last = "no answer in time".to_owned();
        loop {
            let session = match timeout_at(deadline, self.session()).await {
                Err(_) => return Err(self.unreachable(last)),
                Ok(Err(Error::Unreachable { reason, .. })) => {
                    last = reason;
                    if timeout_at(deadline, sleep(pause)).await.is_err() {
                        return Err(self.unreachable(last));
                    }
                    pause = (pause * 2).min(PAUSES.1);
                    continue;
                }
                Ok(session) => session?,
            };
            let until = match kind {
                Kind::Read => deadline.min(Instant::now() + ATTEMPT),
                Kind::Change => deadline,
            };
            let (verdict, reason) = match timeout_at(until, call(session.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => (judge(&error), explain(&error)),
                Err(_) => (Verdict::Broken, "no answer in time".to_owned()),
            };
            match (verdict, kind) {
                (Verdict::NotDone, _) | (Verdict::Broken, Kind::Read) => {}
                (Verdict::Broken, Kind::Change) => {
                    self.give_up(&session).await;
                    return Err(Error::Uncertain { store: self.describe(), reason });
                }
                (verdict, _) => return Err(self.error(verdict, reason)),
            }
            self.give_up(&session).await;
            last = reason;
            if timeout_at(deadline, sleep(pause)).await.is_err() || Instant::now() >= deadline {
                return Err(self.unreachable(last));
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn error(&self, verdict: Verdict, reason: String) -> Error {
        let store = self.describe();
        match verdict {
            Verdict::LeaseGone => Error::LeaseGone { store, lease: LeaseId(0) },
            Verdict::Auth => Error::AuthRefused { store, reason },
            Verdict::Config => Error::BadConfig { what: format!("{store}: {reason}") },
            Verdict::Refused | Verdict::Compacted => Error::Refused { store, reason },
            Verdict::NotDone | Verdict::Broken => Error::Unreachable { store, reason },
        }
    }

    /// A session that works as far as is known.
    pub(super) async fn session(&self) -> Result<Session, Error> {
        let mut slot = self.slot.lock().await;
        if let Some(session) = &slot.session {
            return Ok(session.clone());
        }
        let mut reasons = Vec::new();
        for _ in 0..self.access.endpoints.len() {
            let endpoint = &self.access.endpoints[slot.turn % self.access.endpoints.len()];
            // Counted before trying: whoever is cancelled in the middle leaves the next endpoint to its successor.
            slot.turn += 1;
            match timeout(self.attempt(), self.open(endpoint)).await {
                Ok(Ok(client)) => {
                    slot.turn -= 1;
                    slot.sessions += 1;
                    let session = Session { client: Arc::new(client), number: slot.sessions };
                    slot.session = Some(session.clone());
                    return Ok(session);
                }
                Ok(Err(Error::Unreachable { reason, .. })) => reasons.push(format!("{endpoint}: {reason}")),
                Ok(Err(error)) => return Err(error),
                Err(_) => reasons.push(format!("{endpoint}: no answer in time")),
            }
        }
        Err(self.unreachable(reasons.join("; ")))
    }

    fn attempt(&self) -> Duration {
        let endpoints = u32::try_from(self.access.endpoints.len()).unwrap_or(u32::MAX).max(1);
        (self.access.timeout / endpoints).clamp(Duration::from_millis(500), ATTEMPT)
    }

    /// Connects, authenticates, and asks whether the member has a leader.
    async fn open(&self, endpoint: &str) -> Result<Client, Error> {
        let options = self.options()?;
        let failed = |error: etcd_client::Error| self.error(judge(&error), explain(&error));
        let client = Client::connect([endpoint], Some(options)).await.map_err(failed)?;
        let status = client.maintenance_client().status().await.map_err(failed)?;
        if status.leader() == 0 {
            return Err(self.unreachable("it has no leader".to_owned()));
        }
        tracing::debug!(endpoint, version = status.version(), "connected to etcd");
        Ok(client)
    }

    fn options(&self) -> Result<ConnectOptions, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.attempt())
            .with_keep_alive(PING.0, PING.1)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = &self.access.auth {
            options = options.with_user(user, password);
        }
        if let Some(tls) = &self.access.tls {
            options = options.with_tls(read_tls(tls)?);
        }
        Ok(options)
    }

    /// Drops a session that failed, unless somebody did already; the next one is opened at the next endpoint.
    pub(super) async fn give_up(&self, failed: &Session) {
        let mut slot = self.slot.lock().await;
        if slot.session.as_ref().is_some_and(|session| session.number == failed.number) {
            slot.session = None;
            slot.turn += 1;
        }
    }
}

/// Finds what cannot work before anything is tried.
fn check(access: &Access) -> Result<(), Error> {
    let bad = |what: String| Err(Error::BadConfig { what });
    if access.endpoints.is_empty() {
        return bad("no etcd endpoint is given; give host:port".to_owned());
    }
    if access.timeout.is_zero() {
        return bad("the timeout of calls to etcd is zero".to_owned());
    }
    for endpoint in &access.endpoints {
        let (scheme, rest) = endpoint.split_once("://").unwrap_or(("", endpoint));
        let port = rest.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        if !matches!(scheme, "" | "http" | "https") || !matches!(port, Some(Ok(1..))) {
            return bad(format!("{endpoint:?} is no etcd endpoint: host:port or http(s)://host:port is"));
        }
        if scheme == "http" && access.tls.is_some() {
            return bad(format!("{endpoint} is without TLS, but certificates are given; write https://"));
        }
        if scheme == "https" && access.tls.is_none() {
            return bad(format!("{endpoint} is with TLS, but the authority's certificate is not given"));
        }
    }
    Ok(())
}

fn read_tls(tls: &Tls) -> Result<TlsOptions, Error> {
    let read = |path: &std::path::Path, what: &str| {
        std::fs::read(path).map_err(|error| Error::BadConfig { what: format!("{what} {}: {error}", path.display()) })
    };
    let ca = read(&tls.ca, "etcd's authority")?;
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
    if let Some((certificate, key)) = &tls.identity {
        let certificate = read(certificate, "the certificate for etcd")?;
        options = options.identity(Identity::from_pem(certificate, read(key, "the key for etcd")?));
    }
    if let Some(name) = &tls.server_name {
        options = options.domain_name(name);
    }
    Ok(options)
}
