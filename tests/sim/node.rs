//! A stage worker: the real core, fence and order of frames, with the service's rim around them in simulated time.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use janus_cluster::{Member, Role};
use janus_wire::frame;
use janus_wire::v1::{Frame, FrameBody};
use janus_worker::stage::{Applied, Features, Fence, Order, StageCore};

use crate::network::{Event, Host, MS, Message, Process, Request, Response, SECOND, Then, Time};
use crate::toy::{HIDDEN, LAYERS, NUMERICS, Toy, features};
use crate::world::World;

pub(crate) const SLOTS: usize = 4;
/// A lease lasts so long, and is renewed three times as often.
pub(crate) const TTL: Time = 5 * SECOND;
const NEXT: Time = 5 * SECOND;

/// A stage's place in one epoch.
struct Place {
    pipeline: u64,
    epoch: u64,
    over: bool,
    last: bool,
    /// From the previous node, to the next one, and to the coordinator.
    incoming: Option<u64>,
    next: Option<u64>,
    results: Option<u64>,
    order: Order,
    sent: u64,
}

/// A configuration that waits for the next stage.
struct Coming {
    call: u64,
    pipeline: u64,
    epoch: u64,
}

pub(crate) struct Node {
    pub(crate) process: Process,
    pub(crate) name: String,
    pub(crate) numerics: &'static str,
    pub(crate) memory: u64,
    pub(crate) ms_per_layer: f64,
    fence: Fence,
    newest_fence: u64,
    features: Arc<Features>,
    pub(crate) held: Range<usize>,
    pub(crate) core: Option<StageCore<Toy>>,
    prepared: Option<Toy>,
    place: Option<Place>,
    /// One reconfiguration at a time.
    turns: VecDeque<u64>,
    requests: Vec<(u64, Request)>,
    coming: Option<Coming>,
    /// Frames that were checked, with their links, and until when they are computed.
    jobs: VecDeque<(u64, FrameBody, Vec<u8>)>,
    compute_free: Time,
    /// Alive, but stuck until then.
    pub(crate) stuck: Time,
    pub(crate) draining: bool,
    pub(crate) failing_loads: u64,
    /// Epoch and sequence of the frame applied last.
    applied: Option<(u64, u64)>,
}

impl Node {
    pub(crate) fn new(name: String, numerics: &'static str, memory: u64, ms_per_layer: f64) -> Self {
        Node {
            process: Process::default(),
            name,
            numerics,
            memory,
            ms_per_layer,
            fence: Fence::default(),
            newest_fence: 0,
            features: Arc::new(Features::new(1 << 20)),
            held: 0..0,
            core: None,
            prepared: None,
            place: None,
            turns: VecDeque::new(),
            requests: Vec::new(),
            coming: None,
            jobs: VecDeque::new(),
            compute_free: 0,
            stuck: 0,
            draining: false,
            failing_loads: 0,
            applied: None,
        }
    }

    pub(crate) fn member(&self) -> Member {
        Member {
            id: self.name.clone(),
            incarnation: self.process.incarnation.to_string(),
            // Whoever computes something else is good for everything.
            roles: match self.numerics == NUMERICS[0] {
                true => vec![Role::Stage],
                false => vec![Role::Stage, Role::Encoder, Role::Decoder],
            },
            address: self.name.clone(),
            memory_bytes: self.memory,
            ms_per_layer: self.ms_per_layer,
            model: "toy".to_owned(),
            numerics: self.numerics.to_owned(),
            layers: (!self.held.is_empty()).then_some([self.held.start, self.held.end]),
            draining: self.draining,
            ..Member::default()
        }
    }

    /// Whether a slot is open in a place that is not over.
    pub(crate) fn open_slots(&self) -> usize {
        let serving = self.place.as_ref().is_some_and(|p| !p.over);
        self.core.as_ref().filter(|_| serving).map_or(0, StageCore::open_slots)
    }

    fn enter(&mut self, epoch: u64) -> Result<(), String> {
        self.fence.enter(epoch).map_err(|e| e.to_string())?;
        self.newest_fence = self.newest_fence.max(epoch >> 32);
        Ok(())
    }
}

impl World {
    pub(crate) fn start_node(&mut self, n: usize) {
        let old = &self.nodes[n];
        if old.process.alive {
            return;
        }
        let mut new = Node::new(old.name.clone(), old.numerics, old.memory, old.ms_per_layer);
        new.process.incarnation = old.process.incarnation + 1;
        new.process.alive = true;
        self.nodes[n] = new;
        self.after(200 * MS, Host::Node(n), Event::Round);
    }

