//! Brute force: every subset, order and partition of a small problem, weighed one by one.

use std::collections::BTreeMap;

use janus_cluster::plan::{Layers, NodeSpec, Problem, Role};

/// One pipeline as brute force sees it. Times in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Tried {
    pub(crate) stages: Vec<(usize, Layers)>,
    pub(crate) pace: u64,
    pub(crate) latency: u64,
    pub(crate) load: u64,
    pub(crate) missing: u64,
}

pub(crate) fn ns(ms: f64) -> u64 {
    (ms * 1e6).round() as u64
}

/// Written on its own, from the documentation of the fields.
pub(crate) fn weigh(problem: &Problem, stages: &[(usize, Layers)], held: &[Option<Layers>], limit: &[u64]) -> Option<Tried> {
    let (model, options) = (&problem.model, &problem.options);
    let total = model.layer_bytes.len();
    let weights = |range: std::ops::Range<usize>| -> u64 {
        let inner: u64 = range.clone().map(|l| model.layer_bytes[l]).sum();
        let first = if !range.is_empty() && range.start == 0 { model.embedding_bytes } else { 0 };
        let last = if !range.is_empty() && range.end == total { model.head_bytes } else { 0 };
        inner + first + last
    };
    let pool = |n: usize| problem.nodes[n].pool.clone().map_or((false, problem.nodes[n].id.clone()), |p| (true, p));
    let mut busy = BTreeMap::<_, u64>::new();
    let mut tried = Tried { stages: stages.to_vec(), pace: 0, latency: 0, load: 0, missing: 0 };
    for (i, &(n, layers)) in stages.iter().enumerate() {
        let node = &problem.nodes[n];
        let mut time = ns(node.ms_per_layer) * layers.len() as u64;
        time += if layers.first == 0 { ns(node.ms_embed) } else { 0 };
        time += if layers.end == total { ns(node.ms_head) } else { 0 };
        *busy.entry(pool(n)).or_default() += time;
        tried.latency += time;
        let kv = model.kv_bytes_per_position * (options.kv_positions * layers.len()) as u64;
        let bytes = weights(layers.range()) + kv;
        tried.missing += bytes.saturating_sub(limit[n]);
        let held = held[n].map_or(0..0, Layers::range);
        let (a, b) = (held.start.max(layers.first), held.end.min(layers.end));
        tried.load += weights(layers.range()) - if a < b { weights(a..b) } else { 0 };
        for pin in &options.pinned {
            let mine = pin.node == node.id;
            let legal = if mine { pin.layers == layers } else { !pin.layers.overlaps(layers) };
            if !legal {
                return None;
            }
        }
        if i > 0 {
            let before = &problem.nodes[stages[i - 1].0];
            let forbidden = |a: &NodeSpec, b: &NodeSpec| options.forbidden_links.contains(&(a.id.clone(), b.id.clone()));
            if forbidden(before, node) || forbidden(node, before) {
                return None;
            }
            let measured = [before.round_trips.get(&node.id), node.round_trips.get(&before.id)];
            let guess = match (pool(stages[i - 1].0) == pool(n), before.zone == node.zone) {
                (true, _) => 0.1,
                (_, true) => 0.5,
                _ => 10.0,
            };
            tried.latency += ns(measured.into_iter().flatten().copied().reduce(f64::max).unwrap_or(guess) / 2.0);
        }
        let ends = usize::from(i == 0) + usize::from(i + 1 == stages.len());
        let to_coordinator = options.coordinator.as_ref().and_then(|c| node.round_trips.get(c)).copied().unwrap_or(0.0);
        tried.latency += ends as u64 * ns(to_coordinator / 2.0);
    }
    tried.pace = busy.values().copied().max().unwrap();
    Some(tried)
}

/// Every subset, order and partition of these nodes.
pub(crate) fn all_layouts(layers: usize, nodes: &[usize]) -> Vec<Vec<(usize, Layers)>> {
    fn go(layers: usize, left: &[usize], so_far: &mut Vec<(usize, Layers)>, out: &mut Vec<Vec<(usize, Layers)>>) {
        let done = so_far.last().map_or(0, |(_, l)| l.end);
        if done == layers {
            out.push(so_far.clone());
            return;
        }
        for (i, &node) in left.iter().enumerate() {
            let rest: Vec<usize> = left.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, &n)| n).collect();
            for end in done + 1..=layers {
                so_far.push((node, Layers { first: done, end }));
                go(layers, &rest, so_far, out);
                so_far.pop();
            }
        }
    }
    let mut out = Vec::new();
    go(layers, nodes, &mut Vec::new(), &mut out);
    out
}

