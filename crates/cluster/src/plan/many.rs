//! Dividing many nodes among pipelines: good, not always best.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::cost::Field;
use super::order::{by_zone, pools_together, quick_pace};
use super::pipelines::{Division, Score, busy, crossings, joint_rate, one, rate};
use super::small::single;

/// Most pipelines that are tried when the number is left open.
const MOST_PIPELINES: usize = 8;
/// Nodes of each pipeline.
type Groups = Vec<Vec<usize>>;

/// Rounds of moving nodes between pipelines.
const ROUNDS: usize = 2;

/// A good division among pipelines; `None` if none was found that fits.
pub(super) fn divide(field: &Field<'_>, classes: &[(&str, Vec<usize>)]) -> Option<Division> {
    match field.options().pipelines {
        Some(1) => {
            let found = classes.iter().filter_map(|(_, nodes)| one(field, nodes));
            found.map(|(pace, layout)| single(pace, layout)).min_by_key(|division| division.score)
        }
        Some(count) => divide_into(&mut Paces::new(field), classes, count),
        None => {
            let nodes = classes.iter().map(|(_, nodes)| nodes.len()).sum::<usize>();
            let mut paces = Paces::new(field);
            let all = (1..=nodes.min(MOST_PIPELINES)).filter_map(|count| divide_into(&mut paces, classes, count));
            all.min_by_key(|division| division.score)
        }
    }
}

/// One pipeline after the other goes to the numerics id where it brings most; within an id, see [`cut`].
fn divide_into(paces: &mut Paces<'_>, classes: &[(&str, Vec<usize>)], count: usize) -> Option<Division> {
    let field = paces.field;
    let mut parts: Vec<Vec<Vec<usize>>> = vec![Vec::new(); classes.len()];
    if let [(_, nodes)] = classes {
        parts[0] = paces.cut(nodes, count)?;
    }
    for _ in parts.iter().map(Vec::len).sum()..count {
        let mut best: Option<(u128, usize, Groups)> = None;
        for (c, (_, nodes)) in classes.iter().enumerate() {
            let Some(groups) = paces.cut(nodes, parts[c].len() + 1) else { continue };
            let gain = paces.rates(&groups).1.saturating_sub(paces.rates(&parts[c]).1);
            if best.as_ref().is_none_or(|(most, ..)| gain > *most) {
                best = Some((gain, c, groups));
            }
        }
        let (_, c, groups) = best?;
        parts[c] = groups;
    }
    let mut layouts = Vec::new();
    let mut score = Score { rate: Reverse(0), pipelines: count, crossings: 0, second: 0, third: 0 };
    for group in parts.iter().flatten() {
        let (_, layout) = one(field, group)?;
        score.crossings += crossings(field, layout.stages.iter().map(|&(n, _)| n));
        score.second += layout.rank[0];
        score.third += layout.rank[1];
        layouts.push(layout);
    }
    let loads: Vec<_> = layouts.iter().map(|layout| busy(field, layout)).collect();
    score.rate = Reverse(joint_rate(&loads.iter().collect::<Vec<_>>()));
    Some(Division { layouts, spares: Vec::new(), score })
}

/// Runs of a good order, equal in memory or in speed, then nodes are moved while that makes more pipelines fit or all of them
/// together faster. `None` if some do not fit in the end.
fn cut(field: &Field<'_>, paces: &mut Paces<'_>, nodes: &[usize], count: usize) -> Option<Groups> {
    let order = pools_together(field, &by_zone(field, nodes));
    let memory = runs(&order, count, |n| field.nodes[n].limit as f64);
    let speed = runs(&order, count, |n| 1.0 / field.nodes[n].node.ms_per_layer.max(1e-6));
    let mut best: Option<((usize, u128), Groups)> = None;
    for mut groups in [memory, speed] {
        let mut value = paces.rates(&groups);
        for _ in 0..ROUNDS {
            let before = value;
            for &node in &order {
                for to in 0..count {
                    let mut moved = groups.clone();
                    moved.iter_mut().for_each(|group| group.retain(|&n| n != node));
                    moved[to].push(node);
                    moved[to].sort_unstable();
                    let there = paces.rates(&moved);
                    if there > value {
                        (value, groups) = (there, moved);
                    }
                }
            }
            if value == before {
                break;
            }
        }
        if best.as_ref().is_none_or(|(most, _)| value > *most) {
            best = Some((value, groups));
        }
    }
    best.filter(|((fitting, _), _)| *fitting == count).map(|(_, groups)| groups)
}

/// Cuts an order into `count` runs of about equal weight, none empty if there are enough nodes.
pub(super) fn runs(order: &[usize], count: usize, weight: impl Fn(usize) -> f64) -> Groups {
    let total: f64 = order.iter().map(|&n| weight(n)).sum();
    let mut groups: Vec<Vec<usize>> = vec![Vec::new(); count];
    let (mut group, mut sum) = (0, 0.0);
    for (i, &node) in order.iter().enumerate() {
        let left = order.len() - i;
        let full = sum >= total * (group + 1) as f64 / count as f64;
        let must = left < count - group;
        if group + 1 < count && !groups[group].is_empty() && (full || must || left == count - group - 1) {
            group += 1;
        }
        groups[group].push(node);
        sum += weight(node);
    }
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups
}

/// Paces of sets of nodes; the same ones are asked for again and again.
struct Paces<'a> {
    field: &'a Field<'a>,
    known: BTreeMap<Vec<usize>, Option<u64>>,
    cuts: BTreeMap<(Vec<usize>, usize), Option<Groups>>,
}

impl<'a> Paces<'a> {
    fn new(field: &'a Field<'a>) -> Self {
        Paces { field, known: BTreeMap::new(), cuts: BTreeMap::new() }
    }

    fn cut(&mut self, nodes: &[usize], count: usize) -> Option<Groups> {
        let key = (nodes.to_vec(), count);
        if let Some(known) = self.cuts.get(&key) {
            return known.clone();
        }
        let found = cut(self.field, self, nodes, count);
        self.cuts.insert(key, found.clone());
        found
    }

    /// How many groups fit, and the sum of their rates.
    fn rates(&mut self, groups: &[Vec<usize>]) -> (usize, u128) {
        let paces: Vec<u64> = groups.iter().filter_map(|group| self.pace(group)).collect();
        (paces.len(), paces.iter().map(|&pace| rate(pace)).sum())
    }

    fn pace(&mut self, group: &[usize]) -> Option<u64> {
        if let Some(known) = self.known.get(group) {
            return *known;
        }
        let found = quick_pace(self.field, group);
        self.known.insert(group.to_vec(), found);
        found
    }
}
