//! Who runs which layers, and what happens when one of them is lost: a pure state machine. Its rim ([`run`]) asks nodes,
//! loads layers, and tells the drivers.
//!
//! A pipeline is **placed** (its driver has a placement), and there may be a **next** plan whose nodes are loading. A
//! loss is **checked** first: its nodes are asked whether they answer, because a broken stream does not say who broke
//! it. Who does not answer is suspect for a while and gets no layers. Then the same path serves a loss, a newcomer, a
//! drain and the first start: plan, load what is missing, place under a new epoch; the driver replays its token logs.

pub mod run;
mod state;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use janus_cluster::plan::{self, Layers, ModelSizes, NodeSpec, Options, PipelinePlan, Plan, Problem};
use janus_cluster::{Member, Role};

use crate::pipeline::{Placement, StageNode};
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
/// A running pipeline is rearranged only for a pace that is better by this factor.
const WORTH: f64 = 0.9;

/// Questions to the planner that are remembered: a few for each pipeline.
const ANSWERS: usize = 16;

/// Pause before a pipeline that was lost again and again is placed again: doubled each time, up to the second value.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

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
}

/// What the planner was asked.
#[derive(Debug, PartialEq)]
struct Question {
    problem: Problem,
    /// A plan that lost nodes.
    repair: Option<(PipelinePlan, Vec<String>)>,
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
            preloaded: BTreeMap::new(),
            answers: VecDeque::new(),
        }
    }

    /// Goes on with what a predecessor had planned, if its nodes are still there.
    pub fn inherit(&mut self, plans: Vec<PipelinePlan>) {
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
            Event::Tick => {}
        }
        self.forget(now, &mut actions);
        for pipeline in 0..self.pipelines.len() {
            self.arrange(now, pipeline, &mut actions);
        }
        self.stand_by(&mut actions);
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

    fn epoch(&mut self) -> u64 {
        self.placements += 1;
        (self.fence << 32) | self.placements
    }

    /// The planner's question, for the nodes that pipeline `i` may use.
    fn problem(&self, i: usize, stages: Option<usize>) -> Problem {
        let taken: BTreeSet<&String> =
            self.pipelines.iter().enumerate().filter(|(j, _)| *j != i).flat_map(|(_, p)| p.nodes()).collect();
        let usable = |m: &&Member| {
            m.roles.contains(&Role::Stage)
                && self.fits(m)
                && !m.draining
                && !taken.contains(&m.id)
                && !self.suspects.contains_key(&m.id)
        };
        let nodes = self.members.values().filter(usable).map(|m| self.node(m)).collect();
        // Others want their share as well.
        let options = Options {
            pipelines: Some(1),
            stages,
            max_stages: None,
            kv_positions: self.wishes.kv_positions,
            numerics: Some(self.wishes.numerics.clone()),
            forbidden_links: self.apart.keys().cloned().collect(),
            ..Options::default()
        };
        Problem { model: self.sizes.clone(), nodes, options }
    }

    fn node(&self, m: &Member) -> NodeSpec {
        // A pipeline that does not run may name a node that serves another one by now.
        let (running, others): (Vec<_>, Vec<_>) = self.pipelines.iter().partition(|p| p.is_running());
        let holds = running.into_iter().chain(others).find_map(|p| p.layers_of(&m.id));
        let preloaded = self.preloaded.get(&m.id).filter(|(layers, done)| *done && !layers.is_empty());
        NodeSpec {
            id: m.id.clone(),
            zone: m.zone.clone(),
            memory_bytes: m.memory_bytes,
            ms_per_layer: m.ms_per_layer.max(1e-6),
            ms_embed: 0.0,
            ms_head: m.ms_per_head.max(0.0),
            numerics: m.numerics.clone(),
            roles: m.roles.iter().filter_map(|role| planned(*role)).collect(),
            round_trips: m.round_trips.clone(),
            holds: holds.or(preloaded.map(|(layers, _)| layers.clone())).map(Layers::from),
            pool: Some(pool_of(m).to_owned()),
        }
    }

    /// Gives pipeline `i` what it should have.
    fn arrange(&mut self, now: Now, i: usize, actions: &mut Vec<Action>) {
        let p = &self.pipelines[i];
        if !p.checking.is_empty() || p.next.is_some() {
            return;
        }
        let planned = match (p.previous(), p.is_running()) {
            (previous, false) => self.plan_anew(now, i, previous.cloned()),
            (Some(current), true) => self.plan_better(now, i, &current.clone()),
            (None, true) => return,
        };
        let plan = match planned {
            Ok(Some(plan)) => plan,
            Ok(None) => return,
            Err(reason) => {
                let p = &mut self.pipelines[i];
                p.reason = reason;
                // What is left of it is free for the others until it can run again.
                if !p.is_running() && !std::mem::replace(&mut p.parked, true) {
                    actions.push(Action::Parked(i));
                }
                return;
            }
        };
        let epoch = self.epoch();
        for stage in &plan.stages {
            actions.push(Action::Load(stage.node.clone(), stage.layers.into(), epoch));
        }
        self.pipelines[i].begin(plan, epoch);
    }

    /// For a pipeline that does not run: whatever works, soon.
    fn plan_anew(&mut self, now: Now, i: usize, previous: Option<PipelinePlan>) -> Result<Option<PipelinePlan>, String> {
        let p = &self.pipelines[i];
        if p.losses > 1 && now < p.since + (PAUSE.0 * 2_u32.pow(p.losses.min(8) - 2)).min(PAUSE.1) {
            return Ok(None);
        }
        if !p.begun && self.wishes.stages.is_none() && now < self.changed + SETTLE {
            return Ok(None);
        }
        if let Some(previous) = previous {
            let problem = self.problem(i, None);
            let usable = |id: &String| problem.nodes.iter().any(|n| n.id == *id);
            let lost: Vec<String> = previous.stages.iter().map(|s| s.node.clone()).filter(|n| !usable(n)).collect();
            let apart = previous
                .stages
                .windows(2)
                .any(|pair| self.apart.contains_key(&(pair[0].node.clone(), pair[1].node.clone())));
            if lost.is_empty() && !apart {
                return Ok(Some(previous));
            }
            if !apart {
                return self.answer(Question { problem, repair: Some((previous, lost)) }).map(Some);
            }
        }
        // The first time, as many stages as were asked for; after a loss, what is left.
        let wanted = if self.pipelines[i].begun { None } else { self.wishes.stages };
        let mut problem = self.problem(i, wanted);
        if !self.pipelines[i].begun {
            // Those that come after it want nodes, too.
            problem.options.pipelines = Some(self.pipelines[i..].iter().filter(|p| p.placed.is_none()).count().max(1));
        }
        // What is missing may come later; until then one that works is better than none.
        match self.one(problem) {
            Err(_) if now >= self.changed + ENOUGH => self.one(self.problem(i, None)),
            asked => asked,
        }
        .map(Some)
    }

    /// For a pipeline that runs: only what is clearly better, or what has to be.
    fn plan_better(&mut self, now: Now, i: usize, current: &PipelinePlan) -> Result<Option<PipelinePlan>, String> {
        let leaving = |node: &str| self.members.get(node).is_some_and(|m| m.draining);
        if current.stages.iter().any(|s| leaving(&s.node)) {
            let problem = self.problem(i, None);
            let lost: Vec<String> = current.stages.iter().map(|s| s.node.clone()).filter(|n| leaving(n)).collect();
            return self.answer(Question { problem, repair: Some((current.clone(), lost)) }).map(Some);
        }
        let calm = now.saturating_sub(self.changed) >= SETTLE && now.saturating_sub(self.pipelines[i].since) >= SETTLE;
        if !calm || !self.pipelines[i].standing().ready {
            return Ok(None);
        }
        let short = self.wishes.stages.is_some_and(|wanted| current.stages.len() < wanted);
        let better = match self.wishes.stages {
            Some(wanted) if short => {
                (current.stages.len() + 1..=wanted).rev().find_map(|stages| self.one(self.problem(i, Some(stages))).ok())
            }
            Some(_) => None,
            None => self.one(self.problem(i, None)).ok().filter(|plan| plan.pace_ms < WORTH * current.pace_ms),
        };
        Ok(better)
    }

    fn one(&mut self, problem: Problem) -> Result<PipelinePlan, String> {
        self.answer(Question { problem, repair: None })
    }

    /// The planner's answer. Every tick asks again, and the planner is pure: it works only when something is new.
    fn answer(&mut self, question: Question) -> Result<PipelinePlan, String> {
        if let Some((_, answer)) = self.answers.iter().find(|(known, _)| *known == question) {
            return answer.clone();
        }
        let answer = match &question.repair {
            None => plan::plan(&question.problem)
                .map_err(|e| e.to_string())
                .and_then(|plan: Plan| plan.pipelines.into_iter().next().ok_or_else(|| "no nodes".to_owned())),
            Some((previous, lost)) => {
                plan::replan(&question.problem, previous, lost).map(|r| r.pipeline).map_err(|e| e.to_string())
            }
        };
        if self.answers.len() >= ANSWERS {
            self.answers.pop_front();
        }
        self.answers.push_back((question, answer.clone()));
        answer
    }

    /// Has spare nodes load in advance what they may have to stand in for, and others let go of what they hold.
    fn stand_by(&mut self, actions: &mut Vec<Action>) {
        let busy: BTreeSet<String> = self.pipelines.iter().flat_map(|p| p.nodes().cloned().collect::<Vec<_>>()).collect();
        let free = |m: &&Member| {
            m.roles.contains(&Role::Stage) && self.fits(m) && !busy.contains(&m.id) && !self.suspects.contains_key(&m.id)
        };
        let (leaving, staying): (Vec<&Member>, Vec<&Member>) = self.members.values().filter(free).partition(|m| m.draining);
        // Who is about to leave waits for this word.
        let leaving: Vec<String> = leaving.into_iter().map(|m| m.id.clone()).collect();
        let mut spares: Vec<(String, u64)> = staying.into_iter().map(|m| (m.id.clone(), m.memory_bytes)).collect();
        leaving.into_iter().for_each(|node| self.preload(node, 0..0, actions));
        if self.pipelines.iter().any(|p| !p.is_running() || p.next.is_some()) {
            return;
        }
        spares.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        let all = 0..self.sizes.layers();
        for (n, (node, memory)) in spares.into_iter().enumerate() {
            // All layers if there is room: then it can stand in for any stage.
            let room = self.sizes.stage_bytes(all.clone().into(), self.wishes.kv_positions) <= memory;
            let want = match n < self.wishes.spares {
                true if room => all.clone(),
                true => self.largest(memory),
                false => 0..0,
            };
            self.preload(node, want, actions);
        }
    }

    /// Has a free node hold these layers, unless it was told so before.
    fn preload(&mut self, node: String, want: Range<usize>, actions: &mut Vec<Action>) {
        let known = self.preloaded.get(&node).map_or(0..0, |(layers, _)| layers.clone());
        let holds = self.members.get(&node).and_then(|m| m.layers).is_some();
        if known != want || (want.is_empty() && holds && !self.preloaded.contains_key(&node)) {
            self.preloaded.insert(node.clone(), (want.clone(), false));
            // Not older than any place that was given, but older than the next one: a late order undoes nothing.
            let epoch = (self.fence << 32) | self.placements;
            actions.push(Action::Load(node, want, epoch));
        }
    }

    /// The largest stage that fits.
    fn largest(&self, memory: u64) -> Range<usize> {
        let stages = self.pipelines.iter().filter_map(|p| p.placed.as_ref()).flat_map(|p| &p.placement.stages);
        let fits = |layers: &Range<usize>| self.sizes.stage_bytes(layers.clone().into(), self.wishes.kv_positions) <= memory;
        stages.map(|s| s.layers.clone()).filter(fits).max_by_key(Range::len).unwrap_or(0..0)
    }
}

fn planned(role: Role) -> Option<plan::Role> {
    match role {
        Role::Stage => Some(plan::Role::Stage),
        Role::Encoder => Some(plan::Role::Encoder),
        Role::Decoder => Some(plan::Role::Decoder),
        _ => None,
    }
}

/// Processes of one machine share its cores.
fn pool_of(member: &Member) -> &str {
    if member.machine.is_empty() { &member.id } else { &member.machine }
}
