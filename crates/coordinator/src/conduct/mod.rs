//! Who runs which layers, and what happens when one of them is lost: a pure state machine. Its rim ([`run`]) asks nodes,
//! loads layers, and tells the drivers.
//!
//! A pipeline is **placed** (its driver has a placement), and there may be a **next** plan whose nodes are loading. A
//! loss is **checked** first: its nodes are asked whether they answer, because a broken stream does not say who broke
//! it. Who does not answer is suspect for a while and gets no layers. Then the same path serves a loss, a newcomer, a
//! drain and the first start: plan, load what is missing, place under a new epoch; the driver replays its token logs.

mod arrange;
mod other;
pub mod run;
mod state;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use janus_cluster::plan::{self, ModelSizes, Options, PipelinePlan, Problem};
use janus_cluster::{Member, Role};

use crate::pipeline::{Placement, StageNode};
use arrange::Question;
pub use other::GIVEN_UP;
use state::Pipeline;
pub use state::Standing;

/// A node that did not answer gets no layers for this long; then it is asked again.
pub const SUSPECT: Duration = Duration::from_secs(5);
/// Two neighbours that could not connect are kept apart for this long.
const APART: Duration = Duration::from_secs(30);
/// Members come in groups: before a running pipeline is rearranged, nobody may have come or gone for this long.
pub const SETTLE: Duration = Duration::from_secs(2);
/// So long are the pipelines and stages that were asked for waited for; then fewer will do.
pub const ENOUGH: Duration = Duration::from_secs(10);
/// Time since the conductor began.
pub type Now = Duration;

/// What is asked of the placement.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// Pipelines.
    pub pipelines: usize,
    /// Stages of each, if there are as many nodes; `None`: as many as help.
    pub stages: Option<usize>,
    /// Nodes that stand by.
    pub spares: usize,
    /// Positions of KV memory that every stage keeps room for.
    pub kv_positions: usize,
    /// Members of other numerics or models are left alone.
    pub numerics: String,
    /// Numerics ids to go over to when nothing of ours can run any more, with the model's sizes under each; if there are
    /// none, units wait.
    pub others: BTreeMap<String, ModelSizes>,
    /// Digest of the model, in hex.
    pub model: String,
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// All members, as they are now.
    Members(BTreeMap<String, Member>),
    /// A canary went through.
    Ready {
        /// Which pipeline.
        pipeline: usize,
        /// Its epoch.
        epoch: u64,
    },
    /// A placement is over.
    Lost {
        /// Which pipeline.
        pipeline: usize,
        /// Its epoch.
        epoch: u64,
        /// Why.
        reason: String,
        /// The stage at which it showed, when it was being connected.
        stage: Option<usize>,
    },
    /// A node was asked whether it answers.
    Asked {
        /// Which.
        node: String,
        /// It did.
        answers: bool,
    },
    /// A node was asked to load layers.
    Loaded {
        /// Which.
        node: String,
        /// The layers.
        layers: Range<usize>,
        /// Why it could not.
        failure: Option<String>,
    },
    /// [`Action::Restart`] could not be written down: it is not to happen, unless it is still needed.
    NotRestarted,
    /// Time goes on.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Ask a node whether it answers; [`Event::Asked`] follows in any case.
    Ask(String),
    /// Have a node load layers (none: let go of all); [`Event::Loaded`] follows in any case.
    Load(String, Range<usize>, u64),
    /// Tell the driver.
    Place(usize, Placement),
    /// Nobody can run this pipeline now: its units may go to another one.
    Parked(usize),
    /// Nothing is left that could run any pipeline, but there would be under this numerics id: everything is to begin again
    /// under it. A conductor says so once, unless [`Event::NotRestarted`] comes back.
    Restart(String),
}

