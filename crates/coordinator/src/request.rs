//! What is known of every request: units append to its record, any number of callers read it at their own pace.
//!
//! The driver never waits for a reader, and a reader that stops costs only the record, which is bounded by the ids a
//! request can have.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use janus_wire::v1::DecodeResponse;
use tokio::sync::{OnceCell, watch};
use tokio::time::Instant;
use tonic::Status;

use crate::schedule::{Finish, UnitId};

/// Finished requests can be read again for this long, unless it is said otherwise...
pub const KEEP: Duration = Duration::from_secs(600);
/// ...and at most so many are kept.
const KEEP_COUNT: usize = 1024;

/// How one unit of a request stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// Units waiting before it, while it waits.
    pub(crate) queued: Option<usize>,
    pub(crate) started: bool,
    /// How often it went on after a loss.
    pub(crate) resumed: u32,
    /// Which pipeline has it.
    pub(crate) home: usize,
    /// Kept and drawn ids.
    pub(crate) ids: Vec<u32>,
    pub(crate) end: Option<Result<Finish, Failure>>,
}

/// Why a unit could not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    Full,
    Cancelled,
    /// Its pipeline's driver has ended, with the reign or by a panic: whoever leads next takes the request on.
    Ended,
    Lost(String),
}

/// One request.
pub(crate) struct Record {
    /// SHA-256 of its parameters.
    pub(crate) fingerprint: [u8; 32],
    pub(crate) units: Vec<UnitId>,
    state: Mutex<Vec<Progress>>,
    changed: watch::Sender<u64>,
    /// Each picture is decoded once, whoever asks, and kept while somebody reads.
    pictures: Mutex<Vec<Arc<OnceCell<DecodeResponse>>>>,
    /// How often it began again under other numerics.
    pub(crate) restarted: u32,
    /// Ids fed at the start, for `Started`.
    pub(crate) prompt: Vec<u32>,
    /// The trace of the call that made it.
    pub(crate) trace: opentelemetry::Context,
    /// Whether it is durable, or why it is refused, once that is known.
    accepted: watch::Sender<Option<Result<bool, Status>>>,
}

impl Record {
    pub(crate) fn new(fingerprint: [u8; 32], units: Vec<UnitId>, keep: &[u32], prompt: Vec<u32>) -> Self {
        let progress = Progress { ids: keep.to_vec(), ..Progress::default() };
        Record {
            fingerprint,
            state: Mutex::new(vec![progress; units.len()]),
            changed: watch::channel(0).0,
            pictures: Mutex::new(units.iter().map(|_| Arc::default()).collect()),
            units,
            restarted: 0,
            prompt,
            trace: opentelemetry::Context::current(),
            accepted: watch::channel(None).0,
        }
    }

    /// The request is admitted, durably or not.
    pub(crate) fn accept(&self, durable: bool) {
        self.accepted.send_replace(Some(Ok(durable)));
    }

    /// It is not admitted: that is its end for everybody who joined it.
    pub(crate) fn refuse(&self, why: &Status) {
        self.lock().iter_mut().for_each(|p| p.end = Some(Err(Failure::Cancelled)));
        self.accepted.send_replace(Some(Err(why.clone())));
    }

    /// Waits until it is admitted; whether that is durable.
    ///
    /// # Errors
    /// Why it was refused.
    pub(crate) async fn accepted(&self) -> Result<bool, Status> {
        let mut accepted = self.accepted.subscribe();
        let known = accepted.wait_for(Option::is_some).await.ok().and_then(|known| known.clone());
        known.unwrap_or(Ok(false))
    }

    /// Changes the progress of unit `index` and wakes readers.
    pub(crate) fn update(&self, index: usize, change: impl FnOnce(&mut Progress)) {
        if let Some(progress) = self.lock().get_mut(index) {
            change(progress);
        }
        self.changed.send_modify(|version| *version += 1);
    }

    /// Looks at the progress of unit `index`.
    pub(crate) fn look<R>(&self, index: usize, look: impl FnOnce(&Progress) -> R) -> Option<R> {
        self.lock().get(index).map(look)
    }

    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Where the picture of unit `index` is kept.
    pub(crate) fn picture(&self, index: usize) -> Option<Arc<OnceCell<DecodeResponse>>> {
        self.pictures.lock().unwrap_or_else(PoisonError::into_inner).get(index).cloned()
    }

    /// Lets go of the pictures; their ids can be decoded again.
    fn forget_pictures(&self) {
        self.pictures.lock().unwrap_or_else(PoisonError::into_inner).fill_with(Arc::default);
    }

    /// How often it went on after a loss: pictures of one request are lost together.
    pub(crate) fn resumed(&self) -> u32 {
        self.lock().iter().map(|p| p.resumed).max().unwrap_or_default()
    }

