//! What a stage costs on a node: whole nanoseconds and bytes, so that sums do not depend on their order.

use std::collections::BTreeMap;

use super::{Layers, NodeSpec, Options, PipelinePlan, Problem, StagePlan};

/// Round trips that nobody measured, in milliseconds: between processes of one machine, within a zone, between zones.
const ROUND_TRIP_MS: [f64; 3] = [0.1, 0.5, 10.0];

/// Milliseconds as whole nanoseconds.
pub(super) fn nanoseconds(ms: f64) -> u64 {
    (ms * 1e6).round() as u64
}

/// Nanoseconds as milliseconds.
pub(super) fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// Compute pool of a node: its own id where it names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pool<'a> {
    Named(&'a str),
    Own(&'a str),
}

impl<'a> Pool<'a> {
    pub(super) fn of(node: &'a NodeSpec) -> Self {
        node.pool.as_deref().map_or(Pool::Own(&node.id), Pool::Named)
    }
}

/// A node that may run stages.
#[derive(Debug, Clone)]
pub(super) struct Candidate<'a> {
    pub(super) node: &'a NodeSpec,
    /// Most bytes of a stage here: its memory, or less where a spare has to be able to take its place.
    pub(super) limit: u64,
    /// What it has loaded.
    pub(super) holds: Option<Layers>,
    layer_ns: u64,
    embed_ns: u64,
    head_ns: u64,
    /// Number of its pool.
    pub(super) pool: usize,
}

impl Candidate<'_> {
    /// Time of one layer.
    pub(super) fn layer_ns(&self) -> u64 {
        self.layer_ns
    }
}

/// What a stage costs.
#[derive(Debug, Clone, Copy)]
pub(super) struct StageCost {
    pub(super) ns: u64,
    /// Bytes held.
    pub(super) bytes: u64,
    /// Bytes of weights that the node lacks.
    pub(super) load: u64,
}

/// The candidates with everything that the search asks, by number: sorted by id, so by nothing the caller chose.
#[derive(Debug, Clone)]
pub(super) struct Field<'a> {
    problem: &'a Problem,
    pub(super) nodes: Vec<Candidate<'a>>,
    /// Weights and KV cache of the layers before this one.
    before: Vec<u64>,
    /// Weights alone, likewise.
    weights_before: Vec<u64>,
    /// One way from node to node; `None` where it is forbidden.
    links: Vec<Vec<Option<u64>>>,
    /// One way from and to the coordinator.
    coordinator: Vec<u64>,
    /// By layer: the only numerics id it may have.
    required: Option<Vec<&'a str>>,
}

