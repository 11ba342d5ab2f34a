//! The rim of a coordinator's drivers in simulated time: connecting, commands, what comes back, and what is told.

use std::collections::BTreeSet;

use janus_coordinator::conduct;
use janus_coordinator::drive::core::Deed;
use janus_coordinator::pipeline::Placement;
use janus_coordinator::schedule::{self, Action, UnitId};
use janus_wire::frame;
use janus_wire::v1::{Piece, StepResult, piece};

use crate::coordinator::*;
use crate::network::{Event, Host, MS, Message, Request, Response, Then};
use crate::world::World;

impl World {
    pub(crate) fn place(&mut self, c: usize, pipeline: usize, placement: Placement) {
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
    pub(crate) fn driver_next(&mut self, c: usize, p: usize) {
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
    pub(crate) fn connect(&mut self, c: usize, p: usize, epoch: u64, steps: usize) {
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

    pub(crate) fn connected(&mut self, c: usize, p: usize, epoch: u64, step: usize, answer: Result<Response, String>) {
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
                let deeds =
                    self.coordinators[c].reign.as_mut().expect("it reigns").drivers[p].core.up(now, epoch, pools, true);
                self.deeds(c, p, deeds);
                self.caught_up(c, p);
            }
            (Ok(_), step) => self.connect(c, p, epoch, step),
        }
    }

    /// An epoch is over; the conductor hears why, unless it was him.
    pub(crate) fn driver_over(&mut self, c: usize, p: usize, lost: Option<(String, Option<usize>)>) {
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
    pub(crate) fn caught_up(&mut self, c: usize, p: usize) {
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

    pub(crate) fn command(&mut self, c: usize, p: usize, command: Command) {
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
    pub(crate) fn evacuate(&mut self, c: usize, from: usize) {
        let Some(reign) = &self.coordinators[c].reign else { return };
        if reign.drivers.iter().enumerate().any(|(i, d)| i != from && d.proven && d.ready) {
            self.command(c, from, Command::Evacuate);
        }
    }

    pub(crate) fn evacuated(&mut self, c: usize, from: usize) {
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

    pub(crate) fn deeds(&mut self, c: usize, p: usize, deeds: Vec<Deed>) {
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
    pub(crate) fn told(&mut self, c: usize, action: Action) {
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
    pub(crate) fn encode(&mut self, c: usize, fence: u64, unit: UnitId) {
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
}