    pub(crate) fn finished(&self) -> bool {
        self.lock().iter().all(|p| p.end.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Progress>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Entry {
    record: Arc<Record>,
    readers: usize,
    /// When the last reader of a finished request left.
    left: Option<Instant>,
}

/// All requests, by the id their callers chose.
#[derive(Clone)]
pub(crate) struct Requests {
    all: Arc<Mutex<HashMap<String, Entry>>>,
    /// How long finished ones can be read again.
    pub(crate) keep: Duration,
}

/// What a request id turned out to be.
pub(crate) enum Joined {
    /// New: the units are to be submitted.
    New(Reader),
    /// Known, with the same parameters.
    Known(Reader),
    /// Known, with other parameters.
    Conflict,
}

/// What is done when the last reader has left; true if the request is unfinished, or failed.
type Leaving = Arc<dyn Fn(&Record, bool) + Send + Sync>;

/// A caller's hold on a request. When the last one of an unfinished request goes, its units are given up.
pub(crate) struct Reader {
    pub(crate) record: Arc<Record>,
    id: String,
    requests: Requests,
    leaving: Leaving,
}

impl Requests {
    /// None yet.
    pub(crate) fn new(keep: Duration) -> Self {
        Requests { all: Arc::default(), keep }
    }

    /// Joins the request `id`, or makes it.
    pub(crate) fn join(
        &self,
        id: &str,
        fingerprint: [u8; 32],
        make: impl FnOnce() -> Record,
        leaving: impl Fn(&Record, bool) + Send + Sync + 'static,
    ) -> Joined {
        let mut all = self.lock();
        self.forget_old(&mut all);
        let known = all.contains_key(id);
        let entry = all.entry(id.to_owned()).or_insert_with(|| Entry { record: Arc::new(make()), readers: 0, left: None });
        if entry.record.fingerprint != fingerprint {
            return Joined::Conflict;
        }
        entry.readers += 1;
        entry.left = None;
        let reader =
            Reader { record: entry.record.clone(), id: id.to_owned(), requests: self.clone(), leaving: Arc::new(leaving) };
        if known { Joined::Known(reader) } else { Joined::New(reader) }
    }

    /// The record of a request.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Record>> {
        self.lock().get(id).map(|e| e.record.clone())
    }

    /// Forgets a request.
    pub(crate) fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Requests that are not finished, and all that are remembered.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let all = self.lock();
        (all.values().filter(|e| !e.record.finished()).count(), all.len())
    }

    /// Requests of a tenant that are not finished.
    pub(crate) fn unfinished(&self, tenant: &str) -> usize {
        let of = |id: &str| id.strip_prefix(tenant).is_some_and(|rest| rest.starts_with('/'));
        self.lock().iter().filter(|(id, e)| of(id) && !e.record.finished()).count()
    }

    fn forget_old(&self, all: &mut HashMap<String, Entry>) {
        all.retain(|_, e| e.left.is_none_or(|left| left.elapsed() < self.keep));
        while all.len() > KEEP_COUNT {
            let oldest = all.iter().filter_map(|(id, e)| e.left.map(|left| (left, id.clone()))).min();
            let Some((_, id)) = oldest else { break };
            all.remove(&id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// Another hold on the same request.
    pub(crate) fn another(&self) -> Reader {
        if let Some(entry) = self.requests.lock().get_mut(&self.id).filter(|e| Arc::ptr_eq(&e.record, &self.record)) {
            entry.readers += 1;
        }
        let (record, id, requests) = (self.record.clone(), self.id.clone(), self.requests.clone());
        Reader { record, id, requests, leaving: self.leaving.clone() }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut all = self.requests.lock();
        let Some(entry) = all.get_mut(&self.id).filter(|e| Arc::ptr_eq(&e.record, &self.record)) else { return };
        entry.readers -= 1;
        if entry.readers > 0 {
            return;
        }
        let failed =
            (0..self.record.units.len()).any(|i| self.record.look(i, |p| matches!(p.end, Some(Err(_)))).unwrap_or(true));
        if self.record.finished() && !failed {
            entry.left = Some(Instant::now());
            self.record.forget_pictures();
            drop(all);
            (self.leaving)(&self.record, false);
        } else {
            // Unfinished, or failed: a caller that tries again gets a fresh start.
            all.remove(&self.id);
            drop(all);
            (self.leaving)(&self.record, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn the_last_reader_of_an_unfinished_request_gives_it_up() {
        let requests = Requests::new(KEEP);
        let given_up = Arc::new(AtomicUsize::new(0));
        let join = |print: u8| {
            let count = given_up.clone();
            requests.join(
                "a",
                [print; 32],
                || Record::new([1; 32], vec![7], &[], vec![]),
                move |record, unfinished| {
                    count.fetch_add(record.units.len() * usize::from(unfinished), Ordering::Relaxed);
                },
            )
        };
        let first = join(1);
        assert!(matches!(first, Joined::New(_)));
        let second = join(1);
        assert!(matches!(second, Joined::Known(_)));
        assert!(matches!(join(2), Joined::Conflict));
        drop(first);
        assert_eq!(given_up.load(Ordering::Relaxed), 0);
        drop(second);
        assert_eq!((given_up.load(Ordering::Relaxed), requests.counts()), (1, (0, 0)));
    }

    #[test]
    fn a_finished_request_can_be_read_again() {
        let requests = Requests::new(KEEP);
        let join = || requests.join("a", [1; 32], || Record::new([1; 32], vec![7], &[], vec![]), |_, _| {});
        let Joined::New(reader) = join() else { panic!("it is new") };
        reader.record.update(0, |p| p.end = Some(Ok(Finish::Complete)));
        drop(reader);
        assert!(matches!(join(), Joined::Known(_)));
    }

    #[tokio::test]
    async fn who_joined_a_request_that_is_refused_hears_why() {
        let requests = Requests::new(KEEP);
        let join = || requests.join("a", [1; 32], || Record::new([1; 32], vec![7], &[], vec![]), |_, _| {});
        let Joined::New(first) = join() else { panic!("it is new") };
        let Joined::Known(second) = join() else { panic!("it is known") };
        let waiting = tokio::spawn(async move { second.record.accepted().await });
        first.record.refuse(&Status::resource_exhausted("enough for today"));
        assert_eq!(waiting.await.unwrap().unwrap_err().message(), "enough for today");
        drop(first);
        assert!(matches!(join(), Joined::New(_)));
    }
}
