//! The scheduler under thousands of random histories: units arrive, are given up, lose their features and their
//! pipeline; a toy pipeline checks every frame as a stage would, and every unit must end with the ids it would have had
//! alone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod toy;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use janus_coordinator::schedule::{Action, Band, Event, Limits, Scheduler, Share, UnitId, UnitSpec};
use janus_wire::v1::{FrameBody, Ids, Kind, Piece, Sampling, piece};
use toy::{Dice, Toy, alone};

/// A failing seed goes here, and stays.
const REMEMBERED: [u64; 1] = [0];

const LIMITS: Limits = Limits { slots: 6, kv_positions: 900, queue: 12, pools: 2, rows: 4 };
const END: u32 = 7;

fn spec(id: UnitId, dice: &mut Dice) -> UnitSpec {
    let kind = [Kind::Pair, Kind::Unguided, Kind::Text][dice.roll(3) as usize];
    let prompt = 1 + dice.roll(150) as usize;
    let branch = |offset: u32| {
        let ids: Vec<u32> = (0..prompt as u32).map(|i| i + offset).collect();
        let (head, tail) = ids.split_at(prompt / 2);
        [head, tail].map(|ids| Piece { piece: Some(piece::Piece::Text(Ids { ids: ids.to_vec() })) }).to_vec()
    };
    let branches = if kind == Kind::Pair { vec![branch(100), branch(900)] } else { vec![branch(500)] };
    let keep: Vec<u32> = (0..dice.roll(8) as u32).filter(|_| kind != Kind::Text).collect();
    UnitSpec {
        id,
        kind,
        sampling: Sampling { seed: dice.roll(1 << 20), ..Sampling::default() },
        branches,
        prompt,
        target: keep.len() + 1 + dice.roll(20) as usize,
        keep,
        end: (kind == Kind::Text).then_some(END),
        band: if dice.roll(3) == 0 { Band::Batch } else { Band::Interactive },
        tenant: ["ann", "bob", "eve"][dice.roll(3) as usize].into(),
        share: Share { weight: 1 + dice.roll(3) as u32, most_waiting: 0 },
        log: Vec::new(),
        key: String::new(),
        admitted: false,
    }
}

/// One history.
#[derive(Default)]
struct World {
    wanted: BTreeMap<UnitId, UnitSpec>,
    drawn: BTreeMap<UnitId, Vec<u32>>,
    ended: BTreeSet<UnitId>,
    parked: Vec<UnitId>,
    flying: VecDeque<FrameBody>,
    toy: Toy,
}

impl World {
    fn take(&mut self, scheduler: &Scheduler, actions: Vec<Action>) {
        assert_eq!(scheduler.violated(), None);
        for action in actions {
            match action {
                Action::Send(body) => self.flying.push_back(body),
                Action::Id(unit, id) => self.drawn.entry(unit).or_default().push(id),
                Action::Finished(unit, finish) => {
                    assert!(self.ended.insert(unit), "unit {unit} ended twice");
                    let spec = &self.wanted[&unit];
                    let (expected, end) = alone(spec);
                    let drawn = self.drawn.remove(&unit).unwrap_or_default();
                    assert_eq!([spec.keep.clone(), drawn].concat(), expected, "unit {unit}");
                    assert_eq!(finish, end);
                }
                Action::Failed(unit, reason) => panic!("unit {unit} failed: {reason}"),
                Action::Refused(unit) => {
                    self.wanted.remove(&unit);
                }
                Action::NeedFeatures(unit) => self.parked.push(unit),
                Action::Queued(..) | Action::Started(_) | Action::Resumed(_) => {}
            }
        }
        assert!(self.flying.len() <= LIMITS.pools + 1, "{} microbatches in flight", self.flying.len());
    }

    fn history(seed: u64) {
        let mut dice = Dice(seed);
        let mut scheduler = Scheduler::new(LIMITS);
        let mut world = World::default();
        let mut next = 1;
        let mut up = false;
        for turn in 0.. {
            let busy = turn < 300;
            let event = match dice.roll(100) {
                0..10 if busy => {
                    let spec = spec(next, &mut dice);
                    world.wanted.insert(next, spec.clone());
                    next += 1;
                    Event::Submit(Box::new(spec))
                }
                10..12 if busy && next > 1 => {
                    let unit = 1 + dice.roll(next - 1);
                    if !world.ended.contains(&unit) {
                        world.wanted.remove(&unit);
                        world.drawn.remove(&unit);
                    }
                    Event::Cancel(unit)
                }
                12..14 if busy && up => {
                    up = false;
                    world.flying.clear();
                    Event::PipelineDown
                }
                _ if !up => {
                    up = true;
                    world.toy = Toy::forgetful();
                    Event::PipelineUp(LIMITS.pools)
                }
                14..30 if !world.parked.is_empty() => Event::FeaturesReady(world.parked.swap_remove(0)),
                _ => match world.flying.pop_front() {
                    Some(body) => Event::Result(world.toy.apply(&body, &mut dice)),
                    None if !busy && world.parked.is_empty() => break,
                    None => continue,
                },
            };
            let actions = scheduler.step(event);
            world.take(&scheduler, actions);
        }
        let left: Vec<_> = world.wanted.keys().filter(|id| !world.ended.contains(id)).collect();
        assert!(left.is_empty(), "units {left:?} never ended");
        assert_eq!(scheduler.counts(), (0, 0, 0));
    }
}

