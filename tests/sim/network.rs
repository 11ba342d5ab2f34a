//! Processes, calls and streams between them, and a clock that jumps from event to event.
//!
//! A call may arrive late, at a process that was started again, or never. A stream is ordered, as TCP is: what crosses a
//! cut waits for it to heal, and whoever hears nothing for three seconds ends the stream on its own side.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use janus_wire::v1::{Frame, StepResult, TokenLog};

use crate::world::World;

/// Microseconds since the beginning.
pub(crate) type Time = u64;
pub(crate) const MS: Time = 1_000;
pub(crate) const SECOND: Time = 1_000_000;
/// HTTP/2 pings: a silent peer is given up after this.
const SILENCE: Time = 3 * SECOND;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    Node(usize),
    Coordinator(usize),
    Store,
}

/// One process; a new incarnation knows nothing of the one before.
#[derive(Debug, Default)]
pub(crate) struct Process {
    pub(crate) alive: bool,
    pub(crate) frozen: bool,
    pub(crate) incarnation: u64,
    /// What came while it was frozen.
    inbox: VecDeque<Event>,
}

#[derive(Debug, Clone)]
pub(crate) enum Request {
    Describe,
    Prepare { layers: Range<usize>, epoch: u64 },
    Configure { pipeline: u64, epoch: u64, layers: Range<usize>, next: Option<(usize, Range<usize>)> },
    Link { pipeline: u64, epoch: u64, layers: Range<usize> },
    Results { pipeline: u64, epoch: u64, layers: Range<usize> },
    Logs { epoch: u64 },
    PutFeatures { handle: Vec<u8>, rows: usize, layers: Range<usize> },
    Drain { epoch: u64 },
}

#[derive(Debug, Clone)]
pub(crate) enum Response {
    Done,
    Stream(u64),
    Logs(Vec<TokenLog>),
}

/// What the caller does with an answer.
#[derive(Debug, Clone)]
pub(crate) enum Then {
    Asked(String),
    Loaded(String, Range<usize>),
    Logs(u64),
    /// The driver of this pipeline goes on connecting this epoch.
    Connected(usize, u64, usize),
    Features(u64, u64),
    /// A stage has its next one.
    Next,
    Nothing,
}

#[derive(Debug, Clone)]
pub(crate) enum Message {
    Frame(Frame),
    Result(StepResult),
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    Call(u64, Request),
    Answer(u64, Result<Response, String>),
    Message(u64, Message),
    End(u64),
    /// A stage's compute thread comes to its next frame.
    Compute,
    /// A stage's turn to configure is over.
    Prepared(u64, Range<usize>),
    /// A process looks after its lease.
    Round,
    Tick,
    Parked(u64, usize),
    Encode(u64, u64),
}

/// What nobody in particular does.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    Watch(u64),
    Overdue(u64),
    Sweep,
    Client(usize),
    Blow,
    /// Nothing breaks any more: what is needed comes back.
    Room,
    Heal(Host, Host),
    StoreBack,
    Start(Host),
    Thaw(Host, u64),
}

#[derive(Debug, Clone)]
pub(crate) enum Due {
    To(Host, u64, Event),
    Of(Fate),
}

pub(crate) struct Call {
    from: (Host, u64),
    to: usize,
    then: Then,
}

#[derive(Debug)]
pub(crate) struct Stream {
    /// Data flows from the first to the second; an end may come from either.
    ends: [(Host, u64, bool); 2],
    last: Time,
    cut_off: VecDeque<Message>,
    overtaken: Option<Message>,
}

impl Stream {
    /// Nobody has ended it.
    pub(crate) fn open(&self) -> bool {
        self.ends.iter().all(|(.., open)| *open)
    }
}

/// What is done to the next message of any stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mischief {
    Duplicate,
    Overtake,
    Damage,
}

