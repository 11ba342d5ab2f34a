//! How much memory is missing, and where, when nothing fits.

use super::cost::Field;
use super::many::runs;
use super::order::{best_of, by_zone, pools_together, spaces};
use super::partition::{Aim, EXACT, Layout, by_subset};
use super::pipelines::classes;
use super::{Error, Layers, Shortage};

/// The error for a field in which no plan was found: the fewest bytes that would have to be added.
///
/// Exact for one pipeline of few nodes, and for several of few nodes; otherwise the best that is found.
pub(super) fn shortage(field: &Field<'_>) -> Error {
    let options = field.options();
    let (count, layers) = (options.pipelines.unwrap_or(1), field.layers());
    let stages = options.stages.unwrap_or(1);
    let nodes: Vec<usize> = (0..field.nodes.len()).collect();
    let classes = classes(field, &nodes);
    let largest = classes.iter().map(|(_, nodes)| nodes.len()).max().unwrap_or(0);
    if nodes.len() < count.saturating_mul(stages) || layers < stages || largest < stages {
        let nodes = if nodes.len() < count.saturating_mul(stages) { nodes.len() } else { largest };
        return Error::TooFewNodes { wanted: count.saturating_mul(stages), nodes, layers };
    }
    let found = if count == 1 {
        let each = classes.iter().filter_map(|(_, nodes)| best_of(field, &spaces(field, nodes), Aim::Shortage));
        each.min_by_key(|layout| layout.rank).map(|layout| vec![layout])
    } else if nodes.len() <= EXACT {
        several(field, &classes, count)
    } else {
        let members =
            classes.iter().max_by_key(|(_, nodes)| nodes.len()).map(|(_, nodes)| nodes.clone()).unwrap_or_default();
        let order = pools_together(field, &by_zone(field, &members));
        let groups = runs(&order, count, |n| field.nodes[n].limit as f64);
        groups.iter().map(|group| best_of(field, &spaces(field, group), Aim::Shortage)).collect()
    };
    let Some(layouts) = found else {
        let free = options.pinned.is_empty() && options.forbidden_links.is_empty();
        let (wanted, nodes) = (count.saturating_mul(stages), nodes.len());
        return if free { Error::TooFewNodes { wanted, nodes, layers } } else { Error::Contradiction { nodes } };
    };
    let mut shortages = Vec::new();
    for &(node, range) in layouts.iter().flat_map(|layout| &layout.stages) {
        let bytes = field.stage(node, range).map_or(0, |stage| stage.bytes);
        let missing_bytes = bytes.saturating_sub(field.nodes[node].limit);
        if missing_bytes > 0 {
            shortages.push(Shortage { node: field.nodes[node].node.id.clone(), missing_bytes });
        }
    }
    shortages.sort_by(|a, b| a.node.cmp(&b.node));
    // The nodes that could have been in it together.
    let of = |layout: &Layout| layout.stages.first().map(|&(n, _)| field.nodes[n].node.numerics.as_str());
    let ids: Vec<_> = layouts.iter().map(of).collect();
    let mut offering: Vec<usize> =
        classes.iter().filter(|(id, _)| ids.contains(&Some(*id))).flat_map(|(_, nodes)| nodes.iter().copied()).collect();
    offering.sort_unstable();
    offering.dedup();
    let whole = field.problem().model.stage_bytes(Layers { first: 0, end: layers }, options.kv_positions);
    Error::DoesNotFit {
        nodes: offering.len(),
        offered_bytes: offering.iter().fold(0, |sum, &n| sum.saturating_add(field.nodes[n].limit)),
        needed_bytes: whole.saturating_mul(count as u64),
        kv_positions: options.kv_positions,
        pipelines: count,
        missing_bytes: shortages.iter().fold(0, |sum, s| sum.saturating_add(s.missing_bytes)),
        shortages,
    }
}

/// The fewest missing bytes, and the groups that lack them.
type Reached = Option<(u128, Vec<usize>)>;

/// The division of a few nodes into `count` pipelines that lacks the fewest bytes.
fn several(field: &Field<'_>, classes: &[(&str, Vec<usize>)], count: usize) -> Option<Vec<Layout>> {
    let mut groups: Vec<(u32, Layout)> = Vec::new();
    for (_, nodes) in classes {
        for layout in by_subset(field, nodes, Aim::Shortage).into_iter().flatten() {
            groups.push((layout.stages.iter().map(|&(n, _)| 1 << n).sum(), layout));
        }
    }
    groups.sort_by_key(|(mask, layout)| (*mask, layout.rank));
    groups.dedup_by_key(|(mask, _)| *mask);
    // By nodes used: the fewest missing bytes so far, and the groups.
    let mut reached: Vec<Vec<Reached>> = vec![vec![None; 1 << field.nodes.len()]; count + 1];
    reached[0][0] = Some((0, Vec::new()));
    for taken in 0..count {
        for used in 0..reached[taken].len() {
            let Some((missing, chosen)) = reached[taken][used].clone() else { continue };
            for (i, (mask, layout)) in groups.iter().enumerate() {
                if *mask as usize & used != 0 {
                    continue;
                }
                let place = &mut reached[taken + 1][used | *mask as usize];
                let sum = missing + layout.rank[0];
                if place.as_ref().is_none_or(|(best, _)| sum < *best) {
                    let mut longer = chosen.clone();
                    longer.push(i);
                    *place = Some((sum, longer));
                }
            }
        }
    }
    let best = reached[count].iter().flatten().min_by_key(|(missing, _)| *missing)?;
    Some(best.1.iter().map(|&i| groups[i].1.clone()).collect())
}
