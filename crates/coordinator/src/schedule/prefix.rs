//! Positions that need not be computed because another slot holds them.
//!
//! Keys and values of a position follow from what stands before it and from nothing else, bit for bit. So a unit whose
//! prompt begins as that of another one, which is open or has been, copies that beginning; and one that arrives while
//! such a beginning is being computed waits for it. When a unit ends, its prompt (and the answer, because a conversation
//! goes on with it) is kept until its slot or its memory is needed. What was kept belongs to its tenant, since how long a
//! prompt takes would tell others that it was here before; the unconditional prompt of a guided picture says nothing but
//! a length, and everybody shares it.

use std::sync::Arc;

use bytes::Bytes;
use janus_wire::v1::{Kind, Piece, SlotOp, piece, slot_op};

use super::Scheduler;
use super::unit::{Active, Band, UnitId};

/// Fewer positions are not worth an operation, unless they are all that can be had.
const BLOCK: usize = 8;

/// What stands at a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Text(u32),
    Image(u32),
    /// A row of a picture's features, by their handle.
    Feature(Bytes, u32),
}

/// What the pieces of a prompt put at its positions.
pub(super) fn tokens(pieces: &[Piece]) -> Vec<Token> {
    let mut all = Vec::new();
    for piece in pieces {
        match &piece.piece {
            Some(piece::Piece::Text(ids)) => all.extend(ids.ids.iter().map(|id| Token::Text(*id))),
            Some(piece::Piece::Image(ids)) => all.extend(ids.ids.iter().map(|id| Token::Image(*id))),
            Some(piece::Piece::Features(span)) => {
                let rows = span.first..span.first + span.count;
                all.extend(rows.map(|row| Token::Feature(span.handle.clone(), row)));
            }
            None => {}
        }
    }
    all
}

/// The prompt of a unit that ended, in the slot it had.
#[derive(Debug)]
pub(super) struct Kept {
    slot: usize,
    generation: u32,
    kind: Kind,
    tenant: Arc<str>,
    content: Vec<Vec<Token>>,
    /// KV memory it takes.
    pub(super) kv: usize,
    /// When it was copied from, or made.
    used: u64,
}

impl Kept {
    /// Whether everything `other` is good for can be had here.
    fn covers(&self, other: &Kept) -> bool {
        self.tenant == other.tenant
            && self.kind == other.kind
            && self.content.iter().zip(&other.content).all(|(mine, theirs)| mine.starts_with(theirs))
    }
}

/// One branch of a slot that can be copied from.
struct Source<'a> {
    slot: usize,
    generation: u32,
    branch: usize,
    tenant: &'a Arc<str>,
    /// Says nothing about anybody.
    public: bool,
    tokens: &'a [Token],
    /// Positions that are there now.
    there: usize,
    /// The unit that will compute the others, if it is one that can be waited for.
    leader: Option<(UnitId, Band)>,
}

/// What can be copied for one branch now.
#[derive(Clone, Copy)]
struct Copied {
    slot: usize,
    generation: u32,
    branch: usize,
    length: usize,
}

