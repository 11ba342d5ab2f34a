//! What a frame does to a stage: slot operations, then units, each applied exactly in its place or refused.
//!
//! No I/O and no time: the service feeds it frames that passed the link's checks, tests feed it anything.

use janus_model::llama::Span;
use janus_wire::frame::{self, MAX_PREFILL};
use janus_wire::v1::{
    FrameBody, Input, Kind, Mode, Sampling, SlotOp, StepResult, TokenLog, Unit, UnitResult, piece::Piece, slot_op::Op,
};

use super::Features;
use super::compute::{Compute, SampleJob, branches};

/// Operations on one slot in one frame: kept, closed, opened, truncated, and two branches copied.
const OPERATIONS: usize = 6;

/// The reason a coordinator reacts to by having the picture encoded again.
pub const FEATURES_MISSING: &str = "the picture's features are not here";

/// A slot of one unit of work.
#[derive(Debug, Clone)]
struct Slot {
    generation: u32,
    kind: Kind,
    capacity: usize,
    /// Positions each branch holds. They differ while one has copied more than the other and has not been overtaken.
    lengths: [usize; 2],
    sampling: Sampling,
    /// Set by an explicit truncate; only then may positions be replayed.
    rebuilding: bool,
    /// Whose token log this is, and where it begins.
    key: String,
    prompt: usize,
    /// At a first stage: ids fed after the prompt.
    log: Vec<u32>,
    /// Its unit is over; it is only copied from.
    kept: bool,
}

impl Slot {
    /// Positions that all branches hold: the next unit begins there.
    fn length(&self) -> usize {
        self.lengths[..branches(self.kind)].iter().copied().min().unwrap_or_default()
    }

    /// Of `positions` from there on, how many branch `branch` holds already.
    fn held(&self, branch: usize, positions: usize) -> usize {
        (self.lengths[branch] - self.length()).min(positions)
    }
}

/// Counters of everything a stage has seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    /// Frames applied.
    pub frames: u64,
    /// Units refused.
    pub refused_units: u64,
    /// Slot operations refused.
    pub refused_ops: u64,
}

/// What came of a frame.
pub struct Applied {
    /// For the next stage: the body without inputs, refused units marked.
    pub body: FrameBody,
    /// For the next stage: rows of all units that were applied.
    pub rows: Vec<f32>,
    /// For the coordinator, if this is the last stage.
    pub result: Option<StepResult>,
}

/// A stage's slots and its model.
pub struct StageCore<C> {
    compute: C,
    slots: Vec<Option<Slot>>,
    /// The newest generation each slot has had.
    newest: Vec<u32>,
    counters: Counters,
    /// Pipeline and epoch; a frame of any other is refused, even one that was checked before the epoch changed.
    place: (u64, u64),
    /// Token logs of an epoch that is over, until the next one begins: a coordinator's successor asks for them.
    left: Vec<TokenLog>,
}

impl<C: Compute> StageCore<C> {
    /// A stage of `slots` free slots.
    pub fn new(compute: C, slots: usize) -> Self {
        let (newest, counters) = (vec![0; slots], Counters::default());
        StageCore { compute, slots: vec![None; slots], newest, counters, place: (0, 0), left: Vec::new() }
    }

    /// The model.
    pub fn compute(&self) -> &C {
        &self.compute
    }

    /// What was seen.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Slots of units.
    pub fn open_slots(&self) -> usize {
        self.slots.iter().flatten().filter(|slot| !slot.kept).count()
    }

    /// Positions held, over all rows.
    pub fn positions(&self) -> usize {
        self.slots.iter().flatten().flat_map(|slot| &slot.lengths[..branches(slot.kind)]).sum()
    }

    /// Frees everything: a new epoch of a pipeline begins.
    pub fn begin(&mut self, pipeline: u64, epoch: u64) {
        self.compute.begin();
        self.place = (pipeline, epoch);
        self.left.clear();
        for slot in 0..self.slots.len() {
            self.free(slot);
        }
        self.newest.fill(0);
    }