    pub(crate) fn node_event(&mut self, n: usize, event: Event) {
        match event {
            Event::Call(call, request) => self.asked_of_node(n, call, request),
            Event::Compute => self.compute(n),
            Event::Prepared(call, layers) => self.prepared(n, call, layers),
            Event::Round => self.node_round(n),
            _ => {}
        }
        if let Some(core) = &self.nodes[n].core {
            assert_eq!(core.violated(), None);
        }
    }

    /// Renews the lease; a drained node leaves when its layers have another place.
    fn node_round(&mut self, n: usize) {
        self.after(TTL / 3, Host::Node(n), Event::Round);
        if self.cut(Host::Node(n), Host::Store) {
            return;
        }
        let (name, member) = (self.nodes[n].name.clone(), self.nodes[n].member());
        if self.nodes[n].draining && self.nodes[n].held.is_empty() {
            self.store.remove(&name);
            self.kill(Host::Node(n));
            return;
        }
        self.store.register(member, self.now + TTL);
    }

    fn asked_of_node(&mut self, n: usize, call: u64, request: Request) {
        let node = &mut self.nodes[n];
        let epoch = match &request {
            Request::Prepare { epoch, .. } | Request::Configure { epoch, .. } => Some(*epoch),
            Request::Logs { epoch } | Request::Drain { epoch } => Some(*epoch),
            _ => None,
        };
        if let Some(Err(fenced)) = epoch.map(|epoch| node.enter(epoch)) {
            return self.answer(call, Err(fenced));
        }
        match request {
            Request::Describe => {
                // The question goes through the compute thread.
                if node.stuck <= self.now {
                    self.answer(call, Ok(Response::Done));
                }
            }
            Request::Drain { .. } => {
                node.draining = true;
                self.answer(call, Ok(Response::Done));
            }
            Request::Logs { .. } => {
                let logs = node.core.as_ref().map(StageCore::logs).unwrap_or_default();
                self.answer(call, Ok(Response::Logs(logs)));
            }
            Request::PutFeatures { handle, rows, layers } => {
                let fits = layers == node.held && layers.start == 0;
                if fits {
                    node.features.put(&handle, features(&handle, rows));
                }
                self.answer(call, if fits { Ok(Response::Done) } else { Err("other layers".to_owned()) });
            }
            Request::Link { pipeline, epoch, layers } => self.link(n, call, pipeline, epoch, layers),
            Request::Results { pipeline, epoch, layers } => self.results(n, call, pipeline, epoch, layers),
            Request::Prepare { .. } | Request::Configure { .. } => {
                node.requests.push((call, request));
                node.turns.push_back(call);
                if node.turns.len() == 1 {
                    self.turn(n);
                }
            }
        }
    }

    /// The next reconfiguration begins.
    fn turn(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(&call) = node.turns.front() else { return };
        let at = node.requests.iter().position(|(id, _)| *id == call).expect("its request");
        let (_, request) = node.requests.remove(at);
        let done = match request {
            Request::Prepare { layers, epoch } => self.prepare(n, call, layers, epoch),
            Request::Configure { pipeline, epoch, layers, next } => self.configure(n, call, pipeline, epoch, layers, next),
            _ => Some(Ok(())),
        };
        if let Some(done) = done {
            self.turn_over(n, call, done);
        }
    }

    fn turn_over(&mut self, n: usize, call: u64, done: Result<(), String>) {
        self.answer(call, done.map(|()| Response::Done));
        self.nodes[n].turns.pop_front();
        self.turn(n);
    }

    fn prepare(&mut self, n: usize, call: u64, layers: Range<usize>, epoch: u64) -> Option<Result<(), String>> {
        let node = &mut self.nodes[n];
        if let Err(fenced) = node.enter(epoch) {
            return Some(Err(fenced));
        }
        self.changes(n, epoch);
        let node = &mut self.nodes[n];
        if layers.is_empty() {
            if node.place.as_ref().is_some_and(|place| epoch < place.epoch) {
                return Some(Err("an old order".to_owned()));
            }
            self.end_place(n);
            let node = &mut self.nodes[n];
            (node.place, node.prepared, node.core, node.held) = (None, None, None, 0..0);
            return Some(Ok(()));
        }
        if layers == node.held {
            return Some(Ok(()));
        }
        let time = self.dice.within(10 * MS..400 * MS) * layers.len() as u64;
        self.after(time, Host::Node(n), Event::Prepared(call, layers));
        None
    }

