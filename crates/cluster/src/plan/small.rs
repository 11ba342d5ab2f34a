//! Every division of a few nodes among pipelines.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::cost::Field;
use super::partition::{Aim, Layout, by_subset};
use super::pipelines::{Division, Score, busy, crossings, joint_rate, one, pace, rate};

/// The best pipeline that uses all of a set of nodes, before links are looked at.
struct Group {
    nodes: Vec<usize>,
    busy: BTreeMap<usize, u64>,
}

/// The best division among pipelines; `None` if they do not fit.
pub(super) fn divide(field: &Field<'_>, classes: &[(&str, Vec<usize>)]) -> Option<Division> {
    if field.options().pipelines == Some(1) {
        let found = classes.iter().filter_map(|(_, nodes)| one(field, nodes));
        return found.map(|(pace, layout)| single(pace, layout)).min_by_key(|division| division.score);
    }
    let mut groups = BTreeMap::<u32, Group>::new();
    for (_, nodes) in classes {
        for (set, layout) in by_subset(field, nodes, Aim::Pace).into_iter().enumerate() {
            let Some(layout) = layout else { continue };
            let members: Vec<usize> = (0..nodes.len()).filter(|i| set >> i & 1 == 1).map(|i| nodes[i]).collect();
            let mask = members.iter().map(|n| 1 << n).sum();
            let group = Group { nodes: members, busy: busy(field, &layout) };
            let slower = |there: &Group| there.busy.values().max().copied().unwrap_or(0) > pace(&layout);
            if groups.get(&mask).is_none_or(slower) {
                groups.insert(mask, group);
            }
        }
    }
    let mut chosen = Chosen { field, groups: &groups, second: BTreeMap::new(), best: None };
    let masks: Vec<u32> = groups.keys().copied().collect();
    chosen.try_all(&masks, 0, 0, &mut Vec::new());
    let (score, masks) = chosen.best?;
    let mut layouts = Vec::new();
    for mask in masks {
        layouts.push(one(field, &groups[&mask].nodes)?.1);
    }
    Some(Division { layouts, spares: Vec::new(), score })
}

/// One pipeline as a division.
pub(super) fn single(pace: u64, layout: Layout) -> Division {
    let score = Score {
        rate: Reverse(rate(pace)),
        pipelines: 1,
        // What zones cost one pipeline is in its links.
        crossings: 0,
        second: layout.rank[0],
        third: layout.rank[1],
    };
    Division { layouts: vec![layout], spares: Vec::new(), score }
}

struct Chosen<'a> {
    field: &'a Field<'a>,
    groups: &'a BTreeMap<u32, Group>,
    /// What the second pass found for a group; most are never asked for.
    second: BTreeMap<u32, (u128, u128)>,
    best: Option<(Score, Vec<u32>)>,
}

impl Chosen<'_> {
    /// Adds groups from `masks[from..]` that share no node with `used`, in the order of their smallest use.
    fn try_all(&mut self, masks: &[u32], from: usize, used: u32, taken: &mut Vec<u32>) {
        let wanted = self.field.options().pipelines;
        if !taken.is_empty() && wanted.is_none_or(|k| k == taken.len()) {
            self.weigh(taken);
        }
        if wanted.is_some_and(|k| taken.len() >= k) {
            return;
        }
        for (i, &mask) in masks.iter().enumerate().skip(from) {
            if mask & used == 0 {
                taken.push(mask);
                self.try_all(masks, i + 1, used | mask, taken);
                taken.pop();
            }
        }
    }

    fn weigh(&mut self, taken: &[u32]) {
        let groups = self.groups;
        let all: Vec<_> = taken.iter().map(|mask| &groups[mask].busy).collect();
        let crossings = taken.iter().map(|mask| crossings(self.field, groups[mask].nodes.iter().copied())).sum();
        let (rate, pipelines) = (Reverse(joint_rate(&all)), taken.len());
        let mut score = Score { rate, pipelines, crossings, second: 0, third: 0 };
        // Without the links it is a lower bound, which is mostly enough to leave a division out.
        if self.best.as_ref().is_some_and(|(best, _)| score >= *best) {
            return;
        }
        for &mask in taken {
            let field = self.field;
            let found = self.second.entry(mask).or_insert_with(|| {
                one(field, &groups[&mask].nodes).map_or((u128::MAX >> 8, 0), |(_, layout)| (layout.rank[0], layout.rank[1]))
            });
            score.second += found.0;
            score.third += found.1;
        }
        if self.best.as_ref().is_none_or(|(best, _)| score < *best) {
            self.best = Some((score, taken.to_vec()));
        }
    }
}
