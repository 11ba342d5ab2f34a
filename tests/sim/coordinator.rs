//! A coordinator: the real conductor and the real cores of its drivers, with their rims in simulated time; the election,
//! the takeover from plans, requests and token logs, and the writing of all three.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use janus_cluster::plan::ModelSizes;
use janus_coordinator::Logs;
use janus_coordinator::conduct::{self, Conductor, Wishes};
use janus_coordinator::drive::core::Core;
use janus_coordinator::pipeline::Placement;
use janus_coordinator::schedule::{Finish, Limits, UnitId, UnitSpec};

use crate::network::{Event, Host, MS, Process, Request, SECOND, Then, Time};
use crate::node::{SLOTS, TTL};
use crate::toy::LAYERS;
use crate::world::World;

/// As in the product: how long is waited for answers.
pub(crate) const ANSWER: Time = 4 * SECOND;
pub(crate) const ASK: Time = SECOND;
pub(crate) const LOAD: Time = 1800 * SECOND;
pub(crate) const TICK: Time = 100 * MS;

pub(crate) struct Coordinator {
    pub(crate) process: Process,
    /// The fencing epoch under which it believes to lead.
    pub(crate) leads: Option<u64>,
    pub(crate) renewed: Time,
    /// Steps of its clock.
    pub(crate) skew: Time,
    pub(crate) reign: Option<Reign>,
}

pub(crate) struct Reign {
    pub(crate) fence: u64,
    pub(crate) started: Time,
    /// Everything that was left is taken on.
    pub(crate) begun: bool,
    pub(crate) asked_logs: usize,
    pub(crate) logs: Logs,
    pub(crate) conductor: Conductor,
    pub(crate) drivers: Vec<Driver>,
    pub(crate) records: BTreeMap<usize, Record>,
    pub(crate) units: BTreeMap<UnitId, (usize, usize)>,
    pub(crate) next_unit: UnitId,
    pub(crate) seen: Option<u64>,
    pub(crate) plans_owed: bool,
    pub(crate) owed: BTreeSet<usize>,
    pub(crate) gone: BTreeSet<usize>,
    pub(crate) logged: Time,
}

/// What is known of a request.
pub(crate) struct Record {
    pub(crate) units: Vec<Progress>,
}

#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) unit: UnitId,
    pub(crate) home: usize,
    /// It may not be refused any more.
    pub(crate) admitted: bool,
    pub(crate) ids: Vec<u32>,
    pub(crate) end: Option<Result<Finish, String>>,
}

pub(crate) struct Driver {
    pub(crate) core: Core,
    pub(crate) newest: Option<Placement>,
    pub(crate) placement: Option<Placement>,
    pub(crate) epoch: u64,
    pub(crate) phase: Phase,
    pub(crate) ready: bool,
    pub(crate) proven: bool,
    pub(crate) commands: VecDeque<Command>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Phase {
    Idle,
    /// Configuring the stages from the last one on; then the results, then the link.
    Connecting {
        results: Option<u64>,
    },
    Running {
        frames: u64,
        results: u64,
    },
}

pub(crate) enum Command {
    Submit(Box<UnitSpec>),
    Cancel(UnitId),
    FeaturesReady(UnitId),
    Evacuate,
}

impl Coordinator {
    pub(crate) fn new() -> Self {
        Coordinator { process: Process::default(), leads: None, renewed: 0, skew: 0, reign: None }
    }
}

impl Reign {
    pub(crate) fn ready(&self) -> bool {
        self.drivers.iter().any(|d| d.ready || d.proven)
    }

    pub(crate) fn route(&self) -> usize {
        let rank =
            |i: &usize| (!self.drivers[*i].ready, !self.drivers[*i].proven, self.drivers[*i].core.scheduler().backlog());
        (0..self.drivers.len()).min_by_key(rank).unwrap_or(0)
    }

