//! A toy pipeline that checks every frame as a stage would, and the ids a unit must have.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use janus_coordinator::schedule::{FEATURES_MISSING, Finish, UnitSpec};
use janus_wire::v1::{FrameBody, Input, Kind, Mode, Piece, Sampling, StepResult, Unit, UnitResult, piece, slot_op::Op};

/// splitmix64: the histories are the same everywhere.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

pub fn ids_of(input: &Input) -> Vec<u32> {
    let ids = |piece: &Piece| match &piece.piece {
        Some(piece::Piece::Text(ids) | piece::Piece::Image(ids)) => ids.ids.clone(),
        _ => panic!("the toy has no features"),
    };
    input.pieces.iter().flat_map(ids).collect()
}

/// The toy model: an id is a hash of everything before it.
fn draw(branches: &[Vec<u32>], sampling: &Sampling, index: u32) -> u32 {
    let mut hasher = DefaultHasher::new();
    (branches, sampling.seed, index).hash(&mut hasher);
    (hasher.finish() % 61) as u32
}

/// The ids a unit has when nothing else exists.
pub fn alone(spec: &UnitSpec) -> (Vec<u32>, Finish) {
    let prompt = |branch: &Vec<Piece>| ids_of(&Input { pieces: branch.clone() });
    let mut branches: Vec<Vec<u32>> = spec.branches.iter().map(prompt).collect();
    branches.iter_mut().for_each(|b| b.extend(&spec.keep));
    let mut ids = spec.keep.clone();
    while ids.len() < spec.target {
        let id = draw(&branches, &spec.sampling, ids.len() as u32);
        if spec.end == Some(id) {
            return (ids, Finish::EndOfSentence);
        }
        ids.push(id);
        branches.iter_mut().for_each(|b| b.push(id));
    }
    (ids, Finish::Complete)
}

struct Slot {
    generation: u32,
    kind: Kind,
    capacity: usize,
    sampling: Sampling,
    branches: Vec<Vec<u32>>,
    rebuilding: bool,
}

/// A pipeline that accepts exactly what a stage accepts.
#[derive(Default)]
pub struct Toy {
    /// Sometimes claims that features are gone, or does not copy what it is told to.
    forgetful: bool,
    slots: BTreeMap<u32, Slot>,
    newest: BTreeMap<u32, u32>,
    /// Rows that were computed, and positions that were copied.
    pub rows: usize,
    pub copied: usize,
}

impl Toy {
    pub fn forgetful() -> Self {
        Toy { forgetful: true, ..Toy::default() }
    }

    pub fn apply(&mut self, body: &FrameBody, dice: &mut Dice) -> StepResult {
        for op in &body.slots {
            match op.op.as_ref().expect("an operation") {
                Op::Open(open) => {
                    let newest = self.newest.insert(op.slot, op.generation).unwrap_or(0);
                    assert!(op.generation > newest, "a generation came back");
                    let rows = if open.kind() == Kind::Pair { 2 } else { 1 };
                    let slot = Slot {
                        generation: op.generation,
                        kind: open.kind(),
                        capacity: open.capacity as usize,
                        sampling: open.sampling.unwrap(),
                        branches: vec![Vec::new(); rows],
                        rebuilding: false,
                    };
                    assert!(self.slots.insert(op.slot, slot).is_none(), "a slot was opened twice");
                }
                Op::Close(_) => {
                    if self.slots.get(&op.slot).is_some_and(|s| s.generation == op.generation) {
                        self.slots.remove(&op.slot);
                    }
                }
                Op::Truncate(length) => {
                    let slot = self.slots.get_mut(&op.slot).expect("an open slot");
                    assert_eq!(op.generation, slot.generation);
                    slot.branches.iter_mut().for_each(|b| b.truncate(*length as usize));
                    slot.rebuilding = true;
                }
                Op::Copy(copy) => {
                    if self.forgetful && dice.roll(20) == 0 {
                        continue;
                    }
                    let source = self.slots.get(&copy.from_slot).expect("an open slot to copy from");
                    assert_eq!(copy.from_generation, source.generation);
                    let there = &source.branches[copy.from_branch as usize];
                    if there.len() < copy.length as usize {
                        assert!(self.forgetful, "what is to be copied is not there");
                        continue;
                    }
                    let prefix = there[..copy.length as usize].to_vec();
                    let slot = self.slots.get_mut(&op.slot).expect("an open slot");
                    assert_eq!(op.generation, slot.generation);
                    assert!(slot.branches[copy.branch as usize].is_empty(), "what was fed is never replaced");
                    self.copied += prefix.len();
                    slot.branches[copy.branch as usize] = prefix;
                }
                Op::Keep(length) => {
                    let slot = self.slots.get_mut(&op.slot).expect("an open slot");
                    assert_eq!(op.generation, slot.generation);
                    assert!(slot.branches.iter().all(|b| b.len() >= *length as usize), "more is kept than there is");
                    slot.branches.iter_mut().for_each(|b| b.truncate(*length as usize));
                    slot.capacity = *length as usize;
                }
            }
        }
        let together: u32 = body.units.iter().filter(|u| u.positions > 1).map(|u| u.positions).sum();
        assert!(together <= 64, "{together} prompt positions in one frame");
        let units = body.units.iter().map(|unit| self.unit(unit, dice)).collect();
        StepResult { microbatch: body.microbatch, units, ..StepResult::default() }
    }

    fn unit(&mut self, unit: &Unit, dice: &mut Dice) -> UnitResult {
        let slot = self.slots.get_mut(&unit.slot).expect("an open slot");
        assert_eq!((slot.generation, slot.kind), (unit.generation, unit.kind()));
        let length = slot.branches.iter().map(Vec::len).min().expect("a branch");
        if unit.start as usize != length {
            assert!(self.forgetful, "a unit starts at its slot's length");
            let refused = "it starts elsewhere".to_owned();
            return UnitResult { slot: unit.slot, generation: unit.generation, refused, ..UnitResult::default() };
        }
        assert_eq!(unit.inputs.len(), slot.branches.len(), "half a pair");
        match unit.mode() {
            Mode::Decode => assert_eq!(unit.positions, 1),
            Mode::Replay => assert!(slot.rebuilding, "a replay begins with a truncate"),
            _ => assert!(!slot.rebuilding, "what was lost is replayed"),
        }
        slot.rebuilding &= unit.mode() == Mode::Replay;
        let mut result = UnitResult { slot: unit.slot, generation: unit.generation, ..UnitResult::default() };
        if self.forgetful && unit.mode() != Mode::Decode && dice.roll(40) == 0 {
            result.refused = FEATURES_MISSING.to_owned();
            return result;
        }
        let end = length + unit.positions as usize;
        for (branch, input) in slot.branches.iter().zip(&unit.inputs) {
            if ids_of(input).len() + branch.len().min(end) != end {
                assert!(self.forgetful, "what was copied is left out, and nothing else");
                result.refused = "it leaves out what is not here".to_owned();
                return result;
            }
        }
        for (branch, input) in slot.branches.iter_mut().zip(&unit.inputs) {
            let ids = ids_of(input);
            self.rows += ids.len();
            branch.extend(ids);
            assert!(branch.len() <= slot.capacity, "more positions than were reserved");
        }
        result.length = end as u32;
        result.id = unit.sample.map(|index| draw(&slot.branches, &slot.sampling, index));
        result
    }
}
