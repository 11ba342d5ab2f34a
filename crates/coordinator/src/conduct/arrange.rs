//! What every pipeline should have, and what the nodes outside of them should hold.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use janus_cluster::plan::{self, Layers, NodeSpec, Options, PipelinePlan, Plan, Problem};
use janus_cluster::{Member, Role};

use super::{Action, Conductor, ENOUGH, Now, SETTLE, pool_of};

/// A running pipeline is rearranged only for a pace that is better by this factor.
const WORTH: f64 = 0.9;
/// Questions to the planner that are remembered: a few for each pipeline.
const ANSWERS: usize = 16;
/// Pause before a pipeline that was lost again and again is placed again: doubled each time, up to the second value.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What the planner was asked.
#[derive(Debug, PartialEq)]
pub(super) struct Question {
    problem: Problem,
    /// A plan that lost nodes.
    repair: Option<(PipelinePlan, Vec<String>)>,
}

impl Conductor {
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

    pub(super) fn node(&self, m: &Member) -> NodeSpec {
        // A pipeline that does not run may name a node that serves another one by now.
        let (running, others): (Vec<_>, Vec<_>) = self.pipelines.iter().partition(|p| p.is_running());
        let holds = running.into_iter().chain(others).find_map(|p| p.layers_of(&m.id));
        let preloaded = self.preloaded.get(&m.id).filter(|(layers, done)| *done && !layers.is_empty());
        NodeSpec {
            id: m.id.clone(),
            zone: m.zone.clone(),
            memory_bytes: m.memory_bytes,
            ms_per_layer: m.ms_per_layer.max(1e-6),
            ms_embed: m.ms_per_embed.max(0.0),
            ms_head: m.ms_per_head.max(0.0),
            numerics: m.numerics.clone(),
            roles: m.roles.iter().filter_map(|role| planned(*role)).collect(),
            round_trips: m.round_trips.clone(),
            holds: holds.or(preloaded.map(|(layers, _)| layers.clone())).map(Layers::from),
            pool: Some(pool_of(m).to_owned()),
        }
    }

    /// Gives pipeline `i` what it should have.
    pub(super) fn arrange(&mut self, now: Now, i: usize, actions: &mut Vec<Action>) {
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

    pub(super) fn one(&mut self, problem: Problem) -> Result<PipelinePlan, String> {
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
    pub(super) fn stand_by(&mut self, actions: &mut Vec<Action>) {
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