impl<'a> Field<'a> {
    /// `nodes` are the problem's that may run stages.
    pub(super) fn new(problem: &'a Problem, mut nodes: Vec<&'a NodeSpec>) -> Self {
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        let mut pools = BTreeMap::new();
        for node in &nodes {
            let next = pools.len();
            pools.entry(Pool::of(node)).or_insert(next);
        }
        let candidate = |node: &&'a NodeSpec| Candidate {
            node,
            limit: node.memory_bytes,
            holds: node.holds,
            layer_ns: nanoseconds(node.ms_per_layer),
            embed_ns: nanoseconds(node.ms_embed),
            head_ns: nanoseconds(node.ms_head),
            pool: pools.get(&Pool::of(node)).copied().unwrap_or(0),
        };
        let (model, options) = (&problem.model, &problem.options);
        let kv_per_layer = model.kv_bytes(1, options.kv_positions);
        let (mut before, mut weights_before) = (vec![0_u64], vec![0_u64]);
        let (mut sum, mut weights) = (0_u64, 0_u64);
        for &bytes in &model.layer_bytes {
            weights = weights.saturating_add(bytes);
            sum = sum.saturating_add(bytes).saturating_add(kv_per_layer);
            weights_before.push(weights);
            before.push(sum);
        }
        Field {
            problem,
            links: nodes.iter().map(|a| nodes.iter().map(|b| link(options, a, b)).collect()).collect(),
            coordinator: nodes.iter().map(|node| to_coordinator(options, node)).collect(),
            nodes: nodes.iter().map(candidate).collect(),
            before,
            weights_before,
            required: None,
        }
    }

    /// Layers keep the numerics id they have in `pipeline`.
    pub(super) fn require(&mut self, pipeline: &'a PipelinePlan) {
        self.required = Some(pipeline.stages.iter().flat_map(|s| s.layers.range().map(|_| s.numerics.as_str())).collect());
    }

    pub(super) fn layers(&self) -> usize {
        self.problem.model.layers()
    }

    pub(super) fn problem(&self) -> &'a Problem {
        self.problem
    }

    pub(super) fn options(&self) -> &Options {
        &self.problem.options
    }

    /// One way from `a` to `b` in nanoseconds; `None` where it is forbidden.
    pub(super) fn link(&self, a: usize, b: usize) -> Option<u64> {
        self.links[a][b]
    }

    /// One way between a node and the coordinator, in nanoseconds.
    pub(super) fn to_coordinator(&self, node: usize) -> u64 {
        self.coordinator[node]
    }

    /// Whether a node has a pinned stage.
    pub(super) fn is_pinned(&self, node: usize) -> bool {
        self.options().pinned.iter().any(|pin| pin.node == self.nodes[node].node.id)
    }

    /// What the layers `layers` cost on `node`, however much memory it has; `None` if they may not be there.
    pub(super) fn stage(&self, node: usize, layers: Layers) -> Option<StageCost> {
        let candidate = &self.nodes[node];
        let mut pinned_here = false;
        for pin in &self.options().pinned {
            let here = pin.node == candidate.node.id;
            pinned_here |= here && pin.layers == layers;
            if !here && pin.layers.overlaps(layers) && !self.also_pinned(node, pin.layers) {
                return None;
            }
        }
        if self.is_pinned(node) && !pinned_here {
            return None;
        }
        if let Some(required) = &self.required
            && required.get(layers.first..layers.end)?.iter().any(|id| *id != candidate.node.numerics)
        {
            return None;
        }
        let model = &self.problem.model;
        let (first, last) = (layers.first == 0, layers.end == self.layers());
        let mut ns = candidate.layer_ns.saturating_mul(layers.len() as u64);
        let mut bytes = self.before.get(layers.end)?.saturating_sub(*self.before.get(layers.first)?);
        if first {
            ns = ns.saturating_add(candidate.embed_ns);
            bytes = bytes.saturating_add(model.embedding_bytes);
        }
        if last {
            ns = ns.saturating_add(candidate.head_ns);
            bytes = bytes.saturating_add(model.head_bytes);
        }
        let held = candidate
            .holds
            .map_or(0, |held| self.weights(Layers { first: held.first.max(layers.first), end: held.end.min(layers.end) }));
        Some(StageCost { ns, bytes, load: self.weights(layers).saturating_sub(held) })
    }

    /// Weights of a range; with the first layer go the embeddings, with the last one the heads.
    fn weights(&self, layers: Layers) -> u64 {
        let model = &self.problem.model;
        if layers.is_empty() {
            return 0;
        }
        let at = |layer: usize| self.weights_before.get(layer).copied().unwrap_or(0);
        let first = if layers.first == 0 { model.embedding_bytes } else { 0 };
        let last = if layers.end == self.layers() { model.head_bytes } else { 0 };
        at(layers.end).saturating_sub(at(layers.first)).saturating_add(first).saturating_add(last)
    }

    /// Whether another pin gives `node` this very range: two pipelines may pin the same layers to different nodes.
    fn also_pinned(&self, node: usize, layers: Layers) -> bool {
        self.options().pinned.iter().any(|pin| pin.node == self.nodes[node].node.id && pin.layers == layers)
    }

    /// Whether `node` has room for a single layer, wherever in the model.
    pub(super) fn has_room(&self, node: usize) -> bool {
        let one = |first| Layers { first, end: first + 1 };
        (0..self.layers()).any(|first| self.stage(node, one(first)).is_some_and(|s| s.bytes <= self.nodes[node].limit))
    }

    /// The pipeline with these stages; `None` if a link or a stage is forbidden.
    pub(super) fn pipeline(&self, stages: &[(usize, Layers)]) -> Option<PipelinePlan> {
        let mut plans: Vec<StagePlan> = Vec::with_capacity(stages.len());
        let mut busy = BTreeMap::<usize, u64>::new();
        let mut step = 0_u64;
        for (i, &(node, layers)) in stages.iter().enumerate() {
            let cost = self.stage(node, layers)?;
            let candidate = &self.nodes[node];
            let pool = busy.entry(candidate.pool).or_default();
            *pool = pool.saturating_add(cost.ns);
            let way = if i == 0 { self.coordinator[node] } else { self.links[stages[i - 1].0][node]? };
            let back = if i + 1 == stages.len() { self.coordinator[node] } else { 0 };
            step = step.saturating_add(cost.ns).saturating_add(way).saturating_add(back);
            plans.push(StagePlan {
                node: candidate.node.id.clone(),
                layers,
                numerics: candidate.node.numerics.clone(),
                memory_bytes: cost.bytes,
                ms: milliseconds(cost.ns),
            });
        }
        let same = plans.windows(2).all(|pair| pair[0].numerics == pair[1].numerics);
        let mixed = |s: &StagePlan| format!("{}[{},{})", s.numerics, s.layers.first, s.layers.end);
        let numerics =
            if same { plans.first()?.numerics.clone() } else { plans.iter().map(mixed).collect::<Vec<_>>().join("+") };
        let pace = busy.values().copied().max().unwrap_or(0);
        Some(PipelinePlan { stages: plans, numerics, step_ms: milliseconds(step), pace_ms: milliseconds(pace) })
    }
}

/// One way from `a` to `b`: half of the round trip, the longer one if both measured it.
fn link(options: &Options, a: &NodeSpec, b: &NodeSpec) -> Option<u64> {
    let pair = |x: &NodeSpec, y: &NodeSpec| options.forbidden_links.contains(&(x.id.clone(), y.id.clone()));
    if pair(a, b) || pair(b, a) {
        return None;
    }
    let measured = [a.round_trips.get(&b.id), b.round_trips.get(&a.id)].into_iter().flatten().copied();
    let guess = match (Pool::of(a) == Pool::of(b), a.zone == b.zone) {
        (true, _) => ROUND_TRIP_MS[0],
        (false, true) => ROUND_TRIP_MS[1],
        (false, false) => ROUND_TRIP_MS[2],
    };
    Some(nanoseconds(measured.reduce(f64::max).unwrap_or(guess) / 2.0))
}

/// One way to the coordinator; nothing if the options name none or nobody measured it.
fn to_coordinator(options: &Options, node: &NodeSpec) -> u64 {
    let measured = options.coordinator.as_ref().and_then(|id| node.round_trips.get(id));
    nanoseconds(measured.copied().unwrap_or(0.0) / 2.0)
}
