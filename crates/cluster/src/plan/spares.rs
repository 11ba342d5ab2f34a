//! Nodes that are kept free: which ones, and what they load in advance.

use std::cmp::Reverse;

use super::cost::Field;
use super::partition::EXACT;
use super::{Layers, PipelinePlan, Spare};

/// Choices of `count` nodes to keep free. All of them for a few nodes; the slowest and the largest for many. Later ids come
/// first, so that of equal nodes the first ones work.
pub(super) fn choices(field: &Field<'_>, count: usize) -> Vec<Vec<usize>> {
    let nodes: Vec<usize> = (0..field.nodes.len()).rev().filter(|&n| !field.is_pinned(n)).collect();
    if count == 0 {
        return vec![Vec::new()];
    }
    if nodes.len() < count {
        return Vec::new();
    }
    if field.nodes.len() > EXACT {
        let (mut slowest, mut largest) = (nodes.clone(), nodes);
        slowest.sort_by_key(|&n| (Reverse(field.nodes[n].node.ms_per_layer.to_bits()), Reverse(n)));
        largest.sort_by_key(|&n| (Reverse(field.nodes[n].node.memory_bytes), Reverse(n)));
        return [slowest, largest].into_iter().map(|order| order.into_iter().take(count).collect()).collect();
    }
    let mut all = Vec::new();
    for set in 1..1_usize << nodes.len() {
        if set.count_ones() as usize == count {
            all.push((0..nodes.len()).filter(|i| set >> i & 1 == 1).map(|i| nodes[i]).collect());
        }
    }
    all
}

/// No stage may be larger than the smallest spare of its numerics id.
pub(super) fn limit(field: &mut Field<'_>, spares: &[usize]) {
    for spare in spares {
        let (numerics, memory) = (&field.nodes[*spare].node.numerics, field.nodes[*spare].node.memory_bytes);
        for candidate in &mut field.nodes {
            if candidate.node.numerics == *numerics {
                candidate.limit = candidate.limit.min(memory);
            }
        }
    }
}

/// What each spare loads in advance: the longest run of stages whose weights it has room for beside the cache of the
/// largest of them. Each one starts where the one before stopped, so that several cover more.
pub(super) fn preloads(field: &Field<'_>, pipelines: &[PipelinePlan], spares: &[usize]) -> Vec<Spare> {
    let problem = field.problem();
    let mut start = 0;
    let mut all = Vec::new();
    for &spare in spares {
        let node = field.nodes[spare].node;
        let mut mine = pipelines.iter().filter(|p| p.stages.iter().any(|s| s.numerics == node.numerics));
        let Some(pipeline) = mine.next() else { continue };
        let fits = |run: &[super::StagePlan]| {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { return false };
            let weights = problem.model.weight_bytes(Layers { first: first.layers.first, end: last.layers.end });
            let most = run.iter().map(|s| s.layers.len()).max().unwrap_or(0);
            let kv = problem.model.kv_bytes(most, problem.options.kv_positions);
            weights.saturating_add(kv) <= node.memory_bytes && run.iter().all(|s| s.numerics == node.numerics)
        };
        let stages = &pipeline.stages;
        let run_from = |from: usize| (from + 1..=stages.len()).take_while(|&end| fits(&stages[from..end])).last();
        // From where the last one stopped; from the start if that is the end, or if more is covered so.
        let from = start % stages.len().max(1);
        let reach = |from: usize| run_from(from).map_or(0, |end| end - from);
        let from = if start > 0 { from } else { (0..stages.len()).max_by_key(|&f| (reach(f), Reverse(f))).unwrap_or(0) };
        let Some(end) = run_from(from) else { continue };
        start = end;
        let preload = Layers { first: stages[from].layers.first, end: stages[end - 1].layers.end };
        all.push(Spare { node: node.id.clone(), preload });
    }
    all.sort_by(|a, b| a.node.cmp(&b.node));
    all
}
