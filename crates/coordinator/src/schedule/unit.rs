//! Units of work and their token logs.

use std::sync::Arc;

use janus_wire::frame::MAX_PREFILL;
use janus_wire::v1::{FeatureSpan, Ids, Input, Kind, Mode, Piece, Sampling, SlotOp, Unit, piece, slot_op};

use super::Limits;
use super::prefix::{Token, tokens};

/// Names a unit within a coordinator.
pub type UnitId = u64;

/// Priority bands; earlier ones go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Band {
    /// The pipeline's own proof that it can generate.
    Canary,
    /// Somebody is waiting.
    Interactive,
    /// Nobody is.
    Batch,
}

/// What a tenant may have of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Its part beside others that want work at the same time; at least 1.
    pub weight: u32,
    /// Units that may wait; 0 for no limit of its own.
    pub most_waiting: usize,
}

impl Default for Share {
    fn default() -> Self {
        Share { weight: 1, most_waiting: 0 }
    }
}

/// One picture, or one answer.
#[derive(Debug, Clone)]
pub struct UnitSpec {
    /// Its name.
    pub id: UnitId,
    /// What it is.
    pub kind: Kind,
    /// How its ids are drawn.
    pub sampling: Sampling,
    /// The prompt of each branch, conditional first; all have `prompt` positions.
    pub branches: Vec<Vec<Piece>>,
    /// Positions of the prompt.
    pub prompt: usize,
    /// Ids known from the start: the kept rows of a picture.
    pub keep: Vec<u32>,
    /// Ids when it is complete, kept ones included.
    pub target: usize,
    /// The id that ends it early.
    pub end: Option<u32>,
    /// Its priority.
    pub band: Band,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// What its tenant may have.
    pub share: Share,
    /// Ids drawn under an earlier coordinator, after the kept ones.
    pub log: Vec<u32>,
    /// Names its token log at the first stage; empty if nobody will ask for it.
    pub key: String,
    /// It was admitted before, here or elsewhere: a full queue is no reason to refuse it.
    pub admitted: bool,
}

impl UnitSpec {
    /// Rows a position takes.
    pub fn rows(&self) -> usize {
        if self.kind == Kind::Pair { 2 } else { 1 }
    }

    /// Positions a branch can come to hold: the last id is never fed.
    pub fn capacity(&self) -> usize {
        self.prompt + self.target.saturating_sub(1)
    }

    /// KV memory it needs, exactly.
    pub fn kv_positions(&self) -> usize {
        self.capacity() * self.rows()
    }

    /// Refuses what no stage would accept, or what can never fit.
    pub(super) fn check(&self, limits: &Limits) -> Result<(), String> {
        if self.branches.len() != self.rows() || self.kind == Kind::Unspecified {
            return Err(format!("{:?} has {} branches, not {}", self.kind, self.rows(), self.branches.len()));
        }
        let positions = |branch: &Vec<Piece>| branch.iter().map(piece_positions).sum::<usize>();
        if self.prompt == 0 || self.branches.iter().any(|b| positions(b) != self.prompt) {
            return Err(format!("its branches do not have {} positions each", self.prompt));
        }
        if self.keep.len() + self.log.len() >= self.target {
            return Err("nothing is left to draw".to_owned());
        }
        match self.kv_positions() > limits.kv_positions {
            true => Err(format!(
                "it needs {} positions of KV memory, the pipeline has {}",
                self.kv_positions(),
                limits.kv_positions
            )),
            false => Ok(()),
        }
    }
}

/// A unit without a slot, with its log.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) spec: UnitSpec,
    pub(super) known: Vec<u32>,
    /// It had a slot before.
    pub(super) started: bool,
    /// It had begun, and its pipeline was lost.
    pub(super) lost: bool,
    /// Positions that its tenant was charged for; computing them again is not its doing.
    pub(super) charged: usize,
    /// It copies nothing: that went wrong once.
    pub(super) alone: bool,
}

impl Waiting {
    /// Where it waits.
    pub(super) fn line(&self) -> (Band, Arc<str>) {
        (self.spec.band, self.spec.tenant.clone())
    }
}

/// A unit with a slot.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) spec: UnitSpec,
    /// Ids so far.
    pub(super) known: Vec<u32>,
    /// Had a slot before; what that one held is replayed.
    pub(super) rebuilding: bool,
    pub(super) slot: usize,
    pub(super) generation: u32,
    /// What its prompt and kept ids put at the positions of each branch.
    pub(super) content: Vec<Vec<Token>>,
    /// Positions each branch got from others.
    pub(super) held: [usize; 2],
    /// Until an answer has proved that they are there.
    pub(super) unproven: bool,
    /// The unit that is computing what this one will copy, and how far it has to come.
    pub(super) follows: Option<(UnitId, usize)>,
    pub(super) alone: bool,
    /// Positions the stages hold, of all branches.
    pub(super) fed: usize,
    /// Positions on their way; 0 if none.
    pub(super) flying: usize,
    /// When it was served last.
    pub(super) served: u64,
    /// Positions that its tenant was charged for.
    pub(super) charged: usize,
}

