//! Runs the scheduler against a pipeline: a loop on a thread of its own, so that public traffic cannot delay a step.
//! What it decides is in [`core`], what is seen of it in `sight`.

pub mod core;
mod pace;
mod sight;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use janus_wire::v1::{Frame, LinkMessage, ResultMessage, StepResult, link_message, result_message};
use janus_wire::{Identity, Security, frame};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::core::{Core, Deed, Now};
use self::sight::Sight;
use crate::pipeline::{self, Ends, Placement, StageNode};
use crate::request::{Failure, Record};
use crate::schedule::{Action, Event, Finish, Limits, Reused, UnitId, UnitSpec};

/// Commands that wait for the loop.
const QUEUE: usize = 1024;
/// First and longest pause between two attempts to connect a pipeline.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Where the news of a unit goes.
pub(crate) struct Sink {
    pub(crate) record: Arc<Record>,
    pub(crate) index: usize,
    /// Called when the unit's pictures must be encoded again.
    pub(crate) encode_again: Option<Arc<dyn Fn(UnitId) + Send + Sync>>,
}

pub(crate) enum Command {
    Submit(Box<UnitSpec>, Sink),
    Cancel(UnitId),
    FeaturesReady(UnitId),
    /// Token logs of everything that has begun.
    Logs(oneshot::Sender<BTreeMap<String, Vec<u32>>>),
    /// Hands every unit over, for another pipeline.
    Evacuate(oneshot::Sender<Vec<(UnitSpec, Sink)>>),
}

/// Where a pipeline's stages come from.
pub enum Places {
    /// Always these; a lost pipeline is connected to them again.
    Fixed(Vec<StageNode>),
    /// From a conductor, who hears of every loss and answers with the next placement.
    Led(watch::Receiver<Option<Arc<Placement>>>, mpsc::UnboundedSender<Report>),
}

/// What a conductor hears of a pipeline.
#[derive(Debug)]
pub struct Report {
    /// Which pipeline.
    pub pipeline: u64,
    /// The placement's epoch.
    pub epoch: u64,
    /// How it went.
    pub news: News,
}

/// See [`Report`].
#[derive(Debug)]
pub enum News {
    /// A canary went through all stages.
    Ready,
    /// It is over; the stage at which that showed, if it showed at one.
    Lost {
        /// Why.
        reason: String,
        /// Index of the stage.
        stage: Option<usize>,
    },
}

/// What a driver needs to know.
pub struct Driver {
    /// Who we are.
    pub identity: Identity,
    /// How we connect.
    pub security: Security,
    /// The pipeline's number.
    pub pipeline: u64,
    /// Its stages.
    pub places: Places,
    /// Its limits.
    pub limits: Limits,
    /// Text ids of the canary's prompt, and the id that begins an image.
    pub canary: Vec<u32>,
}

/// A running driver. Cheap to clone.
#[derive(Clone)]
pub struct DriverHandle {
    commands: mpsc::Sender<Command>,
    ready: watch::Receiver<bool>,
    trouble: watch::Receiver<Option<String>>,
    placed: watch::Receiver<Option<Arc<Placement>>>,
    stats: Arc<Stats>,
}

/// What can be seen from outside.
#[derive(Debug, Default)]
struct Stats {
    waiting: AtomicUsize,
    active: AtomicUsize,
    parked: AtomicUsize,
    backlog: AtomicUsize,
    epoch: AtomicU64,
    microbatches: AtomicU64,
    failures: AtomicU64,
    proven: AtomicBool,
    recovery_ms: AtomicU64,
    preempted: AtomicU64,
    reused: Mutex<Reused>,
    served: Mutex<BTreeMap<Arc<str>, u64>>,
}

impl DriverHandle {
    /// Becomes true when a canary went through all stages, false when a stage is lost.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// Waits until the loop is over: its reign has ended, or it panicked.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    /// Why the latest canary did not come through, if it was refused.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }

    /// The stages that are connected, or being connected.
    pub fn placed(&self) -> Option<Arc<Placement>> {
        self.placed.borrow().clone()
    }