#[test]
fn every_unit_ends_once_with_the_ids_it_has_alone() {
    let seeds: u64 = std::env::var("JANUS_TEST_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2_000);
    for seed in REMEMBERED.into_iter().chain(1..seeds) {
        let failed = std::panic::catch_unwind(|| World::history(seed)).is_err();
        assert!(!failed, "seed {seed}");
    }
}

fn text(id: UnitId, prompt: usize, target: usize) -> UnitSpec {
    let ids = Ids { ids: (0..prompt as u32).collect() };
    UnitSpec {
        id,
        kind: Kind::Unguided,
        sampling: Sampling::default(),
        branches: vec![vec![Piece { piece: Some(piece::Piece::Text(ids)) }]],
        prompt,
        keep: Vec::new(),
        target,
        end: None,
        band: Band::Interactive,
        tenant: "ann".into(),
        share: Share::default(),
        log: Vec::new(),
        key: String::new(),
        admitted: false,
    }
}

fn sent(actions: &[Action]) -> Vec<&FrameBody> {
    actions.iter().filter_map(|a| if let Action::Send(body) = a { Some(body) } else { None }).collect()
}

#[test]
fn rows_fill_a_microbatch_before_another_one_opens() {
    let limits = Limits { slots: 32, kv_positions: 10_000, queue: 64, pools: 3, rows: 16 };
    for (units, microbatches, largest) in [(1, 1, 1), (16, 1, 16), (17, 2, 9), (64, 4, 16)] {
        let mut scheduler = Scheduler::new(Limits { slots: 64, ..limits });
        (1..=units).for_each(|id| drop(scheduler.step(Event::Submit(Box::new(text(id, 1, 5))))));
        let actions = scheduler.step(Event::PipelineUp(limits.pools));
        let sizes: Vec<_> = sent(&actions).iter().map(|body| body.units.len()).collect();
        assert_eq!((sizes.len(), sizes[0]), (microbatches, largest), "{units} units");
        assert_eq!(sizes.iter().sum::<usize>() as u64, units);
    }
}

#[test]
fn rows_that_fill_every_microbatch_are_divided_equally_and_none_waits() {
    let limits = Limits { slots: 256, kv_positions: 100_000, queue: 256, pools: 1, rows: 16 };
    for (units, pools, share) in [(200, 1, 100), (201, 1, 101), (200, 3, 50), (33, 1, 17)] {
        let mut scheduler = Scheduler::new(Limits { pools, ..limits });
        let (mut toy, mut dice) = (Toy::default(), Dice(units));
        (1..=units).for_each(|id| drop(scheduler.step(Event::Submit(Box::new(text(id, 1, 40))))));
        let mut flying: VecDeque<FrameBody> = sent(&scheduler.step(Event::PipelineUp(pools))).into_iter().cloned().collect();
        for step in 0..60 {
            assert_eq!(flying.len(), pools + 1, "{units} units, step {step}");
            let sizes: Vec<_> = flying.iter().map(|body| body.units.len()).collect();
            assert_eq!(sizes.iter().sum::<usize>() as u64, units, "step {step}: a unit waits");
            let even = sizes.iter().all(|size| (share - pools..=share).contains(size));
            assert!(even, "{units} units, step {step}: {sizes:?}");
            let result = toy.apply(&flying.pop_front().unwrap(), &mut dice);
            flying.extend(sent(&scheduler.step(Event::Result(result))).into_iter().cloned());
        }
    }
}

#[test]
fn a_long_prompt_delays_a_running_picture_by_one_chunk_at_most() {
    let mut scheduler = Scheduler::new(Limits { slots: 4, kv_positions: 10_000, queue: 4, pools: 1, rows: 16 });
    let mut toy = Toy::default();
    let mut dice = Dice(1);
    scheduler.step(Event::Submit(Box::new(text(1, 1, 100))));
    let mut actions = scheduler.step(Event::PipelineUp(LIMITS.pools));
    for step in 0..20 {
        if step == 5 {
            drop(scheduler.step(Event::Submit(Box::new(text(2, 500, 1)))));
        }
        let body = sent(&actions)[0].clone();
        assert!(body.units.iter().any(|u| u.positions == 1), "the picture is in every step");
        actions = scheduler.step(Event::Result(toy.apply(&body, &mut dice)));
    }
}

#[test]
fn a_full_queue_says_so_and_keeps_what_it_has() {
    let mut scheduler = Scheduler::new(Limits { queue: 2, ..LIMITS });
    let answers: Vec<_> = (1..=3).flat_map(|id| scheduler.step(Event::Submit(Box::new(text(id, 1, 1))))).collect();
    assert_eq!(answers, [Action::Queued(1, 0), Action::Queued(2, 1), Action::Refused(3)]);
}

#[test]
fn what_can_never_fit_is_refused_with_numbers() {
    let mut scheduler = Scheduler::new(LIMITS);
    let actions = scheduler.step(Event::Submit(Box::new(text(1, 800, 200))));
    assert!(
        matches!(&actions[..], [Action::Failed(1, reason)] if reason.contains("999") && reason.contains("900")),
        "{actions:?}"
    );
}
