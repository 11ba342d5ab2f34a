//! The scheduler: `step(event) -> actions`, without I/O, without a clock.
//!
//! A unit's token log (its prompt and the ids so far) is all there is to know about it; how many of those positions the
//! stages hold is a detail. Whatever is missing is fed in chunks; when nothing is missing, the last stage draws the next
//! id. So prefill, decode and rebuilding after a loss are one rule.

mod form;
mod prefix;
mod queue;
mod unit;

use std::collections::BTreeMap;
use std::sync::Arc;

use janus_wire::v1::{FrameBody, SlotOp, StepResult, slot_op};

use prefix::Kept;
use queue::Queue;
use unit::{Active, Waiting};
pub use unit::{Band, Share, UnitId, UnitSpec};

/// Reason a first stage gives when a picture's features were evicted before they were used.
pub const FEATURES_MISSING: &str = "the picture's features are not here";

/// How the reason of a last stage ends that could compute no finite logit.
pub const DIVERGED: &str = "too large to compute with, or damaged";

/// Limits of one pipeline.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Units that may be open at once.
    pub slots: usize,
    /// Positions of KV memory over all branches of all open units.
    pub kv_positions: usize,
    /// Units that may wait before new ones are refused; what was admitted elsewhere may be more.
    pub queue: usize,
    /// Distinct compute pools in the pipeline: one more microbatch than these is in flight.
    pub pools: usize,
    /// Decode rows that fill a microbatch before another one opens. No bound: when all of them are open (`pools` + 1),
    /// rows are divided equally among them, however many there are, because a microbatch that has to wait for its turn
    /// would read all weights once more and be none the earlier.
    pub rows: usize,
    /// Prompts of ended units that stay for units that begin with the same; 0 turns sharing off.
    pub kept: usize,
}

/// What happens to the scheduler.
#[derive(Debug)]
pub enum Event {
    /// A unit of work arrives.
    Submit(Box<UnitSpec>),
    /// Nobody wants a unit any more.
    Cancel(UnitId),
    /// Ids came back.
    Result(StepResult),
    /// The features a unit was parked for are at the first stage again.
    FeaturesReady(UnitId),
    /// A new epoch of the pipeline is connected; stages hold nothing.
    PipelineUp {
        /// Distinct compute pools.
        pools: usize,
        /// All stages can copy positions from slot to slot.
        copies: bool,
    },
    /// The pipeline is lost; units wait with their logs.
    PipelineDown,
}

/// What is to be done about it.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Send a microbatch.
    Send(FrameBody),
    /// A unit waits, this many before it.
    Queued(UnitId, usize),
    /// A unit got its slot.
    Started(UnitId),
    /// A unit that had a slot before got one again; its log is replayed.
    Resumed(UnitId),
    /// An id was drawn.
    Id(UnitId, u32),
    /// A unit is complete.
    Finished(UnitId, Finish),
    /// A unit cannot go on.
    Failed(UnitId, String),
    /// The queue is full; the unit was not taken.
    Refused(UnitId),
    /// The pictures of a parked unit must be encoded again.
    NeedFeatures(UnitId),
}

/// How a unit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// All ids were drawn.
    Complete,
    /// The model ended its answer.
    EndOfSentence,
}

/// What did not have to be computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reused {
    /// Units that copied something.
    pub units: u64,
    /// Positions that were copied, over all branches.
    pub positions: u64,
}

/// All units of one pipeline.
pub struct Scheduler {
    limits: Limits,
    up: bool,
    waiting: Queue,
    active: BTreeMap<UnitId, Active>,
    /// Parked until their features are back.
    parked: BTreeMap<UnitId, Waiting>,
    /// By slot: its generation, and whether it is free.
    generations: Vec<u32>,
    free: Vec<usize>,
    kv_used: usize,
    /// Microbatches on their way: the units in each, in frame order, with their slots and generations.
    flying: BTreeMap<u64, Vec<(UnitId, u32, u32)>>,
    next_microbatch: u64,
    /// Grows with every microbatch, so that the unit served longest ago goes first.
    clock: u64,
    /// Travel with the next frame.
    ops: Vec<SlotOp>,
    /// Rows computed for each tenant.
    served: BTreeMap<Arc<str>, u64>,
    /// Units that had to make room for others.
    preempted: u64,
    copies: bool,
    /// Slots of units that have ended.
    kept: Vec<Kept>,
    /// Grows whenever one of them is of use.
    uses: u64,
    reused: Reused,
}