/// The state machine.
pub struct Conductor {
    wishes: Wishes,
    sizes: ModelSizes,
    /// Upper half of every epoch.
    fence: u64,
    placements: u64,
    members: BTreeMap<String, Member>,
    changed: Now,
    /// Until when, and under which incarnation.
    suspects: BTreeMap<String, (Now, String)>,
    apart: BTreeMap<(String, String), Now>,
    asking: BTreeSet<String>,
    pipelines: Vec<Pipeline>,
    /// Something was placed before, here or under a predecessor.
    worked: bool,
    /// Since when nothing of our numerics could run, and whether that was said.
    hopeless: Option<Now>,
    restarting: bool,
    /// What nodes outside of the pipelines hold or load.
    preloaded: BTreeMap<String, (Range<usize>, bool)>,
    /// The latest questions to the planner.
    answers: VecDeque<(Question, Result<PipelinePlan, String>)>,
}

impl Conductor {
    /// Nothing is known yet. `fence` is the coordinator's fencing epoch.
    pub fn new(wishes: Wishes, sizes: ModelSizes, fence: u64) -> Self {
        Conductor {
            pipelines: (0..wishes.pipelines).map(|_| Pipeline::default()).collect(),
            wishes,
            sizes,
            fence,
            placements: 0,
            members: BTreeMap::new(),
            changed: Now::ZERO,
            suspects: BTreeMap::new(),
            apart: BTreeMap::new(),
            asking: BTreeSet::new(),
            worked: false,
            hopeless: None,
            restarting: false,
            preloaded: BTreeMap::new(),
            answers: VecDeque::new(),
        }
    }

    /// Goes on with the epochs of an earlier conductor under the same fence, which gave `placements` of them.
    pub fn after(mut self, placements: u64) -> Self {
        (self.placements, self.worked) = (placements, true);
        self
    }

    /// How many epochs were given under this fence.
    pub fn placements(&self) -> u64 {
        self.placements
    }

    /// Goes on with what a predecessor had planned, if its nodes are still there.
    pub fn inherit(&mut self, plans: Vec<PipelinePlan>) {
        self.worked |= !plans.is_empty();
        for (pipeline, plan) in self.pipelines.iter_mut().zip(plans) {
            (pipeline.inherited, pipeline.begun) = (Some(plan), true);
        }
    }

    /// What a successor should know.
    pub fn plans(&self) -> Vec<PipelinePlan> {
        self.pipelines.iter().filter_map(|p| p.previous().cloned()).collect()
    }