pub(crate) fn same_numerics(problem: &Problem, stages: &[(usize, Layers)]) -> bool {
    stages.iter().all(|&(n, _)| problem.nodes[n].numerics == problem.nodes[stages[0].0].numerics)
}

/// All legal pipelines of these nodes, those that do not fit included.
pub(crate) fn tried(problem: &Problem, nodes: &[usize], limit: &[u64], held: &[Option<Layers>]) -> Vec<Tried> {
    let options = &problem.options;
    let count = |n: usize| options.stages.is_none_or(|s| s == n) && options.max_stages.is_none_or(|s| n <= s);
    all_layouts(problem.model.layer_bytes.len(), nodes)
        .into_iter()
        .filter(|stages| count(stages.len()) && same_numerics(problem, stages))
        .filter_map(|stages| weigh(problem, &stages, held, limit))
        .collect()
}

pub(crate) fn allowed(problem: &Problem) -> Vec<usize> {
    let o = &problem.options;
    let ok = |n: &NodeSpec| {
        n.roles.contains(&Role::Stage)
            && !o.forbidden_nodes.contains(&n.id)
            && o.numerics.as_ref().is_none_or(|x| *x == n.numerics)
    };
    (0..problem.nodes.len()).filter(|&n| ok(&problem.nodes[n])).collect()
}

pub(crate) fn memory(problem: &Problem) -> Vec<u64> {
    problem.nodes.iter().map(|n| n.memory_bytes).collect()
}

pub(crate) fn holds(problem: &Problem) -> Vec<Option<Layers>> {
    problem.nodes.iter().map(|n| n.holds).collect()
}

/// The best sum of rates of `count` pipelines (any number if `None`) of disjoint sets of nodes.
pub(crate) fn best_rate(problem: &Problem, nodes: &[usize], limit: &[u64], count: Option<usize>) -> Option<u128> {
    let mut paces = BTreeMap::<u32, u64>::new();
    for t in tried(problem, nodes, limit, &holds(problem)).iter().filter(|t| t.missing == 0) {
        let set = t.stages.iter().map(|&(n, _)| 1_u32 << n).sum();
        let pace = paces.entry(set).or_insert(u64::MAX);
        *pace = t.pace.min(*pace);
    }
    fn go(sets: &[(u32, u64)], used: u32, taken: usize, sum: u128, count: Option<usize>, best: &mut Option<u128>) {
        if taken > 0 && count.is_none_or(|c| c == taken) {
            *best = Some(best.map_or(sum, |b| b.max(sum)));
        }
        for (i, &(set, pace)) in sets.iter().enumerate() {
            if set & used == 0 && count.is_none_or(|c| taken < c) {
                go(&sets[i + 1..], used | set, taken + 1, sum + rate(pace), count, best);
            }
        }
    }
    let sets: Vec<_> = paces.into_iter().collect();
    let mut best = None;
    go(&sets, 0, 0, 0, count, &mut best);
    best
}

pub(crate) fn rate(pace: u64) -> u128 {
    10_u128.pow(24) / u128::from(pace)
}

/// The fewest bytes to add so that `count` pipelines fit.
pub(crate) fn least_missing(problem: &Problem, nodes: &[usize], count: usize) -> Option<u64> {
    let mut sets = BTreeMap::<u32, u64>::new();
    for t in tried(problem, nodes, &memory(problem), &holds(problem)) {
        let set = t.stages.iter().map(|&(n, _)| 1_u32 << n).sum();
        let missing = sets.entry(set).or_insert(u64::MAX);
        *missing = t.missing.min(*missing);
    }
    fn go(sets: &[(u32, u64)], used: u32, left: usize) -> Option<u64> {
        if left == 0 {
            return Some(0);
        }
        let fitting = sets.iter().enumerate().filter(|(_, (set, _))| set & used == 0);
        fitting.filter_map(|(i, &(set, m))| Some(m + go(&sets[i + 1..], used | set, left - 1)?)).min()
    }
    go(&sets.into_iter().collect::<Vec<_>>(), 0, count)
}

pub(crate) fn choices(nodes: &[usize], count: usize) -> Vec<Vec<usize>> {
    (0_usize..1 << nodes.len())
        .filter(|set| set.count_ones() as usize == count)
        .map(|set| (0..nodes.len()).filter(|i| set >> i & 1 == 1).map(|i| nodes[i]).collect())
        .collect()
}
