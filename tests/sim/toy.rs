//! A model whose every number is a hash of everything before it: each layer keeps a chain of states for each row, as a
//! transformer keeps keys and values. One row too many, too few or out of place changes all that follows.

use std::collections::BTreeMap;
use std::ops::Range;

use janus_coordinator::schedule::{Finish, UnitSpec};
use janus_model::llama::Span;
use janus_wire::v1::{Ids, Input, Piece, piece};
use janus_worker::stage::core::FEATURES_MISSING;
use janus_worker::stage::{Compute, Features, SampleJob};

use crate::dice::mix;

pub(crate) const LAYERS: usize = 6;
/// Two numbers of 24 bits: exact in f32.
pub(crate) const HIDDEN: usize = 2;
/// Different ids.
const VOCABULARY: u64 = 61;
/// Ends a text.
pub(crate) const END: u32 = 7;

const MASK: u64 = (1 << 48) - 1;

fn hash(parts: &[u64]) -> u64 {
    parts.iter().fold(0x51ed_270b, |sum, part| mix(sum ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15))) & MASK
}

fn row(state: u64) -> [f32; HIDDEN] {
    [(state >> 24) as f32, (state & 0xff_ffff) as f32]
}

fn state(row: &[f32]) -> u64 {
    ((row[0] as u64) << 24) | row[1] as u64
}

/// What an encoder makes of a picture: its handle is its only content.
pub(crate) fn features(handle: &[u8], rows: usize) -> Vec<f32> {
    let seed = handle.iter().map(|b| u64::from(*b)).collect::<Vec<_>>();
    (0..rows as u64).flat_map(|i| row(hash(&[3, i, hash(&seed)]))).collect()
}

struct RowSlot {
    capacity: usize,
    /// For each position the states of all layers here.
    states: Vec<Vec<u64>>,
}

/// What a node computes with: the id of most, and another one whose numbers are others.
pub(crate) const NUMERICS: [&str; 2] = ["toy", "toy-2"];

/// A range of layers.
pub(crate) struct Toy {
    layers: Range<usize>,
    /// Makes the numbers of another numerics id.
    salt: u64,
    slots: BTreeMap<usize, RowSlot>,
}

impl Toy {
    pub(crate) fn new(numerics: &str, layers: Range<usize>) -> Self {
        let salt = if numerics == NUMERICS[0] { 0 } else { 1000 };
        Toy { layers, salt, slots: BTreeMap::new() }
    }

    /// Positions of a row slot, if it is open.
    pub(crate) fn length(&self, row_slot: usize) -> Option<usize> {
        self.slots.get(&row_slot).map(|slot| slot.states.len())
    }
}

impl Compute for Toy {
    fn hidden(&self) -> usize {
        HIDDEN
    }

    fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    fn total_layers(&self) -> usize {
        LAYERS
    }

    fn open(&mut self, row_slot: usize, capacity: usize) -> Result<(), String> {
        let new = RowSlot { capacity, states: Vec::new() };
        assert!(self.slots.insert(row_slot, new).is_none(), "row slot {row_slot} was opened twice");
        Ok(())
    }

    fn close(&mut self, row_slot: usize) {
        self.slots.remove(&row_slot);
    }

    fn truncate(&mut self, row_slot: usize, length: usize) -> Result<(), String> {
        let slot = self.slots.get_mut(&row_slot).ok_or("truncated, but not open")?;
        slot.states.truncate(length);
        Ok(())
    }

    fn copy(&mut self, from: usize, to: usize, length: usize) -> Result<(), String> {
        let source = self.slots.get(&from).ok_or("copied from, but not open")?;
        let states = source.states.get(..length).ok_or("copied from, but too short")?.to_vec();
        self.slots.get_mut(&to).ok_or("copied to, but not open")?.states = states;
        Ok(())
    }

    fn shrink(&mut self, row_slot: usize, length: usize) -> Result<(), String> {
        self.truncate(row_slot, length)?;
        self.slots.get_mut(&row_slot).ok_or("shrunk, but not open")?.capacity = length;
        Ok(())
    }

    fn embed(&mut self, input: &Input, features: &Features, out: &mut Vec<f32>) -> Result<(), String> {
        for piece in &input.pieces {
            match &piece.piece {
                Some(piece::Piece::Text(ids)) => out.extend(ids.ids.iter().flat_map(|id| row(hash(&[1, (*id).into()])))),
                Some(piece::Piece::Image(ids)) => out.extend(ids.ids.iter().flat_map(|id| row(hash(&[2, (*id).into()])))),
                Some(piece::Piece::Features(span)) => {
                    let rows = features.get(&span.handle).ok_or(FEATURES_MISSING)?;
                    let first = span.first as usize * HIDDEN;
                    out.extend_from_slice(&rows[first..first + span.count as usize * HIDDEN]);
                }
                None => return Err("a piece says nothing".to_owned()),
            }
        }
        Ok(())
    }

