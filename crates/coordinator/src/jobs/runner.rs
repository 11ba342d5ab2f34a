//! Runs one job: does what its [`Course`] says, and tells it what came of it. Dropped at any moment, it leaves what
//! another one goes on from.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use janus_wire::v1::{self, JobItem, job_item};
use tokio::task::{JoinError, JoinSet};

use super::course::{Action, At, Course, Event, Tally};
use super::engine::{PAUSE, Verdict, encode_png, judge};
use super::objects::Objects;
use super::record::{JobRecord, Status, UnitResult};
use super::state::{Shared, Tracked, aside, patiently};
use super::{Error, blobs, item, manifest, spool};
use crate::params::now_unix_ms;

/// Answers of more bytes are objects of their own until their segment is sealed.
const ASIDE: usize = 1 << 10;
/// Longest word about why a unit failed.
const REASON: usize = 500;
/// A job that could not go on for a reason that may pass is tried again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// Runs a job to its end; returns earlier if this coordinator does not lead any more.
pub(super) async fn run(shared: Arc<Shared>, job: Arc<Tracked>) -> Result<(), Error> {
    let record = job.record().await;
    let failed = match drive(&shared, &job, &record).await {
        Ok(()) => return Ok(()),
        Err(Error::Deposed) => return Err(Error::Deposed),
        Err(error) if error.is_retryable() => {
            tracing::warn!(job = record.id, %error, "a job stops for a while");
            tokio::time::sleep(AGAIN).await;
            return Ok(());
        }
        Err(error) => error,
    };
    tracing::error!(job = record.id, tenant = %record.tenant, error = %failed, "a job failed");
    let forget = shared.keys.results(&record.id);
    let ended = shared.amend(
        &job,
        |txn| txn.delete_prefix(&forget),
        |record| {
            (record.status, record.ended) = (Status::Failed, now_unix_ms());
            record.error = failed.to_string();
        },
    );
    ended.await
}

async fn drive(shared: &Arc<Shared>, job: &Arc<Tracked>, record: &JobRecord) -> Result<(), Error> {
    if record.model != shared.model {
        return Err(Error::Damaged {
            what: format!("job {}", record.id),
            reason: format!("it was made for model {}, and this cluster serves {} now", record.model, shared.model),
        });
    }
    if record.status == Status::Queued {
        let begin = |record: &mut JobRecord| {
            // Somebody may have cancelled it meanwhile.
            if record.status == Status::Queued {
                record.status = Status::Running;
            }
            record.started = now_unix_ms();
        };
        shared.amend(job, |txn| txn, begin).await?;
    }
    let work = Arc::new(Work {
        shared: shared.clone(),
        job: job.clone(),
        folder: shared.folder(&record.id),
        output: shared.output(&record.tenant, &record.id, &record.output)?,
        record: record.clone(),
    });
    let mut run = Run { work, segments: BTreeMap::new(), units: JoinSet::new(), tasks: JoinSet::new() };
    let mut course = Course::new(record.segments, record.sealed, record.tally(), shared.options.window);
    let mut events = VecDeque::from([Event::Begin]);
    let mut cancelled = false;
    loop {
        while let Some(event) = events.pop_front() {
            for action in course.step(event) {
                match action {
                    Action::Finish => return run.work.finish(course.tally()).await,
                    action => run.act(action),
                }
            }
            debug_assert_eq!(course.violated(), None);
            job.tell(course.tally());
        }
        tokio::select! {
            biased;
            () = job.cancel.cancelled(), if !cancelled => {
                cancelled = true;
                events.push_back(Event::Cancel);
            }
            Some(done) = run.tasks.join_next() => events.extend(run.done(joined(done)??)),
            Some(ended) = run.units.join_next() => match ended {
                Err(error) if error.is_cancelled() => {}
                ended => events.extend(run.ended(joined(ended)??)),
            },
            else => return Err(Error::Damaged { what: format!("job {}", record.id), reason: "it stands still".to_owned() }),
        }
    }
}

fn joined<T>(done: Result<T, JoinError>) -> Result<T, Error> {
    done.map_err(|error| Error::Damaged { what: "a job's work".to_owned(), reason: error.to_string() })
}

/// What all parts of a run share.
struct Work {
    shared: Arc<Shared>,
    job: Arc<Tracked>,
    record: JobRecord,
    folder: Objects,
    output: Objects,
}

/// A segment that is open.
struct Segment {
    items: Arc<Vec<JobItem>>,
    /// Of each unit, its item and its index.
    units: Vec<(usize, u32)>,
    results: Vec<Option<UnitResult>>,
}