impl Scheduler {
    /// An empty scheduler without a pipeline.
    pub fn new(limits: Limits) -> Self {
        Scheduler {
            limits,
            up: false,
            waiting: Queue::default(),
            active: BTreeMap::new(),
            parked: BTreeMap::new(),
            generations: vec![0; limits.slots],
            free: (0..limits.slots).rev().collect(),
            kv_used: 0,
            flying: BTreeMap::new(),
            next_microbatch: 0,
            clock: 0,
            ops: Vec::new(),
            served: BTreeMap::new(),
            preempted: 0,
            copies: false,
            kept: Vec::new(),
            uses: 0,
            reused: Reused::default(),
        }
    }

    /// Rows computed for each tenant so far; what is computed again after a loss is not counted again.
    pub fn served(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        self.served.iter().map(|(tenant, rows)| (tenant, *rows))
    }

    /// How many units have had to make room for others.
    pub fn preempted(&self) -> u64 {
        self.preempted
    }

    /// What was copied instead of being computed.
    pub fn reused(&self) -> Reused {
        self.reused
    }

    /// Units that never had a slot, are open, and wait to go on.
    pub fn counts(&self) -> (usize, usize, usize) {
        let stopped = self.waiting.iter().filter(|unit| unit.started).count();
        (self.waiting.len() - stopped, self.active.len(), self.parked.len() + stopped)
    }

    /// Rows that all units still have to compute, one by one: what a new unit has before it.
    pub fn backlog(&self) -> usize {
        let left = |spec: &UnitSpec, known: usize| (spec.target - known.min(spec.target)) * spec.rows();
        self.waiting.iter().map(|u| left(&u.spec, u.known.len())).sum::<usize>()
            + self.active.values().map(|u| left(&u.spec, u.known.len())).sum::<usize>()
    }

    /// Token logs of the units that have begun, by the name of their log.
    pub fn logs(&self) -> impl Iterator<Item = (&str, &[u32])> {
        let active = self.active.values().map(|u| (&u.spec, &u.known));
        let waiting = self.waiting.iter().map(|u| (&u.spec, &u.known));
        let parked = self.parked.values().map(|u| (&u.spec, &u.known));
        let all = active.chain(waiting).chain(parked).filter(|(spec, _)| !spec.key.is_empty());
        all.map(|(spec, known)| (spec.key.as_str(), &known[spec.keep.len()..])).filter(|(_, log)| !log.is_empty())
    }

    /// Takes out every unit, with its log in its specification: for another pipeline.
    pub fn evacuate(&mut self) -> Vec<UnitSpec> {
        self.down();
        let parked = std::mem::take(&mut self.parked).into_values();
        let all = self.waiting.take_all().chain(parked);
        all.map(|Waiting { mut spec, known, .. }| {
            spec.log = known[spec.keep.len()..].to_vec();
            spec.admitted = true;
            spec
        })
        .collect()
    }

