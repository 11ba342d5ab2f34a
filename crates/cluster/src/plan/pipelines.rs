//! Dividing the nodes among pipelines and spares.
//!
//! With up to eight nodes every division is tried, and every choice of spares; where pipelines share pools, each is planned as if
//! alone and only the division is judged by what they do to each other. With more, each numerics id's nodes are cut
//! into runs of a good order and nodes are moved between pipelines while that helps.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::check::{check, runners};
use super::cost::Field;
use super::order::{best_of, spaces};
use super::partition::{Aim, EXACT, Layout};
use super::{Error, Options, Plan, Problem, Result, Role, Unused};
use super::{many, shortage, small, spares};

/// The pipelines of a plan before they are written out, and the nodes that are kept free.
#[derive(Debug, Clone)]
pub(super) struct Division {
    pub(super) layouts: Vec<Layout>,
    pub(super) spares: Vec<usize>,
    pub(super) score: Score,
}

/// What divisions are compared by; smaller is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score {
    /// Microbatches of all pipelines in some 10^15 seconds.
    pub(super) rate: Reverse<u128>,
    pub(super) pipelines: usize,
    /// Zones entered within pipelines.
    pub(super) crossings: usize,
    /// What the second pass minimised, summed.
    pub(super) second: u128,
    pub(super) third: u128,
}

/// The best plan.
///
/// # Errors
/// [`Error::DoesNotFit`] with the memory that is missing, [`Error::TooFewNodes`], [`Error::Contradiction`], and
/// [`Error::Invalid`] for a problem that makes no sense.
pub fn plan(problem: &Problem) -> Result<Plan> {
    check(problem)?;
    let field = Field::new(problem, runners(problem));
    // The pipelines come first: better fewer spares than no plan.
    for count in (0..=problem.options.spares.min(field.nodes.len().saturating_sub(1))).rev() {
        if let Some(division) = with_spares(&field, count) {
            return written(&field, &division);
        }
    }
    Err(shortage::shortage(&field))
}

/// The best division that keeps so many nodes free.
fn with_spares(field: &Field<'_>, count: usize) -> Option<Division> {
    let mut best: Option<Division> = None;
    for free in spares::choices(field, count) {
        let mut limited = field.clone();
        spares::limit(&mut limited, &free);
        let rest: Vec<usize> = (0..field.nodes.len()).filter(|n| !free.contains(n)).collect();
        let numerics: BTreeSet<&str> = free.iter().map(|&n| field.nodes[n].node.numerics.as_str()).collect();
        let mut classes = classes(&limited, &rest);
        if field.options().pipelines == Some(1) && !free.is_empty() {
            classes.retain(|(id, _)| numerics.contains(id));
        }
        let division =
            if rest.len() <= EXACT { small::divide(&limited, &classes) } else { many::divide(&limited, &classes) };
        let Some(mut division) = division else { continue };
        let used: BTreeSet<&str> =
            division.layouts.iter().flat_map(|l| &l.stages).map(|&(n, _)| field.nodes[n].node.numerics.as_str()).collect();
        if numerics.is_subset(&used) && best.as_ref().is_none_or(|b| division.score < b.score) {
            division.spares = free;
            best = Some(division);
        }
    }
    best
}

/// The nodes that may stand in one pipeline, by numerics id: those that have it, and pinned ones.
pub(super) fn classes<'a>(field: &Field<'a>, nodes: &[usize]) -> Vec<(&'a str, Vec<usize>)> {
    let ids: BTreeSet<&str> = nodes.iter().map(|&n| field.nodes[n].node.numerics.as_str()).collect();
    let members = |id: &str| {
        let mine = |&n: &usize| field.nodes[n].node.numerics == id || field.is_pinned(n);
        nodes.iter().copied().filter(mine).collect::<Vec<_>>()
    };
    ids.into_iter().map(|id| (id, members(id))).collect()
}

/// The best pipeline of some of these nodes, with its pace.
pub(super) fn one(field: &Field<'_>, nodes: &[usize]) -> Option<(u64, Layout)> {
    let spaces = spaces(field, nodes);
    let pace = pace(&best_of(field, &spaces, Aim::Pace)?);
    best_of(field, &spaces, second(field.options(), pace)).map(|layout| (pace, layout))
}

