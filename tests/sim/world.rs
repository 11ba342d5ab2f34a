//! One history: a cluster, its callers, what befalls them, and the promise that everything ends as it would have alone.

use std::collections::BTreeSet;

use janus_coordinator::conduct::Wishes;
use janus_coordinator::schedule::{Band, Finish, Limits, Share, UnitSpec};
use janus_wire::v1::{FeatureSpan, Ids, Kind, Piece, Sampling, piece};

use crate::coordinator::{Coordinator, limits, wishes};
use crate::dice::Dice;
use crate::network::{Due, Event, Fate, Host, MS, Mischief, Network, SECOND, Time};
use crate::node::Node;
use crate::store::Store;
use crate::toy::{END, LAYERS, NUMERICS, alone};

/// Blows fall until then.
const BLOWS: Time = 20 * SECOND;
/// After the last blow everything ends within this: suspicions, quarrels and pauses of the conductor have to pass.
const PATIENCE: Time = 120 * SECOND;
/// How often a caller looks.
const LOOK: Time = 200 * MS;

/// Somebody with a request.
pub(crate) struct Client {
    pub(crate) specs: Vec<UnitSpec>,
    /// What every unit is when nothing else exists, under each of the numerics.
    alone: Vec<[(Vec<u32>, Finish); 2]>,
    /// How often it heard that everything before is void, and what it was computed with.
    heard: Option<(u32, &'static str)>,
    /// Loses interest then.
    leaves: Option<Time>,
    attached: Option<(usize, u64)>,
    pub(crate) done: bool,
}

impl Client {
    pub(crate) fn alone(&self, numerics: &str, index: usize) -> &(Vec<u32>, Finish) {
        &self.alone[index][usize::from(numerics != NUMERICS[0])]
    }
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) dice: Dice,
    pub(crate) network: Network,
    pub(crate) nodes: Vec<Node>,
    pub(crate) coordinators: Vec<Coordinator>,
    pub(crate) store: Store,
    pub(crate) clients: Vec<Client>,
    pub(crate) wishes: Wishes,
    pub(crate) limits: Limits,
    /// Every epoch that was ever placed.
    pub(crate) epochs: BTreeSet<u64>,
    pub(crate) placements: u64,
    /// Requests that began again under other numerics.
    pub(crate) restarts: u64,
    /// There are nodes of other numerics, and the cluster may go over to them.
    others: Option<bool>,
    /// Steps of the wall clock, either way.
    wall: i64,
    last_blow: Time,
    blows: Vec<String>,
}

/// What there is to say of a history.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Outcome {
    /// From the last blow to the last end.
    pub(crate) recovery: Time,
    pub(crate) blows: u64,
    pub(crate) placements: u64,
    pub(crate) reigns: u64,
    pub(crate) fenced: u64,
    pub(crate) events: u64,
    pub(crate) restarts: u64,
}

impl World {
    fn new(seed: u64, others: bool) -> Self {
        let mut dice = Dice::new(seed);
        let pipelines = 1 + dice.index(2);
        let stages = (!dice.chance(20)).then(|| 1 + dice.index(3));
        let spares = dice.index(2);
        let count = pipelines * stages.unwrap_or(2) + spares + dice.index(2);
        let mut nodes = Vec::new();
        for n in 0..count.max(2) {
            nodes.push(Node::new(
                format!("n{n}"),
                NUMERICS[0],
                100 * dice.within(3..LAYERS as u64 + 1),
                1.0 + dice.roll(4) as f64,
            ));
        }
        let others = others.then(|| {
            let few = 1 + dice.index(2);
            nodes.extend((0..few).map(|n| Node::new(format!("other{n}"), NUMERICS[1], 100 * LAYERS as u64, 1.0)));
            dice.chance(80)
        });
        let mut world = World {
            now: 0,
            network: Network::default(),
            nodes,
            coordinators: vec![Coordinator::new(), Coordinator::new()],
            store: Store::default(),
            clients: Vec::new(),
            wishes: wishes(pipelines, stages, spares),
            limits: limits(),
            epochs: BTreeSet::new(),
            placements: 0,
            restarts: 0,
            others,
            wall: 0,
            last_blow: 0,
            blows: Vec::new(),
            dice,
        };
        world.store.process.alive = true;
        (0..2).for_each(|c| world.start_coordinator(c));
        for n in 0..world.nodes.len() {
            // Some join late.
            let delay =
                if world.dice.chance(20) { world.dice.within(3 * SECOND..BLOWS) } else { world.dice.within(0..SECOND) };
            world.fate(delay, Fate::Start(Host::Node(n)));
        }
        for _ in 0..world.dice.within(2..9) {
            world.invite();
        }
        let first = world.dice.within(2 * SECOND..8 * SECOND);
        world.fate(first, Fate::Blow);
        world.fate(500 * MS, Fate::Sweep);
        world
    }