enum Done {
    Opened(u32, Vec<JobItem>, Vec<(u32, UnitResult)>),
    Committed,
    Sealed(u32),
}

struct Run {
    work: Arc<Work>,
    segments: BTreeMap<u32, Segment>,
    units: JoinSet<Result<(At, UnitResult), Error>>,
    tasks: JoinSet<Result<Done, Error>>,
}

impl Run {
    fn act(&mut self, action: Action) {
        let work = self.work.clone();
        match action {
            Action::Open(segment) => drop(self.tasks.spawn(async move { work.open(segment).await })),
            Action::Start(at) => {
                let Some(segment) = self.segments.get(&at.segment) else { return };
                let Some(&(number, index)) = segment.units.get(at.unit as usize) else { return };
                let items = segment.items.clone();
                self.units.spawn(async move { Ok((at, work.make(at, &items[number], number, index).await?)) });
            }
            Action::Stop => self.units.abort_all(),
            Action::Commit(batch) => {
                let result = |at: At| Some((at, self.segments.get(&at.segment)?.results.get(at.unit as usize)?.clone()?));
                let results: Vec<_> = batch.into_iter().filter_map(result).collect();
                self.tasks.spawn(async move { work.commit(results).await });
            }
            Action::Seal(number, tally) => {
                let Some(segment) = self.segments.get(&number) else { return };
                let mut lines = String::new();
                for ((item, index), result) in segment.units.iter().zip(&segment.results) {
                    lines.push_str(&item::line(&segment.items[*item], *index, result.as_ref()));
                    lines.push('\n');
                }
                let bytes = segment.results.iter().flatten().map(|result| result.bytes).sum();
                self.tasks.spawn(async move { work.seal(number, lines.into(), tally, bytes).await });
            }
            Action::Finish => {}
        }
    }

    /// Takes in what a task brought.
    fn done(&mut self, done: Done) -> Option<Event> {
        match done {
            Done::Opened(number, items, committed) => {
                let units = spool::units_of(&items);
                let mut results = vec![None; units.len()];
                let ends = committed.iter().map(|(unit, result)| (*unit, result.end())).collect();
                for (unit, result) in committed {
                    if let Some(place) = results.get_mut(unit as usize) {
                        *place = Some(result);
                    }
                }
                let event =
                    Event::Opened { segment: number, items: items.iter().map(item::units).collect(), committed: ends };
                self.segments.insert(number, Segment { items: Arc::new(items), units, results });
                Some(event)
            }
            Done::Committed => Some(Event::Committed),
            Done::Sealed(number) => {
                self.segments.remove(&number);
                Some(Event::Sealed)
            }
        }
    }

    /// Takes in what a unit became.
    fn ended(&mut self, (at, result): (At, UnitResult)) -> Option<Event> {
        let end = result.end();
        *self.segments.get_mut(&at.segment)?.results.get_mut(at.unit as usize)? = Some(result);
        Some(Event::Ended(at, end))
    }
}

impl Work {
    async fn open(&self, segment: u32) -> Result<Done, Error> {
        let items = patiently("items", || spool::read(&self.folder, segment)).await?;
        let committed = patiently("results", || self.shared.committed(&self.record.id, segment)).await?;
        Ok(Done::Opened(segment, items, committed))
    }

    async fn commit(&self, results: Vec<(At, UnitResult)>) -> Result<Done, Error> {
        let small = results.into_iter().map(|(at, mut result)| {
            if result.aside {
                result.text = None;
            }
            (at, result)
        });
        self.shared.commit_results(&self.record.id, small.collect()).await?;
        Ok(Done::Committed)
    }

    /// The lines first, then the record that counts them; with it go the results that they replace.
    async fn seal(&self, number: u32, lines: Bytes, tally: Tally, bytes: u64) -> Result<Done, Error> {
        let name = manifest::segment(number);
        patiently("a segment", || self.folder.create(&name, lines.clone())).await?;
        let replaced = self.shared.keys.segment(&self.record.id, number);
        let change = |record: &mut JobRecord| {
            record.sealed = number + 1;
            (record.succeeded, record.failed) = (tally.succeeded, tally.failed);
            record.bytes += bytes;
        };
        self.shared.amend(&self.job, |txn| txn.delete_prefix(&replaced), change).await?;
        Ok(Done::Sealed(number))
    }