#[derive(Default)]
pub(crate) struct Network {
    pub(crate) queue: BTreeMap<(Time, u64), Due>,
    number: u64,
    pub(crate) calls: BTreeMap<u64, Call>,
    pub(crate) streams: BTreeMap<u64, Stream>,
    pub(crate) cuts: BTreeSet<(Host, Host)>,
    pub(crate) store_away: bool,
    pub(crate) mischief: Option<Mischief>,
}

impl World {
    pub(crate) fn process(&self, host: Host) -> &Process {
        match host {
            Host::Node(i) => &self.nodes[i].process,
            Host::Coordinator(i) => &self.coordinators[i].process,
            Host::Store => &self.store.process,
        }
    }

    pub(crate) fn process_mut(&mut self, host: Host) -> &mut Process {
        match host {
            Host::Node(i) => &mut self.nodes[i].process,
            Host::Coordinator(i) => &mut self.coordinators[i].process,
            Host::Store => &mut self.store.process,
        }
    }

    fn number(&mut self) -> u64 {
        self.network.number += 1;
        self.network.number
    }

    fn due(&mut self, at: Time, due: Due) {
        let number = self.number();
        self.network.queue.insert((at, number), due);
    }

    pub(crate) fn fate(&mut self, delay: Time, fate: Fate) {
        self.due(self.now + delay, Due::Of(fate));
    }

    /// Something happens to this incarnation of a process, and to no other.
    pub(crate) fn after(&mut self, delay: Time, host: Host, event: Event) {
        let incarnation = self.process(host).incarnation;
        self.due(self.now + delay, Due::To(host, incarnation, event));
    }

    /// Mostly a millisecond, at times a third of a second.
    pub(crate) fn delay(&mut self) -> Time {
        match self.dice.chance(2) {
            true => self.dice.within(MS..300 * MS),
            false => self.dice.within(100..2 * MS),
        }
    }

    pub(crate) fn cut(&self, a: Host, b: Host) -> bool {
        self.network.cuts.contains(&(a.min(b), a.max(b)))
            || (self.network.store_away && (a == Host::Store || b == Host::Store))
    }

    /// Delivers an event unless its receiver is gone; a frozen one finds it later.
    pub(crate) fn deliver(&mut self, host: Host, incarnation: u64, event: Event) {
        let process = self.process_mut(host);
        if !process.alive || process.incarnation != incarnation {
            return;
        }
        if process.frozen {
            process.inbox.push_back(event);
            return;
        }
        match event {
            Event::Message(stream, message) => self.arrive(stream, message),
            Event::End(stream) => self.ended(stream, host),
            Event::Answer(call, answer) => {
                if let Some(call) = self.network.calls.remove(&call) {
                    match host {
                        Host::Node(i) => self.next_connected(i, answer),
                        Host::Coordinator(i) => self.answered(i, call.then, answer),
                        Host::Store => {}
                    }
                }
            }
            event => match host {
                Host::Node(i) => self.node_event(i, event),
                Host::Coordinator(i) => self.coordinator_event(i, event),
                Host::Store => {}
            },
        }
    }

    /// Asks a node; `then` is done with its answer, or with an error when `patience` is over.
    pub(crate) fn call(&mut self, from: Host, to: usize, request: Request, patience: Time, then: Then) {
        let id = self.number();
        self.network.calls.insert(id, Call { from: (from, self.process(from).incarnation), to, then });
        let delay = self.delay();
        self.due(self.now + delay, Due::To(Host::Node(to), u64::MAX, Event::Call(id, request)));
        self.fate(patience, Fate::Overdue(id));
        self.fate(SILENCE, Fate::Watch(id));
    }

    /// A call comes to a machine: its process may be another one than was meant.
    pub(crate) fn called(&mut self, node: usize, id: u64, request: Request) {
        let Some(call) = self.network.calls.get(&id) else { return };
        let from = call.from.0;
        if self.cut(from, Host::Node(node)) {
            self.due(self.now + 100 * MS, Due::To(Host::Node(node), u64::MAX, Event::Call(id, request)));
            return;
        }
        let incarnation = self.process(Host::Node(node)).incarnation;
        match self.process(Host::Node(node)).alive {
            true => self.deliver(Host::Node(node), incarnation, Event::Call(id, request)),
            false => self.answer(id, Err("connection refused".to_owned())),
        }
    }

