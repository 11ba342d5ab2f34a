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

const LIMITS: Limits = Limits { slots: 6, kv_positions: 900, queue: 12, pools: 2, rows: 4, kept: 3 };
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
                    Event::PipelineUp { pools: LIMITS.pools, copies: true }
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
    let limits = Limits { slots: 32, kv_positions: 10_000, queue: 64, pools: 3, rows: 16, kept: 3 };
    for (units, microbatches, largest) in [(1, 1, 1), (16, 1, 16), (17, 2, 9), (64, 4, 16)] {
        let mut scheduler = Scheduler::new(Limits { slots: 64, ..limits });
        (1..=units).for_each(|id| drop(scheduler.step(Event::Submit(Box::new(text(id, 1, 5))))));
        let actions = scheduler.step(Event::PipelineUp { pools: limits.pools, copies: true });
        let sizes: Vec<_> = sent(&actions).iter().map(|body| body.units.len()).collect();
        assert_eq!((sizes.len(), sizes[0]), (microbatches, largest), "{units} units");
        assert_eq!(sizes.iter().sum::<usize>() as u64, units);
    }
}

#[test]
fn rows_that_fill_every_microbatch_are_divided_equally_and_none_waits() {
    let limits = Limits { slots: 256, kv_positions: 100_000, queue: 256, pools: 1, rows: 16, kept: 3 };
    for (units, pools, share) in [(200, 1, 100), (201, 1, 101), (200, 3, 50), (33, 1, 17)] {
        let mut scheduler = Scheduler::new(Limits { pools, ..limits });
        let (mut toy, mut dice) = (Toy::default(), Dice(units));
        (1..=units).for_each(|id| drop(scheduler.step(Event::Submit(Box::new(text(id, 1, 40))))));
        let mut flying: VecDeque<FrameBody> =
            sent(&scheduler.step(Event::PipelineUp { pools, copies: true })).into_iter().cloned().collect();
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
    let mut scheduler = Scheduler::new(Limits { slots: 4, kv_positions: 10_000, queue: 4, pools: 1, rows: 16, kept: 3 });
    let mut toy = Toy::default();
    let mut dice = Dice(1);
    scheduler.step(Event::Submit(Box::new(text(1, 1, 100))));
    let mut actions = scheduler.step(Event::PipelineUp { pools: LIMITS.pools, copies: true });
    for step in 0..80 {
        if step == 5 {
            drop(scheduler.step(Event::Submit(Box::new(text(2, 4000, 1)))));
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

/// A pipeline with room for much, and what it computed.
struct Shared {
    scheduler: Scheduler,
    toy: Toy,
}

impl Shared {
    fn new(limits: Limits, copies: bool) -> Self {
        let mut scheduler = Scheduler::new(limits);
        scheduler.step(Event::PipelineUp { pools: 1, copies });
        Shared { scheduler, toy: Toy::default() }
    }

    /// Runs these units to their ends, which are those they have alone; rows computed and positions copied for them.
    fn run(&mut self, specs: Vec<UnitSpec>) -> (usize, usize) {
        let before = (self.toy.rows, self.toy.copied);
        let mut world = World { wanted: specs.iter().map(|s| (s.id, s.clone())).collect(), ..World::default() };
        std::mem::swap(&mut world.toy, &mut self.toy);
        for spec in specs {
            let actions = self.scheduler.step(Event::Submit(Box::new(spec)));
            world.take(&self.scheduler, actions);
        }
        while let Some(body) = world.flying.pop_front() {
            let result = world.toy.apply(&body, &mut Dice(0));
            let actions = self.scheduler.step(Event::Result(result));
            world.take(&self.scheduler, actions);
        }
        assert_eq!(world.ended.len(), world.wanted.len());
        self.toy = world.toy;
        (self.toy.rows - before.0, self.toy.copied - before.1)
    }
}

const ROOMY: Limits = Limits { slots: 16, kv_positions: 10_000, queue: 64, pools: 1, rows: 16, kept: 4 };
const DRAWN: usize = 5;

/// A picture of `DRAWN` ids: its own words `words`, and an unconditional prompt as long.
fn picture(id: UnitId, tenant: &str, words: std::ops::Range<u32>) -> UnitSpec {
    let blank = std::iter::once(1).chain(words.clone().skip(2).map(|_| 0)).chain([2]).collect();
    let branch = |ids| vec![Piece { piece: Some(piece::Piece::Text(Ids { ids })) }];
    let prompt = words.len();
    let branches = vec![branch(words.collect()), branch(blank)];
    let sampling = Sampling { seed: id, ..Sampling::default() };
    UnitSpec { kind: Kind::Pair, branches, tenant: tenant.into(), sampling, ..text(id, prompt, DRAWN) }
}

#[test]
fn pictures_of_one_prompt_share_its_prefill() {
    let mut shared = Shared::new(ROOMY, true);
    let (rows, copied) = shared.run((1..=8).map(|id| picture(id, "ann", 100..130)).collect());
    // The first one computes all of it, every other one the last position; then all of them draw.
    assert_eq!(rows, 2 * 30 + 7 * 2 + 8 * 2 * (DRAWN - 1));
    assert_eq!(copied, 7 * 2 * 29);
    assert_eq!((shared.scheduler.reused().units, shared.scheduler.reused().positions), (7, 7 * 2 * 29));
    // And so does one that comes later.
    assert_eq!(shared.run(vec![picture(9, "ann", 100..130)]), (2 + 2 * (DRAWN - 1), 2 * 29));
}

#[test]
fn a_prompt_of_a_known_length_computes_one_unconditional_position_and_nothing_else_is_shared_between_tenants() {
    let mut shared = Shared::new(ROOMY, true);
    shared.run(vec![picture(1, "ann", 100..130)]);
    let drawn = 2 * (DRAWN - 1);
    // Other words: theirs are computed, one blank position is.
    assert_eq!(shared.run(vec![picture(2, "ann", 200..230)]), (30 + 1 + drawn, 29));
    // Fewer words.
    assert_eq!(shared.run(vec![picture(3, "ann", 300..320)]), (20 + 1 + drawn, 19));
    // Somebody else's words are his own, even if they are the same.
    assert_eq!(shared.run(vec![picture(4, "bob", 100..130)]), (30 + 1 + drawn, 29));
    assert_eq!(shared.run(vec![picture(5, "ann", 100..130)]), (2 + drawn, 2 * 29));
}

#[test]
fn the_next_turn_of_a_conversation_computes_what_is_new() {
    let mut shared = Shared::new(ROOMY, true);
    let turn = |id, ids: &[u32]| {
        let branches = vec![vec![Piece { piece: Some(piece::Piece::Text(Ids { ids: ids.to_vec() })) }]];
        UnitSpec { kind: Kind::Text, branches, ..text(id, ids.len(), DRAWN) }
    };
    let mut asked: Vec<u32> = (0..40).collect();
    let first = turn(1, &asked);
    let answer = alone(&first).0;
    shared.run(vec![first]);
    asked.extend(answer);
    asked.extend(500..510);
    // The last id of the answer was drawn and never fed.
    let known = 40 + DRAWN - 1;
    assert_eq!(shared.run(vec![turn(2, &asked)]), (asked.len() - known + DRAWN - 1, known));
}

#[test]
fn what_was_kept_makes_room_and_is_not_asked_of_stages_that_cannot_copy() {
    // Room for one picture's memory, and for two prompts beside it.
    let tight = Limits { kv_positions: 2 * (34 + 30) + 10, ..ROOMY };
    let mut shared = Shared::new(tight, true);
    for (id, first) in [(1, 100), (2, 200), (3, 300), (4, 400)] {
        shared.run(vec![picture(id, "ann", first..first + 30)]);
    }
    assert!(shared.scheduler.reused().units > 0);
    // All of the memory: nothing of it can stay kept.
    let (rows, copied) = shared.run(vec![text(9, 30, tight.kv_positions - 29)]);
    assert_eq!((rows, copied), (tight.kv_positions, 0));
    for (limits, copies) in [(ROOMY, false), (Limits { kept: 0, ..ROOMY }, true)] {
        let mut shared = Shared::new(limits, copies);
        let (rows, copied) = shared.run((1..=2).map(|id| picture(id, "ann", 100..130)).collect());
        assert_eq!((rows, copied), (2 * 2 * (30 + DRAWN - 1), 0));
    }
}