    fn prepared(&mut self, n: usize, call: u64, layers: Range<usize>) {
        let node = &mut self.nodes[n];
        if node.failing_loads > 0 {
            node.failing_loads -= 1;
            return self.turn_over(n, call, Err("a tensor is damaged".to_owned()));
        }
        node.prepared = Some(Toy::new(node.numerics, layers));
        self.turn_over(n, call, Ok(()));
    }

    /// A coordinator changes something here: none may do that after a newer one came.
    fn changes(&self, n: usize, epoch: u64) {
        assert!(epoch >> 32 >= self.nodes[n].newest_fence, "a fenced coordinator changes {}", self.nodes[n].name);
    }

    fn configure(
        &mut self,
        n: usize,
        call: u64,
        pipeline: u64,
        epoch: u64,
        layers: Range<usize>,
        next: Option<(usize, Range<usize>)>,
    ) -> Option<Result<(), String>> {
        let node = &mut self.nodes[n];
        if let Err(fenced) = node.enter(epoch) {
            return Some(Err(fenced));
        }
        if node.place.as_ref().is_some_and(|place| epoch <= place.epoch) {
            return Some(Err("an old epoch".to_owned()));
        }
        self.changes(n, epoch);
        self.end_place(n);
        let node = &mut self.nodes[n];
        if node.held != layers {
            match node.prepared.take_if(|toy| toy_layers(toy) == layers) {
                Some(toy) => (node.core, node.held) = (Some(StageCore::new(toy, SLOTS)), layers.clone()),
                None => return Some(Err(format!("it holds {:?}, not {layers:?}", node.held))),
            }
        }
        if let Some(core) = &mut node.core {
            core.begin(pipeline, epoch);
        }
        match next {
            None => {
                self.placed(n, pipeline, epoch, None);
                Some(Ok(()))
            }
            Some((to, layers)) => {
                node.coming = Some(Coming { call, pipeline, epoch });
                self.call(Host::Node(n), to, Request::Link { pipeline, epoch, layers }, NEXT, Then::Next);
                None
            }
        }
    }

    /// The answer of the next stage.
    pub(crate) fn next_connected(&mut self, n: usize, answer: Result<Response, String>) {
        let Some(Coming { call, pipeline, epoch }) = self.nodes[n].coming.take() else { return };
        let done = match answer {
            Ok(Response::Stream(stream)) => {
                self.placed(n, pipeline, epoch, Some(stream));
                Ok(())
            }
            Ok(_) => Err("no stream".to_owned()),
            Err(reason) => Err(reason),
        };
        self.turn_over(n, call, done);
    }

    fn placed(&mut self, n: usize, pipeline: u64, epoch: u64, next: Option<u64>) {
        let last = next.is_none();
        let order = Order::new(pipeline, epoch);
        let place = Place { pipeline, epoch, over: false, last, incoming: None, next, results: None, order, sent: 0 };
        self.nodes[n].place = Some(place);
        // The link may have ended while its answer was on the way.
        if next.is_some_and(|id| !self.network.streams.get(&id).is_some_and(|s| s.open())) {
            self.end_place(n);
        }
    }

    /// Ends every stream of a place.
    fn end_place(&mut self, n: usize) {
        let Some(place) = self.nodes[n].place.as_mut() else { return };
        place.over = true;
        let streams = [place.incoming, place.next, place.results];
        streams.into_iter().flatten().for_each(|id| self.close(id, Host::Node(n)));
    }

    fn joins(&self, n: usize, pipeline: u64, epoch: u64, layers: &Range<usize>) -> Result<(), String> {
        let node = &self.nodes[n];
        let place = node.place.as_ref().ok_or("no place yet")?;
        match node.held == *layers && (place.pipeline, place.epoch) == (pipeline, epoch) && !place.over {
            true => Ok(()),
            false => Err("another place".to_owned()),
        }
    }

    fn link(&mut self, n: usize, call: u64, pipeline: u64, epoch: u64, layers: Range<usize>) {
        let Some((host, incarnation)) = self.caller(call) else { return };
        let free = self.nodes[n].place.as_ref().is_some_and(|place| place.incoming.is_none());
        match self.joins(n, pipeline, epoch, &layers) {
            Err(reason) => self.answer(call, Err(reason)),
            Ok(()) if !free => self.answer(call, Err("its link is taken".to_owned())),
            Ok(()) => {
                let me = (Host::Node(n), self.nodes[n].process.incarnation);
                let stream = self.stream((host, incarnation), me);
                if let Some(place) = &mut self.nodes[n].place {
                    place.incoming = Some(stream);
                }
                self.answer(call, Ok(Response::Stream(stream)));
            }
        }
    }