    /// One more caller.
    fn invite(&mut self) {
        let number = self.clients.len();
        let count = 1 + self.dice.index(3);
        let kind = [Kind::Pair, Kind::Unguided, Kind::Text][self.dice.index(3)];
        let prompt = 1 + if self.dice.chance(15) { self.dice.index(90) } else { self.dice.index(12) };
        let keep: Vec<u32> = (0..self.dice.roll(4) as u32).filter(|_| kind != Kind::Text).collect();
        let (pictured, seed) = (kind == Kind::Text && prompt > 4 && self.dice.chance(50), self.dice.roll(1 << 30));
        let target = keep.len() + 1 + self.dice.index(14);
        let text = |from: usize, to: usize, branch: usize| {
            let ids = (from..to).map(|i| (i * 7 + number * 31 + branch * 1000) as u32).collect();
            Piece { piece: Some(piece::Piece::Text(Ids { ids })) }
        };
        let branch = |branch: usize| match pictured {
            true => {
                let handle = number.to_le_bytes().to_vec().into();
                let span = FeatureSpan { handle, first: 0, count: prompt as u32 - 3 };
                vec![text(0, 1, branch), Piece { piece: Some(piece::Piece::Features(span)) }, text(1, 3, branch)]
            }
            false => vec![text(0, prompt, branch)],
        };
        let unit = |i: usize| UnitSpec {
            id: 0,
            kind,
            sampling: Sampling { seed: seed + i as u64, cfg_weight: 5.0, top_p: 1.0, ..Sampling::default() },
            branches: (0..if kind == Kind::Pair { 2 } else { 1 }).map(branch).collect(),
            prompt,
            keep: keep.clone(),
            target,
            end: (kind == Kind::Text).then_some(END),
            tenant: ["ann", "bob", "eve"][number % 3].into(),
            share: Share::default(),
            band: if number % 4 == 0 { Band::Batch } else { Band::Interactive },
            log: Vec::new(),
            key: format!("local/{number}#{i}"),
            admitted: false,
        };
        // What can never fit is another test's.
        let fits = |spec: &UnitSpec| spec.kv_positions() <= self.limits.kv_positions;
        let specs: Vec<UnitSpec> = (0..count).map(unit).filter(fits).collect();
        let alone = specs.iter().map(|spec| NUMERICS.map(|numerics| alone(numerics, spec))).collect();
        let comes = self.dice.within(500 * MS..BLOWS);
        let leaves = self.dice.chance(10).then(|| comes + self.dice.within(0..10 * SECOND));
        self.clients.push(Client { specs, alone, heard: None, leaves, attached: None, done: false });
        self.fate(comes, Fate::Client(number));
    }

    pub(crate) fn wall(&self) -> Time {
        self.now.saturating_add_signed(self.wall + 3_600 * SECOND as i64)
    }

    /// Runs a history to its end.
    pub(crate) fn history(seed: u64, others: bool) -> Outcome {
        let mut world = World::new(seed, others);
        let mut events = 0;
        while let Some(((at, _), due)) = world.network.queue.pop_first() {
            world.now = at;
            events += 1;
            world.happen(due);
            if world.over() {
                break;
            }
            let late = world.now > world.last_blow.max(BLOWS) + PATIENCE;
            assert!(!late, "nothing ends, after {:?}: {}", world.blows, world.state());
        }
        Outcome {
            recovery: world.now.saturating_sub(world.last_blow.max(BLOWS)),
            blows: world.blows.len() as u64,
            placements: world.placements,
            reigns: world.store.epoch,
            fenced: world.store.fenced,
            events,
            restarts: world.restarts,
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::To(Host::Node(n), u64::MAX, Event::Call(call, request)) => self.called(n, call, request),
            Due::To(host, incarnation, event) => self.deliver(host, incarnation, event),
            Due::Of(Fate::Watch(id)) => self.watch(id),
            Due::Of(Fate::Overdue(id)) => self.overdue(id),
            Due::Of(Fate::Sweep) => {
                self.store.sweep(self.now);
                self.fate(500 * MS, Fate::Sweep);
            }
            Due::Of(Fate::Client(number)) => self.look(number),
            Due::Of(Fate::Blow) => self.blow(),
            Due::Of(Fate::Room) => self.make_room(),
            Due::Of(Fate::Heal(a, b)) => {
                self.network.cuts.remove(&(a, b));
                self.healed();
            }
            Due::Of(Fate::StoreBack) => {
                self.network.store_away = false;
                self.healed();
            }
            Due::Of(Fate::Start(Host::Node(n))) => self.start_node(n),
            Due::Of(Fate::Start(Host::Coordinator(c))) => self.start_coordinator(c),
            Due::Of(Fate::Start(Host::Store)) => {}
            Due::Of(Fate::Thaw(host, incarnation)) => self.thaw(host, incarnation),
        }
    }