    /// Nothing is left to do, for anybody.
    pub(crate) fn idle(&self) -> bool {
        self.begun && self.drivers.iter().all(|d| d.core.scheduler().counts() == (0, 0, 0) && d.commands.is_empty())
    }
}

pub(crate) fn sizes() -> ModelSizes {
    ModelSizes {
        layer_bytes: vec![100; LAYERS],
        embedding_bytes: 0,
        head_bytes: 0,
        kv_bytes_per_position: 0,
        hidden: 2,
        image_tokens: 8,
    }
}

impl World {
    pub(crate) fn start_coordinator(&mut self, c: usize) {
        let coordinator = &mut self.coordinators[c];
        if coordinator.process.alive {
            return;
        }
        coordinator.process.alive = true;
        coordinator.process.incarnation += 1;
        (coordinator.leads, coordinator.reign) = (None, None);
        let delay = self.dice.within(0..300 * MS);
        self.after(delay, Host::Coordinator(c), Event::Round);
        self.after(delay, Host::Coordinator(c), Event::Tick);
    }

    pub(crate) fn coordinator_event(&mut self, c: usize, event: Event) {
        match event {
            Event::Round => self.election(c),
            Event::Tick => self.tick(c),
            Event::Parked(fence, pipeline) if self.rules(c, fence) => self.evacuate(c, pipeline),
            Event::Encode(fence, unit) => self.encode(c, fence, unit),
            _ => {}
        }
        self.check(c);
    }

    pub(crate) fn check(&self, c: usize) {
        let Some(reign) = &self.coordinators[c].reign else { return };
        assert_eq!(reign.conductor.violated(), None);
        reign.drivers.iter().for_each(|d| assert_eq!(d.core.violated(), None));
    }

    pub(crate) fn rules(&self, c: usize, fence: u64) -> bool {
        self.coordinators[c].reign.as_ref().is_some_and(|reign| reign.fence == fence)
    }

    /// Its own clock, since its reign began.
    pub(crate) fn clock(&self, c: usize) -> Duration {
        let coordinator = &self.coordinators[c];
        let started = coordinator.reign.as_ref().map_or(0, |reign| reign.started);
        Duration::from_micros(self.now + coordinator.skew - started)
    }

    pub(crate) fn election(&mut self, c: usize) {
        self.after(TTL / 3, Host::Coordinator(c), Event::Round);
        let me = (c, self.coordinators[c].process.incarnation);
        if !self.cut(Host::Coordinator(c), Host::Store) {
            let epoch = self.store.campaign(me, self.now + TTL);
            if epoch.is_some() {
                self.coordinators[c].renewed = self.now;
            }
            if epoch != self.coordinators[c].leads {
                self.depose(c);
                if let Some(epoch) = epoch {
                    self.begin_reign(c, epoch);
                }
            }
        } else if self.now > self.coordinators[c].renewed + TTL {
            self.depose(c);
        }
    }

    pub(crate) fn depose(&mut self, c: usize) {
        self.coordinators[c].leads = None;
        let Some(reign) = self.coordinators[c].reign.take() else { return };
        for driver in reign.drivers {
            if let Phase::Running { frames, results } = driver.phase {
                self.close(frames, Host::Coordinator(c));
                self.close(results, Host::Coordinator(c));
            }
        }
    }

    /// Reads what its predecessor left, and asks the first stages for newer logs.
    pub(crate) fn begin_reign(&mut self, c: usize, fence: u64) {
        let mut conductor = Conductor::new(self.wishes.clone(), sizes(), fence);
        let inherited = self.store.plans.clone();
        conductor.inherit(inherited.clone());
        let mut logs = Logs::default();
        for (key, ids) in self.store.logs.values().flatten() {
            logs.add(key.clone(), ids.clone());
        }
        let limits = self.limits;
        let driver = |pipeline: usize| Driver {
            core: Core::new(pipeline as u64 + 1, limits, vec![1, 2]),
            newest: None,
            placement: None,
            epoch: 0,
            phase: Phase::Idle,
            ready: false,
            proven: false,
            commands: VecDeque::new(),
        };
        self.coordinators[c].leads = Some(fence);
        self.coordinators[c].reign = Some(Reign {
            fence,
            started: self.now + self.coordinators[c].skew,
            begun: false,
            asked_logs: 0,
            logs,
            drivers: (0..self.wishes.pipelines).map(driver).collect(),
            conductor,
            records: BTreeMap::new(),
            units: BTreeMap::new(),
            next_unit: 1,
            seen: None,
            plans_owed: false,
            owed: BTreeSet::new(),
            gone: BTreeSet::new(),
            logged: self.now,
        });
        let firsts: Vec<usize> = inherited.iter().filter_map(|plan| self.node_by_name(&plan.stages.first()?.node)).collect();
        self.coordinators[c].reign.as_mut().expect("just begun").asked_logs = firsts.len();
        for node in &firsts {
            self.call(Host::Coordinator(c), *node, Request::Logs { epoch: fence << 32 }, ASK, Then::Logs(fence));
        }
        if firsts.is_empty() {
            self.take_over(c);
        }
    }

