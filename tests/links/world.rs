//! One history: hosts, what happens to them and to the links between them, and what came of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use turmoil::{Builder, Sim};

use crate::callers::{Wish, callers};
use crate::dice::Dice;
use crate::hosts::{CALLER, COORDINATOR, DECODER, STAGES, Setting, coordinator, decoder, model, stage};
use crate::seen::{Counts, Seen};

/// Blows fall in the first milliseconds, and requests come.
const BLOWS: u64 = 9_000;
/// Longer than any history: callers have their own patience.
const LONGEST: Duration = Duration::from_secs(300);

/// Stages stand first, and then the coordinator; the others do not crash.
const HOSTS: [&str; 7] = [STAGES[0][0], STAGES[0][1], STAGES[1][0], STAGES[1][1], COORDINATOR, DECODER, CALLER];
const LEADER: usize = 4;

pub(crate) struct Outcome {
    pub(crate) seconds: u64,
    pub(crate) blows: u64,
    pub(crate) requests: u64,
    pub(crate) placements: u64,
    pub(crate) ready: u64,
    pub(crate) again: u64,
    pub(crate) resumed: u64,
}

/// What ends a blow.
#[derive(Debug, Clone, Copy)]
enum Mend {
    Start(usize),
    Repair(usize, usize),
    RepairOneWay(usize, usize),
    Release(usize, usize),
}

struct World<'a> {
    sim: Sim<'a>,
    dice: Dice,
    seen: Arc<Seen>,
    /// In milliseconds.
    mends: BTreeSet<(u64, u64)>,
    pending: Vec<Mend>,
    /// Killed, and not yet gone.
    dying: Vec<usize>,
    /// What is broken already is not broken in another way.
    down: BTreeSet<usize>,
    cut: BTreeSet<(usize, usize)>,
    blows: Vec<String>,
}

/// Runs a history to its end; what was written of it comes with what came of it.
///
/// # Panics
/// If something happens that must not.
pub(crate) fn history(seed: u64) -> (Outcome, Vec<String>) {
    let mut dice = Dice::new(seed);
    let setting = Setting { seed, kept: if dice.chance(50) { 3 } else { 0 }, step: dice.within(2..25) };
    let seen = Arc::new(Seen::default());
    let latency = Duration::from_millis(dice.within(2..40));
    let mut sim = Builder::new()
        .rng_seed(seed)
        .tick_duration(Duration::from_millis(1))
        .simulation_duration(LONGEST)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(latency)
        .tcp_capacity(4096)
        .enable_random_order()
        .build();
    for (half, replicas) in STAGES.into_iter().enumerate() {
        for node in replicas {
            let seen = seen.clone();
            sim.host(node, move || stage(node, half, setting, seen.clone()));
        }
    }
    let (painting, leading) = (seen.clone(), seen.clone());
    sim.host(DECODER, move || decoder(painting.clone()));
    sim.host(COORDINATOR, move || coordinator(setting, leading.clone()));
    let model = model();
    let wishes: Vec<Wish> =
        (0..dice.within(5..12) as usize).map(|number| Wish::new(number, BLOWS, &model, &mut dice)).collect();
    let requests = wishes.len() as u64;
    sim.client(CALLER, callers(wishes, setting, seen.clone()));

    let (mends, pending, dying, down, cut, blows) = Default::default();
    let world = World { sim, dice, seen: seen.clone(), mends, pending, dying, down, cut, blows };
    let (seconds, blows) = world.run();
    let Counts { placements, ready, again, resumed, .. } = seen.counts();
    (Outcome { seconds, blows, requests, placements, ready, again, resumed }, seen.lines())
}