/// What the second pass compares.
pub(super) fn second(options: &Options, pace: u64) -> Aim {
    if options.prefer_held { Aim::Load(pace) } else { Aim::Latency(pace) }
}

/// The pace of a layout found with [`Aim::Pace`].
pub(super) fn pace(layout: &Layout) -> u64 {
    u64::try_from(layout.rank[0]).unwrap_or(u64::MAX)
}

/// Microbatches in some time; exact enough that a nanosecond shows.
pub(super) fn rate(pace: u64) -> u128 {
    10_u128.pow(24) / u128::from(pace.max(1))
}

/// Busy time of each pool in a layout.
pub(super) fn busy(field: &Field<'_>, layout: &Layout) -> BTreeMap<usize, u64> {
    let mut busy = BTreeMap::<usize, u64>::new();
    for &(node, layers) in &layout.stages {
        let pool = busy.entry(field.nodes[node].pool).or_default();
        *pool = pool.saturating_add(field.stage(node, layers).map_or(0, |stage| stage.ns));
    }
    busy
}

/// The rates of pipelines together. A pool that several use is as busy as all of them make it.
pub(super) fn joint_rate(all: &[&BTreeMap<usize, u64>]) -> u128 {
    let mut total = BTreeMap::<usize, u64>::new();
    for (&pool, &ns) in all.iter().copied().flatten() {
        let sum = total.entry(pool).or_default();
        *sum = sum.saturating_add(ns);
    }
    let pace = |mine: &BTreeMap<usize, u64>| mine.keys().filter_map(|pool| total.get(pool)).copied().max().unwrap_or(0);
    all.iter().map(|mine| rate(pace(mine))).sum()
}

/// Zones that a pipeline of these nodes enters after its first one.
pub(super) fn crossings(field: &Field<'_>, nodes: impl Iterator<Item = usize>) -> usize {
    nodes.map(|n| &field.nodes[n].node.zone).collect::<BTreeSet<_>>().len().saturating_sub(1)
}

fn written(field: &Field<'_>, division: &Division) -> Result<Plan> {
    let mut pipelines = Vec::new();
    for layout in &division.layouts {
        pipelines.extend(field.pipeline(&layout.stages));
    }
    pipelines.sort_by(|a, b| {
        let first = |p: &super::PipelinePlan| p.stages.first().map(|s| s.node.clone());
        a.pace_ms.total_cmp(&b.pace_ms).then(a.step_ms.total_cmp(&b.step_ms)).then_with(|| first(a).cmp(&first(b)))
    });
    if pipelines.len() != division.layouts.len() {
        return Err(Error::Contradiction { nodes: field.nodes.len() });
    }
    let spares = spares::preloads(field, &pipelines, &division.spares);
    let busy: BTreeSet<&str> = (pipelines.iter().flat_map(|p| &p.stages).map(|s| s.node.as_str()))
        .chain(spares.iter().map(|s| s.node.as_str()))
        .collect();
    let problem = field.problem();
    let mut unused: Vec<_> = (problem.nodes.iter().filter(|node| !busy.contains(node.id.as_str())))
        .map(|node| (node.id.clone(), reason(field, &pipelines, node)))
        .collect();
    unused.sort();
    Ok(Plan { pipelines, spares, unused })
}

fn reason(field: &Field<'_>, pipelines: &[super::PipelinePlan], node: &super::NodeSpec) -> Unused {
    let options = field.options();
    let same = pipelines.iter().flat_map(|p| &p.stages).any(|stage| stage.numerics == node.numerics);
    let number = field.nodes.iter().position(|c| c.node.id == node.id);
    match number {
        _ if !node.roles.contains(&Role::Stage) => Unused::NotAStage,
        _ if options.forbidden_nodes.contains(&node.id) => Unused::Forbidden,
        None => Unused::OtherNumerics,
        _ if !same => Unused::OtherNumerics,
        Some(number) if !field.has_room(number) => Unused::TooSmall,
        Some(_) => Unused::NotNeeded,
    }
}