    /// Goes on with everything that was admitted.
    pub(crate) fn take_over(&mut self, c: usize) {
        let admitted = self.store.admitted();
        let Some(reign) = &mut self.coordinators[c].reign else { return };
        reign.begun = true;
        for request in admitted {
            self.submit(c, request, true);
        }
    }

    pub(crate) fn node_by_name(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// A caller comes with a request; whether it is known now.
    pub(crate) fn join(&mut self, c: usize, request: usize) -> bool {
        let reachable = !self.cut(Host::Coordinator(c), Host::Store);
        let Some(reign) = &mut self.coordinators[c].reign else { return false };
        if reign.records.contains_key(&request) {
            return true;
        }
        if !reign.begun || !reign.ready() {
            return false;
        }
        reign.gone.remove(&request);
        let fence = reign.fence;
        if !(reachable && self.store.admit(fence, request, self.wall())) {
            self.coordinators[c].reign.as_mut().expect("it reigns").owed.insert(request);
        }
        self.submit(c, request, false);
        true
    }

    pub(crate) fn submit(&mut self, c: usize, request: usize, admitted: bool) {
        let specs = self.clients[request].specs.clone();
        let Some(reign) = &mut self.coordinators[c].reign else { return };
        let home = reign.route();
        let mut record = Record { units: Vec::new() };
        let mut units = Vec::new();
        for (index, mut spec) in specs.into_iter().enumerate() {
            spec.id = reign.next_unit;
            reign.next_unit += 1;
            spec.admitted = admitted;
            if admitted {
                spec.log = reign.logs.of(&spec.key, spec.target - spec.keep.len());
            }
            let ids = [&spec.keep[..], &spec.log].concat();
            let (expected, _) = &self.clients[request].alone[index];
            assert!(expected.starts_with(&ids), "the log of request {request}#{index} is {ids:?}, not of {expected:?}");
            record.units.push(Progress { unit: spec.id, home, admitted, ids, end: None });
            reign.units.insert(spec.id, (request, index));
            units.push(spec);
        }
        reign.records.insert(request, record);
        units.into_iter().for_each(|spec| self.command(c, home, Command::Submit(Box::new(spec))));
    }

    /// The caller has everything, or has given up.
    pub(crate) fn leave(&mut self, c: usize, request: usize) {
        let Some(reign) = &mut self.coordinators[c].reign else { return };
        let Some(record) = reign.records.remove(&request) else { return };
        reign.gone.insert(request);
        reign.owed.remove(&request);
        for progress in record.units {
            if progress.end.is_none() {
                self.command(c, progress.home, Command::Cancel(progress.unit));
            }
        }
    }

    pub(crate) fn tick(&mut self, c: usize) {
        self.after(TICK, Host::Coordinator(c), Event::Tick);
        let now = self.clock(c);
        let reachable = !self.cut(Host::Coordinator(c), Host::Store);
        let (clock, fence) = (
            self.now,
            match &self.coordinators[c].reign {
                Some(reign) if reign.begun => reign.fence,
                _ => return,
            },
        );
        if reachable && self.coordinators[c].reign.as_ref().is_some_and(|r| r.seen != Some(self.store.version)) {
            let members = self.store.members();
            let version = self.store.version;
            self.coordinators[c].reign.as_mut().expect("it reigns").seen = Some(version);
            self.conduct(c, conduct::Event::Members(members));
        }
        self.conduct(c, conduct::Event::Tick);
        for p in 0..self.wishes.pipelines {
            let Some(reign) = &self.coordinators[c].reign else { return };
            if reign.drivers[p].core.deadline().is_some_and(|at| at <= now) {
                let reason = reign.drivers[p].core.overdue(now);
                self.driver_over(c, p, Some((reason, None)));
            }
        }
        let Some(reign) = self.coordinators[c].reign.as_mut().filter(|_| reachable) else { return };
        if std::mem::take(&mut reign.plans_owed) && !self.store.write_plans(fence, reign.conductor.plans()) {
            reign.plans_owed = true;
        }
        let owed: Vec<usize> = reign.owed.iter().copied().collect();
        let gone: Vec<usize> = reign.gone.iter().copied().collect();
        let wall = self.wall();
        let Some(reign) = self.coordinators[c].reign.as_mut() else { return };
        for request in owed {
            if self.store.admit(fence, request, wall) {
                reign.owed.remove(&request);
            }
        }
        for request in gone {
            if self.store.forget(fence, request) {
                reign.gone.remove(&request);
            }
        }
        if clock > reign.logged + 3 * SECOND {
            reign.logged = clock;
            for (p, driver) in reign.drivers.iter().enumerate() {
                let logs = driver.core.scheduler().logs().map(|(key, log)| (key.to_owned(), log.to_vec())).collect();
                self.store.write_logs(fence, p, logs);
            }
        }
    }

    pub(crate) fn conduct(&mut self, c: usize, event: conduct::Event) {
        let now = self.clock(c);
        let Some(reign) = &mut self.coordinators[c].reign else { return };
        let fence = reign.fence;
        for action in reign.conductor.step(now, event) {
            let me = Host::Coordinator(c);
            match action {
                conduct::Action::Ask(node) => match self.node_by_name(&node) {
                    Some(n) => self.call(me, n, Request::Describe, ASK, Then::Asked(node)),
                    None => panic!("{node} is asked, but nobody is called so"),
                },
                conduct::Action::Load(node, layers, epoch) => {
                    let n = self.node_by_name(&node).expect("a node that was seen");
                    let request = Request::Prepare { layers: layers.clone(), epoch };
                    self.call(me, n, request, LOAD, Then::Loaded(node, layers));
                }
                conduct::Action::Place(pipeline, placement) => self.place(c, pipeline, placement),
                conduct::Action::Parked(pipeline) => {
                    let delay = self.delay();
                    self.after(delay, me, Event::Parked(fence, pipeline));
                }
            }
        }
    }

    pub(crate) fn drain(&mut self, c: usize, node: usize) {
        if let Some(reign) = &self.coordinators[c].reign {
            let epoch = reign.fence << 32;
            self.call(Host::Coordinator(c), node, Request::Drain { epoch }, ASK, Then::Nothing);
        }
    }

    /// Every slot that is open on a stage belongs to a unit.
    pub(crate) fn slots_leaked(&self, c: usize) -> bool {
        let Some(reign) = &self.coordinators[c].reign else { return false };
        let placed =
            reign.drivers.iter().filter(|d| matches!(d.phase, Phase::Running { .. })).filter_map(|d| d.placement.as_ref());
        let nodes = placed.flat_map(|p| &p.stages).filter_map(|s| self.node_by_name(&s.node));
        nodes.into_iter().any(|n| self.nodes[n].open_slots() > 0)
    }
}

/// Limits of every pipeline.
pub(crate) fn limits() -> Limits {
    Limits { slots: SLOTS, kv_positions: 200, queue: 6, pools: 1, rows: 4, kept: 2 }
}

/// What is asked of the placement.
pub(crate) fn wishes(pipelines: usize, stages: Option<usize>, spares: usize) -> Wishes {
    Wishes { pipelines, stages, spares, kv_positions: 0, numerics: "toy".to_owned(), model: "toy".to_owned() }
}

impl World {
    /// For a person.
    pub(crate) fn describe(&self, c: usize) -> Vec<String> {
        let Some(reign) = &self.coordinators[c].reign else { return Vec::new() };
        let pipelines = reign.conductor.standings().into_iter().zip(&reign.drivers);
        pipelines
            .map(|(s, d)| {
                let counts = d.core.scheduler().counts();
                format!(
                    "{s:?} | driver {:?} {:?} ready {} of {}, units {counts:?}, {} commands",
                    d.phase,
                    d.epoch,
                    d.ready,
                    reign.begun,
                    d.commands.len()
                )
            })
            .collect()
    }
}