    /// All callers have what they wanted, and nothing is left of it anywhere.
    fn over(&self) -> bool {
        if self.now < BLOWS || self.clients.iter().any(|client| !client.done) {
            return false;
        }
        let leader = self.coordinators.iter().position(|c| c.process.alive && c.leads == Some(self.store.epoch));
        let Some(c) = leader else { return false };
        self.coordinators[c].reign.as_ref().is_some_and(|reign| reign.idle()) && !self.slots_leaked(c)
    }

    /// A caller looks how its request stands.
    fn look(&mut self, number: usize) {
        let client = &self.clients[number];
        if client.leaves.is_some_and(|at| at <= self.now) {
            if let Some((c, _)) = self.attached(number) {
                self.leave(c, number);
                self.check(c);
            }
            self.clients[number].done = true;
            return;
        }
        let known = self.attached(number).map(|(c, _)| c).filter(|c| self.join(*c, number));
        self.fate(LOOK, Fate::Client(number));
        let Some(c) = known else { return };
        let Some(reign) = self.coordinators[c].reign.as_ref() else { return };
        let Some(record) = reign.records.get(&number) else { return };
        for (index, progress) in record.units.iter().enumerate() {
            let (expected, _) = self.clients[number].alone(reign.numerics, index);
            assert!(expected.starts_with(&progress.ids), "caller {number} sees {:?}, not {expected:?}", progress.ids);
        }
        // Other ids than before come only after a word; what its caller had to bring again was never durable, or refused.
        if let Some((restarted, numerics)) = self.clients[number].heard {
            let told = record.new || record.restarted > restarted || numerics == reign.numerics;
            assert!(told, "caller {number} was not told that its ids are others under {}", reign.numerics);
        }
        self.clients[number].heard = Some((record.restarted, reign.numerics));
        let record = &self.coordinators[c].reign.as_ref().expect("it reigns").records[&number];
        if record.units.iter().any(|p| matches!(p.end, Some(Err(_)))) {
            // It was refused for a full queue: its caller comes again.
            self.leave(c, number);
        } else if record.units.iter().all(|p| p.end.is_some()) {
            self.clients[number].done = true;
            self.leave(c, number);
        }
        self.check(c);
    }

    /// The coordinator that a caller is connected to; it stays while that one believes to lead.
    fn attached(&mut self, number: usize) -> Option<(usize, u64)> {
        let leads = |c: usize| {
            let coordinator = &self.coordinators[c];
            (coordinator.process.alive && !coordinator.process.frozen).then_some(coordinator.leads).flatten()
        };
        let stays = self.clients[number].attached.filter(|(c, fence)| leads(*c) == Some(*fence));
        let found = stays.or_else(|| (0..2).filter_map(|c| Some((c, leads(c)?))).max_by_key(|(_, fence)| *fence));
        self.clients[number].attached = found;
        found
    }

    fn some_host(&mut self) -> Host {
        match self.dice.chance(80) {
            true => Host::Node(self.dice.index(self.nodes.len())),
            false => Host::Coordinator(self.dice.index(2)),
        }
    }

    fn strike(&mut self, host: Host, forever: u64) {
        self.kill(host);
        if !self.dice.chance(forever) {
            let delay = self.dice.within(100 * MS..8 * SECOND);
            self.fate(delay, Fate::Start(host));
        }
    }

