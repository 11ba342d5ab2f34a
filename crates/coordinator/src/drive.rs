//! Runs the scheduler against a pipeline: a loop on a thread of its own, so that public traffic cannot delay a step.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use janus_wire::v1::{Frame, FrameBody, Kind, LinkMessage, Sampling, StepResult, link_message, result_message};
use janus_wire::{Identity, Security, frame};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::pipeline::{self, Ends, Nodes};
use crate::request::{Failure, Record};
use crate::schedule::{Action, Band, Event, Finish, Limits, Scheduler, UnitId, UnitSpec};

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
}

/// What a driver needs to know.
pub struct Driver {
    /// Who we are.
    pub identity: Identity,
    /// How we connect.
    pub security: Security,
    /// The pipeline's number.
    pub pipeline: u64,
    /// Its nodes.
    pub nodes: Nodes,
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
    next_unit: Arc<AtomicU64>,
    stats: Arc<Stats>,
}

/// What can be seen from outside.
#[derive(Debug, Default)]
pub struct Stats {
    waiting: AtomicUsize,
    active: AtomicUsize,
    epoch: AtomicU64,
    microbatches: AtomicU64,
    failures: AtomicU64,
}

impl DriverHandle {
    /// Becomes true when a canary went through all stages, false when a stage is lost.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// Why the latest canary did not come through, if it was refused.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }

    /// Units that wait, and units that are open.
    pub fn counts(&self) -> (usize, usize) {
        (self.stats.waiting.load(Ordering::Relaxed), self.stats.active.load(Ordering::Relaxed))
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

    pub(crate) fn unit_ids(&self, count: usize) -> Vec<UnitId> {
        let first = self.next_unit.fetch_add(count as u64, Ordering::Relaxed);
        (first..first + count as u64).collect()
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
}

impl Driver {
    /// Starts the loop on its thread; `shutdown` ends it.
    ///
    /// # Errors
    /// If no thread or runtime can be had.
    pub fn start(self, shutdown: CancellationToken) -> std::io::Result<DriverHandle> {
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (ready, watching) = watch::channel(false);
        let (trouble, troubled) = watch::channel(None);
        let stats = Arc::new(Stats::default());
        let handle = DriverHandle {
            commands,
            ready: watching,
            trouble: troubled,
            next_unit: Arc::new(AtomicU64::new(1)),
            stats: stats.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let scheduler = Scheduler::new(self.limits);
        let run = Run { driver: self, scheduler, sinks: HashMap::new(), inbox, ready, trouble, stats, epoch: 0 };
        std::thread::Builder::new().name("driver".to_owned()).spawn(move || runtime.block_on(run.forever(shutdown)))?;
        Ok(handle)
    }
}

/// The canary's unit id; real ones begin at 1.
const CANARY: UnitId = 0;

struct Run {
    driver: Driver,
    scheduler: Scheduler,
    sinks: HashMap<UnitId, Sink>,
    inbox: mpsc::Receiver<Command>,
    ready: watch::Sender<bool>,
    trouble: watch::Sender<Option<String>>,
    stats: Arc<Stats>,
    epoch: u64,
}

/// One connected epoch.
struct Link {
    ends: Ends,
    epoch: u64,
    sent: u64,
    received: u64,
}

impl Run {
    async fn forever(mut self, shutdown: CancellationToken) {
        let mut pause = RETRY.0;
        while !shutdown.is_cancelled() {
            self.epoch += 1;
            self.stats.epoch.store(self.epoch, Ordering::Relaxed);
            let Driver { nodes, identity, security, pipeline, .. } = &self.driver;
            match pipeline::connect(nodes, identity, security, *pipeline, self.epoch).await {
                Ok(ends) => {
                    tracing::info!(epoch = self.epoch, stages = self.driver.nodes.stages.len(), "pipeline connected");
                    let link = Link { ends, epoch: self.epoch, sent: 0, received: 0 };
                    let proven = self.run(link, &shutdown).await;
                    self.ready.send_replace(false);
                    pause = if proven { RETRY.0 } else { (2 * pause).min(RETRY.1) };
                }
                Err(error) => {
                    tracing::warn!(%error, "pipeline cannot be connected");
                    pause = (2 * pause).min(RETRY.1);
                }
            }
            if shutdown.is_cancelled() {
                break;
            }
            // Requests still arrive and leave while there is no pipeline.
            let until = tokio::time::Instant::now() + pause;
            loop {
                tokio::select! {
                    command = self.inbox.recv() => match command {
                        Some(command) => { self.command(command); }
                        None => return,
                    },
                    () = tokio::time::sleep_until(until) => break,
                    () = shutdown.cancelled() => return,
                }
            }
        }
    }

    /// Works until the pipeline is lost; returns whether it was ready once.
    async fn run(&mut self, mut link: Link, shutdown: &CancellationToken) -> bool {
        let mut actions = self.scheduler.step(Event::Submit(Box::new(self.canary())));
        actions.extend(self.scheduler.step(Event::PipelineUp));
        loop {
            if let Err(reason) = self.act(actions, &mut link).await {
                tracing::warn!(reason, epoch = link.epoch, "pipeline lost");
                break;
            }
            actions = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                result = link.ends.results.message() => match link.check(result) {
                    Ok(result) => self.scheduler.step(Event::Result(result)),
                    Err(reason) => {
                        tracing::warn!(reason, epoch = link.epoch, "pipeline lost");
                        break;
                    }
                },
                answer = link.ends.answers.message() => {
                    let reason = answer.err().map_or("its link ended".to_owned(), |status| status.message().to_owned());
                    tracing::warn!(reason, epoch = link.epoch, "pipeline lost");
                    break;
                }
                command = self.inbox.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
            };
        }
        let proven = *self.ready.borrow();
        self.stats.failures.fetch_add(1, Ordering::Relaxed);
        self.scheduler.step(Event::Cancel(CANARY));
        self.scheduler.step(Event::PipelineDown);
        proven
    }

    fn command(&mut self, command: Command) -> Vec<Action> {
        let event = match command {
            Command::Submit(spec, sink) => {
                self.sinks.insert(spec.id, sink);
                Event::Submit(spec)
            }
            Command::Cancel(unit) => {
                self.sinks.remove(&unit);
                Event::Cancel(unit)
            }
            Command::FeaturesReady(unit) => Event::FeaturesReady(unit),
        };
        let actions = self.scheduler.step(event);
        let (waiting, active, _) = self.scheduler.counts();
        self.stats.waiting.store(waiting, Ordering::Relaxed);
        self.stats.active.store(active, Ordering::Relaxed);
        // Without a pipeline nothing is sent, so what is left is news.
        actions.into_iter().filter_map(|action| self.news(action)).collect()
    }

    async fn act(&mut self, actions: Vec<Action>, link: &mut Link) -> Result<(), String> {
        for action in actions {
            let Some(action) = self.news(action) else { continue };
            match action {
                Action::Send(body) => link.send(self.driver.pipeline, body).await?,
                Action::Finished(CANARY, _) => {
                    self.ready.send_replace(true);
                }
                Action::Failed(CANARY, reason) => {
                    self.trouble.send_replace(Some(reason.clone()));
                    return Err(format!("the canary failed: {reason}"));
                }
                _ => {}
            }
            self.stats.microbatches.store(link.sent, Ordering::Relaxed);
        }
        let (waiting, active, _) = self.scheduler.counts();
        self.stats.waiting.store(waiting, Ordering::Relaxed);
        self.stats.active.store(active, Ordering::Relaxed);
        Ok(())
    }

    /// Writes what concerns a request into its record; hands back everything else.
    fn news(&mut self, action: Action) -> Option<Action> {
        let unit = match &action {
            Action::Send(_) => return Some(action),
            Action::Queued(unit, _) | Action::Started(unit) | Action::Id(unit, _) | Action::Finished(unit, _) => *unit,
            Action::Failed(unit, _) | Action::Refused(unit) | Action::NeedFeatures(unit) => *unit,
        };
        let Some(sink) = self.sinks.get(&unit) else { return Some(action) };
        let end = |end: Result<Finish, Failure>| sink.record.update(sink.index, |p| p.end = Some(end));
        match action {
            Action::Queued(_, place) => sink.record.update(sink.index, |p| p.queued = Some(place)),
            Action::Started(_) => sink.record.update(sink.index, |p| (p.started, p.queued) = (true, None)),
            Action::Id(_, id) => sink.record.update(sink.index, |p| p.ids.push(id)),
            Action::Finished(_, finish) => end(Ok(finish)),
            Action::Failed(_, reason) => end(Err(Failure::Lost(reason))),
            Action::Refused(_) => end(Err(Failure::Full)),
            Action::NeedFeatures(unit) => match &sink.encode_again {
                Some(encode) => {
                    encode(unit);
                    return None;
                }
                None => end(Err(Failure::Lost("its pictures are gone".to_owned()))),
            },
            Action::Send(_) => {}
        }
        if sink.record.look(sink.index, |p| p.end.is_some()).unwrap_or(true) {
            self.sinks.remove(&unit);
        }
        None
    }

    /// One id of an unguided picture: every stage computes and the last one draws.
    fn canary(&self) -> UnitSpec {
        let ids = janus_wire::v1::Ids { ids: self.driver.canary.clone() };
        let piece = janus_wire::v1::Piece { piece: Some(janus_wire::v1::piece::Piece::Text(ids)) };
        UnitSpec {
            id: CANARY,
            kind: Kind::Unguided,
            sampling: Sampling { top_p: 1.0, ..Sampling::default() },
            branches: vec![vec![piece]],
            prompt: self.driver.canary.len(),
            keep: Vec::new(),
            target: 1,
            end: None,
            band: Band::Canary,
        }
    }
}

impl Link {
    async fn send(&mut self, pipeline: u64, mut body: FrameBody) -> Result<(), String> {
        (body.pipeline, body.epoch, body.sequence) = (pipeline, self.epoch, self.sent);
        self.sent += 1;
        let frame: Frame = frame::seal(&body, Bytes::new());
        let message = LinkMessage { message: Some(link_message::Message::Frame(frame)) };
        self.ends.frames.send(message).await.map_err(|_| "the first stage takes no frames".to_owned())
    }

    /// The next result of this link and epoch, or why the link is over.
    fn check(
        &mut self,
        message: Result<Option<janus_wire::v1::ResultMessage>, tonic::Status>,
    ) -> Result<StepResult, String> {
        let message = message.map_err(|status| status.message().to_owned())?.and_then(|m| m.message);
        let Some(result_message::Message::Result(result)) = message else {
            return Err("the last stage ended its results".to_owned());
        };
        if (result.epoch, result.sequence) != (self.epoch, self.received) {
            return Err(format!("result {} of epoch {} came instead of {}", result.sequence, result.epoch, self.received));
        }
        self.received += 1;
        Ok(result)
    }
}