    pub(crate) fn caller(&self, id: u64) -> Option<(Host, u64)> {
        self.network.calls.get(&id).map(|call| call.from)
    }

    pub(crate) fn answer(&mut self, id: u64, answer: Result<Response, String>) {
        let Some((host, incarnation)) = self.caller(id) else { return };
        let delay = self.delay();
        self.due(self.now + delay, Due::To(host, incarnation, Event::Answer(id, answer)));
    }

    fn give_up(&mut self, id: u64, reason: &str) {
        let Some((host, incarnation)) = self.caller(id) else { return };
        self.deliver(host, incarnation, Event::Answer(id, Err(reason.to_owned())));
    }

    /// A stream whose data flows `from` one `to` the other.
    pub(crate) fn stream(&mut self, from: (Host, u64), to: (Host, u64)) -> u64 {
        let id = self.number();
        let ends = [(from.0, from.1, true), (to.0, to.1, true)];
        let stream = Stream { ends, last: self.now, cut_off: VecDeque::new(), overtaken: None };
        self.network.streams.insert(id, stream);
        self.fate(SILENCE, Fate::Watch(id));
        id
    }

    pub(crate) fn send(&mut self, id: u64, mut message: Message) {
        if !self.network.streams.get(&id).is_some_and(|s| s.ends[0].2) {
            return;
        }
        let mischief = self.network.mischief.take();
        if let (Some(Mischief::Damage), Message::Frame(frame)) = (mischief, &mut message) {
            frame.crc32c ^= 1 << self.dice.roll(32);
        }
        let overtaken = self.network.streams.get_mut(&id).and_then(|s| s.overtaken.take());
        if mischief == Some(Mischief::Overtake) {
            if let Some(stream) = self.network.streams.get_mut(&id) {
                stream.overtaken = Some(message);
            }
        } else {
            if mischief == Some(Mischief::Duplicate) {
                self.put(id, message.clone());
            }
            self.put(id, message);
        }
        if let Some(message) = overtaken {
            self.put(id, message);
        }
    }

    fn put(&mut self, id: u64, message: Message) {
        let delay = self.delay();
        let now = self.now;
        let Some(stream) = self.network.streams.get_mut(&id) else { return };
        stream.last = (now + delay).max(stream.last + 1);
        let (host, incarnation, _) = stream.ends[1];
        let at = stream.last;
        self.due(at, Due::To(host, incarnation, Event::Message(id, message)));
    }

    fn arrive(&mut self, id: u64, message: Message) {
        let Some(stream) = self.network.streams.get(&id) else { return };
        let [(from, ..), (to, _, open)] = stream.ends;
        if !open {
            return;
        }
        if self.cut(from, to) || !stream.cut_off.is_empty() {
            if let Some(stream) = self.network.streams.get_mut(&id) {
                stream.cut_off.push_back(message);
            }
            return;
        }
        match (to, message) {
            (Host::Node(i), Message::Frame(frame)) => self.frame_came(i, id, &frame),
            (Host::Coordinator(i), Message::Result(result)) => self.result_came(i, id, result),
            _ => {}
        }
    }

    /// What waited for this cut to heal goes on.
    pub(crate) fn healed(&mut self) {
        let ids: Vec<u64> = self.network.streams.keys().copied().collect();
        for id in ids {
            let Some(stream) = self.network.streams.get(&id) else { continue };
            if !self.cut(stream.ends[0].0, stream.ends[1].0) {
                let waiting = self.network.streams.get_mut(&id).map(|s| std::mem::take(&mut s.cut_off));
                waiting.into_iter().flatten().for_each(|message| self.put(id, message));
            }
        }
    }

