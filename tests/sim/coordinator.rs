//! A coordinator: the real conductor and the real cores of its drivers, with their rims in simulated time; the election,
//! the takeover from plans, requests and token logs, and the writing of all three.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use janus_cluster::plan::ModelSizes;
use janus_coordinator::Logs;
use janus_coordinator::conduct::{self, Conductor, Wishes};
use janus_coordinator::drive::core::{Core, Deed};
use janus_coordinator::pipeline::Placement;
use janus_coordinator::schedule::{self, Action, Finish, Limits, UnitId, UnitSpec};
use janus_wire::frame;
use janus_wire::v1::{Piece, StepResult, piece};

use crate::network::{Event, Host, MS, Message, Process, Request, Response, SECOND, Then, Time};
use crate::node::{SLOTS, TTL};
use crate::toy::LAYERS;
use crate::world::World;

/// As in the product: how long is waited for answers.
const ANSWER: Time = 4 * SECOND;
const ASK: Time = SECOND;
const LOAD: Time = 1800 * SECOND;
const TICK: Time = 100 * MS;

pub(crate) struct Coordinator {
    pub(crate) process: Process,
    /// The fencing epoch under which it believes to lead.
    pub(crate) leads: Option<u64>,
    renewed: Time,
    /// Steps of its clock.
    pub(crate) skew: Time,
    pub(crate) reign: Option<Reign>,
}

pub(crate) struct Reign {
    pub(crate) fence: u64,
    started: Time,
    /// Everything that was left is taken on.
    pub(crate) begun: bool,
    asked_logs: usize,
    logs: Logs,
    conductor: Conductor,
    pub(crate) drivers: Vec<Driver>,
    pub(crate) records: BTreeMap<usize, Record>,
    pub(crate) units: BTreeMap<UnitId, (usize, usize)>,
    next_unit: UnitId,
    seen: Option<u64>,
    plans_owed: bool,
    owed: BTreeSet<usize>,
    gone: BTreeSet<usize>,
    logged: Time,
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
    admitted: bool,
    pub(crate) ids: Vec<u32>,
    pub(crate) end: Option<Result<Finish, String>>,
}

pub(crate) struct Driver {
    pub(crate) core: Core,
    newest: Option<Placement>,
    placement: Option<Placement>,
    epoch: u64,
    phase: Phase,
    pub(crate) ready: bool,
    proven: bool,
    commands: VecDeque<Command>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
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

enum Command {
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
    fn ready(&self) -> bool {
        self.drivers.iter().any(|d| d.ready || d.proven)
    }

    fn route(&self) -> usize {
        let rank =
            |i: &usize| (!self.drivers[*i].ready, !self.drivers[*i].proven, self.drivers[*i].core.scheduler().backlog());
        (0..self.drivers.len()).min_by_key(rank).unwrap_or(0)
    }