impl Active {
    pub(super) fn open(unit: Waiting, slot: usize, generation: u32) -> Self {
        let Waiting { spec, known, started, charged, alone, .. } = unit;
        let content = |branch: &Vec<Piece>| {
            let mut content = tokens(branch);
            content.extend(spec.keep.iter().map(|id| Token::Image(*id)));
            content
        };
        let content = spec.branches.iter().map(content).collect();
        Active {
            spec,
            known,
            rebuilding: started,
            slot,
            generation,
            content,
            held: [0; 2],
            unproven: false,
            follows: None,
            alone,
            fed: 0,
            flying: 0,
            served: 0,
            charged,
        }
    }

    /// Without its slot, with everything that is known of it.
    pub(super) fn close(self, lost: bool) -> Waiting {
        let Active { spec, known, charged, alone, .. } = self;
        Waiting { spec, known, started: true, lost, charged, alone }
    }

    /// Reserves its slot; a replay begins with an explicit truncate.
    pub(super) fn open_ops(&self) -> impl Iterator<Item = SlotOp> + use<> {
        let truncate = SlotOp { op: Some(slot_op::Op::Truncate(0)), ..self.open_op() };
        [self.open_op()].into_iter().chain(self.rebuilding.then_some(truncate))
    }

    fn open_op(&self) -> SlotOp {
        let open = slot_op::Open {
            kind: self.spec.kind.into(),
            capacity: self.spec.capacity() as u32,
            sampling: Some(self.spec.sampling),
            // Kept ids are no part of the log: whoever goes on with it has them from the request.
            prompt: (self.spec.prompt + self.spec.keep.len()) as u32,
            key: self.spec.key.clone(),
        };
        SlotOp { slot: self.slot as u32, generation: self.generation, op: Some(slot_op::Op::Open(open)) }
    }

    /// Positions of the log that the stages do not hold.
    pub(super) fn missing(&self) -> usize {
        self.spec.prompt + self.known.len() - self.fed
    }

    /// Whether an id is drawn after `positions` more.
    pub(super) fn wants_id(&self, positions: usize) -> bool {
        positions == self.missing()
    }

    /// The next rows of at most `most` positions, for a frame.
    pub(super) fn next(&self, most: usize) -> Unit {
        let positions = self.missing().min(most).min(MAX_PREFILL);
        let range = self.fed..self.fed + positions;
        let decode = positions == 1 && self.missing() == 1 && self.fed >= self.spec.prompt;
        let mut held: Vec<u32> =
            self.held[..self.spec.rows()].iter().map(|held| held.saturating_sub(self.fed).min(positions) as u32).collect();
        let inputs = self.spec.branches.iter().zip(&held).map(|(branch, held)| {
            let own = range.start + *held as usize..range.end;
            Input { pieces: self.pieces(branch, own) }
        });
        let inputs = inputs.collect();
        if held.iter().all(|held| *held == 0) {
            held.clear();
        }
        Unit {
            slot: self.slot as u32,
            generation: self.generation,
            kind: self.spec.kind.into(),
            mode: match (decode, self.rebuilding) {
                (true, _) => Mode::Decode,
                (false, true) => Mode::Replay,
                (false, false) => Mode::Prefill,
            }
            .into(),
            start: self.fed as u32,
            positions: positions as u32,
            inputs,
            sample: self.wants_id(positions).then_some(self.known.len() as u32),
            refused: String::new(),
            held,
        }
    }

    /// Positions `range` of a branch: pieces of its prompt, then ids.
    fn pieces(&self, prompt: &[Piece], range: std::ops::Range<usize>) -> Vec<Piece> {
        let mut cut = Vec::new();
        let mut at = 0;
        for piece in prompt {
            let length = piece_positions(piece);
            let (from, to) = (range.start.max(at), range.end.min(at + length));
            if from < to {
                cut.push(cut_piece(piece, from - at, to - at));
            }
            at += length;
        }
        if range.end > at {
            let ids = Ids { ids: self.known[range.start.max(at) - at..range.end - at].to_vec() };
            let piece = if self.spec.kind == Kind::Text { piece::Piece::Text(ids) } else { piece::Piece::Image(ids) };
            cut.push(Piece { piece: Some(piece) });
        }
        cut
    }
}

pub(super) fn piece_positions(piece: &Piece) -> usize {
    match &piece.piece {
        Some(piece::Piece::Text(ids) | piece::Piece::Image(ids)) => ids.ids.len(),
        Some(piece::Piece::Features(span)) => span.count as usize,
        None => 0,
    }
}

fn cut_piece(piece: &Piece, from: usize, to: usize) -> Piece {
    let ids = |ids: &Ids| Ids { ids: ids.ids[from..to].to_vec() };
    let piece = piece.piece.as_ref().map(|piece| match piece {
        piece::Piece::Text(all) => piece::Piece::Text(ids(all)),
        piece::Piece::Image(all) => piece::Piece::Image(ids(all)),
        piece::Piece::Features(span) => piece::Piece::Features(FeatureSpan {
            handle: span.handle.clone(),
            first: span.first + from as u32,
            count: (to - from) as u32,
        }),
    });
    Piece { piece }
}
