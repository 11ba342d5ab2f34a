//! Good orders for more nodes than can be tried in every order.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::cost::Field;
use super::partition::{Aim, EXACT, Layout, Space, best};
use super::pipelines::pace;

/// What is searched for a set of nodes: everything for a few, and for many
///
/// 1. zone by zone, in each the nearest neighbour next, and the same backwards;
/// 2. the fastest first, and last;
/// 3. the largest first, and last.
///
/// Nodes of one pool always stand together.
pub(super) fn spaces(field: &Field<'_>, nodes: &[usize]) -> Vec<Space> {
    if nodes.len() <= EXACT { vec![Space::Subsets(nodes.to_vec())] } else { orders(field, nodes) }
}

/// The orders among these.
fn orders(field: &Field<'_>, nodes: &[usize]) -> Vec<Space> {
    let speed = |&n: &usize| (field.nodes[n].node.ms_per_layer.to_bits(), n);
    let size = |&n: &usize| (Reverse(field.nodes[n].limit), n);
    let (mut fastest, mut largest) = (nodes.to_vec(), nodes.to_vec());
    fastest.sort_by_key(speed);
    largest.sort_by_key(size);
    let mut orders = Vec::new();
    for order in [by_zone(field, nodes), fastest, largest] {
        let order = pools_together(field, &order);
        orders.push(Space::Order(order.iter().rev().copied().collect()));
        orders.push(Space::Order(order));
    }
    orders
}

/// The best layout in any of these spaces.
pub(super) fn best_of(field: &Field<'_>, spaces: &[Space], aim: Aim) -> Option<Layout> {
    let found = spaces.iter().filter_map(|space| best(field, space, aim, bound(field, space, aim)));
    found.reduce(|a, b| if b.rank < a.rank { b } else { a })
}

/// A pace that is certainly reached, to leave out early what is slower. Only worth finding where nodes share pools.
fn bound(field: &Field<'_>, space: &Space, aim: Aim) -> u64 {
    let Space::Subsets(nodes) = space else { return u64::MAX };
    let mut pools = BTreeSet::new();
    if aim != Aim::Pace || nodes.iter().all(|&n| pools.insert(field.nodes[n].pool)) {
        return u64::MAX;
    }
    let found = orders(field, nodes).into_iter().filter_map(|order| best(field, &order, aim, u64::MAX));
    found.map(|layout| pace(&layout)).min().unwrap_or(u64::MAX)
}

/// The pace in one good order: quick, for trying many sets of nodes.
pub(super) fn quick_pace(field: &Field<'_>, nodes: &[usize]) -> Option<u64> {
    let order = Space::Order(pools_together(field, &by_zone(field, nodes)));
    best(field, &order, Aim::Pace, u64::MAX).map(|layout| pace(&layout))
}

/// Moves the nodes of a pool to the first of them.
pub(super) fn pools_together(field: &Field<'_>, order: &[usize]) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    let pools = order.iter().map(|&n| field.nodes[n].pool).filter(|&pool| seen.insert(pool));
    pools.flat_map(|pool| order.iter().copied().filter(move |&n| field.nodes[n].pool == pool)).collect()
}

/// Zone by zone; each node is followed by the nearest that is left in its zone, and the last of a zone by the nearest of all.
pub(super) fn by_zone(field: &Field<'_>, nodes: &[usize]) -> Vec<usize> {
    let mut left: BTreeSet<usize> = nodes.iter().copied().collect();
    let mut order: Vec<usize> = Vec::new();
    while let Some(next) = left.iter().copied().min_by_key(|&n| match order.last() {
        None => (false, 0, &field.nodes[n].node.zone, n),
        Some(&last) => {
            let away = field.nodes[n].node.zone != field.nodes[last].node.zone;
            (away, field.link(last, n).unwrap_or(u64::MAX), &field.nodes[n].node.zone, n)
        }
    }) {
        left.remove(&next);
        order.push(next);
    }
    order
}