    fn blow(&mut self) {
        if self.now > BLOWS {
            return self.last_blow_fell();
        }
        let host = self.some_host();
        let time = self.dice.within(200 * MS..12 * SECOND);
        let what = self.dice.roll(if self.others.is_some() { 24 } else { 17 });
        self.blows.push(format!("{:.3} s: {what} {host:?}", self.now as f64 / SECOND as f64));
        match what {
            0..3 => self.strike(host, 30),
            3 | 4 => self.freeze(host, time),
            5 => {
                if let Host::Node(n) = host {
                    self.nodes[n].stuck = self.now + time;
                }
            }
            6..8 => {
                let other = if self.dice.chance(30) { Host::Store } else { self.some_host() };
                if host != other {
                    let pair = (host.min(other), host.max(other));
                    self.network.cuts.insert(pair);
                    self.fate(time, Fate::Heal(pair.0, pair.1));
                }
            }
            8 => {
                self.network.mischief = Some([Mischief::Duplicate, Mischief::Overtake, Mischief::Damage][self.dice.index(3)])
            }
            9 => {
                let name = if let Host::Node(n) = host { Some(self.nodes[n].name.clone()) } else { None };
                self.store.lose_lease(name.as_deref());
            }
            10 => self.coordinators[self.dice.index(2)].skew += self.dice.within(100 * MS..60 * SECOND),
            11 => self.wall = self.dice.within(0..7_200 * SECOND) as i64 - 3_600 * SECOND as i64,
            12 => {
                let leader = (0..2).find(|c| self.coordinators[*c].leads.is_some());
                if let (Some(c), Host::Node(n)) = (leader, host) {
                    self.drain(c, n);
                }
            }
            13 => {
                self.network.store_away = true;
                self.fate(time.min(9 * SECOND), Fate::StoreBack);
            }
            14 => {
                if let Host::Node(n) = host {
                    self.nodes[n].failing_loads = self.dice.within(1..4);
                }
            }
            15 => {
                let leader = (0..2).find(|c| self.coordinators[*c].leads.is_some()).unwrap_or(0);
                match self.dice.chance(50) {
                    true => self.strike(Host::Coordinator(leader), 0),
                    false => self.freeze(Host::Coordinator(leader), time),
                }
            }
            17.. => {
                // All of one kind, for long.
                let kind = NUMERICS[usize::from(self.dice.chance(25))];
                let nodes: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].numerics == kind).collect();
                nodes.into_iter().for_each(|n| self.strike(Host::Node(n), 100));
            }
            _ => {
                // Everything at once.
                let all = (0..self.nodes.len()).map(Host::Node).chain((0..2).map(Host::Coordinator));
                all.collect::<Vec<_>>().into_iter().for_each(|host| self.strike(host, 0));
            }
        }
        let next = if self.dice.chance(30) { self.dice.within(MS..200 * MS) } else { self.dice.within(MS..6 * SECOND) };
        self.fate(next, Fate::Blow);
    }

    /// From here on nothing breaks any more.
    fn last_blow_fell(&mut self) {
        self.last_blow = self.now;
        self.network.store_away = false;
        self.network.cuts.clear();
        self.network.mischief = None;
        self.healed();
        (0..2).for_each(|c| self.start_coordinator(c));
        self.make_room();
        // Drained nodes leave when they can.
        (1..4).for_each(|i| self.fate(i * 5 * SECOND, Fate::Room));
    }

    pub(crate) fn may_restart(&self) -> bool {
        self.others == Some(true)
    }

    /// At least one pipeline fits.
    fn make_room(&mut self) {
        let room = |numerics: &str| -> bool {
            let there = |node: &&Node| node.process.alive && !node.draining && node.numerics == numerics;
            self.nodes.iter().filter(there).map(|node| node.memory).sum::<u64>() >= 100 * LAYERS as u64
        };
        // Where nothing was ever placed, nothing is given up.
        let ran = !self.store.plans.is_empty() || self.store.numerics.is_some();
        let enough = room(NUMERICS[0]) || (self.may_restart() && ran && room(NUMERICS[1]));
        for n in 0..self.nodes.len() {
            let lost = self.nodes[n].draining || !self.nodes[n].process.alive;
            let comes_back = self.now == self.last_blow && self.dice.chance(40);
            if lost && (!enough || comes_back) {
                self.kill(Host::Node(n));
                self.start_node(n);
            }
        }
    }

    /// For a person who looks at a failing seed.
    fn state(&self) -> String {
        let clients: Vec<usize> = (0..self.clients.len()).filter(|n| !self.clients[*n].done).collect();
        let nodes: Vec<String> = self.nodes.iter().map(|n| n.describe()).collect();
        let leader = self.coordinators.iter().position(|c| c.process.alive && c.leads == Some(self.store.epoch));
        let reign = leader.map(|c| self.describe(c));
        format!("{:?}\ncallers {clients:?} wait\nnodes {nodes:#?}\nleader {leader:?}: {reign:#?}", self.wishes)
    }
}