    /// Rows computed for each tenant.
    pub fn served(&self) -> BTreeMap<Arc<str>, u64> {
        self.stats.served.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Units that had to make room for others.
    pub fn preempted(&self) -> u64 {
        self.stats.preempted.load(Ordering::Relaxed)
    }

    /// What was copied instead of being computed.
    pub fn reused(&self) -> Reused {
        *self.stats.reused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was ever ready: then whatever it takes on will be done, after a recovery if need be.
    pub fn proven(&self) -> bool {
        self.stats.proven.load(Ordering::Relaxed)
    }

    /// Units that wait, and units that are open.
    pub fn counts(&self) -> (usize, usize) {
        (self.stats.waiting.load(Ordering::Relaxed), self.stats.active.load(Ordering::Relaxed))
    }

    /// Units that had begun and wait to go on.
    pub fn parked(&self) -> usize {
        self.stats.parked.load(Ordering::Relaxed)
    }

    /// Rows that are still to be computed for everything it has taken on.
    pub fn backlog(&self) -> usize {
        self.stats.backlog.load(Ordering::Relaxed)
    }

    /// How long the latest recovery took, from the loss to the next id.
    pub fn recovery(&self) -> Option<Duration> {
        match self.stats.recovery_ms.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(Duration::from_millis(ms)),
        }
    }

    /// The pipeline's epoch, the microbatches sent so far, and how often the pipeline was lost.
    pub fn history(&self) -> (u64, u64, u64) {
        let stats = &self.stats;
        (
            stats.epoch.load(Ordering::Relaxed),
            stats.microbatches.load(Ordering::Relaxed),
            stats.failures.load(Ordering::Relaxed),
        )
    }

    pub(crate) async fn submit(&self, spec: UnitSpec, sink: Sink) -> Result<(), ()> {
        self.commands.send(Command::Submit(Box::new(spec), sink)).await.map_err(drop)
    }

    /// Gives units up, from anywhere, without waiting.
    pub(crate) fn cancel(&self, units: &[UnitId]) {
        for &unit in units {
            if let Err(mpsc::error::TrySendError::Full(command)) = self.commands.try_send(Command::Cancel(unit)) {
                // The loop is behind; a task waits in our place so that no cancel is lost.
                let commands = self.commands.clone();
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    runtime.spawn(async move { commands.send(command).await });
                }
            }
        }
    }

    pub(crate) async fn features_ready(&self, unit: UnitId) {
        let _ = self.commands.send(Command::FeaturesReady(unit)).await;
    }

    /// Token logs of everything that has begun, by the name of the log.
    pub async fn logs(&self) -> BTreeMap<String, Vec<u32>> {
        let (reply, logs) = oneshot::channel();
        let _ = self.commands.send(Command::Logs(reply)).await;
        logs.await.unwrap_or_default()
    }

    /// Takes everything from it.
    pub(crate) async fn evacuate(&self) -> Vec<(UnitSpec, Sink)> {
        let (reply, units) = oneshot::channel();
        let _ = self.commands.send(Command::Evacuate(reply)).await;
        units.await.unwrap_or_default()
    }
}

impl Driver {
    /// Starts the loop on its thread; `shutdown` ends it.
    ///
    /// # Errors
    /// If no thread or runtime can be had.
    pub fn start(self, shutdown: CancellationToken) -> std::io::Result<DriverHandle> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (handle, run) = self.prepare();
        std::thread::Builder::new().name("driver".to_owned()).spawn(move || runtime.block_on(run.forever(shutdown)))?;
        Ok(handle)
    }

    /// The loop as a future, for simulations, which have one thread.
    pub fn here(self, shutdown: CancellationToken) -> (DriverHandle, impl Future<Output = ()>) {
        let (handle, run) = self.prepare();
        (handle, run.forever(shutdown))
    }

    fn prepare(self) -> (DriverHandle, Run) {
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (ready, watching) = watch::channel(false);
        let (trouble, troubled) = watch::channel(None);
        let (placed, placing) = watch::channel(None);
        let stats = Arc::new(Stats::default());
        let handle = DriverHandle { commands, ready: watching, trouble: troubled, placed: placing, stats: stats.clone() };
        let core = Core::new(self.pipeline, self.limits, self.canary.clone());
        let run = Run {
            sight: Sight::new(self.pipeline),
            driver: self,
            core,
            started: Instant::now(),
            sinks: HashMap::new(),
            inbox,
            ready,
            trouble,
            placed,
            stats,
            epoch: 0,
            lost_at: None,
        };
        (handle, run)
    }
}