impl World<'_> {
    fn run(mut self) -> (u64, u64) {
        let mut next = self.dice.within(500..2_500);
        loop {
            let now = self.sim.elapsed().as_millis() as u64;
            if now >= BLOWS && !self.seen.calm() {
                self.mend_until(u64::MAX);
                self.seen.calm_down();
            }
            self.mend_until(now);
            if now >= next && now < BLOWS {
                self.blow(now);
                next = now + if self.dice.chance(30) { self.dice.within(1..100) } else { self.dice.within(100..2_500) };
            }
            let over = self.sim.step();
            self.dying.drain(..).for_each(|host| self.sim.crash(HOSTS[host]));
            let faults = self.seen.faults();
            if over.is_err() || !faults.is_empty() {
                self.seen.lines().iter().for_each(|line| eprintln!("{line}"));
                self.blows.iter().for_each(|blow| eprintln!("{blow}"));
                panic!("{faults:?} {:?}", over.err().map(|e| e.to_string()));
            }
            if matches!(over, Ok(true)) {
                return (self.sim.elapsed().as_secs(), self.blows.len() as u64);
            }
        }
    }

    fn kill(&mut self, host: usize, until: u64) {
        self.seen.kill(HOSTS[host]);
        self.dying.push(host);
        self.later(until, Mend::Start(host));
    }

    fn later(&mut self, at: u64, mend: Mend) {
        self.mends.insert((at, self.pending.len() as u64));
        self.pending.push(mend);
    }

    /// Ends what was to end by `now`.
    fn mend_until(&mut self, now: u64) {
        while let Some((at, index)) = self.mends.first().copied().filter(|(at, _)| *at <= now) {
            self.mends.remove(&(at, index));
            let mend = self.pending[index as usize];
            match mend {
                Mend::Start(host) => {
                    self.down.remove(&host);
                    self.sim.bounce(HOSTS[host]);
                }
                Mend::Repair(a, b) => self.sim.repair(HOSTS[a], HOSTS[b]),
                Mend::RepairOneWay(from, to) => self.sim.repair_oneway(HOSTS[from], HOSTS[to]),
                Mend::Release(a, b) => self.sim.release(HOSTS[a], HOSTS[b]),
            }
            if let Mend::Repair(a, b) | Mend::RepairOneWay(a, b) | Mend::Release(a, b) = mend {
                self.cut.remove(&(a.min(b), a.max(b)));
            }
        }
    }

    fn blow(&mut self, now: u64) {
        let host = if self.dice.chance(10) { LEADER } else { self.dice.index(LEADER) };
        let other = (host + 1 + self.dice.index(HOSTS.len() - 1)) % HOSTS.len();
        let until = now + if self.dice.chance(30) { self.dice.within(1..300) } else { self.dice.within(300..6_000) };
        let what = self.dice.roll(12);
        let link = (host.min(other), host.max(other));
        let whole = self.cut.insert(link);
        let name = match what {
            0..3 if self.down.insert(host) => {
                self.kill(host, until);
                "crash"
            }
            // It has no time to close its connections.
            3 | 4 if self.down.insert(host) => {
                for peer in (0..HOSTS.len()).filter(|peer| *peer != host) {
                    let link = (host.min(peer), host.max(peer));
                    if self.cut.insert(link) || (whole && peer == other) {
                        self.sim.partition(HOSTS[host], HOSTS[peer]);
                        self.later(until, Mend::Repair(host, peer));
                    }
                }
                self.kill(host, until);
                self.blows.push(format!("{now} ms: no power at {} until {until}", HOSTS[host]));
                return;
            }
            5..7 if whole => {
                self.sim.partition(HOSTS[host], HOSTS[other]);
                self.later(until, Mend::Repair(host, other));
                "partition"
            }
            7..10 if whole => {
                let (from, to) = if self.dice.chance(50) { (host, other) } else { (other, host) };
                self.sim.partition_oneway(HOSTS[from], HOSTS[to]);
                self.later(until, Mend::RepairOneWay(from, to));
                "one way"
            }
            10.. if whole => {
                self.sim.hold(HOSTS[host], HOSTS[other]);
                self.later(until, Mend::Release(host, other));
                "hold"
            }
            _ => "nothing",
        };
        // Only the last three are about the link.
        if whole && !matches!(name, "partition" | "one way" | "hold") {
            self.cut.remove(&link);
        }
        self.blows.push(format!("{now} ms: {name} of {} and {} until {until}", HOSTS[host], HOSTS[other]));
    }
}