    /// The manifest, and then the end.
    async fn finish(&self, tally: Tally) -> Result<(), Error> {
        let sealed = self.job.record().await.sealed;
        let (segments, folder, output) = (self.record.segments, &self.folder, &self.output);
        patiently("a manifest", || manifest::write(folder, output, segments, sealed)).await?;
        output.tidy("");
        output.tidy("pictures");
        let left = self.record.total - tally.succeeded - tally.failed;
        let results = self.shared.keys.results(&self.record.id);
        let change = |record: &mut JobRecord| {
            // Nothing but a cancel leaves anything, this coordinator's or one that was sealed before it.
            record.status = if left > 0 { Status::Cancelled } else { Status::Succeeded };
            (record.cancelled, record.ended) = (left, now_unix_ms());
        };
        self.shared.amend(&self.job, |txn| txn.delete_prefix(&results), change).await
    }

    /// Makes a unit, however often the cluster fails at it. A picture is in its place when this returns.
    async fn make(&self, at: At, item: &JobItem, number: usize, index: u32) -> Result<UnitResult, Error> {
        let (mut pause, mut attempt) = (PAUSE.0, 0);
        loop {
            attempt += 1;
            let failure = match self.attempt(at, item, number, index).await {
                Ok(result) => return Ok(result),
                Err(Failure::Ours(error)) => return Err(error),
                Err(Failure::Engine(status)) => status,
            };
            if judge(&failure, attempt) == Verdict::Failed {
                let mut error = failure.message().to_owned();
                error.truncate(error.floor_char_boundary(REASON));
                let (sha256, text) = (String::new(), None);
                return Ok(UnitResult {
                    succeeded: false,
                    sha256,
                    text,
                    aside: false,
                    error: Some(error),
                    bytes: 0,
                    told: None,
                });
            }
            tracing::info!(job = self.record.id, item = item.id, error = failure.message(), "a unit is tried again");
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(PAUSE.1);
        }
    }

    async fn attempt(&self, at: At, item: &JobItem, number: usize, index: u32) -> Result<UnitResult, Failure> {
        let (tenant, engine) = (&self.record.tenant, &self.shared.engine);
        let priority = if self.record.interactive { v1::Priority::Interactive } else { v1::Priority::Batch };
        let header = v1::RequestHeader {
            // The same after any loss, so that the unit finds its token log.
            request_id: format!("job/{}/{}.{number}.{index}", self.record.id, at.segment),
            priority: priority.into(),
            ..v1::RequestHeader::default()
        };
        let made = |sha256: String, text: Option<String>, bytes: usize| {
            let aside = text.as_ref().is_some_and(|text| text.len() > ASIDE);
            UnitResult { succeeded: true, sha256, text, aside, error: None, bytes: bytes as u64, told: None }
        };
        match &item.work {
            Some(job_item::Work::Paint(paint)) => {
                let init = match paint.init_image.is_empty() {
                    true => None,
                    false => Some(blobs::image(&self.shared.objects, tenant, &paint.init_image).await?),
                };
                let picture = engine.paint(tenant, item::painting(paint, init, index, header)).await?;
                let sha256 = janus_wire::hello::hex(&picture.sha256);
                let png = joined(tokio::task::spawn_blocking(move || encode_png(&picture)).await)?
                    .map_err(|reason| Error::Damaged { what: format!("a picture of item {}", item.id), reason })?;
                let path = item::path(item, index);
                patiently("a picture", || self.output.create(&path, png.clone())).await?;
                Ok(made(sha256, None, png.len()))
            }
            Some(job_item::Work::Ask(ask)) => {
                let mut images = Vec::new();
                for digest in item::blobs(item) {
                    images.push(blobs::image(&self.shared.objects, tenant, digest).await?);
                }
                let answer = engine.answer(tenant, item::asking(ask, images, header)).await?;
                let (told, text) = (item::told(&answer), answer.text);
                let (sha256, bytes) = (item::digest_of_text(&text), text.len());
                if bytes > ASIDE {
                    let (name, data) = (aside(at), Bytes::from(text.clone()));
                    patiently("an answer", || self.folder.create(&name, data.clone())).await?;
                }
                Ok(UnitResult { told: Some(told), ..made(sha256, Some(text), bytes) })
            }
            None => Err(Error::Damaged { what: format!("item {}", item.id), reason: "it asks for nothing".to_owned() })?,
        }
    }
}

/// Why an attempt at a unit came to nothing.
enum Failure {
    /// The request path's word.
    Engine(tonic::Status),
    /// The result could not be kept.
    Ours(Error),
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Failure::Engine(status)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Ours(error)
    }
}