struct Run {
    driver: Driver,
    core: Core,
    started: Instant,
    sinks: HashMap<UnitId, Sink>,
    inbox: mpsc::Receiver<Command>,
    ready: watch::Sender<bool>,
    trouble: watch::Sender<Option<String>>,
    placed: watch::Sender<Option<Arc<Placement>>>,
    stats: Arc<Stats>,
    sight: Sight,
    epoch: u64,
    /// When something that ran was lost, until the next id is drawn.
    lost_at: Option<Instant>,
}

/// How an epoch ended.
enum End {
    Lost(String),
    /// The conductor has another placement.
    Moved,
    Shutdown,
}

impl Run {
    async fn forever(mut self, shutdown: CancellationToken) {
        let mut pause = RETRY.0;
        while !shutdown.is_cancelled() {
            let Some(placement) = self.placement(&shutdown).await else { return };
            self.epoch = placement.epoch;
            self.stats.epoch.store(self.epoch, Ordering::Relaxed);
            self.placed.send_replace(Some(placement.clone()));
            let Driver { identity, security, pipeline, .. } = &self.driver;
            let (news, proven) = match pipeline::connect(&placement, identity, security, *pipeline).await {
                Ok(ends) => {
                    tracing::info!(pipeline, epoch = self.epoch, stages = placement.stages.len(), "pipeline connected");
                    let end = self.run(ends, placement.pools, &shutdown).await;
                    let proven = self.ready.send_replace(false);
                    match end {
                        End::Shutdown => return,
                        End::Moved => (None, proven),
                        End::Lost(reason) => {
                            tracing::warn!(reason, pipeline = self.driver.pipeline, epoch = self.epoch, "pipeline lost");
                            (Some(News::Lost { reason, stage: None }), proven)
                        }
                    }
                }
                Err(unconnected) => {
                    let pipeline::Unconnected { stage, error } = unconnected;
                    tracing::warn!(%error, pipeline, epoch = self.epoch, "pipeline cannot be connected");
                    (Some(News::Lost { reason: error.to_string(), stage }), false)
                }
            };
            pause = if proven { RETRY.0 } else { (2 * pause).min(RETRY.1) };
            match (&self.driver.places, news) {
                (Places::Led(..), Some(news)) => self.report(news),
                (Places::Led(..), None) => {}
                // Requests still arrive and leave while there is no pipeline.
                (Places::Fixed(_), _) => {
                    let until = Instant::now() + pause;
                    if self.idle(&shutdown, tokio::time::sleep_until(until)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn report(&self, news: News) {
        if let Places::Led(_, reports) = &self.driver.places {
            let _ = reports.send(Report { pipeline: self.driver.pipeline, epoch: self.epoch, news });
        }
    }

    /// The next placement; none at the end.
    async fn placement(&mut self, shutdown: &CancellationToken) -> Option<Arc<Placement>> {
        let mut coming = match &self.driver.places {
            Places::Fixed(stages) => {
                return Some(Arc::new(Placement { epoch: self.epoch + 1, stages: stages.clone(), pools: 1 }));
            }
            Places::Led(coming, _) => coming.clone(),
        };
        let last = self.epoch;
        let newer = |placement: &Option<Arc<Placement>>| placement.as_ref().is_some_and(|p| p.epoch > last);
        let next = async move { coming.wait_for(newer).await.ok().and_then(|placement| placement.clone()) };
        self.idle(shutdown, next).await.flatten()
    }

    /// Takes commands until `done`; none if the driver is to end.
    async fn idle<T>(&mut self, shutdown: &CancellationToken, done: impl Future<Output = T>) -> Option<T> {
        let mut done = std::pin::pin!(done);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return None,
                done = &mut done => return Some(done),
                command = self.inbox.recv() => {
                    // Without a pipeline nothing is sent, so all of it is news.
                    for deed in self.command(command?) {
                        if let Deed::Tell(action) = deed {
                            self.news(action);
                        }
                    }
                    self.count();
                }
            }
        }
    }

    fn now(&self) -> Now {
        self.started.elapsed()
    }

    /// Works until the epoch ends.
    async fn run(&mut self, mut ends: Ends, pools: usize, shutdown: &CancellationToken) -> End {
        let mut coming = match &self.driver.places {
            Places::Fixed(_) => None,
            Places::Led(coming, _) => Some(coming.clone()),
        };
        let mut deeds = self.core.up(self.now(), self.epoch, pools, ends.copies);
        let end = loop {
            if let Err(reason) = self.act(deeds, &ends).await {
                break End::Lost(reason);
            }
            let deadline = self.core.deadline().map(|at| self.started + at);
            deeds = tokio::select! {
                biased;
                () = shutdown.cancelled() => break End::Shutdown,
                result = ends.results.message() => {
                    let result = result_of(result).inspect(|result| self.sight.came(result.microbatch));
                    match result.and_then(|result| self.core.result(self.now(), result)) {
                        Ok(deeds) => deeds,
                        Err(reason) => break End::Lost(reason),
                    }
                }
                answer = ends.answers.message() => {
                    break End::Lost(answer.err().map_or("its link ended".to_owned(), |status| status.message().to_owned()));
                }
                () = newer(&mut coming, self.epoch) => break End::Moved,
                () = until(deadline) => break End::Lost(self.core.overdue(self.now())),
                command = self.inbox.recv() => match command {
                    Some(command) => self.command(command),
                    None => break End::Shutdown,
                },
            };
            if !self.core.connected() {
                break End::Lost("its units went to another pipeline".to_owned());
            }
        };
        if !matches!(end, End::Shutdown) {
            if matches!(end, End::Lost(_)) {
                self.stats.failures.fetch_add(1, Ordering::Relaxed);
                self.sight.lost();
            }
            if self.core.scheduler().counts().1 > usize::from(!*self.ready.borrow()) {
                self.lost_at.get_or_insert(Instant::now());
            }
        }
        self.core.over();
        self.sight.over();
        self.count();
        end
    }

    fn count(&self) {
        let (waiting, active, parked) = self.core.scheduler().counts();
        let stats = &self.stats;
        stats.waiting.store(waiting, Ordering::Relaxed);
        stats.active.store(active, Ordering::Relaxed);
        stats.parked.store(parked, Ordering::Relaxed);
        stats.backlog.store(self.core.scheduler().backlog(), Ordering::Relaxed);
        stats.preempted.store(self.core.scheduler().preempted(), Ordering::Relaxed);
        *stats.reused.lock().unwrap_or_else(PoisonError::into_inner) = self.core.scheduler().reused();
        let mut served = stats.served.lock().unwrap_or_else(PoisonError::into_inner);
        for (tenant, rows) in self.core.scheduler().served() {
            match served.get_mut(tenant) {
                Some(known) => *known = rows,
                None => drop(served.insert(tenant.clone(), rows)),
            }
        }
    }

    fn command(&mut self, command: Command) -> Vec<Deed> {
        let event = match command {
            Command::Submit(spec, sink) => {
                self.sight.submitted(spec.id, &spec.key, &sink.record.trace);
                self.sinks.insert(spec.id, sink);
                Event::Submit(spec)
            }
            Command::Cancel(unit) => {
                self.sinks.remove(&unit);
                self.sight.left(unit);
                Event::Cancel(unit)
            }
            Command::FeaturesReady(unit) => Event::FeaturesReady(unit),
            Command::Logs(reply) => {
                let logs = self.core.scheduler().logs().map(|(key, log)| (key.to_owned(), log.to_vec())).collect();
                let _ = reply.send(logs);
                return Vec::new();
            }
            Command::Evacuate(reply) => {
                let units = self.core.evacuate().into_iter().inspect(|spec| self.sight.left(spec.id));
                let units = units.filter_map(|spec| self.sinks.remove(&spec.id).map(|sink| (spec, sink))).collect();
                let _ = reply.send(units);
                return Vec::new();
            }
        };
        self.core.step(self.now(), event)
    }

    /// Does what was decided. News come first whatever breaks: an id that was drawn is not drawn again.
    async fn act(&mut self, deeds: Vec<Deed>, ends: &Ends) -> Result<(), String> {
        let mut frames = Vec::new();
        let mut unfit = None;
        for deed in deeds {
            match deed {
                Deed::Send(mut body) => {
                    self.sight.sent(&mut body);
                    frames.push(body);
                }
                Deed::Tell(action) => self.news(action),
                Deed::Ready => {
                    self.ready.send_replace(true);
                    self.stats.proven.store(true, Ordering::Relaxed);
                    self.report(News::Ready);
                }
                Deed::Unfit(reason) => unfit = Some(reason),
            }
        }
        self.stats.microbatches.store(self.core.sent(), Ordering::Relaxed);
        self.count();
        if let Some(reason) = unfit {
            self.trouble.send_replace(Some(reason.clone()));
            return Err(format!("the canary failed: {reason}"));
        }
        for body in frames {
            let frame: Frame = frame::seal(&body, Bytes::new());
            let message = LinkMessage { message: Some(link_message::Message::Frame(frame)) };
            ends.frames.send(message).await.map_err(|_| "the first stage takes no frames".to_owned())?;
        }
        Ok(())
    }

    /// Writes what concerns a request into its record.
    fn news(&mut self, action: Action) {
        let unit = match &action {
            Action::Send(_) => return,
            Action::Queued(unit, _) | Action::Started(unit) | Action::Id(unit, _) | Action::Finished(unit, _) => *unit,
            Action::Failed(unit, _) | Action::Refused(unit) | Action::NeedFeatures(unit) | Action::Resumed(unit) => *unit,
        };
        if let (Action::Id(..), Some(lost)) = (&action, self.lost_at) {
            self.lost_at = None;
            let took = lost.elapsed();
            self.stats.recovery_ms.store((took.as_millis() as u64).max(1), Ordering::Relaxed);
            self.sight.recovered(took);
            tracing::info!(pipeline = self.driver.pipeline, seconds = took.as_secs_f64(), "work goes on");
        }
        let Some(sink) = self.sinks.get(&unit) else { return };
        let end = |end: Result<Finish, Failure>| sink.record.update(sink.index, |p| p.end = Some(end));
        match action {
            Action::Queued(_, place) => sink.record.update(sink.index, |p| p.queued = Some(place)),
            Action::Started(_) => sink.record.update(sink.index, |p| (p.started, p.queued) = (true, None)),
            Action::Resumed(_) => {
                sink.record.update(sink.index, |p| (p.started, p.queued, p.resumed) = (true, None, p.resumed + 1))
            }
            Action::Id(_, id) => sink.record.update(sink.index, |p| p.ids.push(id)),
            Action::Finished(_, finish) => end(Ok(finish)),
            Action::Failed(_, reason) => end(Err(Failure::Lost(reason))),
            Action::Refused(_) => end(Err(Failure::Full)),
            Action::NeedFeatures(unit) => match &sink.encode_again {
                Some(encode) => return encode(unit),
                None => end(Err(Failure::Lost("its pictures are gone".to_owned()))),
            },
            Action::Send(_) => {}
        }
        if sink.record.look(sink.index, |p| p.end.is_some()).unwrap_or(true) {
            self.sinks.remove(&unit);
            self.sight.left(unit);
        }
    }
}

/// Waits for a placement that is newer than `epoch`.
async fn newer(coming: &mut Option<watch::Receiver<Option<Arc<Placement>>>>, epoch: u64) {
    if let Some(coming) = coming
        && coming.wait_for(|placement| placement.as_ref().is_some_and(|p| p.epoch > epoch)).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A result, or why the stream is over.
fn result_of(message: Result<Option<ResultMessage>, tonic::Status>) -> Result<StepResult, String> {
    match message.map_err(|status| status.message().to_owned())?.and_then(|m| m.message) {
        Some(result_message::Message::Result(result)) => Ok(result),
        _ => Err("the last stage ended its results".to_owned()),
    }
}