    fn results(&mut self, n: usize, call: u64, pipeline: u64, epoch: u64, layers: Range<usize>) {
        let Some((host, incarnation)) = self.caller(call) else { return };
        let free = self.nodes[n].place.as_ref().is_some_and(|place| place.last && place.results.is_none());
        match self.joins(n, pipeline, epoch, &layers) {
            Err(reason) => self.answer(call, Err(reason)),
            Ok(()) if !free => self.answer(call, Err("no results to give".to_owned())),
            Ok(()) => {
                let me = (Host::Node(n), self.nodes[n].process.incarnation);
                let stream = self.stream(me, (host, incarnation));
                if let Some(place) = &mut self.nodes[n].place {
                    place.results = Some(stream);
                }
                self.answer(call, Ok(Response::Stream(stream)));
            }
        }
    }

    pub(crate) fn node_stream_ended(&mut self, n: usize, id: u64) {
        let mine = |place: &&Place| [place.incoming, place.next, place.results].contains(&Some(id));
        if self.nodes[n].place.as_ref().filter(mine).is_some() {
            self.end_place(n);
        }
    }

    pub(crate) fn frame_came(&mut self, n: usize, id: u64, frame: &Frame) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let Some(place) = node.place.as_mut().filter(|place| place.incoming == Some(id) && !place.over) else { return };
        match place.order.open(frame) {
            Ok(body) => {
                let rows: u64 = body.units.iter().map(|unit| u64::from(unit.positions)).sum();
                let cost = 200 + 20 * rows;
                node.compute_free = node.compute_free.max(now) + cost;
                let delay = node.compute_free - now;
                node.jobs.push_back((id, body, frame.activations.to_vec()));
                self.after(delay, Host::Node(n), Event::Compute);
            }
            Err(_) => self.end_place(n),
        }
    }

    /// The compute thread comes to a frame that was checked when it came; its place may be over by now.
    fn compute(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.stuck > self.now {
            let delay = node.stuck - self.now;
            return self.after(delay, Host::Node(n), Event::Compute);
        }
        let Some((id, body, activations)) = node.jobs.pop_front() else { return };
        let (epoch, sequence, place_epoch) = (body.epoch, body.sequence, node.place.as_ref().map(|p| p.epoch));
        let applied = match &mut node.core {
            Some(core) => core.apply(body, &activations, &node.features).map_err(|e| e.to_string()),
            None => Err("no layers".to_owned()),
        };
        let ours = node.place.as_ref().is_some_and(|place| place.incoming == Some(id) && !place.over);
        let Applied { mut body, rows, result } = match applied {
            Ok(applied) => applied,
            Err(_) if ours => return self.end_place(n),
            Err(_) => return,
        };
        let before = node.applied.replace((epoch, sequence));
        assert!(before < Some((epoch, sequence)), "{} applied frame {sequence} of {epoch} after {before:?}", node.name);
        let first_of_epoch = before.is_none_or(|(e, _)| e != epoch);
        assert!(sequence == if first_of_epoch { 0 } else { before.map_or(0, |(_, s)| s + 1) }, "a frame is missing");
        assert!(place_epoch.is_none_or(|e| e <= epoch), "an old frame was applied");
        assert_eq!(rows.len() % HIDDEN, 0);
        let Some(place) = node.place.as_mut().filter(|_| ours) else { return };
        let number = place.sent;
        place.sent += 1;
        match (place.next, place.results, result) {
            (Some(next), _, _) => {
                body.sequence = number;
                self.send(next, Message::Frame(frame::seal(&body, frame::to_bytes(&rows))));
            }
            (None, Some(results), Some(mut result)) => {
                result.sequence = number;
                self.send(results, Message::Result(result));
            }
            (_, _, result) => assert!(result.is_some(), "a last stage without heads"),
        }
    }
}

fn toy_layers(toy: &Toy) -> Range<usize> {
    use janus_worker::stage::Compute;
    assert!(toy.layers().end <= LAYERS);
    toy.layers()
}

impl Node {
    /// For a person.
    pub(crate) fn describe(&self) -> String {
        let place = self.place.as_ref().map(|p| (p.pipeline, p.epoch & 0xffff_ffff, p.over));
        let Process { alive, frozen, .. } = &self.process;
        format!(
            "{} alive {alive} frozen {frozen} memory {} held {:?} place {place:?} turns {} draining {} slots {}",
            self.name,
            self.memory,
            self.held,
            self.turns.len(),
            self.draining,
            self.open_slots()
        )
    }
}