    /// Nothing is left to do, for anybody.
    pub(crate) fn idle(&self) -> bool {
        self.begun && self.drivers.iter().all(|d| d.core.scheduler().counts() == (0, 0, 0) && d.commands.is_empty())
    }
}

fn sizes() -> ModelSizes {
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

    fn rules(&self, c: usize, fence: u64) -> bool {
        self.coordinators[c].reign.as_ref().is_some_and(|reign| reign.fence == fence)
    }

    /// Its own clock, since its reign began.
    fn clock(&self, c: usize) -> Duration {
        let coordinator = &self.coordinators[c];
        let started = coordinator.reign.as_ref().map_or(0, |reign| reign.started);
        Duration::from_micros(self.now + coordinator.skew - started)
    }

    fn election(&mut self, c: usize) {
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

    fn depose(&mut self, c: usize) {
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
    fn begin_reign(&mut self, c: usize, fence: u64) {
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
    fn take_over(&mut self, c: usize) {
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

    fn submit(&mut self, c: usize, request: usize, admitted: bool) {
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

    fn tick(&mut self, c: usize) {
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

    fn conduct(&mut self, c: usize, event: conduct::Event) {
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

    fn place(&mut self, c: usize, pipeline: usize, placement: Placement) {
        let mut nodes = BTreeSet::new();
        assert!(placement.stages.iter().all(|s| nodes.insert(&s.node)), "a node is twice in {placement:?}");
        assert!(self.epochs.insert(placement.epoch), "epoch {} came twice", placement.epoch);
        self.placements += 1;
        let Some(reign) = &mut self.coordinators[c].reign else { return };
        reign.plans_owed = true;
        reign.drivers[pipeline].newest = Some(placement);
        match reign.drivers[pipeline].phase {
            Phase::Running { .. } => self.driver_over(c, pipeline, None),
            Phase::Idle => self.driver_next(c, pipeline),
            // It looks when it is done with the older one.
            Phase::Connecting { .. } => {}
        }
    }

    /// Connects the newest placement, if it is not the last one.
    fn driver_next(&mut self, c: usize, p: usize) {
        let Some(reign) = &mut self.coordinators[c].reign else { return };
        let driver = &mut reign.drivers[p];
        let Some(newest) = driver.newest.clone().filter(|newest| newest.epoch > driver.epoch) else { return };
        driver.epoch = newest.epoch;
        let (stages, epoch) = (newest.stages.len(), newest.epoch);
        driver.placement = Some(newest);
        driver.phase = Phase::Connecting { results: None };
        self.connect(c, p, epoch, stages + 2);
    }

    /// Steps count down: `2..` configure a stage each, 1 takes the results, 0 the link.
    fn connect(&mut self, c: usize, p: usize, epoch: u64, steps: usize) {
        let Some(reign) = &self.coordinators[c].reign else { return };
        let placement = reign.drivers[p].placement.clone().expect("it is being connected");
        let stage =
            |i: usize| (self.node_by_name(&placement.stages[i].node).expect("a node"), placement.stages[i].layers.clone());
        let (step, last) = (steps - 1, placement.stages.len() - 1);
        let pipeline = p as u64 + 1;
        let (to, request) = match step {
            0 => {
                let (n, layers) = stage(0);
                (n, Request::Link { pipeline, epoch, layers })
            }
            1 => {
                let (n, layers) = stage(last);
                (n, Request::Results { pipeline, epoch, layers })
            }
            step => {
                let (n, layers) = stage(step - 2);
                let next = (step - 2 < last).then(|| stage(step - 1));
                (n, Request::Configure { pipeline, epoch, layers, next })
            }
        };
        self.call(Host::Coordinator(c), to, request, ANSWER, Then::Connected(p, epoch, step));
    }

    pub(crate) fn answered(&mut self, c: usize, then: Then, answer: Result<Response, String>) {
        match then {
            Then::Asked(node) => self.conduct(c, conduct::Event::Asked { node, answers: answer.is_ok() }),
            Then::Loaded(node, layers) => {
                self.conduct(c, conduct::Event::Loaded { node, layers, failure: answer.err() });
            }
            Then::Logs(fence) if self.rules(c, fence) => {
                let reign = self.coordinators[c].reign.as_mut().expect("it rules");
                if let Ok(Response::Logs(logs)) = answer {
                    logs.into_iter().for_each(|log| reign.logs.add(log.key, log.ids));
                }
                reign.asked_logs -= 1;
                if reign.asked_logs == 0 {
                    self.take_over(c);
                }
            }
            Then::Connected(p, epoch, step) => self.connected(c, p, epoch, step, answer),
            Then::Features(fence, unit) if self.rules(c, fence) => {
                let reign = self.coordinators[c].reign.as_ref().expect("it rules");
                let Some((request, index)) = reign.units.get(&unit) else { return };
                let Some(progress) = reign.records.get(request).map(|r| &r.units[*index]) else { return };
                let home = progress.home;
                match answer {
                    Ok(_) => self.command(c, home, Command::FeaturesReady(unit)),
                    Err(_) => self.after(200 * MS, Host::Coordinator(c), Event::Encode(fence, unit)),
                }
            }
            _ => {}
        }
        self.check(c);
    }

    fn connected(&mut self, c: usize, p: usize, epoch: u64, step: usize, answer: Result<Response, String>) {
        let Some(reign) = &mut self.coordinators[c].reign else { return };
        let Some(driver) = reign.drivers.get_mut(p).filter(|d| d.epoch == epoch) else { return };
        let Phase::Connecting { results } = driver.phase else { return };
        let last = driver.placement.as_ref().map_or(0, |placement| placement.stages.len() - 1);
        let stage = match step {
            0 => 0,
            1 => last,
            step => step - 2,
        };
        match (answer, step) {
            (Err(reason), _) => self.driver_over(c, p, Some((reason, Some(stage)))),
            (Ok(Response::Stream(stream)), 1) => {
                driver.phase = Phase::Connecting { results: Some(stream) };
                self.connect(c, p, epoch, 1);
            }
            (Ok(Response::Stream(frames)), 0) => {
                let results = results.expect("the results came before the link");
                driver.phase = Phase::Running { frames, results };
                let pools = driver.placement.as_ref().map_or(1, |placement| placement.pools);
                let open = |id: &u64| self.network.streams.get(id).is_some_and(|s| s.open());
                if ![frames, results].iter().all(open) {
                    return self.driver_over(c, p, Some(("a stream ended".to_owned(), None)));
                }
                let now = self.clock(c);
                let deeds = self.coordinators[c].reign.as_mut().expect("it reigns").drivers[p].core.up(now, epoch, pools);
                self.deeds(c, p, deeds);
                self.caught_up(c, p);
            }
            (Ok(_), step) => self.connect(c, p, epoch, step),
        }
    }

    /// An epoch is over; the conductor hears why, unless it was him.
    fn driver_over(&mut self, c: usize, p: usize, lost: Option<(String, Option<usize>)>) {
        let Some(reign) = &mut self.coordinators[c].reign else { return };
        let driver = &mut reign.drivers[p];
        let (phase, epoch) = (std::mem::replace(&mut driver.phase, Phase::Idle), driver.epoch);
        driver.ready = false;
        driver.core.over();
        match phase {
            Phase::Running { frames, results } => {
                [frames, results].into_iter().for_each(|id| self.close(id, Host::Coordinator(c)))
            }
            Phase::Connecting { results: Some(results) } => self.close(results, Host::Coordinator(c)),
            _ => {}
        }
        if let Some((reason, stage)) = lost {
            self.conduct(c, conduct::Event::Lost { pipeline: p, epoch, reason, stage });
        }
        if self.coordinators[c].reign.as_ref().is_some_and(|r| r.drivers[p].phase == Phase::Idle) {
            self.driver_next(c, p);
        }
        self.caught_up(c, p);
    }

    /// Commands that came while it was connecting.
    fn caught_up(&mut self, c: usize, p: usize) {
        loop {
            let Some(reign) = &mut self.coordinators[c].reign else { return };
            let driver = &mut reign.drivers[p];
            if matches!(driver.phase, Phase::Connecting { .. }) {
                return;
            }
            let Some(command) = driver.commands.pop_front() else { return };
            self.command(c, p, command);
        }
    }

    fn command(&mut self, c: usize, p: usize, command: Command) {
        let now = self.clock(c);
        let Some(reign) = &mut self.coordinators[c].reign else { return };
        let driver = &mut reign.drivers[p];
        if matches!(driver.phase, Phase::Connecting { .. }) {
            return driver.commands.push_back(command);
        }
        let event = match command {
            Command::Submit(spec) => schedule::Event::Submit(spec),
            Command::Cancel(unit) => schedule::Event::Cancel(unit),
            Command::FeaturesReady(unit) => schedule::Event::FeaturesReady(unit),
            Command::Evacuate => return self.evacuated(c, p),
        };
        let deeds = driver.core.step(now, event);
        self.deeds(c, p, deeds);
    }

    /// Moves everything from one pipeline to the others that are alive.
    fn evacuate(&mut self, c: usize, from: usize) {
        let Some(reign) = &self.coordinators[c].reign else { return };
        if reign.drivers.iter().enumerate().any(|(i, d)| i != from && d.proven && d.ready) {
            self.command(c, from, Command::Evacuate);
        }
    }

    fn evacuated(&mut self, c: usize, from: usize) {
        let Some(reign) = &mut self.coordinators[c].reign else { return };
        let ran = matches!(reign.drivers[from].phase, Phase::Running { .. });
        let units = reign.drivers[from].core.evacuate();
        if ran {
            self.driver_over(c, from, Some(("its units went to another pipeline".to_owned(), None)));
        }
        for spec in units {
            let Some(reign) = &mut self.coordinators[c].reign else { return };
            let home = reign.route();
            let Some((request, index)) = reign.units.get(&spec.id).copied() else { continue };
            // Without a record its caller has left.
            let Some(record) = reign.records.get_mut(&request) else { continue };
            (record.units[index].home, record.units[index].admitted) = (home, true);
            self.command(c, home, Command::Submit(Box::new(spec)));
        }
    }

    pub(crate) fn result_came(&mut self, c: usize, stream: u64, result: StepResult) {
        let now = self.clock(c);
        let Some(reign) = &mut self.coordinators[c].reign else { return };
        let ours = |d: &Driver| matches!(d.phase, Phase::Running { results, .. } if results == stream);
        let Some(p) = reign.drivers.iter().position(ours) else { return };
        match reign.drivers[p].core.result(now, result) {
            Ok(deeds) => self.deeds(c, p, deeds),
            Err(reason) => self.driver_over(c, p, Some((reason, None))),
        }
        self.check(c);
    }

    pub(crate) fn driver_stream_ended(&mut self, c: usize, stream: u64) {
        let Some(reign) = &self.coordinators[c].reign else { return };
        let ours = |d: &Driver| match d.phase {
            Phase::Running { frames, results } => frames == stream || results == stream,
            Phase::Connecting { .. } | Phase::Idle => false,
        };
        if let Some(p) = reign.drivers.iter().position(ours) {
            self.driver_over(c, p, Some(("a stream ended".to_owned(), None)));
        }
        self.check(c);
    }

    fn deeds(&mut self, c: usize, p: usize, deeds: Vec<Deed>) {
        let mut unfit = None;
        for deed in deeds {
            let Some(reign) = &mut self.coordinators[c].reign else { return };
            match deed {
                Deed::Send(body) => {
                    if let Phase::Running { frames, .. } = reign.drivers[p].phase {
                        self.send(frames, Message::Frame(frame::seal(&body, bytes::Bytes::new())));
                    }
                }
                Deed::Tell(action) => self.told(c, action),
                Deed::Ready => {
                    let driver = &mut reign.drivers[p];
                    (driver.ready, driver.proven) = (true, true);
                    let epoch = driver.epoch;
                    self.conduct(c, conduct::Event::Ready { pipeline: p, epoch });
                }
                Deed::Unfit(reason) => unfit = Some(reason),
            }
        }
        if let Some(reason) = unfit {
            self.driver_over(c, p, Some((format!("the canary failed: {reason}"), None)));
        }
    }

    /// What a driver says of a unit goes into its record, and must be what it would have been alone.
    fn told(&mut self, c: usize, action: Action) {
        let unit = match &action {
            Action::Id(unit, _) | Action::Finished(unit, _) | Action::Failed(unit, _) => *unit,
            Action::Refused(unit) | Action::NeedFeatures(unit) => *unit,
            _ => return,
        };
        let Some(reign) = &mut self.coordinators[c].reign else { return };
        let fence = reign.fence;
        let Some((request, index)) = reign.units.get(&unit).copied() else { panic!("nobody knows unit {unit}") };
        let Some(progress) = reign.records.get_mut(&request).map(|r| &mut r.units[index]).filter(|p| p.unit == unit) else {
            return;
        };
        let (expected, finish) = &self.clients[request].alone[index];
        match action {
            Action::Id(_, id) => {
                assert!(progress.end.is_none(), "an id after the end of {request}#{index}");
                let at = progress.ids.len();
                assert_eq!(expected.get(at), Some(&id), "id {at} of {request}#{index}");
                progress.ids.push(id);
            }
            Action::Finished(_, how) => {
                assert_eq!(progress.end, None, "{request}#{index} ended twice");
                assert_eq!((&progress.ids, how), (expected, *finish), "the end of {request}#{index}");
                progress.end = Some(Ok(how));
            }
            Action::Failed(_, reason) => panic!("{request}#{index} failed: {reason}"),
            Action::Refused(_) => {
                assert!(!progress.admitted, "{request}#{index} was refused");
                progress.end = Some(Err("full".to_owned()));
            }
            Action::NeedFeatures(_) => self.after(20 * MS, Host::Coordinator(c), Event::Encode(fence, unit)),
            _ => {}
        }
    }

    /// The unit's picture goes to the first stage again.
    fn encode(&mut self, c: usize, fence: u64, unit: UnitId) {
        let Some(reign) = self.coordinators[c].reign.as_ref().filter(|r| r.fence == fence) else { return };
        let Some((request, index)) = reign.units.get(&unit).copied() else { return };
        let Some(progress) = reign.records.get(&request).map(|r| &r.units[index]) else { return };
        let first = reign.drivers[progress.home].placement.as_ref().and_then(|p| p.stages.first().cloned());
        let spans = self.clients[request].specs[index].branches.iter().flatten();
        let picture = spans.filter_map(|piece: &Piece| match &piece.piece {
            Some(piece::Piece::Features(span)) => Some((span.handle.to_vec(), span.count as usize)),
            _ => None,
        });
        let (Some((handle, rows)), Some(first)) = (picture.last(), first) else {
            return self.after(200 * MS, Host::Coordinator(c), Event::Encode(fence, unit));
        };
        let node = self.node_by_name(&first.node).expect("a node");
        let request = Request::PutFeatures { handle, rows, layers: first.layers };
        self.call(Host::Coordinator(c), node, request, ANSWER, Then::Features(fence, unit));
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
    Limits { slots: SLOTS, kv_positions: 200, queue: 6, pools: 1, rows: 4 }
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