    /// The link of an epoch is over: its memory is freed, its token logs stay. Whoever is not needed again, a node that was
    /// replaced while it was frozen, would hold it for ever.
    pub fn rest(&mut self, pipeline: u64, epoch: u64) {
        if self.place == (pipeline, epoch) {
            self.left = self.logs();
            for slot in 0..self.slots.len() {
                self.free(slot);
            }
        }
    }

    /// What was seen before this core, by the one it replaces.
    pub fn counting_on(mut self, counters: Counters) -> Self {
        self.counters = counters;
        self
    }

    /// Token logs of the open slots that have a key, and of those that were open when the link ended.
    pub fn logs(&self) -> Vec<TokenLog> {
        let keyed = self.slots.iter().flatten().filter(|slot| !slot.key.is_empty());
        let open = keyed.map(|slot| TokenLog { key: slot.key.clone(), ids: slot.log.clone() });
        open.chain(self.left.iter().cloned()).collect()
    }

    /// What must hold between any two frames; names the first violation.
    pub fn violated(&self) -> Option<&'static str> {
        for (slot, newest) in self.slots.iter().zip(&self.newest) {
            let Some(slot) = slot else { continue };
            if slot.generation != *newest {
                return Some("a slot is open in an old generation");
            }
            if slot.lengths[..branches(slot.kind)].iter().any(|length| *length > slot.capacity) {
                return Some("a slot holds more than was reserved");
            }
            // Every position after the prompt came from an id that was drawn.
            let logged = if self.first() && !slot.key.is_empty() { slot.length().saturating_sub(slot.prompt) } else { 0 };
            if slot.log.len() != logged {
                return Some("a token log and its slot differ in length");
            }
        }
        None
    }

    fn first(&self) -> bool {
        self.compute.layers().start == 0
    }

    fn last(&self) -> bool {
        self.compute.layers().end == self.compute.total_layers()
    }

    /// Applies a frame.
    ///
    /// # Errors
    /// If the frame belongs to another epoch (then nothing was applied), or its activations not to its units (then
    /// nothing was applied but the slot operations). The link must end.
    pub fn apply(
        &mut self,
        mut body: FrameBody,
        activations: &[u8],
        features: &Features,
    ) -> Result<Applied, janus_wire::Error> {
        if (body.pipeline, body.epoch) != self.place {
            let (pipeline, epoch) = self.place;
            return Err(janus_wire::Error::Frame(format!(
                "its epoch is {}, but pipeline {pipeline} is in {epoch} now",
                body.epoch
            )));
        }
        // A slot has one unit of a frame, and each operation at most once; more only costs time.
        let most = self.slots.len();
        if body.units.len() > most || body.slots.len() > OPERATIONS * most {
            let (units, slots) = (body.units.len(), body.slots.len());
            return Err(janus_wire::Error::Frame(format!(
                "{units} units and {slots} slot operations are too many for {most} slots"
            )));
        }
        for op in &body.slots {
            if let Err(reason) = self.slot_op(op) {
                self.counters.refused_ops += 1;
                tracing::warn!(slot = op.slot, generation = op.generation, reason, "slot operation refused");
            }
        }

        // Rows of the units that earlier stages applied, in their order.
        let hidden = self.compute.hidden();
        let mut incoming = Vec::new();
        frame::read_rows(activations, &mut incoming)?;
        let width = |unit: &Unit| frame::rows(unit) * hidden;
        let expected: usize = match self.first() {
            true => 0,
            false => body.units.iter().filter(|u| u.refused.is_empty()).map(width).sum(),
        };
        if incoming.len() != expected {
            let found = incoming.len();
            return Err(janus_wire::Error::Frame(format!(
                "{found} numbers of activations came, but its units have {expected}"
            )));
        }

        let mut rows = Vec::with_capacity(expected);
        let mut spans = Vec::new();
        let mut taken = 0;
        for i in 0..body.units.len() {
            let came = taken..taken + if self.first() { 0 } else { width(&body.units[i]) };
            if !body.units[i].refused.is_empty() {
                continue;
            }
            taken = came.end;
            let before = rows.len();
            let doubled = body.units[..i].iter().any(|u| u.slot == body.units[i].slot && u.refused.is_empty());
            let checked = self
                .check(&body.units[i], doubled)
                .and_then(|()| self.rows_of(&body.units[i], &incoming[came], features, &mut rows));
            match checked {
                Ok(()) => self.plan(&body.units[i], &mut spans),
                Err(reason) => {
                    rows.truncate(before);
                    self.refuse(&mut body.units[i], reason);
                }
            }
        }

        if !spans.is_empty()
            && let Err(reason) = self.compute.forward(&spans, &mut rows)
        {
            // Where the model stopped is unknown, so the slots of this frame are not usable any more.
            for unit in body.units.iter_mut().filter(|u| u.refused.is_empty()) {
                self.free(unit.slot as usize);
                self.refuse(unit, reason.clone());
            }
            rows.clear();
        }
        for unit in body.units.iter_mut().filter(|u| u.refused.is_empty()) {
            let inputs = std::mem::take(&mut unit.inputs);
            if let Some(slot) = &mut self.slots[unit.slot as usize] {
                // Only a prompt's positions are ever copied, so no input of the log is left out.
                let from = slot.lengths[0];
                let end = slot.length() + unit.positions as usize;
                if let Some(input) = inputs.first().filter(|_| !slot.key.is_empty()) {
                    slot.log.extend(logged(input, slot.prompt.saturating_sub(from)));
                }
                slot.lengths.iter_mut().for_each(|length| *length = end.max(*length));
                slot.rebuilding &= unit.mode() == Mode::Replay;
            }
        }
        self.counters.frames += 1;
        debug_assert_eq!(self.violated(), None);
        let result = self.last().then(|| self.results(&body, &rows));
        Ok(Applied { body, rows, result })
    }

    fn slot_op(&mut self, op: &SlotOp) -> Result<(), String> {
        let index = op.slot as usize;
        let count = self.slots.len();
        let place = self.slots.get(index).ok_or_else(|| format!("there are {count} slots"))?;
        match &op.op {
            Some(Op::Open(open)) => {
                if place.is_some() {
                    return Err("it is in use".to_owned());
                }
                if op.generation <= self.newest[index] {
                    return Err(format!("generation {} was here already", self.newest[index]));
                }
                let kind = open.kind();
                if kind == Kind::Unspecified {
                    return Err("its kind is unknown".to_owned());
                }
                let capacity = open.capacity as usize;
                for branch in 0..branches(kind) {
                    if let Err(reason) = self.compute.open(2 * index + branch, capacity) {
                        (0..branch).for_each(|b| self.compute.close(2 * index + b));
                        return Err(reason);
                    }
                }
                self.newest[index] = op.generation;
                let sampling = open.sampling.unwrap_or_default();
                self.slots[index] = Some(Slot {
                    generation: op.generation,
                    kind,
                    capacity,
                    lengths: [0; 2],
                    sampling,
                    rebuilding: false,
                    key: open.key.clone(),
                    prompt: open.prompt as usize,
                    log: Vec::new(),
                    kept: false,
                });
                Ok(())
            }
            Some(Op::Truncate(length)) => {
                let slot = self.open_slot(op)?;
                let length = *length as usize;
                if length > slot.length() {
                    return Err(format!("it holds {} positions, fewer than {length}", slot.length()));
                }
                let kind = slot.kind;
                slot.lengths = [length; 2];
                slot.log.truncate(length.saturating_sub(slot.prompt));
                slot.rebuilding = true;
                (0..branches(kind)).try_for_each(|b| self.compute.truncate(2 * index + b, length))
            }
            Some(Op::Copy(copy)) => {
                let (branch, from_branch) = (copy.branch as usize, copy.from_branch as usize);
                let (from, length) = (copy.from_slot as usize, copy.length as usize);
                let source = self.slots.get(from).and_then(Option::as_ref);
                let source = source.filter(|s| s.generation == copy.from_generation && from_branch < branches(s.kind));
                let there = source.ok_or("what it is to copy is not open in this generation")?.lengths[from_branch];
                let slot = self.open_slot(op)?;
                if from == index || branch >= branches(slot.kind) {
                    return Err(format!("branch {branch} cannot be copied to"));
                }
                if length > there {
                    return Err(format!("slot {from} holds {there} positions, fewer than {length}"));
                }
                // What was fed is never replaced, and what was drawn never copied.
                let logged = !slot.key.is_empty() && length > slot.prompt;
                if slot.lengths[branch] > 0 || logged || length > slot.capacity {
                    return Err(format!("it does not take {length} copied positions"));
                }
                self.compute.copy(2 * from + from_branch, 2 * index + branch, length)?;
                if let Some(slot) = &mut self.slots[index] {
                    slot.lengths[branch] = length;
                }
                Ok(())
            }
            Some(Op::Keep(length)) => {
                let slot = self.open_slot(op)?;
                let length = *length as usize;
                if length > slot.length() {
                    return Err(format!("it holds {} positions, fewer than {length}", slot.length()));
                }
                let kind = slot.kind;
                (slot.lengths, slot.capacity, slot.kept) = ([length; 2], length, true);
                // Nobody goes on with it.
                (slot.key, slot.log) = (String::new(), Vec::new());
                (0..branches(kind)).try_for_each(|b| self.compute.shrink(2 * index + b, length))
            }
            Some(Op::Close(_)) => {
                if place.as_ref().is_some_and(|slot| slot.generation == op.generation) {
                    self.free(index);
                }
                Ok(())
            }
            None => Err("the operation is unknown".to_owned()),
        }
    }

    /// The slot of an operation, open in its generation.
    fn open_slot(&mut self, op: &SlotOp) -> Result<&mut Slot, String> {
        let slot = self.slots.get_mut(op.slot as usize).and_then(Option::as_mut);
        slot.filter(|s| s.generation == op.generation).ok_or_else(|| "it is not open in this generation".to_owned())
    }

    fn free(&mut self, index: usize) {
        if self.slots.get_mut(index).and_then(Option::take).is_some() {
            self.compute.close(2 * index);
            self.compute.close(2 * index + 1);
        }
    }

    /// Whether the unit fits its slot exactly.
    fn check(&self, unit: &Unit, doubled: bool) -> Result<(), String> {
        let slot = self.slots.get(unit.slot as usize).and_then(Option::as_ref).ok_or("its slot is not open")?;
        if slot.generation != unit.generation {
            return Err(format!("its generation is {}, the slot's is {}", unit.generation, slot.generation));
        }
        if unit.kind() != slot.kind {
            return Err(format!("it is {:?}, the slot was opened for {:?}", unit.kind(), slot.kind));
        }
        if doubled {
            return Err("its slot is twice in one frame".to_owned());
        }
        let length = slot.length();
        if unit.start as usize != length {
            return Err(format!("it starts at {}, the slot holds {length} positions", unit.start));
        }
        let most = match unit.mode() {
            Mode::Decode => 1,
            Mode::Prefill => MAX_PREFILL,
            Mode::Replay if slot.rebuilding => MAX_PREFILL,
            Mode::Replay => return Err("it replays without a truncate before it".to_owned()),
            Mode::Unspecified => return Err("its mode is unknown".to_owned()),
        };
        let positions = unit.positions as usize;
        if positions == 0 || positions > most {
            return Err(format!("it has {positions} positions; {:?} takes 1 to {most}", unit.mode()));
        }
        if length + positions > slot.capacity {
            return Err(format!("the slot has room for {} positions", slot.capacity));
        }
        if ![0, branches(slot.kind)].contains(&unit.held.len()) {
            return Err(format!("it leaves out positions of {} branches", unit.held.len()));
        }
        for branch in 0..branches(slot.kind) {
            let (said, held) = (frame::held(unit, branch), slot.held(branch, positions));
            if said != held {
                return Err(format!("it leaves out {said} positions of branch {branch}, which holds {held} of them"));
            }
            if unit.sample.is_some() && held == positions {
                return Err(format!("an id is asked for, but branch {branch} has no row"));
            }
        }
        let wanted = if self.first() { branches(slot.kind) } else { 0 };
        if unit.inputs.len() != wanted {
            return Err(format!("it has {} branches of input, {:?} takes {wanted} here", unit.inputs.len(), slot.kind));
        }
        for (branch, input) in unit.inputs.iter().enumerate() {
            let (found, wanted) = (input_length(input), positions - slot.held(branch, positions));
            if found != wanted {
                return Err(format!("branch {branch} has {found} positions of input, not {wanted}"));
            }
        }
        Ok(())
    }

    fn rows_of(&mut self, unit: &Unit, came: &[f32], features: &Features, rows: &mut Vec<f32>) -> Result<(), String> {
        if !self.first() {
            rows.extend_from_slice(came);
            return Ok(());
        }
        unit.inputs.iter().try_for_each(|input| self.compute.embed(input, features, rows))
    }

    fn plan(&self, unit: &Unit, spans: &mut Vec<Span>) {
        for branch in 0..branches(unit.kind()) {
            let held = frame::held(unit, branch);
            let (start, rows) = (unit.start as usize + held, unit.positions as usize - held);
            if rows > 0 {
                spans.push(Span { slot: 2 * unit.slot as usize + branch, start, rows });
            }
        }
    }

    fn refuse(&mut self, unit: &mut Unit, reason: String) {
        self.counters.refused_units += 1;
        let slot = self.slots.get(unit.slot as usize).and_then(Option::as_ref);
        let request = slot.map_or("", |slot| slot.key.as_str());
        tracing::warn!(request, slot = unit.slot, generation = unit.generation, reason, "unit refused");
        unit.inputs.clear();
        unit.refused = reason;
    }

    /// Draws the ids that were asked for and says where every unit stands.
    fn results(&mut self, body: &FrameBody, rows: &[f32]) -> StepResult {
        let hidden = self.compute.hidden();
        let (mut jobs, mut ends) = (Vec::new(), Vec::new());
        let mut at = 0;
        for unit in body.units.iter().filter(|u| u.refused.is_empty()) {
            for branch in 0..branches(unit.kind()) {
                at += (unit.positions as usize - frame::held(unit, branch)) * hidden;
                if unit.sample.is_some() {
                    ends.extend_from_slice(&rows[at - hidden..at]);
                }
            }
            if let (Some(index), Some(slot)) = (unit.sample, &self.slots[unit.slot as usize]) {
                jobs.push(SampleJob { kind: slot.kind, sampling: slot.sampling, index });
            }
        }
        let mut drawn = Vec::with_capacity(jobs.len());
        if !jobs.is_empty() {
            self.compute.sample(&jobs, &ends, &mut drawn);
        }
        let mut drawn = drawn.into_iter();
        let units = body.units.iter().map(|unit| {
            let length = self.slots.get(unit.slot as usize).and_then(Option::as_ref).map_or(0, |s| s.length() as u32);
            let mut result =
                UnitResult { slot: unit.slot, generation: unit.generation, length, id: None, refused: unit.refused.clone() };
            if unit.refused.is_empty() && unit.sample.is_some() {
                match drawn.next() {
                    Some(Ok(id)) => result.id = Some(id),
                    Some(Err(reason)) => result.refused = reason,
                    None => result.refused = "nothing was drawn for it".to_owned(),
                }
            }
            result
        });
        StepResult {
            pipeline: body.pipeline,
            epoch: body.epoch,
            sequence: 0,
            microbatch: body.microbatch,
            units: units.collect(),
        }
    }
}

/// The ids of an input from position `skip` on, where its prompt has ended.
fn logged(input: &Input, mut skip: usize) -> Vec<u32> {
    let mut log = Vec::new();
    for piece in &input.pieces {
        match &piece.piece {
            Some(Piece::Text(ids) | Piece::Image(ids)) => {
                log.extend(ids.ids.iter().skip(skip));
                skip = skip.saturating_sub(ids.ids.len());
            }
            Some(Piece::Features(span)) => skip = skip.saturating_sub(span.count as usize),
            None => {}
        }
    }
    log
}

/// Positions of an input.
fn input_length(input: &Input) -> usize {
    let piece = |piece: &janus_wire::v1::Piece| match &piece.piece {
        Some(Piece::Text(ids) | Piece::Image(ids)) => ids.ids.len(),
        Some(Piece::Features(span)) => span.count as usize,
        None => 0,
    };
    input.pieces.iter().map(piece).sum()
}