    fn forward(&mut self, spans: &[Span], x: &mut [f32]) -> Result<(), String> {
        let mut rows = x.chunks_exact_mut(HIDDEN);
        for span in spans {
            let slot = self.slots.get_mut(&span.slot).expect("rows for an open slot");
            assert_eq!(slot.states.len(), span.start, "rows are applied once, and in order");
            for _ in 0..span.rows {
                let place = rows.next().expect("a row for every position");
                let none = vec![0; self.layers.len()];
                let before = slot.states.last().unwrap_or(&none);
                let mut x = state(place);
                let salt = self.salt;
                let states = self.layers.clone().zip(before).map(|(layer, before)| {
                    x = hash(&[layer as u64 + salt, *before, x]);
                    x
                });
                let states = states.collect();
                slot.states.push(states);
                place.copy_from_slice(&row(x));
            }
            assert!(slot.states.len() <= slot.capacity, "more positions than were reserved");
        }
        Ok(())
    }

    fn sample(&mut self, jobs: &[SampleJob], rows: &[f32], out: &mut Vec<Result<u32, String>>) {
        let mut rows = rows.chunks_exact(HIDDEN);
        let draw = |job: &SampleJob| {
            let mut parts = vec![job.sampling.seed, job.index.into()];
            parts.extend(rows.by_ref().take(janus_worker::stage::compute::branches(job.kind)).map(state));
            Ok((hash(&parts) % VOCABULARY) as u32)
        };
        out.extend(jobs.iter().map(draw));
    }

    fn weight_bytes(&self) -> usize {
        self.layers.len()
    }

    fn kv_bytes(&self) -> usize {
        self.slots.values().map(|slot| slot.capacity).sum()
    }
}

/// The ids a unit has when nothing else exists: all layers in one place, one position after the other.
pub(crate) fn alone(numerics: &str, spec: &UnitSpec) -> (Vec<u32>, Finish) {
    let handles = spec.branches.iter().flatten().filter_map(|piece| match &piece.piece {
        Some(piece::Piece::Features(span)) => Some((span.handle.clone(), span.count)),
        _ => None,
    });
    let cache = Features::new(1 << 20);
    handles.for_each(|(handle, rows)| cache.put(&handle, features(&handle, rows as usize)));
    let mut toy = Toy::new(numerics, 0..LAYERS);
    let mut last = vec![0.0; spec.branches.len() * HIDDEN];
    let feed = |toy: &mut Toy, branch: usize, pieces: Vec<Piece>, last: &mut [f32]| {
        let mut rows = Vec::new();
        toy.embed(&Input { pieces }, &cache, &mut rows).unwrap();
        let start = toy.length(branch).expect("an open slot");
        toy.forward(&[Span { slot: branch, start, rows: rows.len() / HIDDEN }], &mut rows).unwrap();
        last[branch * HIDDEN..(branch + 1) * HIDDEN].copy_from_slice(&rows[rows.len() - HIDDEN..]);
    };
    let id_piece = |id: u32| {
        let ids = Ids { ids: vec![id] };
        let text = spec.kind == janus_wire::v1::Kind::Text;
        vec![Piece { piece: Some(if text { piece::Piece::Text(ids) } else { piece::Piece::Image(ids) }) }]
    };
    for (branch, prompt) in spec.branches.iter().enumerate() {
        toy.open(branch, spec.prompt + spec.target).unwrap();
        feed(&mut toy, branch, prompt.clone(), &mut last);
        spec.keep.iter().for_each(|id| feed(&mut toy, branch, id_piece(*id), &mut last));
    }
    let mut ids = spec.keep.clone();
    while ids.len() < spec.target {
        let job = SampleJob { kind: spec.kind, sampling: spec.sampling, index: ids.len() as u32 };
        let mut drawn = Vec::new();
        toy.sample(&[job], &last, &mut drawn);
        let id = *drawn[0].as_ref().unwrap();
        if spec.end == Some(id) {
            return (ids, Finish::EndOfSentence);
        }
        ids.push(id);
        (0..spec.branches.len()).for_each(|branch| feed(&mut toy, branch, id_piece(id), &mut last));
    }
    (ids, Finish::Complete)
}