    /// Takes one event and says what to do.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Members(members) => self.members(now, members, &mut actions),
            Event::Ready { pipeline, epoch } => {
                if self.pipelines.get_mut(pipeline).is_some_and(|p| p.ready(epoch)) {
                    // Whoever waits for nodes may have found nobody ready to take its units.
                    let parked = (0..self.pipelines.len()).filter(|i| self.pipelines[*i].parked);
                    actions.extend(parked.map(Action::Parked));
                }
            }
            Event::Lost { pipeline, epoch, reason, stage } => self.lost(now, pipeline, epoch, reason, stage, &mut actions),
            Event::Asked { node, answers } => self.asked(now, &node, answers),
            Event::Loaded { node, layers, failure } => self.loaded(now, &node, layers, failure, &mut actions),
            Event::NotRestarted => self.restarting = false,
            Event::Tick => {}
        }
        self.forget(now, &mut actions);
        for pipeline in 0..self.pipelines.len() {
            self.arrange(now, pipeline, &mut actions);
        }
        self.stand_by(&mut actions);
        actions.extend(self.other_numerics(now).map(Action::Restart));
        debug_assert_eq!(self.violated(), None);
        actions
    }

    /// How each pipeline stands.
    pub fn standings(&self) -> Vec<Standing> {
        self.pipelines.iter().map(Pipeline::standing).collect()
    }

    /// What the planner would be asked for the whole cluster.
    pub fn question(&self) -> Problem {
        let nodes = self.members.values().filter(|m| self.fits(m) && !m.draining).map(|m| self.node(m)).collect();
        let options = Options {
            pipelines: Some(self.wishes.pipelines),
            stages: self.wishes.stages,
            spares: self.wishes.spares,
            kv_positions: self.wishes.kv_positions,
            numerics: Some(self.wishes.numerics.clone()),
            forbidden_nodes: self.suspects.keys().cloned().collect(),
            forbidden_links: self.apart.keys().cloned().collect(),
            ..Options::default()
        };
        Problem { model: self.sizes.clone(), nodes, options }
    }

    /// A member's state, in one word.
    pub fn state_of(&self, member: &Member) -> &'static str {
        let id = &member.id;
        if !self.fits(member) {
            return "foreign";
        }
        if self.suspects.contains_key(id) {
            return "suspect";
        }
        if member.draining {
            return "draining";
        }
        if self.pipelines.iter().any(|p| p.holds(id)) || member.roles.iter().any(|role| *role != Role::Stage) {
            return "serving";
        }
        if self.preloaded.get(id).is_some_and(|(layers, _)| !layers.is_empty()) { "spare" } else { "idle" }
    }

    /// What must hold between any two events; names the first violation.
    pub fn violated(&self) -> Option<&'static str> {
        let mut seen = BTreeSet::new();
        for pipeline in &self.pipelines {
            let Some(placed) = &pipeline.placed else { continue };
            if pipeline.is_running() && placed.placement.stages.iter().any(|stage| !seen.insert(&stage.node)) {
                return Some("a node is in two places");
            }
            let mut next = 0;
            for stage in &placed.placement.stages {
                if stage.layers.start != next || stage.layers.is_empty() {
                    return Some("layers are missing or doubled");
                }
                next = stage.layers.end;
            }
            if next != self.sizes.layers() {
                return Some("the last layers are missing");
            }
            if placed.placement.epoch >> 32 != self.fence {
                return Some("a placement without our fence");
            }
        }
        None
    }

    fn fits(&self, member: &Member) -> bool {
        member.numerics == self.wishes.numerics && member.model == self.wishes.model
    }

    fn members(&mut self, now: Now, members: BTreeMap<String, Member>, actions: &mut Vec<Action>) {
        let identities = |all: &BTreeMap<String, Member>| -> Vec<(String, String, bool)> {
            all.values().map(|m| (m.id.clone(), m.incarnation.clone(), m.draining)).collect()
        };
        if identities(&members) != identities(&self.members) {
            self.changed = now;
        }
        // A new process under an old name starts with a clean slate, and holds nothing.
        self.suspects.retain(|id, (_, incarnation)| members.get(id).is_some_and(|m| m.incarnation == *incarnation));
        let reborn = |id: &String| {
            let before = self.members.get(id).map(|m| &m.incarnation);
            members.get(id).map(|m| &m.incarnation) != before
        };
        self.preloaded.retain(|id, _| !reborn(id));
        // Whoever is gone from the store may well be alive, and only cut off from it: ask.
        let gone: Vec<String> = self.members.keys().filter(|id| !members.contains_key(*id)).cloned().collect();
        self.members = members;
        for id in gone {
            if self.pipelines.iter().any(|p| p.holds(&id)) {
                self.ask(id, actions);
            }
        }
    }

    fn ask(&mut self, node: String, actions: &mut Vec<Action>) {
        if self.asking.insert(node.clone()) {
            actions.push(Action::Ask(node));
        }
    }

    fn lost(
        &mut self,
        now: Now,
        pipeline: usize,
        epoch: u64,
        reason: String,
        stage: Option<usize>,
        actions: &mut Vec<Action>,
    ) {
        let Some(p) = self.pipelines.get_mut(pipeline) else { return };
        let Some(nodes) = p.lost(epoch, reason) else { return };
        // It showed at a stage that answers: then its link to the next one is at fault.
        if let Some(pair) = stage.and_then(|i| Some((nodes.get(i)?.clone(), nodes.get(i + 1)?.clone()))) {
            p.doubt = Some(pair);
        }
        p.since = now;
        for node in nodes {
            self.ask(node, actions);
        }
    }

    fn asked(&mut self, now: Now, node: &str, answers: bool) {
        self.asking.remove(node);
        if answers {
            self.suspects.remove(node);
        } else {
            let incarnation = self.members.get(node).map(|m| m.incarnation.clone()).unwrap_or_default();
            self.suspects.insert(node.to_owned(), (now + SUSPECT, incarnation));
            self.preloaded.remove(node);
        }
        for p in &mut self.pipelines {
            if !answers && p.next.as_ref().is_some_and(|next| next.plan.stages.iter().any(|s| s.node == node)) {
                p.next = None;
            }
            // Its driver has not noticed yet.
            if !answers && p.holds(node) && p.checking.is_empty() && !p.is_lost() {
                p.fail(format!("{node} does not answer"));
            }
            let sound = |(a, b): &(String, String)| !self.suspects.contains_key(a) && !self.suspects.contains_key(b);
            if p.checking.remove(node)
                && p.checking.is_empty()
                && let Some(pair) = p.doubt.take().filter(sound)
            {
                self.apart.insert(pair, now + APART);
            }
        }
    }

    fn loaded(&mut self, now: Now, node: &str, layers: Range<usize>, failure: Option<String>, actions: &mut Vec<Action>) {
        if let Some(failure) = failure {
            self.preloaded.remove(node);
            for p in &mut self.pipelines {
                if p.next.as_ref().is_some_and(|next| next.waiting.contains(node)) {
                    p.next = None;
                    p.reason = format!("{node} could not load layers {layers:?}: {failure}");
                }
            }
            let incarnation = self.members.get(node).map(|m| m.incarnation.clone()).unwrap_or_default();
            self.suspects.insert(node.to_owned(), (now + SUSPECT, incarnation));
            return;
        }
        if let Some((held, done)) = self.preloaded.get_mut(node)
            && *held == layers
        {
            *done = true;
        }
        for i in 0..self.pipelines.len() {
            let Some(next) = &mut self.pipelines[i].next else { continue };
            let wanted = next.plan.stages.iter().any(|s| s.node == node && Range::from(s.layers) == layers);
            if wanted && next.waiting.remove(node) && next.waiting.is_empty() {
                self.place(i, actions);
            }
        }
    }

    /// Everybody has loaded: the driver may have it.
    fn place(&mut self, i: usize, actions: &mut Vec<Action>) {
        let Some(next) = self.pipelines[i].next.take() else { return };
        let stage = |s: &plan::StagePlan| {
            let member = self.members.get(&s.node)?;
            Some(StageNode { node: s.node.clone(), address: member.address.clone(), layers: s.layers.into() })
        };
        let Some(stages) = next.plan.stages.iter().map(stage).collect::<Option<Vec<_>>>() else { return };
        let pools: BTreeSet<&str> = stages.iter().filter_map(|s| self.members.get(&s.node)).map(pool_of).collect();
        let placement = Placement { epoch: next.epoch, pools: pools.len().max(1), stages };
        for stage in &placement.stages {
            self.preloaded.remove(&stage.node);
        }
        self.pipelines[i].placed_as(next.plan, placement.clone());
        self.worked = true;
        actions.push(Action::Place(i, placement));
    }

    /// Suspects are asked again, and old quarrels forgotten.
    fn forget(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.apart.retain(|_, until| *until > now);
        let due: Vec<String> =
            self.suspects.iter().filter(|(_, (until, _))| *until <= now).map(|(node, _)| node.clone()).collect();
        for node in due {
            self.ask(node, actions);
        }
    }
}

/// Processes of one machine share its cores.
fn pool_of(member: &Member) -> &str {
    if member.machine.is_empty() { &member.id } else { &member.machine }
}
