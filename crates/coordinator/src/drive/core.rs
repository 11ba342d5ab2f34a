//! What a driver decides, without I/O and without a clock: numbers its frames, knows the result it waits for, when a
//! step is overdue, and when a pipeline has proven that it can generate. The simulation drives it as the thread does.

use std::time::Duration;

use janus_wire::v1::{FrameBody, Ids, Kind, Piece, Sampling, StepResult, piece};

use super::pace::Pace;
use crate::schedule::{Action, Band, Event, Limits, Scheduler, Share, UnitId, UnitSpec};

/// The canary's unit id; real ones begin at 1.
pub const CANARY: UnitId = 0;

/// Time since the driver began.
pub type Now = Duration;

/// What the rim has to do.
#[derive(Debug, PartialEq)]
pub enum Deed {
    /// Send a frame with this body to the first stage.
    Send(FrameBody),
    /// Tell whoever waits for a unit; never a [`Action::Send`], and never about the canary.
    Tell(Action),
    /// The canary went through: the pipeline is ready.
    Ready,
    /// The canary was refused, for this reason: the epoch is over.
    Unfit(String),
}

/// One pipeline's scheduler, and the link of the epoch it is in.
pub struct Core {
    pipeline: u64,
    canary: Vec<u32>,
    scheduler: Scheduler,
    link: Option<Link>,
}

/// One connected epoch.
struct Link {
    epoch: u64,
    sent: u64,
    received: u64,
    pace: Pace,
}

impl Core {
    /// Nothing is connected. `canary` are the text ids of the canary's prompt.
    pub fn new(pipeline: u64, limits: Limits, canary: Vec<u32>) -> Self {
        Core { pipeline, canary, scheduler: Scheduler::new(limits), link: None }
    }

    /// The units.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Whether an epoch is connected.
    pub fn connected(&self) -> bool {
        self.link.is_some()
    }

    /// Frames sent in this epoch.
    pub fn sent(&self) -> u64 {
        self.link.as_ref().map_or(0, |link| link.sent)
    }

    /// All stages of a new epoch are connected, over `pools` compute pools; whether all know how to copy.
    pub fn up(&mut self, now: Now, epoch: u64, pools: usize, copies: bool) -> Vec<Deed> {
        self.over();
        self.link = Some(Link { epoch, sent: 0, received: 0, pace: Pace::default() });
        let mut actions = self.scheduler.step(Event::Submit(Box::new(self.unit())));
        actions.extend(self.scheduler.step(Event::PipelineUp { pools, copies }));
        self.deeds(now, actions)
    }

    /// Something happens to a unit: [`Event::Submit`], [`Event::Cancel`] or [`Event::FeaturesReady`].
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Deed> {
        let actions = self.scheduler.step(event);
        self.deeds(now, actions)
    }

    /// A result came.
    ///
    /// # Errors
    /// If it is not the next one of this epoch: the epoch is over.
    pub fn result(&mut self, now: Now, result: StepResult) -> Result<Vec<Deed>, String> {
        let Some(link) = &mut self.link else { return Err("no epoch is connected".to_owned()) };
        if (result.epoch, result.sequence) != (link.epoch, link.received) {
            return Err(format!("result {} of epoch {} came instead of {}", result.sequence, result.epoch, link.received));
        }
        link.received += 1;
        link.pace.came(now, result.microbatch);
        let actions = self.scheduler.step(Event::Result(result));
        Ok(self.deeds(now, actions))
    }

    /// When the oldest step is overdue, and with it the epoch over; none while nothing is on its way.
    pub fn deadline(&self) -> Option<Now> {
        self.link.as_ref()?.pace.deadline()
    }

    /// What to say of a step that is overdue.
    pub fn overdue(&self, now: Now) -> String {
        self.link.as_ref().map(|link| link.pace.overdue(now)).unwrap_or_default()
    }

    /// The epoch is over, for whatever reason; units wait with their logs.
    pub fn over(&mut self) {
        self.link = None;
        self.scheduler.step(Event::Cancel(CANARY));
        self.scheduler.step(Event::PipelineDown);
    }

    /// Takes out every unit with its log, for another pipeline. Nothing is left to run, so the epoch is over with it.
    pub fn evacuate(&mut self) -> Vec<UnitSpec> {
        self.over();
        self.scheduler.evacuate()
    }

    /// What must hold between any two events; names the first violation.
    pub fn violated(&self) -> Option<&'static str> {
        self.scheduler.violated()
    }

    /// Frames get their numbers, and the canary's fate is read. All news come, whatever became of the canary: the
    /// scheduler has learnt these ids and will not draw them again.
    fn deeds(&mut self, now: Now, actions: Vec<Action>) -> Vec<Deed> {
        let (mut deeds, mut unfit) = (Vec::with_capacity(actions.len()), None);
        for action in actions {
            match action {
                Action::Send(mut body) => {
                    let Some(link) = &mut self.link else { continue };
                    (body.pipeline, body.epoch, body.sequence) = (self.pipeline, link.epoch, link.sent);
                    link.sent += 1;
                    link.pace.sent(now, &body);
                    deeds.push(Deed::Send(body));
                }
                Action::Finished(CANARY, _) => deeds.push(Deed::Ready),
                Action::Failed(CANARY, reason) => unfit = Some(Deed::Unfit(reason)),
                Action::Queued(CANARY, _) | Action::Started(CANARY) | Action::Resumed(CANARY) | Action::Id(CANARY, _) => {}
                news => deeds.push(Deed::Tell(news)),
            }
        }
        deeds.extend(unfit);
        deeds
    }

    /// One id of an unguided picture: every stage computes and the last one draws.
    fn unit(&self) -> UnitSpec {
        let piece = Piece { piece: Some(piece::Piece::Text(Ids { ids: self.canary.clone() })) };
        UnitSpec {
            id: CANARY,
            kind: Kind::Unguided,
            sampling: Sampling { top_p: 1.0, ..Sampling::default() },
            branches: vec![vec![piece]],
            prompt: self.canary.len(),
            keep: Vec::new(),
            target: 1,
            end: None,
            band: Band::Canary,
            tenant: "".into(),
            share: Share::default(),
            log: Vec::new(),
            key: String::new(),
            admitted: true,
        }
    }
}
