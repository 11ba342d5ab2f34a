//! One pipeline after some of its nodes were lost.

use std::collections::BTreeSet;

use super::check::{check, runners};
use super::cost::Field;
use super::order::{best_of, pools_together, spaces};
use super::partition::{Aim, EXACT, Space};
use super::pipelines::pace;
use super::{Error, Layers, NodeId, PipelinePlan, Problem, Remedy, Replan, Result, shortage};

/// Ways to fill the gaps with spares that are looked at.
const MOST_TRIES: usize = 10_000;

/// The pipeline `previous` without the nodes `lost`. The problem's nodes are those that may be used: what is left of the
/// pipeline, spares, and nodes that are free; not those of other pipelines.
///
/// - If free nodes hold the lost layers and have room for them, they stand in, and all other stages stay as they are.
/// - Otherwise the layers are divided anew over all nodes: of the layouts within 5 % of the best pace the one that loads the
///   fewest bytes.
///
/// Every layer keeps its numerics id. `options.numerics`, `stages`, `pipelines` and `spares` are not looked at (a
/// pipeline goes on with fewer stages than it was given), nor are pins of nodes that are gone.
///
/// # Errors
/// As [`plan()`](super::plan()).
pub fn replan(problem: &Problem, previous: &PipelinePlan, lost: &[NodeId]) -> Result<Replan> {
    let there = left(problem, lost);
    check(&there)?;
    check_previous(&there, previous)?;
    let mut field = Field::new(&there, runners(&there));
    field.require(previous);
    for candidate in &mut field.nodes {
        let before = previous.stages.iter().find(|stage| stage.node == candidate.node.id);
        candidate.holds = candidate.holds.or(before.map(|stage| stage.layers));
    }
    let number = |id: &str| field.nodes.iter().position(|candidate| candidate.node.id == id);
    let stages: Vec<(Option<usize>, Layers)> = previous.stages.iter().map(|s| (number(&s.node), s.layers)).collect();
    let kept: Option<Vec<(usize, Layers)>> = stages.iter().map(|&(node, layers)| Some((node?, layers))).collect();
    if let Some(kept) = kept
        && kept.iter().all(|&(node, layers)| fits(&field, node, layers))
        && let Some(pipeline) = field.pipeline(&kept)
    {
        return Ok(Replan { pipeline, remedy: Remedy::Unchanged, load_bytes: load(&field, &kept) });
    }
    if let Some(filled) = stand_ins(&field, &stages)
        && let Some(pipeline) = field.pipeline(&filled)
    {
        return Ok(Replan { pipeline, remedy: Remedy::Spares, load_bytes: load(&field, &filled) });
    }
    let nodes: Vec<usize> = (0..field.nodes.len()).collect();
    let mut spaces = spaces(&field, &nodes);
    if nodes.len() > EXACT {
        spaces.push(Space::Order(pools_together(&field, &as_before(&stages, &nodes))));
    }
    let Some(best) = best_of(&field, &spaces, Aim::Pace).map(|layout| pace(&layout)) else {
        return Err(shortage::shortage(&field));
    };
    let layout = best_of(&field, &spaces, Aim::Load(best.saturating_add(best / 20)));
    let Some((layout, pipeline)) = layout.and_then(|layout| field.pipeline(&layout.stages).map(|p| (layout, p))) else {
        return Err(Error::Contradiction { nodes: nodes.len() });
    };
    Ok(Replan { pipeline, remedy: Remedy::Repartitioned, load_bytes: load(&field, &layout.stages) })
}

/// The problem without the lost nodes and without the wishes that only a new plan has.
fn left(problem: &Problem, lost: &[NodeId]) -> Problem {
    let mut there = problem.clone();
    there.nodes.retain(|node| !lost.contains(&node.id));
    let ids: BTreeSet<&NodeId> = there.nodes.iter().map(|node| &node.id).collect();
    there.options.pinned.retain(|pin| ids.contains(&pin.node));
    there.options.numerics = None;
    there.options.stages = None;
    there.options.pipelines = Some(1);
    there.options.spares = 0;
    there
}

