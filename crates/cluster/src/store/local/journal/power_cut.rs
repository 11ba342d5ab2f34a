//! The journal on a disk that loses its power: what was synced is there, and of what was not any part may be, in any
//! order, torn at any sector.

use std::io::{Error as IoError, ErrorKind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redb::{Builder, StorageBackend};

use super::super::state::{Change, Op, State};
use super::{CACHE_BYTES, Journal};
use crate::store::{LeaseId, Txn};

const SECTOR: usize = 512;

/// What the journal did to the disk.
#[derive(Debug, Clone)]
enum Step {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

/// A disk in memory that remembers every step.
#[derive(Debug, Clone, Default)]
struct Disk {
    image: Arc<Mutex<Vec<u8>>>,
    steps: Arc<Mutex<Vec<Step>>>,
}

fn write(image: &mut [u8], at: u64, data: &[u8]) {
    let at = usize::try_from(at).unwrap();
    image[at..at + data.len()].copy_from_slice(data);
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, IoError> {
        Ok(self.image.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), IoError> {
        let image = self.image.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        let there = image.get(at..at + out.len()).ok_or_else(|| IoError::from(ErrorKind::UnexpectedEof))?;
        out.copy_from_slice(there);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), IoError> {
        self.image.lock().unwrap().resize(usize::try_from(len).unwrap(), 0);
        self.steps.lock().unwrap().push(Step::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> Result<(), IoError> {
        self.steps.lock().unwrap().push(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        write(&mut self.image.lock().unwrap(), offset, data);
        self.steps.lock().unwrap().push(Step::Write(offset, data.to_vec()));
        Ok(())
    }
}

fn open(disk: Disk) -> Journal {
    Journal { database: Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(disk).unwrap() }
}

/// SplitMix64: enough chance for a test, and the same on every machine.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((x ^ (x >> 31)) % end as u64).unwrap()
    }
}

/// What is on the disk if the power goes after `cut` steps.
fn after_power_cut(steps: &[Step], cut: usize, chance: &mut Chance) -> Vec<u8> {
    let synced = steps[..cut].iter().rposition(|step| matches!(step, Step::Sync)).unwrap_or(0);
    let mut image = Vec::new();
    for (index, step) in steps[..cut].iter().enumerate() {
        match step {
            Step::Sync => {}
            // File systems keep a file's length in their own journal: in order.
            Step::Length(length) => image.resize(usize::try_from(*length).unwrap(), 0),
            Step::Write(at, data) if index < synced => write(&mut image, *at, data),
            Step::Write(at, data) => match chance.below(3) {
                0 => {}
                1 => write(&mut image, *at, data),
                _ => {
                    let sectors = chance.below(data.len().div_ceil(SECTOR) + 1);
                    write(&mut image, *at, &data[..(sectors * SECTOR).min(data.len())]);
                }
            },
        }
    }
    image
}

/// A batch of operations as callers send them.
fn batch(round: usize, chance: &mut Chance, leases: &[LeaseId]) -> Vec<Op> {
    let mut ops = vec![Op::Commit(Txn::new().put("round", round.to_string()))];
    for _ in 0..chance.below(6) {
        let key = format!("k/{}", chance.below(40));
        let value = vec![u8::try_from(round % 251).unwrap(); chance.below(9000)];
        ops.push(match chance.below(8) {
            0 => Op::Commit(Txn::new().delete_prefix(format!("k/{}", chance.below(4)))),
            1 => Op::Grant(Duration::from_secs(5)),
            2 if !leases.is_empty() => Op::End(leases[chance.below(leases.len())]),
            3 if !leases.is_empty() => Op::Commit(Txn::new().put_leased(key, value, leases[chance.below(leases.len())])),
            _ => Op::Commit(Txn::new().put(key, value)),
        });
    }
    ops
}

fn picture(state: &State) -> (Vec<crate::Entry>, u64, i64, Vec<(LeaseId, Duration)>) {
    (state.list("").entries, state.revision(), state.last_lease(), state.leases().collect())
}

#[test]
fn a_power_cut_at_any_moment_leaves_the_state_before_or_after_a_batch() {
    let mut chance = Chance(7);
    let disk = Disk::default();
    let journal = open(disk.clone());
    let mut state = journal.read().unwrap();
    let mut pictures = vec![picture(&state)];
    // How many steps there were when each state was acknowledged.
    let mut acknowledged = vec![disk.steps.lock().unwrap().len()];
    for round in 0..60 {
        let leases: Vec<LeaseId> = state.leases().map(|(id, _)| id).collect();
        let ops = batch(round, &mut chance, &leases);
        let changes: Vec<Change> = ops.iter().flat_map(|op| state.apply(op).1).collect();
        journal.write(&changes, &state).unwrap();
        pictures.push(picture(&state));
        acknowledged.push(disk.steps.lock().unwrap().len());
    }
    let steps = disk.steps.lock().unwrap().clone();
    let mut undecided = 0;
    for seed in 0..400 {
        let mut chance = Chance(seed);
        let cut = acknowledged[0] + chance.below(acknowledged[60] - acknowledged[0] + 1);
        let image = after_power_cut(&steps, cut, &mut chance);
        let disk = Disk { image: Arc::new(Mutex::new(image)), steps: Arc::default() };
        let found = picture(&open(disk).read().unwrap());
        let promised = acknowledged.iter().rposition(|steps| *steps <= cut).unwrap();
        let next = pictures.get(promised + 1);
        assert!(found == pictures[promised] || Some(&found) == next, "seed {seed}: cut after {cut} steps, state {promised}");
        undecided += usize::from(cut > acknowledged[promised]);
    }
    assert!(undecided > 100, "most cuts fall into the middle of a batch: {undecided}");
}