    /// Takes one event and says what to do.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Submit(spec) => self.submit(*spec, &mut actions),
            Event::Cancel(id) => self.cancel(id),
            Event::Result(result) => self.result(result, &mut actions),
            Event::FeaturesReady(id) => {
                if let Some(unit) = self.parked.remove(&id) {
                    self.waiting.push_returning(unit);
                }
            }
            Event::PipelineUp { pools, copies } => {
                (self.up, self.limits.pools, self.copies) = (true, pools, copies);
            }
            Event::PipelineDown => self.down(),
        }
        if self.up {
            self.admit(&mut actions);
            self.share_followed();
            self.send(&mut actions);
        }
        debug_assert_eq!(self.violated(), None);
        actions
    }

    fn submit(&mut self, spec: UnitSpec, actions: &mut Vec<Action>) {
        let id = spec.id;
        if let Err(reason) = spec.check(&self.limits) {
            actions.push(Action::Failed(id, reason));
            return;
        }
        let crowded = spec.share.most_waiting > 0 && self.waiting.held(&spec.tenant) >= spec.share.most_waiting;
        if !spec.admitted && (crowded || !self.waiting.has_room(&spec.tenant, self.limits.queue)) {
            actions.push(Action::Refused(id));
            return;
        }
        let known = [&spec.keep[..], &spec.log].concat();
        let started = !spec.log.is_empty();
        let place = self.waiting.push(Waiting { spec, known, started, lost: started, charged: 0, alone: false });
        actions.push(Action::Queued(id, place));
    }

    fn cancel(&mut self, id: UnitId) {
        self.waiting.remove(id);
        self.parked.remove(&id);
        self.release(id);
    }

    /// Gives a unit's slot back on every stage.
    fn release(&mut self, id: UnitId) -> Option<Active> {
        let unit = self.active.remove(&id)?;
        self.close(unit.slot, unit.generation);
        self.kv_used -= unit.spec.kv_positions();
        Some(unit)
    }

    fn close(&mut self, slot: usize, generation: u32) {
        self.free.push(slot);
        let slot = slot as u32;
        let mine = |op: &SlotOp| (op.slot, op.generation) == (slot, generation);
        let unheard = self.ops.iter().any(|op| mine(op) && matches!(op.op, Some(slot_op::Op::Open(_))));
        // Stages that have not heard of it need not hear of its end; so operations on a slot are few in every frame.
        self.ops.retain(|op| !mine(op));
        if !unheard {
            self.ops.push(SlotOp { slot, generation, op: Some(slot_op::Op::Close(slot_op::Close {})) });
        }
    }

    fn down(&mut self) {
        self.up = false;
        self.flying.clear();
        self.ops.clear();
        self.kept.clear();
        self.kv_used = 0;
        self.generations.fill(0);
        self.free = (0..self.limits.slots).rev().collect();
        // The oldest first, before everything that never started.
        for (_, unit) in std::mem::take(&mut self.active).into_iter().rev() {
            self.waiting.push_returning(unit.close(true));
        }
    }

    fn admit(&mut self, actions: &mut Vec<Action>) {
        while let Some(unit) = self.waiting.front() {
            let need = unit.spec.kv_positions();
            if self.free.is_empty() || self.kv_used + need > self.limits.kv_positions {
                if !self.kept.is_empty() {
                    self.forget_oldest();
                    continue;
                }
                let (band, tenant) = unit.line();
                if !self.make_room(band, &tenant, need, unit.spec.target * unit.spec.rows()) {
                    break;
                }
                continue;
            }
            let (Some(unit), Some(slot)) = (self.waiting.pop_front(), self.free.pop()) else { break };
            self.kv_used += need;
            self.generations[slot] += 1;
            let (started, lost) = (unit.started, unit.lost);
            let active = Active::open(unit, slot, self.generations[slot]);
            self.ops.extend(active.open_ops());
            match (started, lost) {
                (_, true) => actions.push(Action::Resumed(active.spec.id)),
                (false, _) => actions.push(Action::Started(active.spec.id)),
                _ => {}
            }
            let id = active.spec.id;
            self.active.insert(id, active);
            self.share(id);
        }
    }

    /// Closes slots of others for a unit that needs `need` positions of KV memory and is worth `rows`: of later bands, or
    /// of tenants that have had far more than its own. They keep their logs and come back. False if that is not enough.
    fn make_room(&mut self, band: Band, tenant: &Arc<str>, need: usize, rows: usize) -> bool {
        // Less would be lost again to computing what was thrown away.
        let lead = 2 * rows as u64;
        let rank = |unit: &Active| {
            let spec = &unit.spec;
            let ahead = self.waiting.ahead(band, &spec.tenant, tenant);
            let must = spec.band > band || (spec.band == band && spec.tenant != *tenant && ahead > lead);
            // The last band first, then who had most, then who has least to compute again.
            (must && unit.flying == 0).then_some((std::cmp::Reverse(spec.band), std::cmp::Reverse(ahead), unit.fed))
        };
        let mut victims: Vec<_> =
            self.active.values().filter_map(|u| rank(u).map(|rank| (rank, u.spec.id, u.spec.kv_positions()))).collect();
        victims.sort();
        let (mut kv, mut slots, mut enough) = (self.limits.kv_positions - self.kv_used, self.free.len(), 0);
        while (slots == 0 || kv < need) && enough < victims.len() {
            kv += victims[enough].2;
            slots += 1;
            enough += 1;
        }
        if slots == 0 || kv < need {
            return false;
        }
        for (_, id, _) in &victims[..enough] {
            if let Some(unit) = self.release(*id) {
                self.preempted += 1;
                self.waiting.push_front(unit.close(false));
            }
        }
        true
    }

    fn result(&mut self, result: StepResult, actions: &mut Vec<Action>) {
        let Some(units) = self.flying.remove(&result.microbatch) else { return };
        for (i, (id, slot, generation)) in units.into_iter().enumerate() {
            let Some(unit) = self.active.get_mut(&id).filter(|u| u.slot as u32 == slot && u.generation == generation) else {
                continue;
            };
            let flown = std::mem::take(&mut unit.flying);
            let answer = result.units.get(i).filter(|r| r.slot == slot && r.generation == generation);
            let fault = match answer {
                None => Some("a stage left it out of its answer".to_owned()),
                Some(answer) if !answer.refused.is_empty() => Some(answer.refused.clone()),
                Some(answer) if answer.length as usize != unit.fed + flown => {
                    Some(format!("a stage holds {} positions instead of {}", answer.length, unit.fed + flown))
                }
                Some(answer) => {
                    let wanted = unit.wants_id(flown);
                    unit.fed += flown;
                    unit.unproven = false;
                    match answer.id.is_some() == wanted {
                        true => None,
                        false => Some("an id is missing, or came without being asked for".to_owned()),
                    }
                }
            };
            if let Some(fault) = fault {
                self.fail(id, fault, actions);
                continue;
            }
            let drawn = answer.and_then(|a| a.id);
            if let Some(token) = drawn {
                self.learn(id, token, actions);
            }
        }
    }

    /// Adds a drawn id to a unit's log and ends the unit if it is complete.
    fn learn(&mut self, id: UnitId, token: u32, actions: &mut Vec<Action>) {
        let Some(unit) = self.active.get_mut(&id) else { return };
        if unit.spec.end == Some(token) {
            actions.push(Action::Finished(id, Finish::EndOfSentence));
            self.retire(id);
            return;
        }
        unit.known.push(token);
        let complete = unit.known.len() >= unit.spec.target;
        actions.push(Action::Id(id, token));
        if complete {
            actions.push(Action::Finished(id, Finish::Complete));
            self.retire(id);
        }
    }

    fn fail(&mut self, id: UnitId, reason: String, actions: &mut Vec<Action>) {
        if reason != FEATURES_MISSING && self.share_nothing(id) {
            return;
        }
        let Some(unit) = self.release(id) else { return };
        if reason == FEATURES_MISSING {
            self.parked.insert(id, unit.close(false));
            actions.push(Action::NeedFeatures(id));
        } else {
            actions.push(Action::Failed(id, reason));
        }
    }

    /// What must hold between any two events; names the first violation.
    pub fn violated(&self) -> Option<&'static str> {
        let kept: usize = self.kept.iter().map(|kept| kept.kv).sum();
        let used = self.active.values().map(|u| u.spec.kv_positions()).sum::<usize>() + kept;
        if self.active.len() + self.kept.len() + self.free.len() != self.limits.slots {
            return Some("a slot leaked");
        }
        if used != self.kv_used || used > self.limits.kv_positions {
            return Some("KV positions are miscounted");
        }
        if self.flying.len() > self.limits.pools + 1 {
            return Some("too many microbatches are in flight");
        }
        let led = |unit: &Active| unit.follows.is_none_or(|(leader, _)| self.active.contains_key(&leader));
        if self.up && !self.active.values().all(led) {
            return Some("a unit waits for one that is gone");
        }
        let flights = |unit: &Active| {
            let me = (unit.spec.id, unit.slot as u32, unit.generation);
            self.flying.values().flatten().filter(|seat| **seat == me).count()
        };
        if self.active.values().any(|unit| flights(unit) != usize::from(unit.flying > 0)) {
            return Some("a unit is in no microbatch or in several");
        }
        None
    }
}