    /// `host` ends a stream on its side; the other one hears of it.
    pub(crate) fn close(&mut self, id: u64, host: Host) {
        let delay = self.delay();
        let now = self.now;
        let Some(stream) = self.network.streams.get_mut(&id) else { return };
        let mine = usize::from(stream.ends[1].0 == host);
        stream.ends[mine].2 = false;
        let (other, incarnation, open) = stream.ends[1 - mine];
        let at = (now + delay).max(stream.last + 1);
        if open {
            self.due(at, Due::To(other, incarnation, Event::End(id)));
        }
    }

    fn ended(&mut self, id: u64, host: Host) {
        let Some(stream) = self.network.streams.get_mut(&id) else { return };
        let mine = usize::from(stream.ends[1].0 == host);
        if !std::mem::replace(&mut stream.ends[mine].2, false) {
            return;
        }
        match host {
            Host::Node(i) => self.node_stream_ended(i, id),
            Host::Coordinator(i) => self.driver_stream_ended(i, id),
            Host::Store => {}
        }
    }

    fn silent(&self, a: Host, b: Host) -> bool {
        let deaf = |host: Host| self.process(host).frozen || !self.process(host).alive;
        self.cut(a, b) || deaf(a) || deaf(b)
    }

    /// Looks whether a stream's or a call's other side was silent for too long.
    pub(crate) fn watch(&mut self, id: u64) {
        if let Some(call) = self.network.calls.get(&id) {
            let ((from, _), to) = (call.from, Host::Node(call.to));
            match self.silent(from, to) {
                true => self.give_up(id, "the connection is silent"),
                false => self.fate(SILENCE, Fate::Watch(id)),
            }
            return;
        }
        let Some(stream) = self.network.streams.get(&id) else { return };
        let ends = stream.ends;
        if ends.iter().all(|(.., open)| !open) {
            self.network.streams.remove(&id);
            return;
        }
        if self.silent(ends[0].0, ends[1].0) {
            for (host, incarnation, _) in ends {
                self.deliver(host, incarnation, Event::End(id));
            }
        }
        self.fate(SILENCE, Fate::Watch(id));
    }

    pub(crate) fn overdue(&mut self, id: u64) {
        self.give_up(id, "it does not answer");
    }

    /// The process is gone, and everybody who is connected to it sees that.
    pub(crate) fn kill(&mut self, host: Host) {
        let process = self.process_mut(host);
        (process.alive, process.frozen) = (false, false);
        process.incarnation += 1;
        process.inbox.clear();
        let streams: Vec<u64> =
            self.network.streams.iter().filter(|(_, s)| s.ends.iter().any(|e| e.0 == host)).map(|(id, _)| *id).collect();
        streams.into_iter().for_each(|id| self.close(id, host));
        let to = |call: &Call| Host::Node(call.to) == host;
        let calls: Vec<u64> = self.network.calls.iter().filter(|(_, c)| to(c)).map(|(id, _)| *id).collect();
        calls.into_iter().for_each(|id| self.answer(id, Err("the connection broke".to_owned())));
        self.network.calls.retain(|_, call| call.from.0 != host);
    }

    pub(crate) fn freeze(&mut self, host: Host, time: Time) {
        let process = self.process_mut(host);
        if process.alive && !process.frozen {
            process.frozen = true;
            let incarnation = process.incarnation;
            self.fate(time, Fate::Thaw(host, incarnation));
        }
    }

    /// It goes on as if nothing had happened, with everything that came meanwhile.
    pub(crate) fn thaw(&mut self, host: Host, incarnation: u64) {
        let process = self.process_mut(host);
        if process.incarnation != incarnation || !process.frozen {
            return;
        }
        process.frozen = false;
        for event in std::mem::take(&mut process.inbox) {
            self.deliver(host, incarnation, event);
        }
    }
}