/// A plan that comes from elsewhere may be another model's.
fn check_previous(problem: &Problem, previous: &PipelinePlan) -> Result<()> {
    let mut next = 0;
    for stage in &previous.stages {
        if stage.layers.first != next || stage.layers.is_empty() {
            return Err(Error::Invalid(format!(
                "the previous pipeline's stage on {} has layers {}",
                stage.node, stage.layers
            )));
        }
        next = stage.layers.end;
    }
    if next != problem.model.layers() {
        let layers = problem.model.layers();
        return Err(Error::Invalid(format!("the previous pipeline has {next} layers, the model {layers}")));
    }
    Ok(())
}

fn fits(field: &Field<'_>, node: usize, layers: Layers) -> bool {
    field.stage(node, layers).is_some_and(|stage| stage.bytes <= field.nodes[node].limit)
}

fn load(field: &Field<'_>, stages: &[(usize, Layers)]) -> u64 {
    stages.iter().filter_map(|&(node, layers)| field.stage(node, layers)).fold(0, |sum, s| sum.saturating_add(s.load))
}

/// Free nodes in the places of the lost ones: each holds its layers already. Of several ways the one with the best pace, then
/// the shortest step.
fn stand_ins(field: &Field<'_>, stages: &[(Option<usize>, Layers)]) -> Option<Vec<(usize, Layers)>> {
    let taken: BTreeSet<usize> = stages.iter().filter_map(|&(node, _)| node).collect();
    let hot = |layers: Layers| -> Vec<usize> {
        let free = (0..field.nodes.len()).filter(|node| !taken.contains(node) && fits(field, *node, layers));
        free.filter(|&node| field.nodes[node].holds.is_some_and(|held| held.covers(layers))).collect()
    };
    let choices: Vec<Vec<usize>> =
        stages.iter().map(|&(node, layers)| node.map_or_else(|| hot(layers), |node| vec![node])).collect();
    // A survivor that no longer fits, because the cache has grown, is no place to stay.
    if stages.iter().any(|&(node, layers)| node.is_some_and(|node| !fits(field, node, layers))) {
        return None;
    }
    let mut search = Filling { field, stages, choices: &choices, best: None, tries: 0 };
    search.fill(&mut Vec::new());
    search.best.map(|(_, chosen)| chosen)
}

/// Pace and step in milliseconds.
type Value = (f64, f64);

struct Filling<'a> {
    field: &'a Field<'a>,
    stages: &'a [(Option<usize>, Layers)],
    choices: &'a [Vec<usize>],
    best: Option<(Value, Vec<(usize, Layers)>)>,
    tries: usize,
}

impl Filling<'_> {
    fn fill(&mut self, chosen: &mut Vec<(usize, Layers)>) {
        let place = chosen.len();
        if self.tries >= MOST_TRIES {
            return;
        }
        if place == self.stages.len() {
            self.tries += 1;
            let Some(pipeline) = self.field.pipeline(chosen) else { return };
            let value = (pipeline.pace_ms, pipeline.step_ms);
            if self.best.as_ref().is_none_or(|(best, _)| value < *best) {
                self.best = Some((value, chosen.clone()));
            }
            return;
        }
        for &node in &self.choices[place] {
            if chosen.iter().all(|&(other, _)| other != node) {
                chosen.push((node, self.stages[place].1));
                self.fill(chosen);
                chosen.pop();
            }
        }
    }
}

/// The survivors in their order, free nodes in the first gap.
fn as_before(stages: &[(Option<usize>, Layers)], nodes: &[usize]) -> Vec<usize> {
    let kept: Vec<usize> = stages.iter().filter_map(|&(node, _)| node).collect();
    let gap = stages.iter().take_while(|(node, _)| node.is_some()).count();
    let free = nodes.iter().copied().filter(|node| !kept.contains(node));
    kept.iter().copied().take(gap).chain(free).chain(kept.iter().copied().skip(gap)).collect()
}
