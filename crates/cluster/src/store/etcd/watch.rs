//! A watch that outlives connections: list, watch from there on, and again from the beginning whenever that breaks.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep, timeout};

use super::connection::{Connection, MAX_MESSAGE, Session};
use super::status::{Verdict, explain, judge};
use super::{entry, list, prefix_end};
use crate::store::watch::{BUFFERED_EVENTS, Source};
use crate::store::{Event, Watch};

/// How often a silent watch is asked whether it still lives, and how long it may stay silent then. HTTP/2 pings alone
/// would not notice a member that is connected and stuck.
const ASK: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_secs(4);
/// Pauses before listing again: from, to.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Starts following a prefix on the caller's runtime.
pub(super) fn start(connection: Arc<Connection>, prefix: &str) -> Watch {
    let (events, received) = mpsc::channel(BUFFERED_EVENTS);
    let (away, seen) = watch::channel(None);
    let pump = Pump { connection, prefix: prefix.to_owned(), events, away };
    let task = tokio::spawn(pump.run());
    Watch::new(Reader { received, task }, seen)
}

struct Reader {
    received: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

#[async_trait]
impl Source for Reader {
    async fn next(&mut self) -> Event {
        match self.received.recv().await {
            Some(event) => event,
            // The runtime that carried the watch is shutting down; so is the reader.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a round ended.
enum End {
    /// The reader is gone.
    Closed,
    /// The reader was too slow; it is listed again as soon as it has read what there is.
    Behind,
    /// The history was compacted before it was heard; listing again heals it.
    Compacted,
    /// Connection or member failed.
    Broken { session: Option<Session>, reason: String },
}

struct Pump {
    connection: Arc<Connection>,
    prefix: String,
    events: mpsc::Sender<Event>,
    away: watch::Sender<Option<String>>,
}

impl Pump {
    async fn run(self) {
        let mut pause = PAUSES.0;
        loop {
            let began = Instant::now();
            match self.round().await {
                End::Closed => return,
                End::Compacted => {}
                End::Behind => {
                    if self.events.reserve_many(BUFFERED_EVENTS).await.is_err() {
                        return;
                    }
                    continue;
                }
                End::Broken { session, reason } => {
                    tracing::debug!(prefix = self.prefix, reason, "watch is away");
                    self.away.send_if_modified(|away| away.replace(reason).is_none());
                    if let Some(session) = session {
                        self.connection.give_up(&session).await;
                    }
                }
            }
            if began.elapsed() > PAUSES.1 * 4 {
                pause = PAUSES.0;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// From a listing to the end of the stream that follows it.
    async fn round(&self) -> End {
        let listing = match list(&self.connection, &self.prefix).await {
            Ok(listing) => listing,
            Err(error) => return End::Broken { session: None, reason: error.to_string() },
        };
        let session = match timeout(self.connection.timeout(), self.connection.session()).await {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => return End::Broken { session: None, reason: error.to_string() },
            Err(_) => return End::Broken { session: None, reason: "no connection in time".to_owned() },
        };
        let broken = |reason: String| End::Broken { session: Some(session.clone()), reason };
        let mut stream = match timeout(SILENCE, self.open(&session, listing.revision)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if judge(&error) == Verdict::Compacted => return End::Compacted,
            Ok(Err(error)) => return broken(explain(&error)),
            Err(_) => return broken("the watch was not opened in time".to_owned()),
        };
        let mut snapshot = Some(Event::Snapshot { entries: listing.entries, revision: listing.revision });
        let mut heard = Instant::now();
        let mut ask = interval(ASK);
        ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let response = tokio::select! {
                biased;
                response = stream.message() => response,
                _ = ask.tick() => {
                    if heard.elapsed() > SILENCE {
                        return broken("the watch went silent".to_owned());
                    }
                    if let Err(error) = stream.request_progress().await {
                        return broken(explain(&error));
                    }
                    continue;
                }
            };
            let response = match response {
                Ok(Some(response)) => response,
                Ok(None) => return broken("etcd closed the watch".to_owned()),
                Err(error) => return broken(explain(&error)),
            };
            heard = Instant::now();
            if response.canceled() {
                if response.compact_revision() > 0 {
                    return End::Compacted;
                }
                return broken(format!("etcd cancelled the watch: {}", response.cancel_reason()));
            }
            // The listing is told when the watch behind it stands, so that nothing between them can be missed
            // and a reader who has it can rely on hearing the rest.
            let first = if response.created() { snapshot.take() } else { None };
            for event in first.into_iter().chain(events(&response)) {
                match self.events.try_send(event) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => return End::Behind,
                    Err(TrySendError::Closed(_)) => return End::Closed,
                }
            }
            if snapshot.is_none() && self.away.borrow().is_some() {
                self.away.send_replace(None);
            }
        }
    }

    async fn open(&self, session: &Session, listed: u64) -> Result<WatchStream, etcd_client::Error> {
        let from = if self.prefix.is_empty() { vec![0] } else { self.prefix.as_bytes().to_vec() };
        let options = WatchOptions::new()
            .with_range(prefix_end(&self.prefix))
            .with_start_revision(listed.cast_signed() + 1)
            .with_fragment();
        session.client.watch_client().max_decoding_message_size(MAX_MESSAGE).watch(from, Some(options)).await
    }
}

fn events(response: &WatchResponse) -> impl Iterator<Item = Event> {
    response.events().iter().filter_map(|event| {
        let kv = event.kv()?;
        match event.event_type() {
            EventType::Put => entry(kv).map(Event::Put),
            EventType::Delete => {
                let key = kv.key_str().ok()?.to_owned();
                Some(Event::Delete { key, revision: kv.mod_revision().cast_unsigned() })
            }
        }
    })
}