impl Scheduler {
    /// Everything that can be copied from.
    fn sources(&self) -> impl Iterator<Item = Source<'_>> {
        // What no frame has brought to the stages yet may never come to be.
        let open = self.active.values().filter(|unit| unit.served > 0 && unit.spec.band != Band::Canary).flat_map(|unit| {
            (0..unit.spec.rows()).map(move |branch| {
                let public = unit.spec.kind == Kind::Pair && branch == 1;
                Source {
                    slot: unit.slot,
                    generation: unit.generation,
                    branch,
                    tenant: &unit.spec.tenant,
                    public,
                    // Ids of a completed picture's upper rows are its tenant's.
                    tokens: &unit.content[branch][..if public { unit.spec.prompt } else { unit.content[branch].len() }],
                    there: unit.fed.max(unit.held[branch]),
                    leader: unit.follows.is_none().then_some((unit.spec.id, unit.spec.band)),
                }
            })
        });
        let kept = self.kept.iter().flat_map(|kept| {
            kept.content.iter().enumerate().map(move |(branch, tokens)| Source {
                slot: kept.slot,
                generation: kept.generation,
                branch,
                tenant: &kept.tenant,
                public: kept.kind == Kind::Pair && branch == 1,
                tokens,
                there: tokens.len(),
                leader: None,
            })
        });
        open.chain(kept)
    }

    /// Gives a unit that holds nothing what others hold of its prompt, or has it wait for somebody who computes it.
    pub(super) fn share(&mut self, id: UnitId) {
        let Some(unit) = self.active.get(&id).filter(|_| self.copies && self.limits.kept > 0) else { return };
        if unit.alone || unit.spec.band == Band::Canary {
            return;
        }
        let rows = unit.spec.rows();
        // The last position has to be computed in any case: the next id is drawn from it.
        let most = unit.content[0].len().min(unit.spec.prompt + unit.known.len() - 1);
        let worth = |length: usize| length > 0 && (length == most || length >= BLOCK);
        let mut now: [Option<Copied>; 2] = [None; 2];
        // By leader: positions of each branch that will be there.
        let mut later: Vec<(UnitId, [usize; 2])> = Vec::new();
        for source in self.sources().filter(|source| source.public || *source.tenant == unit.spec.tenant) {
            for (branch, now) in now.iter_mut().enumerate().take(rows) {
                let alike = source.tokens.iter().zip(&unit.content[branch]).take_while(|(a, b)| a == b).count().min(most);
                let length = alike.min(source.there);
                if worth(length) && now.is_none_or(|best| best.length < length) {
                    let Source { slot, generation, branch, .. } = source;
                    *now = Some(Copied { slot, generation, branch, length });
                }
                if let Some((leader, _)) = source.leader.filter(|(leader, band)| *leader != id && *band <= unit.spec.band)
                    && worth(alike)
                {
                    match later.iter_mut().find(|(known, _)| *known == leader) {
                        Some((_, lengths)) => lengths[branch] = lengths[branch].max(alike),
                        None => later.push((leader, if branch == 0 { [alike, 0] } else { [0, alike] })),
                    }
                }
            }
        }
        let has = |branch: usize| now[branch].map_or(0, |copied| copied.length);
        let gain = |lengths: &[usize; 2]| (0..rows).map(|b| lengths[b].saturating_sub(has(b))).sum::<usize>();
        let best = later.iter().map(|(leader, lengths)| (gain(lengths), *leader, lengths)).max_by_key(|best| best.0);
        if let Some((_, leader, lengths)) = best.filter(|best| best.0 >= BLOCK) {
            let until = lengths.iter().copied().max().unwrap_or_default();
            if let Some(unit) = self.active.get_mut(&id) {
                unit.follows = Some((leader, until));
            }
            return;
        }
        let Some(unit) = self.active.get_mut(&id) else { return };
        unit.follows = None;
        for (branch, copied) in now.iter().enumerate().filter_map(|(branch, copied)| Some((branch, (*copied)?))) {
            let copy = slot_op::Copy {
                branch: branch as u32,
                from_slot: copied.slot as u32,
                from_generation: copied.generation,
                from_branch: copied.branch as u32,
                length: copied.length as u32,
            };
            let (slot, generation) = (unit.slot as u32, unit.generation);
            self.ops.push(SlotOp { slot, generation, op: Some(slot_op::Op::Copy(copy)) });
            unit.held[branch] = copied.length;
            unit.unproven = true;
            self.uses += 1;
            let source = self.kept.iter_mut().find(|kept| kept.slot == copied.slot);
            source.into_iter().for_each(|kept| kept.used = self.uses);
            self.reused.positions += copied.length as u64;
        }
        unit.fed = unit.held[..rows].iter().copied().min().unwrap_or_default();
        self.reused.units += u64::from(unit.unproven);
    }

    /// Units whose leader has come far enough, or is gone, go on.
    pub(super) fn share_followed(&mut self) {
        let far = |&(leader, until): &(UnitId, usize)| self.active.get(&leader).is_none_or(|leader| leader.fed >= until);
        let done = |unit: &&Active| unit.follows.as_ref().is_some_and(far);
        let ready: Vec<UnitId> = self.active.values().filter(done).map(|unit| unit.spec.id).collect();
        ready.into_iter().for_each(|id| self.share(id));
    }

    /// Ends a unit and keeps its prompt, if that may be of use.
    pub(super) fn retire(&mut self, id: UnitId) {
        let Some(unit) = self.active.get(&id) else { return };
        let useful = self.copies && unit.spec.band != Band::Canary && unit.fed >= BLOCK;
        if !useful || self.limits.kept == 0 {
            self.release(id);
            return;
        }
        let Some(unit) = self.active.remove(&id) else { return };
        self.kv_used -= unit.spec.kv_positions();
        let text = unit.spec.kind == Kind::Text;
        let length = if text { unit.fed } else { unit.fed.min(unit.content[0].len()) };
        let mut content = unit.content;
        if text {
            content[0].extend(unit.known.iter().map(|id| Token::Text(*id)));
        }
        content.iter_mut().for_each(|tokens| tokens.truncate(length));
        self.uses += 1;
        let kept = Kept {
            slot: unit.slot,
            generation: unit.generation,
            kind: unit.spec.kind,
            tenant: unit.spec.tenant.clone(),
            content,
            kv: length * unit.spec.rows(),
            used: self.uses,
        };
        if let Some(known) = self.kept.iter_mut().find(|known| known.covers(&kept)) {
            known.used = self.uses;
            self.close(kept.slot, kept.generation);
            return;
        }
        while let Some(known) = self.kept.iter().position(|known| kept.covers(known)) {
            self.forget(known);
        }
        let op = Some(slot_op::Op::Keep(length as u32));
        self.ops.push(SlotOp { slot: kept.slot as u32, generation: kept.generation, op });
        self.kv_used += kept.kv;
        self.kept.push(kept);
        while self.kept.len() > self.limits.kept {
            self.forget_oldest();
        }
    }

    /// Gives back the slot that was of use least recently; false if there is none.
    pub(super) fn forget_oldest(&mut self) -> bool {
        let oldest = self.kept.iter().enumerate().min_by_key(|(_, kept)| kept.used).map(|(at, _)| at);
        oldest.inspect(|at| self.forget(*at)).is_some()
    }

    fn forget(&mut self, at: usize) {
        let kept = self.kept.swap_remove(at);
        self.kv_used -= kept.kv;
        self.close(kept.slot, kept.generation);
    }

    /// A unit whose copies a stage refused, or that could not go on from them, computes everything itself.
    pub(super) fn share_nothing(&mut self, id: UnitId) -> bool {
        if !self.active.get(&id).is_some_and(|unit| unit.unproven) {
            return false;
        }
        if let Some(mut unit) = self.release(id) {
            unit.alone = true;
            self.waiting.push_returning(unit.close(false));
        }
        true
    }
}
